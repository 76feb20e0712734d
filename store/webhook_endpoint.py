"""What one process knows of one endpoint: how many of its deliveries may run, and when another one has its turn.

An endpoint that answers well is asked four times at once, one that is slow or fails once. What it cannot take soon is
put off to the time when its turn will come, so that what waits for it stands in nobody's way.
"""

from __future__ import annotations

import uuid
from collections import deque
from datetime import datetime
from typing import Final, NamedTuple

__all__ = ["Endpoint", "Held"]

MOST_AT_ONCE: Final = 4
#: An answer that takes longer is a slow one.
_SLOW_S: Final = 2.0
#: An endpoint holds what it will have taken within this time, and no more than this many.
_HOLD_S: Final = 20.0
_MOST_HELD: Final = 256
_LONGEST_TURN_S: Final = 600.0
#: What an answer takes, until there was one.
_HOPED_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 3600.0


class Held(NamedTuple):
    """A delivery that this process has a lease on."""

    id: uuid.UUID
    webhook_id: uuid.UUID
    lease_until: datetime  # the lease's name: whoever has another one writes nothing


class Endpoint:
    """Times are those of one monotonic clock, in seconds."""

    def __init__(self) -> None:
        self.waiting: deque[Held] = deque()
        self.running = 0
        self.at_once = MOST_AT_ONCE
        self.used_at = 0.0
        self._took_s: float | None = None
        self._next_turn = 0.0
        self._paused_until = 0.0

    def pause_s(self, now: float) -> float:
        """For how long nothing is to be sent."""
        return max(0.0, self._paused_until - now)

    def turn_in(self, now: float) -> float:
        """0 when one more delivery may be held now; otherwise the seconds until its turn, which it has from now on."""
        self.used_at = now
        held = self.running + len(self.waiting)
        each_s = (_HOPED_S if self._took_s is None else self._took_s) / self.at_once
        if self.pause_s(now) == 0.0 and held < max(1.0, min(_MOST_HELD, _HOLD_S // each_s)):
            return 0.0
        soonest = max(now + held * each_s, self._paused_until)
        self._next_turn = max(soonest, self._next_turn) + each_s
        return min(self._next_turn - now, _LONGEST_TURN_S)

    def answered(self, now: float, took_s: float, *, is_well: bool, retry_after_s: float | None) -> None:
        """Learn from an attempt that has ended."""
        self.used_at = now
        self._took_s = max(0.01, took_s if self._took_s is None else 0.7 * self._took_s + 0.3 * took_s)
        self.at_once = min(MOST_AT_ONCE, self.at_once + 1) if is_well and took_s < _SLOW_S else 1
        if not is_well and retry_after_s is not None:
            self._paused_until = max(self._paused_until, now + min(retry_after_s, _LONGEST_PAUSE_S))

    def is_idle(self, now: float, for_s: float) -> bool:
        """Whether nothing runs or waits, and has not for a while: it may be forgotten."""
        return not self.running and not self.waiting and max(self.used_at + for_s, self._paused_until) < now
