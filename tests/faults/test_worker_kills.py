"""kill -9 of a worker, again and again, with jobs of every kind of provider in work: nothing is paid twice, no picture
is lost, and every job ends."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from store.objects.picture_process import PictureProcess
from store.primary import Primary
from tests.generation.jobs_world import JobsWorld, jobs_world
from tests.generation.money import assert_money
from tests.worker_process import WorkerProcess

pytestmark = pytest.mark.faults

_PROVIDERS = ("builtin", "openai", "openrouter", "workers_ai", "nanobanana", "replicate", "fal")
_JOBS_PER_KILL = 4


@pytest.fixture
async def jobs(primary: Primary, tmp_path: Path) -> AsyncIterator[JobsWorld]:
    pictures = PictureProcess()
    async with jobs_world(primary, tmp_path, pictures) as made:
        yield made
    await pictures.close()


@pytest.mark.parametrize(
    "kills", [pytest.param(8, id="quick"), pytest.param(100, marks=[pytest.mark.long, pytest.mark.timeout(1800)])]
)
@pytest.mark.timeout(300)
async def test_a_worker_is_killed(jobs: JobsWorld, database: str, tmp_path: Path, kills: int) -> None:
    """Whenever a worker is killed, the next one goes on: the ledger is right after each kill, and at the end every job
    is completed, or has been given back after two outcomes that nobody knows."""
    env = {
        **jobs.world.fake.settings(),
        "PERUSE_WORKER_LEASE_S": "2",
        "PERUSE_FETCH_ALLOW": jobs.world.fake.url,
    }
    dice = random.Random(5)
    await jobs.user("ana", credits_tenths=15 * 2 * kills * _JOBS_PER_KILL)
    ids: list[uuid.UUID] = []
    begun = 0
    for number in range(kills):
        for n in range(_JOBS_PER_KILL):
            provider = _PROVIDERS[(number * _JOBS_PER_KILL + n) % len(_PROVIDERS)]
            ids.append(await jobs.add(provider, f"picture {len(ids)}", n=dice.choice((1, 1, 2))))
        worker = WorkerProcess(database, tmp_path, env=env)
        await worker.start()
        await asyncio.sleep(dice.choice((0.0, 0.02, 0.1, 0.3, 0.6)) * dice.uniform(0.5, 1.5))
        await worker.kill()
        begun += len(await jobs.primary.fetch("select from attempts where ended_at is null"))
        await assert_money(jobs.primary)
    assert begun, "no kill met a call under way"

    last = WorkerProcess(database, tmp_path, env=env)
    await last.start()
    rows = await jobs.ended(*ids, timeout_s=60)
    assert await last.stop() == 0
    await jobs.assert_objects()
    for row in rows:
        attempts = await jobs.attempts(row["id"])
        unknown = [one for one in attempts if one["state"] == "unknown"]
        if row["state"] != "completed" or len(row["image_ids"]) < row["n"]:
            assert row["error_code"] == "unknown_outcome", row
            assert len(unknown) >= 2, attempts
        stored = [key for one in attempts if one["state"] == "done" for key in one["object_keys"]]
        shown = await jobs.primary.fetch("select object_key from images where job_id = $1", row["id"])
        assert sorted(stored) == sorted(image["object_key"] for image in shown), attempts
    asked = len([call for call in jobs.world.fake.calls if call.what == "submit"])
    tried = await jobs.primary.fetch("select count(*) from attempts where provider <> 'builtin'")
    assert asked <= tried[0][0], "a provider was asked without an attempt"
    with_task = await jobs.primary.fetch("select from attempts where task_id is not null and state = 'unknown'")
    assert with_task == [], "a task whose id was saved is always gone on with"


async def test_a_worker_is_told_to_stop(jobs: JobsWorld, database: str, tmp_path: Path) -> None:
    """SIGTERM ends a worker within seconds, whatever its providers do, and its jobs wait for the next one at once."""
    env = {**jobs.world.fake.settings(), "PERUSE_FETCH_ALLOW": jobs.world.fake.url}
    jobs.world.fake.script("replicate", "task_polls 8")
    ids = [await jobs.add(provider) for provider in ("replicate", "builtin", "openai")]
    worker = WorkerProcess(database, tmp_path, env=env)
    await worker.start()
    await jobs.until(lambda: jobs._count("select count(*) from attempts where task_id is not null"), 1)
    assert await worker.stop() == 0
    assert await jobs.primary.fetch("select from queue where worker is not null") == []
    again = WorkerProcess(database, tmp_path, env=env)
    await again.start()
    rows = await jobs.ended(*ids, timeout_s=60)
    await again.stop()
    assert {row["state"] for row in rows} == {"completed"}
    assert len(jobs.world.fake.made("replicate")) == 1
