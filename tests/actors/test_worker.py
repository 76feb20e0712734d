"""A worker beside a host and a gateway: a job's picture is in the gallery, and what the worker does can be seen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from actors.config import WorkerSettings
from actors.worker import GenerationWorker
from actors.worker_stats import read_worker_stats
from store.errors import SettingError
from store.generation.config import ProviderSettings
from store.generation.providers.builtin import Builtin
from tests.fakes.providers import FakeProviders
from tests.world import World, until

Start = Callable[..., Awaitable[GenerationWorker]]


@pytest.fixture
async def start(world: World) -> AsyncIterator[Start]:
    """Workers on the world's data folder."""
    started: list[GenerationWorker] = []

    async def one(*, slot: int = 0, providers: ProviderSettings | None = None, **given: Any) -> GenerationWorker:
        worker = GenerationWorker(
            world.data, slot=slot, primary_url=world.database, store=world.store, hosts=world.host_settings,
            providers=providers or ProviderSettings(), settings=WorkerSettings(**given),
        )  # fmt: skip
        await worker.start()
        started.append(worker)
        return worker

    yield one
    for worker in started:
        await worker.stop(grace_s=0.1)


async def add(world: World, prompt: str = "a red panda", *, px: int = 64, **columns: Any) -> None:
    async def work(connection: Any) -> None:
        await connection.execute("insert into users (id) values ('ana') on conflict do nothing")
        params = f'{{"width": {px}, "height": {px}, "seed": 7}}'
        values = {"prompt": prompt, "provider": "builtin", "model": "builtin", "params": params, **columns}
        marks = ", ".join(f"${n}::text::jsonb" if name == "params" else f"${n}" for n, name in enumerate(values, 1))
        await connection.execute(
            f"insert into jobs (owner_id, {', '.join(values)}) values ('ana', {marks})", *values.values()
        )

    await world.write("ana", work)


async def shown(world: World) -> list[dict[str, Any]]:
    images: list[dict[str, Any]] = (await world.get("/api/images")).json["images"]
    return images


async def test_a_job_is_seen_in_the_gallery(world: World, start: Start) -> None:
    """A picture is in its owner's gallery by itself, from the replica, with the prompt it was made of; its bytes too.

    mission: 1
    """
    await world.get("/api/images")
    await start()
    await add(world)
    images = await until(lambda: shown(world))
    assert [(image["prompt"], image["seed"]) for image in images] == [("a red panda", 7)]
    reply = await world.get(images[0]["url"])
    assert reply.status == 200
    assert b"trainedAlgorithmicMedia" in reply.body
    assert (await world.get("/api/images", user="bob")).json["images"] == []


async def test_metrics(world: World, start: Start) -> None:
    """/metrics tells each worker's jobs, calls by provider and outcome, and their time; a worker that has ended is not
    there any more."""
    worker = await start()
    await add(world)
    await add(world, "nothing", model="no-such-model")

    async def told() -> str:
        text = (await world.get("/metrics", user=None)).body.decode()
        return (
            text if 'peruse_worker_jobs_total{provider="builtin",state="completed",worker="test:0"} 1.0' in text else ""
        )

    text = await until(told)
    assert 'peruse_worker_jobs_total{provider="builtin",state="failed",worker="test:0"} 1.0' in text
    assert 'peruse_worker_attempts_total{outcome="done",provider="builtin",worker="test:0"} 1.0' in text
    assert 'peruse_worker_attempt_seconds_total{outcome="done",provider="builtin",worker="test:0"}' in text
    assert 'peruse_worker_running{worker="test:0"} 0.0' in text
    await worker.stop()
    assert read_worker_stats(world.data) == []
    assert "peruse_worker_running{" not in (await world.get("/metrics", user=None)).body.decode()


async def test_bounds_by_setting(world: World, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """PERUSE_PROVIDER_JOBS bounds a provider over all workers, PERUSE_WORKER_JOBS a worker over all providers."""
    release, asked, most = asyncio.Event(), 0, 0
    real = Builtin.submit

    async def submit(self: Builtin, *args: Any, **options: Any) -> Any:
        nonlocal asked, most
        asked += 1
        most = max(most, asked)
        await release.wait()
        asked -= 1
        return await real(self, *args, **options)

    monkeypatch.setattr(Builtin, "submit", submit)
    for _ in range(6):
        await add(world)
    workers = [await start(slot=slot, provider_jobs="9,builtin=3", worker_jobs=2) for slot in range(2)]
    await until(lambda: sum(worker.running for worker in workers) == 3)
    await asyncio.sleep(0.5)
    assert sorted(worker.running for worker in workers) == [1, 2]
    release.set()
    await until(lambda: counted(world, 6))
    assert most <= 3


async def counted(world: World, wanted: int) -> bool:
    return len(await shown(world)) == wanted


async def test_result_hosts(world: World, start: Start) -> None:
    """What a provider's answer points to is fetched only where PERUSE_FETCH_ALLOW allows it."""
    fake = FakeProviders()
    await fake.start()
    try:
        env = {name.removeprefix("PERUSE_").lower(): value for name, value in fake.settings().items()}
        await start(providers=ProviderSettings(**env))
        model = "replicate/black-forest-labs/flux-schnell"
        await add(world, px=512, provider="replicate", model=model)

        async def failed() -> list[Any]:
            return await world.gateway.primary.fetch("select error_code from jobs where state = 'failed'")

        assert (await until(failed))[0][0] == "undeliverable"
    finally:
        await fake.stop()


async def test_wrong_settings_end_the_start(start: Start) -> None:
    """A moderation or a price file that is not there is told at the start, by the setting's name."""
    with pytest.raises(SettingError, match="PERUSE_MODERATION"):
        await start(moderation="no.such:thing")
    with pytest.raises(SettingError, match="PERUSE_PRICES_FILE"):
        await start(providers=ProviderSettings(prices_file="/nowhere"))
