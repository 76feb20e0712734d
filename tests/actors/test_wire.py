"""Both ends of a connection, over real sockets: what is cut, wrong, late or too much harms only itself."""

from __future__ import annotations

import asyncio
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import wire
from actors.errors import Behind, CallError, Overloaded, QueryTooCostly, Retryable, Seeding
from actors.messages import (
    CallRequest,
    Event,
    Outcome,
    PageHead,
    PageReply,
    PageState,
    PokeRequest,
    Position,
    ReadRequest,
    Type,
)
from actors.wire import MAX_FRAME_BYTES, WireClient, WireServer, frame, page_frame
from tests.world import until

encode = msgspec.msgpack.encode
SECRET = b"known to both"
HEAD = PageHead("1700000000000-1", 7, 3, "a1b2c3d4e5f6", 99, PageState.BYTES, Outcome.FRESH)


def a_read(user: str, *, deadline_ms: int = 5000) -> bytes:
    return encode(ReadRequest(user, b"query", deadline_ms))


class Host:
    """Answers by the name of the user: `now`, `later` (when `release` is set), `never`, or an error's name."""

    ERRORS: ClassVar = {e.__name__: e for e in (Retryable, Overloaded, Seeding, Behind, QueryTooCostly, KeyError)}

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.pokes: list[PokeRequest] = []
        self.ended: list[str] = []
        self.overloads = 0
        self.watched: list[CallRequest] = []
        self.unwatched: list[str | None] = []

    def peek(self, request: ReadRequest) -> tuple[PageHead, bytes] | None:
        if request.user == "now":
            return HEAD, request.query
        if request.user == "Seeding":
            raise Seeding("replica of Seeding is being made")
        return None

    async def read(self, request: ReadRequest) -> tuple[PageHead, bytes]:
        if request.user in self.ERRORS:
            raise self.ERRORS[request.user](f"because of {request.user}")
        try:
            if request.user == "never":
                await asyncio.Event().wait()
            await self.release.wait()
            return HEAD, request.query
        finally:
            self.ended.append(request.user)

    def overloaded(self) -> None:
        self.overloads += 1

    def poke(self, request: PokeRequest) -> None:
        self.pokes.append(request)

    def watch(self, connection: WireServer, request: CallRequest) -> Position:
        if request.user in self.ERRORS:
            raise self.ERRORS[request.user](f"because of {request.user}")
        self.watched.append(request)
        return Position("1-1", 7)

    def unwatch(self, connection: WireServer, user: str | None) -> None:
        self.unwatched.append(user)

    async def call(self, kind: Type, request: CallRequest) -> Any:
        return [int(kind), request.user]


class Pair:
    """A host's server, and what connects to it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "host.sock"
        self.host = Host()
        self.connections: set[WireServer] = set()
        self.lost: list[WireClient] = []
        self.late: list[WireClient] = []
        self.events: list[Event] = []
        self._servers: list[asyncio.Server] = []
        self._ends: list[Any] = []

    async def listen(self, *, secret: bytes | None = None) -> int:
        """Over TCP when there is a secret; answers the port."""
        loop = asyncio.get_running_loop()

        def protocol() -> WireServer:
            return WireServer(self.host, self.connections, secret=secret)

        if secret is None:
            self._servers.append(await loop.create_unix_server(protocol, self.path))
            return 0
        self._servers.append(await loop.create_server(protocol, "127.0.0.1", 0))
        return int(self._servers[-1].sockets[0].getsockname()[1])

    async def connect(self, *, port: int = 0, secret: bytes | None = None) -> WireClient:
        loop = asyncio.get_running_loop()

        def protocol() -> WireClient:
            return WireClient(
                secret=secret, on_lost=self.lost.append, on_late=self.late.append, on_event=self.events.append
            )

        if port:
            _, client = await loop.create_connection(protocol, "127.0.0.1", port)
        else:
            _, client = await loop.create_unix_connection(protocol, str(self.path))
        self._ends.append(client)
        await asyncio.wait_for(client.ready, 5)
        return client

    async def raw(self, *, port: int = 0) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection that may send anything."""
        if port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        else:
            reader, writer = await asyncio.open_unix_connection(self.path)
        self._ends.append(writer)
        return reader, writer

    async def close(self) -> None:
        for end in self._ends:
            end.close()
        for server in self._servers:
            server.close()
        for connection in list(self.connections):
            connection.close()
        await until(lambda: not self.connections)


@pytest.fixture
async def pair(short_folder: Path) -> AsyncIterator[Pair]:
    made = Pair(short_folder)
    yield made
    await made.close()


async def read(client: WireClient, user: str, *, deadline_ms: int = 5000) -> PageReply:
    reply: PageReply = await client.request(Type.READ, a_read(user, deadline_ms=deadline_ms), 5)
    return reply


async def is_closed(reader: asyncio.StreamReader) -> bool:
    """Whether the other end closes, after whatever it sends."""
    try:
        while await asyncio.wait_for(reader.read(65_536), 5):
            pass
    except ConnectionError:
        pass
    return True


# --- frames -----------------------------------------------------------------------------------------------------


class Collecting(wire._FrameProtocol):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[tuple[int, int, bytes]] = []

    def frame_received(self, request_id: int, kind: int, body: bytes) -> None:
        self.frames.append((request_id, kind, body))


async def test_frames_cut_at_every_byte_are_the_same_frames() -> None:
    expected = [(1, 1, b"body"), (0xFFFFFFFF, 255, b""), (3, 64, b"x" * 30)]
    data = b"".join(frame(request_id, kind, body) for request_id, kind, body in expected)  # type: ignore[arg-type]

    for first in range(len(data) + 1):
        for second in range(first, len(data) + 1):
            protocol = Collecting()
            for part in (data[:first], data[first:second], data[second:]):
                protocol.data_received(part)
            assert protocol.frames == expected, (first, second)


frames = st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 255), st.binary(max_size=300)), max_size=8)


@given(frames, st.lists(st.integers(1, 60), max_size=80))
async def test_frames_cut_anywhere_are_the_same_frames(expected: list[tuple[int, int, bytes]], cuts: list[int]) -> None:
    data = b"".join(frame(request_id, kind, body) for request_id, kind, body in expected)  # type: ignore[arg-type]
    protocol = Collecting()

    for cut in cuts:
        protocol.data_received(data[:cut])
        data = data[cut:]
    protocol.data_received(data)

    assert protocol.frames == expected


@given(st.text(max_size=200), st.integers(0, 2**53), st.binary(max_size=2000))
async def test_a_page_arrives_as_it_was_sent(text: str, version: int, body: bytes) -> None:
    """Its head is packed, its bytes are as they go to the client."""
    head = PageHead(text, version, 0, "0" * 12, version, PageState.BYTES, Outcome.FRESH)
    client = WireClient(secret=None, on_lost=lambda _: None)
    future = client.request(Type.READ, b"", 5)

    client.data_received(page_frame(1, head, body))

    assert await future == PageReply(head, body)


@given(st.binary(max_size=400))
async def test_random_bytes_are_no_reason_to_fail(data: bytes) -> None:
    """They are frames nobody knows, the beginning of one, or the end of the connection."""
    client = WireClient(secret=None, on_lost=lambda _: None)
    client.request(Type.READ, b"", 5).add_done_callback(lambda future: future.exception())

    client.data_received(data)
    server = WireServer(Host(), set(), secret=SECRET)
    server._challenge = b"x" * 32
    server.data_received(data)


# --- requests ---------------------------------------------------------------------------------------------------


async def test_a_page_that_is_at_hand_and_one_that_is_not(pair: Pair) -> None:
    await pair.listen()
    client = await pair.connect()

    waiting = asyncio.create_task(read(client, "later"))
    assert await read(client, "now") == PageReply(HEAD, b"query")
    assert not waiting.done()
    pair.host.release.set()
    assert await waiting == PageReply(HEAD, b"query")

    client.notify(Type.POKE, encode(PokeRequest("ana", "e", 4)))
    body = await client.request(Type.STATS, encode(CallRequest(1000, "ana")), 5)
    assert msgspec.msgpack.decode(body) == [Type.STATS, "ana"]
    assert pair.host.pokes == [PokeRequest("ana", "e", 4)]
    assert len(client._pending) == 0


@pytest.mark.parametrize(
    ("user", "expected", "text"),
    [
        ("Seeding", Seeding, "replica of Seeding is being made"),
        ("Behind", Behind, "because of Behind"),
        ("Overloaded", Overloaded, "because of Overloaded"),
        ("Retryable", Retryable, "because of Retryable"),
        ("QueryTooCostly", Retryable, "because of QueryTooCostly"),
        ("KeyError", Retryable, "the host failed: KeyError: 'because of KeyError'"),
    ],
)
async def test_a_refusal_arrives_as_what_it_was(pair: Pair, user: str, expected: type[CallError], text: str) -> None:
    await pair.listen()
    client = await pair.connect()

    with pytest.raises(CallError) as raised:
        await read(client, user)

    assert (type(raised.value), str(raised.value)) == (expected, text)
    assert await read(client, "now") == PageReply(HEAD, b"query")


async def test_a_large_page_arrives_whole(pair: Pair) -> None:
    """Larger than any buffer on its way."""
    await pair.listen()
    client = await pair.connect()
    large = bytes(range(256)) * 20_000

    replies = await asyncio.gather(
        *(client.request(Type.READ, encode(ReadRequest("now", large, 1000)), 10) for _ in range(3))
    )

    assert [reply.body for reply in replies] == [large] * 3


# --- what is wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        (MAX_FRAME_BYTES + 1).to_bytes(4, "big") + b"\0" * 5,
        (4).to_bytes(4, "big") + b"\0" * 5,
        frame(1, Type.READ, b"\xc1"),
        frame(1, Type.READ, encode(["ana"])),
        frame(1, Type.READ, encode([1, 2, 3])),
        frame(1, Type.POKE, b""),
        frame(1, 42, encode(CallRequest(1000))),  # type: ignore[arg-type]
        frame(1, Type.STATS, encode("a text")),
    ],
)
async def test_garbage_ends_its_own_connection_only(pair: Pair, garbage: bytes) -> None:
    """mission: 141"""
    await pair.listen()
    other = await pair.connect()
    waiting = asyncio.create_task(read(other, "later"))
    reader, writer = await pair.raw()

    writer.write(garbage)

    assert await is_closed(reader)
    assert await read(other, "now") == PageReply(HEAD, b"query")
    pair.host.release.set()
    assert await waiting == PageReply(HEAD, b"query")
    await until(lambda: len(pair.connections) == 1)


@pytest.mark.parametrize("garbage", [b"HTTP/1.1 400 Bad Request\r\n", frame(1, 99, b""), frame(1, Type.PAGE, b"\0")])  # type: ignore[arg-type]
async def test_a_server_that_is_not_ours_is_left(pair: Pair, garbage: bytes) -> None:
    """Whoever waits is told: also the one whose answer it was."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(9)
        writer.write(garbage)
        await is_closed(reader)
        writer.close()

    pair._servers.append(await asyncio.start_unix_server(answer, pair.path))
    client = await pair.connect()

    with pytest.raises(CallError):
        await asyncio.wait_for(read(client, "now"), 2)

    assert pair.lost == [client]


# --- bounds and deadlines ---------------------------------------------------------------------------------------


async def test_requests_under_way_are_bounded_at_the_host(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is too much is refused at once; what is at hand is still answered."""
    await pair.listen()
    monkeypatch.setattr(wire, "MAX_IN_FLIGHT", 8)
    reader, writer = await pair.raw()

    writer.write(b"".join(frame(n, Type.READ, a_read("later")) for n in range(1, 11)))
    writer.write(frame(11, Type.READ, a_read("now")))

    refused = [await next_frame(reader) for _ in range(2)]
    assert [(n, kind) for n, kind, _ in refused] == [(9, Type.ERROR), (10, Type.ERROR)]
    assert pair.host.overloads == 2
    assert msgspec.msgpack.decode(refused[0][2]) == [
        "overloaded", "8 requests are under way on this connection"
    ]  # fmt: skip
    assert (await next_frame(reader))[:2] == (11, Type.PAGE)
    pair.host.release.set()
    assert sorted([(await next_frame(reader))[0] for _ in range(8)]) == list(range(1, 9))
    writer.write(frame(12, Type.READ, a_read("later")))
    assert (await next_frame(reader))[:2] == (12, Type.PAGE)


async def next_frame(reader: asyncio.StreamReader) -> tuple[int, int, bytes]:
    async with asyncio.timeout(5):
        head = await reader.readexactly(9)
        size = int.from_bytes(head[:4], "big")
        return int.from_bytes(head[4:8], "big"), head[8], await reader.readexactly(size - 5)


async def test_requests_under_way_are_bounded_at_the_gateway(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    await pair.listen()
    client = await pair.connect()
    monkeypatch.setattr(wire, "MAX_IN_FLIGHT", 8)
    waiting = [asyncio.create_task(read(client, "later")) for _ in range(8)]
    await asyncio.sleep(0)

    with pytest.raises(Overloaded, match="8 requests to this host are under way"):
        client.request(Type.READ, a_read("now"), 5)

    pair.host.release.set()
    await asyncio.gather(*waiting)
    assert await read(client, "now") == PageReply(HEAD, b"query")


async def test_a_host_says_so_when_it_cannot_answer_in_time(pair: Pair) -> None:
    await pair.listen()
    client = await pair.connect()
    started = time.monotonic()

    with pytest.raises(Retryable, match="no answer within 50 ms"):
        await read(client, "never", deadline_ms=50)

    assert 0.045 < time.monotonic() - started < 1
    assert pair.host.ended == ["never"]


async def test_a_host_that_says_nothing_is_given_up_and_its_late_answer_ignored(pair: Pair) -> None:
    """The next request on the connection gets its own answer and not the late one."""
    received: asyncio.Queue[int] = asyncio.Queue()
    writers: list[asyncio.StreamWriter] = []

    async def listen_only(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        try:
            while True:
                received.put_nowait((await next_frame(reader))[0])
        except (asyncio.IncompleteReadError, TimeoutError):
            writer.close()

    pair._servers.append(await asyncio.start_unix_server(listen_only, pair.path))
    client = await pair.connect()

    first = client.request(Type.READ, a_read("now"), 0.02)
    late = await received.get()
    assert pair.late == []
    with pytest.raises(Retryable, match="the host did not answer in time"):
        await first
    assert pair.late == [client]
    second = client.request(Type.READ, a_read("now"), 5)
    wanted = await received.get()
    writers[0].write(page_frame(late, HEAD, b"late") + page_frame(wanted, HEAD, b"wanted"))
    assert (await second).body == b"wanted"
    assert len(client._pending) == 0

    cancelled = client.request(Type.READ, a_read("now"), 5)
    cancelled.cancel()
    third = client.request(Type.READ, a_read("now"), 5)
    numbers = [await received.get() for _ in range(2)]
    writers[0].write(b"".join(page_frame(n, HEAD, str(n).encode()) for n in numbers))
    assert (await third).body == str(numbers[1]).encode()


async def test_a_lost_connection_fails_all_that_was_under_way(pair: Pair) -> None:
    await pair.listen()
    client = await pair.connect()
    waiting = [asyncio.create_task(read(client, "never")) for _ in range(20)]
    await until(lambda: pair.connections and next(iter(pair.connections)).in_flight == 20)

    next(iter(pair.connections)).close()

    for task in waiting:
        with pytest.raises(Retryable, match="the connection to the host is lost"):
            await task
    assert pair.lost == [client]
    assert len(client._pending) == 0
    await until(lambda: pair.host.ended == ["never"] * 20)


async def test_a_gateway_that_goes_away_ends_its_requests_at_the_host(pair: Pair) -> None:
    """Nobody is there for the answer."""
    await pair.listen()
    reader, writer = await pair.raw()
    writer.write(b"".join(frame(n, Type.READ, a_read("never")) for n in range(5)))
    await until(lambda: pair.connections and next(iter(pair.connections)).in_flight == 5)

    writer.close()

    await until(lambda: pair.host.ended == ["never"] * 5)
    await until(lambda: not pair.connections)
    assert await is_closed(reader)


async def test_a_gateway_that_does_not_read_is_not_listened_to(pair: Pair) -> None:
    """What it asks for would pile up in the host; others are answered meanwhile."""
    await pair.listen()
    other = await pair.connect()
    _, writer = await pair.raw()
    request = frame(1, Type.READ, encode(ReadRequest("now", b"x" * 100_000, 1000)))

    async def flood() -> None:
        for _ in range(400):
            writer.write(request)
            await writer.drain()

    flooding = asyncio.create_task(flood())
    await until(lambda: any(not c._transport.is_reading() for c in pair.connections if c._transport))

    assert await read(other, "now") == PageReply(HEAD, b"query")
    assert not flooding.done()
    flooding.cancel()
    writer.transport.abort()


# --- events -----------------------------------------------------------------------------------------------------


async def test_a_watch_is_answered_and_what_follows_is_told(pair: Pair) -> None:
    """Events come without being asked for, between answers, in their order."""
    await pair.listen()
    client = await pair.connect()
    waiting = asyncio.create_task(read(client, "later"))

    body = await client.request(Type.WATCH, encode(CallRequest(1000, "ana", "1-1", 3)), 5)
    assert msgspec.msgpack.decode(body, type=Position) == Position("1-1", 7)
    assert pair.host.watched == [CallRequest(1000, "ana", "1-1", 3)]
    with pytest.raises(Retryable, match="because of Retryable"):
        await client.request(Type.WATCH, encode(CallRequest(1000, "Retryable")), 5)

    told = [Event("ana", "1-1", version, ["images"], False) for version in range(8, 40)]
    for event in told:
        next(iter(pair.connections)).tell(event)
    await until(lambda: len(pair.events) == len(told))
    assert pair.events == told
    assert not waiting.done()
    pair.host.release.set()
    await waiting

    client.notify(Type.UNWATCH, encode(CallRequest(0, "ana")))
    await until(lambda: pair.host.unwatched == ["ana"])
    client.close()
    await until(lambda: pair.host.unwatched == ["ana", None])


async def test_a_gateway_that_does_not_read_is_told_the_last_of_each_user(pair: Pair) -> None:
    """One event per user waits for it, whatever happens; what was left out between makes it one of anything."""
    await pair.listen()
    reader, _ = await pair.raw()
    await until(lambda: pair.connections)
    (connection,) = pair.connections
    version = 0
    while not connection._is_full:
        version += 1
        connection.tell(Event("filler", "1-1", version, ["x" * 1000], False))
        await asyncio.sleep(0)

    for number in range(1, 1001):
        for user in ("ana", "bo"):
            connection.tell(Event(user, "1-1", number, ["images"], False))
    connection.tell(Event("once", "1-1", 5, ["jobs"], False))
    connection.tell(Event("anew", "1-1", 6, [], True))
    connection.tell(Event("anew", "1-1", 7, ["jobs"], False))
    assert len(connection._untold) == 4
    assert not connection._out

    heard: dict[str, Event] = {}
    while len(heard) < 5:
        _, kind, body = await next_frame(reader)
        event = msgspec.msgpack.decode(body, type=Event)
        assert kind == Type.EVENT
        assert event.user == "filler" or event.user not in heard
        heard[event.user] = event
    assert connection._untold == {}
    assert {user: (event.version, event.is_whole) for user, event in heard.items()} == {
        "filler": (version, False), "ana": (1000, True), "bo": (1000, True), "once": (5, False), "anew": (7, True),
    }  # fmt: skip
    connection.tell(Event("ana", "1-1", 1001, ["images"], False))
    assert msgspec.msgpack.decode((await next_frame(reader))[2], type=Event).version == 1001


# --- who may connect --------------------------------------------------------------------------------------------


async def test_over_tcp_both_ends_know_the_secret(pair: Pair) -> None:
    port = await pair.listen(secret=SECRET)
    client = await pair.connect(port=port, secret=SECRET)

    assert await read(client, "now") == PageReply(HEAD, b"query")


async def test_a_wrong_secret_ends_the_connection(pair: Pair) -> None:
    port = await pair.listen(secret=SECRET)

    with pytest.raises(Retryable, match="the connection to the host is lost"):
        await pair.connect(port=port, secret=b"guessed")

    await until(lambda: not pair.connections)


@pytest.mark.parametrize("first", [frame(1, Type.READ, a_read("now")), frame(0, Type.AUTH, b""), b"\0" * 40])
async def test_nothing_is_answered_before_the_secret_was_proved(pair: Pair, first: bytes) -> None:
    """mission: 141"""
    port = await pair.listen(secret=SECRET)
    reader, writer = await pair.raw(port=port)
    assert (await next_frame(reader))[1] == Type.HELLO

    writer.write(first + frame(2, Type.READ, a_read("now")))

    assert await read_rest(reader) == b""


async def read_rest(reader: asyncio.StreamReader) -> bytes:
    try:
        return await asyncio.wait_for(reader.read(), 5)
    except ConnectionError:
        return b""


async def test_each_connection_has_its_own_challenge(pair: Pair) -> None:
    """A proof that was overheard opens nothing."""
    port = await pair.listen(secret=SECRET)
    (first, _), (second, writer) = await pair.raw(port=port), await pair.raw(port=port)
    challenge = (await next_frame(first))[2]
    assert (await next_frame(second))[2] != challenge

    writer.write(frame(0, Type.AUTH, wire._proof(SECRET, challenge)) + frame(1, Type.READ, a_read("now")))

    assert await read_rest(second) == b""


async def test_who_does_not_prove_it_in_time_is_closed(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_AUTH_S", 0.05)
    port = await pair.listen(secret=SECRET)
    trusted = await pair.connect(port=port, secret=SECRET)
    reader, _ = await pair.raw(port=port)

    assert await is_closed(reader)

    assert await read(trusted, "now") == PageReply(HEAD, b"query")
    assert len(pair.connections) == 1


async def test_a_socket_file_is_its_owner_s(pair: Pair, start_host: Callable[..., Awaitable[Any]]) -> None:
    host = await start_host(0)

    path = Path(host.address.removeprefix("unix:"))

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    await host.stop()
    assert not path.exists()
