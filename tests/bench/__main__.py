"""The run: start, import, reads, writes, seeds, sweeps, start again, memory, streams. Exit code 1: a goal is missed."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

import uvloop

from tests.bench import report
from tests.bench.arrivals import measure_arrivals, measure_waits
from tests.bench.client import Target, bearer
from tests.bench.cold import COLD_ROWS, measure_cold, measure_reopen
from tests.bench.gallery import add_users, server_version, user_names
from tests.bench.instance import Instance
from tests.bench.load import Wrk
from tests.bench.machine import describe
from tests.bench.memory import IDLE_S, add_passive, measure_memory
from tests.bench.plan import FULL, QUICK, Plan
from tests.bench.process import ROOT
from tests.bench.reads import PATH, ReadBench
from tests.bench.result import BenchError, Line, at_least, at_most
from tests.bench.seeds import SEED_ROWS, measure_seeds
from tests.bench.streams import measure_streams
from tests.bench.sweeps import measure_sweeps
from tests.bench.writes import measure_writes

_OUT: Final = ROOT / "bench-out"
_USER: Final = "ana"
_PAGE: Final = 50
_WARM_USERS: Final = 20
_START_GOAL_S: Final = 30


def main() -> int:
    """Run it all. 0: every goal met, 1: one missed, 2: it could not be measured, 130: interrupted."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="shorter rounds and fewer users: under 3 minutes")
    plan = QUICK if parser.parse_args().quick else FULL
    signal.signal(signal.SIGTERM, _interrupt)
    started = time.monotonic()
    try:
        with _folder() as folder, ExitStack() as stack:
            lines, machine = _measure(folder, stack, plan)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130
    took_s = time.monotonic() - started
    _OUT.mkdir(exist_ok=True)
    report.save(_OUT / "bench.json", lines, machine, plan=plan.name, took_s=took_s)
    report.chart(_OUT / "bench.png", lines, machine)
    print(report.table(lines, machine, plan=plan.name, took_s=took_s))
    return 1 if any(line.verdict == "FAIL" for line in lines) else 0


def _measure(folder: Path, stack: ExitStack, plan: Plan) -> tuple[list[Line], dict[str, str]]:
    """All sections in turn. `stack` ends what was started, in whatever way this ends."""
    wrk = Wrk(folder)
    instance = Instance(folder / "data", log=folder / "instance.log")
    stack.callback(instance.stop)

    _say("starting on a fresh folder")
    fresh_s = instance.start()
    _say(f"importing {plan.imported} images")
    imported = instance.import_gallery(_USER, images=plan.imported)
    primary_url, token = instance.primary_url(), instance.token(_USER)
    machine = describe(postgres=uvloop.run(server_version(primary_url)))

    readers, seeded = user_names("reader", plan.rotating_users), user_names("seed", plan.seeds + 2)
    many, warm = user_names("active", plan.active_users), user_names("warm", _WARM_USERS)
    _say(f"making {len(readers) + len(seeded) + len(many) + len(warm)} users by SQL")
    uvloop.run(add_users(primary_url, [*readers, *many, *warm], images=_PAGE, like=_USER))
    uvloop.run(add_users(primary_url, seeded, images=SEED_ROWS, like=_USER))

    reads = ReadBench(instance, wrk, plan, folder=folder, say=_say)
    tokens, service = [instance.token(user) for user in readers], instance.token("bench", role="service")
    lines = reads.measure(_USER, token, tokens)
    _say(f"{plan.writes} writes")
    lines += uvloop.run(measure_writes(instance.url, token, plan))
    _say(f"{plan.runs} runs of {plan.arrivals} writes that arrive, and of {plan.waits} reads that wait")
    lines += uvloop.run(measure_arrivals(instance.url, tokens, plan))
    lines += uvloop.run(measure_waits(instance.url, primary_url, tokens, plan))
    _say(f"{plan.seeds} seeds")
    lines += uvloop.run(measure_seeds(primary_url, seeded, folder))
    _say(f"{plan.cold_users} cold users, {len(warm)} passive ones")
    cold = user_names("cold", plan.cold_users)
    uvloop.run(add_users(primary_url, cold, images=COLD_ROWS, like=_USER))
    lines += uvloop.run(measure_cold(instance.url, service, cold, Target(PATH, bearer(token))))
    admin = instance.token("bench", role="admin")
    lines += uvloop.run(
        measure_reopen(instance.url, primary_url, warm, folder, service_token=service, admin_token=admin)
    )
    _say("sweeps")
    lines += uvloop.run(measure_sweeps(primary_url))

    _say("starting again on the same folder")
    instance.stop()
    instance.set("host_idle_s", str(IDLE_S))
    passive = user_names("passive", plan.known_users - plan.active_users)
    add_passive(folder / "data" / "replicas", passive)
    again_s = instance.start()
    _say(f"{plan.active_users} users of {plan.known_users} become active")
    lines += uvloop.run(measure_memory(instance.url, service, warm, many, known_users=plan.known_users))
    _say(f"starting again, and {plan.streams} event streams")
    instance.stop()
    instance.start()
    lines += uvloop.run(measure_streams(instance, primary_url, warm, streams=plan.streams))
    _say("stopping")
    return [
        *lines,
        Line("start", "serve → ready, fresh folder", "s", [fresh_s], at_most(_START_GOAL_S)),
        Line("start", "serve → ready, existing folder", "s", [again_s], at_most(_START_GOAL_S)),
        Line("import", "images of 512 px with thumbnails", "images/s", [imported.images_per_s], at_least(15),
             f"{imported.images} images in {imported.took_s:.1f} s, all cores"),
        Line("import", "CPU per image", "ms", [imported.cpu_ms], note="all processes of the command"),
    ], machine  # fmt: skip


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder for everything, that any user may enter: embedded Postgres does not run as root."""
    folder = Path(tempfile.mkdtemp(prefix="peruse-bench-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _say(what: str) -> None:
    print(f"bench: {what}", file=sys.stderr, flush=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
