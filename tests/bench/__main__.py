"""The run: start, import, reads, writes, uploads, seeds, sweeps, start again, memory, streams, Zipf.

Exit code 1 when a goal is missed; of the quick run, when a ratio fell.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import uvloop

from tests.bench import chart, gate, report
from tests.bench.arrivals import measure_arrivals, measure_waits
from tests.bench.client import Target, bearer
from tests.bench.cold import COLD_ROWS, measure_cold, measure_reopen
from tests.bench.gallery import add_history, add_users, server_version, user_names
from tests.bench.generation import measure_generation
from tests.bench.instance import Instance, Started
from tests.bench.load import Wrk
from tests.bench.machine import describe
from tests.bench.memory import IDLE_S, add_passive, measure_memory
from tests.bench.pages import measure_pages
from tests.bench.plan import FULL, QUICK, Plan
from tests.bench.reads import PATH, ReadBench
from tests.bench.result import Line, at_least, at_most
from tests.bench.runs import CHART, COMMITTED, OUT, bench_folder, run, say
from tests.bench.seeds import SEED_ROWS, measure_seeds
from tests.bench.streams import measure_streams
from tests.bench.sweeps import measure_sweeps
from tests.bench.uploads import measure_uploads
from tests.bench.writes import measure_writes
from tests.bench.zipf import budget_mb, measure_zipf

_USER: Final = "ana"
_PAGE: Final = 50
_WARM_USERS: Final = 20
_READY_GOAL_S: Final = 20


def main() -> int:
    """Run it all. 0: every goal met, 1: one missed, or fallen; 2: it could not be measured, 130: interrupted."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="shorter rounds and fewer users, held against bench.json")
    plan = QUICK if parser.parse_args().quick else FULL
    return run(lambda: _bench(plan))


def _bench(plan: Plan) -> int:
    started = time.monotonic()
    with bench_folder() as folder, ExitStack() as stack:
        lines, machine = _measure(folder, stack, plan)
    took_s = time.monotonic() - started
    print(report.table(lines, machine, plan=plan.name, took_s=took_s))
    OUT.mkdir(exist_ok=True)
    if plan is QUICK:
        report.save(OUT / "quick.json", lines, machine, plan=plan.name, took_s=took_s)
        falls = gate.falls(lines, COMMITTED)
        print(*falls, sep="\n")
        return 1 if falls else 0
    report.save(COMMITTED, lines, machine, plan=plan.name, took_s=took_s)
    chart.reads(CHART, lines, machine)
    return 1 if any(line.verdict == "FAIL" for line in lines) else 0


def _measure(folder: Path, stack: ExitStack, plan: Plan) -> tuple[list[Line], dict[str, str]]:
    """All sections in turn. `stack` ends what was started, in whatever way this ends."""
    wrk = Wrk(folder)
    instance = Instance(folder / "data", log=folder / "instance.log")
    stack.callback(instance.stop)

    say("starting on a fresh folder")
    fresh = instance.start()
    say(f"importing {plan.imported} images")
    imported = instance.import_gallery(_USER, images=plan.imported)
    primary_url, token = instance.primary_url(), instance.token(_USER)
    uvloop.run(add_history(primary_url, _USER))
    machine = describe(postgres=uvloop.run(server_version(primary_url)))

    readers, seeded = user_names("reader", plan.rotating_users), user_names("seed", plan.seeds + 2)
    many, warm = user_names("active", plan.active_users), user_names("warm", _WARM_USERS)
    say(f"making {len(readers) + len(seeded) + len(many) + len(warm)} users by SQL")
    uvloop.run(add_users(primary_url, [*readers, *many, *warm], images=_PAGE, like=_USER))
    uvloop.run(add_users(primary_url, seeded, images=SEED_ROWS, like=_USER))

    reads = ReadBench(instance, wrk, plan, folder=folder, say=say)
    tokens, service = [instance.token(user) for user in readers], instance.token("bench", role="service")
    lines = reads.measure(_USER, token, tokens)
    say(f"{plan.writes} writes")
    lines += uvloop.run(measure_writes(instance.url, token, plan))
    say(f"{plan.runs} runs of {plan.arrivals} writes that arrive, and of {plan.waits} reads that wait")
    lines += uvloop.run(measure_arrivals(instance.url, tokens, plan))
    lines += uvloop.run(measure_waits(instance.url, primary_url, tokens, plan))
    say("uploads")
    lines += measure_uploads(instance, token, plan, folder=folder)
    say(f"{plan.seeds} seeds")
    lines += uvloop.run(measure_seeds(primary_url, seeded, folder))
    say(f"{plan.cold_users} cold users, {len(warm)} passive ones")
    cold = user_names("cold", plan.cold_users)
    uvloop.run(add_users(primary_url, cold, images=COLD_ROWS, like=_USER))
    lines += uvloop.run(measure_cold(instance.url, service, cold, Target(PATH, bearer(token))))
    admin = instance.token("bench", role="admin")
    lines += uvloop.run(
        measure_reopen(instance.url, primary_url, warm, folder, service_token=service, admin_token=admin)
    )
    say(f"pages of a user with {plan.large_rows:,} images")
    lines += uvloop.run(
        measure_pages(instance, primary_url, like=_USER, large_rows=plan.large_rows, samples=plan.page_samples)
    )
    say("sweeps")
    lines += uvloop.run(measure_sweeps(primary_url))

    say("starting again on the same folder")
    instance.stop()
    instance.set("host_idle_s", str(IDLE_S))
    passive = user_names("passive", plan.known_users - plan.active_users)
    add_passive(folder / "data" / "replicas", passive)
    again = instance.start()
    say(f"{plan.active_users} users of {plan.known_users} become active")
    lines += uvloop.run(measure_memory(instance.url, service, warm, many, known_users=plan.known_users))
    instance.stop()
    if plan.streams:
        say(f"starting again, and {plan.streams} event streams")
        instance.start()
        lines += uvloop.run(measure_streams(instance, primary_url, warm, streams=plan.streams))
        instance.stop()
    by_key = {line.key: line for line in lines if line.key}
    user_kb = by_key["memory_user_kb"].median
    if "actor_pss_mb" in by_key:
        times = by_key["actor_pss_mb"].median * 1000 / user_kb
        lines.append(Line("memory", "one Ray actor to one active user", "×", [times], at_least(500)))

    if plan.zipf_rounds:
        say("starting again with a tenth of that memory")
        instance.set("host_memory_mb", str(budget_mb(len(many), user_kb=user_kb)))
        instance.start()
        lines += measure_zipf(instance, wrk, many, plan, say=say)
        instance.stop()
    if plan.with_generation:
        say("generation")
        lines += uvloop.run(measure_generation(folder))
    return [
        *lines,
        *_starts("fresh folder", fresh, first_goal_s=8),
        *_starts("existing folder", again, first_goal_s=5),
        Line("import", "images of 512 px with thumbnails", "images/s", [imported.images_per_s], at_least(15),
             f"{imported.images} images in {imported.took_s:.1f} s, all cores"),
        Line("import", "CPU per image", "ms", [imported.cpu_ms], note="all processes of the command"),
    ], machine  # fmt: skip


def _starts(folder: str, started: Started, *, first_goal_s: float) -> list[Line]:
    note = "from the primary, while Ray starts"
    return [
        Line("start", f"serve → first page, {folder}", "s", [started.first_read_s], at_most(first_goal_s), note),
        Line("start", f"serve → ready, {folder}", "s", [started.ready_s], at_most(_READY_GOAL_S)),
    ]


if __name__ == "__main__":
    sys.exit(main())
