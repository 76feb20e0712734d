"""Uploads beside reads: how many are taken, what readers feel of them, how long a large one holds the loop, and what
memory many at once take. Runs alone, too: `python -m tests.bench.uploads [--quick]`.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import asyncpg
import uvloop
from PIL import Image

from gateway.admission import LARGEST_AT_ONCE
from gateway.config import GatewaySettings
from store.generation.providers.builtin import render
from tests.bench import report
from tests.bench.client import Target, activate, bearer
from tests.bench.gallery import server_version
from tests.bench.instance import Instance
from tests.bench.machine import describe
from tests.bench.openloop import request_of, run_at
from tests.bench.plan import FULL, QUICK, Plan
from tests.bench.process import Process, pss_bytes, tree
from tests.bench.reads import PATH
from tests.bench.result import BenchError, Line, at_least, at_most
from tests.bench.runs import bench_folder, run, say

__all__ = ["measure_uploads"]

_SECTION: Final = "uploads"
_USER: Final = "uploader"
_READS_PER_S: Final = 300
_CONNECTIONS: Final = 4
#: What is asked for while readers are looked at: a little more than the goal.
_PACE_PER_S: Final = 11.0
_LARGE: Final = 5
_AT_ONCE: Final = 40
#: How often a large picture is in memory: as it came and put together; with its pixels, the one that is being read.
_COPIES: Final = 2
_COPIES_READ: Final = 6
_SEED: Final = 3


def measure_uploads(instance: Instance, reader_token: str, plan: Plan, *, folder: Path) -> list[Line]:
    """The reader has a page of images; the uploads are another user's, whose plan has room for them."""
    token = instance.token(_USER)
    uvloop.run(_given_room(instance.primary_url()))
    uvloop.run(activate(instance.url, [Target(PATH, bearer(reader_token))]))
    small, large = folder / "small.png", folder / "large.png"
    small.write_bytes(render("a mountain lake at night", seed=5, width=1024, height=1024))
    large.write_bytes(_large_png())
    lines = _taken(instance, token, small, plan, folder)
    lines += _felt(instance, token, reader_token, small, plan, folder)
    with ExitStack() as stack:
        lines += _held(stack, instance, token, large, folder)
        return [*lines, _memory(stack, instance, token, large, folder)]


def _taken(instance: Instance, token: str, picture: Path, plan: Plan, folder: Path) -> list[Line]:
    rates: list[float] = []
    took_ms: list[float] = []
    for number in range(plan.open_runs + 1):
        told = _upload(instance.url, token, picture, seconds=plan.open_s, folder=folder)
        if number:  # the first starts the process that reads pictures
            rates.append(len(told["took_ms"]) / told["seconds"])
            took_ms += told["took_ms"]
    size_kb = picture.stat().st_size / 1000
    note = f"{size_kb:,.0f} KB each, {_CONNECTIONS} connections, with thumbnails"
    return [
        Line(_SECTION, "PNGs of 1024 px", "uploads/s", rates, at_least(10), note, key="uploads_per_s"),
        Line(_SECTION, "one of them", "ms", took_ms),
    ]


def _felt(instance: Instance, token: str, reader_token: str, picture: Path, plan: Plan, folder: Path) -> list[Line]:
    """Reads by schedule, without uploads and with them, in turn."""
    request = request_of(PATH, bearer(reader_token))
    idle: list[float] = []
    beside: list[float] = []
    rates: list[float] = []
    for number in range(plan.open_runs):
        arrivals = random.Random(_SEED + number)
        gaps = (arrivals.expovariate(_READS_PER_S) for _ in itertools.count())
        due = list(itertools.takewhile(lambda moment: moment < 3 * plan.open_s, itertools.accumulate(gaps)))
        idle.append(run_at(instance.url, request, due).percentile(0.99))
        with _uploading(instance.url, token, picture, seconds=due[-1] + 1, folder=folder) as told:
            time.sleep(0.5)
            beside.append(run_at(instance.url, request, due).percentile(0.99))
        rates.append(len(told["took_ms"]) / told["seconds"])
    ratios = [busy / alone for busy, alone in zip(beside, idle, strict=True)]
    note = f"{_READS_PER_S} reads/s by schedule"
    return [
        Line(_SECTION, "p99 of reads, nobody uploads", "ms", idle, note=note),
        Line(_SECTION, "p99 of reads beside uploads", "ms", beside, note=note),
        Line(_SECTION, "  uploads meanwhile", "uploads/s", rates, at_least(10)),
        Line(_SECTION, "p99 beside uploads to p99 without", "×", ratios, at_most(2), key="uploads_reads_p99"),
    ]


def _held(stack: ExitStack, instance: Instance, token: str, picture: Path, folder: Path) -> list[Line]:
    """How late the loop's turns come while it takes a large picture; by a gateway that looks at itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.bench.lag", str(instance.data), str(port)]
    gateway = Process("a gateway with a clock", command, log=folder / "lag.log")
    stack.callback(gateway.stop)
    gateway.wait_until(lambda: _listens(port), what=f"listen on port {port}")
    url = f"http://127.0.0.1:{port}"

    def late_ms() -> list[float]:
        os.kill(gateway.pid, signal.SIGUSR1)
        found: list[float] = sorted(json.loads(gateway.wait_line("late", timeout_s=30)))
        return found

    p99: list[float] = []
    most: list[float] = []
    took: list[float] = []
    for number in range(_LARGE + 1):
        late_ms()
        told = _upload(url, token, picture, seconds=0.0, folder=folder)
        found = late_ms()
        if number:
            p99.append(found[int(0.99 * len(found))])
            most.append(found[-1])
            took += told["took_ms"]
    size = f"{picture.stat().st_size / 2**20:.1f} MiB"
    return [
        Line(_SECTION, "p99 lag of the loop, PNG of 20 MB", "ms", p99, at_most(20), "a turn is due every ms",
             key="uploads_lag_ms"),
        Line(_SECTION, "greatest lag of the loop", "ms", most),
        Line(_SECTION, "that upload", "ms", took, note=size),
    ]  # fmt: skip


def _memory(stack: ExitStack, instance: Instance, token: str, picture: Path, folder: Path) -> Line:
    """The greatest growth of a gateway and its processes while far more large pictures come than are taken at once."""
    url, pid = instance.start_gateway(stack, {})
    _upload(url, token, picture, seconds=0.0, folder=folder)
    before, most, done = _pss(pid), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.02):
            most = max(most, _pss(pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        told = _upload(url, token, picture, seconds=3.0, folder=folder, connections=_AT_ONCE)
    finally:
        done.set()
        watcher.join()
    cap_mb = GatewaySettings().upload_max_bytes / 1e6
    note = f"{_AT_ONCE} uploads of {cap_mb:.0f} MB at once; {len(told['took_ms'])} kept, {told['refused']} refused"
    return Line(
        _SECTION, "growth of a gateway at its most", "MB", [(most - before) / 1e6],
        at_most(round((LARGEST_AT_ONCE * _COPIES + _COPIES_READ) * cap_mb)), note, key="uploads_memory_mb",
    )  # fmt: skip


def _pss(pid: int) -> int:
    total = 0
    for one in tree([pid]):
        try:
            total += pss_bytes(one)
        except OSError:
            continue  # it ended
    return total


def _upload(
    url: str, token: str, picture: Path, *, seconds: float, folder: Path, connections: int = _CONNECTIONS
) -> Mapping[str, Any]:
    """As fast as they are taken, for so many seconds; 0: one of them."""
    process = _start(url, token, picture, folder, seconds, connections if seconds else 1, 0 if seconds else 1)
    return _told(process, seconds)


@contextmanager
def _uploading(url: str, token: str, picture: Path, *, seconds: float, folder: Path) -> Iterator[dict[str, Any]]:
    """At a pace, meanwhile; what it tells is there at the end."""
    told: dict[str, Any] = {}
    process = _start(url, token, picture, folder, seconds, _CONNECTIONS, _PACE_PER_S)
    try:
        yield told
        told |= _told(process, seconds)
    finally:
        process.stop()


def _start(
    url: str, token: str, picture: Path, folder: Path, seconds: float, connections: int, per_s: float
) -> Process:
    words = [url, token, str(picture), str(seconds or 0.5), str(connections), str(per_s)]
    return Process("uploader", [sys.executable, "-m", "tests.bench.uploader", *words], log=folder / "uploader.log")


def _told(process: Process, seconds: float) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(process.wait_line("uploaded", timeout_s=seconds + 120))
    process.stop()
    if not told["took_ms"]:
        raise BenchError(f"none of the uploads was kept, {told['refused']} were refused")
    return told


async def _given_room(primary_url: str) -> None:
    connection = await asyncpg.connect(primary_url)
    try:
        await connection.execute("insert into users (id) values ($1) on conflict do nothing", _USER)
        await connection.execute(
            "insert into accounts (owner_id, plan) values ($1, 'enterprise') "
            "on conflict (owner_id) do update set plan = excluded.plan", _USER,
        )  # fmt: skip
    finally:
        await connection.close()


def _large_png() -> bytes:
    """Close to 20 MB: pixels that cannot be packed."""
    side = 2600
    image = Image.frombytes("RGB", (side, side), random.Random(_SEED).randbytes(3 * side * side))
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1)
    return out.getvalue()


def _listens(port: int) -> bool:
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) == 0


def main() -> int:
    """A fresh instance, these lines, their table. 0: every goal met."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.uploads", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="shorter and fewer rounds")
    plan = QUICK if parser.parse_args().quick else FULL
    return run(lambda: _alone(plan))


def _alone(plan: Plan) -> int:
    started = time.monotonic()
    with bench_folder() as folder, ExitStack() as stack:
        instance = Instance(folder / "data", log=folder / "instance.log")
        stack.callback(instance.stop)
        say("starting on a fresh folder")
        instance.start()
        instance.import_gallery("ana", images=50)
        machine = describe(postgres=uvloop.run(server_version(instance.primary_url())))
        say("uploads")
        lines = measure_uploads(instance, instance.token("ana"), plan, folder=folder)
    print(report.table(lines, machine, plan=plan.name, took_s=time.monotonic() - started))
    return 1 if any(line.verdict == "FAIL" for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
