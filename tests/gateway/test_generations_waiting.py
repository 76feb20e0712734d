"""Waiting for pictures, and listening to how far they are. A worker's part is played by plain SQL."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway import following
from gateway.following import Following
from gateway.routes import generation_events, generations
from store.api_keys import create_key, list_keys, revoke_key
from tests.gateway.asking import bookmark_of, ids_of, running
from tests.gateway.generating import GENERATIONS, begin, complete, fail, generate
from tests.gateway.link import PrimaryLink
from tests.gateway.listening import Listener
from tests.world import Reply, World, until


async def job_of(world: World, user: str) -> str:
    """The user's one job, once it is there."""

    async def look() -> str | None:
        rows = await world.gateway.primary.fetch("select id from jobs where owner_id = $1", user)
        return str(rows[0][0]) if rows else None

    return await until(look)


async def worked(world: World, user: str, asked: Any, **how: Any) -> tuple[Reply, list[str]]:
    """The answer to `asked`, whose job is completed meanwhile, or failed with `code`."""
    waiting = asyncio.create_task(asked)
    job = await job_of(world, user)
    if "code" in how:
        await fail(world, job, how["code"])
        return await waiting, []
    ids = await complete(world, job, **how)
    return await waiting, ids


# --- Prefer: wait -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wish", ["wait=60", "respond-async, wait=60", 'WAIT="60"', "wait=9999"])
async def test_who_prefers_to_wait_gets_the_pictures(shared: World, user: str, wish: str) -> None:
    """And reads them in the gallery right after."""
    reply, ids = await worked(
        shared, user, generate(shared, user, prompt="a fox", n=2, headers={"Prefer": wish}), pictures=2
    )

    assert reply.status == 201, reply
    job = reply.json["generation"]
    assert (job["state"], [image["id"] for image in job["images"]]) == ("completed", ids)
    assert reply.headers["Location"] == f"{GENERATIONS}/{job['id']}"
    assert reply.headers["Preference-Applied"] == "wait=60"
    gallery = await shared.get("/api/images", user=user)
    assert {*ids_of(gallery)} == {*ids}
    assert not bookmark_of(reply).is_after(*bookmark_of(gallery))


async def test_failed_job_ends_the_waiting_too(shared: World, user: str) -> None:
    reply, _ = await worked(
        shared, user, generate(shared, user, prompt="a fox", headers={"Prefer": "wait=60"}), code="content_policy"
    )

    assert (reply.status, reply.json["generation"]["state"]) == (201, "failed")
    assert reply.json["generation"]["error"] == {"code": "content_policy", "message": "it broke"}


async def test_time_that_passes_leaves_202(shared: World, user: str) -> None:
    """And the job as it was."""
    started = time.monotonic()
    reply = await generate(shared, user, prompt="a fox", headers={"Prefer": "wait=1"})

    assert 0.9 <= time.monotonic() - started < 10
    assert (reply.status, reply.json["generation"]["state"]) == (202, "pending")
    assert (await shared.get(reply.headers["Location"], user=user)).status == 200


@pytest.mark.parametrize("wish", ["wait=0", "wait", "wait=-1", "wait=x", "return=minimal", ""])
async def test_wish_that_is_none_is_not_heard(shared: World, user: str, wish: str) -> None:
    reply = await generate(shared, user, prompt="a fox", headers={"Prefer": wish})

    assert reply.status == 202
    assert "Preference-Applied" not in reply.headers


async def test_batch_is_waited_for_as_a_whole(shared: World, user: str) -> None:
    asked = asyncio.create_task(generate(shared, user, prompts=["a", "b"], headers={"Prefer": "wait=60"}))

    async def both() -> list[str]:
        rows = await shared.gateway.primary.fetch("select id from jobs where owner_id = $1 order by created_at", user)
        return [str(row[0]) for row in rows]

    first, second = await until(both)
    await complete(shared, first)
    await asyncio.sleep(3 * following._EVERY_S)
    assert not asked.done()
    await fail(shared, second)
    reply = await asked

    assert (reply.status, reply.json["batch"]["is_over"]) == (201, True)
    assert [job["state"] for job in reply.json["generations"]] == ["completed", "failed"]


async def test_repetition_that_waits_gets_the_pictures(shared: World, user: str) -> None:
    """A client that lost its answer asks again under its key."""
    headers = {"Idempotency-Key": "k"}
    first = await generate(shared, user, prompt="a fox", headers=headers)
    ids = await complete(shared, first.json["generation"]["id"])

    again = await generate(shared, user, prompt="a fox", headers={**headers, "Prefer": "wait=5"})

    assert (again.status, again.headers["Idempotency-Replayed"]) == (201, "true")
    assert [image["id"] for image in again.json["generation"]["images"]] == ids


async def test_waiting_costs_one_statement_for_all(shared: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred who wait ask the primary as often as one does."""
    asked = 0
    real = following.states

    async def counted(*given: Any, **named: Any) -> Any:
        nonlocal asked
        asked += 1
        return await real(*given, **named)

    monkeypatch.setattr(following, "states", counted)
    users = [f"waiter-{n}" for n in range(100)]
    started = time.monotonic()
    waiting = [
        asyncio.create_task(generate(shared, user, prompt="a fox", headers={"Prefer": "wait=60"})) for user in users
    ]
    jobs = [await job_of(shared, user) for user in users]
    for job in jobs:
        await complete(shared, job)
    replies = await asyncio.gather(*waiting)
    took_s = time.monotonic() - started

    assert [reply.status for reply in replies] == [201] * 100
    assert asked <= took_s / following._EVERY_S + 2
    await until(lambda: shared.gateway.following._task is None)
    before = asked
    await asyncio.sleep(3 * following._EVERY_S)
    assert asked == before, "nobody waits, nobody asks"


async def test_who_waits_while_the_primary_is_away_is_answered_after_it(link: PrimaryLink, tmp_path: Path) -> None:
    async with running(World(tmp_path / "data", link.url)) as world:
        waiting = asyncio.create_task(generate(world, "ana", prompt="a fox", headers={"Prefer": "wait=60"}))
        job = await job_of(world, "ana")
        await link.cut()
        await asyncio.sleep(0.3)
        assert not waiting.done()
        await link.open()

        async def completed() -> bool:
            try:
                return bool(await complete(world, job))
            except Exception:
                return False

        await until(completed)
        reply = await waiting

        assert (reply.status, reply.json["generation"]["state"]) == (201, "completed")


# --- POST /api/images -------------------------------------------------------------------------------------------


async def test_one_call_makes_a_picture(shared: World, user: str) -> None:
    """mission: 9, 10, 11, 144, 156"""
    asked = shared.request("POST", "/api/images", user=user, json={"prompt": "a fox", "model": "builtin", "seed": 7})
    reply, (image,) = await worked(shared, user, asked)

    assert reply.status == 200, reply
    told = reply.json["image"]
    assert reply.json["success"] is True
    assert {name: told[name] for name in ("id", "prompt", "model", "steps", "seed")} == {
        "id": image, "prompt": "a fox", "model": "builtin", "steps": 20, "seed": 7,
    }  # fmt: skip
    assert told["url"].startswith("/files/generated/")
    assert ids_of(await shared.get("/api/images", user=user)) == [image]


@pytest.mark.parametrize("code", ["provider_failed", "content_policy", "storage_quota_exceeded"])
async def test_picture_that_fails_has_the_documents_sentence(shared: World, user: str, code: str) -> None:
    """mission: 61, 63"""
    reply, _ = await worked(
        shared, user, shared.request("POST", "/api/images", user=user, json={"prompt": "a fox"}), code=code
    )

    assert (reply.status, reply.json["error"], reply.json["code"]) == (500, "Failed to generate image", code)
    assert reply.json["success"] is False
    assert "Nothing was charged" in reply.json["detail"]


async def test_picture_that_takes_too_long_is_202(shared: World, user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generations, "MAX_WAIT_S", 0.2)

    reply = await shared.request("POST", "/api/images", user=user, json={"prompt": "a fox"})

    assert (reply.status, reply.json["generation"]["state"]) == (202, "pending")
    assert reply.headers["Location"] == f"{GENERATIONS}/{reply.json['generation']['id']}"


async def test_unknown_field_of_a_picture_is_named(shared: World, user: str) -> None:
    reply = await shared.request("POST", "/api/images", user=user, json={"prompt": "a fox", "width": 512})

    assert (reply.status, reply.json["field"]) == (400, "width")


# --- events -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def following_one(
    world: World, user: str, job: str, *, token: str | None = None, **headers: str
) -> AsyncIterator[Listener]:
    sent = {"Authorization": f"Bearer {token or world.token(user)}", **headers}
    timeout = aiohttp.ClientTimeout(total=None)
    async with world.http.get(f"{GENERATIONS}/{job}/events", headers=sent, timeout=timeout) as answer:
        assert answer.status == 200, await answer.text()
        assert answer.headers["Content-Type"] == "text/event-stream"
        yield Listener(answer)


async def test_listener_hears_how_far_it_is_until_the_end(shared: World, user: str) -> None:
    """Waiting, progress, the place at the provider, and at the end the whole job."""
    job = (await generate(shared, user, prompt="a fox")).json["generation"]["id"]
    async with following_one(shared, user, job) as listener:
        waiting = (await listener.next()).data
        await begin(shared, job, position=4)
        behind = (await listener.next()).data
        await begin(shared, job, progress=0.5)
        half = (await listener.next()).data
        ids = await complete(shared, job)
        end = await listener.next()
        await listener.ended()

    assert waiting["state"] == "pending"
    assert waiting["queue_position"] >= 0
    assert behind == {"state": "processing", "progress": None, "queue_position": 4}
    assert half == {"state": "processing", "progress": 0.5, "queue_position": None}
    assert (end.event, end.id) == ("end", "end")
    assert (end.data["success"], end.data["generation"]["state"]) == (True, "completed")
    assert [image["id"] for image in end.data["generation"]["images"]] == ids
    await until(lambda: shared.gateway.following._task is None)


async def test_who_comes_after_the_end_hears_it_once(shared: World, user: str) -> None:
    """And who has heard it is told not to come back."""
    job = (await generate(shared, user, prompt="a fox")).json["generation"]["id"]
    await fail(shared, job)
    async with following_one(shared, user, job) as listener:
        end = await listener.next()
        await listener.ended()
    back = await shared.get(f"{GENERATIONS}/{job}/events", user=user, headers={"Last-Event-ID": end.id})

    assert (end.event, end.data["generation"]["error"]["code"]) == ("end", "provider_failed")
    assert (back.status, back.body) == (204, b"")


async def test_quiet_stream_is_kept_alive(shared: World, user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation_events, "_HEARTBEAT_S", 0.1)
    monkeypatch.setattr(generation_events, "_CHECK_S", 0.05)
    job = (await generate(shared, user, prompt="a fox")).json["generation"]["id"]
    async with following_one(shared, user, job) as listener:
        await listener.next()
        with pytest.raises(TimeoutError):
            await listener.next(timeout_s=1)

    assert listener.comments >= 2


async def test_streams_are_bounded(shared: World, user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Per user, and together with the other event streams per gateway; one that is left makes room."""
    job = (await generate(shared, user, prompt="a fox")).json["generation"]["id"]
    monkeypatch.setattr(following, "MAX_PER_USER", 1)
    async with following_one(shared, user, job) as listener:
        await listener.next()
        refused = await shared.get(f"{GENERATIONS}/{job}/events", user=user)
    await until(lambda: not shared.gateway.following._listening)
    monkeypatch.setattr(shared.gateway.following, "_most", shared.gateway.metrics.streams)
    full = await shared.get(f"{GENERATIONS}/{job}/events", user=user)

    assert [(reply.status, reply.json["code"]) for reply in (refused, full)] == [(429, "too_many")] * 2


async def test_stream_ends_with_its_credential(shared: World, user: str) -> None:
    job = (await generate(shared, user, prompt="a fox")).json["generation"]["id"]
    key = await create_key(shared.gateway.primary, user)
    async with following_one(shared, user, job, token=key.secret) as listener:
        await listener.next()
        (info,) = await list_keys(shared.gateway.primary, user)
        await revoke_key(shared.gateway.primary, user, info.id)
        await listener.ended()


async def test_gateway_that_stops_ends_its_streams_and_answers_who_waits(tmp_path: Path, database: str) -> None:
    """202: the job is there, and somebody else will tell."""
    async with running(World(tmp_path / "data", database)) as world:
        waiting = asyncio.create_task(generate(world, "ana", prompt="a fox", headers={"Prefer": "wait=60"}))
        job = await job_of(world, "ana")
        async with following_one(world, "ana", job) as listener:
            await listener.next()
            await world.gateway.following.close()
            await listener.ended()
        reply = await waiting

        assert (reply.status, reply.json["generation"]["id"]) == (202, job)


async def test_more_who_wait_than_may_are_answered_at_once(world: World) -> None:
    world.gateway.following = Following(world.gateway.fallback, world.gateway.metrics, most=0)

    reply = await generate(world, "ana", prompt="a fox", headers={"Prefer": "wait=60"})

    assert reply.status == 202
