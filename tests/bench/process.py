"""A child process: what it prints, what CPU it has used, and its end by pid."""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.bench.result import BenchError

__all__ = ["ROOT", "Process", "cpu_s", "holder_of", "pss_bytes", "tree"]

ROOT: Final = Path(__file__).parents[2]
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_PR_SET_PDEATHSIG: Final = 1


class Process:
    """Started at once, in a session of its own: Ctrl-C is for the bench, which stops its children in order."""

    def __init__(
        self, name: str, command: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self._log = log
        self._lines: queue.Queue[str | None] = queue.Queue()
        # The settings of whoever runs the bench must not change what is measured.
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("PERUSE_")}
        with log.open("ab") as errors:
            self._popen = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**inherited, "PYTHONUNBUFFERED": "1", **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        # Ends when the process closes its output.
        threading.Thread(target=self._drain, daemon=True).start()

    @property
    def pid(self) -> int:
        return self._popen.pid

    def wait_line(self, prefix: str, *, timeout_s: float) -> str:
        """The first line from here on that begins with `prefix`, without it.

        Raises:
            BenchError: it ended or took longer; with the last of what it wrote to stderr.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise BenchError(f"{self.name} did not say {prefix!r} within {timeout_s:g} s{self._last()}") from None
            if line is None:
                raise BenchError(f"{self.name} ended before it said {prefix!r}{self._last()}")
            if line.startswith(prefix):
                return line.removeprefix(prefix).strip()

    def wait_until(self, is_so: Callable[[], bool], *, what: str, timeout_s: float = 30.0) -> None:
        """Return when `is_so`, for programs that say nothing.

        Raises:
            BenchError: it ended or took longer.
        """
        deadline = time.monotonic() + timeout_s
        while not is_so():
            if self._popen.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"{self.name} did not {what} within {timeout_s:g} s{self._last()}")
            time.sleep(0.02)

    def stop(self, *, timeout_s: float = 15.0) -> None:
        """SIGTERM, then SIGKILL; returns when it has ended. Nothing happens the second time."""
        if self._popen.poll() is None:
            self._popen.terminate()
            try:
                self._popen.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self._popen.kill()
                self._popen.wait()

    def _drain(self) -> None:
        assert self._popen.stdout is not None
        for line in self._popen.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _last(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()[-8:]
        return "".join(f"\n  {line[:300]}" for line in lines)


def _end_with_parent() -> None:
    """In the child, before exec: end when the bench does, even if it is killed. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def cpu_s(pid: int) -> float:
    """Processor time of a process and all its threads, user and system, in steps of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def tree(roots: Iterable[int]) -> set[int]:
    """The processes `roots` with all their descendants."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it ended
        children.setdefault(parent, []).append(int(stat.parts[2]))
    found, waiting = set(), list(roots)
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting += children.get(pid, ())
    return found


def pss_bytes(pid: int) -> int:
    """Memory of a process, with its share of what it has in common with others."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise BenchError(f"/proc/{pid}/smaps_rollup tells no Pss")


def holder_of(path: Path) -> int:
    """The pid of the one process that has the file `path` open.

    Raises:
        BenchError: none or several have.
    """
    wanted = path.resolve()
    holders = set()
    for handle in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if handle.readlink() == wanted:
                holders.add(int(handle.parts[2]))
        except OSError:
            continue  # it ended, or it is not ours to look at
    if len(holders) != 1:
        raise BenchError(f"{path} is open in {len(holders)} processes, expected 1")
    return holders.pop()
