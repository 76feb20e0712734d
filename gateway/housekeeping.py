"""What a gateway does by itself: the trash is emptied when its time is over, objects follow their rows, erasures that
were interrupted are finished, and answers kept for idempotency keys go after their day.

Every gateway does it, for every deployment has one, and it has the object store at hand. Any number may: each takes
what no other one holds.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

import structlog

from gateway.metrics import GatewayMetrics
from store.deletions import backlog, delete_due
from store.erasure import finish_erasures
from store.errors import PrimaryUnavailable
from store.idempotency import forget_old
from store.objects.interface import Objects
from store.primary import Primary
from store.trash import purge

__all__ = ["Housekeeping"]

log = structlog.get_logger()

_OBJECTS_EVERY_S: Final = 5.0
_ROWS_EVERY_S: Final = 60.0
_COUNT_EVERY_S: Final = 15.0  # about as often as somebody scrapes


class Housekeeping:
    """`start`, then `objects_soon` after a removal; `stop` at the end."""

    def __init__(self, primary: Primary, objects: Objects, metrics: GatewayMetrics, *, trash_s: float) -> None:
        """`trash_s` is how long an image stays in the trash, in seconds."""
        self._primary = primary
        self._objects = objects
        self._metrics = metrics
        self._trash_s = trash_s
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """What is under way ends half-way, and is due again later."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def objects_soon(self) -> None:
        """A row was removed: its objects need not wait for the next turn."""
        self._wanted.set()

    async def _run(self) -> None:
        """Ended by `stop`."""
        rows_due = count_due = time.monotonic()
        while True:
            try:
                if time.monotonic() >= rows_due:
                    rows_due = time.monotonic() + _ROWS_EVERY_S
                    await self._rows()
                await delete_due(self._primary, self._objects)
                if time.monotonic() >= count_due:
                    count_due = time.monotonic() + _COUNT_EVERY_S
                    self._metrics.deletions = await backlog(self._primary)
            except PrimaryUnavailable:
                pass
            except Exception:
                log.exception("housekeeping.failed")
            try:
                await asyncio.wait_for(self._wanted.wait(), _OBJECTS_EVERY_S)
            except TimeoutError:
                continue
            self._wanted.clear()

    async def _rows(self) -> None:
        removed = await purge(self._primary, keep_s=self._trash_s)
        if removed.images:
            log.info("trash.purged", images=removed.images, bytes=removed.bytes)
        for erased in await finish_erasures(self._primary):
            log.info("user.erasure_finished", **erased._asdict())
        await forget_old(self._primary)
