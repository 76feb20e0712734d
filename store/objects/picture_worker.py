"""One worker process that reads one picture at a time, within limits, and may be killed at any moment.

Tasks go to its standard input from the event loop itself, in pieces: a thread that sends them would hold the
interpreter's lock against readers.
"""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from typing import Final

import msgspec

from store.errors import BrokenPicture, PicturesBusy
from store.objects.finishing import Finished
from store.objects.picture_child import ANSWER, READY, SIZES, Finish, Prepare, encode_task

__all__ = ["PictureWorker"]

_START_LIMIT_S: Final = 60.0
"""A start takes 0.2 s; on a machine that swaps, or under a debugger, it may take much longer."""

_PIECE_BYTES: Final = 64 * 1024
_MOST_BYTES: Final = 2**28
"""Of an answer; the largest picture with its watermark is far from it. More is no answer of ours."""
_GONE: Final = (asyncio.IncompleteReadError, BrokenPipeError, ConnectionResetError, msgspec.DecodeError)
"""It ended, or talks nonsense: it is not trusted any more than the picture that it reads."""


class PictureWorker:
    """A process, started when first needed and again after it died."""

    def __init__(self, *, time_limit_s: float, memory_limit_bytes: int) -> None:
        self._time_limit_s: Final = time_limit_s
        self._memory_limit_bytes: Final = memory_limit_bytes
        self._process: Process | None = None

    async def run(self, task: Prepare | Finish, data: bytes) -> Finished:
        """What the process made of the picture; of `Prepare`, without bytes to keep.

        Raises:
            PictureError: as the task says; BrokenPicture, too, when it took too long or ended the process.
            PicturesBusy: no process starts.
        """
        process = await self._running()
        try:
            async with asyncio.timeout(self._time_limit_s):
                await _send(process, encode_task(task, data), data)
                return ANSWER.decode(await _receive(process)).result()
        except TimeoutError as error:
            self.kill()
            raise BrokenPicture(f"the picture took longer than {self._time_limit_s:g} s to read") from error
        except _GONE as error:
            self.kill()
            raise BrokenPicture("the picture ended the process that read it") from error
        except asyncio.CancelledError:
            self.kill()
            raise

    def kill(self) -> Process | None:
        """Ends the process, whatever it does; answers it. The next `run` starts another."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
        return process

    async def close(self) -> None:
        """Kills, and returns when the process is gone."""
        process = self.kill()
        if process is not None:
            await process.wait()

    async def _running(self) -> Process:
        """A process that is known to run. One that died while it was idle is replaced here: that is not the picture's
        fault."""
        if self._process is not None and _runs(self._process):
            return self._process
        self.kill()
        words = [sys.executable, "-m", "store.objects.picture_child", str(self._memory_limit_bytes), str(os.getpid())]
        try:
            async with asyncio.timeout(_START_LIMIT_S):
                # A session of its own: it steps back as a whole (see priority), and Ctrl-C is for its parent.
                process = self._process = await asyncio.create_subprocess_exec(
                    *words, stdin=PIPE, stdout=PIPE, start_new_session=True
                )
                await _ready(process)
                return process
        except (*_GONE, OSError, TimeoutError) as error:
            self.kill()
            raise PicturesBusy("the process that reads pictures does not start") from error
        except asyncio.CancelledError:
            self.kill()
            raise


def _runs(process: Process) -> bool:
    """What the kernel knows: asyncio learns of a death in a later turn of its loop."""
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:
        return False


async def _ready(process: Process) -> None:
    if await _receive(process) != READY:
        raise msgspec.DecodeError("not what a reader of pictures says first")


async def _send(process: Process, head: bytes, data: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(head)
    rest = memoryview(data)
    while rest:
        process.stdin.write(rest[:_PIECE_BYTES])
        rest = rest[_PIECE_BYTES:]
        await process.stdin.drain()


async def _receive(process: Process) -> bytes:
    assert process.stdout is not None
    size_bytes, _ = SIZES.unpack(await process.stdout.readexactly(SIZES.size))
    if size_bytes > _MOST_BYTES:
        raise msgspec.DecodeError(f"an answer of {size_bytes} bytes")
    return await process.stdout.readexactly(size_bytes)
