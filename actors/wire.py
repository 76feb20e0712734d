"""The wire between gateways and hosts: frames, and both ends of a connection.

    size u32 | id u32 | type u8 | body        big endian; `size` counts what follows it

The body is a msgspec array in MessagePack; a `PAGE` has its head's length (u16), the head, then the page's bytes as
they go to the client. Nothing is pickled. Many requests are in flight on one connection; what is sent in one turn of
the loop goes out in one write. Deadlines travel as remaining milliseconds: clocks of two machines are not compared.

Over TCP the asker first proves that it knows the shared secret: HELLO carries a challenge, AUTH its HMAC, and an empty
HELLO says that it was right. A Unix socket has mode 0600 instead.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import struct
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, cast

import msgspec

from actors.errors import BadFrame, Behind, CallError, Overloaded, Retryable, Seeding
from actors.messages import (
    CallRequest,
    Event,
    PageHead,
    PageReply,
    PokeRequest,
    Position,
    ReadRequest,
    TouchRequest,
    Type,
    WireError,
)

__all__ = ["MAX_FRAME_BYTES", "MAX_IN_FLIGHT", "Handler", "WireClient", "WireServer", "frame", "page_frame"]

_HEAD: Final = struct.Struct("!IIB")
_PAGE_HEAD: Final = struct.Struct("!IIBH")
_SHORT: Final = struct.Struct("!H")
#: Nothing of ours is larger; a longer length means that this is not our protocol.
MAX_FRAME_BYTES: Final = 16 * 2**20
#: Requests under way on one connection; more are refused at once.
MAX_IN_FLIGHT: Final = 1024
_AUTH_S: Final = 5.0
#: How much later than its deadline a request may be given up.
_LATE_S: Final = 0.02
_ERRORS: Final[dict[str, type[CallError]]] = {e.code: e for e in (Retryable, Overloaded, Seeding, Behind)}
_encode = msgspec.msgpack.Encoder().encode
_decode_page_head = msgspec.msgpack.Decoder(PageHead).decode
_decode_error = msgspec.msgpack.Decoder(WireError).decode
_decode_read = msgspec.msgpack.Decoder(ReadRequest).decode
_decode_event = msgspec.msgpack.Decoder(Event).decode


def frame(request_id: int, kind: Type, body: bytes) -> bytes:
    """One frame."""
    return _HEAD.pack(len(body) + 5, request_id, kind) + body


def page_frame(request_id: int, head: PageHead, body: bytes) -> bytes:
    """A PAGE frame."""
    packed = _encode(head)
    return b"".join((_PAGE_HEAD.pack(len(packed) + len(body) + 7, request_id, Type.PAGE, len(packed)), packed, body))


class _FrameProtocol(asyncio.Protocol):
    """Both ends: cuts bytes into frames, and gathers what is sent in one turn of the loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._out: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name

    def data_received(self, data: bytes) -> None:
        if self._received:
            data = self._received + data
        start, end = 0, len(data)
        try:
            while end - start >= 9:
                size, request_id, kind = _HEAD.unpack_from(data, start)
                if not 5 <= size <= MAX_FRAME_BYTES:
                    raise BadFrame(f"a frame of {size} bytes: the most is {MAX_FRAME_BYTES}")
                stop = start + 4 + size
                if stop > end:
                    break
                self.frame_received(request_id, kind, data[start + 9 : stop])
                start = stop
        except (BadFrame, msgspec.MsgspecError, struct.error, ValueError):
            self.close()
            return
        self._received = data[start:] if start < end else b""

    def frame_received(self, request_id: int, kind: int, body: bytes) -> None:
        raise NotImplementedError

    def send(self, data: bytes) -> None:
        """Send with everything else of this turn of the loop."""
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(data)

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


# --- the host's end ---------------------------------------------------------------------------------------------


class Handler(Protocol):
    """What a host does with requests."""

    def peek(self, request: ReadRequest) -> tuple[PageHead, bytes] | None:
        """The page if nothing has to be waited for."""
        ...

    async def read(self, request: ReadRequest) -> tuple[PageHead, bytes]:
        """The page.

        Raises:
            CallError: why not.
        """
        ...

    def poke(self, request: PokeRequest) -> None: ...

    def touch(self, request: TouchRequest) -> None: ...

    def overloaded(self) -> None:
        """A request was refused: too many are under way on its connection."""
        ...

    def watch(self, connection: WireServer, request: CallRequest) -> Position:
        """Tell `connection` from now on when the user's replica moves beyond what the request knows."""
        ...

    def unwatch(self, connection: WireServer, user: str | None) -> None:
        """Stop telling; None: it is gone, and nothing more is told to it."""
        ...

    async def call(self, kind: Type, request: CallRequest) -> Any:
        """What the call answers, as something msgspec encodes.

        Raises:
            CallError: why not.
        """
        ...


class WireServer(_FrameProtocol):
    """One connection of a gateway, at the host."""

    def __init__(self, handler: Handler, connections: set[WireServer], *, secret: bytes | None) -> None:
        super().__init__()
        self._handler = handler
        self._connections = connections
        self._secret = secret
        self._challenge = b""
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_full = False
        #: Users with events that a gateway which does not read has yet to hear of: one each, whatever happens.
        self._untold: dict[str, Event] = {}

    @property
    def in_flight(self) -> int:
        return len(self._tasks)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connections.add(self)
        if self._secret is not None:
            self._challenge = secrets.token_bytes(32)
            self.send(frame(0, Type.HELLO, self._challenge))
            self._loop.call_later(_AUTH_S, self._close_unless_trusted)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        for task in self._tasks:
            task.cancel()  # nobody is there for the answer
        self._handler.unwatch(self, None)

    def pause_writing(self) -> None:
        # The gateway reads slower than it asks: stop listening until it has caught up.
        assert self._transport is not None
        self._is_full = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        assert self._transport is not None
        self._is_full = False
        self._transport.resume_reading()
        untold, self._untold = self._untold, {}
        for event in untold.values():
            self.tell(event)

    def frame_received(self, request_id: int, kind: int, body: bytes) -> None:
        if self._challenge:
            self._authenticate(kind, body)
        elif kind == Type.READ:
            request = _decode_read(body)
            try:
                page = self._handler.peek(request)
            except CallError as error:
                self._refuse(request_id, error)
                return
            if page is not None:
                self.send(page_frame(request_id, *page))
            else:
                self._start(request_id, request.deadline_ms, self._read(request_id, request))
        elif kind == Type.POKE:
            self._handler.poke(msgspec.msgpack.decode(body, type=PokeRequest))
        elif kind == Type.TOUCH:
            self._handler.touch(msgspec.msgpack.decode(body, type=TouchRequest))
        elif kind == Type.WATCH:
            try:
                position = self._handler.watch(self, msgspec.msgpack.decode(body, type=CallRequest))
            except CallError as error:
                self._refuse(request_id, error)
                return
            self.send(frame(request_id, Type.REPLY, _encode(position)))
        elif kind == Type.UNWATCH:
            self._handler.unwatch(self, msgspec.msgpack.decode(body, type=CallRequest).user)
        else:
            call = msgspec.msgpack.decode(body, type=CallRequest)
            self._start(request_id, call.deadline_ms, self._call(request_id, Type(kind), call))

    def tell(self, event: Event) -> None:
        """Send an event to the gateway, which did not ask for it just now."""
        if self._is_full:
            missed = event.user in self._untold
            self._untold[event.user] = msgspec.structs.replace(event, is_whole=event.is_whole or missed)
            return
        self.send(frame(0, Type.EVENT, _encode(event)))

    def _authenticate(self, kind: int, body: bytes) -> None:
        assert self._secret is not None
        if kind != Type.AUTH or not hmac.compare_digest(body, _proof(self._secret, self._challenge)):
            raise BadFrame("the other end does not know the secret")
        self._challenge = b""
        self.send(frame(0, Type.HELLO, b""))

    def _close_unless_trusted(self) -> None:
        if self._challenge:
            self.close()

    def _start(self, request_id: int, deadline_ms: int, work: Awaitable[None]) -> None:
        if len(self._tasks) >= MAX_IN_FLIGHT:
            self._handler.overloaded()
            asyncio.ensure_future(work).cancel()
            self._refuse(request_id, Overloaded(f"{MAX_IN_FLIGHT} requests are under way on this connection"))
            return
        task = self._loop.create_task(self._bounded(request_id, deadline_ms, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _bounded(self, request_id: int, deadline_ms: int, work: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(deadline_ms / 1000):
                await work
        except CallError as error:
            self._refuse(request_id, error)
        except TimeoutError:
            self._refuse(request_id, Retryable(f"no answer within {deadline_ms} ms"))
        except Exception as error:  # one request's defect must not end the others of this connection
            self._refuse(request_id, Retryable(f"the host failed: {type(error).__name__}: {error}"))

    async def _read(self, request_id: int, request: ReadRequest) -> None:
        self.send(page_frame(request_id, *await self._handler.read(request)))

    async def _call(self, request_id: int, kind: Type, request: CallRequest) -> None:
        self.send(frame(request_id, Type.REPLY, _encode(await self._handler.call(kind, request))))

    def _refuse(self, request_id: int, error: CallError) -> None:
        self.send(frame(request_id, Type.ERROR, _encode(WireError(error.code, str(error)))))


def _proof(secret: bytes, challenge: bytes) -> bytes:
    return hmac.new(secret, challenge, hashlib.sha256).digest()


# --- the gateway's end ------------------------------------------------------------------------------------------


class WireClient(_FrameProtocol):
    """One connection to a host, shared by all requests of a gateway."""

    def __init__(
        self,
        *,
        secret: bytes | None,
        on_lost: Callable[[WireClient], None],
        on_late: Callable[[WireClient], None] = lambda wire: None,
        on_event: Callable[[Event], None] = lambda event: None,
    ) -> None:
        super().__init__()
        self._secret = secret
        self._on_lost = on_lost
        self._on_late = on_late
        self._on_event = on_event
        self._next_id = 0
        #: id → (future, loop time of its deadline). One timer looks through it: cheaper than one per request.
        self._pending: dict[int, tuple[asyncio.Future[Any], float]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.ready: asyncio.Future[None] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self._secret is None:
            self.ready.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        error = Retryable("the connection to the host is lost")
        if not self.ready.done():
            self.ready.set_exception(error)
        if self._timer is not None:
            self._timer.cancel()
        pending, self._pending = self._pending, {}
        for future, _ in pending.values():
            if not future.done():
                future.set_exception(error)
        self._on_lost(self)

    def frame_received(self, request_id: int, kind: int, body: bytes) -> None:
        if kind == Type.HELLO and self._secret is not None:
            if body:
                self.send(frame(0, Type.AUTH, _proof(self._secret, body)))
            elif not self.ready.done():
                self.ready.set_result(None)
            return
        if kind == Type.EVENT:
            self._on_event(_decode_event(body))
            return
        waiting = self._pending.pop(request_id, None)
        if waiting is None or waiting[0].done():
            return  # it was given up
        future = waiting[0]
        try:
            if kind == Type.PAGE:
                stop = 2 + _SHORT.unpack_from(body)[0]
                future.set_result(PageReply(_decode_page_head(body[2:stop]), body[stop:]))
            elif kind == Type.REPLY:
                future.set_result(body)
            elif kind == Type.ERROR:
                error = _decode_error(body)
                future.set_exception(_ERRORS.get(error.code, CallError)(error.message))
            else:
                raise BadFrame(f"a reply of unknown type {kind}")
        except Exception:
            # It is in nobody's list any more: without this, whoever asked would wait for ever.
            future.set_exception(Retryable("the host's answer cannot be read"))
            raise

    def request(self, kind: Type, body: bytes, timeout_s: float) -> asyncio.Future[Any]:
        """Send a request; the future gives a `PageReply` for READ, else the reply's bytes.

        It raises CallError: the host's refusal, or Retryable when it does not answer in time or goes away.
        """
        if len(self._pending) >= MAX_IN_FLIGHT:
            raise Overloaded(f"{MAX_IN_FLIGHT} requests to this host are under way")
        request_id = self._next_id = (self._next_id + 1) & 0xFFFFFFFF
        future: asyncio.Future[Any] = self._loop.create_future()
        self._pending[request_id] = (future, self._loop.time() + timeout_s)
        if self._timer is None:
            self._timer = self._loop.call_later(_LATE_S, self._expire)
        self.send(frame(request_id, kind, body))
        return future

    def notify(self, kind: Type, body: bytes) -> None:
        """Send something that is not answered."""
        self.send(frame(0, kind, body))

    def _expire(self) -> None:
        """Give up what is past its deadline."""
        now = self._loop.time()
        late = [key for key, (_, deadline) in self._pending.items() if deadline < now]
        for key in late:
            future, _ = self._pending.pop(key)
            if not future.done():
                future.set_exception(Retryable("the host did not answer in time"))
        self._timer = self._loop.call_later(_LATE_S, self._expire) if self._pending else None
        if late:
            self._on_late(self)
