"""Replicas on a disk with no room left: the primary serves their users, nobody spins, and room is all it takes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from actors.metrics import HostMetrics
from store.epoch import Bookmark
from tests.gateway.asking import bookmark_of
from tests.world import Reply, World, add_images, until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(90)]

_DISK = "8m"
_WATCHED_S = 5.0
#: A seed that failed is tried again by the next reader, half a second later at the earliest.
_SEED_PAUSE_S = 0.5
_USERS = ("ana", "bob", "eve")


class Disk:
    """A small file system of its own. `fill` leaves no room, `make_room` gives it back."""

    def __init__(self, path: Path) -> None:
        self._ballast = path / "ballast"

    def fill(self) -> None:
        with self._ballast.open("ab", buffering=0) as file:
            for size in (2**16, 2**12, 1):
                try:
                    while True:
                        file.write(b"\0" * size)
                except OSError:
                    continue

    def make_room(self) -> None:
        self._ballast.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """The folder of replicas of `tmp_path / "data"` is a file system of 8 MB."""
    assert os.geteuid() == 0, "this test mounts a file system, which only root may do"
    folder = tmp_path / "data" / "replicas"
    folder.mkdir(parents=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={_DISK}", "tmpfs", str(folder)], capture_output=True, text=True
    )
    assert done.returncode == 0, f"this test mounts a file system, and may not: {done.stderr}"
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
async def full(disk: Disk, database: str, tmp_path: Path) -> AsyncIterator[World]:
    """A world on that disk; each user has some images."""
    world = World(tmp_path / "data", database)
    await world.start()
    for user in _USERS:
        await world.write(user, lambda c, u=user: add_images(c, u, 60, negative_prompt="x" * 1000))
    yield world
    await world.stop()


async def _read(world: World, user: str, **headers: str) -> Reply:
    reply = await world.get("/api/images?limit=200", user=user, headers=headers)
    assert reply.status == 200, reply
    return reply


async def _true(world: World, user: str) -> Reply:
    """A read, which has to show what the primary has now."""
    reply = await _read(world, user)
    rows = await world.gateway.primary.fetch("select id::text, title from images where owner_id = $1", user)
    assert {(image["id"], image["title"]) for image in reply.json["images"]} == {tuple(row) for row in rows}
    return reply


async def _from_replica(world: World, user: str) -> bool:
    return (await _true(world, user)).headers["Peruse-Source"] == "replica"


def _metrics(world: World) -> HostMetrics:
    return world.host.stats().metrics


async def _watched(world: World, users: tuple[str, ...]) -> None:
    """Read all `users` again and again for a while, none of them from a replica."""
    started = time.monotonic()
    while time.monotonic() < started + _WATCHED_S:
        for user in users:
            assert (await _true(world, user)).headers["Peruse-Source"] in ("primary", "seeding")
        await asyncio.sleep(0.05)


async def test_who_has_no_replica_yet_is_served_by_the_primary(disk: Disk, full: World) -> None:
    """Seeds fail, are tried twice a second at most, leave nothing behind, and succeed as soon as there is room."""
    await until(lambda: _metrics(full).seeds == 1)  # the host's own
    disk.fill()

    await _watched(full, _USERS)

    failures, seeds = _metrics(full).seed_failures, _metrics(full).seeds
    assert seeds == 1
    assert 1 <= failures <= len(_USERS) * (_WATCHED_S / _SEED_PAUSE_S + 1), failures
    folder = full.data / "replicas"
    await until(lambda: full.host.stats().seeding == 0)
    assert len([path for path in folder.rglob("*") if path.name.endswith((".staging", ".db"))]) == 1

    disk.make_room()
    for user in _USERS:
        await until(lambda user=user: _from_replica(full, user))


async def test_whose_replica_cannot_grow_is_served_by_the_primary(disk: Disk, full: World) -> None:
    """It stays at its version, is not asked for more than it has, and goes on when there is room."""
    for user in _USERS:
        await until(lambda user=user: _from_replica(full, user))
    disk.fill()
    seeds = _metrics(full).seeds
    for user in ("ana", "bob"):
        await _grow(full, user)

    pulls = _metrics(full).pulls
    readers = [asyncio.create_task(_watched(full, ("ana", "bob"))) for _ in range(4)]
    await asyncio.gather(*readers)
    # A sweep finds out every second whether there is room; readers and pokes need not.
    asked = _metrics(full).pulls - pulls
    assert asked <= 2 * (_WATCHED_S + 2), asked
    assert (_metrics(full).seeds, _metrics(full).broken) == (seeds, 0)
    assert (await _true(full, "eve")).headers["Peruse-Source"] == "replica"

    disk.make_room()
    for user in _USERS:
        await until(lambda user=user: _from_replica(full, user))
    assert (_metrics(full).seeds, _metrics(full).broken) == (seeds, 0)


async def test_a_host_starts_on_a_full_disk_and_reads_what_is_there(disk: Disk, full: World) -> None:
    """No crash loop: who has a file is served from it, and who has none by the primary."""
    for user in ("ana", "bob"):
        await until(lambda user=user: _from_replica(full, user))
    await full.host.stop()
    disk.fill()

    full.host = await full.start_host(0)
    await until(full.gateway.client.probe)
    await until(lambda: _from_replica(full, "ana"))
    assert (_metrics(full).seeds, _metrics(full).broken) == (0, 0)
    await _watched(full, ("eve",))
    await _grow(full, "ana")
    await _watched(full, ("ana", "eve"))
    assert _metrics(full).broken == 0

    disk.make_room()
    for user in _USERS:
        await until(lambda user=user: _from_replica(full, user))


async def test_a_host_starts_on_a_disk_that_was_always_full(disk: Disk, full: World) -> None:
    """There is not even room for the folder's marks."""
    disk.fill()

    second = await full.start_host(1)
    try:
        await until(lambda: _probed(full, 2))
        for user in (f"user-{n}" for n in range(8)):
            await full.write(user, lambda c, u=user: add_images(c, u, 3))
            await _true(full, user)
        disk.make_room()
        for user in (f"user-{n}" for n in range(8)):
            await until(lambda user=user: _from_replica(full, user))
    finally:
        await second.stop()


def test_a_log_that_cannot_be_written_ends_nothing() -> None:
    """Logs are on the same disk: what they tell about has to go on."""
    script = (
        "import structlog; from store.logs import configure; "
        "configure(process='host', stream=open('/dev/full', 'a', buffering=1)); "
        "[structlog.get_logger().warning('seed.failed', n=n) for n in range(3000)]; print('went on', flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "went on\n", done.stderr


async def _probed(world: World, count: int) -> bool:
    return len(await world.gateway.client.probe()) == count


async def _grow(world: World, user: str) -> Bookmark:
    """A change that needs more room than a replica's file has left in it."""
    await world.write(user, lambda c: add_images(c, user, 100, negative_prompt="y" * 1000))
    return bookmark_of(await _true(world, user))
