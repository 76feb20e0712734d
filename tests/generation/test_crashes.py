"""A runner that ends at any step, as with kill -9: another one goes on, nothing is drawn or paid twice."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pydantic import SecretStr

from store.generation import attempts, calling, delivering, runner
from store.generation.providers import Done, Provider, Request, Task
from tests.generation.jobs_world import JobsWorld


class Killed(BaseException):
    """The process is gone: nobody catches this, so nothing is written after it."""


class Steps:
    """Ends the runner at a step, once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch, self.killed = monkeypatch, 0

    def at(self, module: Any, name: str, *, before: bool) -> None:
        """Before or behind a call of `module.name`, in the first runner that gets there."""
        real: Callable[..., Awaitable[Any]] = getattr(module, name)

        async def killing(*args: Any, **options: Any) -> Any:
            if self.killed:
                return await real(*args, **options)
            if not before:
                await real(*args, **options)
            self.killed += 1
            raise Killed(name)

        self.monkeypatch.setattr(module, name, killing)


class Asked:
    """A provider that dies with its worker before or behind the answer."""

    def __init__(self, real: Provider, steps: Steps, *, before: bool) -> None:
        self._real, self._steps, self._before = real, steps, before

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def submit(self, request: Request, *, key: SecretStr | None = None) -> Task | Done:
        if self._steps.killed:
            return await self._real.submit(request, key=key)
        found = None if self._before else await self._real.submit(request, key=key)
        self._steps.killed += 1
        raise Killed(f"with {found}")


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    return Steps(monkeypatch)


async def resumed(jobs: JobsWorld, steps: Steps, provider: str, **first: Any) -> dict[str, Any]:
    """The job after a first runner was killed, and a second one came when the lease had ended."""
    job = await jobs.add(provider)
    jobs.start(**first)

    async def killed() -> bool:
        return steps.killed == 1

    await jobs.until(killed)
    before = await jobs.job(job)
    assert before["state"] in ("processing", "uploading")
    await jobs.primary.fetch("update queue set lease_until = clock_timestamp()")
    await jobs.crash(jobs.runners[0][0])
    jobs.start()
    (row,) = await jobs.ended(job)
    assert (row["state"], row["refunded_tenths"], len(row["image_ids"])) == ("completed", 0, 1), row
    await jobs.assert_objects()
    assert await jobs.primary.fetch("select * from storage_reservations") == []
    return row


_ASKED = ("builtin", "openai", "replicate")


@pytest.mark.parametrize("provider", _ASKED)
async def test_before_the_attempt_is_written(jobs: JobsWorld, steps: Steps, provider: str) -> None:
    """Ended before the row of the attempt: the provider was not asked, and is asked once."""
    steps.at(attempts, "begin", before=True)
    row = await resumed(jobs, steps, provider)
    assert [one["state"] for one in await jobs.attempts(row["id"])] == ["done"]
    assert len(jobs.world.fake.drawn) == (provider != "builtin")


@pytest.mark.parametrize("provider", _ASKED)
async def test_before_the_call(jobs: JobsWorld, steps: Steps, provider: str) -> None:
    """Ended between the row and the call: nobody knows whether it was made, so it is repeated, once, and counted."""
    real = jobs.world.providers[provider]
    row = await resumed(jobs, steps, provider, providers={provider: Asked(real, steps, before=True)})
    assert [one["state"] for one in await jobs.attempts(row["id"])] == ["unknown", "done"]
    assert len(jobs.world.fake.drawn) == (provider != "builtin")


@pytest.mark.parametrize("provider", _ASKED)
async def test_before_the_answer_is_written(jobs: JobsWorld, steps: Steps, provider: str) -> None:
    """Ended behind the call, before its task's id or picture was saved: repeated once, and charged once."""
    real = jobs.world.providers[provider]
    row = await resumed(jobs, steps, provider, providers={provider: Asked(real, steps, before=False)})
    assert [one["state"] for one in await jobs.attempts(row["id"])] == ["unknown", "done"]


async def test_twice_behind_the_call(jobs: JobsWorld) -> None:
    """A call that ended its worker twice is not made a third time: the job fails, and everything is given back."""
    job = await jobs.add("openai")
    for _ in range(2):
        steps = Steps(pytest.MonkeyPatch())
        one = jobs.start(providers={"openai": Asked(jobs.world.providers["openai"], steps, before=False)})

        async def killed(steps: Steps = steps) -> bool:
            return steps.killed == 1

        await jobs.until(killed)
        await jobs.crash(one)
        await jobs.primary.fetch("update queue set lease_until = clock_timestamp()")
    jobs.start()
    (row,) = await jobs.ended(job)
    assert (row["state"], row["error_code"], row["refunded_tenths"]) == ("failed", "unknown_outcome", 15)
    assert len(jobs.world.fake.made("openai")) == 2


@pytest.mark.parametrize("provider", ["nanobanana", "replicate", "fal"])
async def test_while_the_task_is_saved(jobs: JobsWorld, steps: Steps, provider: str) -> None:
    """Ended inside the transaction that saves the task's id: it is not there, and the call is repeated once."""
    steps.at(attempts, "save_task", before=False)
    row = await resumed(jobs, steps, provider)
    assert [one["state"] for one in await jobs.attempts(row["id"])] == ["unknown", "done"]


@pytest.mark.parametrize("provider", ["nanobanana", "replicate", "fal"])
async def test_behind_the_task(jobs: JobsWorld, steps: Steps, provider: str) -> None:
    """Ended when the task's id was saved: the task is looked at, and not handed over again."""
    steps.at(calling.polling, "finish", before=True)
    row = await resumed(jobs, steps, provider)
    assert [one["state"] for one in await jobs.attempts(row["id"])] == ["done"]
    assert len(jobs.world.fake.made(provider)) == 1


@pytest.mark.parametrize("provider", ["nanobanana", "replicate", "fal"])
async def test_while_the_task_is_looked_at(jobs: JobsWorld, steps: Steps, provider: str) -> None:
    """Ended between the task and its picture: it is resumed by its id, drawn once, and one attempt is all there is."""
    steps.at(delivering.Delivery, "deliver", before=True)
    row = await resumed(jobs, steps, provider)
    assert [one["state"] for one in await jobs.attempts(row["id"])] == ["done"]
    assert len(jobs.world.fake.made(provider)) == 1


@pytest.mark.parametrize("provider", _ASKED)
async def test_before_the_upload(jobs: JobsWorld, steps: Steps, provider: str) -> None:
    """Ended when keys were written down and no object was there: what the provider still has is fetched again, what it
    has not is drawn again."""
    steps.at(delivering.Delivery, "_store", before=True)
    row = await resumed(jobs, steps, provider)
    states = [one["state"] for one in await jobs.attempts(row["id"])]
    assert states == (["done"] if provider == "replicate" else ["unknown", "done"])


@pytest.mark.parametrize("provider", _ASKED)
async def test_behind_the_upload(jobs: JobsWorld, steps: Steps, provider: str) -> None:
    """Ended when the objects were there: they are used, and nothing is drawn again."""
    steps.at(delivering.Delivery, "_store", before=False)
    row = await resumed(jobs, steps, provider)
    (attempt,) = await jobs.attempts(row["id"])
    keys = await jobs.primary.fetch("select object_key from images")
    assert attempt["object_keys"] == [key[0] for key in keys]
    assert len(jobs.world.fake.made(provider)) == (provider != "builtin")


@pytest.mark.parametrize("provider", _ASKED)
async def test_before_the_end(jobs: JobsWorld, steps: Steps, provider: str) -> None:
    """Ended when all but the last transaction was done: it is done again, with the same objects."""
    steps.at(runner, "settle", before=True)
    row = await resumed(jobs, steps, provider)
    assert len(await jobs.attempts(row["id"])) == 1
    assert len(jobs.world.fake.made(provider)) == (provider != "builtin")


async def test_inside_the_end(jobs: JobsWorld, steps: Steps) -> None:
    """Ended inside the last transaction: nothing of it is there, and the next one does all of it."""
    steps.at(runner, "settle", before=False)
    await resumed(jobs, steps, "replicate")
    lines = await jobs.primary.fetch("select kind from credit_ledger where job_id is not null")
    assert [line[0] for line in lines] == ["hold"]
