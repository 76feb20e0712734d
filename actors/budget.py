"""What a host may spend on open replicas, and which of them has to go.

SQLite itself says how many bytes its connections use, all of them together; pages kept beside them are counted where
they are kept. When there is no room, connections are given back first, the one used longest ago before the others, down
to a share of the bytes: a page is much smaller than the connection that it came from. Then pages are packed, in the
same order: those that gateways serve by themselves (see slots) first. Then replicas go. Which is
decided by SIEVE: a hand moves from the oldest to the newest entry, passes those that were
read since it last came by, and takes the first that was not. Nothing is reordered on a read, and a crowd of users who
come once does not push out those who come often.

Source: Zhang et al., "SIEVE is Simpler than LRU: an Efficient Turn-Key Eviction Algorithm for Web Caches", NSDI 2024.
"""

from __future__ import annotations

import _sqlite3
import ctypes
from collections.abc import Callable
from typing import Final

from actors.active import Active
from actors.replica import Replica

__all__ = ["Budget", "Reopenings", "sqlite_bytes"]

#: Python's part of an open replica and of its connection, measured with tracemalloc.
ACTIVE_BYTES: Final = 3 * 1024
CONNECTION_BYTES: Final = 3 * 1024
#: Connections that keep what SQLite read of their files, about 80 KB each. To read it again for a first page takes the
#: loop 70 µs.
_MAX_WARM: Final = 256
#: Of a budget that is full, connections keep so much.
_CONNECTIONS_SHARE: Final = 0.25
_WINDOW_S: Final = 5
#: Users whose replicas were closed for want of room, to know them when they come back.
_MAX_REMEMBERED: Final = 100_000
_REMEMBERED_S: Final = 60.0


def _memory_used() -> Callable[[], int]:
    # The very library that Python's module uses, wherever it is: symbols are looked up through the module itself.
    library = ctypes.CDLL(getattr(_sqlite3, "__file__", None))
    used: Callable[[], int] = library.sqlite3_memory_used
    used.restype = ctypes.c_int64  # type: ignore[attr-defined]
    return used


#: Bytes that SQLite has allocated in this process, for all connections.
sqlite_bytes: Final = _memory_used()


class Budget:
    """The open replicas of a host by age, and their bytes against a limit."""

    def __init__(self, *, max_bytes: int, max_open: int) -> None:
        self.max_bytes = max_bytes
        self._max_open = max_open
        self._count = 0
        self._kept_bytes = 0
        #: Those that have a connection, and those with pages that are not packed: who used them longest ago first.
        self._connected: dict[Replica, None] = {}
        #: The last of those that have a connection.
        self._warm: dict[Replica, None] = {}
        self._unpacked: dict[Replica, None] = {}
        self._oldest: Active | None = None
        self._newest: Active | None = None
        self._hand: Active | None = None

    def add(self, active: Active) -> None:
        self._count += 1
        active.older, self._newest = self._newest, active
        if active.older is None:
            self._oldest = active
        else:
            active.older.newer = active

    def remove(self, active: Active) -> None:
        self._unpacked.pop(active.replica, None)
        self._count -= 1
        if self._hand is active:
            self._hand = active.newer
        if active.older is None:
            self._oldest = active.newer
        else:
            active.older.newer = active.newer
        if active.newer is None:
            self._newest = active.older
        else:
            active.newer.older = active.older
        active.older = active.newer = None

    @property
    def used_bytes(self) -> int:
        """Bytes of all open replicas: SQLite's, the pages kept, and Python's own."""
        python_bytes = self._count * ACTIVE_BYTES + len(self._connected) * CONNECTION_BYTES
        return sqlite_bytes() + self._kept_bytes + python_bytes

    @property
    def kept_bytes(self) -> int:
        return self._kept_bytes

    def keep(self, replica: Replica, size: int) -> None:
        """`replica` keeps so many bytes of pages more (negative: less; 0: one of them was read)."""
        self._kept_bytes += size
        if size > 0 or replica in self._unpacked:
            self._unpacked.pop(replica, None)
            self._unpacked[replica] = None

    def connected(self, replica: Replica) -> None:
        """`replica` uses its connection. When that is a new one, others give way as need be."""
        is_new = replica not in self._connected
        self._connected.pop(replica, None)
        self._connected[replica] = None
        self._warm.pop(replica, None)
        self._warm[replica] = None
        if len(self._warm) > _MAX_WARM:
            cooled = next(iter(self._warm))
            del self._warm[cooled]
            cooled.cool()
        while is_new and len(self._connected) > 1 and self.ease():
            pass

    def disconnected(self, replica: Replica) -> None:
        """`replica` has given its connection back."""
        del self._connected[replica]
        self._warm.pop(replica, None)

    def ease(self) -> bool:
        """Give back the connection that was used longest ago, or pack pages, if bytes are what is wanting; False when
        there is nothing more to be had in this way."""
        if self.used_bytes < self.max_bytes:
            return False
        if self._connected and sqlite_bytes() > self.max_bytes * _CONNECTIONS_SHARE:
            next(iter(self._connected)).rest()
            return True
        if self._unpacked:
            replica = next(iter(self._unpacked))
            replica.pack()
            del self._unpacked[replica]
            return True
        return False

    def is_full(self) -> bool:
        """Whether one more replica would be too many, or too much."""
        return self._count >= self._max_open or self.used_bytes >= self.max_bytes

    def is_over(self) -> bool:
        """Whether one has to go."""
        return self._count > self._max_open or self.used_bytes > self.max_bytes

    def victim(self) -> Active | None:
        """The replica to close; None when all are in use."""
        # Two rounds: the first may find all of them read since the last time.
        for _ in range(2 * self._count):
            active = self._hand or self._oldest
            assert active is not None
            self._hand = active.newer
            if active.is_in_use:
                continue
            if active.used_at == active.passed_at:
                return active
            active.passed_at = active.used_at
        return None


class Reopenings:
    """How much of the loop's time goes into replicas that were closed for want of room and came back at once."""

    def __init__(self, *, max_share: float = 0.5) -> None:
        self._max_share = max_share
        self._closed: dict[str, float] = {}
        self._seconds = [0.0] * _WINDOW_S
        self._second = 0

    def closed(self, user: str, now: float) -> None:
        """A replica was closed to make room."""
        if len(self._closed) >= _MAX_REMEMBERED:
            del self._closed[next(iter(self._closed))]
        self._closed.pop(user, None)
        self._closed[user] = now

    def opened(self, user: str, now: float, took_s: float) -> bool:
        """A replica was opened, which took so long; answers whether it had just been closed for want of room."""
        closed_at = self._closed.pop(user, None)
        if closed_at is None or now - closed_at > _REMEMBERED_S:
            return False
        self._turn(now)
        self._seconds[self._second % _WINDOW_S] += took_s
        return True

    def are_too_many(self, now: float) -> bool:
        """Whether opening more would only keep the host from answering those that are open."""
        self._turn(now)
        return sum(self._seconds) > self._max_share * _WINDOW_S

    def _turn(self, now: float) -> None:
        """Forget the seconds that have left the window."""
        second = int(now)
        for past in range(max(self._second + 1, second - _WINDOW_S + 1), second + 1):
            self._seconds[past % _WINDOW_S] = 0.0
        self._second = max(self._second, second)
