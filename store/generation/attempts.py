"""Attempts: what was asked of providers for a job, written down before it is asked.

started     the provider is about to be asked, or is being asked
submitted   the provider has a task: its id is here, and whoever has the job goes on with it
done        its pictures are stored under the keys here
failed      the provider said no, or what it sent could not be kept
unknown     it was asked, and nobody knows what became of it
canceled    nobody waits for it any more

An open attempt with keys is one whose upload has begun: if all of its objects are there, it is as good as done. What a
process leaves behind that is killed at any moment says what to do next.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final, Literal, NamedTuple

import msgspec

from store import storage
from store.generation.errors import GenerationError
from store.generation.jobs import Claimed
from store.primary import Connection, Primary
from store.storage import Reservation

__all__ = [
    "Attempt",
    "Ended",
    "Stored",
    "attempts_of",
    "begin",
    "end",
    "end_all",
    "finish",
    "forget",
    "name",
    "save_task",
    "storable",
]

Ended = Literal["failed", "unknown", "canceled"]


class Stored(msgspec.Struct, frozen=True):
    """One picture of an attempt, before and after its objects are there."""

    key: str
    content_type: str
    size_bytes: int
    width: int
    height: int
    thumbhash: str
    reservation_id: uuid.UUID
    """Of the room that is kept for it until its row is made."""
    seed: int | None = None
    revised_prompt: str = ""


class Attempt(NamedTuple):
    """A row, as somebody finds it who takes the job up."""

    id: uuid.UUID
    call: int
    number: int
    state: str
    task_id: str | None
    pictures: tuple[Stored, ...]
    submitted_s_ago: float
    error_code: str | None

    @property
    def is_open(self) -> bool:
        return self.state in ("started", "submitted")


_OF: Final = """
select id, call, number, state, task_id, pictures::text,
  coalesce(extract(epoch from clock_timestamp() - submitted_at), 0)::float8, error_code
from attempts where job_id = $1 order by call, number
"""
# The id is ours, so that it may be said twice when nobody knows whether the first time was heard.
_BEGIN: Final = """
insert into attempts (id, job_id, owner_id, call, number, provider, model, fence)
values ($1, $2, $3, $4, $5, $6, $7, $8) on conflict (id) do nothing
"""
_TASK: Final = "update attempts set state = 'submitted', task_id = $2, submitted_at = clock_timestamp() where id = $1"
_NAME: Final = "update attempts set object_keys = $2, pictures = $3::text::jsonb, cost_usd = $4 where id = $1"
# Keys and pictures are answered as they were.
_END: Final = """
with before as (
  select id, object_keys, pictures::text from attempts where id = $1 and state = any($6::text[]) for update)
update attempts a set state = $2, error_code = $3, error_message = $4, cost_usd = greatest(a.cost_usd, $5),
  ended_at = clock_timestamp(), pictures = '[]', object_keys = '{}'
from before where a.id = before.id returning before.object_keys, before.pictures, a.owner_id
"""
_ALL: Final = "select id from attempts where job_id = $1 and state in ('started', 'submitted', 'done') order by id"
_OPEN: Final = ("started", "submitted")
_FORGET: Final = """
insert into deletions (key)
select k from unnest($1::text[]) o cross join object_keys(o, regexp_replace(o, '[.][^.]*$', '.thumb.webp')) k
on conflict do nothing
"""
_FINISH: Final = "update attempts set state = 'done', ended_at = clock_timestamp() where id = $1 and ended_at is null"

_decode: Final = msgspec.json.Decoder(tuple[Stored, ...]).decode


async def attempts_of(primary: Primary, job: Claimed) -> list[Attempt]:
    """All of a job, by call and number."""
    rows = await primary.fetch(_OF, job.id)
    return [Attempt(*row)._replace(pictures=_decode(row["pictures"])) for row in rows]


async def begin(connection: Connection, job: Claimed, id: uuid.UUID, *, call: int, number: int) -> None:
    await connection.execute(_BEGIN, id, job.id, job.owner_id, call, number, job.provider, job.model, job.fence)


async def save_task(connection: Connection, id: uuid.UUID, task_id: str) -> None:
    await connection.execute(_TASK, id, task_id)


async def name(connection: Connection, id: uuid.UUID, pictures: Sequence[Stored], cost_usd: Decimal) -> None:
    """Write down what is about to be stored, and under which keys. What was named before, by somebody who did not come
    to its end, is given up."""
    row = await connection.fetchrow("select object_keys, pictures::text, owner_id from attempts where id = $1", id)
    assert row is not None
    await _give_up(connection, row)
    await connection.execute(
        _NAME, id, [picture.key for picture in pictures], msgspec.json.encode(pictures).decode(), cost_usd
    )


async def end(
    connection: Connection,
    id: uuid.UUID,
    how: Ended,
    error: GenerationError,
    cost_usd: Decimal = Decimal(0),
    *,
    with_done: bool = False,
) -> None:
    """An attempt without pictures. What it had named, and the room that it had taken, are given up. One that has ended
    stays as it is, unless it is done and `with_done` says that its pictures are not wanted."""
    states = [*_OPEN, *(["done"] if with_done else [])]
    row = await connection.fetchrow(_END, id, how, error.code, storable(str(error), 1000), cost_usd, states)
    if row is not None:
        await _give_up(connection, row)


async def end_all(
    connection: Connection, job: Claimed, how: Ended, error: GenerationError, *, with_done: bool = False
) -> None:
    """Those of a job that nobody waits for any more."""
    for row in await connection.fetch(_ALL, job.id):
        await end(connection, row["id"], how, error, with_done=with_done)


async def _give_up(connection: Connection, row: Any) -> None:
    if not row["object_keys"]:
        return
    await forget(connection, row["object_keys"])
    for picture in _decode(row["pictures"]):
        await storage.release(connection, Reservation(picture.reservation_id, row["owner_id"], picture.size_bytes))


async def forget(connection: Connection, keys: Sequence[str]) -> None:
    """The objects of these pictures are to be deleted."""
    await connection.execute(_FORGET, keys)


async def forget_unless_named(primary: Primary, id: uuid.UUID, keys: Sequence[str]) -> None:
    """The same for objects that came when their attempt was gone, or had given them up: what was on the list for it may
    be worked off already. As long as it names them, whoever has the job now finds them."""
    if not await primary.fetch("select from attempts where id = $1 and object_keys && $2::text[]", id, keys):
        await primary.fetch(_FORGET, keys)


async def finish(connection: Connection, id: uuid.UUID) -> None:
    """All objects that it had named are there."""
    await connection.execute(_FINISH, id)


def storable(text: str, most: int) -> str:
    """Somebody else's words as Postgres takes them: no NUL, no half characters, at most so many."""
    return text[:most].replace("\0", "").encode(errors="replace").decode()
