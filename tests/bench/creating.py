"""Generations asked for: how long the answer takes, and how soon who waits hears of the end.

`python -m tests.bench.creating` starts an instance of its own, without workers. Exit code 1 when a goal is missed.
"""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from statistics import quantiles
from typing import Any, Final

import aiohttp
import asyncpg
import uvloop

from tests.bench import report
from tests.bench.client import bearer
from tests.bench.gallery import server_version
from tests.bench.instance import Instance
from tests.bench.machine import describe
from tests.bench.result import BenchError, Line, at_most
from tests.bench.runs import bench_folder, run, say

__all__ = ["measure_creating"]

_SECTION: Final = "generations"
_PATH: Final = "/api/generations"
_PAID: Final = "@cf/stabilityai/stable-diffusion-xl-base-1.0"
_WARM_UP: Final = 50
_REQUESTS: Final = 1000
_AT_ONCE: Final = 16
_WAITS: Final = 50
_GOAL_MS: Final = 30

_END: Final = """
with job as (select id, owner_id from jobs where owner_id = $1 and prompt = $2),
image as (
  insert into images (owner_id, object_key, content_type, size_bytes, prompt, model)
  select owner_id, 'generated/' || gen_random_uuid(), 'image/png', 9, 'x', 'builtin' from job returning id)
update jobs j set state = 'completed', image_ids = array(select id from image) from job where j.id = job.id
"""


async def measure_creating(url: str, primary_url: str, user: str, token: str) -> list[Line]:
    """Create jobs that are free and jobs that are paid, then wait for some whose end this writes."""
    connection = await asyncpg.connect(primary_url)
    try:
        async with aiohttp.ClientSession(url, headers=bearer(token)) as http:
            for _ in range(_WARM_UP):
                await _create(http, model="builtin")
            await connection.execute(
                "insert into credit_ledger (owner_id, kind, amount_tenths) values ($1, 'grant', 1000000)", user
            )
            free = [await _create(http, model="builtin") for _ in range(_REQUESTS)]
            paid = [await _create(http, model=_PAID, key=str(uuid.uuid4())) for _ in range(_REQUESTS)]
            started = time.perf_counter()
            crowd = await asyncio.gather(*(_one_after_another(http) for _ in range(_AT_ONCE)))
            took_s = time.perf_counter() - started
            waits = [await _wait(http, connection, user) for _ in range(_WAITS)]
    finally:
        await connection.close()
    together = [took for takes in crowd for took in takes]
    return [
        *_lines("free, one at a time", free),
        *_lines("paid, with an idempotency key", paid),
        Line(_SECTION, f"p99 of 202, {_AT_ONCE} at once", "ms", [_p99(together)], note=f"{len(together)} of one user"),
        Line(_SECTION, f"created, {_AT_ONCE} at once", "jobs/s", [len(together) / took_s]),
        Line(_SECTION, "end of a job → answer to who waits", "ms", waits, at_most(150), f"{_WAITS} ends"),
    ]


async def _create(http: aiohttp.ClientSession, *, model: str, key: str | None = None) -> float:
    """Milliseconds until the answer."""
    headers = {} if key is None else {"Idempotency-Key": key}
    started = time.perf_counter()
    async with http.post(_PATH, json={"prompt": "a fox at night", "model": model}, headers=headers) as answer:
        body = await answer.read()
    took_ms = (time.perf_counter() - started) * 1000
    if answer.status != 202:
        raise BenchError(f"POST {_PATH} answered {answer.status}, expected 202: {body[:300]!r}")
    return took_ms


async def _one_after_another(http: aiohttp.ClientSession) -> list[float]:
    return [await _create(http, model="builtin") for _ in range(_REQUESTS // _AT_ONCE)]


async def _wait(http: aiohttp.ClientSession, connection: Any, user: str) -> float:
    """Milliseconds from the commit of a job's end to the answer that waited for it."""
    prompt = f"waited for {uuid.uuid4()}"

    async def ask() -> float:
        async with http.post(_PATH, json={"prompt": prompt}, headers={"Prefer": "wait=30"}) as answer:
            await answer.read()
            if answer.status != 201:
                raise BenchError(f"waiting was answered {answer.status}, expected 201")
            return time.perf_counter()

    asked = asyncio.create_task(ask())
    await asyncio.sleep(0.1)
    await connection.execute(_END, user, prompt)
    ended = time.perf_counter()
    return (await asked - ended) * 1000


def _lines(how: str, took: list[float]) -> list[Line]:
    note = f"{len(took)} of one user, client's clock"
    return [
        Line(_SECTION, f"p50 of 202, {how}", "ms", [quantiles(took, n=2)[0]], note=note),
        Line(_SECTION, f"p99 of 202, {how}", "ms", [_p99(took)], at_most(_GOAL_MS), note),
    ]


def _p99(took: list[float]) -> float:
    return quantiles(took, n=100)[98]


def _bench() -> int:
    started = time.monotonic()
    with bench_folder() as folder:
        instance = Instance(folder / "data", log=folder / "instance.log")
        instance.set("workers_ai_key", "nobody")
        instance.set("workers_ai_account", "nobody")
        try:
            say("starting on a fresh folder")
            instance.start(workers=0)
            say(f"{2 * _REQUESTS} generations, one after the other, and {_REQUESTS} {_AT_ONCE} at a time")
            primary_url = instance.primary_url()
            machine = describe(postgres=uvloop.run(server_version(primary_url)))
            lines = uvloop.run(measure_creating(instance.url, primary_url, "ana", instance.token("ana")))
        finally:
            instance.stop()
    print(report.table(lines, machine, plan="creating", took_s=time.monotonic() - started))
    return 1 if any(line.verdict == "FAIL" for line in lines) else 0


if __name__ == "__main__":
    sys.exit(run(_bench))
