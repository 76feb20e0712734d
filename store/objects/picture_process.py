"""Pictures that nobody trusts are read in processes of their own, which may die without harm."""

from __future__ import annotations

import asyncio
import functools

from store.errors import BrokenPicture, PicturesBusy
from store.objects.finishing import Finished
from store.objects.picture_child import Finish, Prepare
from store.objects.picture_worker import PictureWorker
from store.objects.pictures import MAX_BYTES, MAX_PIXELS, Picture, sniff
from store.objects.watermark import check_watermark

__all__ = ["PictureProcess"]


class PictureProcess:
    """`prepare` and `finish` in worker processes, each with limits; belongs to the event loop it is first used in.

    One that hangs or dies takes nobody else's picture with it.
    """

    def __init__(
        self,
        *,
        max_workers: int = 1,
        max_waiting: int = 16,
        time_limit_s: float = 60.0,
        memory_limit_bytes: int = 2 * 2**30,
        max_bytes: int = MAX_BYTES,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """`time_limit_s` counts from when a worker has the picture, not while it waits for one: the largest take a
        second of CPU, with a watermark several, and a busy machine gives a worker a tenth of a core. A single worker
        leaves the other core of a small machine to readers.
        """
        self._max_bytes, self._max_pixels = max_bytes, max_pixels
        self._max_waiting, self._waiting = max_waiting, 0
        self._workers = [
            PictureWorker(time_limit_s=time_limit_s, memory_limit_bytes=memory_limit_bytes) for _ in range(max_workers)
        ]
        # The last one used is the first one used again: workers are only started under load.
        self._idle: asyncio.LifoQueue[PictureWorker] = asyncio.LifoQueue()
        for worker in self._workers:
            self._idle.put_nowait(worker)
        self._tasks: set[asyncio.Task[Finished]] = set()
        self._is_closed = False

    async def prepare(self, data: bytes) -> Picture:
        """Returns what `prepare` returns, and raises what it raises.

        A picture that takes too long, or that its worker dies of, is a BrokenPicture.
        A caller who is cancelled leaves the worker to finish, so that the next picture gets an idle one.

        Raises: PicturesBusy when `max_waiting` others wait already, and after `close`.
        """
        task = Prepare(self._max_bytes, self._max_pixels)
        return (await self._run(task, data)).picture

    async def finish(self, data: bytes, *, watermark: str | None = None, tag: bool = True) -> Finished:
        """Returns what `finish` returns, the bytes to keep and their picture, and raises what it raises; limits and
        callers as with `prepare`.

        Raises: InvalidValue when the text cannot be written, before anything of the picture is read.
        """
        if watermark:
            check_watermark(watermark)
        return await self._run(Finish(self._max_bytes, self._max_pixels, watermark or None, tag), data)

    async def _run(self, task: Prepare | Finish, data: bytes) -> Finished:
        sniff(data, max_bytes=self._max_bytes)
        if self._idle.empty() and self._waiting >= self._max_waiting:
            raise PicturesBusy(f"{self._waiting} pictures wait already")
        self._waiting += 1
        try:
            worker = await self._idle.get()
        finally:
            self._waiting -= 1
        working = asyncio.create_task(self._work(worker, task, data))
        self._tasks.add(working)
        working.add_done_callback(functools.partial(self._release, worker))
        return await asyncio.shield(working)

    async def close(self) -> None:
        """Ends the workers and fails whoever waits, with PicturesBusy. May be called twice."""
        self._is_closed = True
        await asyncio.gather(*(worker.close() for worker in self._workers))
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _work(self, worker: PictureWorker, task: Prepare | Finish, data: bytes) -> Finished:
        try:
            if not self._is_closed:
                return await worker.run(task, data)
        except BrokenPicture:
            # Of a worker that `close` killed, nobody can tell what the picture was worth.
            if not self._is_closed:
                raise
        raise PicturesBusy("no pictures are read any more")

    def _release(self, worker: PictureWorker, task: asyncio.Task[Finished]) -> None:
        """Gives the worker to the next one, however this one ended, and whether or not its caller waited."""
        self._idle.put_nowait(worker)
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # Read, so that asyncio does not log what a cancelled caller left behind.
