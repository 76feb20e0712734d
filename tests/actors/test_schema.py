"""The replica's tables say what the documents and the primary say."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import pytest

from actors import schema
from actors.schema import DELETE, SCHEMA, UPSERT, user_version
from store.documents import FILTERS, Documents
from store.tables import REPLICATED, TIME_COLUMNS, metadata


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    opened = sqlite3.connect(":memory:")
    opened.executescript(SCHEMA)
    yield opened
    opened.close()


def columns(connection: sqlite3.Connection, table: str) -> dict[str, str]:
    return {row[1]: row[2].lower() for row in connection.execute(f"pragma table_info({table})")}


def test_every_replicated_kind_has_a_table_with_its_filters(connection: sqlite3.Connection) -> None:
    """mission: 131"""
    tables = {row[0] for row in connection.execute("select name from sqlite_master where type = 'table'")}

    assert tables == {"meta", *REPLICATED}
    assert set(FILTERS) == set(REPLICATED)
    for kind, filters in FILTERS.items():
        assert list(columns(connection, kind)) == ["id", *filters, "doc"]
        assert set(filters) <= set(REPLICATED[kind])


def test_filters_have_the_type_of_the_primary(connection: sqlite3.Connection) -> None:
    """Times and flags are integers here, text stays text: order and equality are those of the primary. mission: 131"""
    for kind, filters in FILTERS.items():
        for name in filters:
            kind_of_column = metadata.tables[kind].c[name].type.python_type
            expected = "integer" if name in TIME_COLUMNS or kind_of_column in (bool, int) else "text"
            assert columns(connection, kind)[name] == expected, (kind, name)


def test_rows_are_written_and_deleted_by_id(connection: sqlite3.Connection) -> None:
    """mission: 135"""
    for kind, filters in FILTERS.items():
        for document in (b"old", b"new"):
            connection.execute(UPSERT[kind], ("an id", *range(len(filters)), document))
        assert connection.execute(f"select id, doc from {kind}").fetchall() == [("an id", b"new")]
        row = connection.execute(f"select {', '.join(filters) or '1'} from {kind}").fetchone()
        assert [int(value) for value in row] == (list(range(len(filters))) or [1])

        connection.execute(DELETE[kind], ("an id",))
        assert connection.execute(f"select count(*) from {kind}").fetchone() == (0,)


def test_lists_are_read_from_an_index(connection: sqlite3.Connection) -> None:
    """A page costs its own length, however long the gallery is. mission: 142"""
    for where, index in (("is null", "images_gallery"), ("is not null", "images_trash")):
        plan = connection.execute(
            f"explain query plan select doc from images where trashed_at {where} order by created_at desc, id desc"
        ).fetchall()
        assert [row[3] for row in plan] == [f"SCAN images USING INDEX {index}"]


def test_there_is_one_position_per_file(connection: sqlite3.Connection) -> None:
    connection.execute("insert into meta values (1, 'ana', 'e', 1, 'n', 0.0)")

    with pytest.raises(sqlite3.IntegrityError):
        connection.execute("insert into meta values (2, 'bob', 'e', 1, 'n', 0.0)")


def test_the_version_changes_with_everything_that_documents_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """mission: 132"""
    here = user_version(Documents())
    assert here == user_version(Documents(""))
    assert 0 <= here < 2**31

    elsewhere = user_version(Documents("https://cdn.example"))
    assert elsewhere != here
    assert elsewhere == user_version(Documents("https://cdn.example/"))

    monkeypatch.setattr(schema, "SCHEMA", SCHEMA + "\ncreate index another on jobs (id);")
    assert user_version(Documents()) != here
