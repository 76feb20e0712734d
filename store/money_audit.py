"""The audit of money: what jobs, ledger, accounts, queue and usage must say of each other, looked at from outside.

The triggers of jobs.sql make all of this hold; the audit does not trust them. It reads, reports and repairs nothing:
what is wrong with money a person decides. Each check is one statement over some users; all checks of a call see one
snapshot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from store.credits import credits_text
from store.primary import Primary

__all__ = ["CHECKS", "Finding", "Totals", "audit_money", "users_with_money"]

#: At most so many findings per check and call: one broken rule can break every row.
_MOST: Final = 200

_FINAL: Final = "('completed', 'failed', 'canceled')"
#: Pictures that a completed job was paid for; with a price of 0, its images are all that is known.
_DELIVERED: Final = "(j.n - j.refunded_tenths / (j.price_tenths / j.n))"

#: What must hold → the rows for which it does not: (owner, which one, what is said and what should be). $1 users.
CHECKS: Final[dict[str, str]] = {
    "account": """
        select u.id, '', 'the user has no account'
        from users u left join accounts a on a.owner_id = u.id where u.id = any($1) and a.owner_id is null""",
    "balance": """
        select a.owner_id, '', format('the balance is %s, the lines add up to %s', a.balance_tenths, coalesce(l.sum, 0))
        from accounts a left join (
          select owner_id, sum(amount_tenths) from credit_ledger where owner_id = any($1) group by owner_id) l
        using (owner_id)
        where a.owner_id = any($1) and (a.balance_tenths <> coalesce(l.sum, 0) or a.balance_tenths < 0)""",
    "line": """
        select owner_id, id::text, format('the line says %s, the lines up to it add up to %s', balance_tenths, sum)
        from (select *, sum(amount_tenths) over (partition by owner_id order by at, id)
              from credit_ledger where owner_id = any($1)) l
        where balance_tenths <> sum or balance_tenths < 0""",
    "held": f"""
        select a.owner_id, '', format('%s are held, the unfinished jobs cost %s', a.held_tenths, coalesce(j.sum, 0))
        from accounts a left join (
          select owner_id, sum(price_tenths) from jobs where owner_id = any($1) and state not in {_FINAL}
          group by owner_id) j using (owner_id)
        where a.owner_id = any($1) and a.held_tenths <> coalesce(j.sum, 0)""",
    "hold": """
        select j.owner_id, j.id::text, format('it costs %s, %s holds took %s', j.price_tenths, l.count, l.sum)
        from jobs j cross join lateral (
          select count(*), coalesce(-sum(amount_tenths), 0) as sum from credit_ledger
          where job_id = j.id and kind = 'hold' and owner_id = j.owner_id) l
        where j.owner_id = any($1) and (l.sum <> j.price_tenths or l.count <> (j.price_tenths > 0)::int)""",
    "refund": """
        select j.owner_id, j.id::text,
          format('%s are to be given back, %s refunds gave %s', j.refunded_tenths, l.count, l.sum)
        from jobs j cross join lateral (
          select count(*), coalesce(sum(amount_tenths), 0) as sum from credit_ledger
          where job_id = j.id and kind = 'refund' and owner_id = j.owner_id) l
        where j.owner_id = any($1) and (l.sum <> j.refunded_tenths or l.count <> (j.refunded_tenths > 0)::int)""",
    "end": f"""
        select j.owner_id, j.id::text,
          format('it is %s with %s of %s images, cost %s and gives back %s',
            j.state, cardinality(j.image_ids), j.n, j.price_tenths, j.refunded_tenths)
        from jobs j where j.owner_id = any($1) and not case
          when j.state in ('failed', 'canceled')
            then j.refunded_tenths = j.price_tenths and cardinality(j.image_ids) = 0
          when j.state <> 'completed' then j.refunded_tenths = 0
          when j.price_tenths = 0 then j.refunded_tenths = 0
          else j.refunded_tenths % (j.price_tenths / j.n) = 0
            and {_DELIVERED} between greatest(cardinality(j.image_ids), 1) and j.n end""",
    "stranger": """
        select l.owner_id, l.id::text, format('the line is about a job of %s', j.owner_id)
        from credit_ledger l join jobs j on j.id = l.job_id
        where (l.owner_id = any($1) or j.owner_id = any($1)) and l.owner_id <> j.owner_id""",
    "queue": f"""
        select j.owner_id, j.id::text, case
          when q.job_id is null then format('it is %s and nobody will work on it', j.state)
          when j.state in {_FINAL} then format('it is %s and still in the queue', j.state)
          else format('it is in the queue for %s', q.owner_id) end
        from jobs j left join queue q on q.job_id = j.id
        where j.owner_id = any($1) and (
          (q.job_id is null) <> (j.state in {_FINAL}) or q.owner_id <> j.owner_id)""",
    "attempt": f"""
        select j.owner_id, j.id::text,
          format('it is %s, and attempt %s of call %s is %s', j.state, t.number, t.call, t.state)
        from attempts t join jobs j on j.id = t.job_id
        where j.owner_id = any($1) and j.state in {_FINAL} and t.state in ('started', 'submitted')""",
    "image": """
        select j.owner_id, j.id::text, format('there is no image %s', i)
        from jobs j cross join unnest(j.image_ids) i
        where j.owner_id = any($1) and j.state = 'completed' and not exists (select from images where id = i)""",
    "usage": f"""
        select coalesce(j.owner_id, u.owner_id), '', format('the jobs come to %s, usage counts %s', j.told, u.told)
        from (
          select owner_id, jsonb_build_object('completed', count(*) filter (where state = 'completed'),
            'failed', count(*) filter (where state = 'failed'), 'canceled', count(*) filter (where state = 'canceled'),
            'count', count(*), 'tenths', sum(price_tenths - refunded_tenths)) as told
          from jobs where owner_id = any($1) and state in {_FINAL} group by owner_id) j
        full join (
          select owner_id, jsonb_build_object('completed', sum(generations_success), 'failed', sum(generations_failed),
            'canceled', sum(generations_canceled), 'count', sum(generations_count),
            'tenths', sum(credits_used_tenths)) as told
          from usage_daily where owner_id = any($1) and generations_count <> 0 group by owner_id) u using (owner_id)
        where j.told is distinct from u.told""",
    "pictures": f"""
        select j.owner_id, '', format('usage counts %s pictures, the jobs delivered %s to %s', u.count, j.least, j.most)
        from (
          select owner_id,
            sum(case when price_tenths > 0 then {_DELIVERED} else greatest(cardinality(image_ids), 1) end) as least,
            sum(case when price_tenths > 0 then {_DELIVERED} else n end) as most
          from jobs j where owner_id = any($1) and state = 'completed' group by owner_id) j
        left join (
          select owner_id, sum(images_count) as count from usage_daily where owner_id = any($1) group by owner_id) u
        using (owner_id) where coalesce(u.count, 0) not between j.least and j.most""",
}  # fmt: skip

_TOTALS: Final = """
select (select count(*) from users where id = any($1)),
  (select count(*) from credit_ledger where owner_id = any($1)),
  (select count(*) from jobs where owner_id = any($1)),
  coalesce(sum(balance_tenths), 0)::bigint, coalesce(sum(held_tenths), 0)::bigint
from accounts where owner_id = any($1)
"""
_USERS: Final = """
select id from users where id not like '~%'
order by case when $1::int is null then 0 else random() end, id limit $1
"""


class Finding(msgspec.Struct):
    """Something that does not hold: `check` is a key of `CHECKS`, `row` the job or line, "" when it is the user."""

    user: str
    check: str
    row: str
    said: str


class Totals(NamedTuple):
    """What was looked at."""

    users: int
    lines: int
    jobs: int
    balance_tenths: int
    held_tenths: int

    def __str__(self) -> str:
        balance, held = credits_text(self.balance_tenths), credits_text(self.held_tenths)
        return f"users: {self.users}, lines: {self.lines}, jobs: {self.jobs}, credits: {balance}, held: {held}"


async def users_with_money(primary: Primary, sample: int | None = None) -> list[str]:
    """The ids of `sample` users, taken at random; None: of all."""
    return [row["id"] for row in await primary.fetch(_USERS, sample)]


async def audit_money(primary: Primary, users: Sequence[str]) -> tuple[list[Finding], Totals]:
    """Whatever does not hold for `users`, all looked at in one snapshot; up to 200 findings per check.

    Raises:
        PrimaryUnavailable: nothing was found out.
    """
    found = []
    async with primary.connection() as connection, connection.transaction(isolation="repeatable_read", readonly=True):
        for check, sql in CHECKS.items():
            rows = await connection.fetch(
                f"select * from ({sql}) as found (owner, row, said) order by 1, 2, 3 limit {_MOST}", users
            )
            found += [Finding(row["owner"], check, row["row"], row["said"]) for row in rows]
        totals = Totals(*await connection.fetchrow(_TOTALS, users))
    return found, totals
