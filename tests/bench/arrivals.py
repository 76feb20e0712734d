"""Writes that arrive when they will, and the readers who are to see them.

Through the gateway: 200 writes a second by 200 users, due at random moments that do not wait for slow ones before
them; each is followed by a read with its bookmark. By plain SQL: nobody tells the host, so the read itself has to wait.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from statistics import quantiles
from typing import Final, NamedTuple

import aiohttp
import asyncpg

from tests.bench.client import Target, activate, bearer
from tests.bench.plan import Plan
from tests.bench.reads import PATH
from tests.bench.result import BenchError, Line, at_most

__all__ = ["measure_arrivals", "measure_waits"]

_PER_S: Final = 200
_SECTION: Final = f"write → seen, {_PER_S} writes/s"
_WAITS: Final = "write by plain SQL → seen"
_CONNECTIONS: Final = 64
_BOOKMARK: Final = "Peruse-Bookmark"
#: The same moments in every run.
_SEED: Final = 1


class _User(NamedTuple):
    headers: dict[str, str]
    image: str


async def measure_arrivals(url: str, tokens: Sequence[str], plan: Plan) -> list[Line]:
    """PATCH and read, each run `plan.arrivals` times. Seconds count from when a write was due, so that a stall is
    felt by all who came meanwhile."""
    async with _session(url) as http:
        users = await _users(url, http, tokens)
        runs = [await _run(http, users, plan.arrivals, seed=_SEED + run) for run in range(plan.runs)]
    acknowledged, seen = ([[one[n] for one in run] for run in runs] for n in (0, 1))
    note = f"{plan.runs} runs of {plan.arrivals} writes; from when the write was due"
    return [
        Line(_SECTION, "p50 until the page shows it", "ms", _each(seen, 50), at_most(3), note),
        Line(_SECTION, "p99 until the page shows it", "ms", _each(seen, 99), at_most(20), "the same"),
        Line(_SECTION, "p50 until acknowledged", "ms", _each(acknowledged, 50)),
        Line(_SECTION, "p99 until acknowledged", "ms", _each(acknowledged, 99)),
    ]


async def measure_waits(url: str, primary_url: str, tokens: Sequence[str], plan: Plan) -> list[Line]:
    """How long a read with a bookmark takes when its replica has not heard of the write."""
    connection = await asyncpg.connect(primary_url)
    try:
        async with _session(url) as http:
            users = await _users(url, http, tokens)
            runs = [
                [await _wait(http, connection, users[n % len(users)], f"sql {run} {n}") for n in range(plan.waits)]
                for run in range(plan.runs)
            ]
    finally:
        await connection.close()
    waited = sum(outcome == "waited" for run in runs for _, outcome in run)
    total = plan.runs * plan.waits
    if waited < 0.9 * total:  # a sweep, once a second, may have been there first
        raise BenchError(f"{waited} of {total} reads waited for their bookmark, expected nearly all")
    took_ms = [[ms for ms, outcome in run if outcome == "waited"] for run in runs]
    note = f"{plan.runs} runs of {plan.waits} reads, {waited / total:.0%} of them waited"
    return [
        Line(_WAITS, "p50 of a read that waits for its bookmark", "ms", _each(took_ms, 50)),
        Line(_WAITS, "p99 of a read that waits for its bookmark", "ms", _each(took_ms, 99), at_most(20), note),
    ]


def _session(url: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        url,
        connector=aiohttp.TCPConnector(limit=_CONNECTIONS),
        cookie_jar=aiohttp.DummyCookieJar(),
        raise_for_status=True,
    )


async def _users(url: str, http: aiohttp.ClientSession, tokens: Sequence[str]) -> list[_User]:
    """The users with their newest image; their replicas are open."""
    await activate(url, [Target(PATH, bearer(token)) for token in tokens])
    users = []
    for token in tokens:
        async with http.get(PATH, params={"limit": "1"}, headers=bearer(token)) as answer:
            users.append(_User(bearer(token), (await answer.json())["images"][0]["id"]))
    return users


async def _run(http: aiohttp.ClientSession, users: list[_User], count: int, *, seed: int) -> list[tuple[float, float]]:
    """Milliseconds until acknowledged and until seen, for each of `count` writes of users in turn."""
    loop = asyncio.get_running_loop()
    works: list[asyncio.Task[tuple[float, float]]] = []

    def arrive(number: int, due: float) -> None:
        work = _write_and_see(http, users[number % len(users)], f"run {seed} {number}", due)
        works.append(loop.create_task(work))

    def pace() -> None:
        arrivals = random.Random(seed)
        due = time.perf_counter()
        for number in range(count):
            due += arrivals.expovariate(_PER_S)
            time.sleep(max(0.0, due - time.perf_counter()))
            loop.call_soon_threadsafe(arrive, number, due)

    await asyncio.to_thread(pace)  # a loop's own timers are a millisecond coarse
    return await asyncio.gather(*works)


async def _write_and_see(http: aiohttp.ClientSession, user: _User, title: str, due: float) -> tuple[float, float]:
    async with http.patch(f"{PATH}/{user.image}", json={"title": title}, headers=user.headers) as answer:
        await answer.read()
        bookmark = answer.headers[_BOOKMARK]
    acknowledged_ms = _ms_since(due)
    await _see(http, user, title, bookmark)
    return acknowledged_ms, _ms_since(due)


async def _see(http: aiohttp.ClientSession, user: _User, title: str, bookmark: str) -> str:
    """Read the first page; answers its outcome.

    Raises:
        BenchError: it does not show the title: a broken promise, not a slow one.
    """
    async with http.get(PATH, headers={**user.headers, _BOOKMARK: bookmark}) as answer:
        body = await answer.read()
        if f'"title":"{title}"'.encode() not in body:
            raise BenchError(f"a read with bookmark {bookmark} does not show the title {title!r} written before it")
        return answer.headers["Peruse-Outcome"]


async def _wait(
    http: aiohttp.ClientSession, connection: asyncpg.Connection, user: _User, title: str
) -> tuple[float, str]:
    """Write past the gateway, then milliseconds and outcome of the read with that bookmark."""
    async with connection.transaction():
        owner = await connection.fetchval(
            "update images set title = $2 where id = $1::text::uuid returning owner_id", user.image, title
        )
        epoch, version = await connection.fetchrow("select epoch, version from sync_flush($1)", owner)
    started = time.perf_counter()
    outcome = await _see(http, user, title, f"{epoch}.{version}")
    return _ms_since(started), outcome


def _ms_since(moment: float) -> float:
    return (time.perf_counter() - moment) * 1000


def _each(runs: Sequence[Sequence[float]], percent: int) -> list[float]:
    """The percentile of each run."""
    return [quantiles(run, n=100, method="inclusive")[percent - 1] for run in runs]
