"""Every way in which a provider behaves: a job ends in the right state, with nothing paid that was not delivered."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from store.objects.picture_process import PictureProcess
from store.primary import Primary
from tests.generation.jobs_world import JobsWorld, jobs_world

_ALL = ("workers_ai", "openai", "openrouter", "nanobanana", "replicate", "fal")
_AT_ONCE, _TASKS = _ALL[:3], _ALL[3:]

#: Script → error of a job whose calls all go like this; None: it is completed.
_EVERYWHERE = {
    "slow 0.2": None,
    "hang": {"timeout"},
    "status 400": {"invalid_request"},
    "status 429 0": {"rate_limited"},
    "status 500": {"unknown_outcome", "provider_failed"},
    "status 503": {"provider_unavailable"},
    "html_502": {"provider_unavailable", "provider_failed", "unknown_outcome"},
    "html_200": {"bad_answer"},
    "wrong_type": {"bad_answer"},
    "reset": {"unknown_outcome"},
    "reset_mid": {"unknown_outcome"},
    "accepted_then_hang": {"timeout"},
    "accepted_then_reset": {"unknown_outcome"},
    "drip": {"timeout"},
    "huge": {"bad_answer"},
    "bad_key": {"provider_account"},
    "no_funds": {"provider_account"},
    "policy": {"content_policy", "invalid_request"},
}
_PICTURES = {
    "truncated_base64": {"bad_answer"},
    "not_an_image": {"bad_answer"},
    "empty": {"no_image", "bad_answer", "content_policy"},
    "error_200": {"provider_failed", "provider_unavailable", "no_image", "rate_limited"},
}
_OF_TASKS = {
    "task_polls 4": None,
    "task_never": {"timeout"},
    "task_fails": {"provider_failed"},
    "task_policy": {"content_policy"},
    "task_empty": {"no_image"},
    "task_canceled": {"canceled", "provider_failed"},
    "poll_fails 3": None,
    "no_id": {"bad_answer"},
    "callback_never": None,
    "callback_twice": None,
}
_CASES = [
    *[(provider, script, code) for script, code in _EVERYWHERE.items() for provider in _ALL],
    *[(provider, script, code) for script, code in _PICTURES.items() for provider in _AT_ONCE],
    *[(provider, script, code) for script, code in _OF_TASKS.items() for provider in _TASKS],
]
_REPEATED = {"rate_limited", "provider_unavailable", "provider_failed", "unknown_outcome", "timeout", "bad_answer"}


@pytest.fixture
async def hasty(primary: Primary, tmp_path: Path, pictures: PictureProcess) -> AsyncIterator[JobsWorld]:
    """Providers that are given up after less than a second."""
    given = {"deadline_s": 0.6, "provider_look_s": 0.6, "provider_max_bytes": 2**22}
    async with jobs_world(primary, tmp_path, pictures, **given) as made:
        yield made


@pytest.mark.parametrize("script", list({script: None for _, script, _ in _CASES}))
async def test_a_provider_that_always_does_it(hasty: JobsWorld, script: str) -> None:
    """Whatever a provider always answers, the job of each that can ends: completed and paid, or failed and given back,
    with the reason, and an outcome that nobody knows is repeated at most once."""
    expected = {provider: code for provider, name, code in _CASES if name == script}
    jobs = {provider: await hasty.add(provider, f"[[{script}]] {provider}") for provider in expected}
    hasty.start()
    for provider, row in zip(expected, await hasty.ended(*jobs.values()), strict=True):
        codes = expected[provider]
        found = f"{provider}: {row['state']} {row['error_code']} {row['response_data']}"
        assert row["state"] == ("completed" if codes is None else "failed"), found
        assert row["error_code"] in (codes or {None}), found
        states = [attempt["state"] for attempt in await hasty.attempts(jobs[provider])]
        assert states.count("unknown") <= 2, found
        assert len(states) == (4 if row["error_code"] in ("rate_limited", "provider_unavailable") else len(states))
        if codes is not None and row["error_code"] not in _REPEATED:
            assert len(states) == 1, found
    await hasty.assert_objects()


@pytest.mark.parametrize("script", [script for script, codes in {**_EVERYWHERE, **_OF_TASKS}.items() if codes])
async def test_a_provider_that_does_it_once(hasty: JobsWorld, script: str) -> None:
    """What may pass is tried again and becomes an image; what the provider decided is not, and is given back."""
    expected = {provider: codes or set() for provider, name, codes in _CASES if name == script}
    jobs = {provider: await hasty.add(provider, f"[[{script}; ok]] {provider}") for provider in expected}
    hasty.start()
    for provider, row in zip(expected, await hasty.ended(*jobs.values()), strict=True):
        found = f"{provider}: {row['state']} {row['error_code']} {row['response_data']}"
        if row["state"] == "completed":
            assert expected[provider] & _REPEATED, found
        else:
            assert row["error_code"] in expected[provider] - _REPEATED, found
    await hasty.assert_objects()
