"""The hot read: 50 images of one gallery, against a bare handler and against Postgres, in turn."""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

import uvloop

from tests.bench.client import Target, activate, bearer, scrape
from tests.bench.instance import Instance
from tests.bench.load import Load, Wrk
from tests.bench.peers import PRIMARY_VARIABLE
from tests.bench.plan import Plan
from tests.bench.process import Process, cpu_s
from tests.bench.result import BenchError, Line, at_least

__all__ = ["PATH", "ReadBench"]

PATH: Final = "/api/images"
_CONNECTIONS: Final = 32
_SECTION: Final = "hot read"


class _Round(NamedTuple):
    """One round through Peruse, with what it cost there."""

    load: Load
    gateway_us: float
    host_us: float


class ReadBench:
    """Peers are started once; `measure` takes the rounds."""

    def __init__(self, instance: Instance, wrk: Wrk, plan: Plan, *, folder: Path, say: Callable[[str], None]) -> None:
        self._instance = instance
        self._wrk = wrk
        self._plan = plan
        self._folder = folder
        self._say = say
        self._gateway, self._host = instance.gateway_pid(), instance.host_pid()

    def measure(self, user: str, token: str, rotating: list[str]) -> list[Line]:
        """Lines of the section. `rotating` are tokens of as many users, who read in turn."""
        own, many = self._wrk.tokens("one", [token]), self._wrk.tokens("many", rotating)
        url = self._instance.url + PATH
        uvloop.run(activate(self._instance.url, [Target(PATH, bearer(t)) for t in (token, *rotating)]))
        page = get(url, token)
        with ExitStack() as stack:
            (bare, bare_pid), (postgres, _) = self._start_peers(stack, user, page)
            check_same_images(page, get(postgres, token))
            loads: dict[str, list[Load]] = {"bare": [], "postgres": []}
            rounds: dict[str, list[_Round]] = {"one": [], "many": []}
            bare_us: list[float] = []
            for number in range(1, self._plan.rounds + 1):
                self._say(f"hot read: round {number} of {self._plan.rounds}")
                before_s = cpu_s(bare_pid)
                loads["bare"].append(self._load(bare, own))
                bare_us.append((cpu_s(bare_pid) - before_s) / loads["bare"][-1].requests * 1e6)
                rounds["one"].append(self._round(url, own))
                loads["postgres"].append(self._load(postgres, own))
                rounds["many"].append(self._round(url, many))
            latencies = self._latencies({"bare": bare, "peruse": url, "postgres": postgres}, own)
        return [
            *_throughput(loads, rounds, len(page), len(rotating)),
            *_latency(latencies),
            *_cost(rounds["one"], bare_us),
        ]

    def _start_peers(self, stack: ExitStack, user: str, page: bytes) -> tuple[tuple[str, int], tuple[str, int]]:
        """URL and pid of the bare handler, and of the one that asks Postgres."""
        file = self._folder / "page.json"
        file.write_bytes(page)
        environment = {PRIMARY_VARIABLE: self._instance.primary_url()}
        peers = []
        for kind, argument in (("bare", str(file)), ("postgres", user)):
            command = [sys.executable, "-m", "tests.bench.peers", kind, argument]
            peer = Process(f"peer {kind}", command, log=self._folder / "peers.log", environment=environment)
            stack.callback(peer.stop)
            peers.append((peer.wait_line("ready ", timeout_s=30) + PATH, peer.pid))
        return peers[0], peers[1]

    def _load(self, url: str, tokens: Path) -> Load:
        return self._wrk.run(url, tokens, connections=_CONNECTIONS, duration_s=self._plan.round_s)

    def _round(self, url: str, tokens: Path) -> _Round:
        before, started = uvloop.run(scrape(self._instance.url)), (cpu_s(self._gateway), cpu_s(self._host))
        load = self._load(url, tokens)
        gateway_s, host_s = cpu_s(self._gateway) - started[0], cpu_s(self._host) - started[1]
        after = uvloop.run(scrape(self._instance.url))
        total, replica = (
            after.value("peruse_reads_total", **only) - before.value("peruse_reads_total", **only)
            for only in ({}, {"source": "replica"})
        )
        # wrk's own count, held against the server's: the last answers may be on their way when wrk ends.
        if abs(total - load.requests) > 0.01 * load.requests + _CONNECTIONS:
            raise BenchError(f"wrk counted {load.requests} reads and the gateway {total:.0f}, expected the same")
        if replica < 0.99 * total:
            raise BenchError(f"replicas answered {replica:.0f} of {total:.0f} reads, expected at least 99 of 100")
        return _Round(load, gateway_s / load.requests * 1e6, host_s / load.requests * 1e6)

    def _latencies(self, urls: dict[str, str], tokens: Path) -> dict[str, list[Load]]:
        loads: dict[str, list[Load]] = {name: [] for name in urls}
        for number in range(1, self._plan.latency_rounds + 1):
            self._say(f"one read at a time: round {number} of {self._plan.latency_rounds}")
            for name, url in urls.items():
                loads[name].append(self._wrk.run(url, tokens, connections=1, duration_s=self._plan.latency_s))
        return loads


def get(url: str, token: str) -> bytes:
    """The body of one read."""
    with urllib.request.urlopen(urllib.request.Request(url, headers=bearer(token)), timeout=10) as answer:
        return bytes(answer.read())


def check_same_images(ours: bytes, theirs: bytes) -> None:
    """Raises BenchError when two pages do not hold the same documents."""
    mine, other = (_documents(body) for body in (ours, theirs))
    if mine != other:
        differing = sum(a != b for a, b in zip(mine, other, strict=False))
        raise BenchError(f"the peer's page differs: {len(other)} images for {len(mine)}, {differing} of them not equal")


def _documents(body: bytes) -> list[Any]:
    images: list[Any] = json.loads(body)["images"]
    return images


def _throughput(
    loads: dict[str, list[Load]], rounds: dict[str, list[_Round]], page_bytes: int, users: int
) -> list[Line]:
    rates = {name: [load.reads_per_s for load in taken] for name, taken in loads.items()}
    rates |= {name: [taken.load.reads_per_s for taken in of] for name, of in rounds.items()}
    to_bare = [ours / theirs for ours, theirs in zip(rates["one"], rates["bare"], strict=True)]
    to_postgres = [ours / theirs for ours, theirs in zip(rates["one"], rates["postgres"], strict=True)]
    p99 = [taken.load.p99_ms for taken in rounds["one"]]
    size = f"a page of {page_bytes:,} bytes"
    return [
        Line(_SECTION, "peruse, one user", "reads/s", rates["one"], note=size, key="rps_peruse"),
        Line(_SECTION, f"peruse, {users} users in turn", "reads/s", rates["many"], key="rps_many"),
        Line(_SECTION, "bare aiohttp handler, same bytes", "reads/s", rates["bare"], key="rps_bare"),
        Line(_SECTION, "aiohttp + Postgres, one json_agg", "reads/s", rates["postgres"], key="rps_postgres"),
        Line(_SECTION, "peruse to bare aiohttp", "×", to_bare, at_least(0.7), "of the same round"),
        Line(_SECTION, "peruse to aiohttp + Postgres", "×", to_postgres, at_least(3), "of the same round"),
        Line(_SECTION, f"p99 with {_CONNECTIONS} at once, peruse", "ms", p99),
    ]  # fmt: skip


def _latency(loads: dict[str, list[Load]]) -> list[Line]:
    names = {"peruse": "peruse", "bare": "bare aiohttp", "postgres": "aiohttp + Postgres"}
    return [
        Line(
            _SECTION,
            f"p50 one at a time, {text}",
            "µs",
            [load.p50_ms * 1000 for load in loads[name]],
            key=f"p50_{name}",
        )
        for name, text in names.items()
    ]


def _cost(rounds: list[_Round], bare_us: list[float]) -> list[Line]:
    return [
        Line(_SECTION, "CPU per read, gateway", "µs", [taken.gateway_us for taken in rounds], note="user and system"),
        Line(_SECTION, "CPU per read, host", "µs", [taken.host_us for taken in rounds], note="user and system"),
        Line(_SECTION, "CPU per read, bare aiohttp handler", "µs", bare_us, note="user and system"),
    ]
