"""Sync: an open replica pulls what changed since its cursor; a sweep finds those that should.

Pokes only say when to pull. All may be lost or doubled: the versions alone decide what is applied.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, Final

import structlog

from actors.active import Active
from actors.errors import DiskFull, ReplicaBroken
from actors.metrics import HostMetrics
from actors.replica import Applied
from actors.slots import Slots
from store.changes import START, Change, Cursor, Delta, Reset, changes_since, heads_of
from store.clock import Clock
from store.documents import Documents
from store.epoch import Bookmark
from store.errors import PrimaryUnavailable
from store.primary import Primary

__all__ = ["Sync"]

log = structlog.get_logger()

#: Users of one statement of a sweep: the loop takes 2 ms for the answer, and everybody waits.
_BATCH: Final = 500


class Sync:
    """Pulls and sweeps of one host.

    `on_reset` and `on_broken` are told about replicas that must be made anew, `on_applied` about every other
    pull: where the replica was before, and the kinds of rows that changed.
    """

    def __init__(
        self,
        primary: Primary,
        documents: Documents,
        *,
        clock: Clock,
        metrics: HostMetrics,
        slots: Slots,
        on_reset: Callable[[Active, Reset], None],
        on_broken: Callable[[Active, ReplicaBroken], None],
        on_applied: Callable[[Active, Bookmark, list[str]], None],
        concurrency: int,
    ) -> None:
        self._primary = primary
        self._documents = documents
        self._clock = clock
        self._metrics = metrics
        self._slots = slots
        self._on_reset = on_reset
        self._on_broken = on_broken
        self._on_applied = on_applied
        self._turns = asyncio.Semaphore(concurrency)
        #: Whom the next look is for, and that look until it is sent; one at a time is under way.
        self._unseen: set[Active] = set()
        self._looking: asyncio.Task[set[Active]] | None = None
        self._one_look = asyncio.Lock()

    async def pull(self, active: Active) -> int:
        """Bring a replica to head; answers how many rows changed.

        Callers share a pull only until it is sent: one under way may have read before the caller's own write.

        Raises:
            PrimaryUnavailable: the replica is as it was.
        """
        return await asyncio.shield(self.pull_soon(active))

    async def pull_forced(self, active: Active, floor: Bookmark | None, *, validate: bool) -> None:
        """`pull` because a reader says so: to reach `floor`, or just to be sure.

        A pull for a floor that it reaches is free. The others, for a floor that nobody can reach or to be sure, are
        20 a second per user; who comes after that waits for the next turn, together with all the others who do: so
        nobody loads the primary with made-up bookmarks.

        Raises:
            PrimaryUnavailable: the replica is as it was.
        """
        if not validate and active.lock.locked():
            async with active.lock:  # what is under way may bring it there, and nothing has to be asked again
                pass
            if not active.is_behind(floor):
                return
        if (pause_s := active.forced.pause_s(self._clock.monotonic())) > 0:
            await asyncio.sleep(pause_s)
        await self.pull(active)
        if validate or active.is_behind(floor):
            active.forced.spend()
        if active.is_behind(floor):
            log.info("bookmark.dropped", user=active.replica.user, asked=str(floor), at=active.replica.cursor.version)

    def pull_soon(self, active: Active) -> asyncio.Task[int]:
        """The pull that will be sent next; nobody has to wait for it. Failure costs nothing: the next sweep sees the
        same."""
        if active.waiting is None:
            active.waiting = asyncio.create_task(self._pull_in_turn(active))
            active.waiting.add_done_callback(_forget_error)
        return active.waiting

    async def _pull_in_turn(self, active: Active) -> int:
        me = asyncio.current_task()
        try:
            async with active.lock, self._turns, self._primary.connection() as connection:
                active.waiting = None  # from here on it is sent: later callers need another
                if active.is_closed:
                    return 0
                sent_at, sent_wall = self._clock.monotonic(), self._clock.wall()
                answer = await changes_since(connection, active.replica.user, active.replica.cursor)
            if active.is_closed:
                return 0
            return self._take(active, answer, sent_at, sent_wall)
        except PrimaryUnavailable:
            self._metrics.pull_failures += 1
            raise
        finally:
            if active.waiting is me:
                active.waiting = None

    def _take(self, active: Active, answer: Delta | Reset, sent_at: float, sent_wall: float) -> int:
        """Apply an answer. No await in here: a read must never meet half of it."""
        self._metrics.pulls += 1
        if isinstance(answer, Reset):
            self._slots.clear(active)
            self._on_reset(active, answer)
            return 0
        replica, before = active.replica, active.position
        if answer.head != replica.cursor:
            try:
                replica.apply(answer.head, map(self._applied, answer.changes))
            except DiskFull as error:
                active.is_full = True
                self._slots.clear(active)
                raise PrimaryUnavailable(str(error)) from error
            except ReplicaBroken as error:
                self._on_broken(active, error)
                return 0
            applied_s = self._clock.monotonic() - sent_at
            for waited_s in answer.waited_s:
                self._metrics.saw_visible(max(0.0, waited_s) + applied_s)
            self._metrics.changes_applied += len(answer.changes)
        active.is_full = active.must_pull = False
        active.verified_at, replica.synced_at = sent_at, sent_wall
        if replica.cursor[:2] == before:
            self._slots.verify(active)
        else:
            self._slots.stamp(active)  # after the commit, and before anybody is answered
        self._on_applied(active, before, sorted({change.kind for change in answer.changes}))
        return len(answer.changes)

    def _applied(self, change: Change) -> Applied:
        row = None if change.source is None else self._documents.row(change.kind, change.source)
        return Applied(change.kind, change.row_id, row)

    async def verify(self, active: Active) -> None:
        """Bring a replica to head that most likely is there, as one that was closed for a while: all who come in one
        turn, or while a look is under way, are looked at in one statement. Only those that it finds behind pull.

        Callers share a look until it is sent, as they share a pull.

        Raises:
            PrimaryUnavailable: the replica is as it was.
        """
        self._unseen.add(active)
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
            self._looking.add_done_callback(_forget_error)
        if active not in await asyncio.shield(self._looking):
            await self.pull(active)

    async def _look(self) -> set[Active]:
        """Compare those that were not seen yet with their heads; answers who is there."""
        me = asyncio.current_task()
        try:
            async with self._one_look, self._primary.connection() as connection:
                self._looking = None  # from here on it is sent: later callers need another
                actives, self._unseen = self._unseen, set()
                sent_at, sent_wall = self._clock.monotonic(), self._clock.wall()
                epoch, heads = await heads_of(connection, [active.replica.user for active in actives])
        except PrimaryUnavailable:
            self._metrics.pull_failures += 1
            raise
        finally:
            if self._looking is me:
                self._unseen, self._looking = set(), None
        nothing = START._replace(epoch=epoch)
        return {
            active
            for active in actives
            if self._is_at(active, heads.get(active.replica.user, nothing), sent_at, sent_wall)
        }

    def _is_at(self, active: Active, head: Cursor, sent_at: float, sent_wall: float) -> bool:
        """Whether a replica is at the head that was asked for at `sent_at`; if so, that is what it is known for."""
        if active.is_closed or active.replica.cursor != head:
            return False
        active.verified_at = max(active.verified_at, sent_at)
        active.replica.synced_at = sent_wall
        active.must_pull = False
        self._slots.verify(active)
        return True

    async def sweep(self, actives: dict[str, Active], asleep: list[str]) -> dict[str, Bookmark]:
        """Compare all active replicas with their heads, some hundred in one query; pull those that differ.

        Answers the heads of `asleep`, whose replicas are not open.

        Raises:
            PrimaryUnavailable: nothing is known; ages go on growing.
        """
        users = list(actives)
        sent_at = self._clock.monotonic()
        lagging = 0
        for batch in _batches(users):
            asked_at, asked_wall = self._clock.monotonic(), self._clock.wall()
            epoch, heads = await self._heads(batch)
            nothing = START._replace(epoch=epoch)
            for user in batch:
                active = actives.get(user)
                if active is None:
                    continue
                if not self._is_at(active, heads.get(user, nothing), asked_at, asked_wall):
                    lagging += 1
                    if active.verified_at < asked_at:  # a pull may have found out more since
                        self._slots.clear(active)
                    self.pull_soon(active)
        for active in actives.values():
            if active.verified_at < sent_at:  # opened while the question was under way
                self._slots.clear(active)
        self._slots.swept(sent_at)
        self._metrics.lagging = lagging
        at: dict[str, Bookmark] = {}
        for batch in _batches(asleep):
            epoch, heads = await self._heads(batch)
            nothing = START._replace(epoch=epoch)
            at.update((user, Bookmark(*heads.get(user, nothing)[:2])) for user in batch)
        self._metrics.sweeps += 1
        self._metrics.sweep_seconds += self._clock.monotonic() - sent_at
        return at

    async def _heads(self, users: list[str]) -> tuple[str, dict[str, Cursor]]:
        async with self._primary.connection() as connection:
            return await heads_of(connection, users)


def _batches(users: list[str]) -> Iterator[list[str]]:
    return (users[start : start + _BATCH] for start in range(0, len(users), _BATCH))


def _forget_error(task: asyncio.Task[Any]) -> None:
    """Failures are counted where they happen; whoever waits gets them too. Nobody may be waiting."""
    if not task.cancelled() and (error := task.exception()) and not isinstance(error, PrimaryUnavailable):
        log.error("pull.failed", error=repr(error))
