"""Event streams: what a listener is told, what it may miss without harm, and when a stream ends."""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from actors.host import ReplicaHost
from actors.messages import CallRequest, Type
from gateway import auth as auth_module
from gateway import events as events_module
from gateway.app import Gateway
from gateway.auth import Signer
from store import api_keys
from store.epoch import Bookmark, rotate
from tests.gateway.asking import bookmark_of, ids_of, replica_of, running
from tests.gateway.link import PrimaryLink
from tests.gateway.listening import FarWorld, Listener, Message, listening
from tests.world import Reply, World, add_images, until


async def sql_images(world: World, user: str, count: int = 1) -> Bookmark:
    """New images as another service writes them, in one transaction; nobody pokes. Answers where the user is then."""
    async with world.host._control.connection() as connection:
        async with connection.transaction():
            await add_images(connection, user, count)
        row = await connection.fetchrow(
            "select sync_epoch_now() as epoch, version from sync_user where user_id = $1", user
        )
    assert row is not None
    return Bookmark(row["epoch"], row["version"])


def is_watched(world: World, user: str) -> bool:
    """Whether the host knows that somebody listens to `user`."""
    return user in world.host._replicas.watches._watches


async def heard_until(listener: Listener, at: Bookmark | str) -> list[Message]:
    """What is dispatched up to the message at `at`."""
    heard = [await listener.next()]
    while heard[-1].id != str(at):
        heard.append(await listener.next())
    return heard


@asynccontextmanager
async def raw_stream(world: World, user: str, *, receive_bytes: int) -> AsyncIterator[socket.socket]:
    """A listener that reads only when it is told to."""
    parts = urlsplit(world.url)
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    made.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(made, (parts.hostname, parts.port))
    head = f"GET /api/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {world.token(user)}\r\n\r\n"
    await loop.sock_sendall(made, head.encode())
    try:
        yield made
    finally:
        made.close()


# --- what is told -----------------------------------------------------------------------------------------------


async def test_a_listener_hears_of_every_new_version(shared: World, user: str) -> None:
    """One message per applied pull: where the user is now, and what kinds of rows changed."""
    await replica_of(shared, user)
    async with listening(shared, user) as listener:
        start = await listener.begun()
        assert start.endswith(".0")

        first = await shared.upload(user=user, prompt="one")
        message = await listener.next()
        assert (message.id, message.event) == (first.headers["Peruse-Bookmark"], "message")
        assert message.data == {"version": bookmark_of(first).version, "kinds": ["accounts", "images"]}

        at = await sql_images(shared, user)  # nobody pokes: the sweep finds it
        assert await listener.next() == (str(at), "message", {"version": at.version, "kinds": ["images"]})


async def test_what_a_message_names_can_be_read_at_once(shared: World, user: str) -> None:
    """Its id is a bookmark, and the replica that told it has it."""
    await replica_of(shared, user)
    async with listening(shared, user) as listener:
        await listener.begun()
        for count in range(1, 6):
            await sql_images(shared, user)
            message = await listener.next()
            reply = await shared.get("/api/images", user=user, headers={"Peruse-Bookmark": message.id})
            assert (len(ids_of(reply)), reply.headers["Peruse-Source"]) == (count, "replica")


async def test_all_of_a_users_listeners_hear_the_same_and_nobody_else_does(shared: World, user: str) -> None:
    """A stream is its credential's user's; another user hears only of their own."""
    other = f"{user}-other"
    for one_of_them in (user, other):
        await shared.upload(user=one_of_them)  # the first upload of all makes the user too: a version more
    async with listening(shared, user) as one, listening(shared, user) as two, listening(shared, other) as stranger:
        for listener in (one, two, stranger):
            await listener.begun()
        bookmarks = [bookmark_of(await shared.upload(user=user)) for _ in range(3)]
        heard = [await heard_until(listener, bookmarks[-1]) for listener in (one, two)]
        own = bookmark_of(await shared.upload(user=other))

        assert heard[0] == heard[1]
        assert (await stranger.next()).id == str(own)


async def test_a_sleeping_users_changes_are_heard_too(world: World) -> None:
    """A stream does not keep its user's replica open: the sweep wakes it."""
    await replica_of(world, "ana")
    async with listening(world, "ana") as listener:
        await listener.begun()
        await world.gateway.client.passivate("ana")
        reply = await world.upload(user="ana")
        assert (await listener.next()).id == reply.headers["Peruse-Bookmark"]


@pytest.mark.parametrize("is_cold", [False, True])
async def test_a_change_that_nobody_pokes_is_heard_from_a_replica_that_is_not_open(
    shared: World, user: str, is_cold: bool
) -> None:
    """The sweep looks at the heads of the watched: also of one who never had a replica."""
    if not is_cold:
        await replica_of(shared, user)
    async with listening(shared, user) as listener:
        await listener.begun()
        await until(lambda: is_watched(shared, user))
        await shared.gateway.client.passivate(user)

        at = await sql_images(shared, user)
        started = time.monotonic()
        message = await listener.next()

        assert (message.id, message.event) == (str(at), "message")
        assert "images" in message.data["kinds"]
        assert time.monotonic() - started < 4  # two sweeps, on a busy machine


# --- coming back ------------------------------------------------------------------------------------------------


async def test_a_listener_that_comes_back_is_told_what_it_missed(shared: World, user: str) -> None:
    """Version by version, from the change log."""
    await shared.upload(user=user)
    async with listening(shared, user) as listener:
        seen = await listener.begun()
    missed = [await shared.upload(user=user) for _ in range(3)]

    async with listening(shared, user, last_id=seen) as listener:
        heard = [await listener.next() for _ in missed]

    assert [message.id for message in heard] == [reply.headers["Peruse-Bookmark"] for reply in missed]
    assert [message.data["kinds"] for message in heard] == [
        ["accounts", "images"]
    ] * 3  # the bytes used are in the account


@pytest.mark.parametrize("last_id", ["", "nonsense", "1-1.0", "1-1", "999999999999999-1.1", "HEAD.999999", "é"])
async def test_a_last_id_that_was_never_given_is_a_resync(shared: World, user: str, last_id: str) -> None:
    """Unreadable, of another history, or ahead of everything: read again, from the head."""
    at = bookmark_of(await shared.upload(user=user))

    async with listening(shared, user, last_id=last_id.replace("HEAD", at.epoch)) as listener:
        assert await listener.next() == (str(at), "resync", {"version": at.version})
        after = await shared.upload(user=user)
        assert (await listener.next()).id == after.headers["Peruse-Bookmark"]


async def test_who_missed_too_much_reads_again(shared: World, user: str) -> None:
    """A hundred versions are told one by one, more are one resync."""
    await sql_images(shared, user)
    async with listening(shared, user) as listener:
        seen = await listener.begun()
    for _ in range(100):
        at = await sql_images(shared, user)

    async with listening(shared, user, last_id=seen) as listener:
        heard = await heard_until(listener, at)
    last = await sql_images(shared, user)
    async with listening(shared, user, last_id=seen) as listener:
        again = await listener.next()

    assert [message.event for message in heard] == ["message"] * 100
    assert (again.id, again.event) == (str(last), "resync")


# --- what goes away and comes back ------------------------------------------------------------------------------


async def test_a_rotated_epoch_is_a_resync_for_all_who_listen(world: World) -> None:
    """Whether their replica is open, closed, or was never made."""
    await replica_of(world, "open")
    await replica_of(world, "closed")
    async with AsyncExitStack() as stack:
        users = ("open", "closed", "cold")
        listeners = {user: await stack.enter_async_context(listening(world, user)) for user in users}
        for user, listener in listeners.items():
            await listener.begun()
            await until(lambda user=user: is_watched(world, user))
        await world.gateway.client.passivate("closed")

        epoch = await rotate(world.gateway.primary)

        for listener in listeners.values():
            assert await listener.next() == (f"{epoch}.0", "resync", {"version": 0})


async def test_a_position_that_goes_back_is_a_resync(world: World) -> None:
    """After a restore versions are lower than before, in a new epoch."""
    for _ in range(3):
        await world.upload()
    await replica_of(world, "ana")
    async with listening(world, "ana") as listener:
        before = Bookmark.parse(await listener.begun())
        await until(lambda: is_watched(world, "ana"))

        await world.gateway.primary.fetch("update sync_user set version = 1 where user_id = 'ana'")
        await world.gateway.primary.fetch("delete from change_log where user_id = 'ana' and version > 1")
        epoch = await rotate(world.gateway.primary)
        message = await listener.next()

        assert before is not None
        assert before.version >= 3
        assert (message.id, message.event) == (f"{epoch}.1", "resync")
        after = await world.upload()
        assert (await listener.next()).id == after.headers["Peruse-Bookmark"] == f"{epoch}.2"


async def test_nothing_is_missed_while_the_host_is_away(world: World) -> None:
    """What happened between one generation and the next is told by the next."""
    await replica_of(world, "ana")
    async with listening(world, "ana") as listener:
        await listener.begun()
        await world.upload()
        await listener.next()
        await world.host.stop()
        missed = [bookmark_of(await world.upload()) for _ in range(3)]
        world.host = await world.start_host(0)

        heard = await heard_until(listener, missed[-1])
        assert {message.event for message in heard} <= {"message", "resync"}
        after = await world.upload()
        assert (await listener.next()).id == after.headers["Peruse-Bookmark"]


async def test_nothing_is_missed_when_the_connection_to_the_host_breaks(shared: World, user: str) -> None:
    """The gateway says again what it knows, and the host what it does not."""
    await replica_of(shared, user)
    async with listening(shared, user) as listener:
        await listener.begun()
        for _ in range(5):
            await until(lambda: is_watched(shared, user))
            for connection in list(shared.host._connections):
                connection.close()
            at = await sql_images(shared, user)
            await heard_until(listener, at)


async def test_nothing_is_missed_while_the_primary_is_away(link: PrimaryLink, tmp_path: Path, database: str) -> None:
    """Written before it went and not pulled, or written by others meanwhile: told when it is back."""
    async with running(World(tmp_path / "data", link.url)) as world:
        await replica_of(world, "ana")
        async with listening(world, "ana") as listener:
            await listener.begun()
            await until(lambda: is_watched(world, "ana"))
            await link.cut()
            connection = await asyncpg.connect(database)
            async with connection.transaction():
                await add_images(connection, "ana", 1)
            await connection.close()
            await link.open()

            message = await listener.next(timeout_s=20)
            assert (message.data["version"], message.event) == (1, "message")


async def test_what_the_host_tells_while_the_gateway_cannot_ask_is_a_resync(
    link: PrimaryLink, tmp_path: Path, database: str
) -> None:
    """It tells a replica that was made anew once: without the change log, nobody could say later what that was."""
    async with running(FarWorld(tmp_path / "data", link, database)) as world:
        await replica_of(world, "ana")
        async with listening(world, "ana") as listener:
            await listener.begun()
            await until(lambda: is_watched(world, "ana"))
            await link.cut()
            await world.host._handler.call(Type.RESEED, CallRequest(1000, "ana"))
            at = await sql_images(world, "ana")

            heard = await heard_until(listener, at)
            is_told = [m for m in heard if m.event == "resync" or "images" in m.data["kinds"]]
            assert is_told
            await link.open()


@pytest.mark.parametrize("claimed", [None, "999999999999999-1.999999", "1-1.5"])
async def test_a_stream_that_begins_while_the_primary_is_away_hears_what_follows(
    link: PrimaryLink, tmp_path: Path, database: str, claimed: str | None
) -> None:
    """Whatever its listener claims to have heard, it must not be deaf to what comes."""
    async with running(FarWorld(tmp_path / "data", link, database)) as world:
        await replica_of(world, "ana")
        await link.cut()
        async with listening(world, "ana", last_id=claimed) as listener:
            await listener.begun()
            await until(lambda: is_watched(world, "ana"))
            at = await sql_images(world, "ana")

            heard = await heard_until(listener, at)
            assert claimed is None or heard[0].event == "resync"
            await link.open()
            after = bookmark_of(await until_uploaded(world))
            assert (await heard_until(listener, after))[-1].data["version"] == after.version


async def until_uploaded(world: World) -> Reply:
    """An upload, as soon as the gateway has found the primary again."""

    async def answer() -> Reply | None:
        reply = await world.upload()
        return reply if reply.status == 201 else None

    return await until(answer)


async def test_two_gateways_tell_the_same(world: World) -> None:
    """Each watches for itself, and one that comes later does not disturb the other."""
    second = World(world.data, world.database)
    second.host = world.host
    await replica_of(world, "ana")
    async with another_gateway(second), listening(world, "ana") as here:
        await here.begun()
        first = bookmark_of(await world.upload())
        async with listening(second, "ana") as there:
            await there.begun()
            bookmarks = [bookmark_of(await gateway.upload()) for gateway in (world, second, world, second)]
            for listener, expected in ((here, [first, *bookmarks]), (there, bookmarks)):
                heard = await heard_until(listener, bookmarks[-1])
                assert {m.id for m in heard} <= {str(b) for b in expected}
                assert {m.event for m in heard} == {"message"}


@asynccontextmanager
async def another_gateway(world: World) -> AsyncIterator[World]:
    """`world` beside the one whose host it has."""
    host, start_host = world.host, world.start_host

    async def same(slot: int) -> ReplicaHost:
        return host

    world.start_host = same  # type: ignore[method-assign]
    await world.start()
    try:
        yield world
    finally:
        world.start_host = start_host  # type: ignore[method-assign]
        await world.http.close()
        await world._runner.cleanup()


# --- slow and many ----------------------------------------------------------------------------------------------


async def test_a_listener_that_does_not_read_is_sent_one_resync_for_what_it_missed(shared: World, user: str) -> None:
    """What waits for it is bounded, in the gateway and in its socket."""
    at = await sql_images(shared, user)
    async with raw_stream(shared, user, receive_bytes=4096) as reader:
        (stream,) = await until(lambda: streams_of(shared.gateway, user))
        await until(lambda: is_watched(shared, user))
        for version in range(at.version + 1, at.version + 100_001):
            shared.gateway.client.watching.on_event(user, Bookmark(at.epoch, version), ["images"])
            if version % 40 == 0:
                await asyncio.sleep(0)
                assert len(stream._messages) <= 64

        loop, text = asyncio.get_running_loop(), b""
        last = f"id: {at.epoch}.{at.version + 100_000}\n".encode()
        async with asyncio.timeout(20):
            while last not in text[-4096:]:
                text += await loop.sock_recv(reader, 65_536)
        assert text.count(b"event: resync") >= 1
        ids = [int(line.rpartition(b".")[2]) for line in text.split(b"\n") if line.startswith(b"id: ")]
        assert ids == sorted(ids)
        assert len(ids) < 100_000


async def test_unsent_bytes_of_a_listener_that_does_not_read_are_few(shared: World, user: str) -> None:
    """A stream waits for its socket, and writes no more than the mark at which it is full."""
    at = await sql_images(shared, user)
    versions = itertools.count(at.version + 1)
    most = 0

    async def tell(count: int) -> None:
        nonlocal most
        for version in itertools.islice(versions, count):
            shared.gateway.client.watching.on_event(user, Bookmark(at.epoch, version), ["images"])
            if version % 40 == 0:
                await asyncio.sleep(0)
                sizes = [stream._transport.get_write_buffer_size() for stream in streams_of(shared.gateway, user)]
                most = max(most, *sizes)

    async with AsyncExitStack() as stack:
        for number in range(1, 5):  # each has been sent another number of bytes when its socket is full
            await stack.enter_async_context(raw_stream(shared, user, receive_bytes=4096))
            await until(lambda number=number: len(streams_of(shared.gateway, user)) == number)
            await tell(200)
        await tell(100_000)
        assert 0 < most < 24 * 1024


def streams_of(gateway: Gateway, user: str) -> list[Any]:
    """The user's streams that have begun."""
    topic = gateway.streams._topics.get(user)
    return [stream for stream in topic.streams if stream.at is not None] if topic is not None else []


async def test_a_user_has_twenty_streams_at_most(shared: World, user: str) -> None:
    """One more is refused, and the others go on."""
    await shared.upload(user=user)
    async with AsyncExitStack() as stack:
        listeners = [await stack.enter_async_context(listening(shared, user)) for _ in range(20)]
        refused = await shared.get("/api/events", user=user)
        assert (refused.status, refused.json["code"]) == (429, "too_many")

        at = bookmark_of(await shared.upload(user=user))
        for listener in listeners:
            assert (await listener.next()).id == str(at)
    await until(lambda: user not in shared.gateway.streams._topics)


async def test_listeners_who_have_left_take_nobodys_place(shared: World, user: str) -> None:
    """Someone who reloads a page many times is not refused: nothing tells that a silent listener is gone."""
    for _ in range(50):
        async with listening(shared, user) as listener:
            await listener.begun()
            listener.answer.close()

    await until(lambda: user not in shared.gateway.streams._topics, timeout_s=5)
    await until(lambda: not is_watched(shared, user))
    await until(lambda: shared.gateway.metrics.streams == 0)


async def test_a_gateway_has_as_many_streams_as_it_may(database: str, tmp_path: Path) -> None:
    world = World(tmp_path / "data", database, max_streams=2)
    async with running(world), listening(world, "ana"), listening(world, "ben"):
        assert (await world.get("/api/events", user="cleo")).status == 429


async def test_a_silent_stream_is_kept_alive(shared: World, user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A comment now and then, for proxies that end what is silent."""
    monkeypatch.setattr(events_module, "_KEEPALIVE_S", 1)
    async with listening(shared, user) as listener:
        await listener.begun()
        with pytest.raises(TimeoutError):
            await listener.next(timeout_s=3.5)
        assert listener.comments >= 1


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT"])
async def test_only_get_listens(shared: World, user: str, method: str) -> None:
    assert (await shared.request(method, "/api/events", user=user)).status == 405


async def test_a_stream_takes_no_parameters_and_needs_a_user(shared: World, user: str) -> None:
    assert (await shared.get("/api/events?since=1", user=user)).status == 400
    assert (await shared.get("/api/events", user=None)).status == 401
    assert user not in shared.gateway.streams._topics


# --- its end ----------------------------------------------------------------------------------------------------


async def test_a_stream_ends_with_its_token(shared: World, user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another stream of the same user, with another token, goes on."""
    await shared.upload(user=user)
    monkeypatch.setattr(shared.gateway.auth._claims, "leeway", 0)
    token = Signer(shared.data, shared.settings).token(user, ttl_s=2)
    async with (
        listening(shared, user, headers={"Authorization": f"Bearer {token}"}) as ending,
        listening(shared, user) as staying,
    ):
        await ending.ended()
        at = bookmark_of(await shared.upload(user=user))
        assert (await staying.next()).id == str(at)


async def test_a_stream_ends_with_its_api_key(shared: World, user: str) -> None:
    """Within two seconds, and with another key it goes on."""
    revoked, kept = [await api_keys.create_key(shared.gateway.primary, user) for _ in range(2)]
    async with (
        listening(shared, user, headers={"Authorization": f"Bearer {revoked.secret}"}) as ending,
        listening(shared, user, headers={"Authorization": f"Bearer {kept.secret}"}) as staying,
    ):
        await staying.begun()
        await api_keys.revoke_key(shared.gateway.primary, user, revoked.id)
        await ending.ended(timeout_s=4)
        at = bookmark_of(await shared.upload(user=user))
        assert (await heard_until(staying, at))[-1].event == "message"


async def test_tokens_end_in_time_while_the_primary_does_not_answer(
    link: PrimaryLink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can look up API keys then, and their streams stay; a token ends by itself."""
    monkeypatch.setattr(auth_module, "_LEEWAY_S", 0)
    async with running(World(tmp_path / "data", link.url)) as world, AsyncExitStack() as stack:
        keys = [await api_keys.create_key(world.gateway.primary, f"user-{n}") for n in range(12)]
        by_key = [
            await stack.enter_async_context(listening(world, "any", headers={"Authorization": f"Bearer {key.secret}"}))
            for key in keys
        ]
        for listener in by_key:
            await listener.begun()
        token = Signer(world.data, world.settings).token("ana", ttl_s=3)
        async with listening(world, "ana", headers={"Authorization": f"Bearer {token}"}) as listener:
            await listener.begun()
            link.block()
            world.gateway.auth._kept.clear()  # what was looked up is a minute old

            started = time.monotonic()
            await listener.ended(timeout_s=30)
            assert time.monotonic() - started < 7
        assert world.gateway.metrics.streams >= len(keys)
        link.unblock()


async def test_a_gateway_stops_at_once_whoever_listens(database: str, tmp_path: Path) -> None:
    """Also when one of them does not read; and what comes in the last moment is no stream any more."""
    world = await World(tmp_path / "data", database).start()
    at = await sql_images(world, "ana")
    async with raw_stream(world, "ana", receive_bytes=4096), AsyncExitStack() as stack:
        listeners = [await stack.enter_async_context(listening(world, f"user-{n}")) for n in range(50)]
        await until(lambda: streams_of(world.gateway, "ana"))
        for version in range(at.version + 1, at.version + 60_000):
            world.gateway.client.watching.on_event("ana", Bookmark(at.epoch, version), ["images"])
            if version % 40 == 0:
                await asyncio.sleep(0)

        started = time.monotonic()
        await world._runner.cleanup()
        assert time.monotonic() - started < 6
        for listener in listeners:
            await listener.ended()
        assert world.gateway.metrics.streams == 0
    await world.http.close()
    await world.host.stop()
