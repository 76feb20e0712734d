"""The user's own provider keys over HTTP: they go in, and are seen nowhere again."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from store.logs import configure
from store.own_keys import own_key
from store.sealing import open_sealer
from tests.gateway.asking import running
from tests.gateway.listening import listening
from tests.world import Reply, World

KEYS = "/api/provider-keys"
CANARY = "canary-8e2f51c0"
KEY = f"sk-{CANARY}-0000-4242"


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """Everything that is logged, as a production process writes it."""
    out = io.StringIO()
    kept = structlog.get_config()
    configure(process="test", level="debug", stream=out)
    structlog.configure(cache_logger_on_first_use=False)
    yield out
    structlog.configure(**kept)


async def put(world: World, user: str, provider: str, body: Any) -> Reply:
    return await world.request("PUT", f"{KEYS}/{provider}", user=user, json=body)


async def test_a_key_is_kept_and_only_its_end_is_shown(shared: World, user: str) -> None:
    """mission: 4"""
    kept = await put(shared, user, "openai", {"key": KEY})
    await put(shared, user, "fal", {"key": "f" * 20})
    listed = await shared.get(KEYS, user=user)

    assert kept.status == 200
    assert kept.json["provider_key"].keys() == {"provider", "hint", "created_at"}
    assert (kept.json["provider_key"]["provider"], kept.json["provider_key"]["hint"]) == ("openai", "4242")
    assert listed.headers["Cache-Control"] == "no-store"
    assert [key["provider"] for key in listed.json["provider_keys"]] == ["fal", "openai"]
    assert listed.json["provider_keys"][1] == kept.json["provider_key"]
    assert listed.json["next_page_token"] is None
    async with shared.gateway.primary.connection() as connection:
        secret = await own_key(connection, open_sealer(shared.data), user, "openai")
    assert secret is not None
    assert secret.get_secret_value() == KEY


async def test_with_a_key_of_their_own_a_user_needs_neither_ours_nor_credits(shared: World, user: str) -> None:
    """The provider bills them: the model is there, and costs no credits. Without the key it is not there again."""
    body = {"prompt": "a heron", "model": "openai/dall-e-3"}
    before = await shared.request("POST", "/api/generations", user=user, json=body)
    await put(shared, user, "openai", {"key": KEY})
    with_key = await shared.request("POST", "/api/generations", user=user, json=body)
    gone = await shared.request("DELETE", f"{KEYS}/openai", user=user)
    after = await shared.request("POST", "/api/generations", user=user, json=body)

    assert [reply.status for reply in (before, with_key, gone, after)] == [409, 202, 200, 409]
    assert with_key.json["generation"]["own_key"] is True
    assert with_key.json["generation"]["cost_credits"] == 0
    assert (await shared.get("/api/account/ledger", user=user)).json["lines"] == []


@pytest.mark.parametrize(
    ("provider", "body", "status", "code"),
    [
        ("builtin", {"key": KEY}, 404, "not_found"),
        ("nobody", {"key": KEY}, 404, "not_found"),
        ("openai", {"key": "short"}, 400, "invalid_request"),
        ("openai", {"key": f"{KEY} "}, 400, "invalid_request"),
        ("openai", {"key": None}, 400, "invalid_request"),
        ("openai", {"key": [KEY]}, 400, "invalid_request"),
        ("openai", {}, 400, "invalid_request"),
        ("openai", {"key": KEY, "name": "x"}, 400, "invalid_request"),
        ("openai", KEY, 400, "invalid_request"),
        ("workers_ai", {"key": KEY}, 400, "invalid_request"),
    ],
)
async def test_what_is_no_key_of_a_provider_is_refused_without_showing_it(
    shared: World, user: str, logged: io.StringIO, provider: str, body: Any, status: int, code: str
) -> None:
    """Neither in the reply nor in the log."""
    reply = await put(shared, user, provider, body)

    assert (reply.status, reply.json["code"]) == (status, code), reply
    assert CANARY.encode() not in reply.body
    assert CANARY not in logged.getvalue()
    assert (await shared.get(KEYS, user=user)).json["provider_keys"] == []


async def test_a_key_that_is_not_there_cannot_be_deleted(shared: World, user: str) -> None:
    """404, as for a provider that is none."""
    for provider in ("openai", "nobody", "builtin"):
        reply = await shared.request("DELETE", f"{KEYS}/{provider}", user=user)
        assert (reply.status, reply.json["code"]) == (404, "not_found")


async def test_no_key_is_ever_logged_told_or_listed(database: str, tmp_path: Path, logged: io.StringIO) -> None:
    """Not in the access log, not with an error of ours and its traceback, not to listeners, not at any other address,
    and in no file but as what nobody can read. mission: 209"""
    made = World(tmp_path / "data", database, access_log="all")
    async with running(made) as world:
        async with listening(world, "ana") as listener:
            await listener.begun()
            good = await put(world, "ana", "openai", {"key": KEY})
            changed = await world.request("PATCH", "/api/account", json={"day_budget_credits": 5})
            message = await listener.next()
        bad = await put(world, "ana", "openai", {"key": f"{KEY}\n"})
        seen = [
            await world.get(path)
            for path in (
                KEYS,
                "/api/models",
                "/api/images",
                "/api/templates",
                "/api/model-settings",
                "/api/account/ledger",
            )
        ]
        seen.append(await world.get("/admin/users", user="boss", role="admin"))
        seen.append(await world.get("/metrics", user=None))
        await world.gateway.primary.fetch("alter table provider_keys rename to provider_keys_away")
        broken = await put(world, "ana", "openai", {"key": KEY})

        assert (good.status, changed.status, bad.status, broken.status) == (200, 200, 400, 500)
        for reply in (good, changed, bad, broken, *seen):
            assert CANARY.encode() not in reply.body + repr(reply.headers).encode()
        assert CANARY not in repr(message)
    said = logged.getvalue()
    events = [json.loads(line)["event"] for line in said.splitlines()]
    assert "request.failed" in events, "the traceback is there to look at"
    assert events.count("request") >= 5
    assert CANARY not in said
    for path in (tmp_path / "data").rglob("*"):
        assert not (path.is_file() and CANARY.encode() in path.read_bytes()), path
