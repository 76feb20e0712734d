"""kill -9 of a worker, again and again, with jobs of every kind of provider in work: nothing is paid twice, no picture
is lost, and every job ends."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import tempfile
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from store.objects.picture_process import PictureProcess
from store.primary import Primary
from tests.generation.jobs_world import JobsWorld, jobs_world
from tests.generation.money import assert_money
from tests.served import Served, eventually, peruse, processes_of
from tests.worker_process import WorkerProcess

pytestmark = pytest.mark.faults

_PROVIDERS = ("builtin", "openai", "openrouter", "workers_ai", "nanobanana", "replicate", "fal")
_JOBS_PER_KILL = 4
#: From the first claim on. The process that reads pictures takes a second to start: some live to use it.
_LIVES_S = (0.02, 0.1, 0.3, 0.6, 1.5, 2.5)


@pytest.fixture
async def jobs(primary: Primary, tmp_path: Path) -> AsyncIterator[JobsWorld]:
    pictures = PictureProcess()
    async with jobs_world(primary, tmp_path, pictures) as made:
        yield made
    await pictures.close()


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(8, marks=pytest.mark.timeout(300)),
        pytest.param(100, marks=[pytest.mark.long, pytest.mark.timeout(1800)]),
    ],
)
async def test_a_worker_is_killed(jobs: JobsWorld, database: str, tmp_path: Path, kills: int) -> None:
    """Whenever a worker is killed, the next one goes on: the ledger is right after each kill, and at the end every job
    is completed, or has been given back after two outcomes that nobody knows, or after the deaths of 25 workers."""
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
        await asyncio.sleep(dice.choice(_LIVES_S) * dice.uniform(0.5, 1.5))
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
            # The oldest jobs are claimed by each worker: where so many of them die young, those end too.
            is_worn = row["error_code"] == "worker_failed" and kills > 25
            assert is_worn or (row["error_code"] == "unknown_outcome" and len(unknown) >= 2), (row, attempts)
        stored = [key for one in attempts if one["state"] == "done" for key in one["object_keys"]]
        shown = await jobs.primary.fetch("select object_key from images where job_id = $1", row["id"])
        assert sorted(stored) == sorted(image["object_key"] for image in shown), attempts
    asked = len([call for call in jobs.world.fake.calls if call.what == "submit"])
    tried = await jobs.primary.fetch("select count(*) from attempts where provider <> 'builtin'")
    assert asked <= tried[0][0], "a provider was asked without an attempt"
    with_task = await jobs.primary.fetch("select from attempts where task_id is not null and state = 'unknown'")
    assert with_task == [], "a task whose id was saved is always gone on with"


@pytest.mark.timeout(300)
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


@pytest.mark.timeout(300)
async def test_a_worker_is_killed_under_ray() -> None:
    """Ray starts a killed worker again, five times: its jobs go on, each becomes one picture, and the stop is clean."""
    with tempfile.TemporaryDirectory(prefix="peruse-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        served = Served(Path(folder) / "data", "--hosts", "1", "--workers", "1")
        (Path(folder) / "data").mkdir(mode=0o711)
        peruse("config", "set", "worker_lease_s", "2", data=served.data)
        served.start()
        try:
            connection = await served.primary()
            await connection.execute("insert into users (id) values ('ana')")
            await connection.execute(
                "insert into credit_ledger (owner_id, kind, amount_tenths) values ('ana', 'grant', 10000)"
            )
            killed: set[int] = set()
            for _ in range(5):
                pid = await eventually(lambda: _worker_pid(served, killed), timeout_s=60)
                await connection.execute(
                    "insert into jobs (owner_id, prompt, provider, model, price_tenths, params) "
                    "select 'ana', 'picture ' || n, 'builtin', 'builtin', 10, "
                    '\'{"width": 1024, "height": 1024, "seed": 7}\' from generate_series(1, 4) n'
                )
                await eventually(lambda: _attempts(connection), timeout_s=60)
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
                await assert_money(connection)
            await eventually(lambda: _all_ended(connection), timeout_s=60)
            await assert_money(connection)
            states = await connection.fetch("select state, count(*) from jobs group by 1")
            assert [tuple(row) for row in states] == [("completed", 20)]
            async with served.client("ana") as client:
                assert len((await client.get("/api/images")).json()["images"]) == 20
            await connection.close()
        finally:
            assert served.stop() == 0
        assert processes_of(served.data) == []


async def _worker_pid(served: Served, killed: set[int]) -> int | None:
    def command(pid: int) -> str:
        try:
            return Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            return ""

    workers = [pid for pid in processes_of(served.data) if "WorkerActor" in command(pid)]
    return next((pid for pid in workers if pid not in killed), None)


async def _attempts(connection: Any) -> bool:
    return bool(await connection.fetchval("select exists (select from attempts where ended_at is null)"))


async def _all_ended(connection: Any) -> bool:
    return not await connection.fetchval("select exists (select from queue)")
