"""Seeding: a replica from nothing, provably at one version.

All rows come from one REPEATABLE READ snapshot, whose head is the cursor written beside them. They go through
aiosqlite, off the loop, into a staging file; pulls bring it near the head; only then it gets its final, new name.

However many hosts a primary has, only so many copy at once: each holds one of a few advisory locks while it does, and
Postgres takes the lock back from whoever dies.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiosqlite

from actors.errors import Retryable
from actors.schema import APPLICATION_ID, DELETE, INDEXES, TABLES, UPSERT, user_version
from store.changes import START, Cursor, Reset, changes_since, heads_of, seed_rows
from store.documents import Documents, Row
from store.primary import Connection, Primary

__all__ = ["Seeded", "seed"]

_ROWS_SQL: Final = seed_rows()
#: What the loop decodes in one go, about a millisecond: the reads of everybody else wait for it.
_BATCH: Final = 200
#: A staging file at most this many changes behind is served; the first read pulls the rest.
_NEAR: Final = 20
_ROUNDS: Final = 8
_TURN_SQL: Final = "select n from generate_series(1, $2) n where pg_try_advisory_xact_lock($1, n) limit 1"
_TURN_PAUSE_S: Final = 0.05


class Seeded(NamedTuple):
    """A finished seed: where it stands and how many rows it took."""

    cursor: Cursor
    rows: int


async def seed(
    primary: Primary, user: str, path: Path, documents: Documents, *, synced_at: float, at_once: int = 0
) -> Seeded:
    """Write `user`'s rows to a new replica at `path`, which appears only when it is whole.

    `synced_at` is the wall time now, before the snapshot is taken. `at_once` is how many seeds may copy from this
    primary at a time, this one with them; 0 does not wait for others.

    Raises:
        PrimaryUnavailable: the primary went away; nothing is left behind.
        Retryable: history changed meanwhile, or writers were faster than the pulls.
    """
    staging = path.with_suffix(".staging")
    staging.unlink(missing_ok=True)
    try:
        async with primary.connection() as connection, _opened(staging) as replica:
            await _prepare(replica, user, documents)
            seeded = await _copy_in_turn(connection, replica, user, documents, at_once)
            await _finish(replica, user, seeded.cursor, synced_at)
            seeded = await _catch_up(connection, replica, user, seeded, documents)
        os.utime(staging, (synced_at, synced_at))
        staging.rename(path)
    finally:
        staging.unlink(missing_ok=True)
    return seeded


@asynccontextmanager
async def _opened(staging: Path) -> AsyncIterator[aiosqlite.Connection]:
    """Who fails or is cancelled inside does not wait for the statement under way: an index may take seconds."""
    async with aiosqlite.connect(staging, isolation_level=None) as replica:
        try:
            yield replica
        except BaseException:
            await replica.interrupt()
            raise


async def _prepare(replica: aiosqlite.Connection, user: str, documents: Documents) -> None:
    # One transaction for all rows, one for the indexes, and no journal: a staging file that is not finished is thrown
    # away.
    await replica.executescript(
        f"pragma journal_mode = off; pragma synchronous = off; pragma application_id = {APPLICATION_ID};"
        f"pragma user_version = {user_version(documents)}; begin; {TABLES}"
    )


async def _copy_in_turn(
    connection: Connection, replica: aiosqlite.Connection, user: str, documents: Documents, at_once: int
) -> Seeded:
    while True:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            if not at_once or await connection.fetchval(_TURN_SQL, APPLICATION_ID, at_once):
                return await _copy(connection, replica, user, documents)
        await asyncio.sleep(_TURN_PAUSE_S)


async def _copy(connection: Connection, replica: aiosqlite.Connection, user: str, documents: Documents) -> Seeded:
    epoch, heads = await heads_of(connection, [user])
    cursor = heads.get(user, START._replace(epoch=epoch))
    count = 0
    source = await connection.cursor(_ROWS_SQL, user)
    while batch := await source.fetch(_BATCH):
        count += len(batch)
        by_kind: dict[str, list[tuple[Any, ...]]] = {}
        for kind, text in batch:
            by_kind.setdefault(kind, []).append(_values(documents.row(kind, text)))
        for kind, rows in by_kind.items():
            await replica.executemany(UPSERT[kind], rows)
    return Seeded(cursor, count)


def _values(row: Row) -> tuple[Any, ...]:
    return (row.id, *row.filters, row.document)


async def _finish(replica: aiosqlite.Connection, user: str, cursor: Cursor, synced_at: float) -> None:
    await replica.execute("insert into meta values (1, ?, ?, ?, ?, ?)", (user, *cursor, synced_at))
    # A script commits what came before it.
    await replica.executescript(f"begin; {INDEXES} commit")


async def _catch_up(
    connection: Connection, replica: aiosqlite.Connection, user: str, seeded: Seeded, documents: Documents
) -> Seeded:
    """Pull into the staging file until a pull is small: what was written during a long copy is in it too."""
    for _ in range(_ROUNDS):
        delta = await changes_since(connection, user, seeded.cursor, max_changes=100_000)
        if isinstance(delta, Reset):
            raise Retryable(f"the primary's history changed during the seed of {user}: {delta.reason}")
        if delta.changes:
            await replica.execute("begin")
            for kind, row_id, source in delta.changes:
                if source is None:
                    await replica.execute(DELETE[kind], (row_id,))
                else:
                    await replica.execute(UPSERT[kind], _values(documents.row(kind, source)))
            await replica.execute("update meta set epoch = ?, version = ?, nonce = ?", delta.head)
            await replica.execute("commit")
        seeded = Seeded(delta.head, seeded.rows + len(delta.changes))
        if len(delta.changes) <= _NEAR:
            return seeded
    raise Retryable(f"writers of {user} were faster than {_ROUNDS} pulls")
