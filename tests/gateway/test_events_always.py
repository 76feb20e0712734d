"""Whatever happens between a writer and a listener, the listener misses nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from random import Random

import aiohttp
import pytest

from actors.errors import CallError
from actors.host import ReplicaHost
from store.epoch import Bookmark, rotate
from store.errors import PrimaryUnavailable
from store.primary import Primary
from tests.gateway.asking import running
from tests.gateway.link import PrimaryLink
from tests.gateway.listening import FarWorld, Message, listening
from tests.world import World, add_images, until

_USERS = ["ana", "bo", "cleo"]
_ACTIONS = 50
_JOB = "insert into jobs (owner_id, prompt, provider, model) values ($1, '', 'p', 'm')"


class Ears:
    """A listener that comes and goes, as an EventSource does: each time with the last id that it was given."""

    def __init__(self, world: World, user: str, random: Random, *, stays: bool) -> None:
        self.world, self.user, self.random = world, user, random
        self.last_id: str | None = None
        self.start: Bookmark | None = None
        self.heard: list[Message] = []
        self.stays = stays  # it does not leave by itself

    async def run(self) -> None:
        """Listen until cancelled."""
        while True:
            try:
                async with listening(self.world, self.user, last_id=self.last_id) as listener:
                    if self.start is None:
                        self.start = Bookmark.parse(await listener.begun())
                    leaves_at = time.monotonic() + self.random.choice([0.05, 0.3, 3.0])
                    hearing = asyncio.ensure_future(listener.next(timeout_s=3600))
                    try:
                        while self.stays or time.monotonic() < leaves_at:
                            await asyncio.wait({hearing}, timeout=0.1)
                            if hearing.done():
                                self.heard.append(hearing.result())
                                hearing = asyncio.ensure_future(listener.next(timeout_s=3600))
                            self.last_id = listener.last_id or self.last_id
                    finally:
                        hearing.cancel()
            except (EOFError, aiohttp.ClientError):
                pass
            await asyncio.sleep(self.random.random() * 0.2)

    def check(self, kinds: dict[int, set[str]]) -> None:
        """Fail unless each message names all kinds since the one before, and ids go back on a resync only."""
        assert self.start is not None
        known = self.start
        for message in self.heard:
            at = Bookmark.parse(message.id)
            assert at is not None
            assert message.data["version"] == at.version
            if message.event == "message":
                assert at.epoch == known.epoch, f"{self.user}: {known} → {at} is no resync"
                assert at.version > known.version, f"{self.user}: {known} → {at} goes back"
                changed = set().union(*(kinds[v] for v in range(known.version + 1, at.version + 1)))
                assert changed <= set(message.data["kinds"]), f"{self.user}: {known} → {at} names {message.data}"
            known = at


class Storm:
    """Does random things to a world of two hosts, to whom writes or listens, and to the ways between."""

    def __init__(self, world: World, near: Primary, links: list[PrimaryLink], seed: int) -> None:
        self.world, self.near, self.links, self.random = world, near, links, Random(seed)
        self.hosts: list[ReplicaHost] = []
        self.done: list[str] = []

    async def happen(self) -> None:
        """One thing."""
        things: dict[Callable[[str], Awaitable[object]], int] = {
            self.upload: 8, self.plain: 8, self.both: 4, self.bulk: 1, self.passivate: 4, self.reseed: 2,
            self.disconnect: 3, self.lose: 4, self.restart: 1, self.cut: 2, self.rotate: 1, self.pause: 8,
        }  # fmt: skip
        (thing,) = self.random.choices(list(things), list(things.values()))
        user = self.random.choice(_USERS)
        self.done.append(f"{thing.__name__} {user}")
        await thing(user)

    async def upload(self, user: str) -> None:
        """A write that is poked; refused now and then, when the primary was just away."""
        await self.world.upload(user=user)

    async def plain(self, user: str) -> None:
        """A write that nobody pokes."""
        async with self.near.connection() as connection, connection.transaction():
            await connection.execute("insert into users (id) values ($1) on conflict do nothing", user)
            await connection.execute(_JOB, user)

    async def both(self, user: str) -> None:
        """Several users in one transaction."""
        async with self.near.connection() as connection, connection.transaction():
            for one in {user, self.random.choice(_USERS)}:
                await add_images(connection, one, 1)

    async def bulk(self, user: str) -> None:
        """More than a pull carries: the replica is made anew."""
        async with self.near.connection() as connection, connection.transaction():
            await add_images(connection, user, 1)
            await connection.execute(
                "insert into images (owner_id, object_key, content_type, size_bytes, model) select $1, "
                "'generated/' || gen_random_uuid(), 'image/png', 7, 'm' from generate_series(1, 501)", user,
            )  # fmt: skip

    async def passivate(self, user: str) -> None:
        for host in self.hosts:
            host._replicas.passivate(user)

    async def reseed(self, user: str) -> None:
        self.random.choice(self.hosts)._replicas.reseed(user)

    async def disconnect(self, user: str) -> None:
        for connection in list(self.random.choice(self.hosts)._connections):
            connection.close()

    async def lose(self, user: str) -> None:
        """What a host tells is lost with its connections, and the replica sleeps when they are back."""
        for host in self.hosts:
            for connection in host._connections:
                connection.tell = lambda event: None  # type: ignore[method-assign]
        await self.plain(user)
        host = self.hosts[self.world.gateway.client.membership.host_of(user).row.id == "test:1"]
        try:
            await host._replicas.sync(user)
        finally:
            if self.random.random() < 0.7:
                host._replicas.passivate(user)
            if self.random.random() < 0.7:
                await self.plain(user)
            for host in self.hosts:
                for connection in list(host._connections):
                    connection.close()

    async def restart(self, user: str) -> None:
        slot = self.random.randrange(len(self.hosts))
        await self.hosts[slot].stop()
        await self.plain(user)
        self.hosts[slot] = await self.world.start_host(slot)

    async def cut(self, user: str) -> None:
        """The primary is away for the gateway, for the hosts, or for both; somebody else goes on writing."""
        cut = self.random.choice([self.links, self.links[:1], self.links[1:]])
        for link in cut:
            await link.cut()
        if self.random.random() < 0.5:
            await self.reseed(user)
        await self.plain(user)
        await asyncio.sleep(self.random.random() * 2)
        for link in cut:
            await link.open()

    async def rotate(self, user: str) -> None:
        await rotate(self.near)

    async def pause(self, user: str) -> None:
        await asyncio.sleep(self.random.random() * 0.3)


async def truth(near: Primary, user: str) -> tuple[Bookmark, dict[int, set[str]]]:
    """Where the user is, and what changed in each version."""
    rows = await near.fetch(
        "select l.version, array_agg(distinct r.kind) as kinds from change_log l join change_row r "
        "on r.nonce = l.nonce and r.user_id = l.user_id where l.user_id = $1 group by l.version", user,
    )  # fmt: skip
    (head,) = await near.fetch(
        "select sync_epoch_now() as epoch, coalesce(max(version), 0) as version from sync_user where user_id = $1", user
    )
    return Bookmark(*head), {row["version"]: set(row["kinds"]) for row in rows}


@pytest.fixture
async def hosts_link(database: str) -> AsyncIterator[PrimaryLink]:
    """Another way to the fresh database."""
    made = PrimaryLink(database)
    await made.open()
    yield made
    await made.close()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.timeout(110)
async def test_no_listener_misses_anything(
    tmp_path: Path, database: str, link: PrimaryLink, hosts_link: PrimaryLink, seed: int
) -> None:
    """Writes with and without pokes, bulk, replicas closed and made anew, hosts restarted, connections lost, the
    primary away, epochs rotated, listeners coming and going: every version is named with its kinds, or a resync is."""
    near = await Primary.open(database, name="storm", size=2)
    async with running(FarWorld(tmp_path / "data", link, hosts_link.url)) as world:
        storm = Storm(world, near, [link, hosts_link], seed)
        storm.hosts = [world.host, await world.start_host(1)]
        all_ears = [Ears(world, user, Random(f"{seed} {user} {n}"), stays=n == 0) for user in _USERS for n in range(2)]
        tasks = [asyncio.create_task(ears.run()) for ears in all_ears]
        await until(lambda: all(ears.start is not None for ears in all_ears))

        for _ in range(_ACTIONS):
            try:
                await storm.happen()
            except (PrimaryUnavailable, CallError):
                storm.done[-1] += " in vain"
        for ears in all_ears:
            ears.stays = True
        for user in _USERS:
            await storm.plain(user)

        for ears in all_ears:
            head, kinds = await truth(near, ears.user)
            try:
                await until(lambda ears=ears, head=head: ears.last_id == str(head), timeout_s=20)
            except AssertionError:
                pytest.fail(f"{ears.user} is at {head} and heard {ears.last_id}, after {storm.done}")
            ears.check(kinds)
        for task in tasks:
            assert not task.done()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        world.host = storm.hosts[0]
        await storm.hosts[1].stop()
    await near.close()
