"""What every provider does alike: draw, refuse, fail in our words, log one line, keep secrets."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import AsyncIterator

import pytest
from PIL import Image
from structlog.testing import capture_logs

from store.generation import errors
from store.generation.providers import Task
from store.objects.pictures import prepare
from tests.fakes.providers_world import MODEL_OF, ProvidersWorld, opened

ALL = sorted(MODEL_OF)
REMOTE = sorted(set(MODEL_OF) - {"builtin"})
DIRECT = ["openai", "openrouter", "workers_ai"]
WITH_TASKS = ["fal", "nanobanana", "replicate"]


@pytest.fixture
async def world() -> AsyncIterator[ProvidersWorld]:
    async with opened() as made:
        yield made


@pytest.fixture
async def hasty() -> AsyncIterator[ProvidersWorld]:
    """Everything is given up after a third of a second."""
    async with opened(deadline_s=0.3, provider_look_s=0.3) as made:
        yield made


@pytest.mark.parametrize("provider", ALL)
async def test_a_picture_is_drawn(world: ProvidersWorld, provider: str) -> None:
    """Bytes, base64 and addresses all end as a whole picture.

    mission: 1, 2, 3, 8, 12, 20, 21, 28
    """
    done = await world.draw(world.request(provider))

    [output] = done.outputs
    data = await world.bytes_of(output)
    found = prepare(data)
    assert found.content_type in ("image/png", "image/jpeg")
    if world.models.of(MODEL_OF[provider]).limits.has_seed:
        assert output.seed == 7
    if provider in ("builtin", "fal", *DIRECT):
        assert Image.open(io.BytesIO(data)).size == (512, 512)


@pytest.mark.parametrize("provider", ALL)
async def test_the_same_seed_draws_the_same_picture(world: ProvidersWorld, provider: str) -> None:
    if not world.models.of(MODEL_OF[provider]).limits.has_seed:
        provider = "builtin"
    request = world.request(provider, seed=4294967295)

    first, second = [await world.draw(request), await world.draw(request)]

    assert await world.bytes_of(first.outputs[0]) == await world.bytes_of(second.outputs[0])
    assert first.outputs[0].seed == 4294967295


@pytest.mark.parametrize("provider", REMOTE)
async def test_a_request_is_sent_once(world: ProvidersWorld, provider: str) -> None:
    await world.draw(world.request(provider))

    assert len(world.fake.made(provider)) == len(world.fake.drawn) == 1


@pytest.mark.parametrize("provider", ALL)
@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"prompt": " "}, "prompt"),
        ({"width": 100_000}, "width"),
        ({"steps": 1000}, "steps"),
        ({"n": 0}, "n"),
        ({"options": {"made_up": 1}}, "made_up"),
    ],
)
async def test_a_wrong_request_is_refused_before_it_is_sent(
    world: ProvidersWorld, provider: str, fields: dict[str, object], field: str
) -> None:
    """mission: 25, 49"""
    with pytest.raises(errors.InvalidRequest) as caught:
        await world.submit(world.request(provider, **fields))

    assert caught.value.field == field
    assert world.fake.calls == []


@pytest.mark.parametrize("provider", REMOTE)
@pytest.mark.parametrize(
    ("script", "kind", "status"),
    [
        ("status 400", errors.InvalidRequest, 400),
        ("status 402", errors.ProviderAccount, 402),
        ("status 404", errors.InvalidRequest, 404),
        ("status 408", errors.UnknownOutcome, 408),
        ("status 413", errors.InvalidRequest, 413),
        ("status 422", errors.InvalidRequest, 422),
        ("status 429 2", errors.RateLimited, 429),
        ("status 500", errors.ProviderFailed, 500),
        ("status 502", errors.Unavailable, 502),
        ("status 503 7", errors.Unavailable, 503),
        ("status 504", errors.UnknownOutcome, 504),
        ("status 302", errors.BadAnswer, 302),
        ("bad_key", errors.ProviderAccount, None),
        ("no_funds", errors.ProviderAccount, None),
        ("html_502", errors.Unavailable, 502),
        ("html_200", errors.BadAnswer, 200),
        ("wrong_type", errors.BadAnswer, 200),
        ("reset", errors.UnknownOutcome, None),
        ("reset_mid", errors.UnknownOutcome, None),
        ("accepted_then_reset", errors.UnknownOutcome, None),
    ],
)
async def test_every_failure_is_an_error_of_ours(
    world: ProvidersWorld, provider: str, script: str, kind: type[errors.GenerationError], status: int | None
) -> None:
    """mission: 26, 45, 47, 48, 65"""
    # OpenRouter is asked a second way when the first knows no such model.
    world.fake.script(provider, script, script)

    with pytest.raises(errors.GenerationError) as caught:
        await world.submit(world.request(provider))

    error = caught.value
    assert type(error) is kind
    assert (error.provider, error.model) == (provider, MODEL_OF[provider])
    assert status is None or error.status == status
    if script in ("status 429 2", "status 503 7"):
        assert error.retry_after_s == float(script[-1])
    assert error.error == "Failed to generate image"
    assert error.advice
    assert error.code


@pytest.mark.parametrize("provider", REMOTE)
@pytest.mark.parametrize("script", ["hang", "drip"])
async def test_a_provider_that_does_not_end_is_given_up(hasty: ProvidersWorld, provider: str, script: str) -> None:
    """Also one that always has another byte to send.

    mission: 24, 46
    """
    hasty.fake.script(provider, script)
    started = time.monotonic()

    with pytest.raises(errors.TimedOut, match=r"gave no answer within 0\.3 s"):
        await hasty.submit(hasty.request(provider))

    assert time.monotonic() - started < 5


@pytest.mark.parametrize("provider", REMOTE)
async def test_an_endless_answer_is_cut(provider: str) -> None:
    """By its bytes, with plenty of time left."""
    async with opened(provider_max_bytes=100_000) as world:
        world.fake.script(provider, "huge")

        with pytest.raises(errors.BadAnswer, match="more than 100000 bytes"):
            await world.submit(world.request(provider))


@pytest.mark.parametrize("provider", REMOTE)
async def test_work_that_was_taken_before_the_answer_was_lost_is_an_unknown_outcome(
    hasty: ProvidersWorld, provider: str
) -> None:
    hasty.fake.script(provider, "accepted_then_hang")

    with pytest.raises(errors.UnknownOutcome):
        await hasty.submit(hasty.request(provider))

    assert hasty.fake.drawn or hasty.fake.tasks.all


@pytest.mark.parametrize("provider", DIRECT)
@pytest.mark.parametrize(
    ("script", "kind"),
    [
        ("not_an_image", errors.BadAnswer),
        ("truncated_base64", errors.BadAnswer),
        ("empty", (errors.NoImage, errors.BadAnswer)),
        ("error_200", errors.GenerationError),
        ("policy", errors.ContentPolicy),
    ],
)
async def test_an_answer_without_a_picture_is_an_error(
    world: ProvidersWorld, provider: str, script: str, kind: type[errors.GenerationError]
) -> None:
    """mission: 22, 50"""
    world.fake.script(provider, script)

    with pytest.raises(kind):
        await world.submit(world.request(provider))


@pytest.mark.parametrize("provider", REMOTE)
async def test_a_provider_that_is_away_is_unavailable(provider: str) -> None:
    """Nothing listens: nothing was sent, so nothing was drawn."""
    async with opened(**{f"{provider}_url": "http://127.0.0.1:9"}) as world:
        with pytest.raises(errors.Unavailable, match="could not be reached"):
            await world.submit(world.request(provider))


@pytest.mark.parametrize("provider", REMOTE)
async def test_an_abandoned_call_closes_its_connection(world: ProvidersWorld, provider: str) -> None:
    """A worker that loses its lease cancels the call; the next one is not disturbed."""
    world.fake.script(provider, "hang", "ok")
    with capture_logs() as lines:
        call = asyncio.create_task(world.submit(world.request(provider)))
        while not world.fake.calls:
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    assert [line["code"] for line in lines] == ["abandoned"]
    assert (await world.draw(world.request(provider))).outputs


@pytest.mark.parametrize("provider", ["openai", "fal"])
async def test_calls_wait_side_by_side(world: ProvidersWorld, provider: str) -> None:
    """mission: 42"""
    world.fake.script(provider, *["slow 0.5"] * 40)
    started = time.monotonic()

    await asyncio.gather(*(world.submit(world.request(provider)) for _ in range(40)))

    assert time.monotonic() - started < 10


@pytest.mark.parametrize("provider", ["builtin", *DIRECT])
async def test_without_tasks_there_is_nothing_to_resume(world: ProvidersWorld, provider: str) -> None:
    adapter, task = world.providers[provider], Task(provider, MODEL_OF[provider], "1")

    assert not adapter.capabilities.has_tasks
    assert not await adapter.cancel(task)
    with pytest.raises(errors.NoSuchTask):
        adapter.resume(task.model, task.id)
    with pytest.raises(errors.NoSuchTask):
        await adapter.poll(task)
    with pytest.raises(errors.BadCallback):
        await adapter.called_back({}, b"{}")
