"""The machine and the versions that a run was made with."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Final

__all__ = ["describe"]

_PACKAGES: Final = ("peruse", "aiohttp", "asyncpg", "uvloop", "ray", "msgspec", "pillow")

_STEPS: Final = 1_000_000


def describe(*, postgres: str) -> dict[str, str]:
    """What to write beside the numbers, by name."""
    return {
        "CPU": f"{_from('/proc/cpuinfo', 'model name') or platform.processor()}, {_cores()}",
        "one core": _core_speed(),
        "memory": _from("/proc/meminfo", "MemTotal"),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "Postgres": postgres,
        "wrk": _wrk(),
        "packages": ", ".join(f"{name} {version(name)}" for name in _PACKAGES),
        "load before": ", ".join(f"{value:.2f}" for value in os.getloadavg()) + " (1, 5, 15 min; nothing is pinned)",
    }


def _core_speed() -> str:
    """A yardstick for other machines, and for this one at another hour: the best of five short loops."""
    best_s = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(_STEPS):
            pass
        best_s = min(best_s, time.perf_counter() - started)
    return f"{best_s / _STEPS * 1e9:.1f} ns per step of an empty Python loop"


def _cores() -> str:
    usable = len(os.sched_getaffinity(0))
    total = os.cpu_count() or usable
    return f"{usable} cores" if usable == total else f"{usable} of {total} cores"


def _from(path: str, name: str) -> str:
    """The first value of `name: value` in a file of the kernel's."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def _wrk() -> str:
    path = shutil.which("wrk")
    if path is None:
        return ""
    said = subprocess.run([path, "-v"], capture_output=True, text=True, check=False)
    return (said.stdout or said.stderr).splitlines()[0].partition(" Copyright")[0].removeprefix("wrk ").strip()
