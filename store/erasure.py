"""Erasing a user: rows, objects, credentials, replica files.

First a mark, which ends every credential and lets nobody create the user again. Then the rows go, in batches; the mark
says when the last one was gone. A kill in between leaves an unfinished mark, which any gateway finishes later. Objects
follow their rows (see deletions), hosts delete the replica's file when they see the finished mark (actors/janitor).

A token cannot be taken back, and ends within a day by itself. For a little longer than that an erased id is refused;
after it whoever has the name may come again, as a new user. Versions go on where they were: `sync_user` stays.
"""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import Final, NamedTuple

from store.errors import NotFound
from store.primary import Connection, Primary
from store.users import REFUSED_S, lock_user

__all__ = ["Erased", "Mark", "erase", "finish_erasures", "finished_since", "marks_since"]

#: A mark may be committed this much later than its time says: a look begins so much before the last one.
OVERLAP_S: Final = 60.0
_BATCH: Final = 500
#: Whoever erases is probably still at it.
_ABANDONED_S: Final = 60.0

_MARK: Final = """
insert into erased_users as e (user_id) select $1
where exists (select from users where id = $1) or exists (
  select from erased_users where user_id = $1 and finished_at is null)
on conflict (user_id) do update set
  erased_at = case when e.finished_at is null then e.erased_at else excluded.erased_at end, finished_at = null
returning true
"""
_END_KEYS: Final = "update api_keys set revoked_at = coalesce(revoked_at, clock_timestamp()) where user_id = $1"
_HOLD: Final = "select true from erased_users where user_id = $1 and finished_at is null for update"
_REMOVE: Final = """
with gone as (
  delete from {table} where id in (select id from {table} where owner_id = $1 order by id limit $2)
  returning {bytes} as b)
select count(*), coalesce(sum(b), 0) from gone
"""
#: In this order, so that no row is changed for the end of another one.
_TABLES: Final = {
    "images": _REMOVE.format(table="images", bytes="size_bytes"),
    "references": _REMOVE.format(table="reference_images", bytes="size_bytes"),
    "jobs": _REMOVE.format(table="jobs", bytes="0"),
}


class Erased(NamedTuple):
    """What went."""

    user: str
    images: int
    references: int
    jobs: int
    bytes: int


class Mark(NamedTuple):
    """An erased user; since when, in the primary's time; how many seconds ago that was."""

    user: str
    at: datetime
    age_s: float


async def erase(primary: Primary, user: str) -> Erased:
    """Erase `user` for good. Whoever is interrupted may call it again.

    Raises:
        NotFound: there is no such user (any more).
        PrimaryUnavailable: it is not finished, and will be.
    """

    async def mark(connection: Connection) -> bool:
        await lock_user(connection, user)
        marked = await connection.fetchval(_MARK, user)
        await connection.execute(_END_KEYS, user)
        return marked is True

    marked, _ = await primary.write(user, mark)
    if not marked:
        raise NotFound(f"there is no user {user}")
    return await _finish(primary, user)


async def finish_erasures(primary: Primary, *, older_than_s: float = _ABANDONED_S) -> list[Erased]:
    """Finish the erasures that were begun this long ago and given up since."""
    rows = await primary.fetch(
        "select user_id from erased_users where finished_at is null "
        "and erased_at <= clock_timestamp() - make_interval(secs => $1) order by erased_at limit 100",
        older_than_s,
    )
    return [await _finish(primary, row["user_id"]) for row in rows]


async def _finish(primary: Primary, user: str) -> Erased:
    counts = dict.fromkeys(_TABLES, 0)
    size = 0
    for name, sql in _TABLES.items():
        while True:
            (count, bytes_), _ = await primary.write(user, partial(_remove_batch, sql=sql, user=user))
            counts[name] += count
            size += int(bytes_)
            if count < _BATCH:
                break

    async def end(connection: Connection) -> None:
        if await connection.fetchval(_HOLD, user):
            # All that is left, and what was written since the mark, goes with it.
            await connection.execute("delete from users where id = $1", user)
            await connection.execute("update erased_users set finished_at = clock_timestamp() where user_id = $1", user)

    await primary.write(user, end)
    return Erased(user, counts["images"], counts["references"], counts["jobs"], size)


async def _remove_batch(connection: Connection, *, sql: str, user: str) -> tuple[int, int]:
    # Held by one at a time; nothing when another one has finished.
    if not await connection.fetchval(_HOLD, user):
        return 0, 0
    row = await connection.fetchrow(sql, user, _BATCH)
    assert row is not None
    return row[0], row[1]


async def marks_since(primary: Primary, since: datetime | None) -> list[Mark]:
    """The users who are refused, and were erased after `since` or shortly before; None: all of them."""
    return await _since(primary, "erased_at", since, REFUSED_S)


async def finished_since(primary: Primary, since: datetime | None, *, within_s: float) -> list[Mark]:
    """The users whose last row went after `since` or shortly before, at most `within_s` seconds ago, and who have not
    come again; None: in all of this time."""
    return await _since(primary, "finished_at", since, within_s)


async def _since(primary: Primary, column: str, since: datetime | None, within_s: float) -> list[Mark]:
    rows = await primary.fetch(
        f"select user_id, {column}, extract(epoch from clock_timestamp() - {column})::float8 "
        f"from erased_users e where {column} > clock_timestamp() - make_interval(secs => $1) "
        f"and ($2::timestamptz is null or {column} > $2 - make_interval(secs => $3)) "
        "and (e.finished_at is null or not exists (select from users u where u.id = e.user_id)) "
        f"order by {column}",
        within_s, since, OVERLAP_S,
    )  # fmt: skip
    return [Mark(*row) for row in rows]
