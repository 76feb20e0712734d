"""One worker process that reads one picture at a time, within limits, and may be killed at any moment."""

from __future__ import annotations

import asyncio
import ctypes
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import Final, TypeVar

from PIL import AvifImagePlugin

from store.errors import BrokenPicture, PicturesBusy

__all__ = ["PictureWorker"]

_START_LIMIT_S: Final = 60.0
"""A start takes 0.2 s; on a machine that swaps, or under a debugger, it may take much longer."""

_PR_SET_PDEATHSIG: Final = 1
_NICE: Final = 10
"""Beside a process of the usual priority it gets a tenth of a core: readers wait for nobody's picture."""

_Result = TypeVar("_Result")


class PictureWorker:
    """An executor with a single process, started when first needed and again after it died."""

    def __init__(
        self,
        warm_up: Callable[[], object],
        *,
        time_limit_s: float,
        memory_limit_bytes: int,
    ) -> None:
        """`warm_up` runs once in each new process, outside of the time limit: it pays for the imports."""
        self._warm_up: Final = warm_up
        self._time_limit_s: Final = time_limit_s
        self._memory_limit_bytes: Final = memory_limit_bytes
        self._executor: ProcessPoolExecutor | None = None

    async def run(self, call: Callable[[], _Result]) -> _Result:
        """Returns what the call returns in the process. `call` and its result must pickle.

        Raises: BrokenPicture when it took too long or ended the process, PicturesBusy when none starts.
        """
        running = await self._submit(call)
        try:
            async with asyncio.timeout(self._time_limit_s):
                return await asyncio.wrap_future(running)
        except TimeoutError as error:
            self.kill()
            raise BrokenPicture(f"the picture took longer than {self._time_limit_s:g} s to read") from error
        except BrokenProcessPool as error:
            self.kill()
            raise BrokenPicture("the picture ended the process that read it") from error
        except asyncio.CancelledError:
            self.kill()
            raise

    def kill(self) -> None:
        """Ends the process, whatever it does. The next `run` starts another."""
        executor = self._take()
        if executor is not None:
            executor.shutdown(wait=False)

    async def close(self) -> None:
        """Kills, and returns when the process is gone."""
        executor = self._take()
        if executor is not None:
            await asyncio.to_thread(executor.shutdown)

    def _take(self) -> ProcessPoolExecutor | None:
        executor, self._executor = self._executor, None
        if executor is not None:
            # What `kill_workers` of Python 3.14 does. The executor's own thread reaps the process, and fails
            # the call that it had.
            for process in list((executor._processes or {}).values()):
                process.kill()
        return executor

    async def _submit(self, call: Callable[[], _Result]) -> Future[_Result]:
        """Hands the call to a process that is known to run.

        A process that died while it was idle is replaced here: that is not the picture's fault.
        """
        if self._executor is not None:
            # The executor learns of a death on a thread of its own, a moment later than this asks.
            if all(process.is_alive() for process in list(self._executor._processes.values())):
                with suppress(BrokenProcessPool):
                    return self._executor.submit(call)
            self.kill()
        executor = self._executor = ProcessPoolExecutor(
            1,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_confine,
            initargs=(os.getpid(), self._memory_limit_bytes),
        )
        try:
            async with asyncio.timeout(_START_LIMIT_S):
                await asyncio.wrap_future(executor.submit(self._warm_up))
            return executor.submit(call)
        except (BrokenProcessPool, OSError) as error:
            self.kill()
            raise PicturesBusy("the process that reads pictures does not start") from error
        except asyncio.CancelledError:
            self.kill()
            raise


def _confine(parent_pid: int, memory_limit_bytes: int) -> None:
    """Runs first in the process: dies with its parent, leaves Ctrl-C to it, goes behind whoever answers requests, and
    cannot take all memory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        # Counts from the parent *thread* that started the process: the one that runs the event loop.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:  # It died before the line above could tell.
            os._exit(1)
    os.nice(_NICE)
    if sys.platform == "linux":
        with suppress(OSError):  # Some containers forbid it.
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))  # It never interrupts another one.
    # No file with a user's picture in it when Pillow crashes.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(ValueError, OSError):  # macOS has no such limit.
        resource.setrlimit(resource.RLIMIT_AS, (memory_limit_bytes, memory_limit_bytes))
    # One thread per processor would need address space for each of their stacks and heaps.
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
