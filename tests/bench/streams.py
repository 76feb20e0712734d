"""Event streams: what a gateway grows by for each idle one, and how soon all of them open hear of a commit."""

from __future__ import annotations

import asyncio
import resource
import time
from pathlib import Path
from typing import Final, cast
from urllib.parse import urlsplit

import aiohttp
import asyncpg

from tests.bench.client import Target, activate, bearer
from tests.bench.instance import Instance
from tests.bench.result import BenchError, Line, at_most

__all__ = ["measure_streams"]

_SECTION: Final = "event streams"
_AT_ONCE: Final = 50
_WARM: Final = 50
_COMMITS: Final = 40
#: Two rounds of keeping alive: whatever an idle stream needs, it has had by then.
_IDLE_S: Final = 32.0
_PATIENCE_S: Final = 10.0
_HANDLES: Final = 512  # besides the streams' own


class _Ear(asyncio.Protocol):
    """One listener, with as little around it as can be: thousands share a process that must not slow the others."""

    def __init__(self, user: str, token: str) -> None:
        self.user = user
        self.token = token
        self.began: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.heard: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self.is_lost = False
        self._transport: asyncio.BaseTransport | None = None
        self._seen = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        writing = cast(asyncio.WriteTransport, transport)  # uvloop's is one in all but name
        writing.write(f"GET /api/events HTTP/1.1\r\nHost: b\r\nAuthorization: Bearer {self.token}\r\n\r\n".encode())

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if not self.began.done():
            self._seen += data
            if b"\nid: " in self._seen:
                self.began.set_result(None)
            elif not self._seen.startswith(b"HTTP/1.1 200"[: len(self._seen)]):
                self.began.set_exception(BenchError(f"a stream was refused: {self._seen[:300]!r}"))
        elif b"\ndata: " in data and not self.heard.done():
            self.heard.set_result(now)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        if not self.began.done():
            self.began.set_exception(BenchError(f"a stream of {self.user} ended before it began"))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


async def measure_streams(instance: Instance, primary_url: str, writers: list[str], *, streams: int) -> list[Line]:
    """Open `streams` of as many users, look at them idle, then commit for `writers`, who have images and listen too.

    Raises:
        BenchError: a stream was refused, ended, or did not hear.
    """
    _allow_handles(streams + _WARM)
    pid = instance.gateway_pid()
    users = [*writers, *(f"idle-{n:05d}" for n in range(streams - len(writers)))]
    ears = [_Ear(user, instance.token(user)) for user in users]
    warm = [_Ear(f"warm-{n}", instance.token(f"warm-{n}")) for n in range(_WARM)]
    await activate(instance.url, [Target("/api/images", bearer(ear.token)) for ear in ears[: len(writers)]])
    try:
        await _open(instance.url, warm)
        before = _resident_kb(pid)
        started = time.perf_counter()
        await _open(instance.url, ears)
        opened_s = time.perf_counter() - started
        await asyncio.sleep(_IDLE_S)
        each_kb = (_resident_kb(pid) - before) / streams
        poked = [await _by_patch(instance.url, ear) for ear in ears[: len(writers)]]
        swept = await _by_sql(primary_url, ears[: len(writers)])
        lost = sum(ear.is_lost for ear in ears)
        if lost:
            raise BenchError(f"{lost} of {streams} streams ended by themselves")
    finally:
        for ear in (*ears, *warm):
            ear.close()
    note = f"{streams:,} streams of as many users, one gateway"
    return [
        Line(_SECTION, "resident memory per idle stream", "KB", [each_kb], at_most(50), note),
        Line(_SECTION, "to open all of them", "s", [opened_s], note=f"{_AT_ONCE} at once"),
        Line(_SECTION, "PATCH sent → message", "ms", poked, note="all streams open; the write is in it"),
        Line(_SECTION, "commit by plain SQL → message", "ms", swept, at_most(2000), "all streams open; nobody pokes"),
    ]


async def _open(url: str, ears: list[_Ear]) -> None:
    parts, loop, waiting = urlsplit(url), asyncio.get_running_loop(), iter(ears)

    async def opener() -> None:
        for ear in waiting:
            await loop.create_connection(lambda ear=ear: ear, parts.hostname, parts.port)  # type: ignore[misc]
            await asyncio.wait_for(ear.began, _PATIENCE_S)

    async with asyncio.TaskGroup() as group:
        for _ in range(_AT_ONCE):
            group.create_task(opener())


async def _by_patch(url: str, ear: _Ear) -> float:
    """Milliseconds from sending a change of a title to its message."""
    async with aiohttp.ClientSession(url, headers=bearer(ear.token)) as http:
        async with http.get("/api/images", raise_for_status=True) as answer:
            image = (await answer.json())["images"][0]["id"]
        started = _listen(ear)
        async with http.patch(f"/api/images/{image}", json={"title": "heard"}, raise_for_status=True) as answer:
            await answer.read()
        return (await _message(ear) - started) * 1000


async def _by_sql(primary_url: str, ears: list[_Ear]) -> list[float]:
    """Milliseconds from each commit to its message."""
    connection = await asyncpg.connect(primary_url)
    took = []
    try:
        for number in range(_COMMITS):
            ear = ears[number % len(ears)]
            _listen(ear)
            await connection.execute("update images set title = $2 where owner_id = $1", ear.user, f"heard {number}")
            committed = time.perf_counter()
            took.append((await _message(ear) - committed) * 1000)
    finally:
        await connection.close()
    return took


def _listen(ear: _Ear) -> float:
    ear.heard = asyncio.get_running_loop().create_future()
    return time.perf_counter()


async def _message(ear: _Ear) -> float:
    try:
        return await asyncio.wait_for(ear.heard, _PATIENCE_S)
    except TimeoutError:
        raise BenchError(f"{ear.user} heard nothing within {_PATIENCE_S:g} s of a commit") from None


def _resident_kb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() / 1000


def _allow_handles(streams: int) -> None:
    """This process has an end of each stream."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < streams + _HANDLES:
        raise BenchError(f"{streams} streams need {streams + _HANDLES} open files, and the limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
