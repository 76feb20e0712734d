"""How cost grows: `python -m tests.bench.growth [--quick]`, or `make bench-growth`; under a quarter of an hour.

Page size, images per user, active users, known users, hosts and gateways. Prints law and knee of each curve, and
writes tests/bench/growth.json and deploy/growth.png; deploy/CAPACITY.md is fitted to them (tests.bench.capacity).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

import uvloop

from tests.bench import chart
from tests.bench.curves import Curve, as_json
from tests.bench.gallery import add_users, server_version, user_names
from tests.bench.growth_steps import (
    add_known,
    cpu_per_read,
    grow_active,
    grow_images,
    grow_page,
    pss_mb,
    reopen_ms,
)
from tests.bench.instance import Instance
from tests.bench.load import Wrk
from tests.bench.machine import describe
from tests.bench.result import Line, at_most
from tests.bench.runs import GROWN, OUT, bench_folder, run, say

_USER: Final = "ana"
_CHART: Final = Path(__file__).parents[2] / "deploy" / "growth.png"
_ROWS: Final = 10
_READERS: Final = 100
_IDLE_S: Final = 900
_HOST_MB: Final = 8192
_PSS_GOAL_MB: Final = 3000


class _Plan(NamedTuple):
    limits: tuple[int, ...]
    images: tuple[int, ...]
    active: tuple[int, ...]
    known: tuple[int, ...]
    layouts: tuple[tuple[int, int], ...]
    full_house: int
    round_s: int


_FULL: Final = _Plan(
    (10, 20, 50, 100, 200), (10, 100, 1000, 10_000, 100_000, 1_000_000), (100, 300, 1000, 3000, 10_000),
    (1000, 10_000, 100_000), ((1, 1), (2, 1), (4, 1), (1, 2)), 8000, 3,
)  # fmt: skip
_QUICK: Final = _Plan((10, 50, 200), (10, 100, 1000), (30, 100, 300), (300, 1000), ((1, 1), (2, 1)), 200, 1)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.growth", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few and small steps: to try it")
    plan = _QUICK if parser.parse_args().quick else _FULL
    return run(lambda: _growth(plan))


def _growth(plan: _Plan) -> int:
    started = time.monotonic()
    with bench_folder() as folder, ExitStack() as stack:
        curves, full_house, machine = _measure(folder, stack, plan)
    for name, text in machine.items():
        print(f"{name + ':':<13}{text}")
    for curve in curves:
        print(_text(curve))
    print(f"{full_house.name}: {full_house.value_text} {full_house.unit}, goal {full_house.goal} {full_house.verdict}")
    print(f"growth in {time.monotonic() - started:.0f} s")
    OUT.mkdir(exist_ok=True)
    document = {"machine": machine, "full_house_mb": full_house.median, "curves": as_json(curves)}
    saved = GROWN if plan is _FULL else OUT / "growth.json"
    saved.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    panels: dict[tuple[str, str], dict[str, dict[float, float]]] = {}
    for curve in curves:
        panels.setdefault((curve.x_label, curve.y_label), {})[curve.name] = dict(curve.points)
    picture = _CHART if plan is _FULL else OUT / "growth.png"
    chart.curves(picture, "How cost grows", [(x, y, panel) for (x, y), panel in panels.items()])
    return 1 if full_house.verdict == "FAIL" and plan is _FULL else 0


def _measure(folder: Path, stack: ExitStack, plan: _Plan) -> tuple[list[Curve], Line, dict[str, str]]:
    wrk, instance = Wrk(folder), Instance(folder / "data", log=folder / "instance.log")
    stack.callback(instance.stop)
    say("starting on a fresh folder")
    instance.start()
    instance.set("host_idle_s", str(_IDLE_S))
    instance.set("host_memory_mb", str(_HOST_MB))  # its default would close some of ten thousand
    instance.import_gallery(_USER, images=max(plan.limits) + 10)
    primary_url = instance.primary_url()
    machine = describe(postgres=uvloop.run(server_version(primary_url)))
    active = user_names("active", max(*plan.active, plan.full_house))
    say(f"making {len(active):,} users of {_ROWS} images by SQL")
    uvloop.run(add_users(primary_url, active, images=_ROWS, like=_USER))

    curves = _told(grow_page(instance, wrk, _USER, plan.limits, round_s=plan.round_s, say=say))
    curves += _told(grow_images(instance, primary_url, _USER, plan.images, say=say))
    say("starting again, with no replica open")
    instance.stop()
    instance.start()
    curves += _told(grow_active(instance, active, plan.active, say=say))
    curves += _told(_known(instance, folder, active, plan))
    curves += _told(_layouts(instance, wrk, active[:_READERS], plan))

    say(f"{plan.full_house:,} active of {max(plan.known):,} known users over 2 hosts")
    instance.stop()
    instance.start(hosts=2)
    grow_active(instance, active, (plan.full_house,), say=say, hosts=2)
    name = f"PSS of everything, {plan.full_house:,} active of {max(plan.known):,} known users over 2 hosts"
    full_house = Line("memory", name, "MB", [pss_mb(instance)], at_most(_PSS_GOAL_MB))
    return curves, full_house, machine


def _told(curves: list[Curve]) -> list[Curve]:
    """The same curves, said at once: a run is long, and what comes later may fail."""
    for curve in curves:
        say(_text(curve))
    return curves


def _text(curve: Curve) -> str:
    points = "   ".join(f"{x:,.0f}: {y:,.4g}" for x, y in curve.points.items())
    return f"{curve.name}, {curve.y_label} over {curve.x_label}: {curve.law}\n    {points}"


def _known(instance: Instance, folder: Path, active: list[str], plan: _Plan) -> list[Curve]:
    """Files on disk: what they add to the start, to the host's memory, to opening one of them."""
    start_s, memory_mb, first_ms, disk_mb = ({} for _ in range(4))  # type: dict[float, float]
    silent = user_names("silent", max(plan.known))
    for had, known in pairwise((0, *plan.known)):
        say(f"{known:,} known users")
        instance.stop()
        disk_mb[known] = known * add_known(folder / "data" / "replicas", silent[had:known], like=active[0]) / 1e6
        start_s[known] = instance.start().ready_s
        memory_mb[known] = pss_mb(instance, only_hosts=True)
        first_ms[known] = reopen_ms(instance, active[:_READERS])
    x = "known users (files)"
    return [
        Curve("serve → ready", x, "s", start_s),
        Curve("host, nobody active", x, "PSS, MB", memory_mb),
        Curve("first read of a passive user", x, "ms, p50", first_ms),
        Curve("files", x, "disk, MB", disk_mb),
    ]


def _layouts(instance: Instance, wrk: Wrk, readers: list[str], plan: _Plan) -> list[Curve]:
    by_hosts: dict[float, float] = {}
    by_gateways: dict[float, float] = {}
    for hosts, gateways in plan.layouts:
        say(f"{hosts} hosts, {gateways} gateways")
        instance.stop()
        instance.start(hosts=hosts, gateways=gateways)
        cost = cpu_per_read(instance, wrk, readers, hosts=hosts, gateways=gateways, round_s=plan.round_s)
        if gateways == 1:
            by_hosts[hosts] = cost
        if hosts == 1:
            by_gateways[gateways] = cost
    curves = [Curve("hot read, all processes", "hosts", "CPU per read, µs", by_hosts)]
    if len(by_gateways) > 1:
        curves.append(Curve("hot read, all processes", "gateways", "CPU per read, µs", by_gateways))
    return curves


if __name__ == "__main__":
    sys.exit(main())
