"""Reads that come when they come: a schedule fixed beforehand, and latency from the moment each was due.

A generator that waits for slow answers asks less just when it matters ("coordinated omission"). Here the moments are
drawn first, at random with a fixed seed; a read that finds all connections taken waits, and its wait is counted.
"""

from __future__ import annotations

import gc
import itertools
import random
import re
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from statistics import median
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from tests.bench.client import bearer
from tests.bench.plan import Plan
from tests.bench.result import BenchError, Line, at_most

__all__ = ["Connection", "measure_open_loop", "request_of", "run_at"]

_SECTION: Final = "reads by schedule"
_CONNECTIONS: Final = 64
_SHARES: Final = (50, 80)
_SEED: Final = 1
_LENGTH: Final = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)
_END: Final = b"\r\n\r\n"
#: A wait shorter than this costs more to enter than to sit out.
_SPIN_S: Final = 0.0001
_FLOOR_MS: Final = 3.0
_CEILING_RUNS: Final = 3
_CEILING_READS: Final = 20_000
_WHO: Final = {"peruse": "Peruse", "bare": "bare aiohttp"}


class Connection:
    """A kept connection with at most one read under way."""

    _buffer = memoryview(bytearray(2**20))

    def __init__(self, url: str) -> None:
        where = urlsplit(url)
        self.socket = socket.create_connection((where.hostname, where.port or 80), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.due = 0.0
        self._missing_bytes = 0

    def receive(self) -> bool:
        """Take what is there of the answer; True when that was the last of it.

        Raises:
            BenchError: the connection ended, or the answer is no 200.
        """
        got = self.socket.recv_into(self._buffer)
        if not got:
            raise BenchError("a connection was closed in the middle of an answer")
        if not self._missing_bytes:
            head = bytes(self._buffer[: min(got, 4096)])
            end, length = head.find(_END), _LENGTH.search(head)
            if not head.startswith(b"HTTP/1.1 200") or end < 0 or length is None:
                raise BenchError(f"expected a 200 with its length, got {head[:200]!r}")
            self._missing_bytes = end + len(_END) + int(length[1])
        self._missing_bytes -= got
        return not self._missing_bytes

    def ask(self, request: bytes) -> float:
        """One read, waited for; milliseconds to its last byte."""
        started = time.perf_counter()
        self.socket.sendall(request)
        while not self.receive():
            pass
        return (time.perf_counter() - started) * 1000


class _Run(NamedTuple):
    """Latencies in milliseconds, ascending; `late_ms`: p99 of how late the generator itself was."""

    took_ms: list[float]
    late_ms: float

    def percentile(self, share: float) -> float:
        return self.took_ms[min(len(self.took_ms) - 1, int(share * len(self.took_ms)))]


def request_of(path: str, headers: Mapping[str, str]) -> bytes:
    lines = [f"GET {path} HTTP/1.1", "Host: bench", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + _END


def measure_open_loop(
    urls: Mapping[str, str], path: str, token: str, plan: Plan, *, say: Callable[[str], None]
) -> list[Line]:
    """p50, p99 and p99.9 of each of `urls` at shares of its ceiling, interleaved.

    The ceiling is what this very generator reaches when all reads are due at once: it needs more of the machine than
    wrk, and a share of wrk's rate could be more than it can ask for.
    """
    runs: dict[tuple[str, int], list[_Run]] = {}
    request = request_of(path, bearer(token))
    ceilings = {name: _ceiling(url, request) for name, url in urls.items()}
    for number in range(1, plan.open_runs + 1):
        say(f"reads by schedule: run {number} of {plan.open_runs}")
        for share in _SHARES:
            for name, url in urls.items():
                arrivals = random.Random(_SEED + number)
                gaps = (arrivals.expovariate(ceilings[name] * share / 100) for _ in itertools.count())
                due = list(itertools.takewhile(lambda moment: moment < plan.open_s, itertools.accumulate(gaps)))
                runs.setdefault((name, share), []).append(run_at(url, request, due))
    return [
        *(Line(_SECTION, f"ceiling with this generator, {_WHO[name]}", "reads/s", [rate])
          for name, rate in ceilings.items()),
        *(line for (name, share), of in runs.items() for line in _lines(name, share, of, ceilings[name])),
    ]  # fmt: skip


def _ceiling(url: str, request: bytes) -> float:
    """Median reads a second when the next read is always due."""
    rates = []
    for _ in range(_CEILING_RUNS):
        took_ms = run_at(url, request, [0.0] * _CEILING_READS).took_ms
        rates.append(len(took_ms) / took_ms[-1] * 1000)
    return median(rates)


def run_at(url: str, request: bytes, due: list[float]) -> _Run:
    """Ask at each moment of `due`, in seconds from now."""
    connections = [Connection(url) for _ in range(_CONNECTIONS)]
    gc.collect()
    gc.disable()
    try:
        for connection in connections:
            connection.ask(request)
        return _keep_to(due, connections, request)
    finally:
        gc.enable()
        for connection in connections:
            connection.socket.close()


def _keep_to(due: list[float], connections: list[Connection], request: bytes) -> _Run:
    poller, by_fd = select.epoll(), {one.socket.fileno(): one for one in connections}
    for fd in by_fd:
        poller.register(fd, select.EPOLLIN)
    free, waiting, clock = list(connections), deque[float](), time.perf_counter
    took_s: list[float] = []
    late_s: list[float] = []
    start, sent, count = clock() + 0.01, 0, len(due)
    while len(took_s) < count:
        now = clock() - start
        while sent < count and due[sent] <= now:
            late_s.append(now - due[sent])
            waiting.append(due[sent])
            sent += 1
        while waiting and free:
            connection = free.pop()
            connection.due = waiting.popleft()
            connection.socket.send(request)
        events = poller.poll(0)
        if not events:
            pause_s = due[sent] + start - clock() if sent < count else 0.1
            if pause_s > _SPIN_S:
                select.select([poller], [], [], pause_s)  # epoll's own timeout is a millisecond coarse
            continue
        for fd, _ in events:
            connection = by_fd[fd]
            if connection.receive():
                took_s.append(clock() - start - connection.due)
                free.append(connection)
    poller.close()
    late_s.sort()
    return _Run(sorted(took * 1000 for took in took_s), late_s[int(0.99 * len(late_s))] * 1000)


def _lines(name: str, share: int, runs: list[_Run], ceiling: float) -> list[Line]:
    who = _WHO[name]
    p50, p99, p999 = ([run.percentile(part) for run in runs] for part in (0.5, 0.99, 0.999))
    is_held = name == "peruse" and share == 50
    goal = at_most(round(max(4 * median(p50), _FLOOR_MS), 2)) if is_held else None
    late = median(run.late_ms for run in runs)
    note = f"{ceiling * share / 100:,.0f} reads/s; the generator's own delay, p99: {late:.2f} ms"
    key = f"open_{name}_{share}"
    return [
        Line(_SECTION, f"p50 at {share} % load, {who}", "ms", p50, note=note, key=f"{key}_p50"),
        Line(_SECTION, f"p99 at {share} % load, {who}", "ms", p99, goal, key=f"{key}_p99"),
        Line(_SECTION, f"p99.9 at {share} % load, {who}", "ms", p999, key=f"{key}_p999"),
    ]
