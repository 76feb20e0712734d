"""From a prompt to a picture in the gallery: gateway, primary, worker, provider, object store, replica."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from actors.config import WorkerSettings
from actors.worker import GenerationWorker
from store.config import StoreSettings
from tests.fakes.providers_world import MODEL_OF, ProvidersWorld, opened
from tests.gateway.generating import GENERATIONS, generate, grant, money
from tests.world import World


@asynccontextmanager
async def studio(data: Path, database: str) -> AsyncIterator[tuple[World, ProvidersWorld]]:
    """A world with a worker and fakes of all providers."""
    async with opened() as providers:
        world = World(data, database)
        world.providers = providers.settings
        world.store = StoreSettings(fetch_allow=(providers.fake.url,))
        await world.start()
        worker = GenerationWorker(
            world.data, slot=0, primary_url=database, store=world.store, hosts=world.host_settings,
            providers=world.providers, settings=WorkerSettings(),
        )  # fmt: skip
        await worker.start()
        try:
            yield world, providers
        finally:
            await worker.stop()
            await world.stop()


@pytest.mark.parametrize("provider", sorted(MODEL_OF))
async def test_prompt_becomes_a_picture_by_every_provider(tmp_path: Path, database: str, provider: str) -> None:
    """Asked for once, waited for, paid once, and in the gallery at the moment of the answer.

    mission: 1, 2, 3, 20, 31, 33, 36, 41, 42, 144
    """
    async with studio(tmp_path / "data", database) as (world, _):
        await grant(world, "ana", 1000)
        size = {"width": 512, "height": 512}
        reply = await generate(
            world, "ana", prompt="a fox", model=MODEL_OF[provider], headers={"Prefer": "wait=60"}, **size
        )

        assert reply.status == 201, reply
        job = reply.json["generation"]
        assert (job["state"], job["error"]) == ("completed", None), job
        (image,) = job["images"]
        gallery = await world.get("/api/images")
        assert [shown["id"] for shown in gallery.json["images"]] == [image["id"]]
        picture = await world.get(image["url"])
        assert (picture.status, picture.headers["Content-Type"]) == (200, image["content_type"])
        balance, held, _ = await money(world, "ana")
        assert (balance, held) == (1000 - job["cost_credits"] * 10, 0)


async def test_one_call_makes_a_picture_or_says_why_not(tmp_path: Path, database: str) -> None:
    """mission: 61, 144, 156"""
    async with studio(tmp_path / "data", database) as (world, providers):
        await grant(world, "ana", 1000)
        model = MODEL_OF["workers_ai"]
        made = await world.request("POST", "/api/images", json={"prompt": "a fox", "model": model, "seed": 5})
        providers.fake.script("workers_ai", "policy")
        refused = await world.request("POST", "/api/images", json={"prompt": "a fox", "model": model})

        assert made.status == 200, made
        told = made.json["image"]
        assert (told["prompt"], told["model"], told["seed"], told["steps"]) == ("a fox", model, 5, 20)
        assert (refused.status, refused.json["error"]) == (500, "Failed to generate image"), refused
        assert await money(world, "ana") == (970, 0, [1000, -30, -30, 30])


async def test_picture_is_varied_and_comparisons_end_apart(tmp_path: Path, database: str) -> None:
    """mission: 227, 230, 232"""
    async with studio(tmp_path / "data", database) as (world, providers):
        await grant(world, "ana", 1000)
        wait = {"Prefer": "wait=60"}
        first = await generate(world, "ana", prompt="a fox", model="builtin", headers=wait)
        picture = first.json["generation"]["images"][0]["id"]
        varied = await generate(world, "ana", variation_of=picture, model=MODEL_OF["workers_ai"], headers=wait)
        providers.fake.script("openai", "policy")
        compared = await generate(world, "ana", prompt="a fox", models=["builtin", MODEL_OF["openai"]], headers=wait)

        (image,) = varied.json["generation"]["images"]
        assert (image["parent_id"], image["prompt"]) == (picture, "a fox")
        jobs = compared.json["generations"]
        assert [(job["model"], job["state"]) for job in jobs] == [
            ("builtin", "completed"),
            (MODEL_OF["openai"], "failed"),
        ]
        assert compared.json["batch"]["refunded_credits"] == 2
        assert len((await world.get("/api/images")).json["images"]) == 3
        assert (await world.get(f"{GENERATIONS}/{jobs[1]['id']}")).json["generation"]["cost_credits"] == 0
