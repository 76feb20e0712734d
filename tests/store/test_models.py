"""The table of models, what may be asked of them, and how a request becomes calls."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.generation.errors import InvalidRequest, PromptRequired
from store.generation.limits import MAX_SEED, Limits, Steps, aspect, calls
from store.generation.models import DOCUMENTS_MODEL, SQUARES, TABLE, Models
from store.generation.providers import Reference, Request
from tests.fakes.providers_world import MODEL_OF

MODELS = Models()
SDXL = MODELS[DOCUMENTS_MODEL].limits


def asked(**fields: object) -> Request:
    return msgspec.structs.replace(Request(model="m", prompt="a fox", width=1024, height=1024), **fields)


def test_every_model_has_a_provider_and_a_name_of_its_own() -> None:
    assert len(MODELS) == len(TABLE)
    assert {model.provider for model in TABLE} == set(MODEL_OF)
    assert len({model.name for model in TABLE}) == len(TABLE)


def test_the_documents_models_are_there() -> None:
    """mission: 5, 6, 7"""
    for id in (DOCUMENTS_MODEL, "@cf/lykon/dreamshaper-8-lcm", "openai/dall-e-3", "openai/dall-e-2"):
        assert id in MODELS
    assert DOCUMENTS_MODEL == "@cf/stabilityai/stable-diffusion-xl-base-1.0"
    assert MODELS["openai/dall-e-3"].remote == "dall-e-3"


def test_the_default_is_the_wish_then_the_documents_model_then_builtin() -> None:
    """mission: 5"""
    assert MODELS.default("openai/dall-e-3", {"workers_ai"}) == "openai/dall-e-3"
    assert MODELS.default("", {"workers_ai", "openai"}) == DOCUMENTS_MODEL
    assert MODELS.default("", {"openai"}) == "builtin"
    with pytest.raises(InvalidRequest, match="no model 'nothing'"):
        MODELS.default("nothing", ())


def test_a_model_can_be_like_another() -> None:
    more = Models({"openai/gpt-image-9": "openai/gpt-image-1"})

    assert more["openai/gpt-image-9"].limits == MODELS["openai/gpt-image-1"].limits
    assert more["openai/gpt-image-9"].remote == "gpt-image-9"
    assert "openai/gpt-image-9" not in MODELS


def test_the_table_can_be_told_as_json() -> None:
    told = msgspec.json.decode(msgspec.json.encode(MODELS["nanobanana"]))

    assert told["limits"]["sizes"] == [[512, 512], [768, 768], [1024, 1024], [1536, 1536]]


@pytest.mark.parametrize("model", TABLE, ids=lambda model: model.id)
def test_every_model_draws_a_square(model: object) -> None:
    """One megapixel is what everybody asks for; each table entry accepts it."""
    model.limits.check(asked(model=model.id))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("px", "low_s", "high_s", "deadline_s"),
    [(512, 15, 30, 60), (768, 25, 45, 120), (1024, 45, 90, 180), (1536, 120, 300, 360)],
)
def test_the_documents_times_hold_for_each_size(px: int, low_s: float, high_s: float, deadline_s: float) -> None:
    """mission: 24, 27"""
    pace = MODELS["nanobanana"].pace_of(px, px)

    assert (pace.low_s, pace.high_s, pace.deadline_s) == (low_s, high_s, deadline_s)
    assert px in SQUARES


def test_a_larger_picture_has_the_last_deadline() -> None:
    assert MODELS["nanobanana-2"].pace_of(2048, 2048).deadline_s == 360


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"steps": 21}, "steps", "the steps is 21, m takes 1 to 20"),
        ({"steps": 0}, "steps", "takes 1 to 20"),
        ({"seed": -1}, "seed", "the seed -1 is not within 0 to 4294967295"),
        ({"seed": MAX_SEED + 1}, "seed", "not within"),
        ({"width": 255}, "width", "the width is 255, m draws 256 to 2048"),
        ({"height": 2049}, "height", "the height is 2049"),
        ({"n": 2}, "n", "the number of pictures is 2, m draws 1 to 1"),
        ({"watermark": "me"}, "watermark", "the watermark is not taken by m"),
        ({"options": {"quality": "hd"}}, "quality", "the quality is not taken by m"),
        ({"prompt": "x" * 4001}, "prompt", "the prompt has 4001 characters, m takes 4000"),
        ({"negative_prompt": "x" * 4001}, "negative_prompt", "the negative prompt has 4001"),
        ({"prompt": "a fox \ud83d"}, "prompt", "the prompt is no text"),
        ({"negative_prompt": "\ud83d"}, "negative_prompt", "the negative prompt is no text"),
        ({"references": (Reference(b"", ""),) * 2}, "references", "the references are 2, m takes at most 1"),
    ],
)
def test_a_limit_that_is_passed_is_named(fields: dict[str, object], field: str, words: str) -> None:
    """mission: 10, 11, 49"""
    with pytest.raises(InvalidRequest) as caught:
        SDXL.check(asked(**fields))

    assert caught.value.field == field
    assert words in str(caught.value)


@pytest.mark.parametrize("prompt", ["", " ", "\n\t"])
def test_a_prompt_is_required_in_the_documents_words(prompt: str) -> None:
    """mission: 8"""
    with pytest.raises(PromptRequired) as caught:
        SDXL.check(asked(prompt=prompt))

    assert (caught.value.error, caught.value.field, caught.value.code) == (
        "Prompt is required",
        "prompt",
        "invalid_request",
    )


def test_models_without_steps_seeds_or_references_say_so() -> None:
    limits = Limits()

    for fields, words in (
        ({"steps": 5}, "has no steps to choose"),
        ({"seed": 5}, "the seed is not taken"),
        ({"references": (Reference(b"", ""),)}, "takes none"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            limits.check(asked(**fields))


def test_what_a_model_drops_can_be_told_instead_of_refused() -> None:
    request = asked(seed=1, negative_prompt="fog", watermark="me", options={"guidance": 3, "quality": "hd"})

    assert list(Limits(options=("quality",)).dropped(request)) == ["seed", "negative_prompt", "watermark", "guidance"]
    assert list(SDXL.dropped(request)) == ["watermark", "quality"]


def test_a_whole_job_is_checked_against_its_own_number() -> None:
    """mission: 13"""
    SDXL.check(asked(n=4), most=SDXL.max_n)
    with pytest.raises(InvalidRequest, match="draws 1 to 4"):
        SDXL.check(asked(n=5), most=SDXL.max_n)


def test_sizes_that_a_model_cannot_draw() -> None:
    odd = Limits(multiple_of=16, max_pixels=1024 * 1024)

    for limits, fields, words in (
        (odd, {"width": 1000}, "64 to 2048 in steps of 16"),
        (odd, {"width": 2048}, "2048x1024 is more than the 1048576 pixels"),
        (Limits(aspects=("1:1", "16:9")), {"width": 512}, "512x1024 is none of 1:1, 16:9"),
        (Limits(sizes=((512, 512),)), {}, "1024x1024 is none of 512x512"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            limits.check(asked(**fields))


@pytest.mark.parametrize(
    ("width", "height", "found"),
    [
        (1024, 1024, "1:1"),
        (1344, 768, "16:9"),
        (768, 1344, "9:16"),
        (1184, 864, "4:3"),
        (896, 1152, "4:5"),
        (900, 1024, None),
    ],
)
def test_proportions_are_the_nearest_of_those_there_are(width: int, height: int, found: str | None) -> None:
    gemini = MODELS["google/gemini-2.5-flash-image"].limits.aspects

    assert aspect(width, height, gemini) == found


@given(n=st.integers(1, 10), per_call=st.integers(1, 10), seed=st.none() | st.integers(0, MAX_SEED))
def test_calls_draw_exactly_what_was_asked_for(n: int, per_call: int, seed: int | None) -> None:
    """mission: 13, 28"""
    limits = Limits(per_call=per_call, max_n=10)

    made = calls(asked(n=n, seed=seed), limits)

    assert sum(call.n for call in made) == n
    assert all(1 <= call.n <= per_call for call in made)
    assert len(made) == -(-n // per_call)


def test_every_picture_of_a_model_with_seeds_has_its_own() -> None:
    """Counted up from the one that was asked for, or from one that was drawn.

    mission: 11
    """
    assert [call.seed for call in calls(asked(n=3, seed=MAX_SEED - 1), SDXL)] == [MAX_SEED - 1, MAX_SEED, 0]

    drawn = [call.seed for call in calls(asked(n=3), SDXL)]
    assert len(set(drawn)) == 3
    assert all(seed is not None and 0 <= seed <= MAX_SEED for seed in drawn)
    assert [call.seed for call in calls(asked(n=2), Limits())] == [None, None]


def test_steps_of_a_model_are_its_providers() -> None:
    assert SDXL.steps == Steps(1, 20, 20)
    assert MODELS["@cf/black-forest-labs/flux-1-schnell"].limits.steps == Steps(1, 8, 4)
