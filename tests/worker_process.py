"""A worker without Ray, in a process of its own, to be measured and killed.

    python -m tests.worker_process DATABASE FOLDER [--noop]

Settings come from the environment. Each line on standard output is its state as JSON; the first one says that it
claims. `--noop` has `builtin` answer at once with one small picture.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actors.config import HostSettings, WorkerSettings
from actors.worker import GenerationWorker
from store.config import StoreSettings
from store.generation.config import ProviderSettings
from store.generation.providers import Done, Output, Request
from store.generation.providers.builtin import Builtin
from store.logs import configure
from tests.world import png

__all__ = ["WorkerProcess"]

_SAYS_S = 0.1
_LOOP_S = 0.01


class WorkerProcess:
    """One such process: `start`, then `kill` or `stop`."""

    def __init__(
        self, database: str, folder: Path, *, noop: bool = False, env: Mapping[str, str] | None = None
    ) -> None:
        self._command = [sys.executable, "-m", "tests.worker_process", database, str(folder)]
        self._command += ["--noop"] if noop else []
        self._env = {**os.environ, **(env or {})}
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self.says: dict[str, Any] = {}

    async def start(self, *, timeout_s: float = 30.0) -> None:
        """Returns when it claims jobs."""
        self._process = await asyncio.create_subprocess_exec(
            *self._command, env=self._env, stdout=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(timeout_s):
            await self._read()
        self._reader = asyncio.create_task(self._keep_reading())

    async def kill(self) -> None:
        """kill -9."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> int:
        """SIGTERM; answers the exit code."""
        return await self._end(signal.SIGTERM)

    async def _end(self, number: int) -> int:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(number)
        code = await asyncio.wait_for(self._process.wait(), 30.0)
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        return code

    async def _keep_reading(self) -> None:
        while True:
            await self._read()

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise EOFError("the worker has ended")
        self.says = json.loads(line)


async def _live(database: str, folder: Path) -> None:
    worker = GenerationWorker(
        folder,
        slot=0,
        primary_url=database,
        store=StoreSettings.load(folder),
        hosts=HostSettings.load(folder),
        providers=ProviderSettings.load(folder),
        settings=WorkerSettings.load(folder),
    )
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await worker.start()
    telling = asyncio.create_task(_tell(worker))
    await stop.wait()
    telling.cancel()
    await worker.stop()


async def _tell(worker: GenerationWorker) -> None:
    """Ended by its caller. `late_ms` is how long the loop was blocked at most since the last line."""
    while True:
        late_s, until = 0.0, time.monotonic() + _SAYS_S
        while (before := time.monotonic()) < until:
            await asyncio.sleep(_LOOP_S)
            late_s = max(late_s, time.monotonic() - before - _LOOP_S)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        rss_mb = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
        print(json.dumps({"running": worker.running, "rss_mb": rss_mb, "late_ms": late_s * 1000}), flush=True)


def _answer_at_once() -> None:
    picture = png()

    async def submit(self: Builtin, request: Request, *, key: object = None) -> Done:
        return Done((Output(picture, seed=request.seed),))

    Builtin.submit = submit  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("database")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--noop", action="store_true")
    given = parser.parse_args()
    configure(process="worker", level="warning", stream=sys.stderr)  # standard output is for what is told
    if given.noop:
        _answer_at_once()
    import uvloop

    uvloop.run(_live(given.database, given.folder))


if __name__ == "__main__":
    main()
