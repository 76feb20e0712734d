"""The gateway's way to replicas, with real hosts: who is asked, when not any more, and what is kept."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from random import Random

import pytest

from actors import host as host_module
from actors import membership, watching
from actors.client import ReplicaClient
from actors.errors import CallError, Retryable, Seeding
from actors.host import ReplicaHost
from actors.messages import PageReply, PageState, PokeRequest
from actors.placement import first
from store import hosts as hosts_module
from store.epoch import Bookmark
from store.errors import PrimaryUnavailable
from store.gallery import GalleryQuery, encode_query
from store.hosts import HostRow, list_hosts
from store.primary import Primary
from tests.actors.fleet import ALL, History, add_image, shown
from tests.world import ended, until

StartHost = Callable[..., Awaitable[ReplicaHost]]
USERS = [f"user-{n}" for n in range(12)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty beats, sweeps and looks at the membership a second."""
    monkeypatch.setattr(host_module, "BEAT_S", 0.05)
    monkeypatch.setattr(host_module, "SWEEP_S", 0.05)
    monkeypatch.setattr(membership, "REFRESH_S", 0.05)


@pytest.fixture
async def hosts(start_host: StartHost) -> list[ReplicaHost]:
    """Two hosts."""
    return [await start_host(0), await start_host(1)]


@pytest.fixture
async def client(hosts: list[ReplicaHost], primary: Primary) -> AsyncIterator[ReplicaClient]:
    made = ReplicaClient(lambda: list_hosts(primary), max_page_bytes=1_000_000)
    await made.start()
    yield made
    await made.close()


@pytest.fixture
async def galleries(history: History) -> list[str]:
    """Users with one image each, whose prompt is their name."""
    for user in USERS:
        await history.write([user], lambda c, user=user: add_image(c, user, user))
    return USERS


async def read(
    client: ReplicaClient, user: str, floor: Bookmark | None = None, *, query: bytes = ALL, timeout_s: float = 5
) -> PageReply:
    """As soon as there is a replica."""
    for _ in range(3):
        try:
            head, page = await client.read(user, query, floor, timeout_s=timeout_s)
            return PageReply(head, b"" if page is None else page.body)
        except Seeding:
            await client.sync(user, timeout_s=5)
    raise AssertionError(f"{user} has no replica")


def prompts(reply: PageReply) -> list[str]:
    return [image["prompt"] for image in shown(reply.body)]


def users_of(slot: int) -> list[str]:
    return [user for user in USERS if first(user, ("test:0", "test:1")) == f"test:{slot}"]


async def from_somewhere(client: ReplicaClient, user: str) -> bool:
    """Whether `user` is answered, and with their own."""
    try:
        return prompts(await read(client, user)) == [user]
    except CallError:
        return False


# --- who is asked -----------------------------------------------------------------------------------------------


async def test_users_are_spread_over_the_hosts(
    client: ReplicaClient, hosts: list[ReplicaHost], galleries: list[str]
) -> None:
    """mission: 129, 137, 141, 220, 221"""
    for user in galleries:
        assert prompts(await read(client, user)) == [user]

    stats = {stats.host: stats for stats in await client.stats()}
    assert [stats[f"test:{slot}"].active for slot in (0, 1)] == [len(users_of(0)), len(users_of(1))]
    assert users_of(0)
    assert users_of(1)
    assert sum(s.active for s in stats.values()) == len(galleries)
    assert sorted(await client.probe()) == ["test:0", "test:1"]


async def test_a_writer_reads_its_own_write_through_a_poke_or_without(
    client: ReplicaClient, history: History, galleries: list[str]
) -> None:
    """mission: 139, 140"""
    for n in range(20):
        user = galleries[n % 4]
        _, bookmark = await history.write([user], lambda c, user=user: add_image(c, user, user))
        if n % 2:
            client.poke(user, bookmark)

        head = (await read(client, user, bookmark)).head

        assert (head.epoch, head.version) == bookmark
        assert (await client.sync(user, timeout_s=5)).version == bookmark.version


async def test_a_host_that_does_not_hear_opens_its_breaker_and_comes_back_as_another_generation(
    client: ReplicaClient, hosts: list[ReplicaHost], galleries: list[str], start_host: StartHost
) -> None:
    """It beats, so nobody else takes its users: they are refused within two seconds, and then at once."""
    (user, *_), (other, *_) = users_of(0), users_of(1)
    await read(client, user)
    await read(client, other)
    Path(hosts[0].address.removeprefix("unix:")).unlink()
    hosts[0]._server.close()
    for connection in list(hosts[0]._connections):
        connection.close()
    await until(lambda: client.membership.hosts["test:0"].wire is None)

    started = time.monotonic()
    with pytest.raises(Retryable):
        await client.read(user, ALL, None, timeout_s=2)
    assert time.monotonic() - started < 2
    started = time.monotonic()
    with pytest.raises(Retryable, match="host test:0 failed a moment ago"):
        await client.read(user, ALL, None, timeout_s=2)
    assert time.monotonic() - started < 0.05
    assert prompts(await read(client, other)) == [other]

    again = await start_host(0)
    assert again.generation == 2

    async def is_asked_again() -> bool:
        return await from_somewhere(client, user) and again.stats().active == 1

    await until(is_asked_again)
    assert [stats.generation for stats in await client.stats() if stats.host == "test:0"] == [2]
    await asyncio.wait_for(hosts[0].stopped(), 5)


async def test_a_host_that_accepts_and_says_nothing_costs_one_deadline(short_folder: Path) -> None:
    """Then its breaker answers for it, longer each time and never longer than two seconds."""
    path = short_folder / "silent.sock"
    ended = asyncio.Event()

    async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        ended.set()

    server = await asyncio.start_unix_server(silence, path)
    row = HostRow("silent:0", 1, f"unix:{path}", "silent", "test", 1, "live", 0.0, 1.0)

    async def rows() -> list[HostRow]:
        return [row]

    client = ReplicaClient(rows)
    await client.start()
    pauses = []
    for _ in range(5):
        client.membership.hosts["silent:0"].open_until = time.monotonic()
        started = time.monotonic()
        with pytest.raises(Retryable, match="the host did not answer in time"):
            await client.read("ana", ALL, None, timeout_s=0.05)
        assert time.monotonic() - started < 0.5
        await until(lambda: client.membership.hosts["silent:0"].open_until > 0.0)
        pauses.append(client.membership.hosts["silent:0"].open_until - time.monotonic())
        with pytest.raises(Retryable, match="failed a moment ago"):
            await client.read("ana", ALL, None, timeout_s=0.05)
    assert pauses[0] < pauses[1] < pauses[2]
    assert 0.1 < pauses[0] < 0.3
    assert 1.5 < pauses[-1] <= 2.0
    await client.close()
    await asyncio.wait_for(ended.wait(), 5)
    server.close()
    await server.wait_closed()


async def test_users_of_a_draining_host_go_to_the_next_and_come_back(
    client: ReplicaClient,
    hosts: list[ReplicaHost],
    galleries: list[str],
    start_host: StartHost,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Correctness does not depend on placement. mission: 129"""
    monkeypatch.setattr(hosts_module, "MISSED_S", 1.0)
    for user in galleries:
        await read(client, user)

    await hosts[0].drain()
    for user in galleries:
        await until(lambda user=user: from_somewhere(client, user))
    assert [stats.host for stats in await client.stats()] == ["test:1"]
    assert hosts[1].stats().active == len(galleries)

    again = await start_host(0)

    async def is_back() -> bool:
        await read(client, users_of(0)[0])
        return again.stats().active == 1

    await until(is_back)
    assert again.stats().metrics.seeds == 0


async def test_only_hosts_that_are_live_are_asked(hosts: list[ReplicaHost], primary: Primary) -> None:
    """Not those that drain, and not those whose heartbeat is old against the newest."""
    for fields in ({"state": "draining"}, {"state": "stuck"}, {"behind_s": 5.1}):

        async def rows(fields: dict[str, object] = fields) -> list[HostRow]:
            one, other = await list_hosts(primary)
            return [one._replace(**fields), other]

        client = ReplicaClient(rows)
        await client.start()
        for user in users_of(0):  # the next one is asked, and leaves the seed to the first, who is there in truth
            with pytest.raises(Retryable, match="another host has the replica"):
                await client.read(user, ALL, None, timeout_s=2)
        for user in users_of(1):
            assert shown((await read(client, user)).body) == []
        assert hosts[0].stats().active == 0
        await client.close()


async def test_the_membership_is_kept_while_the_primary_is_away(
    hosts: list[ReplicaHost], primary: Primary, galleries: list[str]
) -> None:
    """Hosts that are there go on serving. mission: 139"""
    is_away, looks = False, 0

    async def rows() -> list[HostRow]:
        nonlocal looks
        looks += 1
        if is_away:
            raise PrimaryUnavailable("away")
        return await list_hosts(primary)

    client = ReplicaClient(rows)
    await client.start()
    is_away, looks = True, 0
    await until(lambda: looks >= 3)

    for user in galleries[:4]:
        assert prompts(await read(client, user)) == [user]
    assert len(client.hosts) == 2
    is_away = False
    await client.close()


async def test_a_membership_that_cannot_be_read_is_tried_again(primary: Primary, hosts: list[ReplicaHost]) -> None:
    """Whatever the reason: it must not end the looking."""
    looks: list[list[HostRow] | Exception] = [[], ValueError("no"), KeyError("no")]

    async def rows() -> list[HostRow]:
        look = looks.pop(0) if looks else await list_hosts(primary)
        if isinstance(look, Exception):
            raise look
        return look

    client = ReplicaClient(rows)
    await client.start()
    assert client.hosts == []

    await until(lambda: len(client.hosts) == 2)
    await client.close()


async def test_while_nobody_waits_nothing_turns(
    client: ReplicaClient, hosts: list[ReplicaHost], history: History, galleries: list[str]
) -> None:
    """Neither late calls nor watches to place are looked for when there are none, also after there were some."""
    client.watching.add(galleries[0], await history.head(galleries[0]))
    await read(client, galleries[0])
    await until(lambda: not client.watching._unplaced)
    wires = [host.wire for host in client.membership.hosts.values() if host.wire is not None]
    assert len(wires) == 2

    await until(lambda: not any(wire._timer for wire in wires))
    await until(lambda: not client.watching._is_wanted.is_set())


async def test_without_a_host_everything_is_refused_at_once() -> None:
    async def nobody() -> list[HostRow]:
        return []

    client = ReplicaClient(nobody)
    await client.start()

    with pytest.raises(Retryable, match="no replica host is live"):
        await client.read("ana", ALL, None, timeout_s=5)
    with pytest.raises(Retryable, match="no replica host is live"):
        await client.sync("ana", timeout_s=5)
    client.poke("ana", Bookmark("1-1", 1))
    assert await client.probe() == []
    await client.close()


async def test_closing_leaves_no_task_and_no_connection(hosts: list[ReplicaHost], primary: Primary) -> None:
    before = asyncio.all_tasks()
    for _ in range(5):
        client = ReplicaClient(lambda: list_hosts(primary))
        await client.start()
        await asyncio.gather(*(read(client, user) for user in USERS))
        await client.close()

    await ended(asyncio.all_tasks() - before)
    await until(lambda: not hosts[0]._connections and not hosts[1]._connections)


# --- watching ---------------------------------------------------------------------------------------------------


class Told:
    """What `on_event` of a client is called with."""

    def __init__(self, client: ReplicaClient) -> None:
        self.events: list[tuple[str, Bookmark, list[str] | None]] = []
        client.watching.on_event = lambda user, at, kinds: self.events.append((user, at, kinds))

    def where(self, user: str) -> Bookmark | None:
        """The last position of `user`."""
        return next((at for told, at, _ in reversed(self.events) if told == user), None)


async def test_watched_users_are_told_of_by_whichever_host_has_them(
    client: ReplicaClient, hosts: list[ReplicaHost], history: History, galleries: list[str]
) -> None:
    """Nobody pokes and nobody reads: the sweeps find it. Who is not watched any more is not told of."""
    told = Told(client)
    for user in galleries:
        client.watching.add(user, await history.head(user))
    await until(lambda: not client.watching._unplaced)
    client.watching.remove(galleries[0])

    expected = {}
    for user in galleries:
        _, expected[user] = await history.write([user], lambda c, user=user: add_image(c, user))
    for user in galleries[1:]:
        await until(lambda user=user: told.where(user) == expected[user])

    assert told.where(galleries[0]) is None
    assert sum(host.stats().watched for host in hosts) == len(galleries) - 1


async def test_watches_follow_their_users_to_the_next_host_and_back(
    client: ReplicaClient,
    hosts: list[ReplicaHost],
    history: History,
    galleries: list[str],
    start_host: StartHost,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is missed on the way, and the old host forgets them."""
    monkeypatch.setattr(hosts_module, "MISSED_S", 1.0)
    told, user = Told(client), users_of(0)[0]
    client.watching.add(user, await history.head(user))
    await until(lambda: not client.watching._unplaced)

    draining = asyncio.create_task(hosts[0].drain())
    for _ in range(5):
        _, bookmark = await history.write([user], lambda c: add_image(c, user))
        await until(lambda bookmark=bookmark: told.where(user) == bookmark)
    await draining
    assert hosts[1].stats().watched == 1

    again = await start_host(0)
    _, bookmark = await history.write([user], lambda c: add_image(c, user))
    await until(lambda: told.where(user) == bookmark)
    await until(lambda: (again.stats().watched, hosts[1].stats().watched) == (1, 0))


async def test_watches_of_a_host_that_is_away_do_not_keep_others_waiting(
    client: ReplicaClient,
    hosts: list[ReplicaHost],
    history: History,
    galleries: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It beats and cannot be reached: its users are tried again and again, and the others' watches get their turn."""
    monkeypatch.setattr(watching, "_MAX_WATCHES", 2)
    told = Told(client)
    Path(hosts[0].address.removeprefix("unix:")).unlink()
    hosts[0]._server.close()
    for connection in list(hosts[0]._connections):
        connection.close()
    await until(lambda: client.membership.hosts["test:0"].wire is None)
    nowhere = Bookmark("0-0", 0)
    for user in [*users_of(0), *users_of(1)]:
        client.watching.add(user, nowhere)

    for user in users_of(1):
        _, bookmark = await history.write([user], lambda c, user=user: add_image(c, user))
        await until(lambda user=user, bookmark=bookmark: told.where(user) == bookmark)
    assert set(client.watching._unplaced) == set(users_of(0))


async def test_what_was_told_to_a_lost_connection_is_told_again(
    client: ReplicaClient, hosts: list[ReplicaHost], history: History, galleries: list[str]
) -> None:
    """Where the replica is open, by the answer to the next watch; where it is not, by the sweep."""
    told = Told(client)
    user = users_of(0)[0]
    await read(client, user)
    client.watching.add(user, await history.head(user))
    for is_open in (True, False) * 3:
        await until(lambda: not client.watching._unplaced)
        for connection in list(hosts[0]._connections):
            connection.tell = lambda event: None  # type: ignore[method-assign]  # sent, and never received
        _, bookmark = await history.write([user], lambda c: add_image(c, user))
        hosts[0]._handler.poke(PokeRequest(user, *bookmark))
        active = hosts[0]._replicas._active.get(user)
        await until(lambda active=active, bookmark=bookmark: active is None or active.position == bookmark)
        if not is_open:
            hosts[0]._replicas.passivate(user)
        for connection in list(hosts[0]._connections):
            connection.close()
        await until(lambda bookmark=bookmark: told.where(user) == bookmark)


# --- kept pages -------------------------------------------------------------------------------------------------


async def test_a_page_that_did_not_change_is_not_sent_again(
    client: ReplicaClient, history: History, galleries: list[str]
) -> None:
    """The host is still asked, and says at which version the bytes are true now. mission: 142"""
    user = galleries[0]
    sent = await read(client, user)
    assert sent.head.state == PageState.BYTES

    again = await read(client, user)

    assert again.head.state == PageState.UNCHANGED
    assert again.body is sent.body
    _, bookmark = await history.write(
        [user],
        lambda c: c.execute("insert into jobs (owner_id, prompt, provider, model) values ($1, '', 'b', 'm')", user),
    )
    renewed = await read(client, user, bookmark)
    assert renewed.head.state == PageState.UNCHANGED
    assert (renewed.body, renewed.head.version) == (sent.body, bookmark.version)

    _, bookmark = await history.write([user], lambda c: c.execute("delete from images where owner_id = $1", user))
    changed = await read(client, user, bookmark)
    assert (changed.head.state, prompts(changed)) == (PageState.BYTES, [])


async def test_pages_of_the_next_generation_are_sent_again(
    client: ReplicaClient, history: History, galleries: list[str], hosts: list[ReplicaHost], start_host: StartHost
) -> None:
    """A stamp is never that of other bytes, also when another process has opened the file."""
    user = users_of(0)[0]
    await read(client, user)
    await hosts[0].stop()
    _, bookmark = await history.write(
        [user], lambda c: c.execute("update images set prompt = 'new' where owner_id = $1", user)
    )
    await start_host(0)

    async def is_new() -> bool:
        try:
            return prompts(await read(client, user, bookmark)) == ["new"]
        except CallError:
            return False

    await until(is_new)
    assert prompts(await read(client, user, bookmark)) == ["new"]


async def test_kept_pages_have_a_bound_and_are_never_another_user_s(
    hosts: list[ReplicaHost], primary: Primary, history: History, galleries: list[str]
) -> None:
    """Room for a few pages, and three hundred reads of random users at once. mission: 141"""
    random = Random(3)
    client = ReplicaClient(lambda: list_hosts(primary), max_page_bytes=6000)
    await client.start()
    for user in galleries:
        await read(client, user)
    queries = [ALL, encode_query(GalleryQuery(limit=3)), encode_query(GalleryQuery(sort="oldest"))]
    states = []

    async def reader() -> None:
        for _ in range(30):
            user = random.choice(galleries)
            reply = await read(client, user, query=random.choice(queries))
            states.append(reply.head.state)
            assert set(prompts(reply)) == {user}
            assert client.pages.bytes <= 6000
            assert len(client.pages) <= 3

    async def writer() -> None:
        for n in range(30):
            user = galleries[n % len(galleries)]
            _, bookmark = await history.write([user], lambda c, user=user: add_image(c, user, user))
            client.poke(user, bookmark)

    await asyncio.gather(*(reader() for _ in range(10)), writer())

    assert set(states) == {PageState.BYTES, PageState.UNCHANGED}
    await client.close()


async def test_without_room_nothing_is_kept(hosts: list[ReplicaHost], primary: Primary, galleries: list[str]) -> None:
    client = ReplicaClient(lambda: list_hosts(primary))
    await client.start()

    states = [(await read(client, galleries[0])).head.state for _ in range(3)]

    assert states == [PageState.BYTES] * 3
    assert len(client.pages) == 0
    await client.close()
