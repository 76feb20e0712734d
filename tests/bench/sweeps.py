"""Sweeps: what a host's look at the heads of all its active users costs the primary, every second."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import asyncpg

from store.changes import heads_of
from tests.bench.gallery import user_names
from tests.bench.result import BenchError, Line, at_most

__all__ = ["measure_sweeps"]

_USERS: Final = 10_000
_SWEEPS: Final = 30
_WARM: Final = 5
_SECTION: Final = f"sweep of {_USERS:,} active users"


async def measure_sweeps(primary_url: str) -> list[Line]:
    """The sweep's own statement on one connection, as a host sends it once a second."""
    names = user_names("swept", _USERS)
    connection = await asyncpg.connect(primary_url)
    try:
        await connection.execute("insert into users (id) select unnest($1::text[])", names)
        await connection.execute("vacuum analyze sync_user")
        pid = connection.get_server_pid()
        cpu_ms, wall_ms = [], []
        for _ in range(_SWEEPS):
            before_s, started = _cpu_s(pid), time.perf_counter()
            _, heads = await heads_of(connection, names)
            wall_ms.append((time.perf_counter() - started) * 1000)
            cpu_ms.append((_cpu_s(pid) - before_s) * 1000)
            if len(heads) != _USERS:
                raise BenchError(f"a sweep found {len(heads)} heads, expected {_USERS}")
    finally:
        await connection.close()
    return [
        Line(_SECTION, "CPU of the primary per second", "ms", cpu_ms[_WARM:], at_most(50), "its backend, one sweep"),
        Line(_SECTION, "from asking to 10,000 heads", "ms", wall_ms[_WARM:], note="with what the host does with them"),
    ]


def _cpu_s(pid: int) -> float:
    """Processor time of a process of one thread, to the nanosecond."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
