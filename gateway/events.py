"""Event streams (SSE): one message per new version of a user, to whoever listens.

A host tells what its pulls changed. What a listener missed, because it was away or its host was, is replayed from the
change log; when that cannot tell any more, or a listener reads too slowly, the message is `resync`: read again.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import structlog

from actors import ReplicaClient
from gateway.auth import Authenticator
from gateway.errors import TooMany, Unauthorized
from gateway.freshness import Floors
from gateway.metrics import GatewayMetrics
from gateway.stream import NOWHERE, Stream
from store.api_keys import PREFIX
from store.changes import Missed, missed_since
from store.epoch import Bookmark
from store.errors import PrimaryUnavailable
from store.primary import Primary

__all__ = ["Streams"]

log = structlog.get_logger()

MAX_PER_USER: Final = 20
_KEEPALIVE_S: Final = 15
#: Questions of streams to the primary at once: writers use the same connections, and thousands may come back together.
_ASKING: Final = 4
#: After a question that the primary did not answer, the others are not asked for so long.
_AWAY_S: Final = 1.0


class _Topic:
    """One user's streams. `at` is the position that their host was told we know, and then what it told; `heard` what it
    told since the change log was last asked."""

    __slots__ = ("at", "catching_up", "heard", "lock", "streams")

    def __init__(self) -> None:
        self.at: Bookmark | None = None
        self.heard: Bookmark | None = None
        self.streams: set[Stream] = set()
        self.lock = asyncio.Lock()
        self.catching_up: asyncio.Task[None] | None = None


class Streams:
    """All event streams of one gateway."""

    def __init__(
        self,
        client: ReplicaClient,
        floors: Floors,
        primary: Primary,
        auth: Authenticator,
        metrics: GatewayMetrics,
        *,
        most: int,
    ) -> None:
        self._client = client
        self._floors = floors
        self._primary = primary
        self._auth = auth
        self._metrics = metrics
        self._most = most
        self._topics: dict[str, _Topic] = {}
        self._numbers = itertools.count()
        self._asking = asyncio.Semaphore(_ASKING)
        self._away_until = 0.0
        self._is_closed = False
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Listen to the hosts. Ended by `close`."""
        self._client.watching.on_event = self._hear
        # Keys are looked up in the primary: while it does not answer, tokens must go on ending in time.
        loops = (self._keep_alive(), self._keep_checking(keys=True), self._keep_checking(keys=False))
        self._tasks = [asyncio.create_task(loop) for loop in loops]

    async def close(self) -> None:
        """End all streams: their listeners come back, to another gateway."""
        self._is_closed = True
        tasks = [topic.catching_up for topic in self._topics.values() if topic.catching_up is not None]
        for task in (tasks := [*tasks, *self._tasks]):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for stream in self._all():
            stream.end()

    async def open(self, stream: Stream, last: Bookmark | None, *, is_return: bool) -> None:
        """Begin `stream`. `last` is what a listener who `is_return` has heard; when it is None for such a one, they are
        told to read again.

        Raises:
            TooMany: the user, or this gateway, has as many as it may.
        """
        if self._metrics.streams >= self._most:
            raise TooMany(f"this gateway has {self._most} event streams already")
        topic = self._topics.setdefault(stream.user, _Topic())
        if sum(not other.is_gone for other in topic.streams) >= MAX_PER_USER:
            raise TooMany(f"{MAX_PER_USER} event streams are open already: close one")
        stream.beat = next(self._numbers) % _KEEPALIVE_S
        topic.streams.add(stream)
        self._metrics.streams += 1
        if self._is_closed:
            stream.end()
        try:
            async with topic.lock:  # one after the other: whoever is first says what the host has to tell
                await self._begin(topic, stream, last, is_return=is_return)
        except BaseException:
            self.close_stream(stream)
            raise

    async def _begin(self, topic: _Topic, stream: Stream, last: Bookmark | None, *, is_return: bool) -> None:
        try:
            missed = await self._missed(stream.user, last or NOWHERE)
        except PrimaryUnavailable:
            # Not at `last`, which nobody has looked at: beyond the head, it would hide all that comes.
            missed = Missed(topic.at or NOWHERE, None)
        else:
            # What happened before the stream is not told: whoever reads after it began has to see it.
            self._floors.raise_to(stream.user, missed.head)
        stream.begin(missed, is_return=is_return)
        if topic.at is None:
            topic.at = missed.head
            self._client.watching.add(stream.user, missed.head)

    def close_stream(self, stream: Stream) -> None:
        """The listener is gone."""
        topic = self._topics.get(stream.user)
        if topic is None or stream not in topic.streams:
            return
        topic.streams.discard(stream)
        self._metrics.streams -= 1
        if not topic.streams:
            del self._topics[stream.user]
            self._client.watching.remove(stream.user)
            if topic.catching_up is not None:
                topic.catching_up.cancel()

    def _hear(self, user: str, at: Bookmark, kinds: list[str] | None) -> None:
        topic = self._topics.get(user)
        if topic is None:
            return
        if topic.catching_up is None and kinds is not None:
            self._tell(topic, at, kinds)
            return
        topic.heard = at
        if topic.catching_up is None:
            topic.catching_up = asyncio.create_task(self._catch_up(user, topic))

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
            while (heard := topic.heard) is not None:
                topic.heard = None
                assert topic.at is not None
                try:
                    missed = await self._missed(user, topic.at)
                except PrimaryUnavailable:
                    # What the host said is said once: without the log, they read again there.
                    missed = Missed(topic.heard or heard, None)
                    topic.heard = None
                if missed.changes is None:
                    self._tell(topic, missed.head, None)
                for version, kinds in missed.changes or ():
                    self._tell(topic, Bookmark(missed.head.epoch, version), kinds)
        finally:
            topic.catching_up = None

    async def _missed(self, user: str, known: Bookmark) -> Missed:
        async with self._turn():
            return await missed_since(self._primary, user, known)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """A turn to ask the primary.

        Raises:
            PrimaryUnavailable: it did not answer, or not a moment ago.
        """
        async with self._asking:
            if time.monotonic() < self._away_until:
                raise PrimaryUnavailable("the primary did not answer a moment ago")
            try:
                yield
            except PrimaryUnavailable:
                self._away_until = time.monotonic() + _AWAY_S
                raise

    # --- alive, and allowed to be ---------------------------------------------------------------------------------

    def _all(self) -> list[Stream]:
        return [stream for topic in self._topics.values() for stream in topic.streams]

    async def _keep_alive(self) -> None:
        """Once a second: end the streams whose listener is gone, and show proxies that the others are alive."""
        for second in itertools.count():
            await asyncio.sleep(1.0)
            for stream in self._all():
                if stream.is_gone:
                    stream.end()
                elif stream.beat == second % _KEEPALIVE_S:
                    stream.keep_alive()

    async def _keep_checking(self, *, keys: bool) -> None:
        """Once a second: end the streams whose credential has ended; API keys, or tokens."""
        while True:
            await asyncio.sleep(1.0)
            doubtful: dict[str, list[Stream]] = {}
            for stream in self._all():
                if self._auth.known(stream.header) is None and _is_key(stream.header) is keys:
                    doubtful.setdefault(stream.header, []).append(stream)
            await asyncio.gather(*(self._check(header, streams) for header, streams in doubtful.items()))

    async def _check(self, header: str, streams: list[Stream]) -> None:
        try:
            if _is_key(header):
                async with self._turn():
                    await self._auth.identify(header)
            else:
                await self._auth.identify(header)
        except Unauthorized:
            for stream in streams:
                stream.end()
        except PrimaryUnavailable:
            pass  # nobody can tell; asked again in a second
        except Exception:
            log.exception("stream.check_failed")


def _is_key(header: str) -> bool:
    return header.partition(" ")[2].startswith(PREFIX)
