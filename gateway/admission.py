"""How much of uploads a gateway takes at once. A body is in memory from its first byte until its row is there, so that
many large ones at once would be more memory than there is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from store.errors import PicturesBusy

__all__ = ["LARGEST_AT_ONCE", "UploadRoom"]

LARGEST_AT_ONCE: Final = 12
"""So many of the largest that are allowed; of smaller ones as many as need no more room than these."""


class UploadRoom:
    """Bytes of bodies that one gateway holds, up to a limit."""

    def __init__(self, upload_max_bytes: int) -> None:
        self._largest_bytes = upload_max_bytes
        self._free_bytes = LARGEST_AT_ONCE * upload_max_bytes

    @contextmanager
    def hold(self, size_bytes: int | None) -> Iterator[None]:
        """Room for a body; None: nobody said how large it is. One that is larger than allowed is refused where it is
        read, and needs no more room than the largest.

        Raises:
            PicturesBusy: there is not so much.
        """
        held = self._largest_bytes if size_bytes is None else min(size_bytes, self._largest_bytes)
        if held > self._free_bytes:
            raise PicturesBusy("as many uploads as there is room for are under way")
        self._free_bytes -= held
        try:
            yield
        finally:
            self._free_bytes += held
