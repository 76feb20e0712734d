"""Ray: starts hosts as actors, and keeps as many as asked for. The only file that imports it.

Ray is cattle: everything in it can be rebuilt from the primary, and gateways answer without it. So one process owns a
local cluster (or joins an existing one), creates the host actors and ends with them; when it is killed, Ray's
processes die with it and the supervisor starts it again.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import os
import secrets
import shutil
import signal
import tempfile
import threading
from pathlib import Path
from typing import Any, Final

import structlog

from actors.config import HostSettings
from actors.host import ReplicaHost
from store.clock import SystemClock
from store.config import StoreSettings
from store.errors import SettingError
from store.instance import primary_url
from store.keyfile import kept_secret
from store.logs import configure

__all__ = ["Cluster", "keep_hosts"]

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
    """Hosts of this machine: `start`, then `keep` until `stop`."""

    def __init__(self, data: Path, *, count: int, settings: HostSettings, build: str) -> None:
        self._data = data
        self._count = count
        self._settings = settings
        self._build = build
        self._actors: list[Any] = []
        self._folder: Path | None = None

    def start(self) -> None:
        """Start Ray, or join the cluster of PERUSE_RAY_ADDRESS, and create the hosts."""
        os.environ.update(_RAY_ENVIRONMENT)
        if not self._settings.ray_address:
            os.environ.update(_OWN_ENVIRONMENT, RAY_AUTH_TOKEN_PATH=str(_token(self._data)))
        import ray  # slow, and it reads the environment above

        options: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "configure_logging": False}
        if self._settings.ray_address:
            ray.init(address=self._settings.ray_address, **options)
        else:
            self._folder = _fresh_ray_folder(self._data)
            ray.init(
                address="local",
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                num_cpus=self._count,
                _temp_dir=str(self._folder),
                **options,
            )
        Actor = ray.remote(_HostActor)
        for slot in range(self._count):
            self._actors.append(
                Actor.options(
                    name=f"host-{self._settings.node}-{slot}-{self._build}",
                    lifetime="detached",  # a host outlives the process that asked for it
                    get_if_exists=True,
                    max_restarts=-1,
                    max_task_retries=0,
                    num_cpus=0,
                    enable_task_events=False,
                ).remote(str(self._data), slot, self._build)
            )

    async def keep(self, stop: asyncio.Event) -> None:
        """Watch over the hosts until `stop`: Ray restarts them, this tells when it does not."""
        import ray

        while not stop.is_set():
            for actor in self._actors:
                try:
                    await asyncio.wait_for(actor.generation.remote(), 5.0)
                except (ray.exceptions.RayError, TimeoutError) as error:
                    log.warning("host.not_answering", error=type(error).__name__)
            try:
                await asyncio.wait_for(stop.wait(), 2.0)
            except TimeoutError:
                pass

    async def stop(self, *, timeout_s: float = 3.0) -> None:
        """Drain the hosts and leave Ray; our own cluster ends with it."""
        import ray

        drained = [asyncio.ensure_future(_wait(actor.drain.remote())) for actor in self._actors]
        if drained:
            await asyncio.wait(drained, timeout=timeout_s)
        for actor in self._actors:
            ray.kill(actor, no_restart=True)
        ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


async def keep_hosts(data: Path, *, count: int, settings: HostSettings, build: str) -> None:
    """Run `count` hosts until SIGTERM or SIGINT."""
    cluster = Cluster(data, count=count, settings=settings, build=build)
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
        log.debug("host.drain_ended", error=repr(error))


class _HostActor:
    """The thin shell: a host on a thread and loop of its own, so that Ray's calls answer whatever the host does."""

    def __init__(self, data: str, slot: int, build: str) -> None:
        folder = Path(data)
        store = StoreSettings.load(folder)
        settings = HostSettings.load(folder)
        logs = folder / "logs"
        logs.mkdir(mode=0o700, exist_ok=True)
        configure(
            process=f"host-{slot}", level=store.log_level, stream=(logs / f"host-{slot}.log").open("a", buffering=1)
        )
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


def _token(data: Path) -> Path:
    """Ray's shared token: whoever has it may run code in the cluster, so it is made here and readable by us only."""
    path = data / "keys" / "ray.token"
    kept_secret(path, lambda: secrets.token_hex(32).encode())
    return path


def _fresh_ray_folder(data: Path) -> Path:
    """Ray's sockets need a short path: 107 bytes with everything below it."""
    digest = hashlib.sha256(str(data.resolve()).encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"peruse-ray-{digest}"
    shutil.rmtree(folder, ignore_errors=True)  # sockets and logs of a cluster that was killed
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        raise SettingError(
            f"{folder} belongs to another user: remove it, or set TMPDIR to a folder of your own"
        ) from None
    return folder
