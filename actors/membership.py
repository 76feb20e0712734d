"""The hosts as one gateway knows them: who serves whom, a connection to each, and when to stop asking.

A host that fails or is late opens its breaker for a moment, and the caller turns to the primary at once: the next
host is asked only when the first is known to be gone, so that a restart does not seed its users elsewhere.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from actors.errors import CallError, Retryable
from actors.messages import CallRequest, Event, Type
from actors.placement import first
from actors.slots import open_slots
from actors.wire import WireClient
from store.errors import PrimaryUnavailable
from store.hosts import HostRow

__all__ = ["KnownHost", "Membership"]

log = structlog.get_logger()

REFRESH_S: Final = 1.0
_CONNECT_S: Final = 1.0
_BREAKER_S: Final = (0.25, 2.0)  # first and longest pause
_MAX_PLACED: Final = 200_000
#: A host answers at the deadline of a call at the latest: one that is later than this does not answer at all.
_GRACE_S: Final = 0.25
_encode: Final = msgspec.msgpack.Encoder().encode


class KnownHost:
    """A host as this process sees it. `words`: its slots, if it is on this node; `watching`: of whom it tells us."""

    __slots__ = ("connecting", "failures", "open_until", "row", "watching", "wire", "words")

    def __init__(self, row: HostRow) -> None:
        self.row = row
        self.wire: WireClient | None = None
        self.words: memoryview | None = None
        self.watching: set[str] = set()
        self.connecting: asyncio.Task[WireClient] | None = None
        self.failures = 0
        self.open_until = 0.0

    def failed(self) -> None:
        """Open the breaker, longer each time in a row."""
        shortest, longest = _BREAKER_S
        now = time.monotonic()
        if now > self.open_until + longest:
            self.failures = 0  # the last time was long ago
        self.open_until = now + min(longest, shortest * 2**self.failures)
        self.failures = min(self.failures + 1, 8)


class Membership:
    """Reads the membership with `list_hosts`; its last answer is kept while the primary is away.

    `on_lost` hears of a host that has forgotten us, `on_moved` that users may have gone to other hosts, `on_event` of
    what hosts tell without being asked.
    """

    def __init__(
        self,
        list_hosts: Callable[[], Awaitable[list[HostRow]]],
        *,
        secret: bytes | None,
        with_slots: bool,
        on_lost: Callable[[KnownHost], None],
        on_moved: Callable[[], None],
        on_event: Callable[[Event], None],
    ) -> None:
        self.hosts: dict[str, KnownHost] = {}
        #: Monotonic time at which a heartbeat was last seen to move, of a host that is not stuck; for /readyz.
        self.beat_seen_at = time.monotonic()
        #: Whether any host has ever answered this process.
        self.was_answered = False
        self._list_hosts = list_hosts
        self._secret = secret
        self._with_slots = with_slots
        self._on_lost = on_lost
        self._on_moved = on_moved
        self._on_event = on_event
        self._live: tuple[str, ...] = ()
        self._placed: dict[str, str] = {}
        self._newest_beat = 0.0
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Learn the hosts, and keep learning. Ended by `close`."""
        await self._refresh()
        self._task = asyncio.create_task(self._keep_refreshing())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for host in self.hosts.values():
            if host.connecting is not None:
                host.connecting.cancel()
            if host.wire is not None:
                host.wire.close()

    def host_of(self, user: str) -> KnownHost:
        """Who serves `user`.

        Raises:
            Retryable: nobody does now.
        """
        host_id = self._placed.get(user)
        if host_id is None:
            host_id = first(user, self._live)
            if host_id is None:
                raise Retryable("no replica host is live")
            if len(self._placed) >= _MAX_PLACED:
                self._placed.clear()
            self._placed[user] = host_id
        host = self.hosts[host_id]
        if host.open_until and host.open_until > time.monotonic():
            raise Retryable(f"host {host_id} failed a moment ago")
        return host

    def connect_soon(self, host: KnownHost) -> asyncio.Task[WireClient]:
        """The connection that is being made; nobody has to wait for it."""
        if host.connecting is None:
            host.connecting = asyncio.create_task(self._connect(host))
            host.connecting.add_done_callback(lambda task: task.cancelled() or task.exception())
        return host.connecting

    async def wire_of(self, host: KnownHost) -> WireClient:
        """The connection to `host`.

        Raises:
            Retryable: it cannot be reached.
        """
        if host.wire is not None:
            return host.wire
        return await asyncio.shield(self.connect_soon(host))

    async def call(self, host: KnownHost, kind: Type, user: str, timeout_s: float, **options: Any) -> bytes:
        """The reply to a call that is not a read; `options` are fields of `CallRequest`.

        Raises:
            CallError: the host's refusal, or it does not answer.
        """
        wire = await self.wire_of(host)
        request = CallRequest(int(timeout_s * 1000), user, **options)
        body: bytes = await wire.request(kind, _encode(request), timeout_s + _GRACE_S)
        return body

    async def _connect(self, host: KnownHost) -> WireClient:
        loop = asyncio.get_running_loop()
        kind, _, rest = host.row.address.partition(":")
        secret = self._secret if kind == "tcp" else None
        if kind == "tcp" and not secret:
            host.failed()
            host.connecting = None
            raise Retryable(f"host {host.row.id} listens on TCP, and PERUSE_WIRE_SECRET is not set here")

        def lost(wire: WireClient) -> None:
            if host.wire is wire:
                self._forget(host)

        def late(wire: WireClient) -> None:
            if host.wire is wire:
                host.failed()

        def protocol() -> WireClient:
            return WireClient(secret=secret, on_lost=lost, on_late=late, on_event=self._on_event)

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
        if kind == "unix" and self._with_slots:
            host.words = open_slots(Path(rest).with_suffix(".slots"))
        self.was_answered = True
        return wire

    def _forget(self, host: KnownHost) -> None:
        """Its connection is gone, and with it all that it knew about us."""
        host.wire = host.words = None
        self._on_lost(host)

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
            host = self.hosts.get(row.id)
            if host is None:
                self.hosts[row.id] = host = KnownHost(row)
            elif (row.generation, row.address) != (host.row.generation, host.row.address):
                if host.wire is not None:
                    host.wire.close()
                    self._forget(host)
                host.failures, host.open_until = 0, 0.0
            host.row = row
            if row.is_live and host.wire is None and host.open_until <= time.monotonic():
                self.connect_soon(host)
        live = tuple(row.id for row in rows if row.is_live)
        if live != self._live:
            self._live = live
            self._placed.clear()
            self._on_moved()
        newest = max((row.heartbeat for row in rows if row.state != "stuck"), default=0.0)
        if newest != self._newest_beat:
            self._newest_beat, self.beat_seen_at = newest, time.monotonic()
