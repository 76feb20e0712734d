"""The queue of seeds of one host: one per user, so many at once, and those that a reader waits for first."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from actors.errors import Overloaded, Retryable
from actors.metrics import HostMetrics
from store.clock import Clock

__all__ = ["SeedQueue"]

log = structlog.get_logger()

#: Waiting seeds beyond this are refused at once: the queue would outlive its readers.
MAX_WAITING: Final = 10_000
#: Between a seed that failed and the next one of the same user: a primary or a disk in trouble gets a moment.
PAUSE_S: Final = 0.5


class _Seed:
    """One user's place in the queue."""

    __slots__ = ("asked_at", "ended", "is_wanted", "task")

    def __init__(self, asked_at: float, *, is_wanted: bool) -> None:
        self.asked_at = asked_at
        self.is_wanted = is_wanted
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[None] | None = None


class SeedQueue:
    """`start` a user's seed, and `work` makes it when its turn comes; at most `slots` at once."""

    def __init__(
        self, work: Callable[[str], Awaitable[None]], *, slots: int, clock: Clock, metrics: HostMetrics
    ) -> None:
        self._work = work
        self._free = slots
        self._clock = clock
        self._metrics = metrics
        self._seeds: dict[str, _Seed] = {}
        #: Users in turn. One may be in both, when a reader came for a seed that nobody waited for.
        self._wanted: deque[str] = deque()
        self._others: deque[str] = deque()
        self._is_closed = False

    def __contains__(self, user: str) -> bool:
        return user in self._seeds

    def __len__(self) -> int:
        return len(self._seeds)

    @property
    def waiting_count(self) -> int:
        """Seeds that have not begun."""
        return sum(1 for seed in self._seeds.values() if seed.task is None)

    def start(self, user: str, *, is_wanted: bool) -> None:
        """Queue a seed; one that is queued already moves before those that no reader waits for.

        Raises:
            Overloaded: too many wait.
            Retryable: the queue was closed; a pull under way may still end in a reset.
        """
        if self._is_closed:
            raise Retryable("this host is stopping")
        seed = self._seeds.get(user)
        if seed is None:
            if len(self._seeds) >= MAX_WAITING:
                self._metrics.overloads += 1
                raise Overloaded(f"{MAX_WAITING} replicas wait to be made")
            self._seeds[user] = _Seed(self._clock.monotonic(), is_wanted=is_wanted)
        elif is_wanted and not seed.is_wanted and seed.task is None:
            seed.is_wanted = True
        else:
            return
        (self._wanted if is_wanted else self._others).append(user)
        self._begin()

    async def wait(self, user: str) -> None:
        """Returns when the user's seed has ended, or at once when there is none.

        Raises:
            Exception: whatever ended the seed.
        """
        seed = self._seeds.get(user)
        if seed is not None:
            await asyncio.shield(seed.ended)

    async def close(self) -> None:
        """End all seeds; none is begun again."""
        self._is_closed = True
        seeds, self._seeds = self._seeds, {}
        self._wanted.clear()
        self._others.clear()
        for seed in seeds.values():
            if seed.task is not None:
                seed.task.cancel()
            seed.ended.cancel()
        await asyncio.gather(*(seed.task for seed in seeds.values() if seed.task), return_exceptions=True)

    def _begin(self) -> None:
        while self._free and (self._wanted or self._others):
            user = (self._wanted or self._others).popleft()
            seed = self._seeds.get(user)
            if seed is None or seed.task is not None:
                continue  # its other place in the queue came first
            self._free -= 1
            self._metrics.seed_wait_seconds += self._clock.monotonic() - seed.asked_at
            seed.task = asyncio.create_task(self._make(user, seed))

    async def _make(self, user: str, seed: _Seed) -> None:
        try:
            await self._work(user)
        except Exception as error:
            self._metrics.seed_failures += 1
            log.warning("seed.failed", user=user, error=str(error))
            self._free += 1
            self._begin()
            await asyncio.sleep(PAUSE_S)  # readers would start the next one at once
            self._end(user, seed, error)
        else:
            self._free += 1
            self._end(user, seed, None)
            self._begin()

    def _end(self, user: str, seed: _Seed, error: Exception | None) -> None:
        if self._seeds.get(user) is seed:
            del self._seeds[user]
        if seed.ended.done():
            return
        if error is None:
            seed.ended.set_result(None)
        else:
            seed.ended.set_exception(error)
            seed.ended.exception()  # nobody may be waiting
