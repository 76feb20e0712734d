"""Filtered pages are found by an index, so that a large gallery answers as fast as a small one."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import pytest

from actors.schema import SCHEMA
from store.gallery import parse_gallery_query
from store.job_lists import parse_jobs_query
from store.lists import Position, for_sqlite, page_token

_ID = "00000000-0000-4000-8000-000000000000"
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
        asked["page_token"] = page_token(parse_gallery_query(asked), Position(1, _ID))
    sql, values = for_sqlite(parse_gallery_query(asked))

    plan = [row[3] for row in replica.execute(f"explain query plan {sql}", values)]

    (name,) = filters
    assert len(plan) == 1
    assert plan[0].startswith(f"SEARCH images USING INDEX images_{name} ({name}=?")


_JOB_FILTERS = (
    {},
    {"state": "failed"},
    {"model": "m"},
    {"kind": "IMAGE_TO_IMAGE"},
    {"batch": _ID},
    {"state": "failed", "model": "m", "kind": "IMAGE_TO_IMAGE", "batch": _ID},
)


@pytest.mark.parametrize("filters", _JOB_FILTERS, ids=lambda filters: "+".join(filters) or "none")
@pytest.mark.parametrize("sort", ["newest", "oldest"])
@pytest.mark.parametrize("place", ["first", "span", "deep"])
def test_jobs_that_do_not_match_are_told_by_the_index(
    replica: sqlite3.Connection, filters: dict[str, str], sort: str, place: str
) -> None:
    """One index for all filters, in the order of the page: nothing is sorted, and no row is read that does not match.

    mission: 110, 142
    """
    asked = {**filters, "sort": sort}
    if place == "span":
        asked |= {"from": "2026-01-01", "to": "2026-02-01"}
    elif place == "deep":
        asked["page_token"] = page_token(parse_jobs_query(asked, "prompts"), Position(1, _ID))
    sql, values = for_sqlite(parse_jobs_query(asked, "prompts"))

    plan = [row[3] for row in replica.execute(f"explain query plan {sql}", values)]

    assert len(plan) == 1
    how = "SCAN" if place == "first" else "SEARCH"
    assert plan[0].startswith(f"{how} jobs USING INDEX jobs_history")


def test_hidden_jobs_have_an_index_of_their_own(replica: sqlite3.Connection) -> None:
    """They are few, and the others are not in the way."""
    sql, values = for_sqlite(parse_jobs_query({"hidden": "1", "state": "failed"}, "generations"))

    plan = [row[3] for row in replica.execute(f"explain query plan {sql}", values)]

    assert plan == ["SCAN jobs USING INDEX jobs_hidden"]
