"""Deletions: objects that no row refers to any more, written down until they are gone.

A row's end and the note of its keys are one transaction (`object_gone` in triggers.sql), so whoever is killed, and
whenever, what is left over is on the list. Taking a key from it is a lease, not a lock: no transaction is open while
the object store works, and what a killed worker had taken is due again when its lease ends. Deleting twice is as once.
"""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

import structlog

from store.errors import ObjectError
from store.objects.interface import Objects
from store.primary import Primary

__all__ = ["Backlog", "Deleted", "backlog", "delete_due", "waiting"]

log = structlog.get_logger()

_BATCH: Final = 200
_AT_ONCE: Final = 16
#: Longer than every call of the object store with its retries.
_LEASE_S: Final = 600.0
_LONGEST_PAUSE_S: Final = 3600.0

# $1 keys, $2 lease in seconds. Several workers meet on no key.
_TAKE: Final = """
update deletions d set due_at = clock_timestamp() + make_interval(secs => $2), attempts = d.attempts + 1
where d.key in (select key from deletions where due_at <= clock_timestamp() order by due_at limit $1
                for update skip locked)
returning d.key, d.key in (
  select k from images i cross join object_keys(i.object_key, i.thumb_key) k
  where i.object_key = d.key or i.thumb_key = replace(d.key, '.thumb96.', '.thumb.')
  union all
  select k from reference_images r cross join object_keys(r.object_key, r.thumb_key) k
  where r.object_key = d.key or r.thumb_key = replace(d.key, '.thumb96.', '.thumb.')) as is_used
"""
_FORGET: Final = "delete from deletions where key = any($1::text[])"
# $1 keys, $2 longest pause: 2, 4, 8 … seconds after the first, second, third failure.
_PUT_OFF: Final = """
update deletions set due_at = clock_timestamp() + make_interval(secs => least($2, 2 ^ least(attempts, 20)))
where key = any($1::text[])
"""

# $1 most rows, $2 longest pause. A row says when it is due, and how often it failed: it has waited for all the pauses
# between those attempts, and since it was due.
_BACKLOG: Final = """
select count(*), greatest(0, max(extract(epoch from clock_timestamp() - due_at) + paused))::float8
from (select due_at, attempts from deletions order by due_at limit $1) d
cross join lateral (select coalesce(sum(least($2, 2 ^ n)), 0) paused from generate_series(1, least(attempts, 1000)) n) p
"""
_MOST_COUNTED: Final = 10_000


class Deleted(NamedTuple):
    """How many objects went, and how many deletions failed and are tried again later."""

    gone: int
    failed: int


class Backlog(NamedTuple):
    """How many objects are still to go, and for how many seconds the one that failed or was due longest has been
    waiting, at least; 0 when none is due."""

    objects: int
    oldest_s: float


async def delete_due(primary: Primary, objects: Objects, *, batches: int = 1000) -> Deleted:
    """Delete the objects whose time has come, in batches that each are leased; any number may run at once.

    A key that a row has (again: rows that were brought back) leaves the list and keeps its object.

    Raises:
        PrimaryUnavailable: what was taken comes back by itself.
    """
    gone = failed = 0
    for _ in range(batches):
        taken = await primary.fetch(_TAKE, _BATCH, _LEASE_S)
        if not taken:
            break
        failures = await _delete([row["key"] for row in taken if not row["is_used"]], objects)
        done = [row["key"] for row in taken if row["key"] not in failures]
        await primary.fetch(_FORGET, done)
        gone += sum(not row["is_used"] for row in taken) - len(failures)
        if failures:
            failed += len(failures)
            await primary.fetch(_PUT_OFF, list(failures), _LONGEST_PAUSE_S)
            key, error = next(iter(failures.items()))
            log.warning("objects.not_deleted", count=len(failures), first=key, error=str(error)[:300])
            break  # the store is unwell: the others would fail as well, and are due as before
    return Deleted(gone, failed)


async def waiting(primary: Primary) -> int:
    """How many objects are still to go."""
    return int((await primary.fetch("select count(*) from deletions"))[0][0])


async def backlog(primary: Primary) -> Backlog:
    """What waits, from a bounded look at those due first: 10,000 means so many or more."""
    objects, oldest_s = (await primary.fetch(_BACKLOG, _MOST_COUNTED, _LONGEST_PAUSE_S))[0]
    return Backlog(objects, oldest_s)


async def _delete(keys: list[str], objects: Objects) -> dict[str, ObjectError]:
    """Delete them; answers those that failed."""
    turns = asyncio.Semaphore(_AT_ONCE)
    failures: dict[str, ObjectError] = {}

    async def delete(key: str) -> None:
        async with turns:
            try:
                await objects.delete(key)
            except ObjectError as error:
                failures[key] = error

    await asyncio.gather(*(delete(key) for key in keys))
    return failures
