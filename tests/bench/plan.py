"""How much is measured. The quick run is for a look; numbers for others come from the full one."""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = ["FULL", "QUICK", "Plan"]


class Plan(NamedTuple):
    """Rounds are repeated for every system in turn, so that a slow minute of the machine meets them all."""

    name: str
    rounds: int
    round_s: int
    latency_rounds: int
    latency_s: int
    rotating_users: int
    writes: int
    reads_after_write: int
    runs: int
    arrivals: int
    waits: int
    seeds: int
    cold_users: int
    active_users: int
    known_users: int
    imported: int
    streams: int


FULL: Final = Plan(
    "full", rounds=5, round_s=4, latency_rounds=3, latency_s=3, rotating_users=200, writes=300,
    reads_after_write=200, runs=5, arrivals=1000, waits=200, seeds=40, cold_users=5, active_users=5000,
    known_users=20_000, imported=500, streams=5000,
)  # fmt: skip
QUICK: Final = Plan(
    "quick", rounds=3, round_s=2, latency_rounds=3, latency_s=1, rotating_users=200, writes=300,
    reads_after_write=50, runs=5, arrivals=400, waits=100, seeds=20, cold_users=3, active_users=400,
    known_users=2000, imported=150, streams=1000,
)  # fmt: skip
