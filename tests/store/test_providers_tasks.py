"""Providers that take tasks: found again by their id, polled until they end, canceled, and called back by."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from pydantic import SecretStr

from store.generation import errors
from store.generation.providers import Done, Progress, Task
from store.generation.providers.opening import open_providers
from store.generation.providers.polling import finish
from tests.fakes.providers_world import MODEL_OF, ProvidersWorld, opened

WITH_TASKS = ["fal", "nanobanana", "replicate"]
CANCELS = ["fal", "replicate"]
SIGNED = ["fal", "replicate"]


class MovedClock:
    """A clock that goes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.slept: list[float] = []

    def wall(self) -> float:
        return self.now_s

    def monotonic(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds


@pytest.fixture
async def world() -> AsyncIterator[ProvidersWorld]:
    async with opened() as made:
        yield made


async def submitted(world: ProvidersWorld, provider: str, *, script: str = "ok", callback_url: str = "") -> Task:
    world.fake.script(provider, script)
    found = await world.submit(world.request(provider, callback_url=callback_url))
    assert isinstance(found, Task)
    return found


@pytest.mark.parametrize("provider", WITH_TASKS)
async def test_the_id_is_known_before_anything_is_drawn(world: ProvidersWorld, provider: str) -> None:
    """mission: 3, 42"""
    task = await submitted(world, provider)

    assert world.fake.tasks.all[task.id].state == "running"
    assert world.fake.drawn == []
    assert world.providers[provider].capabilities.has_tasks


@pytest.mark.parametrize("provider", WITH_TASKS)
async def test_another_process_goes_on_by_the_id(world: ProvidersWorld, provider: str) -> None:
    """Model and id are all that it has; nothing is drawn twice."""
    task = await submitted(world, provider)

    async with open_providers(world.settings, world.models) as others:
        resumed = others[provider].resume(MODEL_OF[provider], task.id)
        done = await finish(others[provider], resumed, deadline_s=20, every_s=0.01)

    assert await world.bytes_of(done.outputs[0])
    assert len(world.fake.made(provider)) == len(world.fake.drawn) == 1


@pytest.mark.parametrize("provider", WITH_TASKS)
async def test_a_finished_task_can_be_looked_at_again(world: ProvidersWorld, provider: str) -> None:
    """A crash after the last look costs a look."""
    task = await submitted(world, provider)

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
    task = await submitted(world, provider, script=script)
    clock = MovedClock()

    with pytest.raises(kind) as caught:
        await finish(world.providers[provider], task, deadline_s=60, clock=clock, sleep=clock.sleep)

    assert type(caught.value) is kind
    assert world.fake.drawn == []


@pytest.mark.parametrize("provider", CANCELS)
async def test_a_task_that_somebody_canceled_is_canceled(world: ProvidersWorld, provider: str) -> None:
    task = await submitted(world, provider, script="task_canceled")

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
    first = await submitted(world, provider)

    second = await submitted(world, provider, script="duplicate_id")

    assert first == second


@pytest.mark.parametrize("provider", WITH_TASKS)
async def test_looks_that_fail_say_nothing_about_the_task(world: ProvidersWorld, provider: str) -> None:
    task = await submitted(world, provider, script="poll_fails 3")

    with pytest.raises(errors.Unavailable):
        await world.providers[provider].poll(task)
    assert await world.finish(task)
    assert len(world.fake.made(provider)) == 1


@pytest.mark.parametrize("provider", WITH_TASKS)
async def test_a_task_is_polled_every_second_until_its_deadline(world: ProvidersWorld, provider: str) -> None:
    """mission: 23, 24"""
    task = await submitted(world, provider, script="task_never")
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
    task = await submitted(world, provider, script="ends_on_cancel")
    clock = MovedClock()

    done = await finish(world.providers[provider], task, deadline_s=0, clock=clock, sleep=clock.sleep)

    assert done.outputs
    assert clock.slept == []


async def test_a_provider_in_trouble_is_looked_at_less_often(world: ProvidersWorld) -> None:
    task = await submitted(world, "replicate", script="poll_fails 5")
    clock = MovedClock()

    await finish(world.providers["replicate"], task, deadline_s=600, clock=clock, sleep=clock.sleep)

    assert clock.slept == [2.0, 4.0, 8.0, 10.0, 10.0]


async def test_progress_is_told_when_it_changes(world: ProvidersWorld) -> None:
    task = await submitted(world, "fal", script="task_polls 3")
    told: list[Progress] = []

    async def progress(found: Progress) -> None:
        told.append(found)

    await finish(world.providers["fal"], task, deadline_s=20, every_s=0.01, progress=progress)

    assert told == [Progress(queue_position=2), Progress()]


@pytest.mark.parametrize("provider", CANCELS)
async def test_a_running_task_is_canceled(world: ProvidersWorld, provider: str) -> None:
    task = await submitted(world, provider, script="task_never")
    adapter = world.providers[provider]

    assert adapter.capabilities.cancels
    assert await adapter.cancel(task)
    with pytest.raises(errors.Canceled):
        await adapter.poll(task)


@pytest.mark.parametrize("provider", WITH_TASKS)
async def test_what_has_ended_or_never_was_cannot_be_canceled(world: ProvidersWorld, provider: str) -> None:
    task = await submitted(world, provider)
    await world.finish(task)
    adapter = world.providers[provider]

    assert not await adapter.cancel(task)
    assert not await adapter.cancel(Task(provider, task.model, "unknown"))


@pytest.mark.parametrize("provider", WITH_TASKS)
async def test_a_callback_names_its_task(world: ProvidersWorld, provider: str) -> None:
    """It comes over the network as the provider sends it, twice, and is a reason to look, each time."""
    named: list[str] = []

    async def receive(request: web.Request) -> web.Response:
        named.append(await world.providers[provider].called_back(request.headers, await request.read()))
        return web.Response()

    app = web.Application()
    app.router.add_post("/back/{secret}", receive)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/back/x1"
        task = await submitted(world, provider, script="callback_twice", callback_url=url)
        async with asyncio.timeout(20):
            while len(named) < 2:
                await asyncio.sleep(0.01)
    finally:
        await runner.cleanup()

    assert named == [task.id, task.id]
    assert isinstance(await world.providers[provider].poll(task), Done)
    assert len(world.fake.drawn) == 1


@pytest.mark.parametrize("provider", SIGNED)
async def test_a_callback_that_is_not_signed_right_is_refused(world: ProvidersWorld, provider: str) -> None:
    task = await submitted(world, provider)
    fake, adapter = world.fake.tasks.all[task.id], world.providers[provider]
    body, headers = world.fake.tasks.callback(fake)
    name = next(name for name in headers if "signature" in name.lower())
    old_body, old_headers = world.fake.tasks.callback(fake, at_s=time.time() - 400)
    new_body, new_headers = world.fake.tasks.callback(fake, at_s=time.time() + 400)

    assert await adapter.called_back(headers, body) == task.id
    for forged_headers, forged_body in [
        (headers, body + b" "),
        (headers, body.replace(task.id.encode(), b"another")),
        ({**headers, name: headers[name][:-4] + "0000"}, body),
        ({**headers, name: ""}, body),
        ({**headers, name: "é"}, body),
        ({key: value for key, value in headers.items() if key != name}, body),
        ({key: value for key, value in headers.items() if not key.lower().endswith("timestamp")}, body),
        (old_headers, old_body),
        (new_headers, new_body),
        ({}, b""),
    ]:
        with pytest.raises(errors.BadCallback):
            await adapter.called_back(forged_headers, forged_body)


@pytest.mark.parametrize("provider", WITH_TASKS)
async def test_an_unreadable_callback_is_refused(world: ProvidersWorld, provider: str) -> None:
    for body in (b"", b"\xff", b"[]", b'{"code": 200}', b'{"code": 200, "data": {"taskId": "../../x"}}'):
        with pytest.raises(errors.BadCallback):
            await world.providers[provider].called_back({}, body)


@pytest.mark.parametrize("provider", SIGNED)
async def test_a_flood_of_forged_callbacks_fetches_nothing(world: ProvidersWorld, provider: str) -> None:
    task = await submitted(world, provider)
    body, headers = world.fake.tasks.callback(world.fake.tasks.all[task.id])
    assert await world.providers[provider].called_back(headers, body) == task.id

    for _ in range(20):
        with pytest.raises(errors.BadCallback):
            await world.providers[provider].called_back(headers, body + b" ")

    assert world.fake.keys_asked == 1


@pytest.mark.parametrize("provider", SIGNED)
async def test_a_changed_signing_key_is_noticed(provider: str) -> None:
    """A minute after the last look, a signature that does not fit is reason to look again."""
    clock = MovedClock()
    clock.now_s = time.time()
    async with opened(clock=clock) as world:
        adapter = world.providers[provider]
        task = await submitted(world, provider)
        fake = world.fake.tasks.all[task.id]
        old_body, old_headers = world.fake.tasks.callback(fake)
        assert await adapter.called_back(old_headers, old_body) == task.id

        world.fake.tasks.change_keys()
        body, headers = world.fake.tasks.callback(fake)
        with pytest.raises(errors.BadCallback):
            await adapter.called_back(headers, body)
        clock.now_s += 61
        assert await adapter.called_back(headers, body) == task.id
        with pytest.raises(errors.BadCallback):
            await adapter.called_back(old_headers, old_body)


async def test_under_a_users_own_key_replicate_does_not_call_back(world: ProvidersWorld) -> None:
    """It would sign with a secret that only that account knows."""
    request = world.request("replicate", callback_url="http://127.0.0.1:9/x")

    await world.providers["replicate"].submit(request, key=SecretStr("own-key-1"))
    await world.providers["replicate"].submit(request)

    own, ours = world.fake.made("replicate")
    assert "webhook" not in own.fields
    assert ours.fields["webhook"] == "http://127.0.0.1:9/x"
    assert ours.fields["webhook_events_filter"] == ["completed"]
