"""The prompt history and the list of generations: read from the replica, hidden and shown again."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from store.gallery import encode_query
from store.job_lists import JobQuery, parse_jobs_query
from tests.gateway.asking import bookmark_of, replica_of
from tests.gateway.listening import listening
from tests.jobs import add_jobs, end_job, grant
from tests.world import Reply, World

HISTORY = "/api/prompts"


async def given_jobs(world: World, user: str, count: int, **columns: Any) -> list[str]:
    """Ids of new jobs, the newest first, as a list shows them."""
    ids = await world.write(user, lambda connection: add_jobs(connection, user, count, **columns))
    return [str(row_id) for row_id in reversed(ids)]


def ids_of(reply: Reply, name: str = "prompts") -> list[str]:
    assert reply.status == 200, reply
    return [job["id"] for job in reply.json[name]]


async def test_history_shows_what_was_asked_and_what_became_of_it(shared: World, user: str) -> None:
    """Prompt, cost, duration and pictures, newest first, from the caller's own replica.

    mission: 107, 152, 197
    """
    await shared.write(user, lambda connection: grant(connection, user, 100))
    failed, done = await given_jobs(shared, user, 2, price_tenths=50, n=2)
    await shared.write(user, lambda c: end_job(c, uuid.UUID(done), "completed", pictures=1, cost_usd="0.0400"))
    await shared.write(user, lambda c: end_job(c, uuid.UUID(failed), "failed"))

    reply = await replica_of(shared, user, HISTORY)

    assert ids_of(reply) == [failed, done]
    lost, made = reply.json["prompts"]
    assert (made["prompt"], made["state"], made["error"]) == (f"prompt 0 of {user}", "completed", None)
    assert (made["cost_credits"], made["refunded_credits"], made["cost_usd"]) == (2.5, 2.5, 0.04)
    assert (made["duration_ms"], len(made["image_ids"]), made["hidden_at"]) == (1500, 1, None)
    assert (lost["state"], lost["cost_credits"]) == ("failed", 0)
    assert lost["error"] == {"code": "provider_error", "message": "it is raining"}
    assert reply.json["next_page_token"] is None
    for name in ("Peruse-Bookmark", "Peruse-Age", "Peruse-Outcome", "ETag"):
        assert reply.headers[name]


@pytest.mark.parametrize("path", [HISTORY, "/api/v1/prompts", "/api/generations"])
async def test_history_comes_in_pages(shared: World, user: str, path: str) -> None:
    """The same bytes from the replica and from the primary, under each of its names. mission: 152, 155"""
    name = "generations" if path.endswith("generations") else "prompts"
    ids = await given_jobs(shared, user, 5)
    await replica_of(shared, user, path)

    seen, token = [], ""
    for _ in range(3):
        page = await shared.get(f"{path}?limit=2{token}", user=user)
        assert page.headers["Peruse-Source"] == "replica"
        seen += ids_of(page, name)
        parameters = [("limit", "2"), *([("page_token", token.partition("=")[2])] if token else [])]
        encoded = encode_query(parse_jobs_query(parameters, name))
        assert (await shared.gateway.reads._primary.read(user, encoded)).body == page.body
        token = f"&page_token={page.json['next_page_token']}"
    assert (seen, page.json["next_page_token"]) == (ids, None)
    assert ids_of(await shared.get(f"{path}?sort=oldest", user=user), name) == ids[::-1]


async def test_history_is_filtered(shared: World, user: str) -> None:
    """By state, model, kind, batch and time."""
    batch = uuid.uuid4()
    await shared.write(user, lambda connection: grant(connection, user, 1))
    await shared.write(
        user,
        lambda c: c.execute("insert into batches (id, owner_id, kind) values ($1, $2, 'batch')", batch, user),
    )
    (plain,) = await given_jobs(shared, user, 1)
    (other,) = await given_jobs(shared, user, 1, model="sdxl", kind="IMAGE_TO_IMAGE", batch_id=batch)
    await shared.write(user, lambda c: end_job(c, uuid.UUID(plain), "completed"))
    at = {job["id"]: job["created_at"] for job in (await shared.get(HISTORY, user=user)).json["prompts"]}

    for query, expected in (
        ("state=completed", [plain]),
        ("state=pending", [other]),
        ("state=failed", []),
        ("model=sdxl", [other]),
        ("kind=TEXT_TO_IMAGE", [plain]),
        (f"batch={batch}", [other]),
        (f"from={at[other]}", [other]),
        (f"to={at[other]}", [plain]),
        (f"from={at[plain]}&to=2200-01-01", [other, plain]),
        ("from=2200-01-01", []),
        ("model=sdxl&state=completed", []),
    ):
        assert ids_of(await shared.get(f"{HISTORY}?{query}", user=user)) == expected, query


@pytest.mark.parametrize(
    "query", ["state=done", "from=yesterday", "batch=x", "hidden=1", "limit=0", "owner_id=bo", "%ff=1"]
)
async def test_bad_parameter_is_refused_by_name(shared: World, user: str, query: str) -> None:
    """mission: 157"""
    reply = await shared.get(f"{HISTORY}?{query}", user=user)

    assert reply.status == 400, reply
    assert (reply.json["field"] == query.partition("=")[0]) or query.startswith("%")


async def test_hidden_prompt_leaves_the_history_and_nothing_else(shared: World, user: str) -> None:
    """The ledger, the balance and the images are as they were; it is found by its id, and can be shown again.

    mission: 152
    """
    await shared.write(user, lambda connection: grant(connection, user, 100))
    first, second = (await given_jobs(shared, user, 2, price_tenths=10))[::-1]
    await shared.write(user, lambda c: end_job(c, uuid.UUID(first), "completed"))
    ledger = "select kind, amount_tenths from credit_ledger where owner_id = $1 order by at, id"
    lines = await shared.gateway.primary.fetch(ledger, user)
    await replica_of(shared, user, HISTORY)

    gone = await shared.request("DELETE", f"{HISTORY}/{first}", user=user)

    assert gone.status == 200, gone
    assert gone.json["prompt"]["hidden_at"]
    for path, name, expected in (
        (HISTORY, "prompts", [second]),
        ("/api/generations", "generations", [second]),
        ("/api/generations?hidden=true", "generations", [first]),
        ("/api/generations?hidden=false", "generations", [second]),
    ):
        reply = await shared.get(path, user=user)
        assert ids_of(reply, name) == expected, path
        assert bookmark_of(reply) == bookmark_of(gone), "read your writes"
    assert (await shared.get(f"{HISTORY}/{first}", user=user)).json == gone.json
    assert await shared.gateway.primary.fetch(ledger, user) == lines
    again = await shared.request("DELETE", f"{HISTORY}/{first}", user=user)
    assert (again.json, bookmark_of(again)) == (gone.json, bookmark_of(gone)), "hidden once, at its first time"

    shown = await shared.request("PATCH", f"{HISTORY}/{first}", user=user, json={"hidden": False})
    assert shown.json["prompt"]["hidden_at"] is None
    assert ids_of(await shared.get(HISTORY, user=user)) == [second, first]
    hidden = await shared.request("PATCH", f"{HISTORY}/{second}", user=user, json={"hidden": True})
    assert hidden.json["prompt"]["hidden_at"]
    assert ids_of(await shared.get(HISTORY, user=user)) == [first]


@pytest.mark.parametrize(
    "body", [{}, {"hidden": None}, {"hidden": 1}, {"hidden": True, "prompt": "x"}, [], {"Hidden": True}]
)
async def test_bad_change_is_refused(shared: World, user: str, body: Any) -> None:
    """mission: 157"""
    (job,) = await given_jobs(shared, user, 1)

    reply = await shared.request("PATCH", f"{HISTORY}/{job}", user=user, json=body)

    assert reply.status == 400, reply
    assert ids_of(await shared.get(HISTORY, user=user)) == [job]


@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
async def test_what_is_not_there_is_not_found(shared: World, user: str, method: str) -> None:
    """Nobody's id is a 404, what is no id a 400."""
    body = {"json": {"hidden": True}} if method == "PATCH" else {}
    nobody = await shared.request(method, f"{HISTORY}/{uuid.uuid4()}", user=user, **body)
    wrong = await shared.request(method, f"{HISTORY}/x", user=user, **body)

    assert (nobody.status, nobody.json["detail"]) == (404, "Prompt not found")
    assert (wrong.status, wrong.json["field"]) == (400, "id")


async def test_primary_answers_with_the_same_bytes(shared: World, user: str) -> None:
    """A page of the history and one prompt, while there is no replica yet."""
    (job,) = await given_jobs(shared, user, 1)
    first = await shared.get(HISTORY, user=user)
    one = await shared.get(f"{HISTORY}/{job}", user=user)
    own = await replica_of(shared, user, HISTORY)

    assert first.headers["Peruse-Source"] == "seeding"
    assert (own.body, own.headers["ETag"]) == (first.body, first.headers["ETag"])
    assert (await replica_of(shared, user, f"{HISTORY}/{job}")).body == one.body
    page = await shared.gateway.reads._primary.read(user, encode_query(JobQuery(job)))
    assert page.body == one.body
    kept = await shared.get(HISTORY, user=user, headers={"If-None-Match": own.headers["ETag"]})
    assert (kept.status, kept.body) == (304, b"")


async def test_page_is_kept_while_other_kinds_change(shared: World, user: str) -> None:
    """A new version of the user, and the host has nothing to read again."""
    await given_jobs(shared, user, 3)
    before = await replica_of(shared, user, HISTORY)
    await shared.upload(user=user)

    after = await shared.get(HISTORY, user=user)

    assert after.body == before.body
    assert bookmark_of(after).version > bookmark_of(before).version


async def test_listener_hears_of_jobs_usage_and_account(shared: World, user: str) -> None:
    """Every kind that a page is made of is told. mission: 194"""
    (job,) = await given_jobs(shared, user, 1)
    await replica_of(shared, user, HISTORY)
    async with listening(shared, user) as listener:
        await listener.begun()
        await shared.write(user, lambda c: end_job(c, uuid.UUID(job), "completed"))
        ended = await listener.next()
        await shared.request("DELETE", f"{HISTORY}/{job}", user=user)
        hidden = await listener.next()

    assert set(ended.data["kinds"]) == {"accounts", "jobs", "usage_daily"}
    assert hidden.data["kinds"] == ["jobs"]


async def test_walk_is_complete_while_others_write(shared: World, user: str) -> None:
    """What was there at the beginning comes once and in order, whatever is added, hidden and ended meanwhile; nothing
    else comes twice. mission: 155"""
    ids = await given_jobs(shared, user, 60)
    await shared.write(user, lambda connection: grant(connection, user, 100))
    await replica_of(shared, user, HISTORY)
    walking = asyncio.Event()

    async def write() -> int:
        """Until the walk is over: a new job, one hidden that was passed, one ended that was not."""
        rounds = 0
        while not walking.is_set():
            await given_jobs(shared, user, 1)
            if seen:
                await shared.request("DELETE", f"{HISTORY}/{seen[-1]}", user=user)
            waiting = [job for job in ids if job not in seen][20:]
            if waiting and rounds % 5 == 0:
                await shared.write(user, lambda c, job=waiting[0]: end_job(c, uuid.UUID(job), "canceled"))
            rounds += 1
        return rounds

    seen: list[str] = []
    writer = asyncio.create_task(write())
    try:
        token = ""
        while True:
            page = await shared.get(f"{HISTORY}?limit=4{token}", user=user)
            assert page.headers["Peruse-Source"] == "replica"
            seen += ids_of(page)
            if page.json["next_page_token"] is None:
                break
            token = f"&page_token={page.json['next_page_token']}"
            await asyncio.sleep(0.01)
    finally:
        walking.set()
    assert await writer > 5
    assert [job for job in seen if job in ids] == ids
    assert len(set(seen)) == len(seen)


async def test_service_reads_a_users_history(shared: World, user: str) -> None:
    """The same bytes as the user gets."""
    await given_jobs(shared, user, 3)
    own = await replica_of(shared, user, f"{HISTORY}?limit=2")

    reply = await shared.get(f"/internal/users/{user}/prompts?limit=2", user="mailer", role="service")

    assert (reply.body, reply.headers["ETag"]) == (own.body, own.headers["ETag"])


async def test_long_history_is_read_as_fast_as_a_short_one(world: World) -> None:
    """10,000 jobs: each page is found by an index, deep ones too, and a filter that matches little looks at the index
    alone. mission: 142, 217"""
    await world.write("ana", lambda c: c.execute("insert into users (id) values ('ana')"))
    await world.write(
        "ana",
        lambda c: c.execute(
            "insert into jobs (owner_id, prompt, provider, model, created_at) select 'ana', 'prompt ' || n, 'builtin', "
            "case when n % 5000 = 7 then 'rare' else 'builtin' end, timestamptz '2026-03-04' + n * interval '1 second' "
            "from generate_series(1, 10000) n"
        ),
    )
    await replica_of(world, "ana", HISTORY)

    seen, token = [], ""
    while token is not None:
        page = await world.get(f"{HISTORY}?limit=200{token and f'&page_token={token}'}")
        assert page.headers["Peruse-Source"] == "replica"
        seen += [job["prompt"] for job in page.json["prompts"]]
        token = page.json["next_page_token"]
    assert seen == [f"prompt {n}" for n in range(10_000, 0, -1)]
    rare = await world.get(f"{HISTORY}?model=rare")
    assert [job["prompt"] for job in rare.json["prompts"]] == ["prompt 5007", "prompt 7"]
    assert rare.headers["Peruse-Source"] == "replica"
