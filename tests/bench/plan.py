"""How much is measured. The quick run is for a look, in under three minutes; numbers for others come from the full."""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = ["FULL", "QUICK", "Plan"]


class Plan(NamedTuple):
    """Rounds are repeated for every system in turn, so that a slow minute of the machine meets them all. When a ratio
    seems to have fallen after `rounds`, up to `second_look` more are taken of those that the gate holds. What takes
    long and is held against nothing else is left out by 0 `ray_rounds`, 0 `zipf_rounds`, 0 `streams`, and without
    generation."""

    name: str
    rounds: int
    second_look: int
    round_s: int
    ray_rounds: int
    latency_rounds: int
    latency_s: int
    open_runs: int
    open_s: float
    rotating_users: int
    writes: int
    reads_after_write: int
    runs: int
    arrivals: int
    waits: int
    seeds: int
    cold_users: int
    large_rows: int
    page_samples: int
    active_users: int
    known_users: int
    zipf_rounds: int
    zipf_s: int
    imported: int
    streams: int
    with_generation: bool


FULL: Final = Plan(
    "full", rounds=5, second_look=0, round_s=2, ray_rounds=3, latency_rounds=3, latency_s=1, open_runs=5, open_s=2.0,
    rotating_users=200, writes=200, reads_after_write=100, runs=5, arrivals=1000, waits=200, seeds=30, cold_users=4,
    large_rows=100_000, page_samples=30, active_users=5000, known_users=20_000, zipf_rounds=3, zipf_s=4, imported=500,
    streams=5000, with_generation=True,
)  # fmt: skip
QUICK: Final = Plan(
    "quick", rounds=3, second_look=4, round_s=1, ray_rounds=0, latency_rounds=1, latency_s=1, open_runs=1, open_s=1.0,
    rotating_users=200, writes=100, reads_after_write=30, runs=3, arrivals=400, waits=60, seeds=20, cold_users=2,
    large_rows=10_000, page_samples=10, active_users=400, known_users=2000, zipf_rounds=0, zipf_s=0, imported=100,
    streams=0, with_generation=False,
)  # fmt: skip
