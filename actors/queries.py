"""Queries as a replica answers them: from its own tables, to the bytes of a body."""

from __future__ import annotations

import sqlite3

from store.gallery import Query
from store.lists import ListQuery, OneQuery, for_sqlite, one_body, page_body

__all__ = ["answer"]


def answer(connection: sqlite3.Connection, query: Query) -> bytes | None:
    """The body for `query`; None when the row it names is not there."""
    if isinstance(query, ListQuery):
        sql, values = for_sqlite(query)
        return page_body(query, connection.execute(sql, values).fetchall())
    if isinstance(query, OneQuery):
        row = connection.execute(f"select doc from {query.kind} where id = ?", (query.id,)).fetchone()
        return None if row is None else one_body(query.kind, row[0])
    return query.body({kind: _documents(connection, kind) for kind in query.kinds})


def _documents(connection: sqlite3.Connection, kind: str) -> list[bytes]:
    return [row[0] for row in connection.execute(f"select doc from {kind}")]
