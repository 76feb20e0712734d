"""Removing images for good: one, all in the trash, or what has been there for too long.

The row's end, the account's bytes and the note of the objects' keys are one transaction; the objects follow (see
deletions). A removed image is a deleted row to replicas.
"""

from __future__ import annotations

import uuid
from typing import Any, Final, NamedTuple

from store import storage
from store.epoch import Bookmark
from store.errors import NotFound
from store.primary import Connection, Primary

__all__ = ["Removed", "empty", "purge", "remove"]

_BATCH: Final = 200
_USERS: Final = 100

_REMOVE: Final = "delete from images where id = $1 and owner_id = $2 returning size_bytes"
# $1 owner, $2 trashed at this time or before, $3 most rows.
_REMOVE_TRASHED: Final = """
delete from images where id in (
  select id from images where owner_id = $1 and trashed_at <= $2 order by id limit $3 for update {skip})
returning size_bytes
"""
_EMPTY_BATCH: Final = _REMOVE_TRASHED.format(skip="")
_PURGE_BATCH: Final = _REMOVE_TRASHED.format(skip="skip locked")
# $1 trashed at this time or before, $2 rows looked at.
_OWNERS: Final = """
select distinct owner_id from (
  select owner_id from images where trashed_at <= $1 order by trashed_at limit $2) oldest order by owner_id
"""


class Removed(NamedTuple):
    """How many images are gone for good, and their bytes, without thumbnails."""

    images: int
    bytes: int

    def plus(self, other: Removed) -> Removed:
        return Removed(self.images + other.images, self.bytes + other.bytes)


_NONE: Final = Removed(0, 0)


async def remove(connection: Connection, owner: str, image_id: uuid.UUID) -> Removed:
    """Remove one image for good, in the trash or not. Inside a transaction of `Primary.write`.

    Raises:
        NotFound: the owner has no such image.
    """
    size = await connection.fetchval(_REMOVE, image_id, owner)
    if size is None:
        raise NotFound("Image not found")
    return await _freed(connection, owner, Removed(1, size))


async def empty(primary: Primary, owner: str) -> tuple[Removed, Bookmark]:
    """Remove all that is in the owner's trash now, in transactions that each are whole; and the bookmark of the last.

    Raises:
        PrimaryUnavailable: some may be gone; the rest is where it was.
    """
    (row,) = await primary.fetch("select clock_timestamp() as now")
    removed = _NONE
    while True:
        part, bookmark = await primary.write(owner, lambda c: _remove_batch(c, _EMPTY_BATCH, owner, row["now"]))
        removed = removed.plus(part)
        if part.images < _BATCH:
            return removed, bookmark


async def purge(primary: Primary, *, keep_s: float, rounds: int = 1000) -> Removed:
    """Remove what has been in a trash for longer than `keep_s` seconds, user by user, in small transactions.

    Several may run at once; a row that somebody else holds is left for the next time.
    """
    (row,) = await primary.fetch("select clock_timestamp() - make_interval(secs => $1) as until", float(keep_s))
    removed = _NONE
    for _ in range(rounds):
        owners = await primary.fetch(_OWNERS, row["until"], _USERS)
        before = removed
        for owner in owners:
            removed = removed.plus(await _purge_user(primary, owner["owner_id"], row["until"]))
        if removed == before:
            break
    return removed


async def _purge_user(primary: Primary, owner: str, until: Any) -> Removed:
    removed = _NONE
    while True:
        part, _ = await primary.write(owner, lambda c: _remove_batch(c, _PURGE_BATCH, owner, until))
        removed = removed.plus(part)
        if part.images < _BATCH:
            return removed


async def _remove_batch(connection: Connection, sql: str, owner: str, until: Any) -> Removed:
    rows = await connection.fetch(sql, owner, until, _BATCH)
    return await _freed(connection, owner, Removed(len(rows), sum(row["size_bytes"] for row in rows)))


async def _freed(connection: Connection, owner: str, removed: Removed) -> Removed:
    """Give the owner's account its bytes back: the one place where removing images does."""
    if removed.images:
        await storage.free(connection, owner, removed.bytes)
    return removed
