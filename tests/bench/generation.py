"""Generation: jobs a second, what waiting costs a worker, claims of a long queue, and when a picture is seen.

`python -m tests.bench.generation` measures this part alone, on a primary of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from store.embedded import EmbeddedPostgres
from store.generation import jobs
from store.migrations import migrate
from store.primary import Primary
from tests.bench.result import BenchError, Line, at_least, at_most
from tests.fakes.providers import FakeProviders
from tests.worker_process import WorkerProcess
from tests.world import World

__all__ = ["measure_generation"]

_SECTION: Final = "generation"
_WARM_JOBS: Final = 50
_ROUNDS: Final = 3
_JOBS: Final = 300
_USERS: Final = 20
_WAITING: Final = 100
_WAITING_S: Final = 8.0
_QUEUED: Final = 100_000
_QUEUED_USERS: Final = 1000
_CLAIMS: Final = 100
_SEEN: Final = 30
_PARAMS: Final = '{"width": 64, "height": 64, "seed": 7}'


async def measure_generation(folder: Path) -> list[Line]:
    """All lines of the section; `folder` may be entered by any user."""
    async with _primary(folder) as (url, primary):
        lines = await _throughput(url, primary, folder / "throughput")
        lines += await _seen(url, primary, folder / "seen")
        lines += await _waiting(url, primary, folder / "waiting")
        lines += await _claims(primary)
    return lines


@asynccontextmanager
async def _primary(folder: Path) -> AsyncIterator[tuple[str, Primary]]:
    server = EmbeddedPostgres(folder / "generation-postgres")
    await server.start()
    try:
        await migrate(server.url)
        primary = await Primary.open(server.url, name="bench", size=4, statement_timeout_s=120.0)
        try:
            yield server.url, primary
        finally:
            await primary.close()
    finally:
        await server.stop()


async def _add(primary: Primary, count: int, *, users: int, model: str = "builtin", provider: str = "builtin") -> None:
    await primary.fetch(
        "insert into users (id) select 'u' || n from generate_series(1, $1) n on conflict do nothing", users
    )
    await primary.fetch(
        "insert into jobs (owner_id, prompt, provider, model, params) "
        "select 'u' || (n % $2 + 1), 'picture ' || n, $4, $3, $5::text::jsonb from generate_series(1, $1) n",
        count, users, model, provider, _PARAMS,
    )  # fmt: skip


async def _until(check: Callable[[], Awaitable[bool]], what: str, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not await check():
        if time.monotonic() > deadline:
            raise BenchError(f"{what}: not within {timeout_s:g} s")
        await asyncio.sleep(0.01)


async def _throughput(url: str, primary: Primary, folder: Path) -> list[Line]:
    """Jobs that a provider answers at once, from a full queue to the last one settled."""

    async def is_empty() -> bool:
        return not (await primary.fetch("select exists (select from queue)"))[0][0]

    worker = WorkerProcess(url, folder, noop=True)
    await worker.start()
    rates = []
    try:
        await _add(primary, _WARM_JOBS, users=_USERS)
        await _until(is_empty, "warm jobs")
        for _ in range(_ROUNDS):
            started = time.perf_counter()
            await _add(primary, _JOBS, users=_USERS)
            await _until(is_empty, "jobs")
            rates.append(_JOBS / (time.perf_counter() - started))
    finally:
        await worker.stop()
    done = (await primary.fetch("select count(*) from jobs where state = 'completed'"))[0][0]
    if done != _WARM_JOBS + _ROUNDS * _JOBS:
        raise BenchError(f"{done} jobs were completed")
    note = f"{_JOBS} jobs of {_USERS} users, one small picture each, with thumbnails and objects"
    return [Line(_SECTION, "no-op jobs through one worker", "jobs/s", rates, at_least(100), note)]


async def _seen(url: str, primary: Primary, folder: Path) -> list[Line]:
    """From the commit that ends a job to the first page of its owner that shows the picture."""
    world = World(folder, url)
    await world.start()
    worker = WorkerProcess(url, folder, noop=True)
    await worker.start()
    took_ms = []
    before = (await primary.fetch("select count(*) from images where owner_id = 'u1'"))[0][0]
    try:
        for number in range(1, _SEEN + 1):
            await _add(primary, 1, users=1)
            while len((await world.get("/api/images?limit=200", user="u1")).json["images"]) < before + number:
                await asyncio.sleep(0.001)
            seen_at = time.time()
            sql = "select extract(epoch from max(updated_at))::float8 from jobs where owner_id = 'u1'"
            took_ms.append((seen_at - (await primary.fetch(sql))[0][0]) * 1000)
    finally:
        await worker.stop()
        await world.stop()
    note = f"{_SEEN} jobs, one after the other; with the read that shows it"
    return [Line(_SECTION, "settled → in the owner's gallery", "ms", took_ms[1:], at_most(50), note)]


async def _waiting(url: str, primary: Primary, folder: Path) -> list[Line]:
    """A worker that waits for tasks of a slow provider, each looked at every second."""
    fake = FakeProviders()
    await fake.start()
    fake.script("replicate", *["task_never"] * (_WAITING + 10))
    worker = WorkerProcess(
        url, folder, env={**fake.settings(), "PERUSE_PROVIDER_JOBS": str(_WAITING), "PERUSE_WORKER_JOBS": str(_WAITING)}
    )
    await worker.start()
    try:
        await asyncio.sleep(2.0)
        idle_mb = worker.says["rss_mb"]
        await _add(
            primary, _WAITING, users=_USERS, provider="replicate", model="replicate/black-forest-labs/flux-schnell"
        )
        await primary.fetch("update jobs set params = '{\"width\": 512, \"height\": 512}' where provider = 'replicate'")
        tasks = "select count(*) from attempts where state = 'submitted'"

        async def all_wait() -> bool:
            return bool((await primary.fetch(tasks))[0][0] == _WAITING)

        await _until(all_wait, "tasks at the provider")
        late_ms, rss_mb, until = [], 0.0, time.monotonic() + _WAITING_S
        while time.monotonic() < until:
            await asyncio.sleep(0.1)
            late_ms.append(worker.says["late_ms"])
            rss_mb = max(rss_mb, worker.says["rss_mb"])
    finally:
        await worker.kill()
        await fake.stop()
    await primary.fetch("update jobs set state = 'failed' where state not in ('completed', 'failed', 'canceled')")
    note = f"{_WAITING} tasks, each looked at once a second, {_WAITING_S:g} s"
    return [
        Line(_SECTION, "memory of 100 waiting jobs", "MB", [rss_mb - idle_mb], at_most(50), note),
        Line(_SECTION, "longest block of the worker's loop", "ms", [max(late_ms)], at_most(100), note),
    ]


async def _claims(primary: Primary) -> list[Line]:
    await _add(primary, _QUEUED, users=_QUEUED_USERS)
    took_ms: dict[int, list[float]] = {1: [], 8: []}
    for room, took in took_ms.items():
        for _ in range(_CLAIMS):
            started = time.perf_counter()
            taken, _heads = await jobs.claim(primary, "bench", most={"builtin": 10**6}, room=room, lease_s=600)
            took.append((time.perf_counter() - started) * 1000)
            if len(taken) != room:
                raise BenchError(f"a claim took {len(taken)} jobs of {room}")
    note = f"{_QUEUED:,} jobs of {_QUEUED_USERS:,} users wait"
    return [
        Line(_SECTION, f"a claim of {room} from 100,000 jobs", "ms", took, at_most(10), note)
        for room, took in took_ms.items()
    ]


def main() -> int:
    """Print the lines; 1 when a goal is missed."""
    from tests.bench.runs import bench_folder

    with bench_folder() as folder:
        lines = asyncio.run(measure_generation(folder))
    for line in lines:
        print(f"{line.name:40} {line.value_text:>8} {line.unit:8} {line.range_text:14} {line.goal} {line.verdict}")
    return 1 if any(line.verdict == "FAIL" for line in lines) else 0


if __name__ == "__main__":
    raise SystemExit(main())
