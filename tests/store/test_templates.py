"""Templates: what may be kept, how variables are put in, and what is refused by name."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store import model_settings, templates
from store.errors import InvalidValue, LimitReached, NameTaken, NotFound
from store.generation.defaults import read_defaults
from store.generation.models import Models
from store.pages import Page
from store.primary import Primary
from store.templates import Filled, Template, TemplatePlace, variables_of

MODELS = Models()


async def create(
    primary: Primary, name: str = "t", prompt: str = "{{animal}}", *, user: str = "ana", **params: Any
) -> Template:
    made, _ = await primary.write(
        user, lambda c: templates.create(c, user, MODELS, name=name, prompt=prompt, params=params)
    )
    return made


async def fill(primary: Primary, template: str, *, user: str = "ana", **variables: str) -> Filled:
    async with primary.connection() as connection:
        return await templates.filled(connection, user, template, variables)


# --- variables ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "variables"),
    [
        ("a fox", []),
        ("{{a}} {{b}} {{a}}", ["a", "b"]),
        ("{{ a }}{{_b2}}", ["a", "_b2"]),
        ("{a} {b}}", []),
        ("{{{a}}}", ["a"]),
        ("x{{a}}{b}", ["a"]),
    ],
)
async def test_variables_are_what_stands_in_two_braces(primary: Primary, prompt: str, variables: list[str]) -> None:
    """Each once, in the order of their first places. mission: 229"""
    template = await create(primary, prompt=prompt)

    assert template.variables == variables == variables_of(prompt)
    filled = await fill(primary, "t", **dict.fromkeys(variables, "X"))
    assert "{{" not in filled.prompt
    assert filled.prompt.count("X") == prompt.count("{{")


@pytest.mark.parametrize(
    "prompt", ["{{}}", "{{ a b }}", "{{1}}", "{{a", "a {{b-c}} d", "{{{{a}}}}", "{{ä}}", "{{" + "a" * 65 + "}}"]
)
async def test_braces_that_are_no_variable_are_refused_when_they_are_kept(primary: Primary, prompt: str) -> None:
    """A misspelt variable would be drawn as it stands."""
    with pytest.raises(InvalidValue, match="is no variable") as error:
        await create(primary, prompt=prompt)

    assert error.value.field == "prompt"


async def test_values_are_put_in_as_they_are(primary: Primary) -> None:
    """Braces, backslashes and group references in a value mean nothing."""
    await create(primary, prompt="{{a}}, {{ b }} and {{a}}")

    filled = await fill(primary, "t", a=r"\1 \g<0> {{b}}", b="{{{a}}}\n$1")

    assert filled.prompt == "\\1 \\g<0> {{b}}, {{{a}}}\n$1 and \\1 \\g<0> {{b}}"


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=200))
def test_whatever_a_value_is_it_is_found_again(value: str) -> None:
    """For every text."""
    assert templates._fill("<{{a}}|{{ a }}>", {"a": value}) == f"<{value}|{value}>"


async def test_missing_and_unknown_variables_are_named(primary: Primary) -> None:
    """A misspelt one is both; what is wrong is in the field."""
    await create(primary, prompt="{{animal}} in {{place}}")
    await create(primary, "none", prompt="a fox")

    for template, given_, field, says in (
        ("t", {"animal": "fox"}, "variables.place", "variable 'place' has no value"),
        ("t", {"animal": "fox", "place": "a wood", "mood": "sad"}, "variables.mood", "it has animal, place"),
        ("none", {"animal": "fox"}, "variables.animal", "it has none"),
        ("t", {"animal": "f\0x", "place": "a wood"}, "variables.animal", "NUL"),
    ):
        with pytest.raises(InvalidValue, match=says) as error:
            await fill(primary, template, **given_)
        assert error.value.field == field


async def test_a_huge_prompt_is_refused_before_it_is_made(primary: Primary) -> None:
    """Five thousand times thirty kilobytes would be 150 MB."""
    await create(primary, prompt="{{a}} " * 5_000)
    await create(primary, "short", prompt="{{a}}{{b}}")

    begun = time.perf_counter()
    with pytest.raises(InvalidValue, match="would have 150005000 bytes, the most is 32000") as error:
        await fill(primary, "t", a="x" * 30_000)
    assert error.value.field == "variables"
    assert time.perf_counter() - begun < 5.0
    with pytest.raises(InvalidValue, match=r"variables\.a has 32001 bytes, the most is 32000"):
        await fill(primary, "short", a="x" * 32_001, b="")
    with pytest.raises(InvalidValue, match="would have 32001 bytes"):
        await fill(primary, "short", a="ä" * 16_000, b="x")
    assert len((await fill(primary, "short", a="ä" * 15_999, b="xx")).prompt.encode()) == 32_000


# --- rows -----------------------------------------------------------------------------------------------------------


async def test_a_template_is_filled_by_id_or_name(primary: Primary) -> None:
    """With its parameters. An id comes before a name that looks like one; another user's is not there."""
    made = await create(primary, "night", "{{animal}} at night", model="openai/dall-e-3", width=1024, height=1024)
    trap = await create(primary, str(made.id), "a trap")

    for text in (str(made.id), str(made.id).upper(), "night"):
        filled = await fill(primary, text, animal="an owl")
        assert filled == (made.id, "an owl at night", {"model": "openai/dall-e-3", "width": 1024, "height": 1024})
    assert trap.id != made.id
    for user, text in (
        ("bob", "night"),
        ("bob", str(made.id)),
        ("ana", "day"),
        ("ana", str(uuid.uuid4())),
        ("ana", ""),
    ):
        with pytest.raises(NotFound, match="Template not found"):
            await fill(primary, text, user=user, animal="an owl")


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("name", {"name": " "}),
        ("name", {"name": "x" * 201}),
        ("name", {"name": "a\0"}),
        ("prompt", {"prompt": "\n"}),
        ("prompt", {"prompt": "x" * 32_001}),
        ("prompt", {"prompt": "a\0"}),
        ("params", {"params": {"prompt": "x"}}),
        ("params", {"params": {"n": "2"}}),
        ("params", {"params": {"image_size": "640x640"}}),
        ("n", {"params": {"n": 0}}),
        ("width", {"params": {"width": 512}}),
        ("width", {"params": {"width": -1, "height": 5}}),
        ("image_size", {"params": {"image_size": "512x512", "width": 512, "height": 512}}),
        ("seed", {"params": {"seed": 2**32}}),
        ("negative_prompt", {"params": {"negative_prompt": "\0"}}),
        ("params", {"params": {"negative_prompt": "x" * 8_001}}),
        ("options", {"params": {"options": {"a\0": 1}}}),
        ("options", {"params": {"options": {str(n): n for n in range(21)}}}),
        ("params", {"params": {"options": {"a": [1]}}}),
        ("options", {"params": {"options": {"a": 1e300}}}),
        ("options", {"params": {"options": {"a": 10**30}}}),
        ("options", {"params": {"options": {"a": -(2**53) - 1}}}),
        ("model", {"params": {"model": "openai/dall-e-9"}}),
        ("steps", {"params": {"model": "@cf/lykon/dreamshaper-8-lcm", "steps": 21}}),
        ("seed", {"params": {"model": "openai/dall-e-3", "seed": 5}}),
        ("n", {"params": {"model": "openai/dall-e-3", "n": 5}}),
        ("width", {"params": {"model": "openai/dall-e-3", "image_size": "512x512"}}),
    ],
)
async def test_what_cannot_be_kept_is_refused_by_name(primary: Primary, field: str, values: dict[str, Any]) -> None:
    """When it is made and when it is changed; nothing of it stays."""
    made = await create(primary, "old", "old")
    whole = {"name": "new", "prompt": "new", "params": {}, **values}

    with pytest.raises(InvalidValue) as created:
        await primary.write("ana", lambda c: templates.create(c, "ana", MODELS, **whole))
    with pytest.raises(InvalidValue) as changed:
        await primary.write("ana", lambda c: templates.change(c, "ana", made.id, MODELS, **values))

    assert created.value.field == changed.value.field == field, created.value
    async with primary.connection() as connection:
        assert await templates.templates_of(connection, "ana", Page()) == ([made], False)


@pytest.mark.parametrize("number", [1e15, 1e-300, 2**53, -(2**53), 0.1, True])
async def test_every_number_that_is_taken_can_be_kept(primary: Primary, number: Any) -> None:
    """Twenty options of it, beside the longest text: whoever is not refused by name is not refused by the column."""
    options = {f"option{n}": number for n in range(20)}
    made = await create(primary, negative_prompt="x" * 7_000, options=options)

    assert made.params["options"] == options


async def test_what_is_changed_is_changed_and_the_rest_stays(primary: Primary) -> None:
    """Parameters as a whole."""
    made = await create(primary, "t", "{{a}}", n=2, seed=7)

    changed, _ = await primary.write("ana", lambda c: templates.change(c, "ana", made.id, MODELS, prompt="{{b}}"))
    assert (changed.name, changed.prompt, changed.params, changed.variables) == (
        "t",
        "{{b}}",
        {"n": 2, "seed": 7},
        ["b"],
    )
    assert changed.updated_at > made.updated_at
    changed, _ = await primary.write(
        "ana", lambda c: templates.change(c, "ana", made.id, MODELS, params={"n": 1}, name="u")
    )
    assert (changed.name, changed.prompt, changed.params) == ("u", "{{b}}", {"n": 1})
    await primary.write("ana", lambda c: templates.delete(c, "ana", made.id))
    for work in (
        lambda c: templates.change(c, "ana", made.id, MODELS, name="v"),
        lambda c: templates.delete(c, "ana", made.id),
        lambda c: templates.one(c, "ana", made.id),
    ):
        with pytest.raises(NotFound):
            await primary.write("ana", work)


async def test_a_name_is_taken_once_per_user(primary: Primary) -> None:
    """Also when two come at once, and when one is renamed."""
    made = await asyncio.gather(*(create(primary, "same") for _ in range(5)), return_exceptions=True)

    (first,) = [one for one in made if isinstance(one, Template)]
    assert sum(isinstance(one, NameTaken) for one in made) == 4
    await create(primary, "same", user="bob")
    await create(primary, "other")
    with pytest.raises(NameTaken, match="you have another template named 'other'"):
        await primary.write("ana", lambda c: templates.change(c, "ana", first.id, MODELS, name="other"))
    kept, _ = await primary.write("ana", lambda c: templates.change(c, "ana", first.id, MODELS, name="same"))
    assert kept.name == "same"


async def test_a_user_has_at_most_two_hundred(primary: Primary) -> None:
    """Also when the last ones come at once."""
    await create(primary, "first")
    await primary.fetch(
        "insert into templates (owner_id, name, prompt) select 'ana', 't' || n, '' from generate_series(1, 197) n"
    )

    made = await asyncio.gather(*(create(primary, f"late {n}") for n in range(6)), return_exceptions=True)

    assert sum(isinstance(one, Template) for one in made) == 2
    assert sum(isinstance(one, LimitReached) for one in made) == 4
    await create(primary, "of another", user="bob")


async def test_pages_are_in_the_order_of_names(primary: Primary) -> None:
    """Each template on one of them."""
    for name in ("c", "a", "e", "b", "d"):
        await create(primary, name)
    await create(primary, "ab", user="bob")
    names: list[str] = []
    page: Page[TemplatePlace] = Page(2)

    async with primary.connection() as connection:
        for has_more in (True, True, False):
            found, more = await templates.templates_of(connection, "ana", page)
            assert more is has_more
            names += [template.name for template in found]
            page = Page(2, TemplatePlace(names[-1]))

    assert names == ["a", "b", "c", "d", "e"]


# --- settings of models ---------------------------------------------------------------------------------------------


async def test_settings_of_a_model_are_kept_for_their_user(primary: Primary) -> None:
    """In place of older ones; {} where there are none. mission: 228"""
    model = MODELS["@cf/lykon/dreamshaper-8-lcm"]
    for params in ({"steps": 4}, {"steps": 8, "negative_prompt": "text", "options": {"guidance": 7.5}}):
        kept, _ = await primary.write(
            "ana", lambda c, params=params: model_settings.keep(c, "ana", model, read_defaults(params))
        )
        assert (kept.model, kept.params) == (model.id, params)

    async with primary.connection() as connection:
        assert await model_settings.settings_of(connection, "ana", model.id) == params
        assert await model_settings.settings_of(connection, "bob", model.id) == {}
        assert await model_settings.settings_of(connection, "ana", "builtin") == {}
        assert [one.model for one in await model_settings.all_settings(connection, "ana")] == [model.id]
        with pytest.raises(NotFound):
            await model_settings.forget(connection, "bob", model.id)
        await model_settings.forget(connection, "ana", model.id)
        assert await model_settings.settings_of(connection, "ana", model.id) == {}


@pytest.mark.parametrize(
    ("model", "params", "says"),
    [
        ("@cf/lykon/dreamshaper-8-lcm", {"steps": 21}, "takes 1 to 20"),
        ("openai/dall-e-3", {"steps": 5}, "has no steps to choose"),
        ("builtin", {"options": {"guidance": 1}}, "guidance is not taken by builtin"),
        ("builtin", {"n": 9}, "draws 1 to 8"),
        ("fal-ai/flux/dev", {"width": 1000, "height": 1000}, "in steps of 16"),
        ("builtin", {"model": "openai/dall-e-3"}, "the settings of builtin cannot name a model"),
    ],
)
async def test_settings_that_the_model_cannot_draw_are_refused(
    primary: Primary, model: str, params: dict[str, Any], says: str
) -> None:
    """When they are kept, not with the first generation."""
    with pytest.raises(InvalidValue, match=says):
        await primary.write("ana", lambda c: model_settings.keep(c, "ana", MODELS[model], read_defaults(params)))


@pytest.mark.parametrize("model", list(MODELS))
async def test_every_model_takes_settings(primary: Primary, model: str) -> None:
    """What is not said breaks no rule of it."""
    await primary.write("ana", lambda c: model_settings.keep(c, "ana", MODELS[model], read_defaults({"n": 1})))
