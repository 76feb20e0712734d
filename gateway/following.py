"""Following generations: whoever waits for the end of jobs, or listens to how far they are.

One statement for all of them, many times a second while somebody waits and never otherwise: what a request costs the
primary does not grow with the time that it waits.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import structlog

from gateway.errors import TooMany
from gateway.metrics import GatewayMetrics
from store.errors import PrimaryUnavailable
from store.generation.states import State, states
from store.primary import Primary

__all__ = ["Follower", "Following"]

log = structlog.get_logger()

MAX_PER_USER: Final = 20
_EVERY_S: Final = 0.05
#: Of the primary's time, a poller takes at most one part in so many.
_REST: Final = 10
_PLACES_EVERY_S: Final = 1.0
_AWAY_S: Final = 1.0


class Follower:
    """Knows how far its jobs are. A listener who is slow misses what lies between, never the end."""

    __slots__ = ("_changed", "ids", "is_ended", "latest", "user")

    def __init__(self, user: str, ids: Collection[uuid.UUID]) -> None:
        self.user = user
        self.ids = frozenset(ids)
        self.latest: dict[uuid.UUID, State | None] = {}
        """None: the job is gone."""
        self.is_ended = False
        """The gateway stops: nothing more will be heard."""
        self._changed = asyncio.Event()

    @property
    def is_over(self) -> bool:
        """Whether all its jobs have ended."""
        return len(self.latest) == len(self.ids) and all(s is None or s.is_over for s in self.latest.values())

    def hear(self, found: Mapping[uuid.UUID, State], *, knows_places: bool) -> None:
        for row_id in self.ids:
            state = found.get(row_id)
            before = self.latest.get(row_id)
            if state and before and not (knows_places or state.is_taken or before.is_taken):
                state = state._replace(queue_position=before.queue_position)
            if row_id not in self.latest or state != before:
                self.latest[row_id] = state
                self._changed.set()

    def end(self) -> None:
        self.is_ended = True
        self._changed.set()

    async def change(self, timeout_s: float) -> bool:
        """Whether something changed since it was last asked, waiting for `timeout_s` at most."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return False
        self._changed.clear()
        return True


class Following:
    """All followers of one gateway, and the one task that looks for them."""

    def __init__(self, primary: Primary, metrics: GatewayMetrics, *, most: int) -> None:
        self._primary = primary
        self._metrics = metrics
        self._most = most
        self._waiting: set[Follower] = set()
        self._listening: set[Follower] = set()
        self._places_due = 0.0
        self._is_closed = False
        self._task: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """All who wait go on with what they know."""
        self._is_closed = True
        for follower in (*self._waiting, *self._listening):
            follower.end()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def wait(self, user: str, ids: Collection[uuid.UUID], timeout_s: float) -> bool:
        """Whether all these jobs ended within the time. When too many wait already, nobody else does."""
        if timeout_s <= 0 or self._is_closed or len(self._waiting) >= self._most:
            return False
        follower = Follower(user, ids)
        deadline = time.monotonic() + timeout_s
        with self._among(self._waiting, follower):
            while not (follower.is_over or follower.is_ended):
                if not await follower.change(deadline - time.monotonic()):
                    break
        return follower.is_over

    @contextmanager
    def listen(self, user: str, job_id: uuid.UUID) -> Iterator[Follower]:
        """A follower of one job, for an event stream.

        Raises:
            TooMany: the user, or this gateway, has as many as it may.
        """
        if self._metrics.streams >= self._most:
            raise TooMany(f"this gateway has {self._most} event streams already")
        if sum(other.user == user for other in self._listening) >= MAX_PER_USER:
            raise TooMany(f"{MAX_PER_USER} event streams of generations are open already: close one")
        follower = Follower(user, [job_id])
        self._metrics.streams += 1
        self._places_due = 0.0  # who comes wants to know it at once
        try:
            with self._among(self._listening, follower):
                yield follower
        finally:
            self._metrics.streams -= 1

    @contextmanager
    def _among(self, followers: set[Follower], follower: Follower) -> Iterator[None]:
        if self._is_closed:
            follower.end()
        followers.add(follower)
        if self._task is None and not self._is_closed:
            self._task = asyncio.create_task(self._look())
        try:
            yield
        finally:
            followers.discard(follower)

    async def _look(self) -> None:
        """Ends when nobody waits any more, or by `close`."""
        while self._waiting or self._listening:
            started = time.monotonic()
            count_places = bool(self._listening) and started >= self._places_due
            if count_places:
                self._places_due = started + _PLACES_EVERY_S
            rest_s = _EVERY_S
            try:
                ids = {row_id for follower in (*self._waiting, *self._listening) for row_id in follower.ids}
                found = await states(self._primary, ids, count_places=count_places)
            except PrimaryUnavailable:
                rest_s = _AWAY_S
            except Exception:
                log.exception("following.failed")
                rest_s = _AWAY_S
            else:
                for follower in (*self._waiting, *self._listening):
                    if follower.ids <= ids:
                        follower.hear(found, knows_places=count_places)
                rest_s = max(_EVERY_S, _REST * (time.monotonic() - started))
            await asyncio.sleep(rest_s)
        self._task = None
