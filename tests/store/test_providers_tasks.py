"""Providers that take tasks: found again by their id, polled until they end, canceled, and called back by."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from store.generation import errors
from store.generation.providers import Progress, Task
from store.generation.providers.opening import open_providers
from store.generation.providers.polling import finish
from tests.fakes.providers_world import MODEL_OF, MovedClock, ProvidersWorld, opened

WITH_TASKS = ["fal", "nanobanana", "replicate"]
CANCELS = ["fal", "replicate"]
SIGNED = ["fal", "replicate"]


@pytest.fixture
async def world() -> AsyncIterator[ProvidersWorld]:
    async with opened() as made:
        yield made


@pytest.mark.parametrize("provider", WITH_TASKS)
async def test_the_id_is_known_before_anything_is_drawn(world: ProvidersWorld, provider: str) -> None:
    """mission: 3, 42"""
    task = await world.task(provider)

    assert world.fake.tasks.all[task.id].state == "running"
    assert world.fake.drawn == []
    assert world.providers[provider].capabilities.has_tasks


@pytest.mark.parametrize("provider", WITH_TASKS)
async def test_another_process_goes_on_by_the_id(world: ProvidersWorld, provider: str) -> None:
    """Model and id are all that it has; nothing is drawn twice."""
    task = await world.task(provider)

    async with open_providers(world.settings, world.models) as others:
        resumed = others[provider].resume(MODEL_OF[provider], task.id)
        done = await finish(others[provider], resumed, deadline_s=20, every_s=0.01)

    assert await world.bytes_of(done.outputs[0])
    assert len(world.fake.made(provider)) == len(world.fake.drawn) == 1


@pytest.mark.parametrize("provider", WITH_TASKS)
async def test_a_finished_task_can_be_looked_at_again(world: ProvidersWorld, provider: str) -> None:
    """A crash after the last look costs a look."""
    task = await world.task(provider)

    first, second = [await world.finish(task), await world.providers[provider].poll(task)]

    assert first == second
    assert len(world.fake.drawn) == 1


@pytest.mark.parametrize("provider", WITH_TASKS)
@pytest.mark.parametrize(
    ("script", "kind"),
    [
        ("task_fails", errors.ProviderFailed),
        ("task_policy", errors.ContentPolicy),
        ("task_empty", errors.NoImage),
        ("task_gone", errors.NoSuchTask),
    ],
)
async def test_how_a_task_ends_is_an_error_of_ours(
    world: ProvidersWorld, provider: str, script: str, kind: type[errors.GenerationError]
) -> None:
    """mission: 22, 26, 50"""
    task = await world.task(provider, script=script)
    clock = MovedClock()

    with pytest.raises(kind) as caught:
        await finish(world.providers[provider], task, deadline_s=60, clock=clock, sleep=clock.sleep)

    assert type(caught.value) is kind
    assert world.fake.drawn == []


@pytest.mark.parametrize("provider", CANCELS)
async def test_a_task_that_somebody_canceled_is_canceled(world: ProvidersWorld, provider: str) -> None:
    task = await world.task(provider, script="task_canceled")

    with pytest.raises(errors.Canceled):
        await world.finish(task)


@pytest.mark.parametrize("provider", WITH_TASKS)
@pytest.mark.parametrize("script", ["no_id", "html_200"])
async def test_a_task_without_an_id_is_an_unknown_outcome(world: ProvidersWorld, provider: str, script: str) -> None:
    """It may run and be paid for, and nobody can ever find it."""
    world.fake.script(provider, script)

    with pytest.raises(errors.BadAnswer) as caught:
        await world.submit(world.request(provider))

    assert isinstance(caught.value, errors.UnknownOutcome)


@pytest.mark.parametrize("provider", WITH_TASKS)
async def test_an_id_is_told_as_it_is_even_twice(world: ProvidersWorld, provider: str) -> None:
    """Whether two attempts may have one task is decided by whoever keeps the attempts."""
    first = await world.task(provider)

    second = await world.task(provider, script="duplicate_id")

    assert first == second


@pytest.mark.parametrize("provider", WITH_TASKS)
async def test_looks_that_fail_say_nothing_about_the_task(world: ProvidersWorld, provider: str) -> None:
    task = await world.task(provider, script="poll_fails 3")

    with pytest.raises(errors.Unavailable):
        await world.providers[provider].poll(task)
    assert await world.finish(task)
    assert len(world.fake.made(provider)) == 1


@pytest.mark.parametrize("provider", WITH_TASKS)
async def test_a_task_may_be_known_later_than_its_id(world: ProvidersWorld, provider: str) -> None:
    task = await world.task(provider, script="task_late")

    assert (await world.finish(task)).outputs


@pytest.mark.parametrize("provider", WITH_TASKS)
async def test_a_task_is_polled_every_second_until_its_deadline(world: ProvidersWorld, provider: str) -> None:
    """mission: 23, 24"""
    task = await world.task(provider, script="task_never")
    clock = MovedClock()

    with pytest.raises(errors.TimedOut, match="did not end within 60 s"):
        await finish(world.providers[provider], task, deadline_s=60, clock=clock, sleep=clock.sleep)

    assert clock.slept == [1.0] * 60
    # A last look after the cancel: it may have just ended.
    assert len(world.fake.made(provider, "poll")) == 62
    assert len(world.fake.made(provider, "cancel")) == (1 if provider in CANCELS else 0)


@pytest.mark.parametrize("provider", WITH_TASKS)
async def test_a_task_that_ends_at_the_last_moment_is_not_lost(world: ProvidersWorld, provider: str) -> None:
    """It was drawn and paid for: the look after the deadline finds it."""
    task = await world.task(provider, script="ends_on_cancel")
    clock = MovedClock()

    done = await finish(world.providers[provider], task, deadline_s=0, clock=clock, sleep=clock.sleep)

    assert done.outputs
    assert clock.slept == []


async def test_a_provider_in_trouble_is_looked_at_less_often(world: ProvidersWorld) -> None:
    task = await world.task("replicate", script="poll_fails 5")
    clock = MovedClock()

    await finish(world.providers["replicate"], task, deadline_s=600, clock=clock, sleep=clock.sleep)

    assert clock.slept == [2.0, 4.0, 8.0, 10.0, 10.0]


async def test_progress_is_told_when_it_changes(world: ProvidersWorld) -> None:
    task = await world.task("fal", script="task_polls 3")
    told: list[Progress] = []

    async def progress(found: Progress) -> None:
        told.append(found)

    await finish(world.providers["fal"], task, deadline_s=20, every_s=0.01, progress=progress)

    assert told == [Progress(queue_position=2), Progress()]


@pytest.mark.parametrize("provider", CANCELS)
async def test_a_running_task_is_canceled(world: ProvidersWorld, provider: str) -> None:
    task = await world.task(provider, script="task_never")
    adapter = world.providers[provider]

    assert adapter.capabilities.cancels
    assert await adapter.cancel(task)
    with pytest.raises(errors.Canceled):
        await adapter.poll(task)


@pytest.mark.parametrize("provider", WITH_TASKS)
async def test_what_has_ended_or_never_was_cannot_be_canceled(world: ProvidersWorld, provider: str) -> None:
    task = await world.task(provider)
    await world.finish(task)
    adapter = world.providers[provider]

    assert not await adapter.cancel(task)
    assert not await adapter.cancel(Task(provider, task.model, "unknown"))
