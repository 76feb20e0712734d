"""Two users, every route: no byte of one is ever shown to the other.

Each user's rows and files carry a canary, which no reply to the other may hold. The table of cases has a line for
every route that the gateway has: a new route fails here until it has one.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import secrets
import sqlite3
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from aiohttp import web

from gateway.routes import add_routes
from store.objects.keys import keys_of, thumb_key
from tests.gateway.asking import form, ids_of, picture, replica_of
from tests.gateway.generating import complete
from tests.gateway.listening import listening
from tests.world import Reply, World, until

_SECRET: Final = secrets.token_bytes(16)


def _routes() -> list[tuple[str, str]]:
    app = web.Application()
    add_routes(app)
    return sorted({(route.method, route.resource.canonical) for route in app.router.routes() if route.resource})


ROUTES: Final = _routes()


class Person(NamedTuple):
    """A user with images of every state, a reference and a job, all marked with `canary`; `ids` and `keys` by state."""

    name: str
    canary: str
    ids: dict[str, str]
    keys: dict[str, str]
    reference: str
    reference_key: str
    job: str


_STATES: Final = {
    "open": {},
    "public": {"visibility": "public"},
    "trashed": {"trashed_at": True},
    "pending": {"moderation": "pending"},
}


def canary_of(name: str) -> str:
    return hmac.new(_SECRET, name.encode(), hashlib.sha256).hexdigest()[:32]


async def person(world: World, name: str) -> Person:
    """`name` with one image of each state, and its files."""
    canary = canary_of(name)
    ids, keys = {}, {}
    for number, (state, columns) in enumerate(_STATES.items()):
        key = f"generated/{canary}/{number:013d}-{secrets.token_hex(16)}"
        await world.write(name, lambda c, key=key, columns=columns: _insert(c, name, canary, key, columns))
        (row,) = await world.gateway.primary.fetch("select id from images where object_key = $1", f"{key}.png")
        ids[state], keys[state] = str(row["id"]), f"{key}.png"
        _write_files(world, f"{key}.png", canary)
    key = f"reference/{canary}/{0:013d}-{secrets.token_hex(16)}.png"
    _write_files(world, key, canary)
    await world.write(name, lambda c: _others(c, name, canary, key))
    (row,) = await world.gateway.primary.fetch("select id from reference_images where object_key = $1", key)
    (job,) = await world.gateway.primary.fetch("select id from jobs where owner_id = $1", name)
    return Person(name, canary, ids, keys, str(row["id"]), key, str(job["id"]))


def _write_files(world: World, key: str, canary: str) -> None:
    for path in keys_of(key):
        file = world.data / "objects" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture("PNG") + canary.encode())


async def _insert(connection, name: str, canary: str, key: str, columns: dict) -> None:
    await connection.execute("insert into users (id) values ($1) on conflict do nothing", name)
    await connection.execute(
        "insert into images (owner_id, object_key, thumb_key, content_type, size_bytes, prompt, negative_prompt, "
        "model, title, generation_params, visibility, moderation, trashed_at) "
        "values ($1, $2, $3, 'image/png', 9, $4, $4, $4, $4, $5, $6, $7, case when $8 then now() end)",
        name, f"{key}.png", f"{key}.thumb.webp", canary, json.dumps({"note": canary}),
        columns.get("visibility", "unlisted"), columns.get("moderation", "approved"),
        columns.get("trashed_at", False),
    )  # fmt: skip


async def _others(connection, name: str, canary: str, key: str) -> None:
    """A row in each of the other tables that replicas hold."""
    await connection.execute(
        "insert into reference_images (owner_id, object_key, thumb_key, content_type, size_bytes, filename) "
        "values ($1, $2, $3, 'image/png', 9, $4)", name, key, thumb_key(key), canary,
    )  # fmt: skip
    await connection.execute(
        "insert into provider_keys (owner_id, provider, sealed, hint) values ($1, 'openai', $2, $3)",
        name, canary.encode(), canary,
    )  # fmt: skip
    await connection.execute(
        "insert into jobs (owner_id, prompt, provider, model) values ($1, $2, 'builtin', $2)", name, canary
    )
    await connection.execute(
        "insert into usage_daily (owner_id, day, model_usage) "
        "values ($1, '2026-03-04', json_build_object($2::text, 1))",
        name, canary,
    )  # fmt: skip


Case = Callable[[World, Person, Person], Awaitable[list[Reply]]]
_cases: dict[tuple[str, str], Case] = {}


def case(method: str, path: str) -> Callable[[Case], Case]:
    """A case: asks as `me`, knowing all of `other`, and checks the statuses."""

    def add(function: Case) -> Case:
        _cases[method, path] = function
        return function

    return add


@case("GET", "/api/v1/images")
@case("GET", "/api/images")
async def _list(world: World, me: Person, other: Person) -> list[Reply]:
    their_page = await world.get("/api/images?limit=1", user=other.name)
    token = their_page.json["next_page_token"]
    assert token is not None
    mine = set(me.ids.values())
    replies = []
    for query in (
        "",
        "?limit=200",
        f"?limit=1&page_token={token}",
        "?trashed=true",
        "?sort=oldest",
        "?visibility=public",
    ):
        for path in ("/api/images", "/api/v1/images"):
            replies.append(await world.get(path + query, user=me.name))
            assert set(ids_of(replies[-1])) <= mine
    for bookmark in (their_page.headers["Peruse-Bookmark"], "1-1.1"):
        headers = {"Peruse-Bookmark": bookmark, "If-None-Match": their_page.headers["ETag"]}
        replies.append(await world.get("/api/images?limit=1", user=me.name, headers=headers))
    theirs = await world.get(f"/api/images?model={other.canary}", user=me.name)
    assert theirs.json["images"] == []
    return [*replies, theirs]


@case("POST", "/api/images/upload")
async def _upload(world: World, me: Person, other: Person) -> list[Reply]:
    before = (await world.get("/api/images", user=other.name)).body
    replies = [await world.upload(user=me.name, prompt=me.canary)]
    assert replies[0].status == 201
    for field, value in (("owner_id", other.name), ("user", other.name), ("id", other.ids["open"])):
        replies.append(
            await world.request("POST", "/api/images/upload", user=me.name, data=form(picture("PNG"), **{field: value}))
        )
        assert replies[-1].status == 400
    assert (await world.get("/api/images", user=other.name)).body == before
    me.ids["uploaded"] = replies[0].json["image"]["id"]
    return replies


@case("POST", "/api/images/sync")
async def _sync(world: World, me: Person, other: Person) -> list[Reply]:
    replies = [
        await world.request("POST", "/api/images/sync", user=me.name),
        await world.request("POST", f"/api/images/sync?user={other.name}", user=me.name),
    ]
    assert [reply.status for reply in replies] == [200, 400]
    return replies


@case("GET", "/api/images/{id}")
@case("PATCH", "/api/images/{id}")
@case("DELETE", "/api/images/{id}")
@case("POST", "/api/images/{id}/restore")
async def _one(world: World, me: Person, other: Person) -> list[Reply]:
    sql = "select array_agg(t::text order by id) from images t where owner_id = $1"
    (before,) = await world.gateway.primary.fetch(sql, other.name)
    replies = []
    for image in other.ids.values():
        path = f"/api/images/{image}"
        replies += [
            await world.get(path, user=me.name),
            await world.request("PATCH", path, user=me.name, json={"visibility": "public", "title": "mine"}),
            await world.request("DELETE", path, user=me.name),
            await world.request("DELETE", f"{path}?forever=1", user=me.name),
            await world.request("POST", f"{path}/restore", user=me.name),
        ]
    theirs = (await world.upload(user=other.name)).json["image"]
    other.ids[theirs["id"]] = theirs["id"]
    assert (await world.get(f"/api/images/{theirs['filename']}", user=other.name)).status == 200
    (before,) = await world.gateway.primary.fetch(sql, other.name)
    for filename in (theirs["filename"], theirs["thumb_url"].rpartition("/")[2]):
        replies.append(await world.get(f"/api/images/{filename}", user=me.name))
    nobodys = await world.get(f"/api/images/{uuid.uuid4()}", user=me.name)
    assert {reply.status for reply in replies} == {404}
    told = {(reply.json["detail"], reply.json["code"]) for reply in (*replies, nobodys)}
    assert len(told) == 1, "what is somebody's looks as what is nobody's"
    (after,) = await world.gateway.primary.fetch(sql, other.name)
    assert before == after
    return replies


@case("DELETE", "/api/images/trash")
async def _trash(world: World, me: Person, other: Person) -> list[Reply]:
    """Mine is emptied, theirs is as it was: rows and files."""
    assert "trashed" in other.ids
    (before,) = await world.gateway.primary.fetch(
        "select count(*) from images where owner_id = $1 and trashed_at is not null", other.name
    )
    mine = await person(world, f"{me.name}-{secrets.token_hex(4)}")
    reply = await world.request("DELETE", "/api/images/trash", user=mine.name)
    assert (reply.status, reply.json["removed"]) == (200, 1)
    (after,) = await world.gateway.primary.fetch(
        "select count(*) from images where owner_id = $1 and trashed_at is not null", other.name
    )
    assert before == after
    assert (await world.get(f"/files/{other.keys['trashed']}", user=other.name)).status == 200
    return [reply]


@case("GET", "/api/references")
async def _references(world: World, me: Person, other: Person) -> list[Reply]:
    replies = [await world.get(f"/api/references{query}", user=me.name) for query in ("", "?limit=200", "?sort=oldest")]
    for reply in replies:
        assert reply.status == 200
        assert other.reference not in [reference["id"] for reference in reply.json["references"]]
    return replies


@case("POST", "/api/references")
async def _upload_reference(world: World, me: Person, other: Person) -> list[Reply]:
    """The same bytes are two users' own: nobody learns that somebody else has them."""
    before = (await world.get("/api/references", user=other.name)).body
    data = picture("PNG", (17, 19))
    replies = [await world.request("POST", "/api/references", user=me.name, data=form(data))]
    replies.append(await world.request("POST", "/api/references", user=me.name, data=form(data, owner_id=other.name)))
    assert [reply.status for reply in replies] == [201, 400]
    assert (await world.get("/api/references", user=other.name)).body == before
    return replies


@case("GET", "/api/references/{id}")
@case("DELETE", "/api/references/{id}")
async def _reference(world: World, me: Person, other: Person) -> list[Reply]:
    replies = []
    for method in ("GET", "DELETE"):
        for row_id in (other.reference, other.ids["open"]):
            replies.append(await world.request(method, f"/api/references/{row_id}", user=me.name))
    replies.append(await world.get(f"/api/references/{uuid.uuid4()}", user=me.name))
    assert {reply.status for reply in replies} == {404}
    assert len({reply.json["detail"] for reply in replies}) == 1
    assert (await world.get(f"/api/references/{other.reference}", user=other.name)).status == 200
    return replies


@case("POST", "/api/generations")
@case("POST", "/api/generate")
@case("POST", "/api/v1/images/generate")
@case("POST", "/api/generations/estimate")
async def _generate(world: World, me: Person, other: Person) -> list[Reply]:
    """What is another's looks as what is nobody's: pictures, references, jobs and templates to start from."""
    sql = "insert into templates (owner_id, name, prompt) values ($1, 'of ' || $1, $2)"
    await world.write(other.name, lambda c: c.execute(f"{sql} on conflict do nothing", other.name, other.canary))
    theirs = await _job_of(world, other)
    bodies: list[tuple[str, str | list[str]]] = [
        ("remix_of", theirs),
        ("template", f"of {other.name}"),
        ("references", [other.reference]),
    ]
    for row_id in other.ids.values():
        bodies += [("remix_of", row_id), ("variation_of", row_id), ("images", [row_id]), ("parent", row_id)]
    replies = []
    for path in ("/api/generations", "/api/generate", "/api/v1/images/generate", "/api/generations/estimate"):
        for field, value in bodies:
            body = {field: value} | ({} if field in ("remix_of", "template") else {"prompt": "x"})
            model = {"model": "builtin"} if field in ("parent", "template", "remix_of") else {"model": _TAKES_PICTURES}
            replies.append(await world.request("POST", path, user=me.name, json=body | model))
            assert replies[-1].status == 404, (field, replies[-1])
    key = {"Idempotency-Key": other.canary[:8]}
    made = [
        await world.request("POST", "/api/generations", user=one.name, json={"prompt": one.canary}, headers=key)
        for one in (other, me)
    ]
    assert [reply.status for reply in made] == [202, 202]
    assert "Idempotency-Replayed" not in made[1].headers or made[1].json["generation"]["prompt"] == me.canary
    return [*replies, made[1]]


#: A model of a provider at which the users of this module have a key.
_TAKES_PICTURES: Final = "openai/gpt-image-1"


async def _job_of(world: World, one: Person) -> str:
    (row,) = await world.gateway.primary.fetch("select id from jobs where owner_id = $1 limit 1", one.name)
    return str(row[0])


@case("GET", "/api/generations/{id}")
@case("GET", "/api/generations/{id}/events")
@case("DELETE", "/api/generations/{id}")
@case("GET", "/api/batches/{id}")
async def _generation(world: World, me: Person, other: Person) -> list[Reply]:
    job = await _job_of(world, other)
    batch = (
        await world.request("POST", "/api/generations", user=other.name, json={"prompts": [other.canary]})
    ).json["batch"]["id"]  # fmt: skip
    replies = []
    for row_id in (job, str(uuid.uuid4())):
        path = f"/api/generations/{row_id}"
        replies += [
            await world.get(path, user=me.name),
            await world.get(f"{path}/events", user=me.name),
            await world.request("DELETE", path, user=me.name),
        ]
    told = {(reply.status, reply.json["detail"]) for reply in replies}
    assert told == {(404, "Generation not found")}
    batches = [await world.get(f"/api/batches/{row_id}", user=me.name) for row_id in (batch, str(uuid.uuid4()))]
    assert {(reply.status, reply.json["detail"]) for reply in batches} == {(404, "Batch not found")}
    assert (await world.get(f"/api/generations/{job}", user=other.name)).json["generation"]["state"] == "pending"
    return [*replies, *batches]


@case("POST", "/api/images")
async def _make_image(world: World, me: Person, other: Person) -> list[Reply]:
    """Whoever waits is told of their own picture, also when another's is ready first."""
    asked = {
        one.name: asyncio.create_task(
            world.request("POST", "/api/images", user=one.name, json={"prompt": f"now {one.canary}"})
        )
        for one in (other, me)
    }
    for one in (other, me):

        async def job(name: str = one.name, prompt: str = f"now {one.canary}") -> str | None:
            sql = "select id from jobs where owner_id = $1 and prompt = $2 and state = 'pending'"
            rows = await world.gateway.primary.fetch(sql, name, prompt)
            return str(rows[0][0]) if rows else None

        await complete(world, await until(job))
    theirs, mine = [await task for task in asked.values()]
    assert (theirs.json["image"]["prompt"], mine.json["image"]["prompt"]) == (f"now {other.canary}", f"now {me.canary}")
    me.ids[mine.json["image"]["id"]] = mine.json["image"]["id"]
    other.ids[theirs.json["image"]["id"]] = theirs.json["image"]["id"]
    return [mine]


@case("GET", "/api/models")
async def _models(world: World, me: Person, other: Person) -> list[Reply]:
    """A key of theirs makes nothing available to me."""
    sql = (
        "insert into provider_keys (owner_id, provider, sealed, hint) values ($1, 'fal', $2, $3) on conflict do nothing"
    )
    await world.write(other.name, lambda c: c.execute(sql, other.name, other.canary.encode(), other.canary))
    await world.write(
        me.name, lambda c: c.execute("delete from provider_keys where owner_id = $1 and provider = 'fal'", me.name)
    )
    reply = await world.get("/api/models", user=me.name)
    assert not any(model["is_available"] for model in reply.json["models"] if model["provider"] == "fal")
    return [reply]


@case("GET", "/api/prompts")
@case("GET", "/api/v1/prompts")
@case("GET", "/api/generations")
async def _prompts(world: World, me: Person, other: Person) -> list[Reply]:
    replies = []
    for path in ("/api/prompts", "/api/v1/prompts", "/api/generations"):
        for query in ("", f"?model={other.canary}", "?kind=TEXT_TO_IMAGE&limit=200", "?sort=oldest"):
            replies.append(await world.get(f"{path}{query}", user=me.name))
            jobs = [job["id"] for job in replies[-1].json["generations" if "generations" in path else "prompts"]]
            assert other.job not in jobs
            assert (me.job in jobs) == ("model" not in query)
    return replies


@case("GET", "/api/prompts/{id}")
@case("PATCH", "/api/prompts/{id}")
@case("DELETE", "/api/prompts/{id}")
async def _prompt(world: World, me: Person, other: Person) -> list[Reply]:
    before = (await world.get(f"/api/prompts/{other.job}", user=other.name)).json
    replies = []
    for row_id in (other.job, other.ids["open"], str(uuid.uuid4())):
        path = f"/api/prompts/{row_id}"
        replies += [
            await world.get(path, user=me.name),
            await world.request("PATCH", path, user=me.name, json={"hidden": True}),
            await world.request("DELETE", path, user=me.name),
        ]
    assert {(reply.status, reply.json["detail"]) for reply in replies} == {(404, "Prompt not found")}
    assert (await world.get(f"/api/prompts/{other.job}", user=other.name)).json == before
    return replies


@case("GET", "/api/stats")
@case("GET", "/api/account")
async def _summaries(world: World, me: Person, other: Person) -> list[Reply]:
    stats = await world.get("/api/stats", user=me.name)
    account = await world.get("/api/account", user=me.name)
    assert (stats.status, account.status) == (200, 200)
    assert me.canary in stats.json["stats"]["model_usage"]
    return [stats, account]


@case("GET", "/internal/users/{user}/prompts")
@case("GET", "/internal/users/{user}/stats")
@case("GET", "/internal/users/{user}/account")
async def _internal_reads(world: World, me: Person, other: Person) -> list[Reply]:
    paths = [
        f"/internal/users/{name}/{what}" for name in (me.name, other.name) for what in ("prompts", "stats", "account")
    ]
    refused = [await world.get(path, user=me.name) for path in paths]
    assert {reply.status for reply in refused} == {403}
    mine = [await world.get(path, user="a-service", role="service") for path in paths[:3]]
    assert {reply.status for reply in mine} == {200}
    return [*refused, *mine]


@case("GET", "/api/webhooks")
@case("POST", "/api/webhooks")
async def _webhooks(world: World, me: Person, other: Person) -> list[Reply]:
    await _their_webhook(world, other)
    replies = [
        await world.get("/api/webhooks", user=me.name),
        await world.request("POST", "/api/webhooks", user=me.name, json={"url": f"https://example.org/{me.canary}"}),
        await world.get("/api/webhooks", user=me.name),
    ]
    assert [reply.status for reply in replies] == [200, 201, 200]
    await world.request("DELETE", replies[1].headers["Location"], user=me.name)
    return replies


@case("GET", "/api/webhooks/{id}")
@case("PATCH", "/api/webhooks/{id}")
@case("DELETE", "/api/webhooks/{id}")
@case("POST", "/api/webhooks/{id}/secret")
@case("POST", "/api/webhooks/{id}/test")
@case("GET", "/api/webhooks/{id}/deliveries")
@case("POST", "/api/webhooks/{id}/deliveries/{delivery}/replay")
async def _webhook(world: World, me: Person, other: Person) -> list[Reply]:
    """Theirs is not there; nor is their delivery below a webhook of mine."""
    theirs, mine = await _their_webhook(world, other), await _their_webhook(world, me)
    (delivery,) = await world.gateway.primary.fetch(
        "select id from webhook_deliveries where webhook_id = $1 limit 1", uuid.UUID(theirs)
    )
    sql = (
        "select array_agg(w::text order by id), (select array_agg(d::text order by id) from webhook_deliveries d "
        "where d.owner_id = $1) from webhooks w where owner_id = $1"
    )
    (before,) = await world.gateway.primary.fetch(sql, other.name)
    path = f"/api/webhooks/{theirs}"
    replies = [
        await world.get(path, user=me.name),
        await world.request("PATCH", path, user=me.name, json={"url": "https://example.org/mine"}),
        await world.request("DELETE", path, user=me.name),
        await world.request("POST", f"{path}/secret", user=me.name),
        await world.request("POST", f"{path}/test", user=me.name),
        await world.get(f"{path}/deliveries", user=me.name),
        await world.request("POST", f"{path}/deliveries/{delivery['id']}/replay", user=me.name),
        await world.get(f"/api/webhooks/{uuid.uuid4()}", user=me.name),
    ]
    assert {reply.status for reply in replies} == {404}
    assert len({reply.json["detail"] for reply in replies}) == 1
    replies.append(
        await world.request("POST", f"/api/webhooks/{mine}/deliveries/{delivery['id']}/replay", user=me.name)
    )
    assert replies[-1].status == 404
    (after,) = await world.gateway.primary.fetch(sql, other.name)
    assert before == after
    return replies


async def _their_webhook(world: World, who: Person) -> str:
    """The id of a webhook with `who`'s canary, which has been told of something."""
    found = (await world.get("/api/webhooks", user=who.name)).json["webhooks"]
    if found:
        return str(found[0]["id"])
    url = f"https://example.org/{who.canary}"
    made = await world.request("POST", "/api/webhooks", user=who.name, json={"url": url})
    row_id = str(made.json["webhook"]["id"])
    assert (await world.request("POST", f"/api/webhooks/{row_id}/test", user=who.name)).status == 202
    return row_id


@case("GET", "/internal/users/{user}/images")
@case("POST", "/internal/users/{user}/images")
@case("POST", "/internal/users/{user}/sync")
async def _internal(world: World, me: Person, other: Person) -> list[Reply]:
    refused = []
    for name in (me.name, other.name):
        path = f"/internal/users/{name}"
        refused += [
            await world.get(f"{path}/images", user=me.name),
            await world.request("POST", f"{path}/images", user=me.name, data=form(picture("PNG"))),
            await world.request("POST", f"{path}/sync", user=me.name),
        ]
    assert {reply.status for reply in refused} == {403}
    mine = await world.get(f"/internal/users/{me.name}/images", user="a-service", role="service")
    synced = await world.request("POST", f"/internal/users/{me.name}/sync", user=other.name, role="service")
    assert set(ids_of(mine)) <= set(me.ids.values())
    return [*refused, mine, synced]


@case("GET", "/admin/overview")
@case("GET", "/admin/hosts")
@case("GET", "/admin/replicas")
@case("GET", "/admin/users")
@case("DELETE", "/admin/users/{user}")
@case("GET", "/admin/users/{user}/replica")
@case("GET", "/admin/users/{user}/replica/export")
@case("POST", "/admin/users/{user}/replica/passivate")
@case("POST", "/admin/users/{user}/replica/reseed")
@case("POST", "/admin/users/{user}/replica/audit")
@case("POST", "/admin/epoch/rotate")
async def _admin(world: World, me: Person, other: Person) -> list[Reply]:
    replies = []
    for role in ("user", "service"):
        for name in (me.name, other.name):
            replica = f"/admin/users/{name}/replica"
            gets = ("/admin/overview", "/admin/hosts", "/admin/replicas", "/admin/users", replica, f"{replica}/export")
            posts = (f"{replica}/passivate", f"{replica}/reseed", f"{replica}/audit", "/admin/epoch/rotate")
            replies += [await world.get(path, user=me.name, role=role) for path in gets]
            replies += [await world.request("POST", path, user=me.name, role=role) for path in posts]
            replies.append(await world.request("DELETE", f"/admin/users/{name}", user=me.name, role=role))
    assert {reply.status for reply in replies} == {403}
    return replies


@case("GET", "/api/templates")
@case("POST", "/api/templates")
@case("GET", "/api/templates/{id}")
@case("PATCH", "/api/templates/{id}")
@case("DELETE", "/api/templates/{id}")
async def _templates(world: World, me: Person, other: Person) -> list[Reply]:
    """A name that somebody else has is free, and their template is not there by any name or id."""
    body = {"name": "mine", "prompt": other.canary + " {{a}}"}
    theirs = await world.request("POST", "/api/templates", user=other.name, json=body)
    path = f"/api/templates/{theirs.json['template']['id']}"
    mine = await world.request("POST", "/api/templates", user=me.name, json={"name": "mine", "prompt": me.canary})
    token = (await world.get("/api/templates?limit=1", user=other.name)).json["next_page_token"]
    listed = [await world.get("/api/templates", user=me.name)]
    if token is not None:
        listed.append(await world.get(f"/api/templates?page_token={token}", user=me.name))
    hidden = [
        await world.get(path, user=me.name),
        await world.request("PATCH", path, user=me.name, json={"prompt": "x"}),
        await world.request("DELETE", path, user=me.name),
    ]
    filled = {"template": theirs.json["template"]["id"], "variables": {"a": "b"}}
    hidden.append(await world.request("POST", "/api/generations", user=me.name, json=filled))
    assert (theirs.status, mine.status) == (201, 201)
    assert {reply.status for reply in hidden} == {404}
    kept = await world.request("DELETE", path, user=other.name)
    assert kept.status == 200
    await world.request("DELETE", f"/api/templates/{mine.json['template']['id']}", user=me.name)
    return [mine, *listed, *hidden]


@case("GET", "/api/model-settings")
@case("PUT", "/api/model-settings/{model}")
@case("DELETE", "/api/model-settings/{model}")
async def _model_settings(world: World, me: Person, other: Person) -> list[Reply]:
    path = "/api/model-settings/@cf/lykon/dreamshaper-8-lcm"
    await world.request("PUT", path, user=other.name, json={"negative_prompt": other.canary})
    replies = [await world.get("/api/model-settings", user=me.name), await world.request("DELETE", path, user=me.name)]
    replies.append(await world.request("PUT", path, user=me.name, json={"negative_prompt": me.canary}))
    replies.append(await world.request("DELETE", path, user=me.name))
    assert [reply.status for reply in replies] == [200, 404, 200, 200]
    (theirs,) = (await world.get("/api/model-settings", user=other.name)).json["settings"]
    assert theirs["params"] == {"negative_prompt": other.canary}
    await world.request("DELETE", path, user=other.name)
    return replies


@case("GET", "/api/provider-keys")
@case("PUT", "/api/provider-keys/{provider}")
@case("DELETE", "/api/provider-keys/{provider}")
async def _provider_keys(world: World, me: Person, other: Person) -> list[Reply]:
    path = "/api/provider-keys/replicate"
    await world.request("PUT", path, user=other.name, json={"key": other.canary})
    replies = [await world.get("/api/provider-keys", user=me.name), await world.request("DELETE", path, user=me.name)]
    replies.append(await world.request("PUT", path, user=me.name, json={"key": me.canary}))
    replies.append(await world.request("DELETE", path, user=me.name))
    assert [reply.status for reply in replies] == [200, 404, 200, 200]
    theirs = (await world.get("/api/provider-keys", user=other.name)).json["provider_keys"]
    assert {key["provider"]: key["hint"] for key in theirs}["replicate"] == other.canary[-4:]
    await world.request("DELETE", path, user=other.name)
    return replies


@case("PATCH", "/api/account")
@case("GET", "/api/account/ledger")
async def _account(world: World, me: Person, other: Person) -> list[Reply]:
    body = {"credits": 5, "reason": other.canary}
    granted = await world.request("POST", f"/admin/users/{other.name}/credits", user="boss", role="admin", json=body)
    await world.request("PATCH", "/api/account", user=other.name, json={"day_budget_credits": 77.7})
    token = (await world.get("/api/account/ledger?limit=1", user=other.name)).json["next_page_token"]
    replies = [await world.get("/api/account/ledger", user=me.name)]
    if token is not None:
        replies.append(await world.get(f"/api/account/ledger?page_token={token}", user=me.name))
    replies.append(await world.request("PATCH", "/api/account", user=me.name, json={"month_budget_credits": 5}))
    assert granted.status == 201
    sql = "select day_budget_tenths, month_budget_tenths from accounts where owner_id = $1"
    await world.request("PATCH", "/api/account", user=me.name, json={"day_budget_credits": None})
    assert (await world.gateway.primary.fetch(sql, other.name))[0]["day_budget_tenths"] == 777
    for reply in replies:
        assert reply.status == 200
    return replies


@case("POST", "/admin/users/{user}/credits")
@case("PUT", "/admin/users/{user}/plan")
@case("GET", "/admin/users/{user}/ledger")
async def _admin_money(world: World, me: Person, other: Person) -> list[Reply]:
    """Nobody but an admin gives, not even to himself."""
    sql = "select plan, balance_tenths from accounts where owner_id = any($1) order by owner_id"
    before = await world.gateway.primary.fetch(sql, [me.name, other.name])
    replies = []
    for role in ("user", "service"):
        for name in (me.name, other.name):
            path = f"/admin/users/{name}"
            replies.append(await world.request("POST", f"{path}/credits", user=me.name, role=role, json={"credits": 5}))
            replies.append(await world.request("PUT", f"{path}/plan", user=me.name, role=role, json={"plan": "pro"}))
            replies.append(await world.get(f"{path}/ledger", user=me.name, role=role))
    assert {reply.status for reply in replies} == {403}
    assert await world.gateway.primary.fetch(sql, [me.name, other.name]) == before
    return replies


@case("GET", "/api/events")
async def _events(world: World, me: Person, other: Person) -> list[Reply]:
    """Their change first, then mine: mine is the first that I hear of."""
    async with listening(world, me.name) as listener:
        await listener.begun()
        change = {"title": secrets.token_hex(4)}
        theirs = await world.request("PATCH", f"/api/images/{other.ids['open']}", user=other.name, json=change)
        mine = await world.request("PATCH", f"/api/images/{me.ids['open']}", user=me.name, json=change)
        message = await listener.next()
    assert (theirs.status, mine.status) == (200, 200)
    assert message.id == mine.headers["Peruse-Bookmark"]
    return [mine]


@case("GET", "/files/{key}")
@case("HEAD", "/files/{key}")
async def _file(world: World, me: Person, other: Person) -> list[Reply]:
    replies = []
    for key in (other.keys["trashed"], other.keys["pending"], other.reference_key):
        for path in (f"/files/{text}" for text in keys_of(key)):
            for user in (me.name, None):
                for method in ("GET", "HEAD"):
                    replies.append(await world.request(method, path, user=user))
            replies.append(await world.get(path, user=me.name, headers={"Range": "bytes=0-"}))
            assert (await world.get(path, user=other.name)).status == 200
    assert {reply.status for reply in replies} == {404}
    return replies


@case("POST", "/callbacks/{provider}/{token}")
async def _called_back(world: World, me: Person, other: Person) -> list[Reply]:
    """Whoever knows a task of another's learns nothing, with the address or without."""
    job = await _job_of(world, other)
    sql = (
        "insert into attempts (job_id, owner_id, call, number, provider, model, fence, state, task_id) "
        "values ($1, $2, 0, 1, 'nanobanana', 'm', 1, 'submitted', $3) on conflict do nothing"
    )
    await world.write(other.name, lambda c: c.execute(sql, uuid.UUID(job), other.name, other.canary))
    token = world.gateway.callbacks._token("nanobanana")
    body = {"code": 200, "data": {"taskId": other.canary}}
    replies = [
        await world.request("POST", f"/callbacks/nanobanana/{text}", user=me.name, json=body)
        for text in (token, token[::-1])
    ]
    assert [reply.status for reply in replies] == [204, 404]
    assert replies[0].body == b""
    return replies


@case("GET", "/healthz")
@case("HEAD", "/healthz")
@case("GET", "/readyz")
@case("HEAD", "/readyz")
@case("GET", "/metrics")
@case("HEAD", "/metrics")
async def _operators(world: World, me: Person, other: Person) -> list[Reply]:
    replies = []
    for path in ("/healthz", "/readyz", "/metrics"):
        for method in ("GET", "HEAD"):
            replies.append(await world.request(method, path, user=None))
            assert replies[-1].status == 200
    assert not any(name.encode() in reply.body for reply in replies for name in (me.name, other.name))
    return replies


@pytest.fixture(scope="module")
async def people(shared: World) -> tuple[Person, Person]:
    """Two users of the shared world, one read from the primary so far and one from a replica."""
    ana, bob = [await person(shared, f"{name}-of-two") for name in ("ana", "bob")]
    await replica_of(shared, ana.name)
    return ana, bob


def test_every_route_has_a_case() -> None:
    """mission: 126, 141"""
    missing = [route for route in ROUTES if route not in _cases]

    assert not missing, f"write a case for {missing}: what does one user see of another through it?"


@pytest.mark.parametrize("route", [pytest.param(route, id=" ".join(route)) for route in ROUTES])
async def test_no_route_shows_another_users_bytes(
    shared: World, people: tuple[Person, Person], route: tuple[str, str]
) -> None:
    """mission: 126, 141, 208"""
    for me, other in (people, people[::-1]):
        replies = await _cases[route](shared, me, other)

        assert replies
        for reply in replies:
            told = reply.body + repr(reply.headers).encode()
            assert other.canary.encode() not in told, (route, reply)


@pytest.mark.parametrize("route", [pytest.param(route, id=" ".join(route)) for route in ROUTES])
async def test_role_decides_about_the_address(shared: World, route: tuple[str, str]) -> None:
    """mission: 206, 208"""
    method, canonical = route
    if canonical == "/admin/epoch/rotate":
        assert {(await shared.request(method, canonical, role=role)).status for role in ("user", "service")} == {403}
        return  # an admin's would make every replica of the shared world anew
    if not canonical.startswith(("/api/", "/internal/", "/admin/")):
        assert canonical.startswith(("/files/", "/callbacks/")) or canonical in ("/healthz", "/readyz", "/metrics")
        return
    path = canonical.replace("{user}", "cara")
    for name in ("{id}", "{delivery}"):
        path = path.replace(name, str(uuid.uuid4()))

    path = canonical.replace("{id}", str(uuid.uuid4())).replace("{user}", "cara")
    path = path.replace("{model}", "builtin").replace("{provider}", "openai").replace("{delivery}", str(uuid.uuid4()))

    async def status(user: str | None, role: str = "user") -> int:
        headers = {} if user is None else {"Authorization": f"Bearer {shared.token(user, role)}"}
        async with shared.http.request(method, path, headers=headers) as answer:
            return answer.status  # without its body: a stream's has no end

    takes = {"api": "user", "internal": "service", "admin": "admin"}[canonical.split("/")[1]]
    assert await status(None) == 401
    for role in ("user", "service", "admin"):
        expected = role == takes or (role == "admin" and takes == "service")
        assert (await status("cara", role) != 403) == expected, role


async def test_wrong_role_is_told_which_it_takes(shared: World) -> None:
    """A 403, not a 401: another token is needed, not a new one."""
    user = await shared.get("/internal/users/ana/images", user="ana")
    service = await shared.get("/api/images", user="ana", role="service")

    assert (user.status, user.json["code"]) == (403, "forbidden")
    assert "service and admin" in user.json["detail"]
    assert (service.status, service.json["code"]) == (403, "forbidden")
    assert "user tokens" in service.json["detail"]


async def test_each_user_has_one_replica_file_with_only_their_rows(world: World) -> None:
    """mission: 129, 130, 141, 220"""
    people = {name: await person(world, name) for name in ("ana", "bob", "cleo|1", "d@e.f")}
    for name in people:
        await replica_of(world, name)
    (image,) = await world.gateway.primary.fetch(
        "update images set owner_id = 'bob' where id = $1 returning id", uuid.UUID(people["ana"].ids["open"])
    )
    await world.request("POST", "/api/images/sync", user="ana")
    await world.request("POST", "/api/images/sync", user="bob")
    assert str(image["id"]) in ids_of(await world.get("/api/images", user="bob"))
    await until(lambda: _hosts_rest(world))

    await world.host.stop()

    files = sorted((world.data / "replicas").rglob("*.db"))
    held = {}
    for file in files:
        user, text, ids = _content(file)
        if user == "~test:0":
            continue  # the host's own
        assert user not in held, "two files of one user"
        held[user] = ids
        for name, other in people.items():
            if name != user:
                # The image that moved is bob's now, whatever its prompt says.
                assert (other.canary in text) == (user == "bob" and name == "ana"), (user, name)
    moved = people["ana"].ids["open"]
    assert held == {
        name: {*one.ids.values()} - ({moved} if name == "ana" else set()) | ({moved} if name == "bob" else set())
        for name, one in people.items()
    }


def _hosts_rest(world: World) -> bool:
    stats = world.host.stats()
    return stats.seeding == 0


def _content(file: Path) -> tuple[str, str, set[str]]:
    """The user of a replica file, all its rows as text, and the ids of its images."""
    connection = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
    try:
        ((user,),) = connection.execute("select user_id from meta").fetchall()
        tables = [name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")]
        text = "".join(repr(row) for table in tables for row in connection.execute(f"select * from {table}"))
        ids = {row_id for (row_id,) in connection.execute("select id from images")}
    finally:
        connection.close()
    return user, text, ids
