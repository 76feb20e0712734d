"""wrk: how many reads a second, and how long one takes."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from tests.bench.result import BenchError

__all__ = ["Load", "Wrk"]

#: Requests are made before the clock runs. For one reader wrk sends its own static one, which costs it no Lua.
_SCRIPT: Final = """
local requests, sent = {}, 0
function init(arguments)
  for token in io.lines(arguments[1]) do
    wrk.headers["Authorization"] = "Bearer " .. token
    requests[#requests + 1] = wrk.format("GET")
  end
  if #requests > 1 then
    function request()
      sent = sent + 1
      return requests[sent % #requests + 1]
    end
  end
end
function done(summary, latency, _)
  local e = summary.errors
  io.write(string.format("totals %d %d %d %d %d\\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99), e.connect + e.read + e.write + e.status + e.timeout))
end
"""
_TOTALS: Final = re.compile(r"^totals (\d+) (\d+) (\d+) (\d+) (\d+)$", re.MULTILINE)


class Load(NamedTuple):
    """What one round of wrk saw."""

    requests: int
    reads_per_s: float
    p50_ms: float
    p99_ms: float


class Wrk:
    """Runs wrk with its script and the readers' tokens in `folder`."""

    def __init__(self, folder: Path) -> None:
        path = shutil.which("wrk")
        if path is None:
            raise BenchError("wrk is not installed, and the reads are measured with it: apt-get install wrk")
        self._wrk = path
        self._folder = folder
        self._script = folder / "wrk.lua"
        self._script.write_text(_SCRIPT)

    def tokens(self, name: str, tokens: Sequence[str]) -> Path:
        """Keep tokens of readers, who read in turn, for `run`."""
        path = self._folder / f"{name}.tokens"
        path.write_text("".join(f"{token}\n" for token in tokens))
        path.chmod(0o600)
        return path

    def run(self, url: str, tokens: Path, *, connections: int, duration_s: int) -> Load:
        """One round: one thread of wrk, `connections` kept open, each with one read under way.

        Raises:
            BenchError: a read failed or was refused: then the rest is not what it seems.
        """
        command = [self._wrk, "-t1", f"-c{connections}", f"-d{duration_s}s", "-s", str(self._script), url]
        done = subprocess.run(
            [*command, "--", str(tokens)], capture_output=True, text=True, timeout=duration_s + 30, check=False
        )
        match = _TOTALS.search(done.stdout)
        if done.returncode or match is None:
            raise BenchError(f"wrk on {url} failed: {(done.stderr or done.stdout).strip()[-500:]}")
        requests, duration_us, p50_us, p99_us, errors = (int(number) for number in match.groups())
        if errors or not requests:
            raise BenchError(f"wrk on {url}: {errors} of {requests} reads failed, expected none")
        return Load(requests, requests / duration_us * 1e6, p50_us / 1000, p99_us / 1000)
