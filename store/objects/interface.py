"""What every object store does, whichever keeps the bytes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from store.errors import RangeOutside

__all__ = ["ObjectInfo", "Objects", "OpenObject", "check_range"]


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What is known of an object without reading it."""

    key: str
    size_bytes: int
    etag: str  # opaque, without quotes; an object never changes, so neither does this
    modified_at: datetime  # in UTC
    content_type: str
    cache_control: str


@dataclass(frozen=True, slots=True)
class OpenObject:
    """Some bytes of an object, to be read once."""

    info: ObjectInfo
    start: int
    end: int  # half open: the bytes from `start` up to, without, this one
    chunks: AsyncIterator[bytes]  # raises ObjectsUnavailable rather than end early or yield a whole wrong object


class Objects(Protocol):
    """Objects by key (see `keys.py`): written once, whole or absent, never changed. Content type and cache control
    follow from the key.

    Every method may raise ObjectError; of its kinds only those named are part of the method's meaning. No object has a
    malformed key: writing one raises ObjectMissing.
    """

    async def put(self, key: str, data: bytes) -> None:
        """Write an object that must not exist yet. It is durable once this returns; after an error it is not there.

        Raises:
            ObjectExists: the key is taken; the bytes that have it stay as they are.
        """

    async def put_many(self, items: Sequence[tuple[str, bytes]]) -> None:
        """Write all of the objects or, on an error, none; a kill in between may leave some, each whole.

        Raises:
            ObjectExists: one of the keys is taken.
        """

    async def get(self, key: str) -> bytes:
        """Return all of the bytes.

        Raises:
            ObjectMissing: no object has this key.
        """

    def open(self, key: str, *, start: int = 0, end: int | None = None) -> AbstractAsyncContextManager[OpenObject]:
        """Read an object, or its bytes from `start` up to `end`, in chunks. An `end` behind the last byte is no error.

        Raises:
            ObjectMissing: no object has this key.
            RangeOutside: no byte of the object is in the range. A whole object may be empty, a range of it not.
        """

    async def head(self, key: str) -> ObjectInfo:
        """Return what is known of the object.

        Raises:
            ObjectMissing: no object has this key.
        """

    async def exists(self, key: str) -> bool:
        """Tell whether an object has this key. An error is an error, never False."""

    async def delete(self, key: str) -> None:
        """Remove the object for good. It is no error when there is none: a delete may be repeated."""

    def scan(self, prefix: str = "", *, after: str = "") -> AsyncIterator[ObjectInfo]:
        """Every object whose key begins with `prefix` and sorts behind `after`, ascending by key. What is written
        meanwhile may or may not be among them."""

    def public_url(self, key: str) -> str | None:
        """Where anybody may read the object without asking us; None when there is no such place."""

    async def sweep_temporary(self, older_than_s: float) -> int:
        """Remove what killed writers left, and return how many things that were. An hour is a safe age."""

    async def check(self) -> None:
        """Find out at the start whether objects can be kept: reads, and writes nothing.

        Raises:
            ObjectError: they cannot; the message names the setting or folder at fault.
        """

    async def close(self) -> None:
        """Let go of threads and connections. What is under way ends first."""


def check_range(key: str, start: int, end: int | None) -> None:
    """Raise RangeOutside for a range that no object could fill."""
    if start < 0 or (end is not None and end <= start):
        raise RangeOutside(f"object {key} has no bytes from {start} up to {end}")
