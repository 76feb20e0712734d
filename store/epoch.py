"""Epochs and bookmarks: which history of the primary a version belongs to.

An epoch is `<time of the last rotation in ms>-<timeline>`. Only the first part says that history may have been
lost; a new timeline alone (a clean failover) is settled by the nonce. Epochs are ordered, so (epoch, version)
is compared as one pair.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from store.primary import Primary

__all__ = ["Bookmark", "epoch_order", "rotate"]

_EPOCH: Final = re.compile(r"([0-9]{1,15})-([0-9]{1,10})")
_BOOKMARK: Final = re.compile(r"([0-9]{1,15}-[0-9]{1,10})\.([0-9]{1,18})")


@lru_cache(maxsize=64)
def epoch_order(epoch: str) -> tuple[int, int]:
    """The numbers by which epochs are ordered: (time of the rotation in ms, timeline).

    Raises:
        ValueError: `epoch` is not `<ms>-<timeline>`.
    """
    match = _EPOCH.fullmatch(epoch)
    if match is None:
        raise ValueError(f"epoch {epoch!r} is not <ms>-<timeline>")
    return int(match[1]), int(match[2])


class Bookmark(NamedTuple):
    """A position given to a client: "show me at least this". Printed as `epoch.version`."""

    epoch: str
    version: int

    @classmethod
    def parse(cls, text: str) -> Bookmark | None:
        """The bookmark that `text` prints, or None when it is not one."""
        match = _BOOKMARK.fullmatch(text)
        return None if match is None else cls(match[1], int(match[2]))

    def __str__(self) -> str:
        return f"{self.epoch}.{self.version}"

    def is_after(self, epoch: str, version: int) -> bool:
        """Whether this is newer than (epoch, version), compared as a pair."""
        if self.epoch == epoch:
            return self.version > version
        return epoch_order(self.epoch) > epoch_order(epoch)


async def rotate(primary: Primary) -> str:
    """Begin a new epoch, and answer it: after a restore, and after anything that triggers could not see.

    Every replica is seeded anew when it is next read or swept; until then it serves nothing.
    """
    (row,) = await primary.fetch(
        "update sync_epoch set id = greatest(id + 1, (extract(epoch from clock_timestamp()) * 1000)::bigint) "
        "returning sync_epoch_now() as epoch, id"
    )
    # The function saw the row as it was before this statement.
    return f"{row['id']}-{epoch_order(row['epoch'])[1]}"
