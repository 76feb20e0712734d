"""Generations over HTTP: asked for, priced, looked at, canceled. A worker's part is played by plain SQL."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import pytest

from store.api_keys import create_key
from tests.gateway.asking import form, given_images, picture, replica_of
from tests.gateway.generating import GENERATIONS, begin, complete, fail, generate, grant, money
from tests.world import Reply, World

SDXL = "@cf/stabilityai/stable-diffusion-xl-base-1.0"
ALIASES = (GENERATIONS, "/api/generate", "/api/v1/images/generate")


def is_problem(reply: Reply, status: int, code: str, field: str | None = None) -> bool:
    assert (reply.status, reply.json["code"], reply.json.get("field")) == (status, code, field), reply
    assert reply.json["success"] is False
    assert reply.headers["Content-Type"] == "application/problem+json"
    return True


async def jobs_of(world: World, user: str) -> int:
    rows = await world.gateway.primary.fetch("select count(*) from jobs where owner_id = $1", user)
    return int(rows[0][0])


@pytest.mark.parametrize("path", ALIASES)
async def test_prompt_becomes_a_job_at_once(shared: World, user: str, path: str) -> None:
    """202, an address, and the job with everything it will be drawn with.

    mission: 29, 32, 33, 34, 39, 42, 149, 150
    """
    reply = await generate(shared, user, path=path, prompt="a fox at night")

    assert reply.status == 202, reply
    job = reply.json["generation"]
    assert reply.json["success"] is True
    assert reply.headers["Location"] == f"{GENERATIONS}/{job['id']}"
    assert (job["state"], job["prompt"], job["model"], job["n"]) == ("pending", "a fox at night", "builtin", 1)
    assert (job["image_size"], job["images"], job["cost_credits"]) == ("1024x1024", [], 0)
    assert 0 <= job["params"]["seed"] < 2**32
    looked = await shared.get(reply.headers["Location"], user=user)
    assert looked.status == 200
    assert looked.json["generation"] == job | {"queue_position": looked.json["generation"]["queue_position"]}


async def test_an_api_key_generates(shared: World, user: str) -> None:
    """mission: 149, 158"""
    await given_images(shared, user, 1)
    key = (await create_key(shared.gateway.primary, user)).secret

    reply = await shared.request(
        "POST", "/api/generate", user=None, json={"prompt": "x"}, headers={"Authorization": f"Bearer {key}"}
    )

    assert reply.status == 202, reply
    assert await jobs_of(shared, user) == 1


async def test_job_is_followed_to_its_pictures(shared: World, user: str) -> None:
    """mission: 13, 34, 36, 39"""
    job = (await generate(shared, user, prompt="a fox", n=2)).json["generation"]["id"]
    await replica_of(shared, user)
    await begin(shared, job, progress=0.25, position=3)
    working = (await shared.get(f"{GENERATIONS}/{job}", user=user)).json["generation"]
    ids = await complete(shared, job, pictures=2)
    done = (await shared.get(f"{GENERATIONS}/{job}", user=user)).json["generation"]

    assert (working["state"], working["progress"], working["queue_position"]) == ("processing", 0.25, 3)
    assert (done["state"], done["progress"], done["queue_position"]) == ("completed", 1.0, None)
    assert [image["id"] for image in done["images"]] == ids == done["image_ids"]
    gallery = await shared.get("/api/images", user=user)
    assert {image["id"] for image in gallery.json["images"]} == {*ids}, "who has seen the end sees the pictures"


async def test_place_in_the_queue_counts_who_is_before(world: World) -> None:
    """Those that somebody works on are before nobody."""
    jobs = [(await generate(world, "ana", prompt=f"{n}")).json["generation"] for n in range(3)]

    assert [job["queue_position"] for job in jobs] == [0, 1, 2]
    await begin(world, jobs[0]["id"])
    places = [(await world.get(f"{GENERATIONS}/{job['id']}")).json["generation"]["queue_position"] for job in jobs]
    assert places == [None, 0, 1]


# --- money ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "credits", "usd"),
    [
        ({"model": "openai/dall-e-3"}, 5, 0.04),
        ({"model": "openai/dall-e-3", "width": 1792, "height": 1024}, 7.5, 0.08),
        ({"model": SDXL, "n": 3}, 9, 0),
        ({"model": SDXL, "image_size": "1536x1536", "n": 2}, 9, 0),
        ({"model": "openai/dall-e-2", "image_size": "512x512"}, 2, 0.018),
        ({"model": "nanobanana", "image_size": "1536x1536"}, 3, 0.045),
        ({"model": "builtin", "n": 8}, 0, 0),
        ({"models": ["openai/dall-e-3", SDXL, "builtin"]}, 8, 0.04),
    ],
)
async def test_an_estimate_is_exactly_what_is_held(
    studio: World, user: str, body: dict[str, Any], credits: float, usd: float
) -> None:
    """mission: 31, 68, 69, 70, 71, 72, 73, 78"""
    await grant(studio, user, 100)
    estimate = await generate(studio, user, path=f"{GENERATIONS}/estimate", prompt="a fox", **body)
    assert estimate.status == 200, estimate
    told = estimate.json
    assert (await money(studio, user))[2] == [100], "an estimate takes nothing"
    assert (told["cost_credits"], told["cost_usd"]) == (credits, usd)
    assert (told["balance_credits"], told["is_covered"]) == (10, True)

    made = await generate(studio, user, prompt="a fox", **body)

    assert made.status == 202, made
    balance, held, lines = await money(studio, user)
    assert (balance, held) == (100 - credits * 10, credits * 10)
    jobs = made.json.get("generations") or [made.json["generation"]]
    assert sum(job["cost_credits"] for job in jobs) == credits
    assert [job["cost_credits"] for job in told["jobs"]] == [job["cost_credits"] for job in jobs]
    assert [-line / 10 for line in lines[1:]] == [job["cost_credits"] for job in jobs if job["cost_credits"]]


async def test_what_the_balance_does_not_cover_is_402_and_changes_nothing(studio: World, user: str) -> None:
    """All jobs of a request, or none.

    mission: 30, 51
    """
    await grant(studio, user, 70)
    body = {"prompts": ["a fox", "an owl", "a hare"], "model": SDXL}
    estimate = await generate(studio, user, path=f"{GENERATIONS}/estimate", **body)

    reply = await generate(studio, user, **body)

    assert is_problem(reply, 402, "insufficient_credits")
    assert (reply.json["balance_credits"], reply.json["cost_credits"]) == (7, 9)
    assert (estimate.json["is_covered"], estimate.json["cost_credits"]) == (False, 9)
    assert await money(studio, user) == (70, 0, [70])
    assert await jobs_of(studio, user) == 0
    assert (await studio.gateway.primary.fetch("select 1 from batches where owner_id = $1", user)) == []


@pytest.mark.parametrize("period", ["day", "month"])
async def test_what_a_budget_does_not_cover_is_402_and_changes_nothing(studio: World, user: str, period: str) -> None:
    await grant(studio, user, 1000)
    sql = f"update accounts set {period}_budget_tenths = 80 where owner_id = $1"
    await studio.write(user, lambda connection: connection.execute(sql, user))
    assert (await generate(studio, user, prompt="a fox", model="openai/dall-e-3")).status == 202
    estimate = await generate(studio, user, path=f"{GENERATIONS}/estimate", prompt="a fox", model="openai/dall-e-3")

    reply = await generate(studio, user, prompt="a fox", model="openai/dall-e-3")

    assert is_problem(reply, 402, "budget_exceeded")
    told = {name: reply.json[name] for name in ("period", "budget_credits", "spent_credits", "cost_credits")}
    assert told == {"period": period, "budget_credits": 8, "spent_credits": 5, "cost_credits": 5}
    assert estimate.json["is_covered"] is False
    assert await money(studio, user) == (950, 50, [1000, -50])
    assert (await generate(studio, user, prompt="a fox", model="builtin")).status == 202, "what costs nothing"


async def test_estimate_of_somebody_unknown_makes_nobody(shared: World, user: str) -> None:
    reply = await generate(shared, user, path=f"{GENERATIONS}/estimate", prompt="a fox")

    assert (reply.status, reply.json["balance_credits"], reply.json["is_covered"]) == (200, 0, True)
    assert (await shared.gateway.primary.fetch("select 1 from users where id = $1", user)) == []


# --- many at once -----------------------------------------------------------------------------------------------


async def test_many_prompts_are_a_batch(studio: World, user: str) -> None:
    """One parent, a job each, seeds of their own.

    mission: 224, 225
    """
    await grant(studio, user, 200)
    reply = await generate(studio, user, prompts=["a fox", "an owl", "a hare"], model=SDXL)

    assert reply.status == 202, reply
    batch, jobs = reply.json["batch"], reply.json["generations"]
    assert reply.headers["Location"] == f"/api/batches/{batch['id']}"
    assert batch["kind"] == "batch"
    assert [job["prompt"] for job in jobs] == ["a fox", "an owl", "a hare"]
    assert {job["batch_id"] for job in jobs} == {batch["id"]}
    assert len({job["params"]["seed"] for job in jobs}) == 3
    await complete(studio, jobs[0]["id"])
    await fail(studio, jobs[2]["id"])
    told = (await studio.get(reply.headers["Location"], user=user)).json
    assert [job["state"] for job in told["generations"]] == ["completed", "pending", "failed"]
    assert [(job["cost_credits"], job["refunded_credits"]) for job in told["generations"]] == [(3, 0), (3, 0), (0, 3)]
    summary = {name: told["batch"][name] for name in ("kind", "is_over", "states", "cost_credits", "refunded_credits")}
    states = {"completed": 1, "pending": 1, "failed": 1}
    expected = {"kind": "batch", "is_over": False, "states": states, "cost_credits": 6, "refunded_credits": 3}
    assert summary == expected


async def test_many_models_are_a_comparison(studio: World, user: str) -> None:
    """One prompt, the same dice where a model has them, every model's own price.

    mission: 227
    """
    await grant(studio, user, 200)
    models = [SDXL, "@cf/lykon/dreamshaper-8-lcm", "openai/dall-e-3"]
    reply = await generate(studio, user, prompt="a fox", models=models)

    assert reply.status == 202, reply
    jobs = reply.json["generations"]
    assert reply.json["batch"]["kind"] == "comparison"
    assert [(job["model"], job["cost_credits"]) for job in jobs] == list(zip(models, (3, 2, 5), strict=True))
    assert jobs[0]["params"]["seed"] == jobs[1]["params"]["seed"]
    assert "seed" not in jobs[2]["params"]


async def test_more_than_fifty_jobs_are_refused(shared: World, user: str) -> None:
    for body in ({"prompts": ["x"] * 51}, {"prompts": []}, {"prompt": "x", "models": ["builtin"] * 51}):
        reply = await generate(shared, user, **body)
        assert reply.status == 400, reply
    assert (await generate(shared, user, prompts=["x"] * 50)).status == 202
    assert await jobs_of(shared, user) == 50


# --- from something that is there -------------------------------------------------------------------------------


async def test_remix_keeps_all_but_the_seed_and_tells_what_it_drops(studio: World, user: str) -> None:
    """mission: 11, 19"""
    await grant(studio, user, 1000)
    first = await generate(
        studio, user, prompt="a fox", model=SDXL, width=512, height=768, steps=12, seed=5, n=2,
        negative_prompt="blur", options={"guidance": 7.5}, visibility="public",
    )  # fmt: skip
    assert first.status == 202, first
    job = first.json["generation"]

    again = (await generate(studio, user, remix_of=job["id"])).json
    other = (await generate(studio, user, remix_of=job["id"], model="@cf/black-forest-labs/flux-1-schnell")).json
    changed = (
        await generate(studio, user, remix_of=job["id"], prompt="an owl", steps=4, options={"strength": 0.5})
    ).json

    assert again["dropped"] == []
    assert again["generation"]["params"].pop("seed") != job["params"].pop("seed") == 5
    same = ("prompt", "model", "n", "image_size", "params", "cost_credits")
    assert [again["generation"][name] for name in same] == [job[name] for name in same]
    assert set(other["dropped"]) == {"negative_prompt", "guidance", "steps", "width", "height"}
    assert other["generation"]["image_size"] == "1024x1024"
    assert other["generation"]["params"] == {"width": 1024, "height": 1024, "steps": 4, "visibility": "public"}
    assert (changed["generation"]["prompt"], changed["generation"]["params"]["steps"]) == ("an owl", 4)
    assert changed["generation"]["params"]["options"] == {"guidance": 7.5, "strength": 0.5}


async def test_remix_of_a_picture_is_that_of_its_job(shared: World, user: str) -> None:
    job = (await generate(shared, user, prompt="a fox", image_size="768x768")).json["generation"]
    (image,) = await complete(shared, job["id"])

    remix = (await generate(shared, user, remix_of=image)).json["generation"]

    assert (remix["prompt"], remix["image_size"], remix["params"]["parent_id"]) == ("a fox", "768x768", image)
    (uploaded,) = await given_images(shared, user, 1, prompt="an owl", model="upload")
    assert (await generate(shared, user, remix_of=uploaded)).json["generation"]["prompt"] == "an owl"


async def test_variation_starts_from_an_own_picture(studio: World, user: str) -> None:
    """mission: 17, 230, 232"""
    await grant(studio, user, 100)
    (image,) = await given_images(studio, user, 1, prompt="an owl")

    job = (await generate(studio, user, variation_of=image, model=SDXL)).json["generation"]
    told = (await generate(studio, user, variation_of=image, model=SDXL, prompt="a fox")).json["generation"]

    assert (job["kind"], job["prompt"]) == ("IMAGE_TO_IMAGE", "an owl")
    assert (job["params"]["images"], job["params"]["parent_id"]) == ([image], image)
    assert told["prompt"] == "a fox"
    refused = await generate(studio, user, variation_of=image, model="builtin")
    assert is_problem(refused, 400, "invalid_request", "references")


async def test_references_are_the_users_own(studio: World, user: str) -> None:
    """mission: 18, 232"""
    uploaded = await studio.request("POST", "/api/references", user=user, data=form(picture("PNG")))
    reference = uploaded.json["reference"]["id"]
    theirs = f"{user}-other"
    await grant(studio, user, 100)
    await grant(studio, theirs, 100)

    mine = await generate(studio, user, prompt="a fox", model=SDXL, references=[reference])
    stolen = await generate(studio, theirs, prompt="a fox", model=SDXL, references=[reference])

    assert (mine.json["generation"]["kind"], mine.json["generation"]["params"]["references"]) == (
        "IMAGE_TO_IMAGE",
        [reference],
    )
    assert is_problem(stolen, 404, "not_found")
    assert stolen.json["detail"] == "Reference image not found"


async def test_picture_in_the_trash_is_not_shown_to_a_model(studio: World, user: str) -> None:
    await grant(studio, user, 100)
    (image,) = await given_images(studio, user, 1)
    await studio.request("DELETE", f"/api/images/{image}", user=user)

    assert is_problem(await generate(studio, user, variation_of=image, model=SDXL), 404, "not_found")
    assert (await generate(studio, user, remix_of=image)).status == 202


# --- refused ----------------------------------------------------------------------------------------------------

BAD: list[tuple[dict[str, Any], str | None]] = [
    ({}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": "  \n"}, "prompt"),
    ({"prompts": ["a", ""]}, "prompt"),
    ({"prompt": "a\0b"}, "prompt"),
    ({"prompt": "x" * 4001}, "prompt"),
    ({"prompt": "x", "prompts": ["y"]}, "prompts"),
    ({"prompt": "x", "template": "t"}, "template"),
    ({"prompt": "x", "model": "nothing"}, "model"),
    ({"prompt": "x", "model": "x" * 201}, "model"),
    ({"prompt": "x", "model": "builtin", "models": ["builtin"]}, "models"),
    ({"prompts": ["x"], "models": ["builtin"]}, "models"),
    ({"prompt": "x", "image_size": "1000x1000"}, "image_size"),
    ({"prompt": "x", "image_size": "512X512"}, "image_size"),
    ({"prompt": "x", "image_size": "512x512", "width": 512}, "image_size"),
    ({"prompt": "x", "image_size": "512x512", "width": 512, "height": 512}, "image_size"),
    ({"prompt": "x", "width": 512}, "height"),
    ({"prompt": "x", "height": 512}, "width"),
    ({"prompt": "x", "width": 10, "height": 512}, "width"),
    ({"prompt": "x", "width": 512, "height": 4096}, "height"),
    ({"prompt": "x", "width": 10**20, "height": 1}, "width"),
    ({"prompt": "x", "model": SDXL, "steps": 21}, "steps"),
    ({"prompt": "x", "model": SDXL, "steps": 0}, "steps"),
    ({"prompt": "x", "steps": 5}, "steps"),
    ({"prompt": "x", "seed": -1}, "seed"),
    ({"prompt": "x", "seed": 2**32}, "seed"),
    ({"prompt": "x", "seed": 1.5}, "seed"),
    ({"prompt": "x", "n": 0}, "n"),
    ({"prompt": "x", "n": 9}, "n"),
    ({"prompt": "x", "negative_prompt": "y"}, "negative_prompt"),
    ({"prompt": "x", "watermark": "a\nb"}, "watermark"),
    ({"prompt": "x", "watermark": "w" * 65}, "watermark"),
    ({"prompt": "x", "watermark": "漢字"}, "watermark"),
    ({"prompt": "x", "model": SDXL, "watermark": "w\0"}, "watermark"),
    ({"prompt": "x", "options": {"guidance": 5}}, "guidance"),
    ({"prompt": "x", "model": SDXL, "options": {"guidance": "\0"}}, "options"),
    ({"prompt": "x", "model": SDXL, "options": {"guidance": "x" * 16_000}}, "options"),
    ({"prompt": "x", "options": {"guidance": [5]}}, None),
    ({"prompt": "x", "visibility": "private"}, "visibility"),
    ({"prompt": "x", "variables": {"a": "b"}}, "variables"),
    ({"prompt": "x", "references": ["1"]}, None),
    ({"prompt": "x", "references": "1"}, "references"),
    ({"prompt": "x", "images": [str(uuid.uuid4())] * 65}, "images"),
    ({"remix_of": "x"}, "remix_of"),
    ({"remix_of": str(uuid.uuid4()), "models": ["builtin"]}, "models"),
    ({"prompt": "x", "variation_of": str(uuid.uuid4()), "parent": str(uuid.uuid4())}, "parent"),
    ({"prompt": "x", "owner_id": "bob"}, "owner_id"),
    ({"prompt": "x", "state": "completed"}, "state"),
    ({"prompt": "x", "price_tenths": 0}, "price_tenths"),
]


@pytest.mark.parametrize(("body", "field"), BAD, ids=lambda value: json.dumps(value)[:50])
async def test_bad_request_is_named_and_nothing_is_made(
    studio: World, user: str, body: dict[str, Any], field: str | None
) -> None:
    """Whichever way it is sent, and for an estimate too.

    mission: 12, 15, 25, 29, 49, 157
    """
    body = {"model": "builtin", **body} if "models" not in body and "remix_of" not in body else body
    for path in (*ALIASES, f"{GENERATIONS}/estimate"):
        reply = await studio.request("POST", path, user=user, json=body)
        assert (reply.status, reply.json["code"]) == (400, "invalid_request"), reply
        assert field is None or reply.json.get("field") == field, reply
    assert await jobs_of(studio, user) == 0


async def test_missing_prompt_has_the_documents_sentence(shared: World, user: str) -> None:
    """mission: 8, 59, 63"""
    for path in (*ALIASES, "/api/images"):
        for body in ({}, {"prompt": None}, {"prompt": " "}):
            reply = await shared.request("POST", path, user=user, json=body)
            assert (reply.status, reply.json["error"], reply.json["success"]) == (400, "Prompt is required", False)


async def test_model_without_any_key_is_409_and_names_the_provider(shared: World, user: str) -> None:
    reply = await generate(shared, user, prompt="a fox", model="openai/dall-e-3")

    assert is_problem(reply, 409, "provider_key_required")
    assert "openai" in reply.json["detail"]


async def test_own_key_makes_it_free_here(shared: World, user: str) -> None:
    """mission: 4"""
    sealed = "insert into provider_keys (owner_id, provider, sealed, hint) values ($1, 'openai', 'x', 'x')"
    await grant(shared, user, 10)
    await shared.write(user, lambda connection: connection.execute(sealed, user))

    estimate = await generate(shared, user, path=f"{GENERATIONS}/estimate", prompt="a fox", model="openai/dall-e-3")
    job = (await generate(shared, user, prompt="a fox", model="openai/dall-e-3")).json["generation"]

    assert (job["own_key"], job["cost_credits"]) == (True, 0)
    assert (estimate.json["cost_credits"], estimate.json["cost_usd"]) == (0, 0.04)
    assert await money(shared, user) == (10, 0, [10])


# --- canceling --------------------------------------------------------------------------------------------------


async def test_waiting_job_is_canceled_at_once_with_a_full_refund(studio: World, user: str) -> None:
    await grant(studio, user, 100)
    job = (await generate(studio, user, prompt="a fox", model=SDXL, n=2)).json["generation"]["id"]
    assert await money(studio, user) == (40, 60, [100, -60])

    reply = await studio.request("DELETE", f"{GENERATIONS}/{job}", user=user)

    told = reply.json["generation"]
    assert (reply.status, told["state"], told["cost_credits"], told["refunded_credits"]) == (200, "canceled", 0, 6)
    assert told["error"]["code"] == "canceled"
    assert await money(studio, user) == (100, 0, [100, -60, 60])
    again = await studio.request("DELETE", f"{GENERATIONS}/{job}", user=user)
    assert is_problem(again, 409, "already_ended")
    assert await money(studio, user) == (100, 0, [100, -60, 60])


async def test_job_in_work_is_asked_to_end(studio: World, user: str) -> None:
    await grant(studio, user, 100)
    job = (await generate(studio, user, prompt="a fox", model=SDXL)).json["generation"]["id"]
    await begin(studio, job)

    replies = [await studio.request("DELETE", f"{GENERATIONS}/{job}", user=user) for _ in range(2)]

    assert [(reply.status, reply.json["generation"]["state"]) for reply in replies] == [(202, "processing")] * 2
    rows = await studio.gateway.primary.fetch("select cancel_requested from queue where job_id = $1", uuid.UUID(job))
    assert rows[0][0] is True
    assert (await money(studio, user))[:2] == (70, 30)


async def test_nothing_is_canceled_that_is_nobodys(shared: World, user: str) -> None:
    for method in ("GET", "DELETE"):
        assert is_problem(await shared.request(method, f"{GENERATIONS}/{uuid.uuid4()}", user=user), 404, "not_found")
        assert is_problem(await shared.request(method, f"{GENERATIONS}/x", user=user), 400, "invalid_request", "id")


# --- once -------------------------------------------------------------------------------------------------------


async def test_fifty_at_once_with_one_key_are_one_job(studio: World, user: str) -> None:
    """The others are told that it is in flight, or what came of it."""
    await grant(studio, user, 1000)
    headers = {"Idempotency-Key": '"a-key"'}

    replies = await asyncio.gather(
        *(generate(studio, user, prompt="a fox", model=SDXL, headers=headers) for _ in range(50))
    )

    assert await jobs_of(studio, user) == 1
    assert (await money(studio, user))[2] == [1000, -30]
    made = [reply for reply in replies if reply.status == 202]
    assert len({reply.body for reply in made}) == 1
    assert sum("Idempotency-Replayed" not in reply.headers for reply in made) == 1
    refused = [reply for reply in replies if reply.status != 202]
    assert {(reply.status, reply.json["code"]) for reply in refused} <= {(409, "idempotency_in_flight")}
    assert all(int(reply.headers["Retry-After"]) >= 1 for reply in refused)


async def test_repeated_request_has_the_same_answer(shared: World, user: str) -> None:
    """Also when the job has gone on meanwhile, and with the key written bare."""
    first = await generate(shared, user, prompt="a fox", headers={"Idempotency-Key": "k 1"})
    await complete(shared, first.json["generation"]["id"])

    again = await generate(shared, user, prompt="a fox", headers={"Idempotency-Key": '"k 1"'})

    assert (again.status, again.body) == (202, first.body)
    assert again.headers["Location"] == first.headers["Location"]
    assert again.headers["Idempotency-Replayed"] == "true"
    assert "Idempotency-Replayed" not in first.headers
    assert await jobs_of(shared, user) == 1


async def test_key_for_another_request_is_422(shared: World, user: str) -> None:
    headers = {"Idempotency-Key": "k"}
    await generate(shared, user, prompt="a fox", headers=headers)

    other = await generate(shared, user, prompt="an owl", headers=headers)
    elsewhere = await generate(shared, user, path="/api/generate", prompt="a fox", headers=headers)
    somebody = await generate(shared, f"{user}-other", prompt="an owl", headers=headers)

    assert is_problem(other, 422, "idempotency_key_reused")
    assert is_problem(elsewhere, 422, "idempotency_key_reused")
    assert somebody.status == 202, "keys are a user's own"


async def test_refused_request_leaves_its_key_free(studio: World, user: str) -> None:
    headers = {"Idempotency-Key": "k"}
    assert (await generate(studio, user, prompt="a fox", model=SDXL, headers=headers)).status == 402
    await grant(studio, user, 100)
    assert (await generate(studio, user, prompt="a fox", model=SDXL, headers=headers)).status == 202


@pytest.mark.parametrize("key", ["", '""', "x" * 256, "é", "\t"])
async def test_key_that_is_none_is_400(shared: World, user: str, key: str) -> None:
    reply = await generate(shared, user, prompt="a fox", headers={"Idempotency-Key": key})

    assert is_problem(reply, 400, "invalid_request", "Idempotency-Key")
    assert await jobs_of(shared, user) == 0


# --- models -----------------------------------------------------------------------------------------------------


async def test_models_tell_what_can_be_asked_and_what_it_costs(shared: World, studio: World, user: str) -> None:
    """mission: 2, 5, 6, 7, 27"""
    await grant(shared, user, 10)
    sealed = "insert into provider_keys (owner_id, provider, sealed, hint) values ($1, 'openai', 'x', 'x')"
    await shared.write(user, lambda connection: connection.execute(sealed, user))
    told = {model["id"]: model for model in (await shared.get("/api/models", user=user)).json["models"]}
    all_keys = {model["id"]: model for model in (await studio.get("/api/models", user=user)).json["models"]}

    assert told["builtin"]["is_default"]
    assert all_keys[SDXL]["is_default"]
    available = {name for name, model in told.items() if model["is_available"]}
    assert available == {"builtin"} | {name for name, model in told.items() if model["provider"] == "openai"}
    assert all(model["is_available"] for model in all_keys.values())
    assert (told["openai/dall-e-3"]["prices"]["credits"], told["openai/dall-e-3"]["own_key"]) == (0, True)
    prices = all_keys["openai/dall-e-3"]["prices"]
    assert (prices["credits"], prices["high_resolution_credits"]) == (5, 7.5)
    assert prices["usd"][0] == {"up_to_pixels": 1024 * 1024, "usd": 0.04}
    assert all_keys[SDXL]["limits"]["steps"] == {"least": 1, "most": 20, "default": 20}
    sizes = ["512x512", "768x768", "1024x1024", "1536x1536"]
    assert all_keys["nanobanana"]["limits"]["image_sizes"] == sizes
    assert all_keys["openai/dall-e-2"]["limits"]["image_sizes"] == ["512x512", "1024x1024"]
    assert all_keys["nanobanana"]["expected_s"][0] == {"up_to_pixels": 512 * 512, "low": 15, "high": 30}
