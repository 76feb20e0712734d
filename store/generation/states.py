"""How generations are told: the job's document with its pictures, how far it is, and what waits before it."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from store.documents import Documents, projection
from store.epoch import Bookmark
from store.errors import NotFound
from store.primary import Connection, Primary

__all__ = ["FINAL", "Generation", "State", "batch_of", "generations", "jobs_of_batch", "states"]

FINAL: Final = frozenset({"completed", "failed", "canceled"})

#: What is counted at most before a job in the queue: a longer wait is told as this.
_MOST_BEFORE: Final = 1000
_IMAGES: Final = f"""
array(select (select row_to_json(d) from (select {projection("images", "i")}) d)::text
  from unnest(j.image_ids) with ordinality k (id, at) join images i on i.id = k.id and i.owner_id = j.owner_id
  order by k.at)
"""
#: The provider's own queue once somebody works on the job, before that ours.
_POSITION: Final = f"""
case when q.worker is not null then q.provider_position else (
  select count(*)::int from (
    select from queue b where b.provider = q.provider and b.worker is null
    and (b.turn, b.rank, b.created_at) < (q.turn, q.rank, q.created_at) limit {_MOST_BEFORE}) before) end
"""
#: $1 user, $2 ids. With the position in the user's history, of the same snapshot.
_GENERATIONS: Final = f"""
select h.epoch, h.version, j.id, j.state, (select row_to_json(d) from (select {projection("jobs", "j")}) d)::text,
  {_IMAGES}, q.progress, case when q.job_id is not null then {_POSITION} end,
  j.price_tenths - j.refunded_tenths, j.refunded_tenths, j.error_code
from (select sync_epoch_now() as epoch, coalesce(
  (select s.version from sync_user s where s.user_id = $1), 0) as version) h
cross join unnest($2::uuid[]) with ordinality w (id, at)
join jobs j on j.id = w.id and j.owner_id = $1 left join queue q on q.job_id = j.id order by w.at
"""
#: $1 ids, $2 whether places in the queue are to be counted.
_STATES: Final = f"""
select j.id, j.state, q.progress, case when $2 or q.worker is not null then {_POSITION} end,
  coalesce(q.worker is not null, false)
from jobs j left join queue q on q.job_id = j.id where j.id = any($1::uuid[])
"""


class Generation(NamedTuple):
    """A job as its owner sees it at one version; `document` is its JSON, `images` are those of its pictures. What it
    costs and what was given back are tenths of a credit."""

    at: Bookmark
    id: uuid.UUID
    state: str
    document: bytes
    images: tuple[bytes, ...]
    cost_tenths: int
    refunded_tenths: int
    error_code: str | None

    @property
    def is_over(self) -> bool:
        return self.state in FINAL


class State(NamedTuple):
    """How far a job is: `progress` 0 to 1 and the place in the queue where they are known, 0 being next."""

    state: str
    progress: float | None
    queue_position: int | None
    is_taken: bool
    """Whether somebody works on it."""

    @property
    def is_over(self) -> bool:
        return self.state in FINAL


async def generations(
    source: Connection | Primary, user: str, ids: Sequence[uuid.UUID], documents: Documents
) -> list[Generation]:
    """These jobs of `user`, in the order of `ids`, from one snapshot.

    Raises:
        NotFound: one of them is not there.
    """
    rows = await source.fetch(_GENERATIONS, user, list(ids))
    if len(rows) < len(ids):
        raise NotFound("Generation not found")
    return [_generation(row, documents) for row in rows]


def _generation(row: Any, documents: Documents) -> Generation:
    epoch, version, row_id, state, source, sources, progress, position, cost, refunded, error_code = row
    images = tuple(documents.row("images", image).document for image in sources)
    rest = {"progress": 1.0 if state == "completed" else progress, "queue_position": position}
    document = b'%s,"images":[%s],%s' % (
        documents.row("jobs", source).document[:-1], b",".join(images), msgspec.json.encode(rest)[1:],
    )  # fmt: skip
    return Generation(Bookmark(epoch, version), row_id, state, document, images, cost, refunded, error_code)


async def states(primary: Primary, ids: Iterable[uuid.UUID], *, count_places: bool) -> dict[uuid.UUID, State]:
    """How far these jobs are, whosever they are; one that is gone has no answer."""
    return {row[0]: State(*row[1:]) for row in await primary.fetch(_STATES, list(ids), count_places)}


async def batch_of(source: Connection | Primary, user: str, batch_id: uuid.UUID) -> tuple[str, str]:
    """The kind of a batch, and when it was made.

    Raises:
        NotFound: the user has no such batch.
    """
    sql = """
    select kind, to_char(created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') from batches
    where id = $1 and owner_id = $2
    """
    rows = await source.fetch(sql, batch_id, user)
    if not rows:
        raise NotFound("Batch not found")
    return rows[0][0], rows[0][1]


async def jobs_of_batch(source: Connection | Primary, user: str, batch_id: uuid.UUID) -> list[uuid.UUID]:
    """Its jobs, in the order in which they were asked for."""
    sql = "select id from jobs where batch_id = $1 and owner_id = $2 order by created_at, id"
    return [row[0] for row in await source.fetch(sql, batch_id, user)]
