"""Money under many hands at once: what does not fit is refused, and one of two ends wins, whole."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path

import pytest

from store.credits import grant
from store.errors import AlreadyEnded, InsufficientCredits
from store.generation import jobs
from store.generation.canceling import cancel
from store.generation.creating import create
from store.generation.errors import Canceled, NoImage
from store.generation.jobs import Claimed, Lost, hold
from store.generation.models import Models
from store.generation.params import JobParams
from store.generation.planning import Draft, Plan
from store.generation.settling import fail, settle
from store.generation.writing import Writer
from store.objects.local import LocalObjects
from store.primary import Primary
from store.storage import Limits
from tests.generation.laws import Laws

UNIT = 15
_LIMITS = Limits(10**9, 10**9, 10**9)


@pytest.fixture
async def wide(database: str) -> AsyncIterator[Primary]:
    """A primary with a connection for each of many."""
    opened = await Primary.open(database, name="races", size=24, wait_s=30.0)
    yield opened
    await opened.close()


def plan(n: int = 1) -> Plan:
    params = JobParams(width=512, height=512, seed=7)
    builtin = Models().of("builtin")
    return Plan(
        (Draft(builtin, "TEXT_TO_IMAGE", "a panda", params, None, n, False, n * UNIT, Decimal(0), 0, 1),), None, ()
    )


async def made(primary: Primary, user: str) -> uuid.UUID:
    created, _ = await primary.write(user, lambda connection: create(connection, user, plan()))
    return created.jobs[0]


async def test_fifty_at_once_against_a_balance_for_ten(wide: Primary, tmp_path: Path) -> None:
    """Ten are made, forty are refused, and nothing is left or missing."""
    await wide.write("ana", lambda connection: grant(connection, "ana", 10 * UNIT + 5))

    async def one() -> str:
        try:
            await made(wide, "ana")
        except InsufficientCredits:
            return "refused"
        return "made"

    assert Counter(await asyncio.gather(*(one() for _ in range(50)))) == {"made": 10, "refused": 40}
    account = (await wide.fetch("select balance_tenths, held_tenths from accounts"))[0]
    assert tuple(account) == (5, 10 * UNIT)
    await Laws(wide, LocalObjects(tmp_path)).check()


async def test_fifty_at_once_against_a_budget_for_ten(wide: Primary, tmp_path: Path) -> None:
    """A budget is as exact as a balance."""
    await wide.write("ana", lambda connection: grant(connection, "ana", 1000 * UNIT))
    await wide.fetch("update accounts set day_budget_tenths = $1", 10 * UNIT)
    found = await asyncio.gather(*(made(wide, "ana") for _ in range(50)), return_exceptions=True)
    assert Counter(type(one).__name__ for one in found) == {"UUID": 10, "BudgetExceeded": 40}
    await Laws(wide, LocalObjects(tmp_path)).check()


@pytest.mark.parametrize("is_claimed", [True, False])
async def test_a_cancel_and_an_end_at_once(wide: Primary, tmp_path: Path, is_claimed: bool) -> None:
    """200 times: a job's cancel and its end meet, and it has one end, one hold and one refund. With `is_claimed` False
    its worker had lost it to the time: then the cancel ends it, or its end was first."""
    await wide.write("ana", lambda connection: grant(connection, "ana", 200 * UNIT))
    ids = [await made(wide, "ana") for _ in range(200)]
    taken, _ = await jobs.claim(wide, "one", most={"builtin": 1000}, room=1000, lease_s=60)
    assert {job.id for job in taken} == set(ids)
    if not is_claimed:
        await wide.fetch("update queue set worker = null, lease_until = null")
    write = Writer(wide, lambda user, bookmark: None)
    said: Counter[str] = Counter()

    async def user(job: Claimed) -> None:
        try:
            answer, _ = await wide.write("ana", lambda connection: cancel(connection, "ana", job.id))
            said[answer] += 1
        except AlreadyEnded:
            said["already ended"] += 1

    async def worker(job: Claimed) -> None:
        params = JobParams(width=512, height=512)
        try:
            state = await write(
                job,
                lambda connection: settle(connection, job, params, [], [NoImage("none")], _LIMITS, is_canceled=False),
            )
            said[f"worker: {state}"] += 1
        except Lost:
            said["worker: lost"] += 1

    for job in taken:
        both = [user(job), worker(job)]
        await asyncio.gather(*(both if job.id.int % 2 else reversed(both)))
    assert said["worker: failed"] + said["canceled"] == 200
    assert said["worker: lost"] == said["canceled"]
    assert said["canceled"] == 0 or not is_claimed
    assert tuple((await wide.fetch("select balance_tenths, held_tenths from accounts"))[0]) == (200 * UNIT, 0)
    kinds = await wide.fetch("select kind, count(*) from credit_ledger where job_id is not null group by 1 order by 1")
    assert [tuple(row) for row in kinds] == [("hold", 200), ("refund", 200)]
    await Laws(wide, LocalObjects(tmp_path)).check()


async def test_two_workers_and_one_lease_that_has_ended(wide: Primary, tmp_path: Path) -> None:
    """50 times: of two that come for a job at the same moment one has it, and whoever had it before writes nothing."""
    await wide.write("ana", lambda connection: grant(connection, "ana", 50 * UNIT))
    write = Writer(wide, lambda user, bookmark: None)
    for _ in range(50):
        id = await made(wide, "ana")
        (old,), _ = await jobs.claim(wide, "old", most={"builtin": 9}, room=9, lease_s=60)
        await wide.fetch("update queue set lease_until = clock_timestamp()")
        answers = await asyncio.gather(
            *(jobs.claim(wide, name, most={"builtin": 9}, room=9, lease_s=60) for name in ("one", "two"))
        )
        taken = [job for found, _ in answers for job in found]
        assert [job.id for job in taken] == [id]
        assert taken[0].fence == old.fence + 1
        ends = await asyncio.gather(
            *(
                write(job, lambda connection, job=job: fail(connection, job, Canceled("no more")))
                for job in (old, taken[0])
            ),
            return_exceptions=True,
        )
        assert [type(end) if isinstance(end, Exception) else end for end in ends] == [Lost, "failed"]
    await Laws(wide, LocalObjects(tmp_path)).check()


async def test_the_old_fence_holds_nothing(wide: Primary) -> None:
    """Whoever was first to claim finds out in the first statement of every write that the job is another's."""
    await wide.write("ana", lambda connection: grant(connection, "ana", UNIT))
    await made(wide, "ana")
    (old,), _ = await jobs.claim(wide, "old", most={"builtin": 9}, room=9, lease_s=60)
    await wide.fetch("update queue set lease_until = clock_timestamp()")
    (new,), _ = await jobs.claim(wide, "new", most={"builtin": 9}, room=9, lease_s=60)
    await wide.write("ana", lambda connection: hold(connection, new))
    with pytest.raises(Lost):
        await wide.write("ana", lambda connection: hold(connection, old))
