"""Writes the figures of deploy/CAPACITY.md from the last full growth run: `python -m tests.bench.capacity`.

The model is a sum: what is there anyway, plus so much per active user, per known user, per read.
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any, Final, NamedTuple

from tests.bench.runs import GROWN, write_between

_DOCUMENT: Final = "deploy/CAPACITY.md"
_PAGE: Final = 50


class _Costs(NamedTuple):
    """Per active user: MB of a host, and ms of CPU per second of host and primary while nobody reads. Per read:
    µs of CPU. Per known user: MB of disk. `idle_mb`: a host with nobody active."""

    active_mb: float
    host_ms: float
    primary_ms: float
    read_us: float
    known_mb: float
    idle_mb: float


class _Wish(NamedTuple):
    """What is to be served, and by which nodes. `used`: the share of cores and memory that one plans with."""

    known: int = 10_000_000
    active: int = 500_000
    reads_per_active_s: float = 0.1
    cores: int = 8
    memory_gb: int = 32
    disk_gb: int = 1000
    used: float = 0.6


def main() -> int:
    grown = json.loads(GROWN.read_text())
    costs = _costs(grown["curves"])
    return write_between(
        _DOCUMENT, "growth", "\n".join([*_measured(grown), "", *_per_thousand(costs)])
    ) or write_between(_DOCUMENT, "extrapolation", "\n".join(_extrapolated(costs, _Wish())))


def _costs(curves: list[dict[str, Any]]) -> _Costs:
    by_name = {(curve["name"], curve["x"]): curve for curve in curves}
    read_us = dict(by_name["hot read, gateway", "images per page"]["points"])[_PAGE]
    known = by_name["files", "known users (files)"]
    host = by_name["host", "active users"]
    return _Costs(
        active_mb=host["slope"],
        host_ms=by_name["host, nobody reads", "active users"]["slope"],
        primary_ms=by_name["primary, nobody reads", "active users"]["slope"],
        read_us=read_us,
        known_mb=known["slope"],
        idle_mb=host["fixed"],
    )


def _measured(grown: dict[str, Any]) -> list[str]:
    rows = ["| what | over | measured at (x: y) | law |", "|---|---|---|---|"]
    for curve in grown["curves"]:
        points = ", ".join(f"{x:,.0f}: {y:,.4g}" for x, y in curve["points"])
        rows.append(f"| {curve['name']}, {curve['y']} | {curve['x']} | {points} | {curve['law']} |")
    machine = grown["machine"]
    return [
        *rows,
        "",
        f"{machine['CPU']}; {machine['memory']}; {machine['Python']}; Postgres {machine['Postgres']}; load before: "
        f"{machine['load before'].partition(' (')[0]}. Everything at once, with 8,000 of 100,000 known users active "
        f"over two hosts (Postgres, Ray, gateway and hosts): {grown['full_house_mb']:,.0f} MB PSS.",
    ]


def _per_thousand(costs: _Costs) -> list[str]:
    return [
        "| per 1,000 active users (10 images each, one page kept) | |",
        "|---|---|",
        f"| memory of hosts | {costs.active_mb * 1000:,.0f} MB, beside {costs.idle_mb:,.0f} MB of each host |",
        f"| cores of hosts while nobody reads | {costs.host_ms:.3g} |",
        f"| cores of the primary while nobody reads | {costs.primary_ms:.3g} |",
        f"| cores of gateways at one read of {_PAGE} images per user and 10 s | {costs.read_us * 100 / 1e6:.3g} |",
        f"| disk per 1,000 known users | {costs.known_mb * 1000:,.0f} MB |",
    ]


def _extrapolated(costs: _Costs, wish: _Wish) -> list[str]:
    memory_gb = wish.active * costs.active_mb / 1000
    host_cores = wish.active * costs.host_ms / 1000
    read_cores = wish.active * wish.reads_per_active_s * costs.read_us / 1e6
    primary_cores = wish.active * costs.primary_ms / 1000
    disk_gb = wish.known * costs.known_mb / 1000
    by_memory = math.ceil(memory_gb / (wish.memory_gb * wish.used))
    by_cores = math.ceil((host_cores + read_cores) / (wish.cores * wish.used))
    by_disk = math.ceil(disk_gb / (wish.disk_gb * wish.used))
    nodes = max(by_memory, by_cores, by_disk, 2)
    return [
        f"{wish.known:,} known users, {wish.active:,} of them active at once, each reading a page every "
        f"{1 / wish.reads_per_active_s:g} s ({wish.active * wish.reads_per_active_s:,.0f} reads/s), on nodes of "
        f"{wish.cores} cores, {wish.memory_gb} GB and {wish.disk_gb} GB of disk, each used to {wish.used:.0%}:",
        "",
        "| needs | in all | nodes |",
        "|---|---|---|",
        f"| memory of replicas | {memory_gb:,.0f} GB | {by_memory} |",
        f"| cores: replicas at rest {host_cores:.1f}, reads {read_cores:.1f} "
        f"| {host_cores + read_cores:.1f} | {by_cores} |",
        f"| disk, every user's file kept | {disk_gb:,.0f} GB | {by_disk} |",
        f"| **nodes** | | **{nodes}**, and one more so that one may be lost |",
        f"| primary: sweeps and audits | {primary_cores:.1f} cores | beside its writes |",
    ]


if __name__ == "__main__":
    sys.exit(main())
