"""A real `peruse serve`: its own processes, Ray and all, driven from outside as a person would."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import asyncpg
import httpx

__all__ = ["Served", "peruse", "processes_of"]

BIN = Path(sys.executable).parent / "peruse"


def peruse(*words: str, data: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    done = subprocess.run([BIN, *words, "--data", str(data)], capture_output=True, text=True, timeout=120)
    if check and done.returncode != 0:
        raise AssertionError(f"peruse {' '.join(words)} ended with {done.returncode}: {done.stderr}")
    return done


class Served:
    """`start`, then `client` speaks to it; `stop` is SIGTERM."""

    def __init__(self, data: Path, *options: str) -> None:
        self.data = data
        self._options = options
        self.url = ""
        self.ready_s = 0.0

    def start(self) -> None:
        """Returns when it has printed `ready`."""
        started = time.monotonic()
        command = [BIN, "serve", "--data", str(self.data), "--port", "0", *self._options]
        self.errors = self.data.with_suffix(".stderr").open("w+")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.errors, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith("ready "):
            self.process.kill()
            raise AssertionError(f"not ready: {line!r} {self.data.with_suffix('.stderr').read_text()[-2000:]}")
        self.url = line.split()[1]
        self.ready_s = time.monotonic() - started

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it; answers its exit code."""
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> int:
        """Its exit code, once it has one."""
        code = self.process.wait(timeout=20)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.errors.close()
        return code

    def token(self, user: str, *options: str) -> str:
        return peruse("token", user, *options, data=self.data).stdout.strip()

    def client(self, user: str, *options: str) -> httpx.AsyncClient:
        """A client with `user`'s token."""
        headers = {"Authorization": f"Bearer {self.token(user, *options)}"}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=10.0)

    def pid(self, name: str) -> int:
        """Process id of one of its children."""
        return int((self.data / "run" / f"{name}.pid").read_text().split()[0])

    async def primary(self) -> asyncpg.Connection:
        return await asyncpg.connect(peruse("primary", data=self.data).stdout.strip())

    async def host_pid(self) -> int:
        """Process id of the (first) replica host, once there is one that answers."""

        async def find() -> int | None:
            async with httpx.AsyncClient(base_url=self.url) as client:
                hosts = (await client.get("/readyz")).json()["hosts"]
            assert {"live", "idle", "lagging"} & set(hosts.values()), hosts
            return next((pid for pid in processes_of(self.data) if "HostActor" in _command(pid)), None)

        return int(await eventually(find, timeout_s=15))


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def processes_of(data: Path) -> list[int]:
    """Every process that runs for the instance on `data`: by command line or environment, and their children
    (Postgres' backends overwrite both)."""
    needle = str(data)
    found, parents = set(), {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_text() + (entry / "environ").read_text()
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if needle in words:
            found.add(int(entry.name))
    while more := {pid for pid, parent in parents.items() if parent in found and pid not in found}:
        found |= more
    return sorted(found)


async def eventually(check: Any, *, timeout_s: float) -> Any:
    """What `check` answers once it is true; exceptions count as not yet."""
    deadline = time.monotonic() + timeout_s
    last: object = None
    while time.monotonic() < deadline:
        try:
            result = await check()
            if result:
                return result
            last = result
        except (httpx.HTTPError, OSError, asyncpg.PostgresError, AssertionError, json.JSONDecodeError) as error:
            last = error
        await asyncio.sleep(0.05)
    raise AssertionError(f"not within {timeout_s} s; last: {last!r}")
