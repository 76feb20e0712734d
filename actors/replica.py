"""One user's replica: a SQLite file, its one connection, and the pages it has served.

A replica at rest has given its connection back, which is most of what it takes. It still has its pages and knows where
it stands, so they can be served, and found to be at head, as before; what needs the file connects again.

All calls are synchronous and short: they run on the host's event loop, where a read can never meet a half-applied
change, since nothing is awaited inside an apply.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import zlib
from collections.abc import Iterable, Set
from itertools import count
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from actors.errors import DiskFull, QueryTooCostly, ReplicaBroken
from actors.queries import answer
from actors.replica_file import BROKEN, Position, connect
from actors.schema import DELETE, ROWS, UPSERT
from store.changes import Cursor
from store.documents import Row
from store.gallery import decode_query, query_hash

__all__ = ["Applied", "KeptPage", "Replica", "Room"]

#: Pages kept as bytes per replica: enough for a first page, its filters and some scrolling.
KEPT_PAGES: Final = 16
KEPT_BYTES: Final = 256 * 1024
#: SQLite instructions in one query before it is stopped: about 30 ms, which is what all other users would wait.
MAX_STEPS: Final = 2_000_000

#: Each page made gets a stamp of its own; hosts start at random places, so equal stamps mean equal bytes.
_stamps: Final = count(secrets.randbits(62) + 1)


def _code(error: BaseException) -> int:
    """SQLite's code; 0 for errors of the Python module, which have none."""
    return int(getattr(error, "sqlite_errorcode", 0))


class KeptPage:
    """The bytes of an answer, the hash of its query for ETags, and its stamp. `size` is what it takes: less, when it is
    packed."""

    __slots__ = ("_bytes", "_is_packed", "query_hash", "stamp")

    def __init__(self, body: bytes | None, query_hash: str, stamp: int) -> None:
        self._bytes = body
        self._is_packed = False
        self.query_hash = query_hash
        self.stamp = stamp

    @property
    def body(self) -> bytes | None:
        """None: there is no such row. Takes 30 µs for a page of 50 that is packed."""
        return zlib.decompress(self._bytes) if self._is_packed and self._bytes is not None else self._bytes

    @property
    def size(self) -> int:
        return len(self._bytes or b"")

    def pack(self) -> None:
        """Take less room: a sixth, for a page of 50, in 60 µs."""
        if self._bytes is not None and not self._is_packed:
            self._bytes, self._is_packed = zlib.compress(self._bytes, 1), True


class Applied(NamedTuple):
    """One change for a replica: `row` None deletes."""

    kind: str
    row_id: str
    row: Row | None


class Room(Protocol):
    """Who counts what replicas take."""

    def keep(self, replica: Replica, size: int, /) -> None:
        """`replica` keeps so many bytes of pages more (negative: less; 0: one of them was read)."""

    def connected(self, replica: Replica, /) -> None:
        """`replica` has a connection, and is about to use it."""

    def disconnected(self, replica: Replica, /) -> None:
        """It has none any more."""


class Replica:
    """An open replica. `cursor` is what it has applied, and what every answer is true for; `synced_at` the wall time in
    seconds when that was last known to be the head."""

    __slots__ = (
        "_connection",
        "_is_changed",
        "_kept",
        "_kept_bytes",
        "_room",
        "_steps",
        "_version",
        "cursor",
        "path",
        "synced_at",
        "user",
    )

    def __init__(
        self,
        path: Path,
        user: str,
        version: int,
        connection: sqlite3.Connection,
        position: Position,
        room: Room | None,
    ) -> None:
        self.path = path
        self.user = user
        self.cursor, self.synced_at = position
        self._version = version
        self._connection: sqlite3.Connection | None = connection
        self._is_changed = False
        self._room = room
        self._kept: dict[bytes, KeptPage] = {}
        self._kept_bytes = 0
        self._steps = 0
        if room is not None:
            room.connected(self)

    @classmethod
    def open(cls, path: Path, user: str, version: int, room: Room | None = None) -> Replica:
        """Open the file at `path`, which must be `user`'s and of schema `version`.

        Raises:
            ReplicaBroken: it is not, or it cannot be read.
        """
        return cls(path, user, version, *connect(path, user, version), room)

    @property
    def is_resting(self) -> bool:
        return self._connection is None

    def rest(self) -> None:
        """Give the connection back. Never raises: the file can always be seeded again."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._room is not None:
            self._room.disconnected(self)
        try:
            if connection.in_transaction:
                connection.execute("rollback")
            if self._is_changed:
                connection.execute("update meta set synced_at = ?", (self.synced_at,))
        except sqlite3.Error:
            pass
        connection.close()
        self._is_changed = False
        self._date()

    def cool(self) -> None:
        """Let go of what SQLite keeps of the file; the next use reads it again."""
        if self._connection is not None:
            self._connection.execute("pragma shrink_memory")

    def close(self) -> None:
        """Write down when it was last in step, and close. Never raises: the file can always be seeded again."""
        self._forget_pages()
        self.rest()
        self._date()

    def _date(self) -> None:
        try:
            os.utime(self.path, (self.synced_at, self.synced_at))
        except OSError:
            pass

    def _use(self) -> sqlite3.Connection:
        """The connection; a new one after a rest.

        Raises:
            ReplicaBroken: the file is not what it was, or cannot be read.
        """
        if self._connection is None:
            connection, (cursor, _) = connect(self.path, self.user, self._version)
            if cursor != self.cursor:
                connection.close()
                raise ReplicaBroken(f"replica file of {self.user} was changed by another hand")
            self._connection = connection
        if self._room is not None:
            self._room.connected(self)
        return self._connection

    def apply(self, head: Cursor, changes: Iterable[Applied]) -> None:
        """Bring the replica to `head`: rows and cursor in one transaction, so that a crash may repeat it, never
        skip a row.

        Raises:
            DiskFull: nothing was applied.
            ReplicaBroken: the file cannot be used any more.
        """
        connection = self._use()
        execute = connection.execute
        kinds = set()
        self._is_changed = True
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
                if connection.in_transaction:
                    execute("rollback")
            except sqlite3.Error as second:
                raise ReplicaBroken(f"changes of {self.user} could not be undone: {second}") from error
            if not isinstance(error, BROKEN):
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
        return self.kept(encoded) or self._query(encoded)

    def kept(self, encoded: bytes) -> KeptPage | None:
        """The answer if it is at hand."""
        page = self._kept.get(encoded)
        if page is not None and self._room is not None:
            self._room.keep(self, 0)
        return page

    @property
    def kept_bytes(self) -> int:
        return self._kept_bytes

    def rows(self, kind: str, after: str, until: str | None) -> list[Row]:
        """The rows of `kind` with after < id <= until (None: all that follow), in the order of their ids.

        Raises:
            ReplicaBroken: the file cannot be used any more.
        """
        connection, sql, values = self._use(), ROWS[kind], (after, until, until)
        try:
            return [Row(row[0], row[1:-1], row[-1]) for row in connection.execute(sql, values)]
        except BROKEN as error:
            raise ReplicaBroken(f"replica of {self.user} cannot be read: {error}") from error

    def _query(self, encoded: bytes) -> KeptPage:
        connection = self._use()
        self._steps = 0
        connection.set_progress_handler(self._step, 10_000)
        try:
            body = answer(connection, decode_query(encoded))
        except (*BROKEN, TypeError) as error:
            if _code(error) == sqlite3.SQLITE_INTERRUPT:
                raise QueryTooCostly(f"a query of {self.user} was stopped after {MAX_STEPS:,} steps") from error
            raise ReplicaBroken(f"replica of {self.user} cannot be read: {error}") from error
        finally:
            connection.set_progress_handler(None, 0)
        page = KeptPage(body, query_hash(encoded, self._version), next(_stamps))
        self._keep(encoded, page)
        return page

    def _step(self) -> bool:
        self._steps += 10_000
        return self._steps > MAX_STEPS

    def _keep(self, encoded: bytes, page: KeptPage) -> None:
        size = page.size
        if size > KEPT_BYTES // 2:
            return
        before = self._kept_bytes
        while self._kept and (len(self._kept) >= KEPT_PAGES or self._kept_bytes + size > KEPT_BYTES):
            oldest = next(iter(self._kept))
            self._kept_bytes -= self._kept.pop(oldest).size
        self._kept[encoded] = page
        self._kept_bytes += size
        if self._room is not None:
            self._room.keep(self, self._kept_bytes - before)

    def pack(self) -> None:
        """Let the pages take less room; they stay."""
        before = self._kept_bytes
        for page in self._kept.values():
            page.pack()
        self._kept_bytes = sum(page.size for page in self._kept.values())
        if self._room is not None:
            self._room.keep(self, self._kept_bytes - before)

    def _forget_pages(self, kinds: Set[str] | None = None) -> None:
        """Let go of those that read one of these kinds; None: of all."""
        before = self._kept_bytes
        for encoded in [e for e in self._kept if kinds is None or not kinds.isdisjoint(decode_query(e).kinds)]:
            self._kept_bytes -= self._kept.pop(encoded).size
        if self._room is not None:
            self._room.keep(self, self._kept_bytes - before)
