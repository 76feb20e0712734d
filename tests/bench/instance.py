"""A served instance: `peruse serve` and the other commands, as anybody would run them."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple

from gateway.auth import Role, Signer
from gateway.config import GatewaySettings
from tests.bench.process import ROOT, Process, holder_of
from tests.bench.result import BenchError

__all__ = ["Import", "Instance", "Started"]

PROMPTS: Final = ROOT / "tests" / "data" / "parti_prompts.tsv"
_PERUSE: Final = [sys.executable, "-m", "gateway.cli"]
_IMPORTED: Final = re.compile(r"([0-9]+) images for .* in ([0-9.]+) s, ([0-9.]+) images/s, ([0-9.]+) ms CPU each")


class Import(NamedTuple):
    """What the import command says of itself at its end."""

    images: int
    took_s: float
    images_per_s: float
    cpu_ms: float


class Started(NamedTuple):
    """Seconds from the command to its line `ready`, and to the first page that a client got."""

    ready_s: float
    first_read_s: float


class Instance:
    """One data folder, with one host and one gateway while it runs."""

    def __init__(self, data: Path, *, log: Path) -> None:
        self.data = data
        self._log = log
        self._serve: Process | None = None
        self._importing: Process | None = None
        self.url = ""

    def start(self, *, hosts: int = 1, gateways: int = 1, workers: int | None = None) -> Started:
        """Start it, with the command's own number of workers if None, and read as soon as it can be read."""
        started = time.monotonic()
        port = _free_port()
        counts = ["--hosts", str(hosts), "--gateways", str(gateways)]
        counts += [] if workers is None else ["--workers", str(workers)]
        command = [*_PERUSE, "serve", "--data", str(self.data), "--port", str(port), *counts]
        self._serve = Process("peruse serve", command, log=self._log)
        self._serve.wait_until(lambda: self._answers(f"http://127.0.0.1:{port}"), what="answer a read", timeout_s=120)
        first_read_s = time.monotonic() - started
        self.url = self._serve.wait_line("ready ", timeout_s=120)
        return Started(time.monotonic() - started, first_read_s)

    def _answers(self, url: str) -> bool:
        """Whether a user, who may be new, gets a page."""
        if not (self.data / "run" / "instance.json").exists():
            return False  # the folder is not ours to write a key into yet
        request = urllib.request.Request(
            f"{url}/api/images", headers={"Authorization": f"Bearer {self.token('first')}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=1) as answer:
                return b'"success":true' in answer.read()
        except (OSError, urllib.error.URLError):
            return False

    def stop(self) -> None:
        """Stop it, and an import that is under way. Nothing happens the second time."""
        for process in (self._importing, self._serve):
            if process is not None:
                process.stop()
        self._importing = self._serve = None

    def start_gateway(self, stack: ExitStack, environment: Mapping[str, str]) -> tuple[str, int]:
        """One gateway more, with settings of its own, until `stack` ends; answers its URL and pid."""
        port = _free_port()
        command = [*_PERUSE, "gateway", "--data", str(self.data), "--port", str(port), "--index", "9"]
        gateway = Process("peruse gateway", command, log=self._log, environment=environment)
        stack.callback(gateway.stop)

        def listens() -> bool:
            with socket.socket() as attempt:
                return attempt.connect_ex(("127.0.0.1", port)) == 0

        gateway.wait_until(listens, what=f"listen on port {port}")
        return f"http://127.0.0.1:{port}", gateway.pid

    def import_gallery(self, user: str, *, images: int) -> Import:
        """`peruse import` of the first `images` prompts, at the command's own size of 512 px."""
        command = [*_PERUSE, "import", str(PROMPTS), "--user", user, "--limit", str(images), "--data", str(self.data)]
        self._importing = Process("peruse import", command, log=self._log)
        said = self._importing.wait_line("imported ", timeout_s=300)
        self._importing.stop()
        match = _IMPORTED.fullmatch(said)
        if match is None:
            raise BenchError(f"peruse import ended with {said!r}, expected images/s and ms CPU")
        return Import(int(match[1]), float(match[2]), float(match[3]), float(match[4]))

    def token(self, user: str, *, role: Role = "user") -> str:
        """As `peruse token` prints it, without a process for each of hundreds of users."""
        return Signer(self.data, GatewaySettings.load(self.data)).token(user, role=role)

    def primary_url(self) -> str:
        return self._ask("primary")

    def set(self, name: str, value: str) -> None:
        """Keep a setting; it counts from the next start."""
        self._ask("config", "set", name, value)

    def serve_pid(self) -> int:
        assert self._serve is not None
        return self._serve.pid

    def gateway_pid(self, index: int = 0) -> int:
        return int((self.data / "run" / f"gateway-{index}.pid").read_text().split()[0])

    def host_pid(self, slot: int = 0) -> int:
        """The host runs inside one of Ray's workers: known by the log that it has open."""
        return holder_of(self.data / "logs" / f"host-{slot}.log")

    def postmaster_pid(self) -> int:
        """The embedded Postgres."""
        (file,) = self.data.glob("**/postmaster.pid")
        return int(file.read_text().split()[0])

    def _ask(self, *command: str) -> str:
        answer = subprocess.run(
            [*_PERUSE, *command, "--data", str(self.data)], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        if answer.returncode:
            raise BenchError(f"peruse {' '.join(command)} failed: {answer.stderr.strip()[-500:]}")
        return answer.stdout.strip()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
