"""What a host does with what gateways ask: from messages of the wire to its replicas, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from actors.errors import Retryable
from actors.messages import (
    CallRequest,
    PageHead,
    PageState,
    PokeRequest,
    Position,
    ReadRequest,
    SyncReply,
    TouchRequest,
    Type,
)
from actors.metrics import HostMetrics, HostStats
from actors.replicas import Answer, Replicas
from actors.wire import WireServer
from store.epoch import Bookmark
from store.errors import PrimaryUnavailable

__all__ = ["HostHandler"]

#: Replicas in one listing: more would not be read by anybody.
_MAX_LISTED: Final = 1000


class HostHandler:
    """The `Handler` of a host's connections; `stats` is how the host describes itself."""

    def __init__(self, replicas: Replicas, stats: Callable[[], HostStats], metrics: HostMetrics) -> None:
        self._replicas = replicas
        self._stats = stats
        self._metrics = metrics

    def peek(self, request: ReadRequest) -> tuple[PageHead, bytes] | None:
        if request.validate:
            return None
        answer = self._replicas.peek(request.user, request.query, _floor(request), max_age_s=request.max_age_s)
        return None if answer is None else _page(answer, request.have)

    async def read(self, request: ReadRequest) -> tuple[PageHead, bytes]:
        answer = await self._replicas.read(
            request.user,
            request.query,
            _floor(request),
            max_wait_s=request.max_wait_ms / 1000,
            max_age_s=request.max_age_s,
            validate=request.validate,
            stale_ok=request.stale_ok,
        )
        return _page(answer, request.have)

    def poke(self, request: PokeRequest) -> None:
        self._replicas.poke(request.user, Bookmark(request.epoch, request.version))

    def overloaded(self) -> None:
        self._metrics.overloads += 1

    def touch(self, request: TouchRequest) -> None:
        self._replicas.touch(request.users)

    def watch(self, connection: WireServer, request: CallRequest) -> Position:
        at = self._replicas.watch(request.user, connection, Bookmark(request.epoch, request.version))
        return Position("", 0) if at is None else Position(*at)

    def unwatch(self, connection: WireServer, user: str | None) -> None:
        self._replicas.watches.remove(connection, user)

    async def call(self, kind: Type, request: CallRequest) -> Any:
        if kind is Type.STATS:
            return self._stats()
        if kind is Type.INSPECT:
            return self._replicas.inspect(request.user)
        if kind is Type.ACTIVE:
            return self._replicas.list_active(_MAX_LISTED)
        if kind is Type.PASSIVATE:
            return self._replicas.passivate(request.user)
        if kind is Type.RESEED:
            self._replicas.reseed(request.user)
            return True
        try:
            if kind is Type.SYNC:
                cursor, applied = await self._replicas.sync(request.user)
                return SyncReply(cursor.epoch, cursor.version, applied)
            if kind is Type.AUDIT:
                return await self._replicas.audit(request.user, repair=request.repair)
        except PrimaryUnavailable as error:
            raise Retryable(str(error)) from error
        raise Retryable(f"this host does not know calls of type {kind}")


def _floor(request: ReadRequest) -> Bookmark | None:
    return Bookmark(request.floor_epoch, request.floor_version) if request.floor_epoch else None


def _page(answer: Answer, have: int) -> tuple[PageHead, bytes]:
    (epoch, version, _), age_s, page, outcome, slot, slot_stamp = answer
    if page.stamp == have:  # first: bytes that are not sent do not have to be unpacked
        state, body = PageState.UNCHANGED, None
    else:
        body = page.body
        state = PageState.MISSING if body is None else PageState.BYTES
    return PageHead(epoch, version, age_s, page.query_hash, page.stamp, state, outcome, slot, slot_stamp), body or b""
