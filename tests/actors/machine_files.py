"""A replica's files as an end in the middle leaves them, and as they should never be."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path
from typing import Literal

from store.changes import Cursor
from tests.actors.machine_oracle import State, replica_state

__all__ = ["Damage", "Written", "damage", "left_in"]

Damage = Literal["empty", "noise", "noise behind the first page", "half", "log"]


def damage(path: Path, how: Damage) -> None:
    """Spoil a closed file."""
    size = path.stat().st_size
    if how == "log":
        path.with_name(path.name + "-wal").write_bytes(b"\xff" * 9000)
        return
    whole = {"empty": 0, "noise": 0, "noise behind the first page": 4096, "half": size // 2}[how]
    noise = b"" if how in ("empty", "half") else b"\xff" * (size - whole)
    path.write_bytes(path.read_bytes()[:whole] + noise)


def left_in(path: Path, aside: Path) -> tuple[str, Cursor, State]:
    """The owner, the cursor and the rows in a file and its log, looked at in a copy at `aside`."""
    for suffix in ("", "-wal"):
        aside.with_name(aside.name + suffix).unlink(missing_ok=True)
        if (left := path.with_name(path.name + suffix)).exists():
            shutil.copy(left, aside.with_name(aside.name + suffix))
    connection = sqlite3.connect(aside)
    try:
        owner, *cursor = connection.execute("select user_id, epoch, version, nonce from meta").fetchone()
        return owner, Cursor(*cursor), replica_state(connection)
    finally:
        connection.close()


class Written:
    """How much of a replica's log was written, and when its file was."""

    def __init__(self, log: Path, log_bytes: int, file: tuple[int, int]) -> None:
        self.log = log
        self.log_bytes = log_bytes
        self._file = file

    @classmethod
    def of(cls, path: Path) -> Written:
        log = path.with_name(path.name + "-wal")
        file = path.stat()
        return cls(log, log.stat().st_size if log.exists() else 0, (file.st_mtime_ns, file.st_size))

    def grew_from(self, before: Written) -> bool:
        """Whether what came since is only the end of the log: then it may be cut there, as by an end in its middle."""
        return (self.log, self._file) == (before.log, before._file) and self.log_bytes > before.log_bytes
