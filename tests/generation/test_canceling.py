"""A user cancels a job in work: the provider is asked to stop, what is there is delivered, the rest given back."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from store.generation import delivering
from store.generation.retries import Policy
from tests.generation.jobs_world import JobsWorld
from tests.generation.steps import Steps
from tests.generation.test_queue import Held, has_task
from tests.world import until


async def ask(jobs: JobsWorld, job: uuid.UUID) -> None:
    await jobs.primary.fetch("update queue set cancel_requested = true where job_id = $1", job)


@pytest.mark.parametrize("provider", ["replicate", "fal", "nanobanana"])
async def test_a_task(jobs: JobsWorld, provider: str) -> None:
    """A task that has not ended is canceled at a provider that can do it, and everything is given back at all."""
    jobs.world.fake.script(provider, "task_never")
    job = await jobs.add(provider)
    jobs.start()
    await jobs.until(lambda: has_task(jobs, job))
    await ask(jobs, job)
    (row,) = await jobs.ended(job)
    assert (row["state"], row["error_code"], row["refunded_tenths"]) == ("canceled", "canceled", 15)
    assert len(jobs.world.fake.made(provider, "cancel")) == jobs.world.providers[provider].capabilities.cancels
    assert [attempt["state"] for attempt in await jobs.attempts(job)] == ["canceled"]


async def test_a_task_that_ends_meanwhile(jobs: JobsWorld) -> None:
    """A task that is finished when its cancel arrives is delivered and charged."""
    jobs.world.fake.script("replicate", "ends_on_cancel")
    job = await jobs.add("replicate")
    jobs.start()
    await jobs.until(lambda: has_task(jobs, job))
    await ask(jobs, job)
    (row,) = await jobs.ended(job)
    assert (row["state"], row["error_code"], row["refunded_tenths"]) == ("completed", None, 0)
    await jobs.assert_objects()


async def test_an_answer_that_is_waited_for(jobs: JobsWorld) -> None:
    """A call that would answer with its picture in a minute is dropped, and everything given back."""
    jobs.world.fake.script("openai", "hang")
    job = await jobs.add("openai")
    jobs.start()
    await until(lambda: jobs.world.fake.made("openai"))
    await ask(jobs, job)
    (row,) = await jobs.ended(job, timeout_s=5)
    assert (row["state"], row["refunded_tenths"]) == ("canceled", 15)


async def test_some_are_there(jobs: JobsWorld) -> None:
    """Of a job whose first two pictures are stored when it is canceled, two are delivered and charged."""
    jobs.world.fake.script("workers_ai", "ok", "ok", "hang")
    job = await jobs.add("workers_ai", n=3)
    jobs.start()
    done = "select count(*) from attempts where state = 'done'"
    await jobs.until(lambda: jobs._count(done), 2)
    await ask(jobs, job)
    (row,) = await jobs.ended(job)
    assert (row["state"], row["error_code"], len(row["image_ids"])) == ("completed", "canceled", 2)
    assert row["refunded_tenths"] == 15
    await jobs.assert_objects()


async def test_before_a_retry(jobs: JobsWorld) -> None:
    """A job that waits to ask again ends at once when it is canceled."""
    jobs.world.fake.script("openai", "status 429 600")
    job = await jobs.add("openai")
    jobs.start(policy=Policy())
    failed = "select count(*) from attempts where state = 'failed'"
    await jobs.until(lambda: jobs._count(failed), 1)
    await ask(jobs, job)
    (row,) = await jobs.ended(job, timeout_s=5)
    assert row["state"] == "canceled"
    assert len(jobs.world.fake.made("openai")) == 1


async def test_while_nobody_has_it(jobs: JobsWorld) -> None:
    """A job that was canceled while its worker was gone is not begun again by the next: its task is canceled."""
    jobs.world.fake.script("replicate", "task_never")
    job = await jobs.add("replicate")
    first = jobs.start()
    await jobs.until(lambda: has_task(jobs, job))
    await jobs.crash(first)
    await ask(jobs, job)
    await jobs.primary.fetch("update queue set lease_until = clock_timestamp()")
    jobs.start()
    (row,) = await jobs.ended(job)
    assert row["state"] == "canceled"
    assert len(jobs.world.fake.made("replicate")) == 1
    assert len(jobs.world.fake.made("replicate", "cancel")) == 1


async def test_its_user_is_erased_behind_the_upload(jobs: JobsWorld) -> None:
    """Objects that come when their user is gone are written down to be deleted."""
    put_many = jobs.objects.put_many
    await jobs.user("bob")

    async def erase_and_put(items: list[tuple[str, bytes]]) -> None:
        await jobs.primary.fetch("delete from users where id = 'bob'")
        await put_many(items)

    async def late(items: list[tuple[str, bytes]]) -> None:
        # A runner that has lost its job does not wait for an upload under way, which comes to its end all the same.
        await asyncio.shield(erase_and_put(items))

    jobs.objects.put_many = late  # type: ignore[method-assign, assignment]
    await jobs.add(user="bob")
    runner = jobs.start()
    await jobs.until(lambda: jobs._count("select count(*) from jobs"), 0)
    await until(lambda: not runner.running)
    await until(lambda: len(list(jobs.objects.folder.glob("generated/*/*"))) == 3)
    left = {info.key async for info in jobs.objects.scan()}
    assert len(left) == 3
    assert left <= {row[0] for row in await jobs.primary.fetch("select key from deletions")}


async def test_a_crash_and_then_its_user_is_erased(jobs: JobsWorld, steps: Steps) -> None:
    """Objects whose attempt goes with its user are written down to be deleted: nobody else names them."""
    steps.at(delivering.Delivery, "_store", before=False)
    await jobs.user("bob")
    await jobs.add(user="bob")
    jobs.start()
    await until(lambda: steps.killed)
    await jobs.primary.fetch("delete from users where id = 'bob'")
    left = {info.key async for info in jobs.objects.scan()}
    assert len(left) == 3
    assert left == {row[0] for row in await jobs.primary.fetch("select key from deletions")}


async def test_its_user_is_erased(jobs: JobsWorld) -> None:
    """A job whose user is erased while it is drawn leaves nothing behind."""
    held = Held(jobs.world.providers["builtin"])
    await jobs.user("bob")
    await jobs.add(user="bob")
    runner = jobs.start(providers={"builtin": held})
    await until(lambda: held.asked)
    await jobs.primary.fetch("delete from users where id = 'bob'")
    held.release.set()
    await until(lambda: not runner.running)
    assert await jobs.primary.fetch("select id from images") == []
    await jobs.assert_objects()
