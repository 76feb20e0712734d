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

__all__ = ["CHART", "COMMITTED", "OUT", "bench_folder", "run", "say"]

OUT: Final = ROOT / "bench-out"
#: The last full run, which the quick one is held against and the README quotes.
COMMITTED: Final = ROOT / "tests" / "bench" / "bench.json"
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


def say(what: str) -> None:
    print(f"bench: {what}", file=sys.stderr, flush=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
