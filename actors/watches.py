"""Who wants to hear when a user's replica moves: connections of gateways, for the event streams of their clients.

A watched replica need not be open: the sweep looks at the heads of those that sleep too, and wakes one that moved.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Protocol

from actors.messages import Event
from store.epoch import Bookmark

__all__ = ["Listener", "Watches"]


class Listener(Protocol):
    """A connection that can be told."""

    def tell(self, event: Event) -> None: ...


class _Watch:
    """One watched user: who listens, and the position that all of them know."""

    __slots__ = ("at", "listeners")

    def __init__(self, at: Bookmark) -> None:
        self.at = at
        self.listeners: set[Listener] = set()


class Watches:
    """The watched users of one host."""

    def __init__(self) -> None:
        self._watches: dict[str, _Watch] = {}
        self._users: dict[Listener, set[str]] = {}

    def __len__(self) -> int:
        return len(self._watches)

    def add(self, user: str, listener: Listener, known: Bookmark) -> None:
        """`listener` knows `user` at `known`, and hears of what is newer."""
        watch = self._watches.setdefault(user, _Watch(known))
        if watch.at.is_after(*known):
            watch.at = known  # told again to those who know more: they drop what is not new
        watch.listeners.add(listener)
        self._users.setdefault(listener, set()).add(user)

    def remove(self, listener: Listener, user: str | None) -> None:
        """`listener` does not want to hear of `user` any more; None: of nobody."""
        users = self._users.get(listener, set())
        for gone in [user] if user is not None else list(users):
            users.discard(gone)
            watch = self._watches.get(gone)
            if watch is not None:
                watch.listeners.discard(listener)
                if not watch.listeners:
                    del self._watches[gone]
        if not users:
            self._users.pop(listener, None)

    def tell(self, user: str, at: Bookmark, before: Bookmark | None = None, kinds: Sequence[str] = ()) -> None:
        """The replica of `user` is at `at` now. It came there from `before` by changes of `kinds`; without these it was
        made anew, and may even have gone back, after a restore."""
        watch = self._watches.get(user)
        if watch is None or not (at != watch.at if before is None else at.is_after(*watch.at)):
            return
        is_whole = before is None or before.is_after(*watch.at)  # they do not know all that led there
        watch.at = at
        event = Event(user, at.epoch, at.version, list(kinds), is_whole)
        for listener in watch.listeners:
            listener.tell(event)

    def asleep(self, awake: Container[str]) -> list[str]:
        """The watched users who are not `awake`."""
        return [user for user in self._watches if user not in awake]

    def awake(self, awake: Container[str]) -> list[str]:
        """The watched users who are."""
        return [user for user in self._watches if user in awake]

    def has_moved(self, user: str, head: Bookmark) -> bool:
        """Whether the primary's `head` is news to those who watch `user`."""
        watch = self._watches.get(user)
        return watch is not None and head != watch.at
