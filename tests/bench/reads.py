"""The hot read: 50 images of one gallery, by Peruse in several ways and by its peers, in turn; and 50 prompts."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple

import uvloop

from tests.bench.client import Target, activate, bearer, scrape
from tests.bench.gate import falls
from tests.bench.instance import Instance
from tests.bench.load import Load, Requests, Wrk
from tests.bench.openloop import measure_open_loop
from tests.bench.peers.systems import PEERS, RAY_PEERS, Bed, Peer, System, check_same_images
from tests.bench.plan import Plan
from tests.bench.process import cpu_s, pss_bytes, tree
from tests.bench.result import BenchError, Line
from tests.bench.runs import COMMITTED
from tests.bench.standings import Sample, Standings

__all__ = ["HISTORY", "PATH", "ReadBench"]

PATH: Final = "/api/images"
HISTORY: Final = "/api/prompts"
_CONNECTIONS: Final = 32
#: Those whose ratios are held by the gate, side by side with what they are held against: a second later the machine may
#: be another one.
_NEIGHBOURS: Final = ("traced", "bare_varied", "varied", "many", "wire", "bare", "peruse", "postgres")
#: More than a gateway remembers (gateway/repeats.py), so that none is recognised by all its bytes.
_VARIANTS: Final = 40_000
#: A header that names a trace, and one that nobody knows.
_TRACE: Final = "X-Request-Id"
_ANY: Final = "X-Bench"


class _Contender(NamedTuple):
    """Somebody who answers reads. `parts` are pids whose CPU is counted apart, by name; `is_ours`: has /metrics."""

    key: str
    label: str
    url: str
    requests: Requests
    parts: Mapping[str, Sequence[int]]
    is_ours: bool = False


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
        targets = [Target(PATH, bearer(t)) for t in (token, *rotating)]
        uvloop.run(activate(self._instance.url, [*targets, Target(HISTORY, bearer(token))]))
        page, etag = get(self._instance.url + PATH, token)
        file = self._folder / "page.json"
        file.write_bytes(page)
        standings = Standings(page_bytes=len(page), users=len(rotating), connections=_CONNECTIONS)
        with ExitStack() as stack:
            postmaster = self._instance.postmaster_pid()
            bed = Bed(file, user, self._instance.primary_url(), postmaster, stack)
            ours = self._ours(stack, token, rotating, etag)
            peers = self._peers(bed, PEERS, token, standings)
            check_same_images(page, get(_url_of(peers, "postgres"), token)[0])
            self._rounds([*ours, *peers, self._varied(peers[0], token)], standings)
            self._latencies([*ours[:2], *peers], standings)
            urls = {"peruse": self._instance.url, "bare": peers[0].url}
            loops = measure_open_loop(urls, PATH, token, self._plan, say=self._say)
        actor_pss = self._on_ray(Bed(file, user, "", 0, ExitStack()), ours[0], token, standings)
        return [*standings.lines(), *loops, *actor_pss]

    def _ours(self, stack: ExitStack, token: str, rotating: Sequence[str], etag: str) -> list[_Contender]:
        """Peruse: as it is, another list, requests that differ in the name of their trace or in anything, many users,
        unchanged pages, and without zero-hop."""
        url, one = self._instance.url, [(PATH, bearer(token))]
        history = [(HISTORY, bearer(token))]
        many = [(PATH, bearer(each)) for each in rotating]
        unchanged = [(PATH, {**bearer(token), "If-None-Match": etag})]
        parts = {"gateway": [self._gateway], "host": [self._host]}
        wire_url, wire_pid = self._instance.start_gateway(stack, {"PERUSE_ZERO_HOP": "0"})
        uvloop.run(activate(wire_url, [Target(PATH, bearer(token))]))
        requests = self._wrk.requests
        return [
            _Contender("peruse", "Peruse, one user, repeated", url, requests("one", one), parts, True),
            _Contender("prompts", "Peruse, prompt history", url, requests("prompts", history), parts, True),
            _Contender("traced", "Peruse, one user, traced requests", url,
                       requests("traced", one, variants=_VARIANTS, varying=_TRACE), parts, True),
            _Contender("varied", "Peruse, one user, varied requests", url,
                       requests("varied", one, variants=_VARIANTS, varying=_ANY), parts, True),
            _Contender("many", f"Peruse, {len(many)} users in turn", url, requests("many", many), parts, True),
            _Contender("unchanged", "Peruse, 304", url, requests("unchanged", unchanged), parts, True),
            _Contender("wire", "Peruse over the wire (no zero-hop)", wire_url, requests("one", one),
                       {"gateway": [wire_pid], "host": [self._host]}, True),
        ]  # fmt: skip

    def _peers(self, bed: Bed, peers: Sequence[Peer], token: str, standings: Standings) -> list[_Contender]:
        """Those that could be started; the others are noted as missing, with the reason."""
        started = []
        for peer in peers:
            self._say(f"starting {peer.label}")
            try:
                started.append(self._contender(peer, peer.start(bed), token))
            except BenchError as error:
                standings.missing(peer.key, peer.label, str(error))
        return started

    def _contender(self, peer: Peer, system: System, token: str) -> _Contender:
        path = "/" + system.url.split("/", 3)[3]
        requests = self._wrk.requests(peer.key, [(path, bearer(token))])
        return _Contender(peer.key, peer.label, system.url, requests, {"": sorted(tree(system.roots))})

    def _varied(self, bare: _Contender, token: str) -> _Contender:
        requests = self._wrk.requests("bare_varied", [(PATH, bearer(token))], variants=_VARIANTS, varying=_ANY)
        return bare._replace(key="bare_varied", label="bare aiohttp, varied requests", requests=requests)

    def _rounds(self, contenders: Sequence[_Contender], standings: Standings) -> None:
        others = {one.key: one for one in contenders}
        near = [others.pop(key) for key in _NEIGHBOURS if key in others]
        for number in range(1, self._plan.rounds + 1):
            self._say(f"hot read: round {number} of {self._plan.rounds}, {len(contenders)} contenders")
            self._round([*near, *others.values()], standings)
        for number in range(1, self._plan.second_look + 1):
            fallen = falls(standings.gated(), COMMITTED)
            if not fallen:
                return
            self._say(f"{fallen[0]}? Second look, round {number} of {self._plan.second_look}")
            self._round(near, standings)

    def _round(self, contenders: Sequence[_Contender], standings: Standings) -> None:
        for contender in contenders:
            standings.add(contender.key, contender.label, self._sample(contender))

    def _sample(self, contender: _Contender) -> Sample:
        before = uvloop.run(scrape(contender.url)) if contender.is_ours else None
        started = {name: sum(map(cpu_s, pids)) for name, pids in contender.parts.items()}
        load = self._wrk.run(contender.url, contender.requests, connections=_CONNECTIONS, duration_s=self._plan.round_s)
        cpu_us = {
            name: (sum(map(cpu_s, pids)) - started[name]) / load.requests * 1e6
            for name, pids in contender.parts.items()
        }
        if before is not None:
            after = uvloop.run(scrape(contender.url))
            _check_counts(load, *(after.value("peruse_reads_total", **only) - before.value("peruse_reads_total", **only)
                                  for only in ({}, {"source": "replica"})))  # fmt: skip
        if contender.key == "unchanged" and load.bytes_each > 1024:
            raise BenchError(f"a 304 has {load.bytes_each:.0f} bytes, expected a head and no body")
        return Sample(load, cpu_us)

    def _latencies(self, contenders: Sequence[_Contender], standings: Standings) -> None:
        for number in range(1, self._plan.latency_rounds + 1):
            self._say(f"one read at a time: round {number} of {self._plan.latency_rounds}")
            for one in contenders:
                load = self._wrk.run(one.url, one.requests, connections=1, duration_s=self._plan.latency_s)
                standings.add_latency(one.key, load.p50_ms * 1000)

    def _on_ray(self, bed: Bed, ours: _Contender, token: str, standings: Standings) -> list[Line]:
        """Each Ray peer alone with Peruse, in turn; and what a process for one user takes."""
        lines = []
        for peer in RAY_PEERS:
            if not self._plan.ray_rounds:
                standings.missing(peer.key, peer.label, "left to the full run")
                continue
            self._say(f"starting {peer.label}")
            with ExitStack() as stack:
                try:
                    system = peer.start(bed._replace(stack=stack))
                except BenchError as error:
                    standings.missing(peer.key, peer.label, str(error))
                    continue
                theirs = self._contender(peer, system, token)
                for _ in range(self._plan.ray_rounds):
                    beside = self._sample(ours)
                    standings.add(peer.key, peer.label, self._sample(theirs), beside=beside)
                if system.one_user_pid:
                    pss_mb = pss_bytes(system.one_user_pid) / 1e6
                    lines.append(Line("memory", "one Ray actor, PSS", "MB", [pss_mb], key="actor_pss_mb"))
        return lines


def get(url: str, token: str) -> tuple[bytes, str]:
    """The body of one read, and its ETag; empty when it has none."""
    with urllib.request.urlopen(urllib.request.Request(url, headers=bearer(token)), timeout=10) as answer:
        return bytes(answer.read()), answer.headers["ETag"] or ""


def _url_of(contenders: Sequence[_Contender], key: str) -> str:
    return next(one.url for one in contenders if one.key == key)


def _check_counts(load: Load, total: float, replica: float) -> None:
    """wrk's own count, held against the server's: the last answers may be on their way when wrk ends."""
    if abs(total - load.requests) > 0.01 * load.requests + _CONNECTIONS:
        raise BenchError(f"wrk counted {load.requests} reads and the gateway {total:.0f}, expected the same")
    if replica < 0.99 * total:
        raise BenchError(f"replicas answered {replica:.0f} of {total:.0f} reads, expected at least 99 of 100")
