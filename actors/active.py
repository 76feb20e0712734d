"""An open replica in a host, and what the host knows of it."""

from __future__ import annotations

import asyncio
from typing import Final

from actors.replica import Replica
from store.epoch import Bookmark

__all__ = ["Active"]

_FORCED_PER_S: Final = 20.0


class Allowance:
    """How many pulls readers may still force on one replica: 20 at once, and 20 more each second."""

    __slots__ = ("_at", "_left")

    def __init__(self) -> None:
        self._left = _FORCED_PER_S
        self._at = 0.0

    def pause_s(self, now: float) -> float:
        """Seconds until the next one may be sent; 0 for at once."""
        self._left = min(_FORCED_PER_S, self._left + max(0.0, now - self._at) * _FORCED_PER_S)
        self._at = now
        return max(0.0, (1 - self._left) / _FORCED_PER_S)

    def spend(self) -> None:
        # Readers who waited together shared one pull: however many they were, the next turn comes soon.
        self._left = max(-1.0, self._left - 1)


class Active:
    """An open replica, and what its host knows of it.

    `verified_at`: monotonic time at which a pull or sweep was *sent* that found it at head: its age counts from there.
    `readers`: how many wait for it. `is_pinned`: never closed for being idle or for want of room.
    `older`, `newer`, `passed_at`: its place in the host's budget. `slot`: its word in shared memory, 0 for none.
    """

    __slots__ = (
        "audited_at",
        "forced",
        "is_closed",
        "is_full",
        "is_pinned",
        "lock",
        "must_pull",
        "newer",
        "older",
        "passed_at",
        "readers",
        "replica",
        "slot",
        "used_at",
        "verified_at",
        "waiting",
    )

    def __init__(self, replica: Replica, *, verified_at: float, used_at: float) -> None:
        self.replica = replica
        self.verified_at = verified_at
        self.used_at = used_at
        self.must_pull = True  # nothing is known about what happened while it was closed
        self.is_full = False
        self.is_closed = False
        self.is_pinned = False
        self.readers = 0
        self.audited_at = 0.0
        self.slot = 0
        self.passed_at = used_at
        self.older: Active | None = None
        self.newer: Active | None = None
        self.forced = Allowance()
        self.lock = asyncio.Lock()
        self.waiting: asyncio.Task[int] | None = None

    @property
    def is_in_use(self) -> bool:
        """Whether somebody waits for it, or changes are on their way."""
        return self.is_pinned or self.readers > 0 or self.waiting is not None or self.lock.locked()

    @property
    def position(self) -> Bookmark:
        """Where it is, as a bookmark."""
        epoch, version, _ = self.replica.cursor
        return Bookmark(epoch, version)

    def is_behind(self, floor: Bookmark | None) -> bool:
        """Whether `floor` asks for more than the replica has."""
        if floor is None:
            return False
        cursor = self.replica.cursor
        return floor.is_after(cursor.epoch, cursor.version)
