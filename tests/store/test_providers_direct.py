"""What is particular to Workers AI, OpenAI and OpenRouter."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal

import pytest
from pydantic import SecretStr

from store.generation import errors
from store.generation.providers import Done, Reference
from tests.fakes.providers_pictures import picture
from tests.fakes.providers_world import ProvidersWorld, opened

PICTURE = Reference(picture("a start", 1, 64, 64), "image/png")
FLUX_1 = "@cf/black-forest-labs/flux-1-schnell"
FLUX_2 = "@cf/black-forest-labs/flux-2-dev"


@pytest.fixture
async def world() -> AsyncIterator[ProvidersWorld]:
    async with opened(more={"acme/chat-only": "google/gemini-2.5-flash-image"}) as made:
        yield made


async def draw_one(world: ProvidersWorld, model: str, **fields: object) -> tuple[dict[str, object], bytes]:
    """What was sent, and what came."""
    done = await world.draw(world.request(model, **fields))
    call = world.fake.calls[-1]
    return call.fields, await world.bytes_of(done.outputs[0])


@pytest.mark.parametrize(
    ("model", "start"),
    [
        ("@cf/stabilityai/stable-diffusion-xl-base-1.0", b"\x89PNG"),
        ("@cf/lykon/dreamshaper-8-lcm", b"\x89PNG"),
        ("@cf/leonardo/phoenix-1.0", b"\xff\xd8\xff"),
        ("@cf/leonardo/lucid-origin", b"\xff\xd8\xff"),
        (FLUX_2, b"\xff\xd8\xff"),
    ],
)
async def test_workers_ai_answers_bytes_or_base64(world: ProvidersWorld, model: str, start: bytes) -> None:
    """mission: 1, 6, 21"""
    fields, data = await draw_one(world, model)

    assert data.startswith(start)
    assert world.fake.calls[-1].path == f"/cf/client/v4/accounts/fake-account/ai/run/{model}"
    assert str(fields["seed"]) == "7"


async def test_steps_and_seed_are_sent_by_the_names_of_workers_ai(world: ProvidersWorld) -> None:
    """Twenty steps when none are said.

    mission: 10, 11
    """
    fields, _ = await draw_one(world, "workers_ai", seed=4294967295, negative_prompt="fog", options={"guidance": 5})
    assert fields["num_steps"] == 20
    assert fields["seed"] == 4294967295
    assert fields["negative_prompt"] == "fog"
    assert fields["guidance"] == 5

    fields, _ = await draw_one(world, "workers_ai", steps=12)
    assert fields["num_steps"] == 12


async def test_flux_1_is_sent_nothing_that_its_schema_refuses(world: ProvidersWorld) -> None:
    fields, _ = await draw_one(world, FLUX_1, width=1024, height=1024, steps=8)

    assert fields.keys() == {"prompt", "steps"}
    with pytest.raises(errors.InvalidRequest, match="takes 1 to 8"):
        await world.submit(world.request(FLUX_1, width=1024, height=1024, steps=9))


async def test_flux_2_is_sent_a_form_with_its_references(world: ProvidersWorld) -> None:
    fields, _ = await draw_one(world, FLUX_2, references=(PICTURE, PICTURE), steps=20)

    assert fields["width"] == "512"
    assert fields["steps"] == "20"
    assert fields["input_image_0"] == fields["input_image_1"] == {"bytes": len(PICTURE.data)}


async def test_a_used_up_day_is_not_tried_again_though_it_is_429(world: ProvidersWorld) -> None:
    world.fake.script("workers_ai", "no_funds")

    with pytest.raises(errors.ProviderAccount) as caught:
        await world.submit(world.request("workers_ai"))

    assert caught.value.status == 429


async def test_an_error_of_workers_ai_at_status_200_is_an_error(world: ProvidersWorld) -> None:
    world.fake.script("workers_ai", "error_200")

    with pytest.raises(errors.RateLimited, match="Capacity temporarily exceeded"):
        await world.submit(world.request(FLUX_1, width=1024, height=1024))


async def test_an_own_key_of_workers_ai_brings_its_account(world: ProvidersWorld) -> None:
    adapter = world.providers["workers_ai"]

    await adapter.submit(world.request("workers_ai"), key=SecretStr("acc-7:token-7"))
    assert world.fake.calls[-1].path.startswith("/cf/client/v4/accounts/acc-7/")

    for wrong in ("token-7", "../x:token-7"):
        with pytest.raises(errors.ProviderAccount, match="account:token"):
            await adapter.submit(world.request("workers_ai"), key=SecretStr(wrong))
    assert len(world.fake.calls) == 1


async def test_dall_e_is_asked_for_bytes_and_the_others_never(world: ProvidersWorld) -> None:
    """mission: 7"""
    fields, _ = await draw_one(world, "openai/dall-e-3", width=1792, height=1024)
    assert fields == {**fields, "model": "dall-e-3", "size": "1792x1024", "response_format": "b64_json"}

    fields, _ = await draw_one(
        world, "openai/gpt-image-1", width=1536, height=1024, options={"background": "transparent"}
    )
    assert "response_format" not in fields
    assert (fields["quality"], fields["background"]) == ("medium", "transparent")


async def test_an_address_of_dall_e_is_fetched(world: ProvidersWorld) -> None:
    """mission: 20"""
    world.fake.script("openai", "as_url")

    done = await world.draw(world.request("openai"))

    assert done.outputs[0].url
    assert done.outputs[0].revised_prompt.startswith("revised a red panda")
    assert (await world.bytes_of(done.outputs[0])).startswith(b"\x89PNG")


async def test_several_pictures_in_one_call(world: ProvidersWorld) -> None:
    """mission: 13"""
    done = await world.draw(world.request("openai", n=3))

    assert len(done.outputs) == len(world.fake.drawn) == 3
    assert len(world.fake.calls) == 1


async def test_references_go_to_edits(world: ProvidersWorld) -> None:
    fields, _ = await draw_one(world, "openai/gpt-image-1", width=1024, height=1024, references=(PICTURE,))

    assert world.fake.calls[-1].path == "/openai/v1/images/edits"
    assert fields["image"] == {"bytes": len(PICTURE.data)}
    assert fields["model"] == "gpt-image-1"

    fields, _ = await draw_one(world, "openai/gpt-image-1", width=1024, height=1024, references=(PICTURE, PICTURE))
    assert "image[]" in fields


async def test_our_unpaid_bill_at_openai_is_not_the_users_mistake(world: ProvidersWorld) -> None:
    """It comes as 400, like a wrong request."""
    world.fake.script("openai", "no_funds")

    with pytest.raises(errors.ProviderAccount) as caught:
        await world.submit(world.request("openai"))

    assert caught.value.status == 400


async def test_openrouter_says_what_it_cost(world: ProvidersWorld) -> None:
    """To the last digit.

    mission: 2
    """
    done = await world.draw(world.request("openrouter"))

    assert done.cost_usd == Decimal("0.04")
    assert world.fake.calls[-1].fields["size"] == "512x512"


async def test_a_model_of_proportions_is_asked_for_proportions(world: ProvidersWorld) -> None:
    fields, _ = await draw_one(world, "google/gemini-2.5-flash-image", width=1344, height=768)

    assert fields["aspect_ratio"] == "16:9"
    assert "size" not in fields


async def test_a_model_that_the_image_endpoint_does_not_know_is_asked_by_chat(world: ProvidersWorld) -> None:
    """mission: 2"""
    done = await world.draw(world.request("acme/chat-only", width=1024, height=1024, references=(PICTURE,)))

    first, second = world.fake.calls
    assert (first.path, second.path) == ("/openrouter/api/v1/images", "/openrouter/api/v1/chat/completions")
    text, image = second.fields["messages"][0]["content"]
    assert text["type"] == "text"
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    assert second.fields["modalities"] == ["image", "text"]
    assert done.outputs[0].data
    assert done.cost_usd == Decimal("0.038")
    assert len(world.fake.drawn) == 1


async def test_a_refusal_in_chat_is_a_refusal(world: ProvidersWorld) -> None:
    """Status 200, no picture, some words: trying again would pay again.

    mission: 22, 50
    """
    world.fake.script("openrouter", "ok", "empty")

    with pytest.raises(errors.ContentPolicy, match="I cannot draw this"):
        await world.submit(world.request("acme/chat-only", width=1024, height=1024))


@pytest.mark.parametrize(
    ("script", "kind"),
    [("error_200", errors.ProviderFailed), ("empty", errors.NoImage), ("policy", errors.ContentPolicy)],
)
async def test_openrouters_ways_of_saying_no(
    world: ProvidersWorld, script: str, kind: type[errors.GenerationError]
) -> None:
    world.fake.script("openrouter", script)

    with pytest.raises(kind):
        await world.submit(world.request("openrouter"))


@pytest.mark.parametrize("model", ["builtin", "workers_ai", "openai", "openrouter"])
async def test_a_script_can_come_with_the_prompt(world: ProvidersWorld, model: str) -> None:
    """So that a whole product, in other processes, can be put through everything."""
    if model == "builtin":
        assert isinstance(await world.submit(world.request(model, "x [[status 503; ok]]")), Done)
        return
    request = world.request(model, "a fox [[status 503; status 429 1; ok]]")

    with pytest.raises(errors.Unavailable):
        await world.submit(request)
    with pytest.raises(errors.RateLimited):
        await world.submit(request)
    assert await world.submit(request)
    assert len(world.fake.drawn) == 1
