"""wrk: how many reads a second, and how long one takes."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from tests.bench.result import BenchError

__all__ = ["Load", "Requests", "Wrk"]

#: Requests are made before the clock runs. A single one wrk sends by itself, which costs it no Lua.
_SCRIPT: Final = """
local requests, sent = {}, 0
local function add(line, name_of_id, id)
  local fields = {}
  for field in line:gmatch("[^\\t]+") do fields[#fields + 1] = field end
  for n = 2, #fields do
    local name, value = fields[n]:match("^([^:]+): (.*)$")
    wrk.headers[name] = value
  end
  if id then wrk.headers[name_of_id] = id end
  wrk.path = fields[1]
  requests[#requests + 1] = wrk.format("GET")
end
function init(arguments)
  local variants = tonumber(arguments[2])
  for line in io.lines(arguments[1]) do
    if variants == 0 then add(line) end
    for n = 1, variants do add(line, arguments[3], string.format("bench-%06d", n)) end
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
  io.write(string.format("totals %d %d %d %d %d %d\\n", summary.requests, summary.duration, summary.bytes,
    latency:percentile(50), latency:percentile(99), e.connect + e.read + e.write + e.status + e.timeout))
end
"""
_TOTALS: Final = re.compile(r"^totals (\d+) (\d+) (\d+) (\d+) (\d+) (\d+)$", re.MULTILINE)


class Load(NamedTuple):
    """What one round of wrk saw. `bytes_each`: head and body of one reply."""

    requests: int
    reads_per_s: float
    p50_ms: float
    p99_ms: float
    bytes_each: float


class Requests(NamedTuple):
    """What to ask for, in turn. With `variants` each is sent in that many forms, which differ in the header `varying`:
    so no two requests are alike byte for byte until all have been sent."""

    file: Path
    variants: int = 0
    varying: str = ""


class Wrk:
    """Runs wrk with its script and the readers' requests in `folder`."""

    def __init__(self, folder: Path) -> None:
        path = shutil.which("wrk")
        if path is None:
            raise BenchError("wrk is not installed, and the reads are measured with it: apt-get install wrk")
        self._wrk = path
        self._folder = folder
        self._script = folder / "wrk.lua"
        self._script.write_text(_SCRIPT)

    def requests(
        self, name: str, requests: Sequence[tuple[str, Mapping[str, str]]], *, variants: int = 0, varying: str = ""
    ) -> Requests:
        """Keep requests, each a path and its headers, for `run`."""
        lines = [
            "\t".join([path, *(f"{key}: {value}" for key, value in headers.items())]) for path, headers in requests
        ]
        file = self._folder / f"{name}.requests"
        file.touch(mode=0o600)
        file.write_text("\n".join(lines) + "\n")
        return Requests(file, variants, varying)

    def run(self, url: str, requests: Requests, *, connections: int, duration_s: int) -> Load:
        """One round: one thread of wrk, `connections` kept open, each with one read under way. Of `url` only the
        origin counts.

        Raises:
            BenchError: a read failed or was refused: then the rest is not what it seems.
        """
        command = [self._wrk, "-t1", f"-c{connections}", f"-d{duration_s}s", "-s", str(self._script), url]
        done = subprocess.run(
            [*command, "--", str(requests.file), str(requests.variants), requests.varying],
            capture_output=True, text=True, timeout=duration_s + 30, check=False,
        )  # fmt: skip
        match = _TOTALS.search(done.stdout)
        if done.returncode or match is None:
            raise BenchError(f"wrk on {url} failed: {(done.stderr or done.stdout).strip()[-500:]}")
        count, duration_us, received, p50_us, p99_us, errors = (int(number) for number in match.groups())
        if errors or not count:
            raise BenchError(f"wrk on {url}: {errors} of {count} reads failed, expected none")
        return Load(count, count / duration_us * 1e6, p50_us / 1000, p99_us / 1000, received / count)
