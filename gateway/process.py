"""A child process that is kept running: started, watched, started again when it dies, stopped with us."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import structlog

__all__ = ["Child", "end_leftovers"]

log = structlog.get_logger()

_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 5.0
_STEADY_S: Final = 30.0  # alive this long: the next death starts again with the first pause
_MAX_LOG_BYTES: Final = 10 * 2**20
_PR_SET_PDEATHSIG: Final = 1


class Child:
    """One kept process. Its pid is written down in `<run>/<name>.pid`, so that a later start can end what an
    earlier, killed one left behind."""

    def __init__(self, name: str, command: Sequence[str], *, data: Path, pass_fds: Sequence[int] = ()) -> None:
        self.name = name
        self.restarts = 0
        self._command = command
        self._pass_fds = pass_fds
        self._log_path = data / "logs" / f"{name}.log"
        self._pid_path = data / "run" / f"{name}.pid"
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start it, and keep it running until `stop`."""
        await self._spawn()
        self._keeper = asyncio.create_task(self._keep())

    async def stop(self, *, timeout_s: float) -> None:
        """SIGTERM, and SIGKILL when it takes longer than `timeout_s`."""
        self._stopping = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        process = self._process
        if process is not None and process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), timeout_s)
            except TimeoutError:
                log.warning("child.killed", child=self.name, after_s=timeout_s)
                process.kill()
                await process.wait()
        if process is not None:
            _end_session(process.pid)
        self._pid_path.unlink(missing_ok=True)

    async def _spawn(self) -> None:
        self._log_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._log_path.exists() and self._log_path.stat().st_size > _MAX_LOG_BYTES:
            self._log_path.replace(self._log_path.with_suffix(".log.old"))
        with self._log_path.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=tuple(self._pass_fds),
                start_new_session=True,  # Ctrl-C in a terminal is for us: we stop them in order
                preexec_fn=_die_with_parent,
            )
        self._pid_path.write_text(f"{self._process.pid} {_start_time(self._process.pid)}")

    async def _keep(self) -> None:
        """Ended by `stop`."""
        pause_s = _FIRST_PAUSE_S
        while True:
            assert self._process is not None
            started_at = time.monotonic()
            code = await self._process.wait()
            _end_session(self._process.pid)
            self.restarts += 1
            if time.monotonic() - started_at > _STEADY_S:
                pause_s = _FIRST_PAUSE_S
            log.warning("child.died", child=self.name, code=code, again_in_s=pause_s, last=self._last_line())
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
            await self._spawn()

    def _last_line(self) -> str:
        lines = self._log_path.read_bytes()[-2000:].decode(errors="replace").splitlines()
        return lines[-1][:300] if lines else ""


def _die_with_parent() -> None:
    """In the child, before exec: end when we do, even if we are killed. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat after the command's name; empty when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _start_time(pid: int) -> str:
    """When `pid` was started, in clock ticks since boot: with it, a pid names one process for ever."""
    fields = _stat(pid)
    return fields[19] if fields else ""


def _end_session(leader: int) -> None:
    """End what a child, which led a session of its own, has started and left behind: Ray's agents outlive it."""
    for entry in Path("/proc").glob("[0-9]*"):
        fields = _stat(int(entry.name))
        if fields and int(fields[3]) == leader:
            try:
                os.kill(int(entry.name), signal.SIGKILL)
            except ProcessLookupError:
                pass


def end_leftovers(run: Path, *, timeout_s: float = 5.0) -> list[str]:
    """End processes that an earlier run wrote down in `run` and that are still there; answers their names."""
    ended = []
    for path in run.glob("*.pid"):
        pid, _, started = path.read_text().partition(" ")
        if pid.isdigit() and started and _start_time(int(pid)) == started:
            ended.append(path.stem)
            os.kill(int(pid), signal.SIGTERM)
            deadline = time.monotonic() + timeout_s
            while _start_time(int(pid)) == started:
                if time.monotonic() > deadline:
                    os.kill(int(pid), signal.SIGKILL)
                    deadline += timeout_s
                time.sleep(0.02)
        if pid.isdigit():
            _end_session(int(pid))
        path.unlink(missing_ok=True)
    return ended
