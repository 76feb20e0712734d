"""Users whose replica is not open: seen for the first time, with a large gallery, or closed a while ago."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import quantiles
from typing import Final

import aiohttp

from actors.folder import ReplicaFolder
from actors.replica import Replica
from actors.schema import user_version
from actors.seed import seed
from store.config import StoreSettings
from store.documents import Documents
from store.gallery import encode_query, parse_gallery_query
from store.primary import Primary
from tests.bench.client import Target, activate, bearer, scrape
from tests.bench.result import BenchError, Line, at_least, at_most

__all__ = ["COLD_ROWS", "measure_cold", "measure_reopen"]

COLD_ROWS: Final = 10_000
_SECTION: Final = f"a cold user with {COLD_ROWS:,} images"
_REOPEN: Final = "a passive user"
_ROWS, _SECONDS = "peruse_host_seed_rows_total", "peruse_host_seed_seconds_total"


async def measure_cold(url: str, service_token: str, users: list[str], bystander: Target) -> list[Line]:
    """Each of `users` reads for the first time, one after the other; `bystander`, on the same host, reads meanwhile."""
    await activate(url, [bystander])
    first_ms, rows_per_s, others_ms, longest_ms = [], [], [], []
    for user in users:
        target = _target(user, service_token)
        before, watch = await scrape(url), asyncio.create_task(_watch(url, bystander))
        try:
            first_ms.append(await _first_byte(url, target))
            await activate(url, [target])
        finally:
            watch.cancel()
        after = await scrape(url)
        rows, seconds = (after.value(name) - before.value(name) for name in (_ROWS, _SECONDS))
        if rows < COLD_ROWS:
            raise BenchError(f"the seed of {user} took {rows:.0f} rows, expected {COLD_ROWS}")
        rows_per_s.append(rows / seconds)
        reads_ms = await watch
        others_ms.append(quantiles(reads_ms, n=100, method="inclusive")[98])
        longest_ms.append(max(reads_ms))
    note = "read over HTTP while the host seeds"
    return [
        Line(_SECTION, "first byte of the first page", "ms", first_ms, at_most(30), note),
        Line(_SECTION, "seed, one user at a time", "rows/s", rows_per_s, at_least(30_000), "by the host's clock"),
        Line(_SECTION, "p99 of another user's reads meanwhile", "ms", others_ms),
        Line(_SECTION, "the longest of those", "ms", longest_ms),
    ]


def _target(user: str, service_token: str) -> Target:
    return Target(f"/internal/users/{user}/images", bearer(service_token))


async def _first_byte(url: str, target: Target) -> float:
    """Milliseconds from asking to the head of the answer, over a connection that is open already."""
    async with aiohttp.ClientSession(url) as http:
        async with http.get("/healthz") as answer:
            await answer.read()
        started = time.perf_counter()
        async with http.get(target.path, headers=target.headers, raise_for_status=True) as answer:
            took_ms = (time.perf_counter() - started) * 1000
            await answer.read()
            if answer.headers["Peruse-Source"] != "seeding":
                raise BenchError(f"{target.path} came from {answer.headers['Peruse-Source']}, expected seeding")
    return took_ms


async def _watch(url: str, target: Target) -> list[float]:
    """Milliseconds of reads, one every few, until it is cancelled."""
    took_ms = []
    async with aiohttp.ClientSession(url) as http:
        try:
            while True:
                started = time.perf_counter()
                async with http.get(target.path, headers=target.headers, raise_for_status=True) as answer:
                    await answer.read()
                took_ms.append((time.perf_counter() - started) * 1000)
                await asyncio.sleep(0.002)
        except asyncio.CancelledError:
            return took_ms


async def measure_reopen(
    url: str, primary_url: str, users: list[str], folder: Path, *, service_token: str, admin_token: str
) -> list[Line]:
    """Open a closed replica and answer from it: in this process, as a host does, and then as clients see it."""
    opened_ms, reopened_ms = await _open_here(primary_url, users, folder)
    targets = [_target(user, service_token) for user in users]
    await activate(url, targets)
    over_http_ms = []
    async with aiohttp.ClientSession(url, raise_for_status=True) as http:
        for user, target in zip(users, targets, strict=True):
            async with http.post(f"/admin/users/{user}/replica/passivate", headers=bearer(admin_token)) as answer:
                if not (await answer.json())["replica"]["passivated"]:
                    raise BenchError(f"the replica of {user} was not open, expected to close it")
            over_http_ms.append(await _page(http, target))
    note = f"{len(users)} users of 50 images: find the file, open it, make the page"
    return [
        Line(_REOPEN, "open and answer, in the host", "ms", reopened_ms, at_most(1), note),
        Line(_REOPEN, "the same right after its seed", "ms", opened_ms, note="the host's loop stands still meanwhile"),
        Line(_REOPEN, "the whole read over HTTP", "ms", over_http_ms, note="and one pull from the primary"),
    ]


async def _page(http: aiohttp.ClientSession, target: Target) -> float:
    started = time.perf_counter()
    async with http.get(target.path, headers=target.headers) as answer:
        await answer.read()
        headers: Mapping[str, str] = answer.headers
    if headers["Peruse-Source"] != "replica":
        raise BenchError(f"{target.path} came from {headers['Peruse-Source']}, expected replica")
    return (time.perf_counter() - started) * 1000


async def _open_here(primary_url: str, users: list[str], folder: Path) -> tuple[list[float], list[float]]:
    """Milliseconds of the first and of the second opening of each user's file."""
    documents = Documents(StoreSettings.load().files_base)
    files = ReplicaFolder.claim(folder / "reopen", "bench", generation=1)
    primary = await Primary.open(primary_url, name="bench", size=1)
    try:
        for user in users:
            await seed(primary, user, files.next_path(user), documents, synced_at=time.time())
    finally:
        await primary.close()
    version, query = user_version(documents), encode_query(parse_gallery_query([]))

    def open_and_answer(user: str) -> float:
        started = time.perf_counter()
        path = files.find(user)
        assert path is not None
        replica = Replica.open(path, user, version)
        replica.read(query)
        took_ms = (time.perf_counter() - started) * 1000
        replica.close()
        return took_ms

    first, again = [open_and_answer(user) for user in users], [open_and_answer(user) for user in users]
    files.release()
    return first, again
