"""Writing about a job: only while it is ours, and as soon as the primary is there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import structlog

from store.epoch import Bookmark
from store.errors import PrimaryUnavailable
from store.generation.jobs import Claimed, hold
from store.primary import Connection, Primary

__all__ = ["Writer"]

log = structlog.get_logger()
T = TypeVar("T")

_WAITS_S: Final = (0.1, 0.3, 1.0, 2.0)


class Writer:
    """`on_change` hears of every commit."""

    def __init__(self, primary: Primary, on_change: Callable[[str, Bookmark], None]) -> None:
        self._primary, self._on_change = primary, on_change

    async def __call__(self, job: Claimed, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Run `work` in a transaction that holds the job, and commit it; `work` may run several times.

        A primary that is away is waited for: whoever has the job then decides. When it went away during COMMIT of the
        job's end, the next try finds that the job is over, which is Lost too.

        Raises:
            Lost: the job is not ours any more.
        """

        async def transaction(connection: Connection) -> T:
            await hold(connection, job)
            return await work(connection)

        failures = 0
        while True:
            try:
                result, bookmark = await self._primary.write(job.owner_id, transaction)
            except PrimaryUnavailable as error:
                log.warning("job.write_waits", job=str(job.id), reason=str(error))
                await asyncio.sleep(_WAITS_S[min(failures, len(_WAITS_S) - 1)])
                failures += 1
            else:
                self._on_change(job.owner_id, bookmark)
                return result
