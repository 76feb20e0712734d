"""Canceling: at once what nobody works on, by request what somebody does; money follows."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from store.errors import AlreadyEnded, NotFound
from store.generation.canceling import cancel
from store.primary import Connection, Primary

PRICE = 60


async def job(primary: Primary) -> uuid.UUID:
    async def work(connection: Connection) -> uuid.UUID:
        await connection.execute("insert into users (id) values ('ana') on conflict do nothing")
        grant = "insert into credit_ledger (owner_id, kind, amount_tenths) values ('ana', 'grant', $1)"
        await connection.execute(grant, PRICE)
        made = (
            "insert into jobs (owner_id, prompt, provider, model, n, price_tenths) values ('ana', 'x', 'p', 'm', 2, $1)"
        )
        row: uuid.UUID = await connection.fetchval(f"{made} returning id", PRICE)
        return row

    return (await primary.write("ana", work))[0]


async def canceled(primary: Primary, row_id: uuid.UUID, user: str = "ana") -> str:
    return (await primary.write(user, lambda connection: cancel(connection, user, row_id)))[0]


async def attempt(primary: Primary, row_id: uuid.UUID, state: str) -> None:
    ended = "null" if state in ("started", "submitted") else "now()"
    await primary.fetch(
        "insert into attempts (job_id, owner_id, call, number, provider, model, fence, state, task_id, ended_at) "
        f"values ($1, 'ana', 0, 1, 'p', 'm', 1, $2, 't', {ended}) returning 1", row_id, state,
    )  # fmt: skip


async def test_waiting_job_ends_and_everything_comes_back(primary: Primary) -> None:
    row_id = await job(primary)

    assert await canceled(primary, row_id) == "canceled"

    (row,) = await primary.fetch("select state, refunded_tenths, error_code from jobs")
    (account,) = await primary.fetch("select balance_tenths, held_tenths from accounts")
    assert (tuple(row), tuple(account)) == (("canceled", PRICE, "canceled"), (PRICE, 0))
    assert await primary.fetch("select 1 from queue") == []
    with pytest.raises(AlreadyEnded, match="is canceled already"):
        await canceled(primary, row_id)


@pytest.mark.parametrize("state", ["started", "submitted", "done"])
async def test_job_whose_call_is_out_is_for_the_runner_to_end(primary: Primary, state: str) -> None:
    """Also while no worker has it: pictures may exist."""
    row_id = await job(primary)
    await attempt(primary, row_id, state)

    assert await canceled(primary, row_id) == "requested"
    (row,) = await primary.fetch("select j.state, q.cancel_requested from jobs j join queue q on q.job_id = j.id")
    assert tuple(row) == ("pending", True)


async def test_job_between_two_tries_ends_at_once(primary: Primary) -> None:
    row_id = await job(primary)
    await attempt(primary, row_id, "failed")

    assert await canceled(primary, row_id) == "canceled"


async def test_a_claim_and_a_cancel_at_once_agree(primary: Primary) -> None:
    """Either nobody ever works on it, or whoever does is asked to end: never both, never neither."""

    async def claim(connection: Connection) -> bool:
        row = await connection.fetchrow(
            "update queue set worker = 'w', lease_until = now() + interval '1 minute' where job_id = ("
            "select job_id from queue where worker is null for update skip locked limit 1) returning job_id"
        )
        if row is not None:
            await connection.execute("update jobs set state = 'processing' where id = $1", row[0])
        return row is not None

    for _ in range(25):
        row_id = await job(primary)
        (was_claimed, _), outcome = await asyncio.gather(primary.write("", claim), canceled(primary, row_id))
        if was_claimed:
            assert outcome == "requested"
            assert (await primary.fetch("select cancel_requested from queue"))[0][0] is True
            await primary.fetch("update jobs set state = 'canceled' where id = $1 returning 1", row_id)
        else:
            assert outcome == "canceled"
        (account,) = await primary.fetch("select balance_tenths, held_tenths from accounts")
        assert account[1] == 0


async def test_nobody_elses_job_is_there(primary: Primary) -> None:
    row_id = await job(primary)
    for user, wanted in (("bob", row_id), ("ana", uuid.uuid4())):
        with pytest.raises(NotFound, match="Generation not found"):
            await canceled(primary, wanted, user)
