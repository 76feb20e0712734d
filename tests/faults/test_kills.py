"""kill -9 of each part while people read and write: nothing that was acknowledged is lost, service comes back."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from store.epoch import Bookmark
from tests.served import Served, eventually, peruse, processes_of

pytestmark = [pytest.mark.faults, pytest.mark.timeout(180)]
PROMPTS = Path(__file__).parent.parent / "data" / "parti_prompts.tsv"


@pytest.fixture(scope="module")
def served(open_folder: Path) -> Iterator[Served]:
    instance = Served(open_folder / "faults")
    instance.start()
    peruse("import", str(PROMPTS), "--user", "ana", "--limit", "40", "--size", "64", data=instance.data)
    yield instance
    assert instance.stop() == 0
    assert processes_of(instance.data) == []


class Load:
    """A writer and two readers of one user, and what they saw.

    `acked`: image id → the last title whose write was acknowledged. `unsure`: titles whose outcome nobody told.
    """

    def __init__(self, client: httpx.AsyncClient, ids: list[str]) -> None:
        self.client = client
        self.ids = ids
        self.acked: dict[str, str] = {}
        self.unsure: dict[str, set[str]] = {}
        self.writes = self.reads = 0
        self.last_read_at = self.last_write_at = time.monotonic()
        self.longest_pause_s = 0.0
        self.went_back: list[str] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Load:
        self._tasks = [asyncio.create_task(work) for work in (self._write(), self._read(), self._read())]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        broken = [r for r in results if isinstance(r, Exception) and not isinstance(r, asyncio.CancelledError)]
        assert broken == []

    async def _write(self) -> None:
        n = 0
        while True:
            n += 1
            image, title = self.ids[n % len(self.ids)], f"title {n}"
            self.unsure.setdefault(image, set()).add(title)  # until somebody says how it went
            try:
                reply = await self.client.patch(f"/api/images/{image}", json={"title": title})
            except httpx.HTTPError:
                await asyncio.sleep(0.02)
                continue
            if reply.status_code == 200:
                self.acked[image] = title
                del self.unsure[image]
                self.writes += 1
                self.last_write_at = time.monotonic()
            else:
                assert reply.status_code == 503, reply.text
                assert reply.headers["Retry-After"]
                await asyncio.sleep(0.02)

    async def _read(self) -> None:
        seen: Bookmark | None = None
        while True:
            headers = {"Peruse-Bookmark": str(seen)} if seen else {}
            try:
                reply = await self.client.get("/api/images", headers=headers)
            except httpx.HTTPError:
                await asyncio.sleep(0.02)
                continue
            if reply.status_code != 200:
                assert reply.status_code == 503, reply.text
                await asyncio.sleep(0.02)
                continue
            at = Bookmark.parse(reply.headers["Peruse-Bookmark"])
            assert at is not None
            if seen is not None and seen.is_after(*at):
                self.went_back.append(f"{seen} then {at} from {reply.headers['Peruse-Source']}")
            seen = at
            self.reads += 1
            now = time.monotonic()
            self.longest_pause_s = max(self.longest_pause_s, now - self.last_read_at)
            self.last_read_at = now

    async def goes_on(self, *, timeout_s: float = 10.0) -> None:
        """Returns when a read and a write began and succeeded after now."""
        asked = time.monotonic()

        async def both() -> bool:
            return self.last_read_at > asked + 0.2 and self.last_write_at > asked + 0.2

        await eventually(both, timeout_s=timeout_s)


async def _ids(client: httpx.AsyncClient) -> list[str]:
    return [image["id"] for image in (await client.get("/api/images")).json()["images"]]


async def _check_nothing_lost(served: Served, load: Load) -> None:
    primary = await served.primary()
    titles = {str(r["id"]): r["title"] for r in await primary.fetch("select id, title from images")}
    await primary.close()
    for image, title in load.acked.items():
        assert titles[image] == title or titles[image] in load.unsure.get(image, set()), image
    assert load.went_back == []

    async def replica_agrees() -> bool:
        reply = await load.client.get("/api/images", params={"limit": "200"})
        assert reply.headers["Peruse-Source"] == "replica"
        return {i["id"]: i["title"] for i in reply.json()["images"]} == titles

    await eventually(replica_agrees, timeout_s=15)


async def _kill_and_check(served: Served, victim: Any, *, times: int = 2) -> None:
    async with served.client("ana") as client:
        await client.post("/api/images/sync")
        load = Load(client, await _ids(client))
        async with load:
            await load.goes_on()
            for _ in range(times):
                os.kill(await victim(), signal.SIGKILL)
                await load.goes_on(timeout_s=10)
        assert load.writes > 10
        assert load.reads > 20
        await _check_nothing_lost(served, load)


async def test_a_host_dies(served: Served) -> None:
    """Reads fall back to the primary and return to the replica; the service is back within 10 s."""
    await _kill_and_check(served, served.host_pid)


async def test_a_gateway_dies(served: Served) -> None:
    """Clients wait in the socket that the supervisor holds, and go on."""

    async def gateway() -> int:
        return served.pid("gateway-0")

    await _kill_and_check(served, gateway)


async def test_postgres_dies(served: Served) -> None:
    """Reads go on from the replica; writes are refused and then work again; nothing acknowledged is lost."""

    async def postmaster() -> int:
        return int((served.data / "postgres" / "cluster" / "postmaster.pid").read_text().split()[0])

    await _kill_and_check(served, postmaster)


async def test_ray_dies(served: Served) -> None:
    """The process that owns Ray is killed, and all of Ray with it: the gateway answers from the primary meanwhile."""

    async def owner() -> int:
        return served.pid("hosts")

    await _kill_and_check(served, owner, times=1)

    async def hosts_answer() -> bool:
        async with httpx.AsyncClient(base_url=served.url) as client:
            return bool({"live", "idle"} & set((await client.get("/readyz")).json()["hosts"].values()))

    await eventually(hosts_answer, timeout_s=60)


async def test_a_host_hangs(served: Served) -> None:
    """A host that was stopped and goes on much later shows nobody anything older than they have seen."""
    async with served.client("ana") as client:
        await client.post("/api/images/sync")
        load = Load(client, await _ids(client))
        async with load:
            await load.goes_on()
            pid = await served.host_pid()
            os.kill(pid, signal.SIGSTOP)
            try:
                await load.goes_on(timeout_s=10)
                await asyncio.sleep(8)  # longer than a heartbeat may be missed: others take it for dead
                await load.goes_on(timeout_s=10)
            finally:
                os.kill(pid, signal.SIGCONT)
            await load.goes_on(timeout_s=10)
        assert load.longest_pause_s < 5
        await _check_nothing_lost(served, load)


async def test_everything_is_killed(open_folder: Path) -> None:
    """kill -9 of `peruse serve` itself: its children end by themselves, a new start finds every acknowledged write."""
    data = open_folder / "killed"
    first = Served(data)
    first.start()
    peruse("import", str(PROMPTS), "--user", "ana", "--limit", "20", "--size", "64", data=data)
    async with first.client("ana") as client:
        load = Load(client, await _ids(client))
        async with load:
            await load.goes_on()
            first.stop(signal.SIGKILL)

    async def nothing_left() -> bool:
        return processes_of(data) == []

    await eventually(nothing_left, timeout_s=20)

    second = Served(data)
    second.start()
    async with second.client("ana") as client:
        load.client = client
        await _check_nothing_lost(second, load)
    assert second.stop() == 0
