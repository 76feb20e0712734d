"""What the gateway counts, and /metrics: its own numbers and those that its hosts tell.

Counting is adding to plain numbers; Prometheus' types are made when somebody scrapes. Labels never name a user.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from actors import BUCKETS_S, HostStats, WorkerStats
from store.deletions import Backlog
from store.overview import QueueDepth

__all__ = ["GatewayMetrics", "exposition"]

_LATENCY_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class GatewayMetrics:
    """Requests of one gateway process since it started."""

    __slots__ = (
        "deletions",
        "events",
        "latency",
        "latency_seconds",
        "queues",
        "reads",
        "refusals",
        "requests",
        "resyncs",
        "streams",
    )

    def __init__(self) -> None:
        self.requests: dict[tuple[str, str, int], int] = {}
        self.reads: dict[tuple[str, str], int] = {}
        self.refusals: dict[str, int] = {}
        self.queues: list[QueueDepth] = []
        self.streams = 0
        self.events = 0
        self.resyncs = 0
        self.deletions = Backlog(0, 0.0)
        self.latency = [0] * (len(_LATENCY_S) + 1)
        self.latency_seconds = 0.0

    def saw_request(self, method: str, route: str, status: int, seconds: float) -> None:
        key = (method, route, status)
        self.requests[key] = self.requests.get(key, 0) + 1
        self.latency[bisect_left(_LATENCY_S, seconds)] += 1
        self.latency_seconds += seconds

    def saw_read(self, source: str, outcome: str) -> None:
        key = (source, outcome)
        self.reads[key] = self.reads.get(key, 0) + 1

    def saw_refusal(self, reason: str) -> None:
        self.refusals[reason] = self.refusals.get(reason, 0) + 1


class _Scrape:
    """One scrape: Prometheus asks `collect` for families."""

    def __init__(
        self, gateway: int, metrics: GatewayMetrics, hosts: list[HostStats], workers: list[WorkerStats]
    ) -> None:
        self._gateway = str(gateway)
        self._metrics = metrics
        self._hosts = hosts
        self._workers = workers

    def collect(self) -> Iterable[Metric]:
        yield from self._gateway_families()
        yield from self._queue_families()
        yield from self._host_families()
        yield from self._worker_families()

    def _gateway_families(self) -> Iterable[Metric]:
        requests = CounterMetricFamily(
            "peruse_http_requests", "Requests answered.", labels=("gateway", "method", "route", "status")
        )
        for (method, route, status), count in list(self._metrics.requests.items()):
            requests.add_metric((self._gateway, method, route, str(status)), count)
        yield requests
        reads = CounterMetricFamily(
            "peruse_reads", "Gallery reads, by who answered and how.", labels=("gateway", "source", "outcome")
        )
        for (source, outcome), count in list(self._metrics.reads.items()):
            reads.add_metric((self._gateway, source, outcome), count)
        yield reads
        refusals = CounterMetricFamily(
            "peruse_replica_refusals", "Reads that no replica answered, by reason.", labels=("gateway", "reason")
        )
        for reason, count in list(self._metrics.refusals.items()):
            refusals.add_metric((self._gateway, reason), count)
        yield refusals
        streams = GaugeMetricFamily("peruse_event_streams", "Event streams open now.", labels=("gateway",))
        streams.add_metric((self._gateway,), self._metrics.streams)
        yield streams
        for name, text, count in (
            ("peruse_events", "Versions told to event streams.", self._metrics.events),
            ("peruse_event_resyncs", "Times that listeners were told to read again.", self._metrics.resyncs),
        ):
            counter = CounterMetricFamily(name, text, labels=("gateway",))
            counter.add_metric((self._gateway,), count)
            yield counter
        deletions = self._metrics.deletions  # as of the last look, of which there are four a minute
        for name, text, value in (
            (
                "peruse_deletions_waiting",
                "Objects of deleted rows that are still there; 10000: or more.",
                deletions.objects,
            ),
            (
                "peruse_deletions_oldest_seconds",
                "How long the oldest of them has waited, at least.",
                deletions.oldest_s,
            ),
        ):
            gauge = GaugeMetricFamily(name, text, labels=("gateway",))
            gauge.add_metric((self._gateway,), value)
            yield gauge
        latency = HistogramMetricFamily("peruse_http_seconds", "Time to answer a request.", labels=("gateway",))
        latency.add_metric(
            (self._gateway,), _cumulative(_LATENCY_S, self._metrics.latency), self._metrics.latency_seconds
        )
        yield latency

    def _queue_families(self) -> Iterable[Metric]:
        for name, (field, text) in _QUEUE_GAUGES.items():
            gauge = GaugeMetricFamily(f"peruse_generation_{name}", text, labels=("gateway", "provider"))
            for depth in self._metrics.queues:
                gauge.add_metric((self._gateway, depth.provider), getattr(depth, field))
            yield gauge

    def _host_families(self) -> Iterable[Metric]:
        for name, text in _HOST_COUNTERS.items():
            counter = CounterMetricFamily(f"peruse_host_{name}", text, labels=("host",))
            for stats in self._hosts:
                counter.add_metric((stats.host,), getattr(stats.metrics, name))
            yield counter
        for name, text in _HOST_GAUGES.items():
            gauge = GaugeMetricFamily(f"peruse_host_{name}", text, labels=("host",))
            for stats in self._hosts:
                source = stats if hasattr(stats, name) else stats.metrics
                gauge.add_metric((stats.host,), getattr(source, name))
            yield gauge
        resets = CounterMetricFamily("peruse_host_resets", "Replicas made anew, by reason.", labels=("host", "reason"))
        closed = CounterMetricFamily("peruse_host_passivations", "Replicas closed, by cause.", labels=("host", "cause"))
        visible = HistogramMetricFamily(
            "peruse_visible_seconds", "From a version's commit to its being applied.", labels=("host",)
        )
        for stats in self._hosts:
            for reason, count in stats.metrics.resets.items():
                resets.add_metric((stats.host, reason), count)
            for cause, count in stats.metrics.passivations.items():
                closed.add_metric((stats.host, cause), count)
            buckets = _cumulative(BUCKETS_S, stats.metrics.visible_counts)
            visible.add_metric((stats.host,), buckets, stats.metrics.visible_seconds)
        yield resets
        yield closed
        yield visible

    def _worker_families(self) -> Iterable[Metric]:
        for name, (text, label) in _WORKER_COUNTERS.items():
            counter = CounterMetricFamily(f"peruse_worker_{name}", text, labels=("worker", "provider", label))
            for stats in self._workers:
                for key, count in getattr(stats.tally, name).items():
                    counter.add_metric((stats.worker, *key.split(" ")), count)
            yield counter
        for name, text in _WORKER_GAUGES.items():
            gauge = GaugeMetricFamily(f"peruse_worker_{name}", text, labels=("worker",))
            for stats in self._workers:
                gauge.add_metric((stats.worker,), getattr(stats, name))
            yield gauge


_WORKER_COUNTERS: Final = {
    "jobs": ("Jobs that came to their end here, by final state.", "state"),
    "attempts": ("Calls of providers, by outcome: done, or the code of an error.", "outcome"),
    "attempt_seconds": ("Time that these took, with the wait for a task and the upload.", "outcome"),
}
_WORKER_GAUGES: Final = {
    "running": "Jobs in work now.",
    "resident_bytes": "Memory of the process.",
}
#: The same whichever gateway tells them: take the max over gateways, not the sum.
_QUEUE_GAUGES: Final = {
    "waiting": ("waiting", "Jobs that wait for a worker."),
    "running": ("running", "Jobs that a worker has."),
    "oldest_waiting_seconds": ("oldest_waiting_s", "How long the oldest of those waits."),
}
_HOST_COUNTERS: Final = {
    "reads": "Reads answered.",
    "kept_reads": "Reads answered with bytes at hand.",
    "pulls": "Pulls from the primary.",
    "pull_failures": "Pulls that the primary did not answer.",
    "changes_applied": "Rows changed by pulls.",
    "seeds": "Replicas made from nothing.",
    "seed_rows": "Rows written by seeds.",
    "sweeps": "Looks at the heads of all open replicas.",
    "sweep_seconds": "Time that these looks took.",
    "seed_seconds": "Time spent seeding.",
    "seed_wait_seconds": "Time that seeds waited for their turn.",
    "seed_failures": "Seeds that did not come to an end.",
    "activations": "Replicas opened.",
    "reactivations": "Replicas opened within a minute of having been closed for want of room.",
    "shed": "Reads refused because opening replicas took too much of the loop's time.",
    "files_removed": "Files of unused replicas deleted.",
    "broken": "Replica files found unusable.",
    "audits": "Replicas compared with the primary.",
    "divergences": "Audits that found rows unlike the primary's.",
    "overloads": "Calls refused for want of room.",
}
_HOST_GAUGES: Final = {
    "generation": "Starts of this host.",
    "active": "Replicas open now.",
    "seeding": "Replicas being made now.",
    "lagging": "Open replicas that the last sweep found behind.",
    "watched": "Users whose changes somebody listens to.",
    "open_bytes": "Memory of the open replicas: SQLite's, the pages kept, Python's own.",
    "kept_bytes": "Bytes of pages kept.",
    "disk_bytes": "Bytes of replica files, when last looked through.",
    "is_stuck": "1 while the host's own writes do not come back through its sync.",
    "resident_bytes": "Memory of the process.",
    "in_flight": "Calls under way.",
    "lag_s": "Greatest age among the open replicas, in seconds.",
}


def _cumulative(bounds: tuple[float, ...], counts: list[int]) -> list[tuple[str, float]]:
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip((*bounds, float("inf")), counts, strict=True):
        total += count
        buckets.append(("+Inf" if bound == float("inf") else str(bound), total))
    return buckets


def exposition(
    gateway: int, metrics: GatewayMetrics, hosts: list[HostStats], workers: list[WorkerStats] | None = None
) -> bytes:
    """What /metrics answers, in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Scrape(gateway, metrics, hosts, workers or []))
    return generate_latest(registry)
