"""A job in work: what its calls share while one worker has it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import datetime
from typing import Any, Final, TypeVar

from store.errors import PrimaryUnavailable
from store.generation.errors import Canceled
from store.generation.jobs import Beaten, Claimed, set_progress
from store.generation.providers import Progress
from store.primary import Primary

__all__ = ["Work"]

T = TypeVar("T")

_PROGRESS_S: Final = 1.0


class Work:
    """What is known of a job besides its row."""

    def __init__(self, job: Claimed) -> None:
        self.job = job
        #: Whether a provider was asked, or may have been by an earlier worker: then it is resumed, not begun again.
        self.is_begun = job.fence > 1
        #: Its last transaction is under way, which finds out by itself whether the job is still ours.
        self.is_ending = False
        #: Outcomes that nobody knows: each may have been paid for.
        self.unknown = 0
        self._canceled = asyncio.Event()
        self._nudged = asyncio.Event()
        self._nudged_at: datetime | None = None
        self._progress: dict[int, Progress] = {}
        self._calls = 1
        self._told_at = 0.0
        if job.is_canceled:
            self._canceled.set()

    @property
    def is_canceled(self) -> bool:
        """Whether the user wants it to end."""
        return self._canceled.is_set()

    def hear(self, beaten: Beaten) -> None:
        """What the queue's row says now."""
        if beaten.is_canceled:
            self._canceled.set()
        if self._nudged_at is not None and beaten.nudged_at > self._nudged_at:
            self._nudged.set()
        self._nudged_at = beaten.nudged_at

    async def until_canceled(self, doing: Coroutine[Any, Any, T]) -> T:
        """What `doing` answers; it is dropped when the user wants the job to end.

        Raises:
            Canceled: it was dropped.
        """
        task = asyncio.ensure_future(doing)
        waiting = asyncio.ensure_future(self._canceled.wait())
        try:
            await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise Canceled("its user canceled it")
        finally:
            waiting.cancel()
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def sleep(self, seconds: float) -> None:
        """Until it is time to look at a task again: sooner when the provider called back.

        Raises:
            Canceled: the user wants the job to end.
        """
        await self.until_canceled(self._nudge(seconds))

    async def _nudge(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._nudged.wait(), seconds)
            self._nudged.clear()
        except TimeoutError:
            pass

    def expect(self, calls: int) -> None:
        """How many calls the job takes."""
        self._calls = calls

    async def progress(self, primary: Primary, call: int, progress: Progress) -> None:
        """Tell how far a call is, at most once a second for the whole job."""
        self._progress[call] = progress
        now = asyncio.get_running_loop().time()
        if now - self._told_at < _PROGRESS_S:
            return
        self._told_at = now
        known = self._progress.values()
        fractions = [one.fraction for one in known if one.fraction is not None]
        positions = [one.queue_position for one in known if one.queue_position is not None]
        fraction = min(1.0, sum(fractions) / self._calls) if fractions else None
        try:
            await set_progress(primary, self.job, fraction, max(positions, default=None))
        except PrimaryUnavailable:
            pass  # the next one tells it as well
