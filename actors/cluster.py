"""Ray: starts hosts and workers as actors, and keeps as many as asked for. The only file that imports it.

Ray is cattle: everything in it can be rebuilt from the primary, and gateways answer without it. So one process owns a
local cluster (or joins an existing one), creates the actors and ends with them; when it is killed, Ray's processes die
with it and the supervisor starts it again.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import hashlib
import os
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import structlog

from actors.config import HostSettings, WorkerSettings
from actors.host import ReplicaHost
from actors.worker import GenerationWorker
from store.clock import SystemClock
from store.config import StoreSettings
from store.errors import SettingError
from store.generation.config import ProviderSettings
from store.instance import primary_url
from store.keyfile import kept_secret
from store.logs import configure
from store.priority import run_first

__all__ = ["Cluster", "keep_cluster"]

log = structlog.get_logger()

NAMESPACE: Final = "peruse"
_OBJECT_STORE_BYTES: Final = 80 * 2**20  # nothing of ours goes through it; the least that Ray takes is 75 MiB

#: Read by Ray when it is imported and when its processes start.
_RAY_ENVIRONMENT: Final = {
    "RAY_worker_niceness": "0",  # Ray gives its workers nice 15: hosts would lose to everything else
    "RAY_USAGE_STATS_ENABLED": "0",
}
#: And for a cluster of our own. Another one has an address and a token of its own.
_OWN_ENVIRONMENT: Final = {
    "RAY_AUTH_MODE": "token",
    # Its name is from other systems; what it does is to bind every port of Ray to the loopback address.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}


class Cluster:
    """Hosts and workers of this machine: `start`, then `keep` until `stop`."""

    def __init__(self, data: Path, *, hosts: int, workers: int, settings: HostSettings, build: str) -> None:
        self._data = data
        self._hosts = hosts
        self._workers = workers
        self._settings = settings
        self._build = build
        self._actors: list[Any] = []
        self._folder: Path | None = None

    def start(self) -> None:
        """Start Ray, or join the cluster of PERUSE_RAY_ADDRESS, and create the actors."""
        os.environ.update(_RAY_ENVIRONMENT)
        if not self._settings.ray_address:
            os.environ.update(_OWN_ENVIRONMENT, RAY_AUTH_TOKEN_PATH=str(_token(self._data)))
        import ray  # slow, and it reads the environment above

        options: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "configure_logging": False}
        if self._settings.ray_address:
            ray.init(address=self._settings.ray_address, **options)
        else:
            self._folder = _fresh_ray_folder(self._data, "hosts" if self._hosts else "workers")
            with _trimmed():
                ray.init(
                    address="local",
                    include_dashboard=False,
                    object_store_memory=_OBJECT_STORE_BYTES,
                    num_cpus=self._hosts + self._workers,
                    _temp_dir=str(self._folder),
                    **options,
                )
        for kind, shell, count in (("host", _HostActor, self._hosts), ("worker", _WorkerActor, self._workers)):
            Actor = ray.remote(shell)
            for slot in range(count):
                self._actors.append(
                    Actor.options(
                        name=f"{kind}-{self._settings.node}-{slot}-{self._build}",
                        lifetime="detached",  # it outlives the process that asked for it
                        get_if_exists=True,
                        max_restarts=-1,
                        max_task_retries=0,
                        num_cpus=0,
                        enable_task_events=False,
                    ).remote(str(self._data), slot, self._build)
                )

    async def keep(self, stop: asyncio.Event) -> None:
        """Watch over the actors until `stop`: Ray restarts them, this tells when it does not."""
        import ray

        while not stop.is_set():
            for actor in self._actors:
                try:
                    await asyncio.wait_for(actor.generation.remote(), 5.0)
                except (ray.exceptions.RayError, TimeoutError) as error:
                    log.warning("actor.not_answering", error=type(error).__name__)
            try:
                await asyncio.wait_for(stop.wait(), 2.0)
            except TimeoutError:
                pass

    async def stop(self, *, timeout_s: float = 3.0) -> None:
        """Drain the actors and leave Ray; our own cluster ends with it."""
        import ray

        drained = [asyncio.ensure_future(_wait(actor.drain.remote())) for actor in self._actors]
        if drained:
            await asyncio.wait(drained, timeout=timeout_s)
        for actor in self._actors:
            ray.kill(actor, no_restart=True)
        ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def _trimmed() -> Iterator[None]:
    """A cluster that is started inside has no autoscaler and nobody who reads its logs: two processes of 50 MB, and
    a second of CPU of the start. `ray start` has options for it, `ray.init` has none."""
    import ray._private.parameter

    module: Any = ray._private.parameter
    whole = module.RayParams
    module.RayParams = functools.partial(whole, no_monitor=True, include_log_monitor=False)
    try:
        yield
    finally:
        module.RayParams = whole


async def keep_cluster(data: Path, *, hosts: int, workers: int, settings: HostSettings, build: str) -> None:
    """Run hosts and workers until SIGTERM or SIGINT."""
    cluster = Cluster(data, hosts=hosts, workers=workers, settings=settings, build=build)
    cluster.start()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):  # after Ray, which puts handlers of its own there
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await cluster.keep(stop)
    await cluster.stop()


async def _wait(reference: Any) -> None:
    try:
        await reference
    except Exception as error:
        log.debug("actor.drain_ended", error=repr(error))


class _HostActor:
    """The thin shell: a host on a thread and loop of its own, so that Ray's calls answer whatever the host does."""

    def __init__(self, data: str, slot: int, build: str) -> None:
        folder = Path(data)
        store = StoreSettings.load(folder)
        settings = HostSettings.load(folder)
        _log_to(folder, f"host-{slot}", store.log_level)
        self._host = ReplicaHost(
            folder,
            slot=slot,
            primary_url=primary_url(folder, store),
            store=store,
            settings=settings,
            build=build,
            clock=SystemClock(),
        )
        self._drained = False
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._run, name="host", daemon=True).start()

    def _run(self) -> None:
        run_first()
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException:
            log.exception("host.failed")
            os._exit(1)  # Ray takes this for a crash, and starts the actor again
        if not self._drained:
            os._exit(1)  # replaced by another generation of itself: the newest start is the one that counts

    async def _serve(self) -> None:
        await self._host.start()
        gc.freeze()  # Ray's and our own code are never garbage: to look through them stops the loop for 50 ms
        await self._host.stopped()

    async def generation(self) -> int:
        """Which start of this host it is; 0 while it starts."""
        return self._host.generation

    async def drain(self) -> None:
        """Finish what is under way and close the files."""
        self._drained = True
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._host.drain(), self._loop))


class _WorkerActor:
    """The same for a worker."""

    def __init__(self, data: str, slot: int, build: str) -> None:
        folder = Path(data)
        store = StoreSettings.load(folder)
        _log_to(folder, f"worker-{slot}", store.log_level)
        self._worker = GenerationWorker(
            folder,
            slot=slot,
            primary_url=primary_url(folder, store),
            store=store,
            hosts=HostSettings.load(folder),
            providers=ProviderSettings.load(folder),
            settings=WorkerSettings.load(folder),
        )
        self._generation = 0
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._run, name="worker", daemon=True).start()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
            self._loop.run_forever()  # `drain` closes what the worker has
        except BaseException:
            log.exception("worker.failed")
            os._exit(1)  # Ray takes this for a crash, and starts the actor again

    async def _serve(self) -> None:
        await self._worker.start()
        self._generation = 1
        gc.freeze()
        await self._worker.stopped()

    async def generation(self) -> int:
        """1 once it claims jobs; 0 while it starts."""
        return self._generation

    async def drain(self) -> None:
        """Give back what is not begun, and let the rest come to its end for a while."""
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._worker.stop(), self._loop))


def _log_to(data: Path, process: str, level: str) -> None:
    """Ray would put what an actor prints into a folder of its own."""
    logs = data / "logs"
    logs.mkdir(mode=0o700, exist_ok=True)
    configure(process=process, level=level, stream=(logs / f"{process}.log").open("a", buffering=1))


def _token(data: Path) -> Path:
    """Ray's shared token: whoever has it may run code in the cluster, so it is made here and readable by us only."""
    path = data / "keys" / "ray.token"
    kept_secret(path, lambda: secrets.token_hex(32).encode())
    return path


def _fresh_ray_folder(data: Path, kind: str) -> Path:
    """Ray's sockets need a short path: 107 bytes with everything below it."""
    digest = hashlib.sha256(f"{data.resolve()} {kind}".encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"peruse-ray-{digest}"
    shutil.rmtree(folder, ignore_errors=True)  # sockets and logs of a cluster that was killed
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        raise SettingError(
            f"{folder} belongs to another user: remove it, or set TMPDIR to a folder of your own"
        ) from None
    return folder
