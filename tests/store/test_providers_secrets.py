"""Keys, and what a call leaves in the log: one line, and no secret anywhere."""

from __future__ import annotations

import hashlib
import json
import logging
import traceback
from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from store.generation import errors
from store.generation.providers import Task
from tests.fakes.providers import KEY
from tests.fakes.providers_world import CANARY, MODEL_OF, ProvidersWorld, opened

ALL = sorted(MODEL_OF)
REMOTE = sorted(set(MODEL_OF) - {"builtin"})


@pytest.fixture
async def world() -> AsyncIterator[ProvidersWorld]:
    async with opened() as made:
        yield made


@pytest.mark.parametrize("provider", REMOTE)
async def test_without_a_key_the_setting_is_named(provider: str) -> None:
    """mission: 66"""
    async with opened(**{f"{provider}_key": ""}) as world:
        assert not world.providers[provider].has_key
        with pytest.raises(errors.ProviderAccount, match=f"PERUSE_{provider.upper()}_KEY"):
            await world.submit(world.request(provider))
        assert world.fake.calls == []


@pytest.mark.parametrize("provider", REMOTE)
@pytest.mark.parametrize("key", ["acc:canary-key\r\nX-Evil=1", "acc:canary-kéy", "acc:canary-key\n"])
async def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(
    world: ProvidersWorld, provider: str, key: str
) -> None:
    """mission: 209"""
    with pytest.raises(errors.ProviderAccount, match="no key has") as caught:
        await world.providers[provider].submit(world.request(provider), key=SecretStr(key))

    assert "canary-k" not in "".join(traceback.format_exception(caught.value))
    assert world.fake.calls == []


@pytest.mark.parametrize("provider", REMOTE)
async def test_a_users_own_key_is_used_for_every_call(world: ProvidersWorld, provider: str) -> None:
    own = "own-account:own-key-1" if provider == "workers_ai" else "own-key-1"
    adapter = world.providers[provider]

    found = await adapter.submit(world.request(provider), key=SecretStr(own))
    if isinstance(found, Task):
        await adapter.poll(found, key=SecretStr(own))
        await adapter.cancel(found, key=SecretStr(own))

    assert {call.key_sha for call in world.fake.calls} == {hashlib.sha256(b"own-key-1").hexdigest()[:12]}


@pytest.mark.parametrize("provider", ALL)
async def test_every_call_is_one_line(world: ProvidersWorld, provider: str) -> None:
    """mission: 216"""
    with capture_logs() as lines:
        found = await world.submit(world.request(provider))
        if isinstance(found, Task):
            await world.finish(found)

    assert {line["event"] for line in lines} == {"provider.called"}
    assert len(lines) == max(1, len(world.fake.calls))
    for line in lines:
        assert (line["provider"], line["model"], line["code"]) == (provider, MODEL_OF[provider], "ok")
        assert line["took_ms"] >= 0
        assert {"status", "cost_usd", "call"} <= line.keys()


@pytest.mark.parametrize("provider", REMOTE)
async def test_a_call_that_fails_is_one_line_that_says_how(world: ProvidersWorld, provider: str) -> None:
    """In the provider's words, with what an operator needs to find it.

    mission: 57
    """
    world.fake.script(provider, "status 429 2")

    with capture_logs() as lines, pytest.raises(errors.RateLimited):
        await world.submit(world.request(provider))

    [line] = lines
    assert (line["log_level"], line["status"], line["code"]) == ("warning", 429, "rate_limited")
    assert line["detail"].startswith("status 429: ")


@pytest.mark.parametrize("provider", REMOTE)
@pytest.mark.parametrize(
    "script", ["ok", "status 400", "status 500", "reset", "html_200", "bad_key", "policy", "no_funds"]
)
async def test_no_secret_leaves_in_a_line_or_a_message(
    world: ProvidersWorld, provider: str, script: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither our key, nor a user's, nor the prompt, nor the secret in a callback's address; in no logger of ours.

    mission: 209
    """
    own, callback = "own-account-1:own-canary-key", "http://127.0.0.1:9/back/canary-callback-77"
    caplog.set_level(logging.DEBUG)
    said: list[str] = []

    with capture_logs() as lines:
        for key in (None, SecretStr(own)):
            world.fake.script(provider, script, script)
            try:
                found = await world.providers[provider].submit(world.request(provider, callback_url=callback), key=key)
                said.append(repr(found))
            except errors.GenerationError as error:
                said += [str(error), repr(error), error.advice]

    text = json.dumps(lines) + caplog.text
    for secret in (KEY, "own-canary-key", "canary-callback-77", CANARY):
        assert secret not in text
        assert secret not in " ".join(said)
