"""`peruse serve`: Postgres, Ray with hosts and workers, gateways on one machine, started in order and kept running."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import httpx
import structlog

from gateway.process import Child, end_leftovers
from store.config import StoreSettings
from store.embedded import EmbeddedPostgres
from store.errors import SettingError
from store.instance import Instance, InstanceLock
from store.migrations import migrate

__all__ = ["Supervisor"]

log = structlog.get_logger()

_GATEWAY_STOP_S: Final = 3.0
_HOSTS_STOP_S: Final = 6.0


class Supervisor:
    """All parts of one instance. `say` is told, in a few words, what is being waited for."""

    def __init__(
        self,
        data: Path,
        *,
        host: str,
        port: int,
        hosts: int,
        gateways: int,
        workers: int,
        settings: StoreSettings,
        say: Callable[[str], None],
    ) -> None:
        self._data = data
        self._host = host
        self._port = port
        self._hosts = hosts
        self._gateways = gateways
        self._workers = workers
        self._settings = settings
        self._say = say
        self._lock = InstanceLock(data)
        self._postgres: EmbeddedPostgres | None = None
        self._children: list[Child] = []
        self._sockets: list[socket.socket] = []

    async def run(self, ready: Callable[[str], None]) -> None:
        """Start everything, tell `ready` the URL at the first 200 of /readyz, run until SIGINT or SIGTERM.

        Raises:
            StoreError: something that has to be mended first; its message says how.
        """
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        starting = asyncio.create_task(self._start())
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                ready(starting.result())
                await stopping
        finally:
            starting.cancel()
            stopping.cancel()
            await asyncio.gather(starting, stopping, return_exceptions=True)
            self._say("stopping")
            await self._stop()

    async def _start(self) -> str:
        started = time.monotonic()
        self._sockets = [self._listen(n) for n in range(self._gateways)]
        url = f"http://{self._host}:{self._sockets[0].getsockname()[1]}"
        if not self._settings.primary_url.get_secret_value():
            bin_folder = Path(self._settings.pg_bin) if self._settings.pg_bin else None
            self._postgres = EmbeddedPostgres(self._data / "postgres", bin_folder=bin_folder, on_event=_log_event)
            if not self._data.exists():
                self._postgres.check()  # before anything is made; an existing folder has to be ours first
        prepare_data(self._data)
        self._lock.take()
        left = end_leftovers(self._data / "run")
        if left:
            log.warning("leftovers.ended", processes=left)
        primary_url = await self._start_primary()
        self._say("bringing the tables up to date")
        await migrate(primary_url)
        self._lock.write(Instance(os.getpid(), url, primary_url))
        self._say("starting Ray, hosts and workers, and the gateway beside them (Ray takes 10 to 15 s)")
        await self._start_children()
        await self._wait_ready(url)
        log.info("serve.ready", url=url, took_s=round(time.monotonic() - started, 2))
        return url

    async def _start_primary(self) -> str:
        if self._postgres is None:
            self._say("connecting to the primary")
            return self._settings.primary_url.get_secret_value()
        self._say("starting Postgres")
        await self._postgres.start()
        return self._postgres.url

    async def _start_children(self) -> None:
        base = [sys.executable, "-m", "gateway.cli"]
        data = ["--data", str(self._data)]
        for n, listening in enumerate(self._sockets):
            # The socket is ours and stays open: while a gateway restarts, its clients wait instead of failing.
            command = [*base, "gateway", *data, "--fd", str(listening.fileno()), "--index", str(n)]
            self._children.append(Child(f"gateway-{n}", command, data=self._data, pass_fds=[listening.fileno()]))
        if self._hosts:
            command = [*base, "hosts", *data, "--count", str(self._hosts), "--workers", str(self._workers)]
            self._children.append(Child("hosts", command, data=self._data))
        elif self._workers:
            command = [*base, "workers", *data, "--count", str(self._workers)]
            self._children.append(Child("workers", command, data=self._data))
        for child in self._children:
            await child.start()

    async def _wait_ready(self, url: str) -> None:
        async with httpx.AsyncClient(timeout=3.0, trust_env=False) as client:
            while True:
                try:
                    if (await client.get(f"{url}/readyz")).status_code == 200:
                        return
                except httpx.HTTPError:
                    pass
                await asyncio.sleep(0.1)

    def _listen(self, n: int) -> socket.socket:
        """A listening socket per gateway, all on one port; the kernel spreads connections over them."""
        port = self._port
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            if n == 0:  # without SO_REUSEPORT first: that would share the port with whoever else has it
                with socket.socket(family, socket.SOCK_STREAM) as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind((self._host, port))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listening.bind((self._host, port))
            listening.listen(1024)
            listening.setblocking(False)
        except OSError as error:
            listening.close()
            raise SettingError(
                f"cannot listen on {self._host}:{port}: {error.strerror} (choose another --port)"
            ) from None
        self._port = listening.getsockname()[1]  # --port 0: the first one's is everybody's
        return listening

    async def _stop(self) -> None:
        clusters = [child for child in self._children if child.name in ("hosts", "workers")]
        gateways = [child for child in self._children if child not in clusters]
        await asyncio.gather(*(child.stop(timeout_s=_GATEWAY_STOP_S) for child in gateways))
        await asyncio.gather(*(child.stop(timeout_s=_HOSTS_STOP_S) for child in clusters))
        if self._postgres is not None:
            await self._postgres.stop()
        for listening in self._sockets:
            listening.close()
        self._lock.release()


def prepare_data(data: Path) -> None:
    """Make the data folder. As root it may be entered (not read) by the user that Postgres runs as.

    Raises:
        SettingError: it cannot be made or written to.
    """
    try:
        if not data.exists():
            data.mkdir(parents=True)
            data.chmod(0o711 if os.geteuid() == 0 else 0o700)
        probe = data / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise SettingError(f"the data folder {data} cannot be written to: {error.strerror}") from None


def _log_event(name: str, fields: dict[str, object]) -> None:
    log.warning(name, **fields)
