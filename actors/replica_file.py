"""The file of a replica: how it is connected to, whose it is and how old, how many bytes it takes, and its end."""

from __future__ import annotations

import os
import re
import sqlite3
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote

from actors.errors import ReplicaBroken
from actors.schema import APPLICATION_ID
from store.changes import Cursor
from store.epoch import Bookmark

__all__ = ["BROKEN", "Position", "connect", "delete_files", "file_bytes"]

#: In one go: a call for each would take the loop for as long as a small page does.
_PRAGMAS: Final = ";".join(
    (
        # EXCLUSIVE before the first access: no -shm file, and a second opener fails instead of corrupting.
        "pragma locking_mode = exclusive",
        # A replica can be rebuilt. The WAL's checksums survive a kill of the process; a machine crash wipes the folder.
        # Before the next one: making a seed's file a WAL one would wait for the disk, and the loop with it.
        "pragma synchronous = off",
        "pragma journal_mode = wal",
        "pragma cache_size = -256",
        "pragma mmap_size = 0",  # an I/O error under mmap is a SIGBUS: the whole host would die
        "pragma temp_store = memory",
        "pragma busy_timeout = 0",  # one connection: waiting for a lock would be a bug
        "pragma trusted_schema = off",
        "pragma cell_size_check = on",  # a damaged index would let an apply add rows a second time
        "pragma wal_autocheckpoint = 200",
        "pragma journal_size_limit = 1048576",
    )
)

_NONCE: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
#: What a damaged file raises; UnicodeDecodeError comes from sqlite3 when the schema's text is damaged.
BROKEN: Final = (sqlite3.Error, UnicodeDecodeError)


class Position(NamedTuple):
    """Where a file stands, and when that was last known to be the head (wall time, seconds)."""

    cursor: Cursor
    synced_at: float


def connect(path: Path, user: str, version: int) -> tuple[sqlite3.Connection, Position]:
    """The one connection of the file at `path`, and where that stands."""
    connection: sqlite3.Connection | None = None
    try:
        closed_at = _closed_at(path, user)
        connection = sqlite3.connect(
            f"file:{quote(os.path.abspath(path))}?mode=rw",
            uri=True,
            timeout=0,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=24,
        )
        connection.executescript(_PRAGMAS)
        cursor, synced_at = _check(connection, user, version)
    except (*BROKEN, OSError, ReplicaBroken, TypeError) as error:
        if connection is not None:
            connection.close()
        raise ReplicaBroken(f"replica file of {user} cannot be used: {error}") from error
    return connection, Position(cursor, synced_at if closed_at is None else closed_at)


def _check(connection: sqlite3.Connection, user: str, version: int) -> Position:
    found = (_pragma(connection, "application_id"), _pragma(connection, "user_version"))
    if found != (APPLICATION_ID, version):
        raise ReplicaBroken("it was made by another version of the schema")
    owner, epoch, position, nonce, synced_at = connection.execute(
        "select user_id, epoch, version, nonce, synced_at from meta"
    ).fetchone()
    if owner != user:
        raise ReplicaBroken("it belongs to another user")
    # What the primary would not take as a cursor could never be pulled from, and never be found to be wrong.
    is_whole = Bookmark.parse(f"{epoch}.{position}") is not None and _NONCE.fullmatch(nonce) is not None
    if not is_whole or not isinstance(position, int) or not isinstance(synced_at, float):
        raise ReplicaBroken("its position is damaged")
    return Position(Cursor(epoch, position, nonce), synced_at)


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"pragma {name}").fetchone()[0])


def _closed_at(path: Path, user: str) -> float | None:
    """The time of a file that was closed in order: when its replica was last known to be at head, also if it rested and
    wrote nothing for long. None when there is a log: whoever had it open was killed, and what it last wrote counts."""
    if not os.path.exists(f"{path}-wal"):
        return path.stat().st_mtime
    # A log does not say whose it is: laid over another user's file, its pages make that file pass for ours.
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
    try:
        (owner,) = connection.execute("select user_id from meta").fetchone()
    except (*BROKEN, TypeError):
        return None  # a kill in a checkpoint leaves a file that makes sense with its log only
    finally:
        connection.close()
    if owner != user:
        raise ReplicaBroken("it belongs to another user")
    return None


def delete_files(path: Path) -> None:
    """Delete a closed replica: its file, and what SQLite may have left beside it."""
    for suffix in ("-wal", "-shm", "-journal", ""):  # the log first: alone, it would be the next file's
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def file_bytes(path: Path) -> int:
    """Bytes of a replica's file and of its log; 0 when it is not there."""
    total = 0
    for name in (path.name, f"{path.name}-wal"):
        try:
            total += path.with_name(name).stat().st_size
        except FileNotFoundError:
            continue
    return total
