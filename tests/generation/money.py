"""What must hold between jobs, credits, images and room at every moment, checked in one go."""

from __future__ import annotations

from typing import Any

__all__ = ["assert_money"]

_WRONG = {
    "the balance is the sum of the ledger": """
        select a.owner_id, a.balance_tenths, coalesce(sum(l.amount_tenths), 0) from accounts a
        left join credit_ledger l using (owner_id) group by 1, 2
        having a.balance_tenths <> coalesce(sum(l.amount_tenths), 0) or a.balance_tenths < 0""",
    "what is held is the price of the unfinished jobs": """
        select a.owner_id, a.held_tenths from accounts a where a.held_tenths <> (
          select coalesce(sum(price_tenths), 0) from jobs j where j.owner_id = a.owner_id
          and state not in ('completed', 'failed', 'canceled'))""",
    "each job has one hold of its price": """
        select j.id, j.price_tenths from jobs j where j.price_tenths <> (
          select coalesce(-sum(amount_tenths), 0) from credit_ledger l where l.job_id = j.id and kind = 'hold')""",
    "each job has the refund of its end": """
        select j.id, j.state, j.refunded_tenths from jobs j where j.refunded_tenths <> (
          select coalesce(sum(amount_tenths), 0) from credit_ledger l where l.job_id = j.id and kind = 'refund')
        or j.refunded_tenths <> case when state in ('failed', 'canceled') then price_tenths
          when state = 'completed' then price_tenths / n * (n - cardinality(image_ids)) else 0 end""",
    "unfinished jobs are in the queue, and no others": """
        select j.id, j.state from jobs j where (j.state in ('completed', 'failed', 'canceled')) =
          exists (select from queue q where q.job_id = j.id)""",
    "a job's images are there, and only completed jobs have some": """
        select j.id, j.state, j.image_ids from jobs j where (j.state = 'completed') <> (cardinality(image_ids) > 0)
        or (select count(*) from images i where i.job_id = j.id) <> cardinality(image_ids)
        or exists (select from unnest(image_ids) i where i not in (select id from images))""",
    "used room is that of the images": """
        select a.owner_id, a.storage_used_bytes from accounts a where a.storage_used_bytes <> (
          select coalesce(sum(size_bytes), 0) from images i where i.owner_id = a.owner_id)""",
    "reserved room is that of the reservations": """
        select a.owner_id, a.storage_reserved_bytes from accounts a where a.storage_reserved_bytes <> (
          select coalesce(sum(size_bytes), 0) from storage_reservations r where r.owner_id = a.owner_id)""",
    "no attempt of a finished job is open": """
        select a.id, a.state from attempts a join jobs j on j.id = a.job_id
        where j.state in ('completed', 'failed', 'canceled') and a.ended_at is null""",
}


async def assert_money(connection: Any) -> None:
    """Nothing of it is wrong in the database that `fetch` asks."""
    for rule, sql in _WRONG.items():
        wrong = [tuple(row) for row in await connection.fetch(sql)]
        assert not wrong, f"{rule}: {wrong[:3]}"
