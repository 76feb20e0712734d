"""What must hold between jobs, credits, queue, attempts, images and room after everything that happens, in one look.

Independent of the product's own audit: it is what that one is measured by as well.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from typing import Any, Final

from store.objects.keys import keys_of
from store.objects.local import LocalObjects
from store.primary import Primary

__all__ = ["LAWS", "Laws"]

_FINAL: Final = "('completed', 'failed', 'canceled')"

#: What must hold → rows for which it does not. $1 reservations of somebody else, $2 provider → most jobs at once.
LAWS: Final = {
    "the balance is the sum of the lines, and not below nothing": """
        select a.owner_id, a.balance_tenths, sum(l.amount_tenths) from accounts a
        left join credit_ledger l using (owner_id) group by 1, 2
        having a.balance_tenths <> coalesce(sum(l.amount_tenths), 0) or a.balance_tenths < 0""",
    "each line says the balance behind it": """
        select * from (select id, owner_id, balance_tenths,
          sum(amount_tenths) over (partition by owner_id order by at, id) as sum from credit_ledger) l
        where sum <> balance_tenths""",
    "what is held is the price of the unfinished jobs": f"""
        select a.owner_id, a.held_tenths from accounts a where a.held_tenths <> (
          select coalesce(sum(price_tenths), 0) from jobs j
          where j.owner_id = a.owner_id and state not in {_FINAL})""",
    "a job with a price has one hold, of its price": """
        select j.id, j.price_tenths, count(l.id), sum(l.amount_tenths) from jobs j
        left join credit_ledger l on l.job_id = j.id and l.kind = 'hold' group by j.id
        having count(l.id) <> (price_tenths > 0)::int or coalesce(sum(l.amount_tenths), 0) <> -price_tenths""",
    "a job has at most one refund, which follows from its end": """
        select j.id, j.state, j.n, j.price_tenths, cardinality(j.image_ids), count(l.id), sum(l.amount_tenths)
        from jobs j left join credit_ledger l on l.job_id = j.id and l.kind = 'refund' group by j.id
        having count(l.id) > 1 or coalesce(sum(l.amount_tenths), 0) <> case
          when state in ('failed', 'canceled') then price_tenths
          when state = 'completed' then price_tenths / n * (n - cardinality(image_ids)) else 0 end""",
    "the lines of a job are its owner's": """
        select l.id, l.owner_id, j.owner_id from credit_ledger l join jobs j on j.id = l.job_id
        where l.owner_id <> j.owner_id""",
    "unfinished jobs are in the queue, and no others": f"""
        select j.id, j.state from jobs j
        where (j.state in {_FINAL}) = exists (select from queue q where q.job_id = j.id)""",
    "a job has images just when it is completed, and names them": """
        select j.id, j.state, j.image_ids from jobs j where (j.state = 'completed') <> (cardinality(image_ids) > 0)
          or (select count(*) from images i where i.job_id = j.id and i.owner_id = j.owner_id) <> cardinality(image_ids)
          or exists (select from unnest(image_ids) i where i not in (select id from images))""",
    "no attempt of a finished job is open": f"""
        select a.id, a.state from attempts a join jobs j on j.id = a.job_id
        where j.state in {_FINAL} and a.state in ('started', 'submitted')""",
    "a call has one attempt that is open or done": """
        select job_id, call, count(*) from attempts where state in ('started', 'submitted', 'done')
        group by 1, 2 having count(*) > 1""",
    "a picture came from an attempt that is done, and was stored under that key": """
        select i.id, i.object_key from images i join jobs j on j.id = i.job_id
        where not exists (
          select from attempts a where a.job_id = j.id and a.state = 'done' and i.object_key = any(a.object_keys))""",
    "a task whose id is known is never given up because a worker ended": """
        select id, job_id, task_id, error_message from attempts
        where task_id is not null and state = 'unknown' and error_code = 'unknown_outcome'""",
    "no picture that somebody has is about to be deleted": """
        select i.object_key from images i join deletions d on d.key = i.object_key or d.key = i.thumb_key""",
    "used room is that of the images": """
        select a.owner_id, a.storage_used_bytes from accounts a where a.storage_used_bytes <> (
          select coalesce(sum(size_bytes), 0) from images i where i.owner_id = a.owner_id)""",
    "reserved room is that of the reservations": """
        select a.owner_id, a.storage_reserved_bytes from accounts a where a.storage_reserved_bytes <> (
          select coalesce(sum(size_bytes), 0) from storage_reservations r where r.owner_id = a.owner_id)""",
    "room is kept only for pictures that an attempt of an unfinished job has named": f"""
        select r.id, r.owner_id, r.size_bytes from storage_reservations r
        where r.id <> all($1::uuid[]) and r.id not in (
          select (p ->> 'reservation_id')::uuid
          from attempts a join jobs j on j.id = a.job_id, jsonb_array_elements(a.pictures) p
          where j.state not in {_FINAL} and a.state in ('started', 'submitted', 'done'))""",
    "the day's usage counts each end once": f"""
        select * from (
          select owner_id, count(*) as ends, sum(price_tenths - refunded_tenths) as used,
            sum(cardinality(image_ids)) as pictures from jobs where state in {_FINAL} group by 1) j
        full join (
          select owner_id, sum(generations_count) as ends, sum(credits_used_tenths) as used,
            sum(images_count) as pictures from usage_daily where generations_count > 0 group by 1) u using (owner_id)
        where (j.ends, j.used, j.pictures) is distinct from (u.ends, u.used, u.pictures)""",
    "a provider has at most so many jobs at once": """
        select q.provider, count(*) from queue q where q.worker is not null group by 1
        having count(*) > (($2::text)::jsonb ->> q.provider)::int""",
}
_ALL: Final = " union all ".join(
    f"select $law${law}$law$ as law, array_agg(broken::text) as rows from ({sql}) broken having count(*) > 0"
    for law, sql in LAWS.items()
)
_JOBS: Final = "select id, state, refunded_tenths, image_ids from jobs"


class Laws:
    """`check` after everything. Remembers how jobs ended."""

    def __init__(self, primary: Primary, objects: LocalObjects) -> None:
        self._primary, self._objects = primary, objects
        #: job → how it ended.
        self.ended: dict[uuid.UUID, tuple[Any, ...]] = {}

    async def check(self, *, kept: Iterable[uuid.UUID] = (), most: Mapping[str, int] | None = None) -> None:
        """`kept`: reservations that are no job's; `most`: jobs of each provider at once."""
        limits = json.dumps(dict(most or {}))
        broken = await self._primary.fetch(_ALL, list(kept), limits)
        assert not broken, "; ".join(f"{row['law']}: {row['rows'][:3]}" for row in broken)
        there: set[uuid.UUID] = set()
        for row in await self._primary.fetch(_JOBS):
            there.add(row["id"])
            if row["state"] in ("completed", "failed", "canceled"):
                end = (row["state"], row["refunded_tenths"], tuple(row["image_ids"]))
                assert self.ended.setdefault(row["id"], end) == end, f"job {row['id']} was {self.ended[row['id']]}"
            else:
                assert row["id"] not in self.ended, f"job {row['id']} was {self.ended[row['id']]}, is {row['state']}"
        for gone in self.ended.keys() - there:
            del self.ended[gone]
        for row in await self._primary.fetch("select object_key from images"):
            for key in keys_of(row["object_key"]):
                assert self._objects.path(key).exists(), f"{key} has a row and no object"
