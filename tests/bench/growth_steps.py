"""The steps of the growth curves: one thing grows, the rest stays."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Final

import uvloop

from actors.folder import ReplicaFolder
from tests.bench.client import Target, activate, bearer, scrape
from tests.bench.curves import Curve
from tests.bench.instance import Instance
from tests.bench.load import Load, Requests, Wrk
from tests.bench.openloop import Connection, request_of
from tests.bench.pages import large_user, page_timings
from tests.bench.process import cpu_s, pss_bytes, tree
from tests.bench.reads import PATH
from tests.bench.result import BenchError

__all__ = ["add_known", "cpu_per_read", "grow_active", "grow_images", "grow_page", "pss_mb", "reopen_ms"]

Say = Callable[[str], None]

_CONNECTIONS: Final = 32
_VARIANTS: Final = 40_000
_SAMPLES: Final = 10
_AT_ONCE: Final = 16
_ROUNDS: Final = 3
_WATCH_S: Final = 5.0


def grow_page(instance: Instance, wrk: Wrk, user: str, limits: Sequence[int], *, round_s: int, say: Say) -> list[Curve]:
    """Reads of more images each, by requests that vary: rate and CPU."""
    token = instance.token(user)
    rates: dict[float, float] = {}
    gateway_us: dict[float, float] = {}
    for limit in limits:
        say(f"pages of {limit} images")
        path = f"{PATH}?limit={limit}"
        uvloop.run(activate(instance.url, [Target(path, bearer(token))]))
        requests = wrk.requests(f"limit-{limit}", [(path, bearer(token))], variants=_VARIANTS)
        load, cost_us = _cost(instance, wrk, requests, [instance.gateway_pid()], round_s=round_s)
        rates[limit], gateway_us[limit] = load.reads_per_s, cost_us
    x = "images per page"
    return [
        Curve("hot read", x, "reads/s", rates),
        Curve("hot read, gateway", x, "CPU per read, µs", gateway_us),
    ]


def grow_images(instance: Instance, primary_url: str, like: str, sizes: Sequence[int], *, say: Say) -> list[Curve]:
    """Users with larger galleries: the seed, the file, and pages made anew."""
    seed_s, file_mb, first, deep, filtered = ({} for _ in range(5))  # type: dict[float, float]
    for size in sizes:
        user = f"images-{size}"
        made_s = uvloop.run(large_user(primary_url, user, images=size, like=like))
        token, started = instance.token(user), time.monotonic()
        uvloop.run(activate(instance.url, [Target(PATH, bearer(token))], timeout_s=300.0))
        seed_s[size] = time.monotonic() - started
        file_mb[size] = _file_bytes(instance, user) / 1e6
        say(f"a user with {size:,} images: made in {made_s:.1f} s, seeded in {seed_s[size]:.2f} s")
        timings = uvloop.run(page_timings(instance.url, token, samples=_SAMPLES))
        first[size], deep[size], filtered[size] = map(median, timings)
    x, y = "images of the user", "page made anew, ms"
    return [
        Curve("until a replica answers", x, "s", seed_s),
        Curve("a replica's files", x, "MB", file_mb),
        Curve("first page", x, y, first),
        Curve("deep page", x, y, deep),
        Curve("filtered page (100 match)", x, y, filtered),
    ]


def grow_active(
    instance: Instance, users: Sequence[str], steps: Sequence[int], *, say: Say, hosts: int = 1
) -> list[Curve]:
    """Open more and more replicas: the hosts' memory, and what all of it costs while nobody reads."""
    memory_mb, host_ms, primary_ms = ({} for _ in range(3))  # type: dict[float, float]
    service = instance.token("bench", role="service")
    done = 0
    for step in steps:
        say(f"{step:,} active users")
        targets = [Target(f"/internal/users/{user}/images", bearer(service)) for user in users[done:step]]
        uvloop.run(activate(instance.url, targets, at_once=_AT_ONCE, timeout_s=120.0))
        done = step
        there = uvloop.run(scrape(instance.url)).value("peruse_host_active")
        if there < 0.95 * step:  # a host that is at its bound closes some again
            raise BenchError(f"{there:.0f} replicas are open for {step} users")
        memory_mb[step] = pss_mb(instance, only_hosts=True, hosts=hosts)
        host_ms[step], primary_ms[step] = _idle(instance, hosts)
    x = "active users"
    return [
        Curve("host", x, "PSS, MB", memory_mb),
        Curve("host, nobody reads", x, "CPU per second, ms", host_ms),
        Curve("primary, nobody reads", x, "CPU per second, ms", primary_ms),
    ]


def reopen_ms(instance: Instance, users: Sequence[str]) -> float:
    """Median milliseconds of the first read of users whose files are there and closed."""
    connection = Connection(instance.url)
    try:
        return median(connection.ask(request_of(PATH, bearer(instance.token(user)))) for user in users)
    finally:
        connection.socket.close()


def cpu_per_read(
    instance: Instance, wrk: Wrk, readers: Sequence[str], *, hosts: int, gateways: int, round_s: int
) -> float:
    """CPU of all hosts and gateways per hot read of `readers` in turn, by requests that vary; µs."""
    tokens = [instance.token(user) for user in readers]
    for _ in range(2 * gateways):  # which gateway gets a connection is the kernel's choice
        uvloop.run(activate(instance.url, [Target(PATH, bearer(token)) for token in tokens]))
    variants = -(-_VARIANTS // len(tokens))
    requests = wrk.requests("layout", [(PATH, bearer(token)) for token in tokens], variants=variants)
    pids = [instance.gateway_pid(n) for n in range(gateways)] + [instance.host_pid(n) for n in range(hosts)]
    return _cost(instance, wrk, requests, pids, round_s=round_s)[1]


def add_known(replicas: Path, users: Sequence[str], *, like: str) -> int:
    """Give `users` files in the one host's folder, which must not run: copies of the one of `like`, whose name is as
    long as theirs, with their own names inside; answers the bytes of one."""
    (path,) = (marker.parent for marker in replicas.glob("*/boot_id"))
    folder = ReplicaFolder.claim(replicas, path.name, generation=0)
    try:
        found = folder.find(like)
        if found is None:
            raise BenchError(f"{like} has no file to copy")
        template, name = found.read_bytes(), like.encode()
        if name not in template:
            raise BenchError(f"the file of {like} does not name its owner")
        for user in users:
            digest = hashlib.sha256(user.encode()).hexdigest()
            file = path / digest[:2] / digest[2:4] / f"{digest}.1.db"
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file.write_bytes(template.replace(name, user.encode()))
    finally:
        folder.release()
    return len(template)


def _file_bytes(instance: Instance, user: str) -> int:
    """What the replica of `user` takes on the disk, its -wal with it."""
    digest = hashlib.sha256(user.encode()).hexdigest()
    files = (instance.data / "replicas").glob(f"*/{digest[:2]}/{digest[2:4]}/{digest}.*")
    return sum(file.stat().st_size for file in files)


def pss_mb(instance: Instance, *, only_hosts: bool = False, hosts: int = 1) -> float:
    """Memory of the hosts, or of everything that serves: gateways, hosts, Ray, Postgres."""
    pids = {instance.host_pid(n) for n in range(hosts)} if only_hosts else tree([instance.serve_pid()])
    return sum(map(pss_bytes, pids)) / 1e6


def _cost(instance: Instance, wrk: Wrk, requests: Requests, pids: Sequence[int], *, round_s: int) -> tuple[Load, float]:
    """The cheapest of some rounds, and its CPU per read, µs: the others are dearer by what else used the machine."""
    wrk.run(instance.url, requests, connections=_CONNECTIONS, duration_s=1)
    rounds = []
    for _ in range(_ROUNDS):
        started_s = sum(map(cpu_s, pids))
        load = wrk.run(instance.url, requests, connections=_CONNECTIONS, duration_s=round_s)
        rounds.append((load, (sum(map(cpu_s, pids)) - started_s) / load.requests * 1e6))
    return min(rounds, key=lambda one: one[1])


def _idle(instance: Instance, hosts: int) -> tuple[float, float]:
    """CPU of the hosts and of Postgres, in milliseconds per second."""
    ours = [instance.host_pid(n) for n in range(hosts)]
    primary = sorted(tree([instance.postmaster_pid()]))
    before = [sum(map(cpu_s, pids)) for pids in (ours, primary)]
    started = time.monotonic()
    time.sleep(_WATCH_S)
    took_s = time.monotonic() - started
    used_s = [sum(map(cpu_s, pids)) - was for pids, was in zip((ours, primary), before, strict=True)]
    host_ms, primary_ms = (max(0.01, used) / took_s * 1000 for used in used_s)  # in steps of 10 ms
    return host_ms, primary_ms
