"""How long the queues of generation are, for Prometheus: read every few seconds, not at every scrape."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from gateway.metrics import GatewayMetrics
from store.errors import PrimaryUnavailable
from store.overview import queue_depths
from store.primary import Primary

__all__ = ["QueueWatch"]

log = structlog.get_logger()

_EVERY_S: Final = 5.0


class QueueWatch:
    """Keeps `metrics.queues` up to date between `start` and `stop`. Empty while the primary does not answer: no figure
    is better than an old one."""

    def __init__(self, primary: Primary, metrics: GatewayMetrics) -> None:
        self._primary = primary
        self._metrics = metrics
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        """Ended by `stop`."""
        while True:
            try:
                self._metrics.queues = await queue_depths(self._primary)
            except PrimaryUnavailable:
                self._metrics.queues = []
            except Exception:
                self._metrics.queues = []
                log.exception("queues.failed")
            await asyncio.sleep(_EVERY_S)
