"""Whom the kernel runs first where there are fewer processors than processes that want one.

Readers wait for gateways and hosts, and for microseconds; nobody waits like that for a thumbnail. Niceness alone does
not say so: since Linux 6.6 whoever runs keeps the processor for a slice of milliseconds, whoever wakes up meanwhile,
unless that one's slice is shorter (`sched_setattr`, Linux 6.12; earlier kernels take no notice). And where sessions are
groups (`/proc/sys/kernel/sched_autogroup_enabled`, the default of most distributions), niceness counts within a
session only, so that a process that steps back needs a session of its own, whose group steps back.

Performance only: nothing is wrong, and nothing is told, where the kernel does not listen. Measured with
`python -m tests.bench.uploads`.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

__all__ = ["run_first", "run_last"]

_SHORT_NS: Final = 100_000
_LONG_NS: Final = 100_000_000
"""The shortest and the longest slice that the kernel accepts."""

_NICE: Final = 10
"""Beside a process of the usual priority that is a tenth of a core: little, and still some."""

#: The system call's number.
_SCHED_SETATTR: Final = {"x86_64": 314, "aarch64": 274}
#: size, policy, flags, nice, priority, runtime (a slice for these policies), deadline, period
_ATTRIBUTES: Final = struct.Struct("=IIQiIQQQ")


def run_first() -> None:
    """The calling thread, and the threads and processes that it starts, take a processor soon after they wake up, and
    no more of it than before."""
    if sys.platform == "linux":
        _take_slices(_SHORT_NS)


def run_last() -> None:
    """This process, which has to lead a session of its own, gives way to whoever wakes up, and interrupts nobody."""
    os.nice(_NICE)
    if sys.platform != "linux":
        return
    with suppress(OSError):  # Some containers forbid it.
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    _take_slices(_LONG_NS)
    with suppress(OSError):  # No groups of sessions here.
        Path("/proc/self/autogroup").write_text(str(_NICE))


def _take_slices(slice_ns: int) -> None:
    """Policy and niceness stay as whoever started us chose them."""
    number = _SCHED_SETATTR.get(platform.machine())
    if number is not None:
        policy, nice = os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)
        wanted = _ATTRIBUTES.pack(_ATTRIBUTES.size, policy, 0, nice, 0, slice_ns, 0, 0)
        ctypes.CDLL(None).syscall(number, 0, wanted, 0)
