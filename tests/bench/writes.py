"""From a write to its being seen: commit → applied at the host, and what the writer's own next read takes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Final

import aiohttp

from tests.bench.client import Scrape, Target, activate, bearer, scrape
from tests.bench.plan import Plan
from tests.bench.reads import PATH
from tests.bench.result import BenchError, Line, at_most

__all__ = ["measure_writes", "quantile"]

_SECTION: Final = "write → visible"
_HISTOGRAM: Final = "peruse_visible_seconds"
#: Between two writes: each is to be pulled by itself, as a person's writes are.
_PAUSE_S: Final = 0.01
_LAST_APPLIED_S: Final = 10.0


async def measure_writes(url: str, token: str, plan: Plan) -> list[Line]:
    """Change titles of a user whose replica is open, first without readers, then with the writer reading."""
    await activate(url, [Target(PATH, bearer(token))])
    async with aiohttp.ClientSession(url, headers=bearer(token)) as http:
        async with http.get(PATH, raise_for_status=True) as answer:
            image = (await answer.json())["images"][0]["id"]
        before = await scrape(url)
        patches = []
        for number in range(plan.writes):
            patches.append((await _write(http, image, f"title {number}"))[1])
            await asyncio.sleep(_PAUSE_S)
        after = await _all_applied(url, before, plan.writes)
        own = [await _read_own_write(http, image, f"own {number}") for number in range(plan.reads_after_write)]
    return [*_visible(before, after, plan.writes), *_seen_by_client(patches, own)]


async def _write(http: aiohttp.ClientSession, image: str, title: str) -> tuple[str, float]:
    """PATCH the title; answers the bookmark and the milliseconds it took."""
    started = time.perf_counter()
    async with http.patch(f"{PATH}/{image}", json={"title": title}, raise_for_status=True) as answer:
        await answer.read()
        return answer.headers["Peruse-Bookmark"], (time.perf_counter() - started) * 1000


async def _read_own_write(http: aiohttp.ClientSession, image: str, title: str) -> tuple[float, float]:
    """Milliseconds of the page that shows a write, asked for at once after it, and of both together.

    Raises:
        BenchError: the page does not show it: a broken promise, not a slow one.
    """
    bookmark, write_ms = await _write(http, image, title)
    started = time.perf_counter()
    async with http.get(PATH, headers={"Peruse-Bookmark": bookmark}, raise_for_status=True) as answer:
        body = await answer.read()
        read_ms = (time.perf_counter() - started) * 1000
    if f'"title":"{title}"'.encode() not in body:
        raise BenchError(f"a read with bookmark {bookmark} does not show the title {title!r} written before it")
    return read_ms, write_ms + read_ms


async def _all_applied(url: str, before: Scrape, writes: int) -> Scrape:
    """The first scrape that counts all writes as applied."""
    deadline = time.monotonic() + _LAST_APPLIED_S
    while True:
        now = await scrape(url)
        applied = now.value(f"{_HISTOGRAM}_count") - before.value(f"{_HISTOGRAM}_count")
        if applied >= writes:
            return now
        if time.monotonic() > deadline:
            raise BenchError(f"{applied:.0f} of {writes} writes were applied {_LAST_APPLIED_S:g} s after the last")
        await asyncio.sleep(0.05)


def quantile(buckets: Mapping[float, float], share: float) -> float:
    """The value below which `share` of a cumulative histogram lies, taken as evenly spread within its bucket.

    The last finite bound when it lies beyond it.
    """
    bounds = sorted(buckets)
    wanted = share * buckets[bounds[-1]]
    low, below = 0.0, 0.0
    for bound in bounds:
        count = buckets[bound]
        if count >= wanted and count > below:
            return low if bound == float("inf") else low + (bound - low) * (wanted - below) / (count - below)
        low, below = bound, count
    return low


def _visible(before: Scrape, after: Scrape, writes: int) -> list[Line]:
    earlier = before.buckets(_HISTOGRAM)
    buckets = {bound: count - earlier.get(bound, 0.0) for bound, count in after.buckets(_HISTOGRAM).items()}
    seconds, count = (
        after.value(f"{_HISTOGRAM}_{part}") - before.value(f"{_HISTOGRAM}_{part}") for part in ("sum", "count")
    )
    p50_ms, p99_ms = (quantile(buckets, share) * 1000 for share in (0.5, 0.99))
    note = "interpolated within the histogram's buckets"
    return [
        Line(_SECTION, "p50 commit → applied", "ms", [p50_ms], at_most(10), f"{writes} writes; {note}"),
        Line(_SECTION, "p99 commit → applied", "ms", [p99_ms], note=note),
        Line(_SECTION, "mean commit → applied", "ms", [seconds / count * 1000], note="exact"),
    ]


def _seen_by_client(patches: list[float], own: list[tuple[float, float]]) -> list[Line]:
    reads, both = [read for read, _ in own], [total for _, total in own]
    return [
        Line(_SECTION, "PATCH through the gateway", "ms", patches, note="client's clock, one at a time"),
        Line(_SECTION, "the writer's next read shows it", "ms", reads, note=f"{len(own)} reads with the bookmark"),
        Line(_SECTION, "write and that read together", "ms", both),
    ]
