"""A host: one process that holds many users' replicas and answers gateways over the wire.

Plain asyncio: Ray only starts it and keeps it (cluster). It registers itself, beats once a second, sweeps once a
second, and stops when another generation took its place.
"""

from __future__ import annotations

import asyncio
import os
import resource
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import structlog

from actors.activation import Limits
from actors.config import HostSettings
from actors.folder import ReplicaFolder
from actors.handler import HostHandler
from actors.health import Pulse, reserved_user
from actors.janitor import Janitor
from actors.metrics import HostMetrics, HostStats, resident_bytes
from actors.placement import first
from actors.replicas import Replicas
from actors.slots import Slots
from actors.wire import WireServer
from store import hosts
from store.clock import Clock, SystemClock
from store.config import StoreSettings
from store.documents import Documents
from store.errors import PrimaryUnavailable, SettingError
from store.primary import Primary
from store.retention import trim

__all__ = ["ReplicaHost"]

log = structlog.get_logger()

BEAT_S = 1.0
SWEEP_S = 1.0
PULSE_S = 5.0
TRIM_S = 600.0
TIDY_S = 60.0
ERASED_S = 2.0
#: Handles that are not replicas: sockets, connections, logs, libraries.
_OTHER_HANDLES = 256
#: How long a drain may take in all, and what of it is left for requests under way after gateways have heard.
_DRAIN_S, _FINISH_S = 2.5, 1.0
_SHORT_PREFIX = "peruse-host-"
_MAX_SOCKET_PATH = 100  # bytes; the kernel's limit is 108


class ReplicaHost:
    """One host. `start`, then `stopped` until `stop` is called or another generation replaces it."""

    def __init__(
        self,
        data: Path,
        *,
        slot: int,
        primary_url: str,
        store: StoreSettings,
        settings: HostSettings,
        build: str,
        clock: Clock | None = None,
    ) -> None:
        self.id = f"{settings.node}:{slot}"
        self.generation = 0
        self.address = ""
        self._data = data
        self._slot = slot
        self._url = primary_url
        self._settings = settings
        self._build = build
        self._clock = clock or SystemClock()
        self._documents = Documents(store.files_base)
        self._metrics = HostMetrics()
        self._connections: set[WireServer] = set()
        #: What was taken so far, and how to give it back: the last first.
        self._taken = AsyncExitStack()
        self._ending: asyncio.Task[None] | None = None  # held, so that it is not collected half-way
        self._tasks: list[asyncio.Task[None]] = []
        self._state = "live"
        #: The hosts whose users are theirs, as last read; without any, everybody's users are ours.
        self._members: tuple[str, ...] = ()
        self._stopped = asyncio.Event()

    async def start(self) -> None:
        """Claim the folder, listen, register. Waits for the primary as long as it takes.

        Raises:
            SettingError: the settings contradict each other.
        """
        if self._settings.wire_listen and not self._settings.wire_secret.get_secret_value():
            raise SettingError("PERUSE_WIRE_SECRET must be set when PERUSE_WIRE_LISTEN is")
        try:
            await self._start()
        except BaseException:
            await self._taken.aclose()
            raise
        log.info("host.started", host=self.id, generation=self.generation, address=self.address)

    async def _start(self) -> None:
        max_active = min(self._settings.host_max_active, _raise_file_limit())
        self._control = await self._open_primary("control", 2)
        pulls = await self._open_primary("pulls", self._settings.host_pulls)
        seeds = self._seeds = await self._open_primary(
            "seeds", self._settings.host_seeds, wait_s=30.0, statement_timeout_s=300.0
        )
        self.generation = await self._register(max_active)
        self._socket = _socket_path(self._data / "run" / "hosts", f"{self._slot}.{self.generation}.sock")
        self._taken.callback(self._remove_meeting_place)
        replicas = self._settings.replicas_folder(self._data)
        folder = ReplicaFolder.claim(replicas, self.id, generation=self.generation)
        self._taken.callback(folder.release)
        self._replicas = Replicas(
            folder,
            pulls,
            seeds,
            self._documents,
            Limits(
                max_active=max_active,
                max_bytes=self._settings.host_memory_mb * 2**20,
                idle_s=self._settings.host_idle_s,
                pulls=self._settings.host_pulls,
                seeds=self._settings.host_seeds,
                all_seeds=self._settings.primary_seeds,
            ),
            clock=self._clock,
            metrics=self._metrics,
            slots=self._create_slots(max_active),
            may_seed=self._may_seed,
        )
        self._taken.push_async_callback(self._replicas.life.close_all)
        self._janitor = Janitor(
            folder,
            max_bytes=self._settings.host_disk_mb * 2**20,
            max_age_s=self._settings.host_file_days * 86_400,
            clock=self._clock,
        )
        self._handler = HostHandler(self._replicas, self.stats, self._metrics)
        self._pulse = Pulse(self._control, self._replicas, self.id)
        self._server = await self._listen()
        self._taken.callback(self._stop_listening)
        await self._beat()
        self._run("beat", BEAT_S, self._beat)
        self._run("sweep", SWEEP_S, self._sweep)
        self._run("pulse", PULSE_S, self._pulse.beat, at_once=True)
        self._run("trim", TRIM_S, self._trim)
        self._run("tidy", TIDY_S, self._tidy, at_once=True)
        self._run("erased", ERASED_S, self._forget_erased, at_once=True)
        if self._settings.host_audit_s:
            self._run("audit", self._settings.host_audit_s, self._replicas.audit_idle)

    async def _open_primary(self, name: str, size: int, **options: float) -> Primary:
        primary = await Primary.open(self._url, name=f"{self.id} {name}", size=size, **options)
        self._taken.push_async_callback(primary.close)
        return primary

    async def _register(self, capacity: int) -> int:
        while True:
            try:
                return await hosts.register(
                    self._control, self.id, node=self._settings.node, build=self._build, capacity=capacity
                )
            except PrimaryUnavailable:
                await asyncio.sleep(0.5)  # without the primary there is nothing to serve and nobody to tell

    def _create_slots(self, count: int) -> Slots:
        """Beside the socket, for gateways of this node; those of others come over the wire."""
        if self._settings.wire_listen:
            return Slots.create(None, count)
        for left in self._socket.parent.glob(f"{self._slot}.*.slots"):
            left.unlink(missing_ok=True)  # of generations that were killed
        slots = Slots.create(self._socket.with_suffix(".slots"), count)
        self._taken.callback(slots.close)
        return slots

    async def _listen(self) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        if self._settings.wire_listen:
            secret = self._settings.wire_secret.get_secret_value().encode()
            host, _, port = self._settings.wire_listen.rpartition(":")
            try:
                server = await loop.create_server(
                    lambda: WireServer(self._handler, self._connections, secret=secret), host, int(port)
                )
            except (OSError, ValueError) as error:
                raise SettingError(f"cannot listen on {self._settings.wire_listen}: {error}") from error
            self.address = f"tcp:{host}:{server.sockets[0].getsockname()[1]}"
            return server
        path = self._socket
        server = await loop.create_unix_server(lambda: WireServer(self._handler, self._connections, secret=None), path)
        path.chmod(0o600)
        self.address = f"unix:{path}"
        return server

    async def stopped(self) -> None:
        """Returns when the host has nothing more to do."""
        await self._stopped.wait()

    async def drain(self) -> None:
        """Say that others should be asked, finish what is under way, then stop."""
        self._state = "draining"
        try:
            await self._beat()
        except PrimaryUnavailable:
            pass
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _DRAIN_S
        # Gateways look once a second; those that are gone do not have to hear of it.
        while self._connections and loop.time() < deadline - _FINISH_S:
            await asyncio.sleep(0.05)
        while any(connection.in_flight for connection in self._connections) and loop.time() < deadline:
            await asyncio.sleep(0.02)
        await self.stop()

    async def stop(self) -> None:
        """Close everything. The files stay, and the next generation opens them again."""
        if self._stopped.is_set():
            return
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            await asyncio.wait_for(hosts.leave(self._control, self.id, self.generation), 1.0)
        except (PrimaryUnavailable, TimeoutError):
            pass  # its heartbeat says the same, five seconds later
        await self._taken.aclose()
        self._stopped.set()
        log.info("host.stopped", host=self.id, generation=self.generation)

    def _stop_listening(self) -> None:
        self._server.close()
        for connection in list(self._connections):
            connection.close()

    def _remove_meeting_place(self) -> None:
        for path in (self._socket, self._socket.with_suffix(".slots")):
            path.unlink(missing_ok=True)
        if self._socket.parent.name.startswith(_SHORT_PREFIX):
            self._socket.parent.rmdir()

    # --- what it says of itself ------------------------------------------------------------------------------------

    def stats(self) -> HostStats:
        """The host as it describes itself."""
        return HostStats(
            host=self.id,
            generation=self.generation,
            pid=os.getpid(),
            metrics=self._metrics,
            active=self._replicas.active_count,
            seeding=self._replicas.seeding_count,
            watched=len(self._replicas.watches),
            open_bytes=self._replicas.life.budget.used_bytes,
            kept_bytes=self._replicas.life.budget.kept_bytes,
            disk_bytes=self._janitor.bytes,
            resident_bytes=resident_bytes(),
            in_flight=sum(connection.in_flight for connection in self._connections),
            lag_s=self._replicas.lag_s,
            is_stuck=self._pulse.is_stuck,
        )

    # --- what it does by itself -----------------------------------------------------------------------------------

    def _run(self, name: str, period_s: float, work: Callable[[], Awaitable[None]], *, at_once: bool = False) -> None:
        self._tasks.append(asyncio.create_task(self._every(period_s, work, at_once=at_once), name=name))

    async def _every(self, period_s: float, work: Callable[[], Awaitable[None]], *, at_once: bool) -> None:
        """Ended by `stop`."""
        loop = asyncio.get_running_loop()
        due = loop.time() + (0.0 if at_once else period_s)
        while True:
            await asyncio.sleep(due - loop.time())
            try:
                await work()
            except PrimaryUnavailable:
                pass  # ages grow, and reads say so
            except hosts.Replaced as replaced:
                log.warning("host.replaced", host=self.id, reason=str(replaced))
                self._ending = asyncio.get_running_loop().create_task(self.stop())
                return
            except Exception:
                log.exception("host.loop_failed", host=self.id)
            # A turn that came late is not followed by the next at once: what it started needs time to arrive.
            due = max(due + period_s, loop.time() + period_s / 2)

    async def _beat(self) -> None:
        state = "stuck" if self._state == "live" and self._pulse.is_stuck else self._state
        await hosts.heartbeat(self._control, self.id, self.generation, address=self.address, state=state)
        self._members = tuple(row.id for row in await hosts.list_hosts(self._control) if row.is_missed)

    def _may_seed(self, user: str) -> bool:
        """Whether a user without a file here is ours: not while the host that has it is away for a moment. Our own
        user is, wherever placement would put it."""
        return user == reserved_user(self.id) or first(user, self._members) in (self.id, None)

    async def _trim(self) -> None:
        # Every host does it: batches skip what another one has locked, and without work it is one index probe.
        trimmed = await trim(self._seeds, keep_s=self._settings.retention_h * 3600)
        if trimmed.versions:
            log.info("retention.trimmed", versions=trimmed.versions, rows=trimmed.rows)

    async def _sweep(self) -> None:
        self._replicas.life.close_idle()
        await self._replicas.sweep()

    async def _tidy(self) -> None:
        self._metrics.files_removed += await self._janitor.tidy(self._replicas.life.paths)

    async def _forget_erased(self) -> None:
        removed = await self._janitor.forget_erased(self._control, self._replicas.life.forget)
        self._metrics.files_removed += removed


def _socket_path(folder: Path, name: str) -> Path:
    if len(os.fsencode(folder / name)) > _MAX_SOCKET_PATH:
        folder = Path(tempfile.mkdtemp(prefix=_SHORT_PREFIX))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / name
    path.unlink(missing_ok=True)
    return path


def _raise_file_limit() -> int:
    """Raise the limit of open files as far as allowed; answers how many replicas fit (two handles each)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = 1_048_576
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return max(1, (hard - _OTHER_HANDLES) // 2)
