"""Money in the primary itself: whoever writes plain SQL can neither make credits, lose them, nor count them twice."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from store.primary import Primary
from tests.money import add_job, add_user, balance_of, end_job, give, lines_of
from tests.world import add_images


@pytest.fixture
async def ana(primary: Primary) -> AsyncIterator[Any]:
    """A connection; ana has 10 credits."""
    async with primary.connection() as connection:
        await add_user(connection, "ana", 100)
        yield connection


async def refused(connection: Any, sql: str, *parameters: Any) -> str:
    """The message of the rule that refuses `sql`."""
    with pytest.raises(asyncpg.PostgresError) as error:
        await connection.execute(sql, *parameters)
    assert error.value.sqlstate == "PE003", error.value
    return str(error.value)


async def test_a_grant_that_is_inserted_again_under_its_id_counts_once(ana: Any) -> None:
    """`on conflict do nothing` is how others make a write repeatable: the balance moves with the line or not at all."""
    sql = (
        "insert into credit_ledger (id, owner_id, kind, amount_tenths) values ($1, 'ana', 'grant', 50) "
        "on conflict do nothing"
    )
    line = uuid.uuid4()

    for _ in range(3):
        await ana.execute(sql, line)

    assert await balance_of(ana, "ana") == (150, 0)
    assert await lines_of(ana, "ana") == [("grant", 100, 100), ("grant", 50, 150)]


async def test_many_lines_of_one_statement_run_on_in_their_order(ana: Any) -> None:
    """Each line's balance is that of the line before and its amount; together they cannot go below nothing."""
    several = (
        "insert into credit_ledger (owner_id, kind, amount_tenths) "
        "select 'ana', 'grant', n from unnest($1::bigint[]) with ordinality as given(n, at) order by at"
    )

    await ana.execute(several, [5, -30, 7])
    with pytest.raises(asyncpg.PostgresError) as error:
        await ana.execute(several, [10, -100, 200])

    assert error.value.sqlstate == "PE001"
    assert [balance for *_, balance in await lines_of(ana, "ana")] == [100, 105, 75, 82]
    assert await balance_of(ana, "ana") == (82, 0)


async def test_only_jobs_write_holds_and_refunds(ana: Any) -> None:
    """A refund by hand would be paid twice, or keep its job from ending."""
    job = await add_job(ana, "ana", 30)
    sql = "insert into credit_ledger (owner_id, kind, amount_tenths, job_id) values ('ana', $1, $2, $3)"

    for kind, amount, of in (("refund", 30, job), ("refund", 30, None), ("hold", -30, None)):
        assert "follows from a job" in await refused(ana, sql, kind, amount, of)

    await end_job(ana, "ana", job, "failed")
    assert await balance_of(ana, "ana") == (100, 0)


async def test_lines_stand_in_the_order_of_their_balances_whoever_waited(ana: Any, primary: Primary) -> None:
    """A line's time is taken under the lock, not when its statement began to wait for it; nobody dates one back."""
    async with primary.connection() as first, primary.connection() as second:
        async with first.transaction():
            await first.execute("select from accounts where owner_id = 'ana' for update")
            waiting = asyncio.create_task(give(second, "ana", 1))
            sql = (
                "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
            )
            while await ana.fetchval(sql) == 0:
                await asyncio.sleep(0.01)
            await give(first, "ana", 2)
        await waiting
    old = datetime.now(UTC) - timedelta(days=3)
    await ana.execute(
        "insert into credit_ledger (owner_id, kind, amount_tenths, at) values ('ana', 'grant', 3, $1)", old
    )

    assert await lines_of(ana, "ana") == [("grant", 100, 100), ("grant", 2, 102), ("grant", 1, 103), ("grant", 3, 106)]


async def test_an_account_is_neither_made_with_credits_nor_thrown_away(ana: Any) -> None:
    """The balance is the sum of the lines, from the account's beginning to its user's end."""
    assert "ledger" in await refused(ana, "delete from accounts where owner_id = 'ana'")
    assert "ledger" in await refused(ana, "update accounts set balance_tenths = 500 where owner_id = 'ana'")
    assert "ledger" in await refused(ana, "update accounts set held_tenths = 5 where owner_id = 'ana'")
    assert "ledger" in await refused(ana, "update accounts set owner_id = 'bob' where owner_id = 'ana'")
    assert "ledger" in await refused(ana, "insert into accounts (owner_id, balance_tenths) values ('dan', 5)")
    assert "ledger" in await refused(ana, "insert into accounts (owner_id, held_tenths) values ('dan', 5)")

    await ana.execute("delete from users where id = 'ana'")
    assert await ana.fetchval("select count(*) from credit_ledger") == 0


async def test_lines_are_for_good(ana: Any) -> None:
    """Neither changed, nor deleted, nor emptied out with their table."""
    for sql in (
        "update credit_ledger set amount_tenths = 5",
        "update credit_ledger set reason = 'another'",
        "delete from credit_ledger",
        "truncate credit_ledger",
    ):
        assert "never changed" in await refused(ana, sql)


@pytest.mark.parametrize("state", ["pending", "processing", "uploading"])
async def test_nothing_is_refunded_before_the_end(ana: Any, state: str) -> None:
    """A refund that no line pays would open the budget again."""
    assert "its end" in await refused(
        ana,
        "insert into jobs (owner_id, prompt, provider, model, state, price_tenths, refunded_tenths) "
        "values ('ana', '', 'p', 'm', $1, 10, 10)",
        state,
    )
    job = await add_job(ana, "ana", 10, state="pending")
    for other in ("pending", "processing", "uploading"):
        assert "its end" in await refused(
            ana, "update jobs set state = $2, refunded_tenths = 4 where id = $1", job, other
        )
    assert await balance_of(ana, "ana") == (90, 10)


async def test_a_picture_is_delivered_once(ana: Any) -> None:
    """The same id twice would be charged twice."""
    job = await add_job(ana, "ana", 20, n=2)
    (image,) = await add_images(ana, "ana", 1, job_id=job)

    assert "twice" in await refused(
        ana, "update jobs set state = 'completed', image_ids = array[$2, $2]::uuid[] where id = $1", job, image
    )

    assert "none" in await refused(
        ana, "update jobs set state = 'completed', image_ids = array[$2, null]::uuid[] where id = $1", job, image
    )
    await ana.execute("update jobs set state = 'completed', image_ids = array[$2]::uuid[] where id = $1", job, image)
    assert await balance_of(ana, "ana") == (90, 0)
