"""Webhooks over HTTP: made, changed, tested, their log read, what failed sent again."""

from __future__ import annotations

import asyncio
import base64
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from store.config import StoreSettings
from store.sealing import open_sealer
from tests.gateway.asking import given_images
from tests.gateway.test_bad_input import is_problem
from tests.receiver import Receiver, is_signed, sending
from tests.world import Reply, World, until

URL = "https://example.org/hook"
NOBODYS = "01900000-0000-7000-8000-000000000000"


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def near(database: str, tmp_path: Path, receiver: Receiver) -> AsyncIterator[World]:
    """A world whose webhooks may lead to the receiver, and are sent."""
    made = World(tmp_path / "data", database)
    made.store = StoreSettings(webhook_allow=(receiver.origin,))
    await made.start()
    async with sending(made.gateway.primary, open_sealer(made.data), receiver.origin, schedule_s=(0.0, 0.02, 0.02)):
        yield made
    await made.stop()


async def make(world: World, user: str, **fields: Any) -> Reply:
    return await world.request("POST", "/api/webhooks", user=user, json={"url": URL, **fields})


async def path_of(world: World, user: str, **fields: Any) -> str:
    reply = await make(world, user, **fields)
    assert reply.status == 201, reply
    return reply.headers["Location"]


async def logged(world: World, path: str, user: str, state: str, count: int = 1) -> list[Any]:
    """The log, once it has so many deliveries in `state`."""

    async def look() -> list[Any] | None:
        found = (await world.get(f"{path}/deliveries?state={state}", user=user)).json["deliveries"]
        return found if len(found) == count else None

    found: list[Any] = await until(look)
    return found


# --- the webhook itself -----------------------------------------------------------------------------------------------


async def test_webhook_is_made_with_a_secret_that_is_told_once(shared: World, user: str) -> None:
    """mission: 231"""
    reply = await make(shared, user, events=["image.deleted", "generation.failed", "image.deleted"])

    assert reply.status == 201
    assert reply.headers["Cache-Control"] == "no-store"
    assert reply.headers["Peruse-Bookmark"]
    made, secret = reply.json["webhook"], reply.json["secret"]
    assert made["url"] == URL
    assert made["events"] == ["generation.failed", "image.deleted"]
    assert (made["state"], made["disabled_reason"], made["old_secret_until"]) == ("active", None, None)
    assert len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) == 32
    path = f"/api/webhooks/{made['id']}"
    assert reply.headers["Location"] == path
    again, listed = await shared.get(path, user=user), await shared.get("/api/webhooks", user=user)
    assert again.json == {"success": True, "webhook": made}
    assert listed.json == {"success": True, "webhooks": [made], "next_page_token": None}


async def test_webhook_is_changed_and_deleted(shared: World, user: str) -> None:
    path = await path_of(shared, user)

    async def changed(**fields: Any) -> Any:
        reply = await shared.request("PATCH", path, user=user, json=fields)
        assert reply.status == 200, reply
        return reply.json["webhook"]

    assert (await changed(url="https://example.net/x"))["url"] == "https://example.net/x"
    assert (await changed(events=["credits.low"]))["events"] == ["credits.low"]
    assert (await changed(state="disabled"))["state"] == "disabled"
    await shared.gateway.primary.fetch(
        "update webhooks set disabled_reason = 'x' where id = $1", uuid.UUID(path.rpartition("/")[2])
    )
    active = await changed(state="active", events=[])
    assert (active["state"], active["disabled_reason"], active["events"]) == ("active", None, [])
    assert active["url"] == "https://example.net/x"

    reply = await shared.request("DELETE", path, user=user)
    assert (reply.status, reply.json) == (200, {"success": True})
    assert is_problem(await shared.get(path, user=user), 404)
    assert is_problem(await shared.request("DELETE", path, user=user), 404)


async def test_rotation_gives_another_secret_and_says_until_when_both_sign(shared: World, user: str) -> None:
    made = await make(shared, user)
    path = made.headers["Location"]

    reply = await shared.request("POST", f"{path}/secret", user=user)

    assert reply.status == 200
    assert reply.json["secret"] != made.json["secret"]
    assert reply.json["webhook"]["old_secret_until"] > reply.json["webhook"]["updated_at"]
    assert "secret" not in (await shared.get(path, user=user)).json


async def test_user_has_ten_webhooks_at_most(shared: World, user: str) -> None:
    """Also when they are asked for at once; another user's do not count."""
    assert (await make(shared, user)).status == 201
    replies = await asyncio.gather(*(make(shared, user) for _ in range(14)))

    assert sorted(reply.status for reply in replies) == [201] * 9 + [409] * 5
    refused = next(reply for reply in replies if reply.status == 409)
    assert refused.json["code"] == "limit_reached"
    assert "10 webhooks" in refused.json["detail"]
    assert len((await shared.get("/api/webhooks", user=user)).json["webhooks"]) == 10
    assert (await make(shared, f"{user}-other")).status == 201


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"url": "http://example.org/"}, "url"),
        ({"url": "https://127.0.0.1/"}, "url"),
        ({"url": "https://u:p@example.org/"}, "url"),
        ({"url": "https://example.org/" + "x" * 2048}, "url"),
        ({"url": "https://example.org/\ud800"}, None),
        ({"url": 5}, "url"),
        ({}, None),
        ({"url": URL, "events": ["generation.started"]}, "events"),
        ({"url": URL, "events": ["ping"]}, "events"),
        ({"url": URL, "events": "image.deleted"}, "events"),
        ({"url": URL, "secret": "whsec_AAAA"}, "secret"),
        ({"url": URL, "owner_id": "bob"}, "owner_id"),
    ],
)
async def test_what_makes_no_webhook_is_named(shared: World, user: str, body: Any, field: str | None) -> None:
    reply = await shared.request("POST", "/api/webhooks", user=user, json=body)

    assert is_problem(reply, 400, field)
    assert (await shared.get("/api/webhooks", user=user)).json["webhooks"] == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, None),
        ({"url": "http://10.0.0.1/"}, "url"),
        ({"events": ["x"]}, "events"),
        ({"state": "paused"}, "state"),
        ({"state": None}, "state"),
        ({"disabled_reason": "x"}, "disabled_reason"),
    ],
)
async def test_what_makes_no_change_is_named(shared: World, user: str, body: Any, field: str | None) -> None:
    path = await path_of(shared, user)
    before = (await shared.get(path, user=user)).body

    assert is_problem(await shared.request("PATCH", path, user=user, json=body), 400, field)
    assert (await shared.get(path, user=user)).body == before


async def test_malformed_ids_and_parameters_are_named(shared: World, user: str) -> None:
    path = await path_of(shared, user)
    for method, bad in (("GET", "x"), ("PATCH", "1"), ("DELETE", "0" * 37), ("POST", "x/test"), ("POST", "x/secret")):
        assert is_problem(await shared.request(method, f"/api/webhooks/{bad}", user=user), 400, "id")
    assert is_problem(await shared.request("POST", f"{path}/deliveries/x/replay", user=user), 400, "delivery")
    for query, field in (
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=x", "limit"),
        ("limit=5&limit=5", "limit"),
        ("state=sent", "state"),
        ("page_token=x", "page_token"),
        ("page_token=e30", "page_token"),
        ("page_token=" + "a" * 300, "page_token"),
        ("event=ping", "event"),
    ):
        assert is_problem(await shared.get(f"{path}/deliveries?{query}", user=user), 400, field)
    assert is_problem(await shared.get(f"{path}?x=1", user=user), 400, "x")
    assert is_problem(await shared.get("/api/webhooks?limit=1", user=user), 400, "limit")


async def test_what_is_not_there_is_not_found(shared: World, user: str) -> None:
    path = f"/api/webhooks/{NOBODYS}"
    for method, rest in (("GET", ""), ("DELETE", ""), ("POST", "/secret"), ("POST", "/test"), ("GET", "/deliveries")):
        assert is_problem(await shared.request(method, path + rest, user=user), 404)
    assert is_problem(await shared.request("PATCH", path, user=user, json={"state": "active"}), 404)
    own = await path_of(shared, user)
    assert is_problem(await shared.request("POST", f"{own}/deliveries/{NOBODYS}/replay", user=user), 404)


# --- what is told -----------------------------------------------------------------------------------------------------


async def test_test_is_delivered_and_logged(near: World, receiver: Receiver) -> None:
    """Whatever events were chosen. mission: 231"""
    made = await make(near, "ana", url=f"{receiver.origin}/hook", events=["credits.low"])
    path = made.headers["Location"]

    reply = await near.request("POST", f"{path}/test", user="ana")

    assert reply.status == 202
    assert (reply.json["delivery"]["event"], reply.json["delivery"]["state"]) == ("ping", "pending")
    (delivery,) = await logged(near, path, "ana", "delivered")
    (message,) = receiver.messages
    assert is_signed(message, made.json["secret"])
    assert delivery["id"] == reply.json["delivery"]["id"]
    assert delivery["event_id"] == message.id
    assert delivery["payload"] == message.json
    assert (delivery["status"], delivery["response"], delivery["attempts"]) == (200, "said 200", 1)
    assert delivery["next_attempt_at"] is None
    assert delivery["ended_at"] >= delivery["created_at"]


async def test_deleted_image_is_told_through_the_api(near: World, receiver: Receiver) -> None:
    """Into the trash, once; nothing more when the trash is emptied; at once when it goes for good. mission: 231"""
    made = await make(near, "ana", url=receiver.origin)
    one, two = await given_images(near, "ana", 2)
    await given_images(near, "bob", 1)

    assert (await near.request("DELETE", f"/api/images/{one}", user="ana")).status == 200
    assert (await near.request("DELETE", "/api/images/trash", user="ana")).status == 200
    assert (await near.request("DELETE", f"/api/images/{two}?forever=1", user="ana")).status == 200

    await logged(near, made.headers["Location"], "ana", "delivered", 2)
    told = {(m.json["data"]["id"], m.json["data"]["state"]) for m in receiver.of("image.deleted")}
    assert told == {(one, "trashed"), (two, "removed")}
    assert all(is_signed(m, made.json["secret"]) for m in receiver.messages)


async def test_what_failed_is_replayed_under_its_id(near: World, receiver: Receiver) -> None:
    receiver.answer = 500
    path = await path_of(near, "ana", url=receiver.origin)
    await near.request("POST", f"{path}/test", user="ana")
    (failed,) = await logged(near, path, "ana", "failed")
    assert (failed["attempts"], failed["status"]) == (3, 500)
    receiver.answer = 200

    reply = await near.request("POST", f"{path}/deliveries/{failed['id']}/replay", user="ana")

    assert reply.status == 202
    (delivered,) = await logged(near, path, "ana", "delivered")
    assert delivered["id"] == reply.json["delivery"]["id"] != failed["id"]
    assert delivered["event_id"] == failed["event_id"]
    assert len({message.id for message in receiver.messages}) == 1
    assert len(receiver.messages) == 4


async def test_gone_is_seen_by_the_owner_who_makes_it_active_again(near: World, receiver: Receiver) -> None:
    receiver.answer = 410
    path = await path_of(near, "ana", url=receiver.origin)
    await near.request("POST", f"{path}/test", user="ana")

    async def disabled() -> Any:
        found = (await near.get(path, user="ana")).json["webhook"]
        return found if found["state"] == "disabled" else None

    assert (await until(disabled))["disabled_reason"] == "it answered 410 Gone"
    assert is_problem(await near.request("POST", f"{path}/test", user="ana"), 400, "state")
    receiver.answer = 200
    await near.request("PATCH", path, user="ana", json={"state": "active"})
    assert (await near.request("POST", f"{path}/test", user="ana")).status == 202
    await logged(near, path, "ana", "delivered")


async def test_log_is_read_in_pages(shared: World, user: str) -> None:
    """The newest first, each once, also where many have the same time."""
    path = await path_of(shared, user)
    row_id = uuid.UUID(path.rpartition("/")[2])
    await shared.gateway.primary.fetch(
        "insert into webhook_deliveries (webhook_id, owner_id, event_id, event, payload, state, created_at, run_at) "
        "select $1, $2, gen_random_uuid(), 'ping', '{\"n\": ' || n || '}', "
        "case when n % 3 = 0 then 'failed' else 'delivered' end, "
        "timestamptz '2026-01-01Z' + make_interval(secs => n / 10), now() from generate_series(1, 45) n",
        row_id, user,
    )  # fmt: skip

    async def walk(query: str) -> list[Any]:
        found, token = [], ""
        while True:
            reply = await shared.get(f"{path}/deliveries?{query}{token}", user=user)
            assert reply.status == 200, reply
            found += reply.json["deliveries"]
            if reply.json["next_page_token"] is None:
                return found
            token = f"&page_token={reply.json['next_page_token']}"

    everything = await walk("limit=7")
    assert len({d["id"] for d in everything}) == len(everything) == 45
    assert [d["created_at"] for d in everything] == sorted((d["created_at"] for d in everything), reverse=True)
    assert {d["payload"]["n"] for d in await walk("limit=5&state=failed")} == set(range(3, 46, 3))
    assert len((await shared.get(f"{path}/deliveries", user=user)).json["deliveries"]) == 45


async def test_a_hundred_that_wait_are_enough(shared: World, user: str) -> None:
    """Nobody sends to somebody's server through us as often as they like."""
    path = await path_of(shared, user)
    statuses = [(await shared.request("POST", f"{path}/test", user=user)).status for _ in range(102)]

    assert statuses == [202] * 100 + [409] * 2
    waiting = (await shared.get(f"{path}/deliveries?limit=1", user=user)).json["deliveries"][0]
    reply = await shared.request("POST", f"{path}/deliveries/{waiting['id']}/replay", user=user)
    assert (reply.status, reply.json["code"]) == (409, "limit_reached")


async def test_secrets_are_in_no_log_line(near: World, receiver: Receiver, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither the gateway's nor the sender's. mission: 209"""
    canary = "canary-1f4c"
    made = await make(near, "ana", url=f"{receiver.origin}/{canary}?token={canary}")
    path = made.headers["Location"]
    rotated = await near.request("POST", f"{path}/secret", user="ana")
    await near.request("POST", f"{path}/test", user="ana")
    await logged(near, path, "ana", "delivered")

    out, err = capfd.readouterr()

    assert "webhook.sent" in out + err
    for secret in (made.json["secret"], rotated.json["secret"], canary):
        assert secret.removeprefix("whsec_") not in out + err
