"""A host's folder stays within its bytes: what nobody used for longest goes first, and never what is open."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import pytest

from actors import host as host_module
from actors.errors import Seeding
from actors.host import ReplicaHost
from actors.janitor import Janitor
from store.primary import Primary
from tests.actors.fleet import ALL, Fleet, History, add_image, held, shown
from tests.world import add_images, until

DAY_S = 86_400.0


def janitor_of(fleet: Fleet, *, max_bytes: int = 2**40, max_age_s: float = 30 * DAY_S) -> Janitor:
    return Janitor(fleet.folder, max_bytes=max_bytes, max_age_s=max_age_s, clock=fleet.clock)


async def given_passive(fleet: Fleet, users: Iterable[str]) -> dict[str, Path]:
    """Their files, closed one second after the other, a day ago."""
    files = {}
    for n, user in enumerate(users):
        await fleet.read(user)
        fleet.replicas.passivate(user)
        files[user] = fleet.file(user)
        closed_at = fleet.clock.wall() - DAY_S + n
        os.utime(files[user], (closed_at, closed_at))
    return files


def sizes(fleet: Fleet) -> int:
    return sum(path.stat().st_size for path in fleet.path.glob("*/??/??/*"))


async def test_files_closed_longest_ago_go_until_the_folder_fits(fleet: Fleet) -> None:
    """And no more than that; whoever lost theirs gets it again from the primary. mission: 130"""
    files = await given_passive(fleet, "abcdef")
    each = files["a"].stat().st_size
    janitor = janitor_of(fleet, max_bytes=3 * each + 100)

    assert await janitor.tidy(fleet.replicas.life.paths) == 3

    assert [user for user in "abcdef" if files[user].exists()] == ["d", "e", "f"]
    assert janitor.bytes == 3 * each == sizes(fleet)
    assert await janitor.tidy(fleet.replicas.life.paths) == 0
    assert (await fleet.read("a")).cursor.version == 0
    assert fleet.metrics.seeds == 7


async def test_files_too_old_go_even_when_there_is_room(fleet: Fleet) -> None:
    files = await given_passive(fleet, "abc")
    os.utime(files["b"], (fleet.clock.wall() - 31 * DAY_S,) * 2)

    assert await janitor_of(fleet).tidy(fleet.replicas.life.paths) == 1

    assert [user for user in "abc" if files[user].exists()] == ["a", "c"]


async def test_an_open_replica_never_goes_however_old_and_large(fleet: Fleet, history: History) -> None:
    """Its reader finds it as it was; what is passive goes in its place. mission: 137"""
    await history.write(["ana"], lambda c: add_images(c, "ana", 50))
    await fleet.read("ana")
    os.utime(fleet.file("ana"), (0, 0))
    files = await given_passive(fleet, "ab")

    assert await janitor_of(fleet, max_bytes=1).tidy(fleet.replicas.life.paths) == 2

    assert [files[user].exists() for user in "ab"] == [False, False]
    _, bookmark = await history.write(["ana"], lambda c: add_image(c, "ana", "after"))
    answer = await fleet.read("ana", bookmark)
    history.check("ana", answer)
    assert len(shown(answer)) == 51
    assert fleet.metrics.seeds == 3


async def test_a_replica_that_is_being_made_stays(fleet: Fleet, primary: Primary) -> None:
    """The file under way, and the old one that serves meanwhile."""
    await given_passive(fleet, ["ana"])
    await fleet.read("ana")
    old = fleet.file("ana")
    os.utime(old, (0, 0))
    janitor = janitor_of(fleet, max_bytes=1)
    async with held(primary, "images") as hold:
        fleet.replicas.life.seeds.start("ana", is_wanted=True)
        with pytest.raises(Seeding):
            await fleet.replicas.read("bob", ALL, None)
        await until(hold.waiting)
        await until(lambda: len(fleet.staged()) == 2)
        both = fleet.staged()

        assert await janitor.tidy(fleet.replicas.life.paths) == 0
        assert fleet.staged() == both

    await until(lambda: fleet.replicas.seeding_count == 0)
    assert await janitor.tidy(fleet.replicas.life.paths) == 0
    assert not old.exists()
    for user in ("ana", "bob"):
        assert (await fleet.read(user)).cursor.version == 0
    assert fleet.metrics.seeds == 3


async def test_a_file_that_was_opened_since_it_was_looked_at_stays(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each deletion asks again."""
    files = await given_passive(fleet, "ab")
    janitor = janitor_of(fleet, max_bytes=1)
    looked, go_on = threading.Event(), threading.Event()
    look = janitor._folder_files

    def slow_look() -> list[object]:
        found = look()
        looked.set()
        go_on.wait(10)
        return found  # type: ignore[return-value]

    monkeypatch.setattr(janitor, "_folder_files", slow_look)
    tidying = asyncio.create_task(janitor.tidy(fleet.replicas.life.paths))
    await asyncio.to_thread(looked.wait, 10)
    await fleet.read("a")
    go_on.set()

    assert await tidying == 1
    assert [files[user].exists() for user in "ab"] == [True, False]
    assert fleet.replicas.peek("a", ALL, None) is not None


async def test_the_time_of_a_file_is_that_of_its_last_close(fleet: Fleet) -> None:
    """Also when nothing has changed in it."""
    files = await given_passive(fleet, ["ana"])
    os.utime(files["ana"], (1, 1))

    await fleet.read("ana")
    fleet.clock.move(1)
    await fleet.replicas.sweep()
    fleet.replicas.passivate("ana")

    assert files["ana"].stat().st_mtime > 1_000


async def test_the_logs_of_open_replicas_are_bytes_too(fleet: Fleet, history: History) -> None:
    """They may be larger than the files; passive ones make room for them."""
    await history.write(["ana"], lambda c: add_image(c, "ana", "0"))
    files = await given_passive(fleet, "ab")
    await fleet.read("ana")
    for n in range(8):
        _, bookmark = await history.write(["ana"], lambda c, n=n: add_images(c, "ana", 20))
        await fleet.read("ana", bookmark)
    log = fleet.file("ana").with_name(f"{fleet.file('ana').name}-wal")
    assert log.stat().st_size > 100_000
    janitor = janitor_of(fleet, max_bytes=sizes(fleet) - log.stat().st_size)

    assert await janitor.tidy(fleet.replicas.life.paths) == 2

    assert janitor.bytes == sizes(fleet)
    assert [files[user].exists() for user in "ab"] == [False, False]


async def test_many_deletions_leave_the_loop_free(fleet: Fleet) -> None:
    """Others have turns in between."""
    await fleet.read("ana")
    for n in range(300):
        path = fleet.folder.next_path(f"user-{n}")
        path.write_bytes(b"x" * 100)
        os.utime(path, (n, n))
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    look = asyncio.get_running_loop().create_task(janitor_of(fleet).tidy(fleet.replicas.life.paths))
    assert await look == 300
    task.cancel()
    assert turns >= 5
    assert [path.name for path in fleet.path.glob("*/??/??/*.db")] == [fleet.file("ana").name]


async def test_a_host_tidies_by_itself(
    start_host: Callable[..., Awaitable[ReplicaHost]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And tells how many bytes there are and how many files went."""
    monkeypatch.setattr(host_module, "TIDY_S", 0.1)
    host = await start_host(0, host_disk_mb=16)
    paths = []
    for n in range(20):
        path = host._replicas._folder.next_path(f"user-{n}")
        path.write_bytes(b"\0" * 2**20)
        os.utime(path, (1.7e9 + n,) * 2)
        paths.append(path)
    monkeypatch.setattr(host._janitor, "_max_age_s", 1e10)

    await until(lambda: host.stats().metrics.files_removed >= 4)

    assert not any(path.exists() for path in paths[:4])
    assert all(path.exists() for path in paths[5:])
    await until(lambda: 0 < host.stats().disk_bytes <= 16 * 2**20)
