"""What operators look at first: how much there is, how long the queue is, what a day costs, which provider fails.

No statement here reads a table that grows with every job or image without a bound: counts of those are the planner's
estimates when the tables are large, ended jobs are counted by usage_daily, and providers by the newest jobs.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final, NamedTuple

from store.credits import as_json
from store.primary import Primary
from store.text import exact

__all__ = ["QueueDepth", "overview", "queue_depths"]

#: Rows from which a table is not counted any more.
_LARGE: Final = 200_000
_DAY_S: Final = 86_400.0
_HOUR_S: Final = 3_600.0
#: Most jobs that are looked at for a report on providers.
_NEWEST_JOBS: Final = 20_000

_COUNTS: Final = f"""
select name, case when estimate > {_LARGE} then estimate else (case name
  when 'users' then (select count(*) from users where id not like '~%')
  else (select count(*) from images) end) end as rows, estimate > {_LARGE} as is_estimate
from (select relname::text as name, reltuples::bigint as estimate from pg_class
      where oid in ('users'::regclass, 'images'::regclass)) t
"""
#: One row a user.
_ACCOUNTS: Final = """
select coalesce(sum(storage_used_bytes), 0)::bigint, coalesce(sum(balance_tenths), 0)::bigint,
       coalesce(sum(held_tenths), 0)::bigint from accounts
"""
#: One row a user and day.
_USAGE: Final = """
select coalesce(sum(generations_success), 0)::bigint as completed,
       coalesce(sum(generations_failed), 0)::bigint as failed,
       coalesce(sum(generations_canceled), 0)::bigint as canceled,
       coalesce(sum(credits_used_tenths), 0)::bigint as used_tenths,
       coalesce(sum(cost_usd), 0) as cost_usd
from usage_daily
"""
_UNFINISHED: Final = "select j.state, count(*) from queue q join jobs j on j.id = q.job_id group by j.state"
_LAST_DAY: Final = """
select count(*), coalesce(sum(price_tenths - refunded_tenths), 0)::bigint, coalesce(sum(cost_usd), 0)
from jobs where created_at > clock_timestamp() - make_interval(secs => $1)
"""
# Attempts have no index by time. Those of the last hour belong to the newest jobs, or to jobs that are not ended yet.
_PROVIDERS: Final = """
with looked_at as (
  (select id from jobs where created_at > clock_timestamp() - 2 * make_interval(secs => $1)
   order by created_at desc limit $2)
  union (select job_id from queue where worker is not null limit $2))
select a.provider, count(*), count(*) filter (where a.state in ('failed', 'unknown')),
       percentile_cont(array[0.5, 0.95]) within group (order by extract(epoch from a.ended_at - a.started_at)::float8),
       coalesce(sum(a.cost_usd), 0)
from looked_at l join attempts a on a.job_id = l.id
where a.started_at > clock_timestamp() - make_interval(secs => $1)
group by a.provider order by a.provider
"""
_QUEUE: Final = """
select provider, count(*) filter (where worker is null), count(*) filter (where worker is not null),
       extract(epoch from clock_timestamp() - min(created_at) filter (where worker is null))::float8
from queue group by provider order by provider
"""


class QueueDepth(NamedTuple):
    """Unfinished jobs of one provider: waiting for a worker, at one, and since when the oldest waits, in seconds."""

    provider: str
    waiting: int
    running: int
    oldest_waiting_s: float


async def queue_depths(primary: Primary) -> list[QueueDepth]:
    """One per provider that has unfinished jobs.

    Raises:
        PrimaryUnavailable: it does not answer.
    """
    return _depths(await primary.fetch(_QUEUE))


def _depths(rows: Sequence[Any]) -> list[QueueDepth]:
    return [QueueDepth(provider, waiting, running, oldest_s or 0.0) for provider, waiting, running, oldest_s in rows]


async def overview(primary: Primary) -> dict[str, Any]:
    """Totals as JSON has them, from one snapshot.

    `users` and `images` are estimates from 200,000 on, which `estimates` names. Credits granted are not summed over the
    ledger: its lines add up to the balance, so what was granted is what is left, held and used. Providers are reported
    over the attempts of the last hour, by the newest 20,000 jobs.

    Raises:
        PrimaryUnavailable: it does not answer in time.
    """
    async with primary.connection() as connection, connection.transaction(isolation="repeatable_read", readonly=True):
        counts = await connection.fetch(_COUNTS)
        stored_bytes, balance, held = await connection.fetchrow(_ACCOUNTS)
        usage = await connection.fetchrow(_USAGE)
        unfinished = await connection.fetch(_UNFINISHED)
        jobs, used, cost_usd = await connection.fetchrow(_LAST_DAY, _DAY_S)
        providers = await connection.fetch(_PROVIDERS, _HOUR_S, _NEWEST_JOBS)
        queue = await connection.fetch(_QUEUE)
    ended = {name: usage[name] for name in ("completed", "failed", "canceled")}
    return {
        **{row["name"]: row["rows"] for row in counts},
        "estimates": sorted(row["name"] for row in counts if row["is_estimate"]),
        "stored_bytes": stored_bytes,
        "jobs": {"pending": 0, "processing": 0, "uploading": 0, **dict(map(tuple, unfinished)), **ended},
        "queue": [depth._asdict() for depth in _depths(queue)],
        "credits_granted": as_json(balance + held + usage["used_tenths"]),
        "credits_balance": as_json(balance),
        "credits_held": as_json(held),
        "credits_used": as_json(usage["used_tenths"]),
        "cost_usd": exact(usage["cost_usd"]),
        "last_day": {"jobs": jobs, "credits_used": as_json(used), "cost_usd": exact(cost_usd)},
        "providers": [_provider(*row) for row in providers],
    }


def _provider(
    name: str, attempts: int, failures: int, took_s: Sequence[float | None] | None, cost_usd: Decimal
) -> dict[str, Any]:
    """`took_s` are the median and the 95th percentile; null while none of its attempts has ended."""
    half_s, most_s = took_s or (None, None)
    return {
        "provider": name,
        "attempts": attempts,
        "failures": failures,
        "p50_ms": None if half_s is None else round(half_s * 1000),
        "p95_ms": None if most_s is None else round(most_s * 1000),
        "cost_usd": exact(cost_usd),
    }
