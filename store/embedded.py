"""An embedded Postgres for one machine: our child, on a private Unix socket, kept running.

Its folder holds `cluster` (PGDATA), `socket` and `postgres.log`. It stops when we stop, also when we are
killed with -9 (Linux only: elsewhere it outlives such a death, and the next start says so).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import asyncpg

from store.errors import EmbeddedPostgresError, FolderInUse, FolderUnusable, WrongMajorVersion
from store.postgres_binaries import (
    binaries,
    can_copy,
    copied,
    is_root,
    major_version,
    postgres_user,
    version_of,
)

__all__ = ["EmbeddedPostgres"]

#: No key of ours reaches Postgres, and no PGPORT or LC_ALL changes it.
_ENVIRONMENT: Final = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
_SETTINGS: Final = (
    "listen_addresses=", "unix_socket_permissions=0700", "shared_buffers=128MB", "fsync=on",
    "idle_in_transaction_session_timeout=60s", "log_min_messages=warning", "log_line_prefix=%m [%p] ",
)  # fmt: skip
_INITDB: Final = ("--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--data-checksums")
#: Sorts alike on every system, and after every upgrade of libc; since Postgres 17.
_BUILTIN_LOCALE: Final = ("--locale-provider=builtin", "--builtin-locale=C.UTF-8")
#: `sun_path` holds 104 bytes (macOS) to 108 (Linux).
_SOCKET_PATH_BYTES, _PORT = 100, 5432
_LOG_BYTES: Final = 10 * 2**20
#: How often we look; how long the Postgres of a killed run may take to stop; how long Postgres may say
#: nothing, not even "starting up" (a recovery takes what it needs); when restarts slow to one a second.
_TICK_S, _LEFTOVER_S, _SILENCE_S, _EAGER_S = 0.05, 5.0, 60.0, 30.0
#: Fast shutdown, immediate shutdown, kill; each with the seconds it may take.
_STOP: Final = ((signal.SIGINT, 8.0), (signal.SIGQUIT, 2.0), (signal.SIGKILL, 5.0))


class EmbeddedPostgres:
    """Runs Postgres in `folder` from start() to stop(), and starts it again when it dies.

    `bin_folder` holds `postgres` and `initdb`; None takes `binaries()`. `on_event` is called on the loop with
    "postgres.died" (pid, code; a negative code is a signal), "postgres.restarted" (pid, took_ms) and, once in
    an outage that quick retries did not end, "postgres.restart_failed" (error). Start it on a thread that
    lives as long as the process: Linux tells Postgres of our death when the thread that spawned it ends.
    """

    def __init__(
        self, folder: Path, *, bin_folder: Path | None = None,
        on_event: Callable[[str, dict[str, object]], None] | None = None, max_connections: int = 100,
    ) -> None:  # fmt: skip
        self.folder, self.restarts = folder.resolve(), 0
        self._cluster, self._socket = self.folder / "cluster", self.folder / "socket"
        self._bin_folder = bin_folder.resolve() if bin_folder else None
        self._on_event, self._most, self._user = on_event, max_connections, postgres_user()
        self._lock: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._log, self._log_start = self.folder / "postgres.log", 0
        self._watcher: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """For asyncpg, libpq and SQLAlchemy. Known once start() returned; no restart changes it."""
        return self._url("peruse")

    @property
    def pid(self) -> int | None:
        """Process id of the postmaster; None while there is none."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def check(self) -> None:
        """Finds what would keep start() from working, and changes nothing.

        Raises: FolderUnusable, FolderInUse (also while this object runs), WrongMajorVersion, and
        EmbeddedPostgresError when there are no binaries that work.
        """
        self._check_reach()
        if self.folder.exists():
            os.close(self._locked())
        bin_folder = self._bin_folder or binaries()
        version = major_version(bin_folder)
        if os.path.lexists(self._cluster):
            self._check_cluster(bin_folder, str(version))
        if not (self._can_run(bin_folder) or can_copy(bin_folder)):
            raise EmbeddedPostgresError(f"{bin_folder}/initdb cannot be run by {self._user.pw_name!r}")

    async def start(self) -> None:
        """Returns when Postgres answers and the database `peruse` exists; a kill in between is harmless.

        Raises: what check() raises, and EmbeddedPostgresError with the last lines of Postgres' own log.
        """
        await self._claim()
        try:
            bin_folder = self._bin_folder or binaries()
            if not self._can_run(bin_folder):
                bin_folder = await asyncio.to_thread(copied, bin_folder)
            if not self._cluster.exists():
                await self._initdb(bin_folder)
            self._make_socket()
            await self._launch(bin_folder)
            for leftover in self.folder.glob("cluster.new-*"):  # of killed runs; ours has its name now
                shutil.rmtree(leftover, ignore_errors=True)
        except BaseException:
            await self.stop()
            raise
        self._watcher = asyncio.create_task(self._watch(bin_folder), name="postgres-watch")

    async def stop(self) -> None:
        """Returns when Postgres is gone, and all it committed is on disk. A second call does nothing."""
        if self._watcher:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
        if self._process:
            await _end(self._process)
        if self._lock is not None:
            self._remove_socket()
            os.close(self._lock)
        self._watcher = self._lock = None

    def _check_reach(self) -> None:
        for ancestor in reversed(self.folder.parents):
            if is_root() and ancestor.is_dir() and not self._can_enter(ancestor):
                raise FolderUnusable(
                    f"{ancestor} cannot be entered by the user 'nobody' that Postgres runs as (Peruse runs "
                    f"as root): choose --data below another folder, or chmod o+x {ancestor}"
                )
        nearest = next(path for path in (self.folder, *self.folder.parents) if os.path.lexists(path))
        if not (nearest.is_dir() and os.access(nearest, os.R_OK | os.W_OK | os.X_OK)):
            raise FolderUnusable(
                f"{nearest} is not a folder that user id {os.geteuid()} can write (it belongs to user id "
                f"{nearest.stat().st_uid}): choose another --data, or change its owner or permissions"
            )

    def _check_cluster(self, bin_folder: Path, ours: str) -> None:
        user = self._user.pw_name
        if (owner := self._cluster.stat().st_uid) != self._user.pw_uid:
            raise FolderUnusable(
                f"{self._cluster} belongs to user id {owner}, but Postgres would run as {user!r}: "
                f"run Peruse as its owner, or chown -R {user} {self._cluster}"
            )
        if not (version := self._cluster / "PG_VERSION").is_file():
            raise FolderUnusable(f"{self._cluster} is not a Postgres cluster (no PG_VERSION): move it away")
        if (theirs := version.read_text().strip()) != ours:
            raise WrongMajorVersion(
                f"{self.folder} was made by Postgres {theirs}, but {bin_folder} is Postgres {ours}: set "
                f"PERUSE_PG_BIN to a Postgres {theirs}, or dump with {theirs} and restore into a new folder"
            )

    def _can_enter(self, folder: Path) -> bool:
        status = folder.stat()
        if status.st_uid == self._user.pw_uid:
            return bool(status.st_mode & stat.S_IXUSR)
        return bool(status.st_mode & (stat.S_IXGRP if status.st_gid == self._user.pw_gid else stat.S_IXOTH))

    def _can_run(self, bin_folder: Path) -> bool:
        # initdb, because postgres also runs when the libraries beside are missing.
        return bool(version_of(bin_folder / "initdb", **self._as_user()))

    def _as_user(self) -> dict[str, Any]:
        user = {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}
        # A session of its own: Ctrl-C in a terminal reaches only us, and we stop Postgres in our order.
        own = {"cwd": "/", "env": _ENVIRONMENT, "stdin": subprocess.DEVNULL, "start_new_session": True}
        return {**own, **(user if is_root() else {})}

    def _give(self, folder: Path) -> Path:
        if is_root():
            os.chown(folder, self._user.pw_uid, self._user.pw_gid, follow_symlinks=False)
        return folder

    def _locked(self) -> int:
        """Descriptor that holds the folder's lock until it is closed. Raises: FolderInUse."""
        lock, pid = os.open(self.folder, os.O_RDONLY), _recorded_pid(self._cluster)
        by = "another Peruse that is just starting or stopping"
        try:
            if pid and _is_postmaster(pid, self._cluster):
                by = f"Postgres (pid {pid}; kill -INT {pid} stops it)"
                raise BlockingIOError
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise FolderInUse(f"{self.folder} is in use by {by}: stop it, or choose another --data") from None
        return lock

    async def _claim(self) -> None:
        """Takes the folder, or waits for what a killed run left behind to stop by itself."""
        now = asyncio.get_running_loop().time
        deadline = now() + _LEFTOVER_S
        while self._lock is None:
            try:
                self.check()
                _make_folder(self.folder)
                self._lock = self._locked()
            except FolderInUse:
                if now() > deadline:
                    raise
                await asyncio.sleep(_TICK_S)
        self._drop_false_pid()

    def _drop_false_pid(self) -> None:
        # Postgres trusts every living pid in its file, so a zombie or a reused pid would keep it out. A dead
        # one stays: through this file Postgres finds the shared memory of backends that are still there.
        if (pid := _recorded_pid(self._cluster)) and Path(f"/proc/{pid}").exists():
            (self._cluster / "postmaster.pid").unlink()

    async def _initdb(self, bin_folder: Path) -> None:
        """Makes the cluster beside its place and renames it, so a half-made one is never taken for it."""
        fresh = self._give(Path(tempfile.mkdtemp(prefix="cluster.new-", dir=self.folder)))
        locale = _BUILTIN_LOCALE if major_version(bin_folder) >= 17 else ()
        self._process = self._spawn(bin_folder / "initdb", "-D", str(fresh), *_INITDB, *locale)
        if code := await _ended(self._process):
            raise EmbeddedPostgresError(f"initdb in {self.folder} ended with {code}: {self._last_words()}")
        fresh.rename(self._cluster)
        assert self._lock is not None
        os.fsync(self._lock)  # the folder itself, which now names the cluster

    def _make_socket(self) -> None:
        self._remove_socket()
        self._socket = place = self.folder / "socket"
        # A comma would end the host for asyncpg.
        if len(os.fsencode(place / f".s.PGSQL.{_PORT}")) < _SOCKET_PATH_BYTES and "," not in str(place):
            place.mkdir(mode=0o700)
        else:
            self._socket = Path(tempfile.mkdtemp(prefix="peruse-pg-", dir="/tmp"))
            place.symlink_to(self._socket)  # the record by which a later start finds and removes it
        self._give(self._socket)

    def _remove_socket(self) -> None:
        place = self.folder / "socket"
        if place.is_symlink():
            if place.readlink().match("/tmp/peruse-pg-*"):  # noqa: S108
                shutil.rmtree(place.readlink(), ignore_errors=True)
            place.unlink()
        shutil.rmtree(place, ignore_errors=True)

    async def _launch(self, bin_folder: Path) -> None:
        """Runs Postgres and returns when it answers; if it does not, it is gone again."""
        socket = str(self._socket).replace('"', '""')
        own = f'unix_socket_directories="{socket}"', f"port={_PORT}", f"max_connections={self._most}"
        options = [word for setting in (*_SETTINGS, *own) for word in ("-c", setting)]
        now = asyncio.get_running_loop().time
        deadline = now() + _LEFTOVER_S
        while True:
            process = self._process = self._spawn(bin_folder / "postgres", "-D", str(self._cluster), *options)
            try:
                return await self._until_it_answers()
            except BaseException as error:
                await _end(process)
                # Backends outlive a killed postmaster for moments, and until then the next one refuses.
                if "shared memory block" not in str(error) or now() > deadline:
                    raise
            await asyncio.sleep(_TICK_S)

    async def _until_it_answers(self) -> None:
        now = asyncio.get_running_loop().time
        deadline = now() + _SILENCE_S
        while self.pid and now() < deadline:
            try:
                connection = await asyncpg.connect(self._url("postgres"), timeout=5)
                try:
                    if not await connection.fetchval("select 1 from pg_database where datname = 'peruse'"):
                        await connection.execute("create database peruse")
                finally:
                    await connection.close()
                return
            except asyncpg.TooManyConnectionsError:
                return
            except asyncpg.CannotConnectNowError:
                deadline = now() + _SILENCE_S
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                pass  # not there yet, or gone: the loop sees which
            await asyncio.sleep(_TICK_S)
        raise EmbeddedPostgresError(f"Postgres in {self.folder} does not answer: {self._last_words()}")

    async def _watch(self, bin_folder: Path) -> None:
        """Restarts Postgres whenever it ends; stop() ends this task."""
        now = asyncio.get_running_loop().time
        while self._process:
            code, dead_pid = await _ended(self._process), self._process.pid
            died, pause_s = now(), _TICK_S
            self._emit("postgres.died", pid=dead_pid, code=code)
            while self.pid is None:
                try:
                    await self._launch(bin_folder)
                except (EmbeddedPostgresError, OSError) as error:
                    if pause_s == _TICK_S and now() - died > _EAGER_S:
                        pause_s = 1.0
                        self._emit("postgres.restart_failed", error=str(error))
                    await asyncio.sleep(pause_s)
            self.restarts += 1
            self._emit("postgres.restarted", pid=self.pid, took_ms=round((now() - died) * 1000, 1))

    def _emit(self, event: str, **fields: object) -> None:
        with contextlib.suppress(Exception):  # a listener that fails must not end the watch
            if self._on_event:
                self._on_event(event, fields)

    def _url(self, database: str) -> str:
        # With the port, because clients would otherwise take it from PGPORT.
        return f"postgresql://postgres@/{database}?host={quote(str(self._socket))}&port={_PORT}"

    def _spawn(self, *command: str | Path) -> subprocess.Popen[bytes]:
        if self._log.exists() and self._log.stat().st_size > _LOG_BYTES:
            self._log.replace(self._log.with_suffix(".log.old"))
        self._log.touch(mode=0o600)
        with self._log.open("ab") as log:
            self._log_start = log.tell()
            return subprocess.Popen(  # noqa: S603 - and not asyncio's: uvloop's cannot change the user
                command, stdout=log, stderr=log, preexec_fn=_die_with_us(), **self._as_user()
            )

    def _last_words(self) -> str:
        """The last lines of what the latest child wrote."""
        with self._log.open("rb") as log:
            log.seek(max(self._log_start, self._log.stat().st_size - 2000))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-10:])


async def _ended(process: subprocess.Popen[bytes]) -> int:
    while (code := process.poll()) is None:
        await asyncio.sleep(_TICK_S)
    return code


async def _end(process: subprocess.Popen[bytes]) -> None:
    for sent, patience_s in _STOP:
        process.send_signal(sent)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(_ended(process), patience_s)
            return


def _die_with_us() -> Callable[[], None] | None:
    """For preexec_fn: Linux sends SIGINT to the child when the thread that spawned it ends.

    A change of user clears that wish: it is made after subprocess changed the user, and exec keeps it.
    """
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def ask() -> None:
        prctl(1, signal.SIGINT)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)

    return ask


def _make_folder(folder: Path) -> None:
    # Root keeps the folder: Postgres may pass, but not plant links in it where root changes owners.
    for path in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        path.mkdir()
        path.chmod(0o711 if is_root() else 0o700)
    if is_root():
        folder.chmod(folder.stat().st_mode | 0o111)


def _recorded_pid(cluster: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int((cluster / "postmaster.pid").read_text().splitlines()[0])
    return None


def _is_postmaster(pid: int, cluster: Path) -> bool:
    """Whether this process is the Postgres of this cluster: a zombie or a reused pid is not."""
    with contextlib.suppress(OSError):
        if sys.platform != "linux":
            os.kill(pid, 0)
            return True
        words = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
        folder = words[words.index("-D") + 1] if "-D" in words else ""
        # Without an absolute -D it may well be this cluster.
        is_ours = not folder.startswith("/") or Path(folder).resolve() == cluster
        return Path(words[0]).name in ("postgres", "postmaster") and is_ours
    return False
