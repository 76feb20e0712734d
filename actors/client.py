"""The gateway's way to replicas: reads, hints, watches, and what operators ask."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

import msgspec
import structlog

from actors.errors import CallError, Retryable
from actors.membership import KnownHost, Membership
from actors.messages import (
    AuditReport,
    PageHead,
    PageReply,
    PageState,
    PokeRequest,
    ReadRequest,
    ReplicaInfo,
    SyncReply,
    Terms,
    TouchRequest,
    Type,
)
from actors.metrics import HostStats
from actors.pages import Page, Pages
from actors.watching import Watching
from actors.wire import WireClient
from store.epoch import Bookmark
from store.hosts import HostRow

__all__ = ["Question", "ReplicaClient"]

log = structlog.get_logger()

#: How often hosts hear who was served without them.
_TOUCH_S: Final = 1.0
_ANY: Final = Terms()
_encode: Final = msgspec.msgpack.Encoder().encode


class Question(NamedTuple):
    """A read under way: its reply, and what was known when it was sent."""

    reply: asyncio.Future[PageReply]
    user: str
    encoded: bytes
    kept: Page | None
    host: KnownHost
    wire: WireClient


class ReplicaClient:
    """Asks hosts. `list_hosts` reads the membership, `max_page_bytes` bounds the pages kept, and `zero_hop` lets those
    be served without asking while their slot says that they are true."""

    def __init__(
        self,
        list_hosts: Callable[[], Awaitable[list[HostRow]]],
        *,
        secret: bytes | None = None,
        max_page_bytes: int = 0,
        zero_hop: bool = False,
    ) -> None:
        self.pages = Pages(max_page_bytes)
        self.membership = Membership(
            list_hosts,
            secret=secret,
            with_slots=zero_hop and max_page_bytes > 0,
            on_lost=self._lost,
            on_moved=self._moved,
            on_event=lambda event: self.watching.hear(event),
        )
        self.watching = Watching(self.membership)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Learn the hosts, and keep learning. Ended by `close`."""
        await self.membership.start()
        self._tasks = [asyncio.create_task(loop()) for loop in (self.watching.keep, self._keep_touching)]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.membership.close()

    # --- reads ----------------------------------------------------------------------------------------------------

    async def read(
        self, user: str, encoded: bytes, floor: Bookmark | None, terms: Terms = _ANY, *, timeout_s: float
    ) -> tuple[PageHead, Page | None]:
        """The page of `user`'s replica on these terms; None when there is no such row.

        Raises:
            CallError: Retryable, Overloaded, Seeding or Behind; the primary may answer instead.
        """
        host = self.membership.host_of(user)
        if host.wire is None:
            await self.membership.wire_of(host)
        question = self.ask(user, encoded, floor, terms, timeout_s)
        if question is None:
            raise Retryable(f"the connection to host {host.row.id} is lost")
        return self.take(question, await question.reply)

    def ask(self, user: str, encoded: bytes, floor: Bookmark | None, terms: Terms, timeout_s: float) -> Question | None:
        """`read` in two parts, for who cannot wait; None when there is no connection to the host yet.

        Raises:
            CallError: nobody can be asked.
        """
        host = self.membership.host_of(user)
        wire = host.wire
        if wire is None:
            return None
        epoch, version = floor or ("", 0)
        kept = self.pages.get(user, encoded)
        have = 0 if kept is None else kept.stamp
        request = ReadRequest(
            user, encoded, int(timeout_s * 1000), epoch, version, have,
            terms.max_wait_ms, terms.max_age_s, terms.validate, terms.stale_ok,
        )  # fmt: skip
        return Question(wire.request(Type.READ, _encode(request), timeout_s), user, encoded, kept, host, wire)

    def take(self, question: Question, reply: PageReply) -> tuple[PageHead, Page | None]:
        """What the `reply` to a question says; see `read`."""
        _, user, encoded, kept, host, wire = question
        head = reply.head
        if head.state == PageState.MISSING:
            return head, None
        page = self.pages.keep(user, encoded, kept if head.state == PageState.UNCHANGED else None, reply.body, head)
        if host.wire is wire:  # the same host as was asked, and it is still there
            self.pages.trust(page, host.words, head)
        return head, page

    def poke(self, user: str, bookmark: Bookmark) -> None:
        """Tell the user's host that something was written. A hint: if it gets lost, a sweep finds the same."""
        try:
            host = self.membership.host_of(user)
        except Retryable:
            return
        if host.wire is not None:
            host.wire.notify(Type.POKE, _encode(PokeRequest(user, *bookmark)))
        else:
            self.membership.connect_soon(host)

    async def _keep_touching(self) -> None:
        """Who is served without their host must not look idle to it."""
        while True:
            await asyncio.sleep(_TOUCH_S)
            touched, self.pages.touched = self.pages.touched, set()
            by_host: dict[str, list[str]] = {}
            for user in touched:
                try:
                    by_host.setdefault(self.membership.host_of(user).row.id, []).append(user)
                except Retryable:
                    continue
            for host_id, users in by_host.items():
                wire = self.membership.hosts[host_id].wire
                if wire is not None:
                    wire.notify(Type.TOUCH, _encode(TouchRequest(users)))

    # --- calls ----------------------------------------------------------------------------------------------------

    async def sync(self, user: str, *, timeout_s: float) -> SyncReply:
        """Bring the user's replica to head now.

        Raises:
            CallError: it could not be done in time.
        """
        return msgspec.msgpack.decode(await self._ask(user, Type.SYNC, timeout_s), type=SyncReply)

    async def inspect(self, user: str, *, timeout_s: float = 5.0) -> tuple[HostRow, ReplicaInfo]:
        """The user's host, and what it knows of their replica.

        Raises:
            CallError: it does not answer.
        """
        host = self.membership.host_of(user)
        return host.row, msgspec.msgpack.decode(await self._call(host, Type.INSPECT, user, timeout_s), type=ReplicaInfo)

    async def passivate(self, user: str, *, timeout_s: float = 5.0) -> bool:
        """Close the user's replica; False when it was not open.

        Raises:
            CallError: its host does not answer.
        """
        return bool(msgspec.msgpack.decode(await self._ask(user, Type.PASSIVATE, timeout_s)))

    async def reseed(self, user: str, *, timeout_s: float = 5.0) -> None:
        """Make the user's replica again from the primary.

        Raises:
            CallError: its host does not answer.
        """
        await self._ask(user, Type.RESEED, timeout_s)

    async def audit(self, user: str, *, repair: bool = False, timeout_s: float = 60.0) -> AuditReport:
        """Compare the user's replica with the primary.

        Raises:
            CallError: its host does not answer, or cannot tell.
        """
        return msgspec.msgpack.decode(await self._ask(user, Type.AUDIT, timeout_s, repair=repair), type=AuditReport)

    async def list_active(self, *, timeout_s: float = 5.0) -> dict[str, list[ReplicaInfo]]:
        """The open replicas of every live host, up to 1,000 each, the one read last first.

        Raises:
            CallError: a host does not answer.
        """
        found = {}
        for host in self.membership.hosts.values():
            if host.row.is_live:
                body = await self._call(host, Type.ACTIVE, "", timeout_s)
                found[host.row.id] = msgspec.msgpack.decode(body, type=list[ReplicaInfo])
        return found

    async def stats(self, *, timeout_s: float = 1.0) -> list[HostStats]:
        """The hosts that answer in time, as they describe themselves; also those that are stuck or draining."""
        there = [host for host in self.membership.hosts.values() if host.row.word != "gone"]
        answers = await asyncio.gather(*(self._stats(host, timeout_s) for host in there))
        return [answer for answer in answers if answer is not None]

    async def _stats(self, host: KnownHost, timeout_s: float) -> HostStats | None:
        try:
            return msgspec.msgpack.decode(await self._call(host, Type.STATS, "", timeout_s), type=HostStats)
        except CallError:
            return None

    async def probe(self, *, timeout_s: float = 1.0) -> list[str]:
        """The ids of the live hosts that answer."""
        return [
            stats.host
            for stats in await self.stats(timeout_s=timeout_s)
            if self.membership.hosts[stats.host].row.is_live
        ]

    @property
    def hosts(self) -> list[HostRow]:
        """The membership as last read."""
        return [host.row for host in self.membership.hosts.values()]

    async def _ask(self, user: str, kind: Type, timeout_s: float, **options: Any) -> bytes:
        return await self._call(self.membership.host_of(user), kind, user, timeout_s, **options)

    async def _call(self, host: KnownHost, kind: Type, user: str, timeout_s: float, **options: Any) -> bytes:
        return await self.membership.call(host, kind, user, timeout_s, **options)

    def _lost(self, host: KnownHost) -> None:
        self.pages.distrust()
        self.watching.lost(host)

    def _moved(self) -> None:
        self.pages.distrust()
        self.watching.moved()
