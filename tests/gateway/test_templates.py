"""Templates and settings of models over HTTP."""

from __future__ import annotations

import uuid
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.gateway.asking import bookmark_of
from tests.world import Reply, World

TEMPLATES = "/api/templates"
SETTINGS = "/api/model-settings"


async def create(world: World, user: str, **body: Any) -> Reply:
    whole = {"name": "night", "prompt": "{{animal}} at {{ place }}, {{animal}}", **body}
    return await world.request("POST", TEMPLATES, user=user, json=whole)


async def generate(world: World, user: str, **body: Any) -> Reply:
    return await world.request("POST", "/api/generations", user=user, json=body)


async def test_a_template_is_made_read_changed_and_deleted(shared: World, user: str) -> None:
    """With its variables in every answer. mission: 229"""
    made = await create(shared, user, params={"n": 2, "image_size": "512x512"})
    assert made.status == 201, made
    template = made.json["template"]
    path = f"{TEMPLATES}/{template['id']}"
    assert made.headers["Location"] == path
    assert template["variables"] == ["animal", "place"]
    assert template["params"] == {"n": 2, "image_size": "512x512"}
    assert template["created_at"].endswith("Z")
    assert (await shared.get(path, user=user)).json["template"] == template
    assert (await shared.get(TEMPLATES, user=user)).json["templates"] == [template]

    changed = await shared.request("PATCH", path, user=user, json={"prompt": "{{bird}}"})
    assert changed.json["template"]["variables"] == ["bird"]
    assert changed.json["template"]["params"] == template["params"]
    assert changed.json["template"]["updated_at"] > template["updated_at"]
    bookmark_of(changed)

    assert (await shared.request("DELETE", path, user=user)).json == {"success": True}
    for method, body in (("GET", None), ("PATCH", {"name": "x"}), ("DELETE", None)):
        reply = await shared.request(method, path, user=user, json=body)
        assert (reply.status, reply.json["error"]) == (404, "Template not found")


async def test_a_template_is_drawn_with_what_it_says_and_what_the_request_says(shared: World, user: str) -> None:
    """Variables are put in, its parameters hold where the request has none. mission: 228, 229"""
    template = (await create(shared, user, params={"model": "builtin", "n": 2, "image_size": "512x512"})).json[
        "template"
    ]
    await shared.request("PUT", f"{SETTINGS}/builtin", user=user, json={"visibility": "public", "n": 3})
    variables = {"animal": "a fox", "place": "{{sea}}"}

    job = (await generate(shared, user, template="night", variables=variables)).json["generation"]
    other = (await generate(shared, user, template=template["id"], variables=variables, n=1)).json["generation"]

    assert job["prompt"] == other["prompt"] == "a fox at {{sea}}, a fox"
    assert (job["n"], job["image_size"], job["params"]["visibility"]) == (2, "512x512", "public")
    assert job["params"]["template_id"] == template["id"]
    assert (other["n"], other["image_size"]) == (1, "512x512")
    missing = await generate(shared, user, template="night", variables={"animal": "a fox"})
    assert (missing.status, missing.json["field"]) == (400, "variables.place")
    unknown = await generate(shared, user, template="night", variables={**variables, "moon": "full"})
    assert (unknown.status, unknown.json["field"]) == (400, "variables.moon")
    none = await generate(shared, user, template="day")
    assert (none.status, none.json["error"]) == (404, "Template not found")


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"name": ""}, 400, "name"),
        ({"name": 5}, 400, "name"),
        ({"prompt": "{{a b}}"}, 400, "prompt"),
        ({"params": {"quality": "high"}}, 400, "params"),
        ({"params": {"model": "nobody/nothing"}}, 400, "model"),
        ({"params": []}, 400, "params"),
        ({"variables": ["a"]}, 400, "variables"),
        ({"id": str(uuid.uuid4())}, 400, "id"),
    ],
)
async def test_what_no_template_can_have_is_refused_by_name(
    shared: World, user: str, body: Any, status: int, field: str
) -> None:
    """When it is made, and when it is changed."""
    made = await create(shared, user, **body)
    assert (made.status, made.json["field"]) == (status, field), made

    template = (await create(shared, user)).json["template"]
    changed = await shared.request("PATCH", f"{TEMPLATES}/{template['id']}", user=user, json=body)
    assert (changed.status, changed.json["field"]) == (status, field), changed
    assert (await shared.get(TEMPLATES, user=user)).json["templates"] == [template]


async def test_a_name_that_is_taken_is_409(shared: World, user: str) -> None:
    """And so is one template too many."""
    await create(shared, user)
    twice = await create(shared, user)
    many = "insert into templates (owner_id, name, prompt) select $1, 't' || n, '' from generate_series(1, 199) n"
    await shared.write(user, lambda c: c.execute(many, user))
    full = await create(shared, user, name="one more")

    assert (twice.status, twice.json["code"]) == (409, "name_taken")
    assert (full.status, full.json["code"]) == (409, "limit_reached")
    names, token = [], ""
    for _ in range(4):
        reply = await shared.get(f"{TEMPLATES}?limit=67{token}", user=user)
        names += [template["name"] for template in reply.json["templates"]]
        token = f"&page_token={reply.json['next_page_token']}"
        if reply.json["next_page_token"] is None:
            break
    assert len(names) == len(set(names)) == 200
    bad = await shared.get(f"{TEMPLATES}?name=night", user=user)
    assert (bad.status, bad.json["field"]) == (400, "name")
    empty = await shared.request("PATCH", f"{TEMPLATES}/{uuid.uuid4()}", user=user, json={})
    assert (empty.status, "nothing to change" in empty.json["detail"]) == (400, True)
    wrong = await shared.get(f"{TEMPLATES}/night", user=user)
    assert (wrong.status, wrong.json["field"]) == (400, "id")


@pytest.mark.parametrize("encode", [str, lambda id: quote(id, safe="")])
async def test_settings_of_a_model_are_at_its_id(shared: World, user: str, encode: Any) -> None:
    """Slashes and @ as they are, or escaped. mission: 228"""
    model = "@cf/lykon/dreamshaper-8-lcm"
    path = f"{SETTINGS}/{encode(model)}"

    kept = await shared.request("PUT", path, user=user, json={"steps": 4})
    assert kept.status == 200, kept
    assert (kept.json["settings"]["model"], kept.json["settings"]["params"]) == (model, {"steps": 4})
    kept = await shared.request("PUT", path, user=user, json={"negative_prompt": "text"})
    listed = await shared.get(SETTINGS, user=user)
    assert listed.json == {"success": True, "settings": [kept.json["settings"]], "next_page_token": None}

    assert (await shared.request("DELETE", path, user=user)).status == 200
    again = await shared.request("DELETE", path, user=user)
    assert (again.status, again.json["error"]) == (404, "Model settings not found")
    assert (await shared.get(SETTINGS, user=user)).json["settings"] == []


@pytest.mark.parametrize(
    ("model", "body", "status", "field"),
    [
        ("nobody/nothing", {"steps": 4}, 404, None),
        ("openai/dall-e-3", {"steps": 4}, 400, "steps"),
        ("@cf/lykon/dreamshaper-8-lcm", {"steps": 21}, 400, "steps"),
        ("builtin", {"prompt": "x"}, 400, "params"),
        ("builtin", {"model": "builtin"}, 400, "model"),
        ("builtin", ["n"], 400, None),
        ("builtin", {"n": 10**30}, 400, "n"),
    ],
)
async def test_settings_that_a_model_cannot_have_are_refused_by_name(
    shared: World, user: str, model: str, body: Any, status: int, field: str | None
) -> None:
    """With the limit in words."""
    reply = await shared.request("PUT", f"{SETTINGS}/{model}", user=user, json=body)

    assert (reply.status, reply.json.get("field")) == (status, field), reply
    assert (await shared.get(SETTINGS, user=user)).json["settings"] == []


_texts = st.text(max_size=20) | st.sampled_from(["\0", "{{a}}", "builtin", "pro", "1e999", "-5", "\U0010ffff", "٣"])
_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3),
    max_leaves=6,
)
_fields = st.sampled_from([
    "name", "prompt", "params", "key", "credits", "reason", "plan", "day_budget_credits", "month_budget_credits", "n",
    "width", "height", "steps", "seed", "options", "negative_prompt", "watermark", "image_size", "model", "visibility",
])  # fmt: skip
_bodies = _values | st.dictionaries(_fields, _values | st.dictionaries(_fields, _values, max_size=3), max_size=5)
_TAKERS = [
    ("POST", TEMPLATES, "user"),
    ("PATCH", f"{TEMPLATES}/{{id}}", "user"),
    ("PUT", f"{SETTINGS}/builtin", "user"),
    ("PUT", "/api/provider-keys/openai", "user"),
    ("PATCH", "/api/account", "user"),
    ("POST", "/admin/users/{user}/credits", "admin"),
    ("PUT", "/admin/users/{user}/plan", "admin"),
]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(taker=st.sampled_from(_TAKERS), body=_bodies)
async def test_whatever_json_comes_is_kept_or_refused(shared: World, user: str, taker: Any, body: Any) -> None:
    """Never an error of ours, and what was kept can be read."""
    method, path, role = taker
    made = await create(shared, user, name=f"t{uuid.uuid4()}")
    path = path.format(id=made.json["template"]["id"], user=user)

    reply = await shared.request(method, path, user=user, role=role, json=body)

    assert reply.status in (200, 201, 400, 402, 404, 409), reply
    assert "code" in reply.json or reply.json["success"] is True
    listed = await shared.get(TEMPLATES, user=user)
    assert listed.status == 200
    for template in listed.json["templates"]:
        await shared.request("DELETE", f"{TEMPLATES}/{template['id']}", user=user)
    assert (await shared.get(SETTINGS, user=user)).status == 200
