"""Who gets whose jobs, and who may write about them."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections import Counter
from typing import Any

import pytest

from store.generation import jobs as queue
from store.generation.jobs import Claimed, Lost
from store.generation.providers import Done, Request, Task
from store.generation.retries import Policy
from tests.generation.jobs_world import QUICK, JobsWorld
from tests.generation.money import assert_money
from tests.world import until

MOST = {"builtin": 1000, "openai": 1000, "replicate": 1000}


async def claimed(
    jobs: JobsWorld, *, room: int = 1, worker: str = "a", lease_s: float = 30.0, **most: int
) -> list[Claimed]:
    return (await queue.claim(jobs.primary, worker, most={**MOST, **most}, room=room, lease_s=lease_s))[0]


async def test_users_take_turns(jobs: JobsWorld) -> None:
    """Fifty jobs of one user do not make another wait: whoever comes later is next but one, in the order they came."""
    many = [await jobs.add(prompt=f"many {n}") for n in range(50)]
    await claimed(jobs, room=3)
    await jobs.user("bob")
    few = [await jobs.add(user="bob") for _ in range(3)]
    order = [(await claimed(jobs))[0].id for _ in range(8)]
    assert [job for job in order if job in few] == few
    assert [job for job in order if job in many] == many[3:8]
    assert order.index(few[0]) <= 1
    assert order.index(few[2]) <= 6


async def test_users_take_turns_between_providers(jobs: JobsWorld) -> None:
    """A worker with room for one job takes the next turn, whichever provider it is for."""
    many = [await jobs.add("openai") for _ in range(5)]
    await jobs.user("bob")
    one = await jobs.add("builtin", user="bob")
    order = [(await claimed(jobs))[0].id for _ in range(3)]
    assert order == [many[0], one, many[1]]


async def test_pro_goes_first_and_nobody_starves(jobs: JobsWorld) -> None:
    """Of a Pro and a Free user with many jobs each, Pro has four of five, and Free is never left out."""
    await jobs.user("pro", plan="pro")
    for _ in range(60):
        await jobs.add()
        await jobs.add(user="pro")
    order = [(await claimed(jobs))[0].owner_id for _ in range(50)]
    counts = Counter(order)
    assert 36 <= counts["pro"] <= 44
    longest = max(len(run) for run in "".join("P" if user == "pro" else "F" for user in order).split("F"))
    assert longest <= 6, order


async def test_a_provider_is_never_asked_by_more(jobs: JobsWorld) -> None:
    """However many workers claim at once, a provider has at most as many jobs in work as it may; others go on."""
    for _ in range(30):
        await jobs.add("openai")
        await jobs.add("builtin")
    rounds = await asyncio.gather(*(claimed(jobs, room=4, worker=f"w{n}", openai=5) for n in range(10)))
    taken = [job for some in rounds for job in some]
    assert len({job.id for job in taken}) == len(taken)
    assert Counter(job.provider for job in taken)["openai"] == 5
    assert Counter(job.provider for job in taken)["builtin"] >= 20


async def test_a_lease_that_ended(jobs: JobsWorld) -> None:
    """A job whose worker is silent is claimed by another one; the first one's writes are refused, all of them."""
    await jobs.add()
    (first,) = await claimed(jobs, lease_s=0.05)
    await asyncio.sleep(0.1)
    (second,) = await claimed(jobs, worker="b")
    assert (second.id, second.fence) == (first.id, first.fence + 1)
    assert await queue.beat(jobs.primary, "a", [first.id], lease_s=30) == {}
    with pytest.raises(Lost, match="not ours any more at fence 1"):
        await jobs.primary.write("ana", lambda connection: queue.hold(connection, first))
    await queue.give_back(jobs.primary, [first])
    assert set(await queue.look(jobs.primary, "b", [second.id])) == {second.id}


async def test_beats_keep_a_job(jobs: JobsWorld) -> None:
    """A worker that beats keeps its job for longer than a lease; nobody else gets it."""
    await jobs.add()
    (job,) = await claimed(jobs, lease_s=0.3)
    for _ in range(8):
        await asyncio.sleep(0.1)
        assert set(await queue.beat(jobs.primary, "a", [job.id], lease_s=0.3)) == {job.id}
        assert await claimed(jobs, worker="b") == []


class Held:
    """A provider whose pictures come when the test says so."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self.asked = 0
        self.release = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def submit(self, request: Request, *, key: Any = None) -> Task | Done:
        self.asked += 1
        await self.release.wait()
        found: Task | Done = await self._real.submit(request, key=key)
        return found


async def test_an_old_worker_writes_nothing(jobs: JobsWorld) -> None:
    """A worker that was away for longer than its lease comes back with a picture: the other one's is the only one."""
    held = Held(jobs.world.providers["builtin"])
    job = await jobs.add()
    sleeper = jobs.start(providers={"builtin": held}, rhythm=QUICK.__class__(look_s=60, beat_s=60, lease_s=2))
    await until(lambda: held.asked)
    await jobs.primary.fetch("update queue set lease_until = clock_timestamp()")
    jobs.start()
    (row,) = await jobs.ended(job)
    assert row["state"] == "completed"
    held.release.set()
    await until(lambda: not sleeper.running)
    assert await jobs.job(job) == row
    assert len(await jobs.primary.fetch("select id from images")) == 1
    await assert_money(jobs.primary)
    await jobs.assert_objects()


async def test_a_worker_hears_that_a_job_is_lost(jobs: JobsWorld) -> None:
    """Within a look, a worker drops the job that another one has by now."""
    held = Held(jobs.world.providers["builtin"])
    await jobs.add()
    first = jobs.start(providers={"builtin": held})
    await until(lambda: held.asked)
    await jobs.primary.fetch("update queue set fence = fence + 1, worker = 'another'")
    await until(lambda: not first.running)


async def test_fifty_jobs_at_once(jobs: JobsWorld) -> None:
    """Fifty jobs of five users on three providers, by two runners: each is completed, once."""
    for n in range(4):
        await jobs.user(f"u{n}")
    ids = [
        await jobs.add(("builtin", "openai", "replicate")[n % 3], user="ana" if n % 5 == 4 else f"u{n % 5}")
        for n in range(50)
    ]
    jobs.start()
    jobs.start()
    rows = await jobs.ended(*ids, timeout_s=60)
    assert {row["state"] for row in rows} == {"completed"}
    assert len(jobs.world.fake.drawn) == len([row for row in rows if row["provider"] != "builtin"])
    assert await jobs.primary.fetch("select job_id, call from attempts group by 1, 2 having count(*) > 1") == []
    await jobs.assert_objects()


async def test_a_graceful_stop(jobs: JobsWorld) -> None:
    """A runner that is stopped gives back at once what it has not begun; what a provider works on is resumed, and
    drawn once; what comes to its end in time does."""
    jobs.world.fake.script("replicate", "task_polls 30")
    slow = await jobs.add("replicate")
    first = jobs.start()
    await jobs.until(lambda: has_task(jobs, slow))
    waiting = await jobs.add("openai")
    await first.stop(grace_s=0.1)
    assert not first.running
    state = await jobs.job(waiting)
    assert state["state"] in ("pending", "completed")
    assert await jobs.primary.fetch("select job_id from queue where worker is not null") == []
    jobs.start()
    for row in await jobs.ended(slow, waiting):
        assert row["state"] == "completed"
    assert len(jobs.world.fake.made("replicate")) == 1


async def has_task(jobs: JobsWorld, job: uuid.UUID) -> bool:
    return any(attempt["task_id"] for attempt in await jobs.attempts(job))


async def test_what_is_not_begun_is_pending_again(jobs: JobsWorld) -> None:
    """Jobs that wait inside a runner for their turn to draw are pending again after its stop, at their old turn."""
    held = Held(jobs.world.providers["builtin"])
    ids = [await jobs.add(n=1) for _ in range(12)]
    turns = await jobs.primary.fetch("select job_id, turn from queue order by job_id")
    first = jobs.start(providers={"builtin": held})
    await until(lambda: first.running == 12 and held.asked == min(12, os.cpu_count() or 1))
    stopping = asyncio.create_task(first.stop(grace_s=20))
    pending = "select count(*) from jobs where state = 'pending'"
    await jobs.until(lambda: jobs._count(pending), 12 - held.asked)
    assert await jobs.primary.fetch("select job_id, turn from queue order by job_id") == turns
    held.release.set()
    await stopping
    jobs.start()
    assert {row["state"] for row in await jobs.ended(*ids)} == {"completed"}


async def test_retries_wait(jobs: JobsWorld) -> None:
    """A provider that is away is asked again after the waits of the schedule, and no sooner."""
    jobs.world.fake.script("openai", "status 503", "status 503", "ok")
    job = await jobs.add("openai")
    jobs.start(policy=Policy(waits_s=(0.2, 0.4, 0.8), jitter=0.0))
    await jobs.ended(job)
    at = [call.at for call in jobs.world.fake.made("openai")]
    assert at[1] - at[0] >= 0.2
    assert at[2] - at[1] >= 0.4


async def test_a_callback_is_a_reason_to_look(jobs: JobsWorld) -> None:
    """A task is looked at when its provider says that it has ended, long before the next look is due."""
    job = await jobs.add("replicate")
    rhythm = QUICK.__class__(look_s=0.03, claim_s=0.01, poll_s=600)
    jobs.start(rhythm=rhythm)
    await jobs.until(lambda: has_task(jobs, job))
    await asyncio.sleep(0.1)
    (attempt,) = await jobs.attempts(job)
    assert await queue.nudge(jobs.primary, "replicate", attempt["task_id"])
    assert not await queue.nudge(jobs.primary, "replicate", "another")
    await jobs.until(lambda: nudged(jobs, attempt["task_id"]))
    assert (await jobs.ended(job))[0]["state"] == "completed"


async def nudged(jobs: JobsWorld, task_id: str) -> bool:
    """Nudge until the job is over: the fake's tasks go on with each look."""
    await queue.nudge(jobs.primary, "replicate", task_id)
    return await jobs._count("select count(*) from queue") == 0


async def test_a_job_that_ends_its_workers(jobs: JobsWorld) -> None:
    """A job that many claims did not bring to its end is failed and given back, so that it ends at all."""
    job = await jobs.add("openai")
    await jobs.primary.fetch("update queue set fence = 25")
    jobs.start()
    (row,) = await jobs.ended(job)
    assert (row["state"], row["error_code"], row["refunded_tenths"]) == ("failed", "worker_failed", 15)
    assert jobs.world.fake.made("openai") == []


async def test_a_job_that_ends_its_workers_keeps_what_is_there(jobs: JobsWorld) -> None:
    """What such a job has stored by then is delivered and charged, and only the rest is given back."""
    jobs.world.fake.script("workers_ai", "ok", "hang")
    job = await jobs.add("workers_ai", n=2)
    first = jobs.start()
    await jobs.until(lambda: jobs._count("select count(*) from attempts where state = 'done'"), 1)
    await jobs.crash(first)
    await jobs.primary.fetch("update queue set fence = 25, lease_until = clock_timestamp()")
    jobs.start()
    (row,) = await jobs.ended(job)
    assert (row["state"], row["error_code"], row["refunded_tenths"]) == ("completed", "worker_failed", 15)
    assert len(jobs.world.fake.made("workers_ai")) == 2
    await jobs.assert_objects()


async def test_a_row_that_is_no_job(jobs: JobsWorld) -> None:
    """What plain SQL wrote without the parameters, or for a model that there is not, fails and is given back."""
    sql = (
        "insert into jobs (owner_id, prompt, provider, model, price_tenths, params) "
        "values ('ana', 'x', $1, $2, 10, $3::text::jsonb) returning id"
    )
    ids = [
        (await jobs.primary.fetch(sql, *values))[0][0]
        for values in (
            ("builtin", "builtin", "{}"),
            ("builtin", "nothing", '{"width": 64, "height": 64}'),
            ("builtin", "builtin", '{"width": 9000, "height": 64}'),
        )
    ]
    jobs.start()
    for row in await jobs.ended(*ids):
        assert (row["state"], row["error_code"], row["refunded_tenths"]) == ("failed", "invalid_request", 10)
