"""One event stream (SSE): what its listener has yet to be sent, and how that looks on the wire."""

from __future__ import annotations

import asyncio
import random
from typing import Final

import msgspec

from store.changes import Missed
from store.epoch import Bookmark

__all__ = ["MAX_WAITING", "NOWHERE", "Stream"]

#: Messages that wait for one listener; one more, and they become a single `resync`.
MAX_WAITING: Final = 64
#: Before everything: from here the change log can tell nothing, and whatever is heard is news.
NOWHERE: Final = Bookmark("0-0", 0)
#: When a gateway ends, its listeners do not come back all at once.
_RETRY_MS: Final = (1_000, 3_000)
_KEEPALIVE: Final = b":\n\n"


class Stream:
    """What one listener has yet to be sent. `at` is the position of the last message; None until it has begun."""

    __slots__ = ("_early", "_messages", "_transport", "_waiting", "at", "beat", "header", "is_over", "user")

    def __init__(self, user: str, header: str, transport: asyncio.BaseTransport | None) -> None:
        self.user = user
        self.header = header
        self.beat = 0  # the second of a period in which it is kept alive
        self.at: Bookmark | None = None
        self.is_over = False
        self._transport = transport
        self._messages: list[bytes] = []
        self._early: list[tuple[Bookmark, list[str] | None]] = []
        self._waiting: asyncio.Future[None] | None = None

    @property
    def is_gone(self) -> bool:
        """Whether the listener has left: nothing else says so before something is sent."""
        return self._transport is None or self._transport.is_closing()

    def begin(self, missed: Missed, *, is_return: bool) -> None:
        """Start at the head, for one who comes back with what was missed; what came in meanwhile follows."""
        self.at = head = missed.head
        messages: list[bytes] = []
        if is_return and missed.changes is None:
            messages = [_resync(head)]
        elif is_return:
            messages = [_change(Bookmark(head.epoch, at), kinds) for at, kinds in missed.changes or ()]
        self._messages = [_start(None if messages else head), *messages]
        early, self._early = self._early, []
        for position, kinds in early:
            self.tell(position, kinds)
        self._wake()

    def tell(self, at: Bookmark, kinds: list[str] | None) -> None:
        """The user is at `at` now: `kinds` of rows changed, or, when it is None, anything may have."""
        if self.at is None:
            if len(self._early) >= MAX_WAITING:
                self._early.clear()
                kinds = None
            self._early.append((at, kinds))
        elif at.is_after(*self.at) or (kinds is None and at != self.at):
            if at.epoch != self.at.epoch:
                kinds = None  # another history: what was heard before may not be in it
            self.at = at
            if len(self._messages) >= MAX_WAITING:
                self._messages.clear()
                kinds = None
            self._messages.append(_resync(at) if kinds is None else _change(at, kinds))
            self._wake()

    def keep_alive(self) -> None:
        if self.at is not None and not self._messages:
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


def _start(at: Bookmark | None) -> bytes:
    # Without data nothing is dispatched, but the listener's last event id is set: it can come back from here. Not when
    # something follows: who got this and not the rest would come back from beyond what it missed.
    return f"retry: {random.randint(*_RETRY_MS)}\n".encode() + (b"\n" if at is None else f"id: {at}\n\n".encode())


def _change(at: Bookmark, kinds: list[str]) -> bytes:
    data = msgspec.json.encode({"version": at.version, "kinds": kinds}).decode()
    return f"id: {at}\ndata: {data}\n\n".encode()


def _resync(at: Bookmark) -> bytes:
    return f'event: resync\nid: {at}\ndata: {{"version":{at.version}}}\n\n'.encode()
