"""The pulse of a host: its own writes have to come back through its own sync, and it says so when they do not."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from actors import host as host_module
from actors.client import ReplicaClient
from actors.errors import Retryable, Seeding
from actors.health import reserved_user
from actors.host import ReplicaHost
from actors.placement import first
from store import hosts
from store.errors import PrimaryUnavailable
from store.primary import Primary
from tests.actors.fleet import ALL, Gate, History, add_image
from tests.world import until

StartHost = Callable[..., Awaitable[ReplicaHost]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten touches a second, and twice as many sweeps and beats."""
    monkeypatch.setattr(host_module, "BEAT_S", 0.05)
    monkeypatch.setattr(host_module, "SWEEP_S", 0.05)
    monkeypatch.setattr(host_module, "PULSE_S", 0.1)


async def state_of(primary: Primary, host_id: str) -> str:
    return {row.id: row.state for row in await hosts.list_hosts(primary)}[host_id]


async def is_state(primary: Primary, host_id: str, state: str) -> bool:
    return await state_of(primary, host_id) == state


async def has_pulse(host: ReplicaHost, versions: int = 3) -> None:
    """Returns when so many more touches have arrived."""
    user = reserved_user(host.id)

    def at() -> int:
        active = host._replicas.life.active.get(user)
        return 0 if active is None else active.replica.cursor.version

    await until(at)
    goal = at() + versions
    await until(lambda: at() >= goal)


async def fails(*_: object) -> Any:
    raise PrimaryUnavailable("this pool does not answer")


async def hangs(*_: object) -> Any:
    await asyncio.Event().wait()


async def test_a_host_whose_sync_moves_is_not_stuck(start_host: StartHost, primary: Primary) -> None:
    """Its own user is nobody's: not among the open replicas of operators, and never closed."""
    host = await start_host(0)
    await has_pulse(host)

    assert not host.stats().is_stuck
    assert await is_state(primary, host.id, "live")
    assert (host.stats().active, host._replicas.list_active(10)) == (0, [])
    assert host._replicas.life.active[reserved_user(host.id)].is_pinned
    assert host._replicas.life.close_idle() == 0


@pytest.mark.parametrize("way", [fails, hangs])
async def test_a_host_whose_sync_stands_still_says_so_and_others_are_asked(
    start_host: StartHost, primary: Primary, history: History, monkeypatch: pytest.MonkeyPatch, way: Any
) -> None:
    """Its users go to the next host at once, and come back when it moves again, by itself."""
    one, two = await start_host(0), await start_host(1)
    await has_pulse(one)
    user = next(u for u in (f"user-{n}" for n in range(100)) if first(u, (one.id, two.id)) == one.id)
    await history.write([user], lambda c: add_image(c, user, "one"))
    client = ReplicaClient(lambda: hosts.list_hosts(primary))
    await client.start()
    await until(lambda: {*one._members} == {*two._members} == {one.id, two.id})
    await client.sync(user, timeout_s=10)
    assert user in one._replicas.life.active

    with monkeypatch.context() as patch:
        patch.setattr(one._replicas._sync, "sweep", way)
        patch.setattr(one._replicas._sync, "pull_soon", lambda active: asyncio.get_running_loop().create_future())
        await until(lambda: is_state(primary, one.id, "stuck"))
        assert one.stats().is_stuck
        assert await is_state(primary, two.id, "live")

        async def answered_elsewhere() -> bool:
            try:
                await client.read(user, ALL, None, timeout_s=2)
            except (Retryable, Seeding):
                return False
            return user in two._replicas.life.active

        await until(answered_elsewhere)
        _, bookmark = await history.write([user], lambda c: add_image(c, user, "two"))
        await client.read(user, ALL, bookmark, timeout_s=5)
        assert two._replicas.life.active[user].replica.cursor.version == bookmark.version
    if way is hangs:  # a sweep that never ends can only be ended by whoever hangs: here, as by a restart of the pool
        for task in one._tasks:
            if task.get_name() == "sweep":
                task.cancel()
        one._run("sweep", 0.05, one._sweep)

    await until(lambda: is_state(primary, one.id, "live"))
    assert not one.stats().is_stuck
    await client.close()


async def test_every_host_has_a_pulse_whoever_its_own_user_would_be_placed_at(
    start_host: StartHost, primary: Primary
) -> None:
    """The replica of a host's own user is made by that host, however many there are."""
    pairs = itertools.permutations(range(8), 2)
    mine, other = next((a, b) for a, b in pairs if first(f"~test:{a}", (f"test:{a}", f"test:{b}")) == f"test:{b}")
    neighbour = await start_host(other)
    host = await start_host(mine)
    assert {*host._members} == {host.id, neighbour.id}

    await has_pulse(host)
    await has_pulse(neighbour)
    assert reserved_user(host.id) not in neighbour._replicas.life.active


async def test_an_absence_of_the_primary_is_not_the_hosts_trouble(
    start_host: StartHost, gate: Gate, primary: Primary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is a touch that it has swallowed: what was written just before may never have had time to come back."""
    monkeypatch.setattr(host_module, "PULSE_S", 0.3)
    host = await start_host(0, url=gate.url)
    await has_pulse(host, 1)
    active = host._replicas.life.active[reserved_user(host.id)]
    words = set()
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(host._replicas._sync, "sweep", fails)
            await until(lambda: active.is_behind(host._pulse._touched) and not host._pulse._missed)
            await gate.shut()
        over = time.monotonic() + 1.0
        while time.monotonic() < over:
            words.add((host._pulse.is_stuck, await state_of(primary, host.id)))
            await asyncio.sleep(0.01)
        await gate.open()
        await has_pulse(host, 1)
        words.add((host._pulse.is_stuck, await state_of(primary, host.id)))

    assert words == {(False, "live")}


async def test_a_host_that_was_frozen_takes_no_turn_twice(
    start_host: StartHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Turns that were missed are not made up for: two touches in a row would find that the first has not arrived."""
    host = await start_host(0)
    await has_pulse(host)
    turns = []
    beat = host._pulse.beat

    async def noted() -> None:
        turns.append(time.monotonic())
        await beat()

    host._run("noted", 0.2, noted)
    await until(lambda: len(turns) == 2)
    time.sleep(1.0)  # the whole process stands still
    await until(lambda: len(turns) == 6)

    pauses = [later - earlier for earlier, later in itertools.pairwise(turns)]
    assert min(pauses) >= 0.09, pauses
    assert not host._pulse.is_stuck


_HOST = """
import asyncio, sys
from pathlib import Path
from actors import host as module
from actors.config import HostSettings
from store.config import StoreSettings
module.BEAT_S = module.SWEEP_S = 0.05
module.PULSE_S = 0.2

async def main():
    host = module.ReplicaHost(Path(sys.argv[2]), slot=7, primary_url=sys.argv[1], store=StoreSettings(),
                              settings=HostSettings(node="test"), build="test")
    await host.start()
    await host.stopped()

asyncio.run(main())
"""


async def test_a_host_that_was_stopped_for_a_while_is_not_stuck(
    database: str, primary: Primary, short_folder: Path
) -> None:
    """As a machine that slept: it comes back and goes on. mission: 133"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _HOST, database, str(short_folder), stdout=asyncio.subprocess.DEVNULL
    )
    try:

        async def touches() -> int:
            rows = await primary.fetch("select version from sync_user where user_id = '~test:7'")
            return rows[0][0] if rows else 0

        async def more_than(count: int) -> bool:
            return await touches() > count

        await until(lambda: more_than(2), timeout_s=30)
        words = set()
        for _ in range(2):
            os.kill(process.pid, signal.SIGSTOP)
            await asyncio.sleep(0.7)
            at = await touches()
            os.kill(process.pid, signal.SIGCONT)
            while await touches() < at + 4:
                words.add(await state_of(primary, "test:7"))
                await asyncio.sleep(0.005)
        assert words == {"live"}
    finally:
        process.kill()
        await process.wait()
