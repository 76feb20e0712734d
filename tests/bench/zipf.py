"""More users than a host has room for, some far more often than others: what the bounded memory costs."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import accumulate
from statistics import median
from typing import Final, NamedTuple

import uvloop

from tests.bench.client import Target, activate, bearer, scrape
from tests.bench.instance import Instance
from tests.bench.load import Load, Requests, Wrk
from tests.bench.plan import Plan
from tests.bench.process import cpu_s
from tests.bench.reads import PATH
from tests.bench.result import Line, at_least

__all__ = ["budget_mb", "measure_zipf"]

_SECTION: Final = "Zipf over ten times the host's memory"
_EXPONENT: Final = 1.1
_TIMES: Final = 10
_DRAWS: Final = 60_000
_CONNECTIONS: Final = 32
_LEAST_MB: Final = 8
_SEED: Final = 1


class _Round(NamedTuple):
    """Per read: replicas opened, reads that the host answered, those of them for which it had to ask SQLite, and reads
    that the primary answered."""

    load: Load
    cpu_us: float
    opened: float
    by_host: float
    by_sqlite: float
    by_primary: float


def budget_mb(users: int, *, user_kb: float) -> int:
    """PERUSE_HOST_MEMORY_MB that is a tenth of what `users` take."""
    return max(_LEAST_MB, round(users * user_kb * 1000 / _TIMES / 2**20))


def measure_zipf(
    instance: Instance, wrk: Wrk, users: Sequence[str], plan: Plan, *, say: Callable[[str], None]
) -> list[Line]:
    """Reads of `users` by rank, against as many of the first alone. Each has a replica's file, few are open."""
    tokens = [instance.token(user) for user in users]
    uvloop.run(activate(instance.url, [Target(PATH, bearer(token)) for token in tokens]))
    weights = list(accumulate(rank**-_EXPONENT for rank in range(1, len(users) + 1)))
    drawn = random.Random(_SEED).choices(tokens, cum_weights=weights, k=_DRAWS)
    zipf = wrk.requests("zipf", [(PATH, bearer(token)) for token in drawn])
    hot = wrk.requests("hot", [(PATH, bearer(tokens[0]))] * 2)
    taken: dict[str, list[_Round]] = {"hot": [], "zipf": []}
    wrk.run(instance.url, zipf, connections=_CONNECTIONS, duration_s=plan.round_s)
    for number in range(1, plan.zipf_rounds + 1):
        say(f"Zipf: round {number} of {plan.zipf_rounds}")
        for name, requests in (("hot", hot), ("zipf", zipf)):
            taken[name].append(_round(instance, wrk, requests, plan))
    return _lines(taken["hot"], taken["zipf"], len(users))


def _round(instance: Instance, wrk: Wrk, requests: Requests, plan: Plan) -> _Round:
    pids = (instance.gateway_pid(), instance.host_pid())
    before, started_s = uvloop.run(scrape(instance.url)), sum(map(cpu_s, pids))
    load = wrk.run(instance.url, requests, connections=_CONNECTIONS, duration_s=plan.zipf_s)
    used_s, after = sum(map(cpu_s, pids)) - started_s, uvloop.run(scrape(instance.url))
    opened, by_host, kept = (
        (after.value(name) - before.value(name)) / load.requests
        for name in ("peruse_host_activations_total", "peruse_host_reads_total", "peruse_host_kept_reads_total")
    )
    total, replica = (
        after.value("peruse_reads_total", **only) - before.value("peruse_reads_total", **only)
        for only in ({}, {"source": "replica"})
    )
    by_primary = (total - replica) / total
    return _Round(load, used_s / load.requests * 1e6, opened, by_host, by_host - kept, by_primary)


def _lines(hot: Sequence[_Round], zipf: Sequence[_Round], users: int) -> list[Line]:
    to_hot = [one.load.reads_per_s / other.load.reads_per_s for one, other in zip(zipf, hot, strict=True)]
    base_us = median(one.cpu_us for one in hot)
    miss_us = [(one.cpu_us - base_us) / one.by_host for one in zipf if one.by_host]
    note = f"exponent {_EXPONENT:g} over {users:,} users; requests cycle through {_DRAWS:,} draws"
    return [
        Line(_SECTION, "hot user", "reads/s", [one.load.reads_per_s for one in hot]),
        Line(_SECTION, "Zipf", "reads/s", [one.load.reads_per_s for one in zipf], note=note),
        Line(_SECTION, "Zipf to hot", "×", to_hot, at_least(0.3), "of the same round", key="ratio_zipf"),
        Line(_SECTION, "reads that had to open a replica", "%", [one.opened * 100 for one in zipf]),
        Line(_SECTION, "reads that the gateway could not answer alone", "%", [one.by_host * 100 for one in zipf]),
        Line(_SECTION, "reads for which SQLite was asked", "%", [one.by_sqlite * 100 for one in zipf]),
        Line(_SECTION, "reads that the primary answered", "%", [one.by_primary * 100 for one in zipf]),
        Line(_SECTION, "CPU per read, gateway and host", "µs", [one.cpu_us for one in zipf]),
        Line(_SECTION, "CPU of a read that the host answers, gateway and host", "µs", miss_us,
             note="over that of a hot read", key="zipf_miss_us"),
        Line(_SECTION, "p99, Zipf", "ms", [one.load.p99_ms for one in zipf]),
    ]  # fmt: skip
