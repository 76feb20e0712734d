"""A host's folder of replica files: names, the lock, and what is left over from another life."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from pathlib import Path
from typing import IO

import structlog

from actors.replica_file import delete_files

__all__ = ["ReplicaFolder"]

log = structlog.get_logger()


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
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
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
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            shutil.rmtree(path, ignore_errors=True)


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"
