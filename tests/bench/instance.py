"""A served instance: `peruse serve` and the other commands, as anybody would run them."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple

from gateway.auth import Role, Signer
from gateway.config import GatewaySettings
from tests.bench.process import ROOT, Process, holder_of
from tests.bench.result import BenchError

__all__ = ["Import", "Instance"]

PROMPTS: Final = ROOT / "tests" / "data" / "parti_prompts.tsv"
_PERUSE: Final = [sys.executable, "-m", "gateway.cli"]
_IMPORTED: Final = re.compile(r"([0-9]+) images for .* in ([0-9.]+) s, ([0-9.]+) images/s, ([0-9.]+) ms CPU each")


class Import(NamedTuple):
    """What the import command says of itself at its end."""

    images: int
    took_s: float
    images_per_s: float
    cpu_ms: float


class Instance:
    """One data folder, with one host and one gateway while it runs."""

    def __init__(self, data: Path, *, log: Path) -> None:
        self.data = data
        self._log = log
        self._serve: Process | None = None
        self._importing: Process | None = None
        self.url = ""

    def start(self, *, hosts: int = 1, gateways: int = 1, workers: int | None = None) -> float:
        """Start it, with the command's own number of workers if None; answers the seconds from the command to its line
        `ready`."""
        started = time.monotonic()
        counts = ["--hosts", str(hosts), "--gateways", str(gateways)]
        counts += [] if workers is None else ["--workers", str(workers)]
        command = [*_PERUSE, "serve", "--data", str(self.data), "--port", "0", *counts]
        self._serve = Process("peruse serve", command, log=self._log)
        self.url = self._serve.wait_line("ready ", timeout_s=120)
        return time.monotonic() - started

    def stop(self) -> None:
        """Stop it, and an import that is under way. Nothing happens the second time."""
        for process in (self._importing, self._serve):
            if process is not None:
                process.stop()
        self._importing = self._serve = None

    def start_gateway(self, stack: ExitStack, environment: Mapping[str, str]) -> tuple[str, int]:
        """One gateway more, with settings of its own, until `stack` ends; answers its URL and pid."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
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
