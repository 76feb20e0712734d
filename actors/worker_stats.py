"""What workers say of themselves: a small file each, beside the sockets of hosts, for the gateways of their machine.

A worker answers nobody and nobody calls it, so it has no place on the wire. A file that was not renewed for a while
belongs to a worker that is gone.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

import msgspec

from store.generation.tally import Tally

__all__ = ["STATS_S", "WorkerStats", "read_worker_stats", "remove_worker_stats", "write_worker_stats"]

#: Between two writes of the file.
STATS_S: Final = 2.0
_GONE_S: Final = 5 * STATS_S


class WorkerStats(msgspec.Struct):
    """A worker as it describes itself; `worker` is its place, the same after a restart."""

    worker: str
    pid: int
    running: int
    resident_bytes: int
    tally: Tally


def write_worker_stats(data: Path, slot: int, stats: WorkerStats) -> None:
    """Renew the worker's file, whole or not at all."""
    path = _path(data, slot)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_bytes(msgspec.json.encode(stats))
    temporary.replace(path)


def remove_worker_stats(data: Path, slot: int) -> None:
    _path(data, slot).unlink(missing_ok=True)


def read_worker_stats(data: Path) -> list[WorkerStats]:
    """Those of the workers that run on this machine, by slot."""
    found = []
    for path in sorted((data / "run" / "workers").glob("*.json")):
        try:
            if time.time() - path.stat().st_mtime < _GONE_S:
                found.append(msgspec.json.decode(path.read_bytes(), type=WorkerStats))
        except (FileNotFoundError, msgspec.MsgspecError):
            continue  # it has just ended, or is of another build
    return found


def _path(data: Path, slot: int) -> Path:
    return data / "run" / "workers" / f"{slot}.json"
