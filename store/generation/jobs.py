"""Jobs in work: who has which, until when, and who may still write about one.

A worker *claims* jobs for the length of a lease and *beats* to keep them. Every claim raises the job's fence; whatever
a worker writes about a job begins with `hold`, which locks the queue's row at that fence. So a worker that was away for
too long writes nothing any more, however late it comes back.

Fairness is in the queue's `turn` (see jobs.sql): a claim takes the lowest turns, and moves the clock that new jobs
start from.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

from store.epoch import Bookmark
from store.errors import StoreError
from store.primary import Connection, Primary

__all__ = [
    "Beaten", "Claimed", "Lost", "beat", "claim", "give_back", "heads", "hold", "is_work_waiting", "look", "nudge",
    "put_back", "set_progress", "set_uploading",
]  # fmt: skip


class Lost(StoreError):
    """Raised when a job is not ours to write about: its lease ended and another worker has it, or it is over."""


class Claimed(NamedTuple):
    """A job that this worker has, as it was at the claim."""

    id: uuid.UUID
    owner_id: str
    fence: int
    is_canceled: bool  # its user wants it to end
    state: str
    kind: str
    prompt: str
    params: str  # JSON of JobParams
    watermark: str | None
    n: int
    provider: str
    model: str
    own_key: bool
    created_at: datetime


class Beaten(NamedTuple):
    """What a worker learns about a job that it still has."""

    fence: int
    is_canceled: bool
    nudged_at: datetime  # moves when somebody wants the provider to be asked now


#: One claim at a time, for one commit: what runs at a provider is counted and taken under it, so the bounds are exact.
_LOCK: Final = "select pg_advisory_xact_lock(hashtextextended('peruse claim', 2))"
#: Whose worker is gone: they wait again, at their old turn. now(): with a volatile clock all rows would be looked at.
_REAP: Final = """
update queue set worker = null, lease_until = null
where provider = any($1::text[]) and worker is not null and lease_until <= now()
"""
#: $1 worker, $2 lease in seconds, $3 providers, $4 most jobs of each at once, $5 room of the worker.
#: Two steps in one statement: the first jobs of each provider with room, then the first of those that the worker has
#: room for.
_CLAIM: Final = """
with room as (
  select provider, least($5, most - (
    select count(*) from queue r where r.provider = a.provider and r.worker is not null))::int as free
  from unnest($3::text[], $4::int[]) as a (provider, most)),
next as (
  select w.job_id from room cross join lateral (
    select job_id, turn, rank, created_at from queue q
    where q.provider = room.provider and q.worker is null and q.run_at <= clock_timestamp()
    order by q.turn, q.rank, q.created_at limit greatest(room.free, 0) for update skip locked) w
  order by w.turn, w.rank, w.created_at limit $5),
taken as (
  update queue q set worker = $1, lease_until = clock_timestamp() + make_interval(secs => $2), fence = q.fence + 1
  from next where q.job_id = next.job_id returning q.job_id, q.fence, q.turn, q.cancel_requested),
clock as (
  update queue_clock set turn = (select max(turn) from taken) where turn < (select max(turn) from taken))
update jobs j set
  state = case j.state when 'pending' then 'processing' else j.state end,
  updated_at = case j.state when 'pending' then clock_timestamp() else j.updated_at end
from taken t where j.id = t.job_id
returning j.id, j.owner_id, t.fence, t.cancel_requested, j.state, j.kind, j.prompt, j.params::text, j.watermark, j.n,
  j.provider, j.model, j.own_key, j.created_at
"""
_WAITING: Final = """
select exists (select from queue where provider = any($1::text[]) and worker is null and run_at <= now())
  or exists (select from queue where provider = any($1::text[]) and worker is not null and lease_until <= now())
"""
_BEAT: Final = """
update queue set lease_until = clock_timestamp() + make_interval(secs => $2)
where job_id = any($3::uuid[]) and worker = $1 returning job_id, fence, cancel_requested, run_at
"""
_LOOK: Final = (
    "select job_id, fence, cancel_requested, run_at from queue where job_id = any($2::uuid[]) and worker = $1"
)
_PUT_BACK: Final = """
update jobs set state = 'pending', updated_at = clock_timestamp()
where id = any($1::uuid[]) and state = 'processing' returning owner_id
"""
_FLUSH: Final = "select epoch from sync_flush('')"
_VERSIONS: Final = "select user_id, version from sync_user where user_id = any($1::text[])"


async def is_work_waiting(primary: Primary, providers: Iterable[str]) -> bool:
    """Whether a claim could find something: two probes of an index, and no lock."""
    return bool((await primary.fetch(_WAITING, list(providers)))[0][0])


async def claim(
    primary: Primary, worker: str, *, most: Mapping[str, int], room: int, lease_s: float
) -> tuple[list[Claimed], dict[str, Bookmark]]:
    """Take up to `room` waiting jobs, fairly; `most` bounds the jobs of each provider over all workers. Jobs whose
    lease has ended are waiting ones. Answers the jobs, and the heads of their owners.

    Raises:
        PrimaryUnavailable: a claim may have happened all the same: it ends with its lease.
    """

    async def work(connection: Connection) -> tuple[list[Claimed], dict[str, Bookmark]]:
        await connection.execute(_LOCK)
        await connection.execute(_REAP, list(most))
        rows = await connection.fetch(_CLAIM, worker, lease_s, list(most), list(most.values()), room)
        jobs = [Claimed(*row) for row in rows]
        return jobs, await heads(connection, {job.owner_id for job in jobs})

    return (await primary.write("", work))[0]


async def heads(connection: Connection, users: Iterable[str]) -> dict[str, Bookmark]:
    """Where this transaction brings each of these users, last in it: it stamps them."""
    epoch = await connection.fetchval(_FLUSH)
    return {row[0]: Bookmark(epoch, row[1]) for row in await connection.fetch(_VERSIONS, list(users))}


async def beat(primary: Primary, worker: str, held: Iterable[uuid.UUID], *, lease_s: float) -> dict[uuid.UUID, Beaten]:
    """Keep jobs for another lease; those that are not among the answers are lost."""
    rows = await primary.fetch(_BEAT, worker, lease_s, list(held))
    return {row[0]: Beaten(*row[1:]) for row in rows}


async def look(primary: Primary, worker: str, held: Iterable[uuid.UUID]) -> dict[uuid.UUID, Beaten]:
    """As `beat`, without writing."""
    return {row[0]: Beaten(*row[1:]) for row in await primary.fetch(_LOOK, worker, list(held))}


async def hold(connection: Connection, job: Claimed) -> None:
    """First statement of every write about a job: it is ours until this transaction ends.

    Raises:
        Lost: it is not ours any more.
    """
    sql = "select true from queue where job_id = $1 and fence = $2 for update"
    if await connection.fetchval(sql, job.id, job.fence) is None:
        raise Lost(f"job {job.id} is not ours any more at fence {job.fence}")


async def set_uploading(connection: Connection, job: Claimed) -> None:
    """The state of a job whose first picture is about to be stored."""
    sql = "update jobs set state = 'uploading', updated_at = clock_timestamp() where id = $1 and state = 'processing'"
    await connection.execute(sql, job.id)


async def set_progress(primary: Primary, job: Claimed, fraction: float | None, position: int | None) -> None:
    """What the provider tells of a job; lost when it is not ours."""
    sql = "update queue set progress = $3, provider_position = $4 where job_id = $1 and fence = $2"
    await primary.fetch(sql, job.id, job.fence, fraction, position)


async def put_back(primary: Primary, jobs: Iterable[Claimed]) -> dict[str, Bookmark]:
    """Jobs that nothing was done for wait again, as if they had never been claimed. Answers their owners' heads."""

    async def work(connection: Connection) -> dict[str, Bookmark]:
        ours = await _let_go(connection, jobs)
        rows = await connection.fetch(_PUT_BACK, ours)
        return await heads(connection, {row[0] for row in rows})

    return (await primary.write("", work))[0]


async def give_back(primary: Primary, jobs: Iterable[Claimed], *, after_s: float = 0.0) -> None:
    """Jobs that a provider works on wait for a worker who resumes them, after a while; their state stays."""
    await primary.write("", lambda connection: _let_go(connection, jobs, after_s))


async def _let_go(connection: Connection, jobs: Iterable[Claimed], after_s: float = 0.0) -> list[Any]:
    held = list(jobs)
    rows = await connection.fetch(
        "update queue q set worker = null, lease_until = null, run_at = clock_timestamp() + make_interval(secs => $3) "
        "from unnest($1::uuid[], $2::bigint[]) h (id, fence) "
        "where q.job_id = h.id and q.fence = h.fence and q.worker is not null returning q.job_id",
        [job.id for job in held], [job.fence for job in held], after_s,
    )  # fmt: skip
    return [row[0] for row in rows]


async def nudge(primary: Primary, provider: str, task_id: str) -> bool:
    """Have whoever works on a provider's task look at it now, as the provider says that it has ended. Tells whether
    somebody does."""
    rows = await primary.fetch(
        "update queue q set run_at = clock_timestamp() from attempts a where a.provider = $1 and a.task_id = $2 "
        "and a.state = 'submitted' and q.job_id = a.job_id returning true",
        provider, task_id,
    )  # fmt: skip
    return bool(rows)
