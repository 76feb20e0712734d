"""Idempotency keys: a request that is sent again is answered again, and not done again.

The answer is kept in the transaction of what it tells about: both are there, or neither. What was refused is not kept:
nothing has happened, and the key may come again with the mended request.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from store.errors import KeyInFlight, KeyReused
from store.primary import Connection, Primary

__all__ = ["KEPT_S", "KeptReply", "forget_old", "once"]

#: For how long an answer is repeated.
KEPT_S: Final = 24 * 3600.0

# A user's id holds no space: no two pairs make the same text.
_LOCK: Final = "select pg_try_advisory_xact_lock(hashtextextended($1 || ' ' || $2, 3))"
_FIND: Final = """
select request_hash, status, reply, location from idempotency_keys
where owner_id = $1 and key = $2 and created_at > clock_timestamp() - make_interval(secs => $3)
"""
_KEEP: Final = """
insert into idempotency_keys (owner_id, key, request_hash, status, reply, location) values ($1, $2, $3, $4, $5, $6)
on conflict (owner_id, key) do update set request_hash = excluded.request_hash, status = excluded.status,
  reply = excluded.reply, location = excluded.location, created_at = excluded.created_at
"""
_FORGET: Final = """
delete from idempotency_keys where (owner_id, key) in (
  select owner_id, key from idempotency_keys where created_at <= clock_timestamp() - make_interval(secs => $1)
  order by created_at limit $2 for update skip locked)
returning 1
"""
_BATCH_ROWS: Final = 1000


class KeptReply(NamedTuple):
    """An answer: status, the bytes of its body, and its Location."""

    status: int
    body: bytes
    location: str | None


async def once(
    connection: Connection, user: str, key: str, request_hash: bytes, work: Callable[[], Awaitable[KeptReply]]
) -> tuple[KeptReply, bool]:
    """The answer to a request of `user` under `key`, and whether it is a repetition. `work` does it, and makes sure
    that the user exists.

    Raises:
        KeyInFlight: the same is being done right now.
        KeyReused: the key was used for another request.
    """
    if not await connection.fetchval(_LOCK, user, key):
        raise KeyInFlight("a request with this Idempotency-Key is being answered: try again in a moment")
    row = await connection.fetchrow(_FIND, user, key, KEPT_S)
    if row is not None:
        if row["request_hash"] != request_hash:
            raise KeyReused("this Idempotency-Key was used for another request")
        return KeptReply(row["status"], row["reply"], row["location"]), True
    reply = await work()
    await connection.execute(_KEEP, user, key, request_hash, *reply)
    return reply, False


async def forget_old(primary: Primary, *, keep_s: float = KEPT_S) -> int:
    """Delete answers that are not repeated any more, in small batches; answers how many."""
    forgotten = 0
    while True:
        rows = await primary.fetch(_FORGET, keep_s, _BATCH_ROWS)
        forgotten += len(rows)
        if len(rows) < _BATCH_ROWS:
            return forgotten
