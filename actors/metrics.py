"""What a host counts. Plain numbers, added on the read path at the price of an attribute; read once per scrape."""

from __future__ import annotations

import resource
from bisect import bisect_left
from pathlib import Path
from typing import Final

import msgspec

__all__ = ["BUCKETS_S", "HostMetrics", "HostStats", "resident_bytes"]

#: Upper bounds of the commit → applied histogram, in seconds.
BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class HostMetrics(msgspec.Struct):
    """Counters since the host started, and the commit → applied histogram.

    lagging          of the last sweep: replicas that were not at head
    reactivations    opened again within a minute of having been closed for want of room
    shed             reads refused because opening replicas took too much of the loop's time
    divergences      audits that found rows unlike the primary's
    """

    reads: int = 0
    kept_reads: int = 0
    pulls: int = 0
    pull_failures: int = 0
    changes_applied: int = 0
    sweeps: int = 0
    sweep_seconds: float = 0.0
    lagging: int = 0
    seeds: int = 0
    seed_rows: int = 0
    seed_seconds: float = 0.0
    seed_wait_seconds: float = 0.0
    seed_failures: int = 0
    activations: int = 0
    reactivations: int = 0
    passivations: dict[str, int] = {}
    files_removed: int = 0
    broken: int = 0
    overloads: int = 0
    shed: int = 0
    audits: int = 0
    divergences: int = 0
    resets: dict[str, int] = {}
    visible_counts: list[int] = msgspec.field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    visible_seconds: float = 0.0

    def saw_visible(self, seconds: float) -> None:
        """One version became visible this long after its commit."""
        self.visible_counts[bisect_left(BUCKETS_S, seconds)] += 1
        self.visible_seconds += seconds

    def saw_reset(self, reason: str) -> None:
        self.resets[reason] = self.resets.get(reason, 0) + 1

    def saw_passivation(self, cause: str) -> None:
        self.passivations[cause] = self.passivations.get(cause, 0) + 1


class HostStats(msgspec.Struct):
    """A host as it describes itself: counters, and what it holds now."""

    host: str
    generation: int
    pid: int
    metrics: HostMetrics
    active: int
    seeding: int
    watched: int
    open_bytes: int
    kept_bytes: int
    disk_bytes: int
    resident_bytes: int
    in_flight: int
    lag_s: float
    is_stuck: bool


def resident_bytes() -> int:
    """Memory of this process."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
