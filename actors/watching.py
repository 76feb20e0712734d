"""Watching from a gateway: which users somebody listens to, and that their hosts know it, whichever they are."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from actors.errors import CallError
from actors.membership import KnownHost, Membership
from actors.messages import CallRequest, Event, Position, Type
from store.epoch import Bookmark

__all__ = ["Watching"]

#: How often, and how many at a time, watches are made known to hosts, and how long one may take.
_PERIOD_S: Final = 0.02
_MAX_WATCHES: Final = 500
_CALL_S: Final = 1.0
_encode: Final = msgspec.msgpack.Encoder().encode


class Watching:
    """The watched users of one gateway.

    `on_event` hears of them: where they are now, and the kinds of rows that changed; None when that is not known.
    """

    def __init__(self, membership: Membership) -> None:
        self.on_event: Callable[[str, Bookmark, list[str] | None], None] = lambda user, at, kinds: None
        self._membership = membership
        #: Users → the position that was last told.
        self._watched: dict[str, Bookmark] = {}
        #: Users whose host does not know yet; who failed is last.
        self._unplaced: dict[str, None] = {}
        #: Set whenever there are some of those.
        self._is_wanted = asyncio.Event()

    def add(self, user: str, known: Bookmark) -> None:
        """Tell when `user` moves beyond `known`, until `remove`, whichever host they are on."""
        self._watched[user] = known
        self._want([user])

    def remove(self, user: str) -> None:
        self._watched.pop(user, None)
        self._unplaced.pop(user, None)
        for host in self._membership.hosts.values():
            self._leave(host, user)

    def lost(self, host: KnownHost) -> None:
        """The host does not know any more whom we watch."""
        self._want(host.watching & self._watched.keys())
        host.watching.clear()

    def moved(self) -> None:
        """Users may have gone to other hosts."""
        self._want(self._watched)

    def _want(self, users: Iterable[str]) -> None:
        self._unplaced.update(dict.fromkeys(users))
        if self._unplaced:
            self._is_wanted.set()

    def hear(self, event: Event) -> None:
        """A host tells."""
        if event.user in self._watched:
            self._watched[event.user] = at = Bookmark(event.epoch, event.version)
            self.on_event(event.user, at, None if event.is_whole else event.kinds)

    async def keep(self) -> None:
        """Make watches known to hosts, for ever."""
        while True:
            await self._is_wanted.wait()
            await asyncio.sleep(_PERIOD_S)
            users = list(itertools.islice(self._unplaced, _MAX_WATCHES))
            for user in users:  # those of a host that is away must not keep the others waiting
                self._unplaced[user] = self._unplaced.pop(user)
            await asyncio.gather(*map(self._place, users), return_exceptions=True)
            if not self._unplaced:
                self._is_wanted.clear()

    async def _place(self, user: str) -> None:
        """Tell the user's host; what fails is tried again a moment later."""
        host, known = self._membership.host_of(user), self._watched[user]
        for other in self._membership.hosts.values():
            if other is not host:
                self._leave(other, user)
        host.watching.add(user)
        try:
            body = await self._membership.call(
                host, Type.WATCH, user, _CALL_S, epoch=known.epoch, version=known.version
            )
        except CallError:
            host.watching.discard(user)
            raise
        if user not in self._watched:
            self._leave(host, user)
            return
        if user in host.watching:
            self._unplaced.pop(user, None)
        position = msgspec.msgpack.decode(body, type=Position)
        at = Bookmark(position.epoch, position.version)
        if at.epoch and at.is_after(*self._watched[user]):
            self._watched[user] = at
            self.on_event(user, at, None)

    def _leave(self, host: KnownHost, user: str) -> None:
        if user in host.watching:
            host.watching.discard(user)
            if host.wire is not None:
                host.wire.notify(Type.UNWATCH, _encode(CallRequest(0, user)))
