"""The gateway's way to replicas: who to ask, one connection per host, and when to stop asking.

A host that fails or is late opens its breaker for a moment, and the caller turns to the primary at once: the next
host is asked only when the first is known to be gone, so that a restart does not seed its users elsewhere.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
import structlog

from actors.errors import CallError, Retryable
from actors.messages import (
    AuditReport,
    CallRequest,
    Event,
    PageReply,
    PageState,
    PokeRequest,
    Position,
    ReadRequest,
    ReplicaInfo,
    SyncReply,
    Type,
)
from actors.metrics import HostStats
from actors.placement import first
from actors.wire import WireClient
from store.epoch import Bookmark
from store.errors import PrimaryUnavailable
from store.hosts import HostRow

__all__ = ["ReplicaClient"]

log = structlog.get_logger()

REFRESH_S: Final = 1.0
_CONNECT_S: Final = 1.0
_BREAKER_S: Final = (0.25, 2.0)  # first and longest pause
_MAX_PLACED: Final = 200_000
#: How often, and how many at a time, watches are made known to hosts.
_WATCH_S: Final = 0.02
_MAX_WATCHES: Final = 500
_encode: Final = msgspec.msgpack.Encoder().encode


class _Host:
    """A host as this process sees it."""

    __slots__ = ("connecting", "failures", "open_until", "row", "watching", "wire")

    def __init__(self, row: HostRow) -> None:
        self.row = row
        self.watching: set[str] = set()
        self.wire: WireClient | None = None
        self.connecting: asyncio.Task[WireClient] | None = None
        self.failures = 0
        self.open_until = 0.0

    def failed(self) -> None:
        """Open the breaker, longer each time in a row."""
        shortest, longest = _BREAKER_S
        self.open_until = time.monotonic() + min(longest, shortest * 2**self.failures)
        self.failures = min(self.failures + 1, 8)


class ReplicaClient:
    """Asks hosts. `list_hosts` reads the membership; its last answer is kept while the primary is away."""

    def __init__(
        self,
        list_hosts: Callable[[], Awaitable[list[HostRow]]],
        *,
        secret: bytes | None = None,
        max_page_bytes: int = 0,
    ) -> None:
        self._list_hosts = list_hosts
        self._secret = secret
        self._hosts: dict[str, _Host] = {}
        self._live: tuple[str, ...] = ()
        self._placed: dict[str, str] = {}
        #: (user, query) → (stamp, bytes), oldest first.
        self._pages: dict[tuple[str, bytes], tuple[int, bytes]] = {}
        self._page_bytes = 0
        self._max_page_bytes = max_page_bytes
        self._tasks: list[asyncio.Task[None]] = []
        #: Watched users → the position that was last told, and those whose host does not know yet.
        self._watched: dict[str, Bookmark] = {}
        self._unplaced: set[str] = set()
        #: Hears of watched users: where they are now, and the kinds of rows that changed; None when that is not known.
        self.on_event: Callable[[str, Bookmark, list[str] | None], None] = lambda user, at, kinds: None
        #: Monotonic time at which a heartbeat was last seen to move, of a host that is not stuck; for /readyz.
        self.beat_seen_at = time.monotonic()
        self._newest_beat = 0.0
        #: Whether any host has ever answered this process.
        self.was_answered = False

    async def start(self) -> None:
        """Learn the hosts, and keep learning. Ended by `close`."""
        await self._refresh()
        loops = (self._keep_refreshing, self._keep_expiring, self._keep_watching)
        self._tasks = [asyncio.create_task(loop()) for loop in loops]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for host in self._hosts.values():
            if host.connecting is not None:
                host.connecting.cancel()
            if host.wire is not None:
                host.wire.close()

    # --- calls ----------------------------------------------------------------------------------------------------

    async def read(
        self,
        user: str,
        encoded: bytes,
        floor: Bookmark | None,
        *,
        timeout_s: float,
        max_wait_ms: int = 250,
        max_age_s: int = -1,
        validate: bool = False,
        stale_ok: bool = False,
    ) -> PageReply:
        """The page of `user`'s replica; `ReadRequest` says what the options mean.

        Raises:
            CallError: Retryable, Overloaded, Seeding or Behind; the primary may answer instead.
        """
        host = self._host_of(user)
        wire = host.wire or await self._connect(host)
        epoch, version = floor or ("", 0)
        kept = self._pages.get((user, encoded))
        have = 0 if kept is None else kept[0]
        request = ReadRequest(
            user, encoded, int(timeout_s * 1000), epoch, version, have, max_wait_ms, max_age_s, validate, stale_ok
        )
        reply: PageReply = await wire.request(Type.READ, _encode(request), timeout_s)
        if reply.head.state == PageState.UNCHANGED:
            assert kept is not None
            return PageReply(reply.head, kept[1])
        if reply.head.state == PageState.BYTES:
            self._keep((user, encoded), reply.head.stamp, reply.body)
        return reply

    def _keep(self, key: tuple[str, bytes], stamp: int, body: bytes) -> None:
        """Keep a page's bytes, so that the host need not send them again: it is still asked every time."""
        old = self._pages.pop(key, None)
        self._page_bytes += len(body) - (0 if old is None else len(old[1]))
        self._pages[key] = (stamp, body)
        while self._page_bytes > self._max_page_bytes:
            oldest = next(iter(self._pages))
            self._page_bytes -= len(self._pages.pop(oldest)[1])

    def poke(self, user: str, bookmark: Bookmark) -> None:
        """Tell the user's host that something was written. A hint: if it gets lost, a sweep finds the same."""
        try:
            host = self._host_of(user)
        except Retryable:
            return
        if host.wire is not None:
            host.wire.notify(Type.POKE, _encode(PokeRequest(user, *bookmark)))
        else:
            self._open_soon(host)

    async def sync(self, user: str, *, timeout_s: float) -> SyncReply:
        """Bring the user's replica to head now.

        Raises:
            CallError: it could not be done in time.
        """
        return msgspec.msgpack.decode(await self._call(self._host_of(user), Type.SYNC, user, timeout_s), type=SyncReply)

    async def inspect(self, user: str, *, timeout_s: float = 5.0) -> tuple[HostRow, ReplicaInfo]:
        """The user's host, and what it knows of their replica.

        Raises:
            CallError: it does not answer.
        """
        host = self._host_of(user)
        return host.row, msgspec.msgpack.decode(await self._call(host, Type.INSPECT, user, timeout_s), type=ReplicaInfo)

    async def passivate(self, user: str, *, timeout_s: float = 5.0) -> bool:
        """Close the user's replica; False when it was not open.

        Raises:
            CallError: its host does not answer.
        """
        return bool(msgspec.msgpack.decode(await self._call(self._host_of(user), Type.PASSIVATE, user, timeout_s)))

    async def reseed(self, user: str, *, timeout_s: float = 5.0) -> None:
        """Make the user's replica again from the primary.

        Raises:
            CallError: its host does not answer.
        """
        await self._call(self._host_of(user), Type.RESEED, user, timeout_s)

    async def audit(self, user: str, *, repair: bool = False, timeout_s: float = 60.0) -> AuditReport:
        """Compare the user's replica with the primary.

        Raises:
            CallError: its host does not answer, or cannot tell.
        """
        body = await self._call(self._host_of(user), Type.AUDIT, user, timeout_s, repair=repair)
        return msgspec.msgpack.decode(body, type=AuditReport)

    async def list_active(self, *, timeout_s: float = 5.0) -> dict[str, list[ReplicaInfo]]:
        """The open replicas of every live host, up to 1,000 each, the one read last first.

        Raises:
            CallError: a host does not answer.
        """
        found = {}
        for host in self._hosts.values():
            if host.row.is_live:
                body = await self._call(host, Type.ACTIVE, "", timeout_s)
                found[host.row.id] = msgspec.msgpack.decode(body, type=list[ReplicaInfo])
        return found

    async def _call(self, host: _Host, kind: Type, user: str, timeout_s: float, **options: Any) -> bytes:
        wire = host.wire or await self._connect(host)
        request = CallRequest(int(timeout_s * 1000), user, **options)
        body: bytes = await wire.request(kind, _encode(request), timeout_s)
        return body

    async def stats(self, *, timeout_s: float = 1.0) -> list[HostStats]:
        """The hosts that answer in time, as they describe themselves; also those that are stuck or draining."""
        there = [host for host in self._hosts.values() if host.row.word != "gone"]
        answers = await asyncio.gather(*(self._stats(host, timeout_s) for host in there))
        return [answer for answer in answers if answer is not None]

    async def _stats(self, host: _Host, timeout_s: float) -> HostStats | None:
        try:
            return msgspec.msgpack.decode(await self._call(host, Type.STATS, "", timeout_s), type=HostStats)
        except CallError:
            return None

    async def probe(self, *, timeout_s: float = 1.0) -> list[str]:
        """The ids of the live hosts that answer."""
        return [stats.host for stats in await self.stats(timeout_s=timeout_s) if self._hosts[stats.host].row.is_live]

    @property
    def hosts(self) -> list[HostRow]:
        """The membership as last read."""
        return [host.row for host in self._hosts.values()]

    # --- watching -------------------------------------------------------------------------------------------------

    def watch(self, user: str, known: Bookmark) -> None:
        """Tell `on_event` when `user` moves beyond `known`, until `unwatch`, whichever host they are on."""
        self._watched[user] = known
        self._unplaced.add(user)

    def unwatch(self, user: str) -> None:
        self._watched.pop(user, None)
        self._unplaced.discard(user)
        for host in self._hosts.values():
            self._leave(host, user)

    def _leave(self, host: _Host, user: str) -> None:
        if user in host.watching:
            host.watching.discard(user)
            if host.wire is not None:
                host.wire.notify(Type.UNWATCH, _encode(CallRequest(0, user)))

    def _replace(self, host: _Host) -> None:
        """The host does not know any more whom we watch."""
        self._unplaced |= host.watching & self._watched.keys()
        host.watching.clear()

    def _hear(self, event: Event) -> None:
        if event.user in self._watched:
            self._watched[event.user] = at = Bookmark(event.epoch, event.version)
            self.on_event(event.user, at, None if event.is_whole else event.kinds)

    async def _keep_watching(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_S)
            if self._unplaced:
                users = list(itertools.islice(self._unplaced, _MAX_WATCHES))
                await asyncio.gather(*map(self._place_watch, users), return_exceptions=True)

    async def _place_watch(self, user: str) -> None:
        """Tell the user's host; what fails is tried again a moment later."""
        host, known = self._host_of(user), self._watched[user]
        for other in self._hosts.values():
            if other is not host:
                self._leave(other, user)
        host.watching.add(user)
        try:
            body = await self._call(host, Type.WATCH, user, 1.0, epoch=known.epoch, version=known.version)
        except CallError:
            host.watching.discard(user)
            raise
        if user not in self._watched:
            self._leave(host, user)
            return
        if user in host.watching:
            self._unplaced.discard(user)
        position = msgspec.msgpack.decode(body, type=Position)
        at = Bookmark(position.epoch, position.version)
        if at.epoch and at.is_after(*self._watched[user]):
            self._watched[user] = at
            self.on_event(user, at, None)

    # --- who to ask -----------------------------------------------------------------------------------------------

    def _host_of(self, user: str) -> _Host:
        host_id = self._placed.get(user)
        if host_id is None:
            host_id = first(user, self._live)
            if host_id is None:
                raise Retryable("no replica host is live")
            if len(self._placed) >= _MAX_PLACED:
                self._placed.clear()
            self._placed[user] = host_id
        host = self._hosts[host_id]
        if host.open_until and host.open_until > time.monotonic():
            raise Retryable(f"host {host_id} failed a moment ago")
        return host

    def _open_soon(self, host: _Host) -> None:
        if host.connecting is None:
            host.connecting = asyncio.create_task(self._open(host))
            host.connecting.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _connect(self, host: _Host) -> WireClient:
        self._open_soon(host)
        assert host.connecting is not None
        return await asyncio.shield(host.connecting)

    async def _open(self, host: _Host) -> WireClient:
        loop = asyncio.get_running_loop()
        kind, _, rest = host.row.address.partition(":")
        secret = self._secret if kind == "tcp" else None
        if kind == "tcp" and not secret:
            host.failed()
            raise Retryable(f"host {host.row.id} listens on TCP, and PERUSE_WIRE_SECRET is not set here")

        def lost(wire: WireClient) -> None:
            if host.wire is wire:
                host.wire = None
                self._replace(host)

        def protocol() -> WireClient:
            return WireClient(secret=secret, on_lost=lost, on_event=self._hear)

        try:
            async with asyncio.timeout(_CONNECT_S):
                if kind == "unix":
                    _, wire = await loop.create_unix_connection(protocol, rest)
                else:
                    name, _, port = rest.rpartition(":")
                    _, wire = await loop.create_connection(protocol, name, int(port))
                await wire.ready
        except (OSError, TimeoutError, ValueError, CallError) as error:
            host.failed()
            raise Retryable(f"host {host.row.id} cannot be reached: {error}") from error
        finally:
            host.connecting = None
        host.wire, host.failures, host.open_until = wire, 0, 0.0
        self.was_answered = True
        return wire

    # --- membership -------------------------------------------------------------------------------------------------

    async def _keep_refreshing(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_S)
            try:
                await self._refresh()
            except Exception:
                log.exception("membership.failed")

    async def _refresh(self) -> None:
        try:
            rows = await self._list_hosts()
        except PrimaryUnavailable:
            return  # the last copy stays: hosts that are there go on serving
        for row in rows:
            host = self._hosts.get(row.id)
            if host is None:
                self._hosts[row.id] = host = _Host(row)
            elif (row.generation, row.address) != (host.row.generation, host.row.address):
                if host.wire is not None:
                    host.wire.close()
                    host.wire = None
                    self._replace(host)
                host.failures, host.open_until = 0, 0.0
            host.row = row
            if row.is_live and host.wire is None and host.open_until <= time.monotonic():
                self._open_soon(host)
        live = tuple(row.id for row in rows if row.is_live)
        if live != self._live:
            self._live = live
            self._placed.clear()
            self._unplaced.update(self._watched)
        newest = max((row.heartbeat for row in rows if row.state != "stuck"), default=0.0)
        if newest != self._newest_beat:
            self._newest_beat, self.beat_seen_at = newest, time.monotonic()

    async def _keep_expiring(self) -> None:
        while True:
            await asyncio.sleep(0.02)
            for host in self._hosts.values():
                if host.wire is not None and host.wire.in_flight and host.wire.expire():
                    host.failed()
