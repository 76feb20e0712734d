"""The audit of money: silent while all is right, and each thing that can be wrong is found by its name."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from store.money_audit import CHECKS, audit_money, users_with_money
from store.primary import Primary
from tests.money import add_job, add_user, end_job, give
from tests.world import add_images


@pytest.fixture
async def hand(primary: Primary, database: str) -> AsyncIterator[asyncpg.Connection]:
    """A superuser whom no trigger sees. ana has had jobs of every end, and bob has the same."""
    async with primary.connection() as connection:
        for user in ("ana", "bob"):
            await history(connection, user)
    assert (await audit_money(primary, ["ana", "bob"]))[0] == []
    made = await asyncpg.connect(database)
    await made.execute("set session_replication_role = replica")
    yield made
    await made.close()


async def history(connection: Any, user: str) -> None:
    """A job of every state: paid and free, delivered as a whole and in part, some of it deleted."""
    await add_user(connection, user, 1000)
    await give(connection, user, -100)
    for state, delivered in (("completed", 4), ("completed", 1), ("failed", 0), ("canceled", 0)):
        for price in (0, 40):
            job = await add_job(connection, user, price, n=4)
            await end_job(connection, user, job, state, delivered)
    whole = await add_job(connection, user, 20, n=2)
    images = await end_job(connection, user, whole, "completed", 2)
    await connection.execute("delete from images where id = any($1)", images)
    half = await add_job(connection, user, 20, n=2)
    images = await end_job(connection, user, half, "completed", 2)
    await connection.execute("delete from images where id = $1", images[0])
    for state in ("pending", "processing", "uploading"):
        job = await add_job(connection, user, 30, n=3, state=state)
        await connection.execute(
            "insert into attempts (job_id, owner_id, call, number, provider, model, fence) "
            "values ($1, $2, 0, 1, 'p', 'm', 1)",
            job, user,
        )  # fmt: skip
    gone = await add_job(connection, user, 50)
    await connection.execute("delete from jobs where id = $1", gone)


#: What is done by hand to ana → what the audit must then say.
_JOB = "(select id from jobs where owner_id = 'ana' and state = '{state}' and price_tenths = {price} limit 1)"
_DONE = _JOB.format(state="completed", price=40)
_WHOLE = "(select id from jobs where owner_id = 'ana' and price_tenths = 40 and cardinality(image_ids) = 4)"
_HALF = "(select id from jobs where owner_id = 'ana' and price_tenths = 40 and cardinality(image_ids) = 1)"
_FREE = _JOB.format(state="completed", price=0)
_WAITS = _JOB.format(state="pending", price=30)
_FAILED = _JOB.format(state="failed", price=40)
_LINE = "insert into credit_ledger (owner_id, kind, amount_tenths, balance_tenths, job_id) "
BREAKS: list[tuple[str, set[str]]] = [
    ("delete from accounts where owner_id = 'ana'", {"account"}),
    ("update accounts set balance_tenths = balance_tenths + 1 where owner_id = 'ana'", {"balance"}),
    ("delete from credit_ledger where owner_id = 'ana' and kind = 'grant' and amount_tenths < 0", {"balance", "line"}),
    ("update credit_ledger set amount_tenths = 1 where owner_id = 'ana' and amount_tenths = 1000", {"balance", "line"}),
    (
        "update credit_ledger set at = '2001-01-01Z' where id = (select id from credit_ledger where owner_id = 'ana' "
        "and kind = 'hold' order by at limit 1)",
        {"line"},
    ),
    (f"{_LINE} select 'ana', 'grant', 5, balance_tenths + 5, null from accounts where owner_id = 'ana'", {"balance"}),
    (
        "alter table accounts drop constraint accounts_balance_check; alter table credit_ledger drop constraint "
        "credit_ledger_balance_check; update accounts set balance_tenths = balance_tenths - 9000 "
        f"where owner_id = 'ana'; {_LINE} select owner_id, 'grant', -9000, balance_tenths, null from accounts "
        "where owner_id = 'ana'",
        {"balance", "line"},
    ),
    ("update accounts set held_tenths = held_tenths - 10 where owner_id = 'ana'", {"held"}),
    (f"update jobs set price_tenths = 60 where id = {_WAITS}", {"held", "hold"}),
    (f"update credit_ledger set job_id = null where job_id = {_WAITS}", {"hold"}),
    (
        f"drop index credit_ledger_one; {_LINE} select owner_id, kind, amount_tenths, balance_tenths, job_id "
        f"from credit_ledger where job_id = {_WAITS}",
        {"balance", "line", "hold"},
    ),
    (
        f"update credit_ledger set kind = 'refund', amount_tenths = 40 where job_id = {_WHOLE}",
        {"balance", "line", "hold", "refund"},
    ),
    (f"{_LINE} values ('ana', 'refund', 40, 40, {_WHOLE})", {"balance", "line", "refund"}),
    (f"delete from credit_ledger where kind = 'refund' and job_id = {_FAILED}", {"balance", "line", "refund"}),
    (
        f"drop index credit_ledger_one; {_LINE} select owner_id, kind, amount_tenths, balance_tenths, job_id "
        f"from credit_ledger where kind = 'refund' and job_id = {_FAILED}",
        {"balance", "line", "refund"},
    ),
    (f"update jobs set refunded_tenths = 20 where id = {_HALF}", {"refund", "usage", "pictures"}),
    (f"update jobs set refunded_tenths = 35 where id = {_HALF}", {"refund", "end", "usage"}),
    (f"update jobs set refunded_tenths = 40 where id = {_HALF}", {"refund", "end", "usage"}),
    (f"update jobs set refunded_tenths = 10 where id = {_WAITS}", {"refund", "end"}),
    (f"update jobs set refunded_tenths = 0 where id = {_FAILED}", {"refund", "end", "usage"}),
    (f"update jobs set refunded_tenths = 10 where id = {_WHOLE}", {"refund", "end", "usage"}),
    (f"update jobs set state = 'completed' where id = {_FAILED}", {"end", "usage"}),
    (f"update jobs set state = 'canceled' where id = {_FAILED}", {"usage"}),
    (f"update jobs set state = 'failed' where id = {_WAITS}", {"held", "end", "queue", "attempt", "usage"}),
    (f"update jobs set state = 'pending' where id = {_FAILED}", {"held", "end", "queue", "usage"}),
    (f"delete from queue where job_id = {_WAITS}", {"queue"}),
    (f"update queue set owner_id = 'bob' where job_id = {_WAITS}", {"queue"}),
    (
        f"insert into queue (job_id, owner_id, provider, turn, rank) values ({_WHOLE}, 'ana', 'p', 1, 1)",
        {"queue"},
    ),
    (
        "insert into attempts (job_id, owner_id, call, number, provider, model, fence, state, task_id) "
        f"values ({_FAILED}, 'ana', 0, 1, 'p', 'm', 1, 'submitted', 't')",
        {"attempt"},
    ),
    (f"delete from images where id = (select image_ids[1] from jobs where id = {_FREE})", {"image"}),
    ("update usage_daily set generations_count = generations_count + 1 where owner_id = 'ana'", {"usage"}),
    ("update usage_daily set generations_failed = 0, generations_canceled = 4 where owner_id = 'ana'", {"usage"}),
    ("update usage_daily set credits_used_tenths = credits_used_tenths + 1 where owner_id = 'ana'", {"usage"}),
    ("update usage_daily set images_count = images_count - 4 where owner_id = 'ana'", {"pictures"}),
    ("delete from usage_daily where owner_id = 'ana'", {"usage", "pictures"}),
    (
        "insert into jobs (owner_id, prompt, provider, model, state, price_tenths, image_ids) "
        "select 'ana', '', 'p', 'm', 'completed', 9, array[id] from images where owner_id = 'ana' limit 1",
        {"hold", "usage", "pictures"},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("statement", "found"), BREAKS)
async def test_what_is_broken_by_hand_is_found(
    hand: asyncpg.Connection, primary: Primary, statement: str, found: set[str]
) -> None:
    """By every check that it concerns, and by no other one."""
    await hand.execute(statement)

    findings, totals = await audit_money(primary, ["ana", "bob"])

    assert {finding.check for finding in findings} == found, findings
    assert {finding.user for finding in findings} == {"ana"}
    assert totals.users == 2
    assert (await audit_money(primary, ["bob"]))[0] == []


async def test_a_line_about_anothers_job_is_found_for_both(hand: asyncpg.Connection, primary: Primary) -> None:
    """No job of one user moves the credits of another."""
    await hand.execute("update credit_ledger set job_id = null where owner_id = 'bob' and kind = 'refund'")
    await hand.execute(
        "update credit_ledger set job_id = (select id from jobs where owner_id = 'bob' and state = 'pending') "
        f"where job_id = {_FAILED} and kind = 'refund'"
    )

    for user in ("ana", "bob"):
        found = {finding.check for finding in (await audit_money(primary, [user]))[0]}
        assert "stranger" in found


def test_every_check_is_seen_to_find() -> None:
    """A check that nothing was broken for may find nothing at all."""
    assert set(CHECKS) == {"stranger", *(check for _, found in BREAKS for check in found)}


async def test_nothing_is_repaired_and_findings_name_their_row(hand: asyncpg.Connection, primary: Primary) -> None:
    """Whoever reads the report knows where to look; the second report is the first one."""
    job = await hand.fetchval(f"select {_WAITS}")
    await hand.execute("delete from queue where job_id = $1", job)

    (first,), _ = await audit_money(primary, ["ana"])
    (again,), totals = await audit_money(primary, ["ana"])

    assert first == again
    assert (first.user, first.check, first.row) == ("ana", "queue", str(job))
    assert first.said == "it is pending and nobody will work on it"
    assert str(totals) == "users: 1, lines: 16, jobs: 13, credits: 72, held: 9"


async def test_all_or_some_users_are_audited(hand: asyncpg.Connection, primary: Primary) -> None:
    """Those of hosts have no money."""
    await hand.execute("insert into users (id) values ('~host:1')")

    assert await users_with_money(primary) == ["ana", "bob"]
    assert await users_with_money(primary, 1) in (["ana"], ["bob"])
    assert await audit_money(primary, [str(uuid.uuid4())]) == ([], (0, 0, 0, 0, 0))


async def test_images_are_the_jobs_own_business(primary: Primary) -> None:
    """An image that was deleted is no finding: the job names what is left of it."""
    async with primary.connection() as connection:
        await add_user(connection, "ana", 100)
        job = await add_job(connection, "ana", 20, n=2)
        await end_job(connection, "ana", job, "completed", 2)
        await add_images(connection, "ana", 1)
        await connection.execute("delete from images")

    assert (await audit_money(primary, ["ana"]))[0] == []
