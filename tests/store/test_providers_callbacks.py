"""Callbacks: a reason to look at a task, and never more than that."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from pydantic import SecretStr

from store.generation import errors
from store.generation.providers import Done
from tests.fakes.providers_world import MovedClock, ProvidersWorld, opened

WITH_TASKS = ["fal", "nanobanana", "replicate"]
SIGNED = ["fal", "replicate"]


@pytest.fixture
async def world() -> AsyncIterator[ProvidersWorld]:
    async with opened() as made:
        yield made


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
        task = await world.task(provider, script="callback_twice", callback_url=url)
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
    task = await world.task(provider)
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
    task = await world.task(provider)
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
        task = await world.task(provider)
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
