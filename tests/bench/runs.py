"""What every run needs: a folder, a voice, an end in order; and where its results lie."""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

from tests.bench.process import ROOT
from tests.bench.result import BenchError

__all__ = ["CHART", "COMMITTED", "GROWN", "OUT", "bench_folder", "run", "say", "write_between"]

OUT: Final = ROOT / "bench-out"
#: The last full run, which the quick one is held against and the README quotes.
COMMITTED: Final = ROOT / "tests" / "bench" / "bench.json"
#: The last full growth run, which deploy/CAPACITY.md is fitted to.
GROWN: Final = ROOT / "tests" / "bench" / "growth.json"
CHART: Final = ROOT / "deploy" / "bench.png"


def run(work: Callable[[], int]) -> int:
    """`work`'s exit code; 2: it could not be measured, 130: interrupted."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return work()
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130


@contextmanager
def bench_folder() -> Iterator[Path]:
    """A folder for everything, that any user may enter: embedded Postgres does not run as root."""
    folder = Path(tempfile.mkdtemp(prefix="peruse-bench-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_between(name: str, mark: str, text: str) -> int:
    """Replace what stands between `<!-- mark -->` and `<!-- /mark -->` in the document `name`; the exit code."""
    path = ROOT / name
    start, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    before, found, rest = path.read_text().partition(start)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        print(f"{name} has no {start} … {end} to write into", file=sys.stderr)
        return 1
    path.write_text(f"{before}{start}\n{text}\n{end}{after}")
    return 0


def say(what: str) -> None:
    print(f"bench: {what}", file=sys.stderr, flush=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
