"""Requests that were asked before, byte for byte, and can be answered from what is at hand.

A client that polls sends the same bytes again and again, but for the names that it gives its traces. The same bytes
mean the same request: what they came to (whose page, which, how fresh) is remembered. While the credential is good, the
reply is then written from where the bytes come in, without a parser, a task, a route or a middleware: when shared
memory says that the kept page is true, or when the replica says so. Everything else goes the long way, and ends in the
same bytes, counters and log lines.

Only a request that came whole, alone, between two others is remembered or recognised: so bytes that continue something
else (a body, a head that came in two pieces) are never taken for a request of their own.
"""

from __future__ import annotations

import re
import time
from typing import Any, Final

from aiohttp import web
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestHandler

from actors import CallError, Question
from gateway.auth import Authenticator, Identity
from gateway.freshness import ANY, Read, Reads
from gateway.metrics import GatewayMetrics
from gateway.middleware import RequestLog
from gateway.page import Asked, PageResponse, etag_of, head_of, tags_match

__all__ = ["Repeats", "RepeatServer"]

_MAX_BYTES: Final = 2_048
_MAX_REPEATS: Final = 20_000
_END: Final = b"\r\n\r\n"
#: Lines that differ from one request to the next by their nature, and of which no answer depends: W3C Trace Context and
#: Baggage, and what came before them. Only with a value that any parser accepts.
_TRACE: Final = re.compile(
    rb"\r\n(?:(X-Request-Id)|traceparent|tracestate|baggage|X-Correlation-Id|b3|X-B3-[A-Za-z]+|sentry-trace"
    rb"|uber-trace-id|X-Datadog-[a-z-]+|X-Amzn-Trace-Id|X-Cloud-Trace-Context|CF-Ray):([ -~]*)(?=\r\n)",
    re.IGNORECASE,
)


def _is_one_head(data: bytes) -> bool:
    """Whether `data` ends where its first head does."""
    return data.find(_END) == len(data) - len(_END) >= 0


def _untraced(data: bytes) -> tuple[bytes, str | None]:
    """A whole head without the names of traces, and the id that the request has among them."""
    parts = _TRACE.split(data)
    if len(parts) == 1:
        return data, None
    given = None
    for place in range(1, len(parts), 3):  # of text, name if it is the id's, value, text, …
        if parts[place]:
            given = parts[place + 1].strip().decode("ascii")
            break
    return b"".join(parts[::3]), given


class _Repeat:
    """What some bytes came to. `matched` remembers the last comparison of the client's tags: (ETag, equal)."""

    __slots__ = ("added", "asked", "header", "identity", "matched", "path", "route")

    def __init__(self, asked: Asked, header: str, identity: Identity, route: str, path: str, added: str) -> None:
        self.asked = asked
        self.header = header
        self.identity = identity
        self.route = route
        self.path = path
        self.added = added
        self.matched: tuple[str, bool] = ("", False)


class Repeats:
    """The requests that are known by their bytes, without the names of traces; emptied when full."""

    def __init__(self, auth: Authenticator, reads: Reads, metrics: GatewayMetrics, requests: RequestLog) -> None:
        self._auth = auth
        self._reads = reads
        self._metrics = metrics
        self._requests = requests
        self._known: dict[bytes, _Repeat] = {}

    def learn(self, data: bytes, request: web.BaseRequest, response: PageResponse) -> None:
        """`data` came to `response`, which is about to be sent."""
        header = request.headers.get("Authorization")
        identity = self._auth.known(header)
        resource = request.match_info.route.resource  # type: ignore[attr-defined]
        if header is None or identity is None or resource is None:
            return
        bare, traced_id = _untraced(data)
        if self._requests.given_id(traced_id) != self._requests.given_id(request.headers.get("X-Request-Id")):
            return  # in a form in which it is not seen next time
        if len(self._known) >= _MAX_REPEATS:
            self._known.clear()
        names = [name for name in response.headers if name != "X-Request-Id"]
        added = "".join([f"{name}: {response.headers[name]}\r\n" for name in names])
        self._known[bare] = _Repeat(response.asked, header, identity, resource.canonical, request.path, added)

    def find(self, data: bytes) -> tuple[_Repeat, str | None] | None:
        """What `data` came to before, if its credential is still good, and the id that the request has this time."""
        repeat, request_id = self._known.get(data), None
        if repeat is None:
            if not _is_one_head(data):  # what follows a head is not cut out of it
                return None
            bare, request_id = _untraced(data)
            repeat = self._known.get(bare)
            if repeat is None:
                return None
        identity = self._auth.known(repeat.header)
        return (repeat, request_id) if identity is repeat.identity or identity == repeat.identity else None

    def glance(self, repeat: _Repeat) -> Read | None:
        """The answer, when it is at hand."""
        asked = repeat.asked
        return self._reads.glance(asked.user, asked.query, asked.wish)

    def ask(self, repeat: _Repeat) -> Question | None:
        """Ask the user's replica for the answer; None when it has to go the long way: what may have to wait for the
        primary is not asked twice."""
        asked = repeat.asked
        if asked.wish is not ANY:
            return None
        try:
            return self._reads.ask(asked.user, asked.query, asked.wish)
        except CallError:
            return None

    def take(self, question: Question) -> Read | None:
        """What the replica answered; None when it did not, and the request has to go the long way."""
        if question.reply.cancelled():
            return None
        try:
            read = self._reads.take(question)
        except CallError:
            return None
        return None if read.body is None else read

    def reply(self, repeat: _Repeat, request_id: str | None, read: Read, started: float) -> tuple[bytes, ...]:
        """Head and body (none for a 304) of the reply, which is counted and logged."""
        assert read.body is not None
        is_known = repeat.asked.tags is not None and self._is_known(repeat, etag_of(read))
        request_id = (request_id and self._requests.given_id(request_id)) or self._requests.next_id()
        head = head_of(read, f"{repeat.added}X-Request-Id: {request_id}\r\n", is_known=is_known)
        self._metrics.saw_read(read.source, read.outcome)
        self._requests.answered(
            "GET", repeat.path, repeat.route, 304 if is_known else 200, request_id, time.perf_counter() - started
        )
        return (head,) if is_known else (head, read.body)  # asyncio's transport never gets rid of an empty part

    def _is_known(self, repeat: _Repeat, etag: str) -> bool:
        if repeat.matched[0] != etag:
            assert repeat.asked.tags is not None
            repeat.matched = (etag, tags_match(repeat.asked.tags, etag))
        return repeat.matched[1]


class _RepeatHandler(RequestHandler):
    """One connection. `whole` holds the bytes of the request under way when they are all that has come since the one
    before; None when that is not sure, and then for the rest of the connection nothing is recognised."""

    __slots__ = ("_held", "_is_between", "_is_closing", "_question", "_repeats", "whole")

    def __init__(self, manager: Any, repeats: Repeats, **options: Any) -> None:
        super().__init__(manager, **options)
        self._repeats = repeats
        self._is_between = True
        self.whole: bytes | None = None
        #: What a replica was asked for us; what comes in meanwhile is held back, and so is the end of the connection.
        self._question: Question | None = None
        self._held = b""
        self._is_closing = False

    def data_received(self, data: bytes) -> None:
        if self._question is not None:
            self._hold(data)
            return
        waiter = self._waiter
        is_idle = waiter is not None and not waiter.done() and not self._messages
        may_answer = self._is_between and is_idle and len(data) <= _MAX_BYTES  # pieces of uploads are not worth a hash
        if not may_answer or self._paused or self._close or self._force_close:
            self._go_long(data, is_idle=is_idle)
            return
        found = self._repeats.find(data)
        if found is None:
            self._go_long(data, is_idle=True)
            return
        repeat, request_id = found
        started = time.perf_counter()
        read = self._repeats.glance(repeat)
        if read is not None:
            self._send(self._repeats.reply(repeat, request_id, read, started))
            return
        question = self._question = self._repeats.ask(repeat)
        if question is None:
            self._go_long(data, is_idle=True)
            return
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        question.reply.add_done_callback(lambda _: self._replied(repeat, request_id, question, data, started))

    def _replied(
        self, repeat: _Repeat, request_id: str | None, question: Question, data: bytes, started: float
    ) -> None:
        self._question = None
        read = self._repeats.take(question)
        if self.transport is None or self._force_close:
            return
        if read is None:
            self._go_long(data, is_idle=True)
        else:
            self._send(self._repeats.reply(repeat, request_id, read, started))
        held, self._held = self._held, b""
        if held:
            self._resume_reading_for_buffer()
            self.data_received(held)
        if self._is_closing:
            super().close()

    def _send(self, reply: tuple[bytes, ...]) -> None:
        assert self.transport is not None
        assert self._manager is not None
        self.transport.writelines(reply)
        self._manager.requests_count += 1
        self._request_count += 1
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout

    def _hold(self, data: bytes) -> None:
        self._held += data
        if len(self._held) > _MAX_BYTES:
            self._pause_reading_for_buffer()

    def _go_long(self, data: bytes, *, is_idle: bool) -> None:
        """To aiohttp's parser, as ever."""
        if not self._is_between:
            super().data_received(data)
            return
        before = self._request_count
        super().data_received(data)
        is_whole = (
            self._request_count == before + 1
            and data.startswith(b"GET ")
            and _is_one_head(data)
            and bool(self._messages)
            and self._messages[-1][1] is EMPTY_PAYLOAD
            and not self._upgraded
        )
        self._is_between = is_whole
        self.whole = data if is_whole and is_idle and len(data) <= _MAX_BYTES else None

    def close(self) -> None:
        """An answer that is under way is still sent."""
        if self._question is not None:
            self._is_closing = True
        else:
            super().close()

    def learn(self, request: web.BaseRequest, response: PageResponse) -> None:
        """Remember what the request under way came to."""
        if self.whole is not None:
            self._repeats.learn(self.whole, request, response)
            self.whole = None


class RepeatServer(web.Server):
    """A server like `server`, whose connections recognise what they have seen."""

    def __init__(self, server: web.Server, repeats: Repeats) -> None:
        super().__init__(server.request_handler, request_factory=server.request_factory)
        self._kwargs = server._kwargs
        self._repeats = repeats

    def __call__(self) -> RequestHandler:
        return _RepeatHandler(self, self._repeats, loop=self._loop, **self._kwargs)
