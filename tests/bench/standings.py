"""Who read how fast: the samples of all rounds, and the lines made of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from tests.bench.load import Load
from tests.bench.result import Goal, Line, at_least, at_most

__all__ = ["GATED", "Sample", "Standings"]

_SECTION: Final = "hot read"
#: What Peruse is held against, by peer: how many times its rate.
_GOALS: Final[Mapping[str, Goal]] = {
    "bare": at_least(1),
    "postgres": at_least(5),
    "redis": at_least(3),
    "do_sql": at_least(10),
    "do_memory": at_least(4),
    "actor": at_least(10),
    "serve": at_least(30),
}
#: (key, name, of whom, to whom, goal): the other ratios.
_OTHERS: Final = (
    ("ratio_wire", "over the wire to bare aiohttp", "wire", "bare", at_least(0.9)),
    ("ratio_traced", "traced requests to bare aiohttp, varied", "traced", "bare_varied", at_least(1)),
    ("ratio_varied", "varied requests to bare aiohttp, varied too", "varied", "bare_varied", None),
    ("ratio_many", "many users in turn to bare aiohttp", "many", "bare", None),
    ("ratio_unchanged", "304 to 200", "unchanged", "peruse", at_least(1.1)),
    ("ratio_prompts", "prompt history to gallery", "prompts", "peruse", at_least(0.9)),
)
#: Whose CPU per read is held against a peer's, both in the same round: steadier than rates where a machine is shared.
_CPU: Final = (
    ("peruse", "bare"),
    ("many", "bare"),
    ("wire", "bare"),
    ("traced", "bare_varied"),
    ("varied", "bare_varied"),
    ("peruse", "postgres"),
)
#: Ratios to what was measured in the same round on the same stack: they say most about us and least about the hour.
GATED: Final = (
    "ratio_bare",
    "ratio_postgres",
    "ratio_wire",
    "ratio_traced",
    "ratio_varied",
    "ratio_many",
    *(f"cpu_{theirs}_to_{ours}" for ours, theirs in _CPU),
)


class Sample(NamedTuple):
    """One round: what wrk saw, and the CPU of each part, in µs per read."""

    load: Load
    cpu_us: Mapping[str, float]


class Standings:
    """Samples by contender, in the order in which they were taken."""

    def __init__(self, *, page_bytes: int, users: int, connections: int) -> None:
        self._note = f"a page of {page_bytes:,} bytes"
        self._connections = connections
        self._labels: dict[str, str] = {}
        self._samples: dict[str, list[Sample]] = {}
        self._beside: dict[str, list[Sample]] = {}
        self._p50_us: dict[str, list[float]] = {}
        self._missing: dict[str, str] = {}

    def add(self, key: str, label: str, sample: Sample, *, beside: Sample | None = None) -> None:
        """A round of `key`. `beside` is Peruse's of the same round; None: that of the same number."""
        self._labels[key] = label
        self._samples.setdefault(key, []).append(sample)
        if beside is not None:
            self._beside.setdefault(key, []).append(beside)

    def add_latency(self, key: str, p50_us: float) -> None:
        self._p50_us.setdefault(key, []).append(p50_us)

    def missing(self, key: str, label: str, reason: str) -> None:
        """`key` could not be measured, for this reason."""
        self._labels[key], self._missing[key] = label, reason

    def gated(self) -> list[Line]:
        """Of the lines those that the gate holds."""
        return [line for line in (*self._ratios(), *self._cost()) if line.key in GATED]

    def lines(self) -> list[Line]:
        return [*self._throughput(), *self._ratios(), *self._latency(), *self._cost()]

    def _rates(self, key: str) -> list[float]:
        return [sample.load.reads_per_s for sample in self._samples[key]]

    def _throughput(self) -> list[Line]:
        lines = []
        for key, label in self._labels.items():
            note = self._missing.get(key) or (self._note if key == "peruse" else "")
            values = [] if key in self._missing else self._rates(key)
            lines.append(Line(_SECTION, label, "reads/s", values, note=note, key=f"rps_{key}"))
        p99 = [sample.load.p99_ms for sample in self._samples["peruse"]]
        each = [sample.load.bytes_each for sample in self._samples["unchanged"]]
        return [
            *lines,
            Line(_SECTION, f"p99 with {self._connections} at once, Peruse", "ms", p99),
            Line(_SECTION, "bytes of a 304, all of them head", "bytes", each),
        ]

    def _ratios(self) -> list[Line]:
        lines = []
        for key, label in self._labels.items():
            if key in _GOALS or key == "nginx":
                name, goal = f"Peruse to {label}", _GOALS.get(key)
                lines.append(self._ratio(f"ratio_{key}", name, "peruse", key, goal))
        return lines + [self._ratio(*other) for other in _OTHERS]

    def _ratio(self, key: str, name: str, ours: str, theirs: str, goal: Goal | None) -> Line:
        if theirs in self._missing:
            return Line(_SECTION, name, "×", [], goal, self._missing[theirs], key=key)
        beside = self._beside.get(theirs)
        of = [sample.load.reads_per_s for sample in beside] if beside else self._rates(ours)
        # Of more rounds than theirs, the first are of the same number.
        values = [our / their for our, their in zip(of, self._rates(theirs), strict=False)]
        return Line(_SECTION, name, "×", values, goal, "of the same round", key=key)

    def _latency(self) -> list[Line]:
        lines = [
            Line(_SECTION, f"p50 one at a time, {self._labels[key]}", "µs", values, key=f"p50_{key}")
            for key, values in self._p50_us.items()
        ]
        ratios = [ours / bare for ours, bare in zip(self._p50_us["peruse"], self._p50_us["bare"], strict=True)]
        name = "p50 one at a time, Peruse to bare aiohttp"
        return [*lines, Line(_SECTION, name, "×", ratios, at_most(1.5), key="ratio_p50")]

    def _cost(self) -> list[Line]:
        lines = []
        for key, samples in self._samples.items():
            for part in samples[0].cpu_us:
                name = f"CPU per read, {self._labels[key]}{f': {part}' if part else ''}"
                values = [sample.cpu_us[part] for sample in samples]
                lines.append(Line(_SECTION, name, "µs", values, key=f"cpu_{key}{f'_{part}' if part else ''}"))
        return lines + [self._cpu_ratio(ours, theirs) for ours, theirs in _CPU if theirs not in self._missing]

    def _cpu_ratio(self, ours: str, theirs: str) -> Line:
        mine, other = ([sum(sample.cpu_us.values()) for sample in self._samples[key]] for key in (ours, theirs))
        name = f"CPU per read, {self._labels[theirs]} to {self._labels[ours]}"
        values = [their / our for our, their in zip(mine, other, strict=False)]
        return Line(_SECTION, name, "×", values, note="more is better", key=f"cpu_{theirs}_to_{ours}")
