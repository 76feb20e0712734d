"""A host's life: it registers, beats, answers, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from actors import host as host_module
from actors.client import ReplicaClient
from actors.config import HostSettings
from actors.errors import CallError, Seeding
from actors.folder import ReplicaFolder
from actors.host import ReplicaHost
from actors.messages import PageReply
from store import hosts
from store.config import StoreSettings
from store.epoch import Bookmark
from store.errors import SettingError
from store.primary import Primary
from tests.actors.fleet import ALL, Gate, History, add_image, held, shown
from tests.world import ended, until

StartHost = Callable[..., Awaitable[ReplicaHost]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty beats and sweeps a second."""
    monkeypatch.setattr(host_module, "BEAT_S", 0.05)
    monkeypatch.setattr(host_module, "SWEEP_S", 0.05)


async def row(primary: Primary, host_id: str = "test:0") -> hosts.HostRow:
    (found,) = [r for r in await hosts.list_hosts(primary) if r.id == host_id]
    return found


async def a_client(primary: Primary, *, secret: bytes | None = None) -> ReplicaClient:
    client = ReplicaClient(lambda: hosts.list_hosts(primary), secret=secret)
    await client.start()
    return client


async def read_now(client: ReplicaClient, user: str, floor: Bookmark | None = None) -> PageReply:
    """Without a second try."""
    head, page = await client.read(user, ALL, floor, timeout_s=5)
    return PageReply(head, b"" if page is None else page.body)


async def read(client: ReplicaClient, user: str, floor: Bookmark | None = None) -> PageReply:
    for _ in range(3):
        try:
            return await read_now(client, user, floor)
        except Seeding:
            await client.sync(user, timeout_s=5)
    raise AssertionError(f"{user} has no replica")


async def test_a_host_registers_and_beats(start_host: StartHost, primary: Primary) -> None:
    host = await start_host(0)
    first = await row(primary)

    assert (first.id, first.generation, first.state, first.build, first.node) == ("test:0", 1, "live", "test", "test")
    assert first.address == host.address
    assert first.is_live
    assert 1 <= first.capacity <= 20_000

    async def has_beaten() -> bool:
        return (await row(primary)).heartbeat > first.heartbeat

    await until(has_beaten)
    await host.stop()
    assert (await row(primary)).state == "gone"
    assert not (await row(primary)).is_live


async def test_a_host_waits_for_the_primary_at_its_start(start_host: StartHost, gate: Gate, primary: Primary) -> None:
    """Without it there is nothing to serve and nobody to tell."""
    await gate.shut()
    starting = asyncio.ensure_future(start_host(0, url=gate.url))
    await asyncio.sleep(0)
    await gate.open()

    host = await starting

    assert (await row(primary)).is_live
    await host.stop()


async def test_a_host_outlives_an_absence_of_the_primary(
    start_host: StartHost, gate: Gate, primary: Primary, history: History
) -> None:
    """It answers meanwhile, and beats again afterwards. mission: 137, 139"""
    await history.write(["ana"], lambda c: add_image(c, "ana", "one"))
    host = await start_host(0, url=gate.url)
    client = await a_client(primary)
    assert len(shown((await read(client, "ana")).body)) == 1

    await gate.shut()
    _, bookmark = await history.write(["ana"], lambda c: add_image(c, "ana", "two"))
    assert len(shown((await read_now(client, "ana")).body)) == 1
    beat = (await row(primary)).heartbeat
    await gate.open()

    async def has_beaten() -> bool:
        return (await row(primary)).heartbeat > beat

    await until(has_beaten)
    reply = await read(client, "ana", bookmark)
    assert len(shown(reply.body)) == 2
    await client.close()
    await host.stop()


async def test_a_host_whose_place_was_taken_stops_by_itself(
    start_host: StartHost, primary: Primary, history: History
) -> None:
    """And does not touch the row of whoever took it."""
    await history.write(["ana"], lambda c: add_image(c, "ana", "one"))
    old = await start_host(0)
    new = await start_host(0)

    await asyncio.wait_for(old.stopped(), 5)

    found = await row(primary)
    assert (old.generation, new.generation, found.generation) == (1, 2, 2)
    assert found.address == new.address != old.address
    assert found.is_live
    client = await a_client(primary)
    assert len(shown((await read(client, "ana")).body)) == 1
    await client.close()
    await new.stop()


async def test_the_next_generation_opens_the_files_of_the_last(
    start_host: StartHost, primary: Primary, history: History
) -> None:
    """mission: 130"""
    await history.write(["ana"], lambda c: add_image(c, "ana", "one"))
    for generation in (1, 2, 3):
        host = await start_host(0)
        client = await a_client(primary)
        assert len(shown((await read(client, "ana")).body)) == 1
        assert host.generation == generation
        assert host.stats().metrics.seeds in ((1, 2) if generation == 1 else (0,))
        await client.close()
        await host.stop()


async def test_a_host_sweeps(start_host: StartHost, primary: Primary) -> None:
    """A write by plain SQL arrives without anybody's poke. mission: 133, 140"""
    host = await start_host(0)
    client = await a_client(primary)
    await read(client, "ana")
    async with primary.connection() as connection:
        await add_image(connection, "ana", "by psql")

    async def is_there() -> bool:
        return len(shown((await read_now(client, "ana")).body)) == 1

    await until(is_there, timeout_s=5)
    await client.close()
    await host.stop()


async def test_stats_say_what_a_host_holds_and_has_done(
    start_host: StartHost, primary: Primary, history: History
) -> None:
    """mission: 220, 221"""
    host = await start_host(0)
    client = await a_client(primary)
    for user in ("ana", "bob"):
        await history.write([user], lambda c, user=user: add_image(c, user, user))
        for _ in range(3):
            await read(client, user)

    (stats,) = await client.stats()

    assert (stats.host, stats.generation, stats.pid) == ("test:0", 1, os.getpid())
    assert (stats.active, stats.seeding, stats.in_flight) == (2, 0, 1)  # the question itself
    assert (stats.metrics.seeds, stats.metrics.seed_rows, stats.metrics.broken) in (
        (2, 4, 0),
        (3, 4, 0),  # and the host's own user, before they have their row
        (3, 5, 0),
    )
    assert (stats.metrics.reads, stats.metrics.kept_reads) == (6, 4)
    assert stats.kept_bytes > 500
    assert stats.resident_bytes > 10_000_000
    assert 0 <= stats.lag_s < 10
    await client.close()
    await host.stop()


async def test_the_time_from_commit_to_visible_is_counted(
    start_host: StartHost, primary: Primary, history: History
) -> None:
    host = await start_host(0)
    client = await a_client(primary)
    await read(client, "ana")
    for n in range(5):
        _, bookmark = await history.write(["ana"], lambda c, n=n: add_image(c, "ana", f"{n}"))
        await read(client, "ana", bookmark)

    metrics = host.stats().metrics

    assert sum(metrics.visible_counts) in (5, 6)
    assert 0 < metrics.visible_seconds < 5
    await client.close()
    await host.stop()


async def test_over_tcp_a_secret_is_needed(start_host: StartHost, primary: Primary) -> None:
    host = await start_host(0, wire_listen="127.0.0.1:0", wire_secret="known to both")
    assert host.address.startswith("tcp:127.0.0.1:")

    client = await a_client(primary, secret=b"known to both")
    assert shown((await read(client, "ana")).body) == []
    await client.close()

    for secret in (b"guessed", None):
        stranger = await a_client(primary, secret=secret)
        with pytest.raises(CallError):
            await stranger.read("ana", ALL, None, timeout_s=1)
        await stranger.close()
    await host.stop()


@pytest.mark.parametrize("secret", ["", "shared"])
async def test_a_start_that_fails_leaves_nothing(
    database: str, short_folder: Path, primary: Primary, secret: str
) -> None:
    """Neither connections nor the lock of the folder, which the next start needs."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        host = make_host(short_folder / "data", database, wire_listen=address, wire_secret=secret)
        reason = f"cannot listen on {address}" if secret else "PERUSE_WIRE_SECRET must be set"

        with pytest.raises(SettingError, match=reason):
            await host.start()

    async with primary.connection() as connection:
        backends = await connection.fetchval(
            "select count(*) from pg_stat_activity where datname = current_database() "
            "and application_name like 'peruse test:0%'"
        )
    folder = ReplicaFolder.claim(short_folder / "data" / "replicas", "test:0", generation=2)
    folder.release()
    assert backends == 0
    assert folder.path.name == "test_0"


def make_host(data: Path, database: str, **settings: object) -> ReplicaHost:
    return ReplicaHost(
        data,
        slot=0,
        primary_url=database,
        store=StoreSettings(),
        settings=HostSettings(node="test", **settings),
        build="test",
    )


async def test_a_draining_host_finishes_what_is_under_way(
    start_host: StartHost, primary: Primary, history: History
) -> None:
    host = await start_host(0)
    client = await a_client(primary)
    await read(client, "ana")
    _, bookmark = await history.write(["ana"], lambda c: add_image(c, "ana", "one"))

    async with held(primary) as hold:
        reading = asyncio.create_task(read_now(client, "ana", bookmark))
        await until(hold.waiting)
        draining = asyncio.create_task(host.drain())

        async def is_announced() -> bool:
            return (await row(primary)).state != "live"

        await until(is_announced)
    reply, _ = await asyncio.gather(reading, draining, return_exceptions=True)
    await client.close()

    assert isinstance(reply, PageReply), repr(reply)
    assert len(shown(reply.body)) == 1


async def test_stopping_twice_or_at_once_is_stopping(start_host: StartHost, primary: Primary) -> None:
    host = await start_host(0)

    await asyncio.gather(host.stop(), host.stop(), host.drain())
    await host.stop()

    await asyncio.wait_for(host.stopped(), 1)
    assert (await row(primary)).state == "gone"


async def test_a_stopped_host_leaves_nothing(start_host: StartHost, primary: Primary, history: History) -> None:
    """Twenty lives with readers: no more tasks, threads, sockets, open files and connections than before."""
    for n in range(5):
        await history.write([f"user-{n}"], lambda c, n=n: add_image(c, f"user-{n}", "one"))

    async def live(round_: int) -> None:
        host = await start_host(0)
        client = await a_client(primary)
        await asyncio.gather(*(read(client, f"user-{n}") for n in range(5)))
        _, bookmark = await history.write(["user-0"], lambda c: add_image(c, "user-0", f"{round_}"))
        client.poke("user-0", bookmark)
        with pytest.raises(CallError):
            await client.read(f"new-{round_}", ALL, None, timeout_s=5)
        if round_ % 2:
            await client.close()
            await host.stop()
        else:
            await host.stop()
            await client.close()

    async def held_now() -> dict[str, int]:
        gc.collect()
        async with primary.connection() as connection:
            backends = await connection.fetchval(
                "select count(*) from pg_stat_activity where datname = current_database() "
                "and application_name like 'peruse test:0%'"
            )
        return {
            "threads": threading.active_count(),
            "files": len(os.listdir("/proc/self/fd")),
            "backends": backends,
        }

    # As many threads as the loop's own pool may have: it makes one whenever none is idle.
    await asyncio.gather(*(asyncio.to_thread(time.sleep, 0.05) for _ in range(64)))
    await live(0)
    before, tasks = await held_now(), asyncio.all_tasks()

    for round_ in range(1, 21):
        await live(round_)

    async def left_over() -> dict[str, int]:
        # Fewer than before is what earlier tests in this process let go of meanwhile.
        return {what: count - before[what] for what, count in (await held_now()).items() if count > before[what]}

    async def is_as_before() -> bool:
        return not await left_over()

    try:
        await until(is_as_before, timeout_s=3)
    except AssertionError:
        assert await left_over() == {}  # says what is left
    await ended(asyncio.all_tasks() - tasks)


async def test_a_long_path_leaves_no_folder_behind(
    database: str, tmp_path: Path, short_folder: Path, primary: Primary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket's name has a limit; where the data folder's is too long, another folder is used while the host lives."""
    monkeypatch.setattr(tempfile, "tempdir", str(short_folder))
    host = make_host(tmp_path / ("long" * 20) / ("path" * 20), database)
    await host.start()
    assert Path(host.address.removeprefix("unix:")).is_relative_to(short_folder)
    client = await a_client(primary)
    assert shown((await read(client, "ana")).body) == []
    await client.close()

    await host.stop()

    assert list(short_folder.iterdir()) == []
