"""Reads over HTTP, waiting for replicas, and a scrape of /metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from tests.bench.result import BenchError

__all__ = ["Scrape", "Target", "activate", "bearer", "scrape"]


class Target(NamedTuple):
    """A page that somebody reads."""

    path: str
    headers: Mapping[str, str]


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def activate(url: str, targets: Sequence[Target], *, at_once: int = 8, timeout_s: float = 30.0) -> None:
    """Read each target again and again until its user's replica answers; `at_once` of them at a time.

    Raises:
        BenchError: a replica did not come within `timeout_s`, or something else than 200 was answered.
    """
    waiting = list(reversed(targets))

    async def reader(http: aiohttp.ClientSession) -> None:
        while waiting:
            await _until_replica(http, waiting.pop(), timeout_s)

    async with aiohttp.ClientSession(url) as http, asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(reader(http))


async def _until_replica(http: aiohttp.ClientSession, target: Target, timeout_s: float) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while True:
        async with http.get(target.path, headers=target.headers) as answer:
            await answer.read()
            if answer.status != 200:
                raise BenchError(f"GET {target.path} answered {answer.status}, expected 200")
            if answer.headers["Peruse-Source"] == "replica":
                return
        if loop.time() > deadline:
            raise BenchError(f"GET {target.path} was not answered by a replica within {timeout_s:g} s")
        await asyncio.sleep(0.01)


class Scrape:
    """All samples of one look at /metrics, summed over gateways and hosts."""

    def __init__(self, text: str) -> None:
        self._samples: list[tuple[str, Mapping[str, str], float]] = [
            (sample.name, sample.labels, sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ]

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples `name` that carry `labels`; 0 when there is none."""
        return sum(
            value
            for found, there, value in self._samples
            if found == name and all(there.get(key) == wanted for key, wanted in labels.items())
        )

    def buckets(self, name: str) -> dict[float, float]:
        """Upper bound → cumulative count of the histogram `name`."""
        found: dict[float, float] = {}
        for sample, labels, value in self._samples:
            if sample == f"{name}_bucket":
                bound = float(labels["le"])
                found[bound] = found.get(bound, 0.0) + value
        return found


async def scrape(url: str) -> Scrape:
    async with aiohttp.ClientSession(url) as http, http.get("/metrics", raise_for_status=True) as answer:
        return Scrape(await answer.text())
