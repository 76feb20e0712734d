"""One user's replica: a SQLite file, its one connection, and the pages it has served.

All calls are synchronous and short: they run on the host's event loop, where a read can never meet a half-applied
change, since nothing is awaited inside an apply.
"""

from __future__ import annotations

import re
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Set
from itertools import count
from pathlib import Path
from typing import Final, NamedTuple

from actors.errors import DiskFull, QueryTooCostly, ReplicaBroken
from actors.queries import answer
from actors.schema import APPLICATION_ID, DELETE, ROWS, UPSERT
from store.changes import Cursor
from store.documents import Row
from store.epoch import Bookmark
from store.gallery import decode_query, query_hash

__all__ = ["Applied", "KeptPage", "Replica", "delete_files", "file_bytes"]

#: Pages kept as bytes per replica: enough for a first page, its filters and some scrolling.
KEPT_PAGES: Final = 16
KEPT_BYTES: Final = 256 * 1024
#: SQLite instructions in one query before it is stopped: about 30 ms, which is what all other users would wait.
MAX_STEPS: Final = 2_000_000

_PRAGMAS: Final = (
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


#: Each page made gets a stamp of its own; hosts start at random places, so equal stamps mean equal bytes.
_stamps: Final = count(secrets.randbits(62) + 1)


_NONCE: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
#: What a damaged file raises; UnicodeDecodeError comes from sqlite3 when the schema's text is damaged.
_BROKEN: Final = (sqlite3.Error, UnicodeDecodeError)


def _code(error: BaseException) -> int:
    """SQLite's code; 0 for errors of the Python module, which have none."""
    return int(getattr(error, "sqlite_errorcode", 0))


class KeptPage(NamedTuple):
    """The bytes of an answer, the hash of its query for ETags, and its stamp. Body None: there is no such row."""

    body: bytes | None
    query_hash: str
    stamp: int


class Applied(NamedTuple):
    """One change for a replica: `row` None deletes."""

    kind: str
    row_id: str
    row: Row | None


class Replica:
    """An open replica. `cursor` is what it has applied, and what every answer is true for."""

    __slots__ = (
        "_connection",
        "_kept",
        "_kept_bytes",
        "_on_kept",
        "_steps",
        "_version",
        "cursor",
        "path",
        "synced_at",
        "user",
    )

    def __init__(
        self, path: Path, user: str, connection: sqlite3.Connection, version: int, on_kept: Callable[[int], None]
    ) -> None:
        self.path = path
        self.user = user
        self._connection = connection
        self._version = version
        self._kept: dict[bytes, KeptPage] = {}
        self._kept_bytes = 0
        self._on_kept = on_kept
        self._steps = 0
        row = connection.execute("select epoch, version, nonce, synced_at from meta").fetchone()
        self.cursor = Cursor(*row[:3])
        self.synced_at: float = row[3]

    @classmethod
    def open(cls, path: Path, user: str, version: int, on_kept: Callable[[int], None] = lambda size: None) -> Replica:
        """Open the file at `path`, which must be `user`'s and of schema `version`.

        `on_kept` hears how many bytes of pages are kept (negative: let go).

        Raises:
            ReplicaBroken: it is not, or it cannot be read.
        """
        connection: sqlite3.Connection | None = None
        try:
            _check_below_log(path, user)
            connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=rw",
                uri=True,
                timeout=0,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=24,
            )
            for pragma in _PRAGMAS:
                connection.execute(pragma)
            _check(connection, user, version)
            return cls(path, user, connection, version, on_kept)
        except (*_BROKEN, ReplicaBroken, TypeError) as error:
            if connection is not None:
                connection.close()
            raise ReplicaBroken(f"replica file of {user} cannot be used: {error}") from error

    def close(self) -> None:
        """Write down when it was last in step, and close. Never raises: the file can always be seeded again."""
        self._forget_pages()
        try:
            if self._connection.in_transaction:
                self._connection.execute("rollback")
            self._connection.execute("update meta set synced_at = ?", (self.synced_at,))
        except sqlite3.Error:
            pass
        self._connection.close()

    def apply(self, head: Cursor, changes: Iterable[Applied]) -> None:
        """Bring the replica to `head`: rows and cursor in one transaction, so that a crash may repeat it, never
        skip a row.

        Raises:
            DiskFull: nothing was applied.
            ReplicaBroken: the file cannot be used any more.
        """
        execute = self._connection.execute
        kinds = set()
        try:
            execute("begin immediate")
            for kind, row_id, row in changes:
                kinds.add(kind)
                if row is None:
                    execute(DELETE[kind], (row_id,))
                else:
                    execute(UPSERT[kind], (row.id, *row.filters, row.document))
            execute("update meta set epoch = ?, version = ?, nonce = ?", head)
            execute("commit")
        except BaseException as error:
            try:
                if self._connection.in_transaction:
                    execute("rollback")
            except sqlite3.Error as second:
                raise ReplicaBroken(f"changes of {self.user} could not be undone: {second}") from error
            if not isinstance(error, _BROKEN):
                raise
            if _code(error) & 0xFF == sqlite3.SQLITE_FULL:
                raise DiskFull(f"no room to apply changes of {self.user}") from error
            raise ReplicaBroken(f"changes of {self.user} could not be applied: {error}") from error
        self.cursor = head
        self._forget_pages(kinds)

    def read(self, encoded: bytes) -> KeptPage:
        """The answer to a query, true for `cursor`.

        Raises:
            QueryTooCostly: it was stopped.
            ReplicaBroken: the file cannot be used any more.
        """
        page = self._kept.get(encoded)
        return page if page is not None else self._query(encoded)

    def kept(self, encoded: bytes) -> KeptPage | None:
        """The answer if it is at hand."""
        return self._kept.get(encoded)

    @property
    def kept_bytes(self) -> int:
        return self._kept_bytes

    def rows(self, kind: str, after: str, until: str | None) -> list[Row]:
        """The rows of `kind` with after < id <= until (None: all that follow), in the order of their ids.

        Raises:
            ReplicaBroken: the file cannot be used any more.
        """
        sql, values = ROWS[kind], (after, until, until)
        try:
            return [Row(row[0], row[1:-1], row[-1]) for row in self._connection.execute(sql, values)]
        except _BROKEN as error:
            raise ReplicaBroken(f"replica of {self.user} cannot be read: {error}") from error

    def _query(self, encoded: bytes) -> KeptPage:
        self._steps = 0
        self._connection.set_progress_handler(self._step, 10_000)
        try:
            body = answer(self._connection, decode_query(encoded))
        except (*_BROKEN, TypeError) as error:
            if _code(error) == sqlite3.SQLITE_INTERRUPT:
                raise QueryTooCostly(f"a query of {self.user} was stopped after {MAX_STEPS:,} steps") from error
            raise ReplicaBroken(f"replica of {self.user} cannot be read: {error}") from error
        finally:
            self._connection.set_progress_handler(None, 0)
        page = KeptPage(body, query_hash(encoded, self._version), next(_stamps))
        self._keep(encoded, page)
        return page

    def _step(self) -> bool:
        self._steps += 10_000
        return self._steps > MAX_STEPS

    def _keep(self, encoded: bytes, page: KeptPage) -> None:
        size = len(page.body or b"")
        if size > KEPT_BYTES // 2:
            return
        before = self._kept_bytes
        while self._kept and (len(self._kept) >= KEPT_PAGES or self._kept_bytes + size > KEPT_BYTES):
            oldest = next(iter(self._kept))
            self._kept_bytes -= len(self._kept.pop(oldest).body or b"")
        self._kept[encoded] = page
        self._kept_bytes += size
        self._on_kept(self._kept_bytes - before)

    def _forget_pages(self, kinds: Set[str] | None = None) -> None:
        """Those that read one of these kinds; None: all."""
        before = self._kept_bytes
        for encoded in [e for e in self._kept if kinds is None or not kinds.isdisjoint(decode_query(e).kinds)]:
            self._kept_bytes -= len(self._kept.pop(encoded).body or b"")
        self._on_kept(self._kept_bytes - before)


def _check(connection: sqlite3.Connection, user: str, version: int) -> None:
    found = (connection.execute("pragma application_id").fetchone()[0], _pragma_version(connection))
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


def _check_below_log(path: Path, user: str) -> None:
    # A log does not say whose it is: laid over another user's file, its pages make that file pass for ours.
    if not path.with_name(f"{path.name}-wal").exists():
        return
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
    try:
        (owner,) = connection.execute("select user_id from meta").fetchone()
    except (*_BROKEN, TypeError):
        return  # a kill in a checkpoint leaves a file that makes sense with its log only
    finally:
        connection.close()
    if owner != user:
        raise ReplicaBroken("it belongs to another user")


def _pragma_version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("pragma user_version").fetchone()[0])


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
