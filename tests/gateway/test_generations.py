"""Generations over HTTP: asked for, looked at, canceled. A worker's part is played by plain SQL."""

from __future__ import annotations

from tests.gateway.generating import GENERATIONS, begin, complete, generate
from tests.world import World


async def test_prompt_becomes_a_job_at_once(shared: World, user: str) -> None:
    """202, an address, and the job with everything it will be drawn with.

    mission: 29, 32, 33, 34, 39, 42
    """
    reply = await generate(shared, user, prompt="a fox at night")

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


async def test_job_is_followed_to_its_pictures(shared: World, user: str) -> None:
    """mission: 34, 36, 39"""
    job = (await generate(shared, user, prompt="a fox", n=2)).json["generation"]["id"]
    await begin(shared, job, progress=0.25, position=3)
    working = (await shared.get(f"{GENERATIONS}/{job}", user=user)).json["generation"]
    ids = await complete(shared, job, pictures=2)
    done = (await shared.get(f"{GENERATIONS}/{job}", user=user)).json["generation"]

    assert (working["state"], working["progress"], working["queue_position"]) == ("processing", 0.25, 3)
    assert (done["state"], done["progress"], done["queue_position"]) == ("completed", 1.0, None)
    assert [image["id"] for image in done["images"]] == ids == done["image_ids"]
    gallery = await shared.get("/api/images", user=user)
    assert {image["id"] for image in gallery.json["images"]} == {*ids}, "who has seen the end sees the pictures"
