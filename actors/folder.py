"""A host's folder of replica files: names, the lock, and what is left over from another life."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

import structlog

from actors.replica_file import delete_files

__all__ = ["ReplicaFolder"]

log = structlog.get_logger()

#: Longer than anybody tidies a folder that nobody has.
_TIDYING_S: Final = 2.0


class ReplicaFolder:
    """Files named `<2 hex>/<2 hex>/<sha256 of the user id>.<n>.db`, held under a lock while the host lives.

    A seed gets the next n: a new file under an old name would meet the -wal that the old one may have left.
    """

    def __init__(self, path: Path, lock: IO[str]) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def claim(cls, replicas: Path, host_id: str, *, generation: int) -> ReplicaFolder:
        """The folder of `host_id`; one of its own generation's when a process that was given up still has it."""
        name = host_id.replace(":", "_")
        for candidate in (name, f"{name}.{generation}"):
            path = replicas / candidate
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = (path / "lock").open("a+")
            if not _is_claimed(lock):
                lock.close()
                log.warning("folder.taken", folder=str(path))
                continue
            folder = cls(path, lock)
            folder._clean()
            _remove_abandoned(replicas, name, keep=path)
            return folder
        raise OSError(f"{replicas / name} and its replacement are both locked")

    def release(self) -> None:
        self._lock.close()

    def find(self, user: str) -> Path | None:
        """The user's file, if there is one."""
        numbered = self._numbered(user)
        return numbered[max(numbered)] if numbered else None

    def all_of(self, user: str) -> list[Path]:
        """All files of the user."""
        return list(self._numbered(user).values())

    def next_path(self, user: str) -> Path:
        """A name that no file of this user has had."""
        numbered = self._numbered(user)
        stem = self._stem(user)
        stem.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        last = max(numbered, default=0)
        while any(stem.parent.glob(f"{stem.name}.{last + 1}.db*")):
            last += 1
        return stem.with_name(f"{stem.name}.{last + 1}.db")

    def delete_others(self, user: str, keep: Path) -> None:
        """Delete the user's files but `keep`. Only for files that are closed."""
        for path in self._numbered(user).values():
            if path != keep:
                delete_files(path)

    def delete_in_abandoned(self, users: Iterable[str]) -> int:
        """Delete the files of `users` in the folders beside this one that nobody holds: their hosts are gone, perhaps
        for good. Answers how many files went. Takes as long as it takes: for a thread."""
        stems, removed = [self._stem(user).relative_to(self.path) for user in users], 0
        for path in self.path.parent.iterdir() if stems else ():
            with _tidying(path) as is_free:
                for stem in stems if is_free else ():
                    # Everything of theirs, also what a seed left behind.
                    for file in (path / stem.parent).glob(f"{stem.name}.*"):
                        file.unlink(missing_ok=True)
                        removed += 1
        return removed

    def _stem(self, user: str) -> Path:
        digest = hashlib.sha256(user.encode()).hexdigest()
        return self.path / digest[:2] / digest[2:4] / digest

    def _numbered(self, user: str) -> dict[int, Path]:
        stem = self._stem(user)
        try:
            names = os.listdir(stem.parent)
        except FileNotFoundError:
            return {}
        found = {}
        for name in names:
            digest, _, rest = name.partition(".")
            number, _, suffix = rest.partition(".")
            if digest == stem.name and suffix == "db" and number.isdigit():
                found[int(number)] = stem.with_name(name)
        return found

    def _clean(self) -> None:
        """Throw away staging files, and everything when the machine was started again since: files are written
        without fsync, which survives the end of a process and not the end of a kernel."""
        boot = _boot_id()
        marker = self.path / "boot_id"
        if not marker.exists() or marker.read_text() != boot:
            for entry in self.path.iterdir():
                if entry.is_dir():
                    shutil.rmtree(entry)
            try:
                marker.write_text(boot)
            except OSError as error:
                # There is no room: replicas will come when there is, and the next start wipes the folder once more.
                marker.unlink(missing_ok=True)
                log.warning("folder.not_marked", folder=str(self.path), error=str(error))
        for staging in self.path.glob("??/??/*.staging"):
            delete_files(staging)


def _remove_abandoned(replicas: Path, name: str, *, keep: Path) -> None:
    """Remove folders that replaced ours for a while, and that nobody holds any more."""
    for path in replicas.glob(f"{name}.*"):
        if path == keep or not (path / "lock").exists():
            continue
        with (path / "lock").open("a+") as lock:
            if _is_locked(lock, fcntl.LOCK_EX):
                shutil.rmtree(path, ignore_errors=True)


def _is_claimed(lock: IO[str]) -> bool:
    """Take the lock of a folder for life; False when another host has it. Whoever tidies a folder that nobody has
    shares its lock, and is done in a moment: to take them for a host would cost a seed of every user."""
    until = time.monotonic() + _TIDYING_S
    while not _is_locked(lock, fcntl.LOCK_EX):
        if not _is_locked(lock, fcntl.LOCK_SH) or time.monotonic() > until:
            return False
        fcntl.flock(lock, fcntl.LOCK_UN)
        time.sleep(0.005)
    return True


@contextmanager
def _tidying(path: Path) -> Iterator[bool]:
    """Whether a folder is one that nobody has; no host starts on it meanwhile."""
    try:
        lock = (path / "lock").open("r")
    except OSError:  # no folder of a host, or gone by now
        yield False
        return
    with lock:
        yield _is_locked(lock, fcntl.LOCK_SH)


def _is_locked(lock: IO[str], how: int) -> bool:
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"
