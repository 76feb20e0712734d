"""kill -9 of each part while people read and write: nothing that was acknowledged is lost, service comes back."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.faults.load import Load
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
