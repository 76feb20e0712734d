"""Drills with real servers: a backup that is restored, a standby that is promoted, with and without loss. What was
lost is shown by nobody; what was kept is not copied again."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from actors.metrics import HostMetrics
from store.embedded import EmbeddedPostgres
from store.epoch import Bookmark
from store.migrations import migrate
from store.primary import Primary
from tests.faults.servers import Address, base_backup, has_caught_up, promote, stop_following
from tests.gateway.asking import bookmark_of
from tests.served import peruse
from tests.world import Reply, World, add_images, until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

#: In the prompt of every row that history forgets.
_LOST = "this never happened"


class Drill:
    """A primary at an address, a world that reads and writes through it, and room for other servers."""

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self.folder = folder
        self.address = Address(folder)
        self._stack = stack

    async def open(self) -> Drill:
        self.first = await self.running(EmbeddedPostgres(self.folder / "first"))
        await migrate(self.first.url)
        self.address.lead_to(self.first)
        self.world = await World(self.folder / "data", self.address.url).start()
        self._stack.push_async_callback(self.world.stop)
        return self

    async def running(self, server: EmbeddedPostgres) -> EmbeddedPostgres:
        """`server`, started, and stopped at the end."""
        await server.start()
        self._stack.push_async_callback(server.stop)
        return server

    async def copy(self, name: str, *, standby: bool = False) -> EmbeddedPostgres:
        return await base_backup(self.first, self.folder / name, standby=standby)

    async def write(self, user: str, prompts: Iterable[str]) -> None:
        """A version for each prompt, through the gateway, until the replica shows it."""
        for prompt in prompts:
            await self.world.write(user, lambda c, p=prompt: add_images(c, user, 1, prompt=p))
        await self.from_replica(user, lambda reply: _prompts(reply)[: len(list(prompts))] == list(prompts)[::-1])

    async def from_replica(self, user: str, check: Callable[[Reply], bool]) -> Reply:
        """The first answer of the user's replica for which `check` holds; no answer on the way goes back."""
        last: Bookmark | None = None

        async def asked() -> Reply | None:
            nonlocal last
            reply = await self.world.get("/api/images", user=user)
            assert reply.status == 200, reply
            at = bookmark_of(reply)
            assert last is None or not last.is_after(*at), f"{user}: {last} and then {at}"
            last = at
            return reply if reply.headers["Peruse-Source"] == "replica" and check(reply) else None

        reply: Reply = await until(asked, timeout_s=10)
        return reply

    @property
    def metrics(self) -> HostMetrics:
        return self.world.host.stats().metrics

    async def leaves_no_trace(self) -> None:
        """No file of the host holds a row that was lost. Stops the world."""
        await self.world.stop()
        files = list((self.folder / "data" / "replicas").rglob("*.db*"))
        assert files
        assert [path for path in files if _LOST.encode() in path.read_bytes()] == []


@pytest.fixture
async def drill(open_folder: Path) -> AsyncIterator[Drill]:
    folder = Path(tempfile.mkdtemp(prefix="drill-", dir=open_folder))  # short: sockets are below it
    folder.chmod(0o711)
    async with AsyncExitStack() as stack:
        yield await Drill(folder, stack).open()


def _prompts(reply: Reply) -> list[str]:
    return [image["prompt"] for image in reply.json["images"]]


def _is_true(reply: Reply) -> bool:
    return not any(_LOST in prompt for prompt in _prompts(reply))


async def _write_to(server: EmbeddedPostgres, work: dict[str, int]) -> None:
    """So many versions for each user, straight into `server`."""
    primary = await Primary.open(server.url, name="test", size=1)
    for user, count in work.items():
        for n in range(count):
            await primary.write(user, lambda c, u=user, n=n: add_images(c, u, 1, prompt=f"after {n}"))
    await primary.close()


_KEPT = ("one", "two", "three")
_GONE = tuple(f"{_LOST} {n}" for n in range(2))


async def test_after_a_restore_nobody_sees_what_was_lost(drill: Drill) -> None:
    """Not even when as many versions were written since as were lost, and nobody rotated the epoch."""
    for user in ("again", "further", "less", "quiet"):
        await drill.write(user, _KEPT)
    backup = await drill.copy("restored")
    for user in ("again", "further", "less"):
        await drill.write(user, _GONE)
    lost = {user: bookmark_of(await drill.world.get("/api/images", user=user)) for user in ("again", "further", "less")}
    seeds = drill.metrics.seeds

    restored = await drill.running(backup)
    await _write_to(restored, {"again": 2, "further": 3})
    drill.address.lead_to(restored)
    await drill.first.stop()

    expected = {"again": ["after 1", "after 0"], "further": ["after 2", "after 1", "after 0"], "less": [], "quiet": []}
    for user, since in expected.items():
        # The replica learns it from a sweep; from then on nobody is shown a lost row.
        await drill.from_replica(user, _is_true)
        for _ in range(20):
            reply = await drill.world.get("/api/images", user=user)
            assert _prompts(reply) == [*since, *_KEPT[::-1]]
    assert drill.metrics.resets == {"nonce": 2, "ahead": 1}
    await until(lambda: drill.metrics.seeds == seeds + 3)  # and not of who lost nothing

    for user, bookmark in lost.items():
        # A bookmark of what was lost: as good as any version that far, and dropped where nothing is.
        reply = await drill.world.get("/api/images", user=user, headers={"Peruse-Bookmark": str(bookmark)})
        assert (reply.status, _is_true(reply)) == (200, True)
        assert bookmark_of(reply).version == {"again": 5, "further": 6, "less": 3}[user]
        await drill.write(user, ["goes on"])
    await drill.leaves_no_trace()


async def test_a_rotated_epoch_makes_each_replica_anew_when_it_is_needed(
    drill: Drill, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mission: 132"""
    for user in ("ana", "bob", "sleeps"):
        await drill.write(user, _KEPT)
    backup = await drill.copy("restored")
    for user in ("ana", "sleeps"):
        await drill.write(user, _GONE)
    assert await drill.world.gateway.client.passivate("sleeps")
    before = {user: bookmark_of(await drill.world.get("/api/images", user=user)) for user in ("ana", "bob")}
    seeds = drill.metrics.seeds

    restored = await drill.running(backup)
    monkeypatch.setenv("PERUSE_PRIMARY_URL", restored.url)
    done = await asyncio.to_thread(peruse, "epoch", "rotate", "--json", data=drill.world.data)
    drill.address.lead_to(restored)
    await drill.first.stop()

    for user in ("ana", "bob"):
        reply = await drill.from_replica(user, lambda reply, user=user: bookmark_of(reply).epoch > before[user].epoch)
        assert bookmark_of(reply).epoch in done.stdout
        assert _prompts(reply) == list(_KEPT[::-1])
        older = await drill.world.get("/api/images", user=user, headers={"Peruse-Bookmark": str(before[user])})
        assert (bookmark_of(older), older.headers["Peruse-Source"]) == (bookmark_of(reply), "replica")
    own = drill.metrics.resets["epoch"] - 2  # the host's
    assert own in (0, 1)
    assert drill.metrics.seeds <= seeds + 2 + own, "a replica that nobody reads was made anew"

    assert _prompts(await drill.world.get("/api/images", user="sleeps")) == list(_KEPT[::-1])
    await drill.from_replica("sleeps", _is_true)
    assert drill.metrics.seeds in (seeds + 3, seeds + 4)
    await drill.leaves_no_trace()


async def test_a_standby_that_missed_the_last_writes_is_believed_and_not_the_replicas(drill: Drill) -> None:
    """Readers who hold a bookmark of what was lost go on in the new epoch, and never back in it."""
    standby = await drill.running(await drill.copy("standby", standby=True))
    for user in ("rewritten", "ahead", "quiet"):
        await drill.write(user, _KEPT)
    await has_caught_up(standby, drill.first)
    await stop_following(standby, drill.first)
    for user in ("rewritten", "ahead"):
        await drill.write(user, [_LOST])
    users = ("rewritten", "ahead", "quiet")
    held = {user: bookmark_of(await drill.world.get("/api/images", user=user)) for user in users}
    seeds = drill.metrics.seeds

    await promote(standby)
    await _write_to(standby, {"rewritten": 1})
    drill.address.lead_to(standby)
    await drill.first.stop()

    for user, since in (("rewritten", ["after 0"]), ("ahead", []), ("quiet", [])):
        await drill.from_replica(user, lambda reply, user=user: bookmark_of(reply).epoch != held[user].epoch)
        for bookmark in (held[user], held[user]._replace(version=99), None):
            headers = {"Peruse-Bookmark": str(bookmark)} if bookmark else {}
            reply = await drill.world.get("/api/images", user=user, headers=headers)
            assert _prompts(reply) == [*since, *_KEPT[::-1]]
            assert not held[user].is_after(*bookmark_of(reply)), "the pair of epoch and version went back"
    # A bookmark of the new epoch that nobody can reach: asked for once, and dropped.
    at = bookmark_of(await drill.world.get("/api/images", user="ahead"))
    future = {"Peruse-Bookmark": str(at._replace(version=at.version + 50))}
    assert bookmark_of(await drill.world.get("/api/images", user="ahead", headers=future)) == at

    assert drill.metrics.resets == {"nonce": 1, "ahead": 1}
    await until(lambda: drill.metrics.seeds == seeds + 2)
    for user in users:
        await drill.write(user, ["goes on"])
    await drill.leaves_no_trace()


async def test_a_clean_failover_makes_no_replica_anew(drill: Drill) -> None:
    """Reads go on all the while, writes as soon as the standby takes them. mission: 133"""
    standby = await drill.running(await drill.copy("standby", standby=True))
    users = ("ana", "bob", "sleeps")
    for user in users:
        await drill.write(user, _KEPT)
    assert await drill.world.gateway.client.passivate("sleeps")
    before = {user: await drill.world.get("/api/images", user=user) for user in ("ana", "bob")}
    seeds, broken = drill.metrics.seeds, drill.metrics.broken

    await has_caught_up(standby, drill.first)
    await drill.first.stop()  # a fast shutdown hands the last of the log to the standby first
    for user, earlier in before.items():
        reply = await drill.world.get("/api/images", user=user)
        assert (reply.status, reply.body, reply.headers["Peruse-Source"]) == (200, earlier.body, "replica")
    await promote(standby)
    drill.address.lead_to(standby)

    for user in users:
        reply = await drill.from_replica(user, lambda reply: bookmark_of(reply).epoch.endswith("-2"))
        assert (bookmark_of(reply).version, _prompts(reply)) == (3, list(_KEPT[::-1]))
    for user in users:
        await until(lambda user=user: _tries(lambda: drill.write(user, ["goes on"])))
    assert (drill.metrics.resets, drill.metrics.seeds, drill.metrics.broken) == ({}, seeds, broken)
    await drill.world.stop()


async def _tries(work: Callable[[], Awaitable[Any]]) -> bool:
    await work()
    return True
