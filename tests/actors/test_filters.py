"""Filtered pages are found by an index, so that a large gallery answers as fast as a small one."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import pytest

from actors.schema import SCHEMA
from store.gallery import parse_gallery_query
from store.lists import Position, for_sqlite, page_token

_FILTERS = ({"starred": "true"}, {"model": "builtin"}, {"visibility": "public"})


@pytest.fixture
def replica() -> Iterator[sqlite3.Connection]:
    """The tables of a replica, empty."""
    connection = sqlite3.connect(":memory:")
    connection.executescript(SCHEMA)
    yield connection
    connection.close()


@pytest.mark.parametrize("filters", _FILTERS, ids=lambda filters: next(iter(filters)))
@pytest.mark.parametrize("sort", ["newest", "oldest"])
@pytest.mark.parametrize("is_deep", [False, True], ids=["first", "deep"])
def test_filtered_page_is_searched_not_scanned(
    replica: sqlite3.Connection, filters: dict[str, str], sort: str, is_deep: bool
) -> None:
    """Each filter has an index in the order of the page: rows that do not match are never looked at, nor sorted."""
    asked = {**filters, "sort": sort}
    if is_deep:
        asked["page_token"] = page_token(
            parse_gallery_query(asked), Position(1, "0" * 8 + "-0000-4000-8000-" + "0" * 12)
        )
    sql, values = for_sqlite(parse_gallery_query(asked))

    plan = [row[3] for row in replica.execute(f"explain query plan {sql}", values)]

    (name,) = filters
    assert len(plan) == 1
    assert plan[0].startswith(f"SEARCH images USING INDEX images_{name} ({name}=?")
