"""Event streams (SSE): one message per new version of a user, to whoever listens.

A host tells what its pulls changed. What a listener missed, because it was away or its host was, is replayed from the
change log; when that cannot tell any more, or a listener reads too slowly, the message is `resync`: read again.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import Final

import msgspec
import structlog

from actors import ReplicaClient
from gateway.auth import Authenticator
from gateway.errors import TooMany, Unauthorized
from gateway.metrics import GatewayMetrics
from store.changes import Missed, missed_since
from store.epoch import Bookmark
from store.errors import PrimaryUnavailable
from store.primary import Primary

__all__ = ["Stream", "Streams"]

log = structlog.get_logger()

#: Messages that wait for one listener; one more, and they become a single `resync`.
MAX_WAITING: Final = 64
MAX_PER_USER: Final = 20
_RETRY_MS: Final = 2_000
_KEEPALIVE_S: Final = 15
_KEEPALIVE: Final = b":\n\n"
_NOWHERE: Final = Bookmark("", 0)


class Stream:
    """What one listener has yet to be sent. `at` is the position of the last message; None until it has begun."""

    __slots__ = ("_early", "_messages", "_waiting", "at", "beat", "header", "is_over", "user")

    def __init__(self, user: str, header: str, beat: int) -> None:
        self.user = user
        self.header = header
        self.beat = beat  # the second of a period in which it is kept alive
        self.at: Bookmark | None = None
        self.is_over = False
        self._messages: list[bytes] = []
        self._early: list[tuple[Bookmark, list[str] | None]] = []
        self._waiting: asyncio.Future[None] | None = None

    def begin(self, at: Bookmark, messages: list[bytes]) -> None:
        """Say where the stream starts; what came in meanwhile follows."""
        self.at = at
        self._messages = [_start(at), *messages]
        early, self._early = self._early, []
        for position, kinds in early:
            self.tell(position, kinds)
        self._wake()

    def tell(self, at: Bookmark, kinds: list[str] | None) -> None:
        """The user is at `at` now: `kinds` of rows changed, or, when it is None, anything may have."""
        if self.at is None:
            self._early.append((at, kinds))
            del self._early[:-MAX_WAITING]
        elif at.is_after(*self.at) or (kinds is None and at != self.at):
            self.at = at
            if len(self._messages) >= MAX_WAITING:
                self._messages.clear()
                kinds = None
            self._messages.append(_resync(at) if kinds is None else _change(at, kinds))
            self._wake()

    def keep_alive(self) -> None:
        if not self._messages:
            self._messages.append(_KEEPALIVE)
            self._wake()

    def end(self) -> None:
        """Nothing more will come."""
        self.is_over = True
        self._wake()

    async def next(self) -> bytes:
        """What is to be sent now, once there is something; empty at the end."""
        while not self._messages and not self.is_over:
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        self._waiting = None
        messages, self._messages = self._messages, []
        return b"" if self.is_over else b"".join(messages)

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


class _Topic:
    """One user's streams, and the position that their host was told we know."""

    __slots__ = ("at", "catching_up", "is_again", "lock", "streams")

    def __init__(self) -> None:
        self.at: Bookmark | None = None
        self.streams: set[Stream] = set()
        self.lock = asyncio.Lock()
        self.catching_up: asyncio.Task[None] | None = None
        self.is_again = False


class Streams:
    """All event streams of one gateway."""

    def __init__(
        self, client: ReplicaClient, primary: Primary, auth: Authenticator, metrics: GatewayMetrics, *, most: int
    ) -> None:
        self._client = client
        self._primary = primary
        self._auth = auth
        self._metrics = metrics
        self._most = most
        self._topics: dict[str, _Topic] = {}
        self._numbers = itertools.count()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._client.on_event = self._hear
        self._task = asyncio.create_task(self._keep_alive())

    async def close(self) -> None:
        """End all streams: their listeners come back, to another gateway."""
        tasks = [topic.catching_up for topic in self._topics.values() if topic.catching_up is not None]
        for task in [*tasks, *([self._task] if self._task else [])]:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        for topic in self._topics.values():
            for stream in topic.streams:
                stream.end()

    async def open(self, user: str, header: str, last: Bookmark | None, *, is_return: bool) -> Stream:
        """A stream of what happens to `user`. `last` is what a listener who `is_return` has heard; when it is None for
        such a one, they are told to read again.

        Raises:
            TooMany: the user, or this gateway, has as many as it may.
        """
        if self._metrics.streams >= self._most:
            raise TooMany(f"this gateway has {self._most} event streams already")
        topic = self._topics.setdefault(user, _Topic())
        if len(topic.streams) >= MAX_PER_USER:
            raise TooMany(f"{MAX_PER_USER} event streams are open already: close one")
        stream = Stream(user, header, next(self._numbers) % _KEEPALIVE_S)
        topic.streams.add(stream)
        self._metrics.streams += 1
        try:
            async with topic.lock:  # one after the other: whoever is first says what the host has to tell
                await self._begin(topic, stream, last, is_return=is_return)
        except BaseException:
            self.close_stream(stream)
            raise
        return stream

    async def _begin(self, topic: _Topic, stream: Stream, last: Bookmark | None, *, is_return: bool) -> None:
        try:
            missed = await missed_since(self._primary, stream.user, last or _NOWHERE)
        except PrimaryUnavailable:
            missed = Missed(topic.at or last or Bookmark("0-0", 0), None)
        messages: list[bytes] = []
        if is_return and missed.changes is None:
            messages = [_resync(missed.head)]
        elif is_return:
            messages = [_change(Bookmark(missed.head.epoch, at), kinds) for at, kinds in missed.changes or ()]
        stream.begin(missed.head, messages)
        if topic.at is None:
            topic.at = missed.head
            self._client.watch(stream.user, missed.head)

    def close_stream(self, stream: Stream) -> None:
        """The listener is gone."""
        topic = self._topics.get(stream.user)
        if topic is None or stream not in topic.streams:
            return
        topic.streams.discard(stream)
        self._metrics.streams -= 1
        if not topic.streams:
            del self._topics[stream.user]
            self._client.unwatch(stream.user)
            if topic.catching_up is not None:
                topic.catching_up.cancel()

    def _hear(self, user: str, at: Bookmark, kinds: list[str] | None) -> None:
        topic = self._topics.get(user)
        if topic is None:
            return
        if topic.catching_up is not None:
            topic.is_again = True
        elif kinds is None:
            topic.catching_up = asyncio.create_task(self._catch_up(user, topic))
        else:
            self._tell(topic, at, kinds)

    def _tell(self, topic: _Topic, at: Bookmark, kinds: list[str] | None) -> None:
        topic.at = at
        self._metrics.events += 1
        if kinds is None:
            self._metrics.resyncs += 1
        for stream in topic.streams:
            stream.tell(at, kinds)

    async def _catch_up(self, user: str, topic: _Topic) -> None:
        """The host knows that something happened, not what: ask the change log."""
        try:
            while True:
                topic.is_again = False
                assert topic.at is not None
                try:
                    missed = await missed_since(self._primary, user, topic.at)
                except PrimaryUnavailable:
                    missed = Missed(topic.at, None)
                if missed.changes is None:
                    self._tell(topic, missed.head, None)
                for version, kinds in missed.changes or ():
                    self._tell(topic, Bookmark(missed.head.epoch, version), kinds)
                if not topic.is_again:
                    return
        finally:
            topic.catching_up = None

    async def _keep_alive(self) -> None:
        """Once a second: end the streams whose credential has ended, and show proxies that the others are alive."""
        for second in itertools.count():
            await asyncio.sleep(1.0)
            for topic in list(self._topics.values()):
                for stream in list(topic.streams):
                    if self._auth.known(stream.header) is None and not await self._is_allowed(stream):
                        stream.end()
                    elif stream.beat == second % _KEEPALIVE_S:
                        stream.keep_alive()

    async def _is_allowed(self, stream: Stream) -> bool:
        try:
            return (await self._auth.identify(stream.header)).user == stream.user
        except Unauthorized:
            return False
        except PrimaryUnavailable:
            return True  # nobody can tell; asked again in a second
        except Exception:
            log.exception("stream.check_failed")
            return True


def _start(at: Bookmark) -> bytes:
    # Without data nothing is dispatched, but the listener's last event id is set: it can come back from here.
    return f"retry: {_RETRY_MS}\nid: {at}\n\n".encode()


def _change(at: Bookmark, kinds: list[str]) -> bytes:
    data = msgspec.json.encode({"version": at.version, "kinds": kinds}).decode()
    return f"id: {at}\ndata: {data}\n\n".encode()


def _resync(at: Bookmark) -> bytes:
    return f'event: resync\nid: {at}\ndata: {{"version":{at.version}}}\n\n'.encode()
