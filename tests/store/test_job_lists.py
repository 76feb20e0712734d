"""Lists of jobs: what may be asked, and the same pages from the primary and from a replica."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.replica import Replica
from actors.schema import user_version
from actors.seed import seed
from store.documents import Documents
from store.errors import InvalidQuery
from store.gallery import GalleryQuery, Query, decode_query, encode_query
from store.job_lists import JobQuery, JobsQuery, parse_jobs_query
from store.lists import Position, page_token, with_page_token
from store.primary import Primary
from store.reads import PrimaryReads
from tests.jobs import add_jobs, end_job

DOCUMENTS = Documents()
NOON = datetime(2026, 3, 4, 12, 0, 0, 123456, tzinfo=UTC)
NOON_US = 1_772_625_600_123_456
BATCHES = [uuid.UUID(int=n) for n in (1, 2)]

# --- from a URL ------------------------------------------------------------------------------------------------


def test_no_parameters_are_the_first_page_of_the_history() -> None:
    """mission: 152, 155"""
    assert parse_jobs_query({}, "prompts") == JobsQuery(limit=50, sort="newest", hidden=False, called="prompts")


def test_every_parameter_is_read() -> None:
    """mission: 152, 157"""
    batch = str(BATCHES[0])
    query = parse_jobs_query(
        {
            "limit": "7", "sort": "oldest", "state": "failed", "model": "a b", "kind": "IMAGE_TO_IMAGE",
            "batch": batch.upper(), "from": "1970-01-02", "to": "1970-01-03T00:00:00.000001+00:00", "hidden": "1",
        },
        "generations",
    )  # fmt: skip

    assert query == JobsQuery(
        7,
        "oldest",
        None,
        "failed",
        "a b",
        "IMAGE_TO_IMAGE",
        batch,
        86_400_000_000,
        172_800_000_001,
        True,
        "generations",
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01", 0),
        ("2026-03-04", NOON_US - 43_200_123_456),
        ("2026-03-04T12:00:00.123456Z", NOON_US),
        ("2026-03-04t14:00:00.123456+02:00", NOON_US),
        ("1970-01-01T00:00:00.5z", 500_000),
        ("9999-12-31T23:59:59.999999Z", 253_402_300_799_999_999),
    ],
)
def test_times_are_days_in_utc_or_moments(text: str, expected: int) -> None:
    """As RFC 3339 writes them, and as documents do."""
    assert parse_jobs_query({"from": text}, "prompts").since == expected


BAD_TIMES = (
    "", "now", "2026", "20260304", "2026-3-4", "2026-13-01", "2026-02-30", "2026-03-04T12:00", "2026-03-04 12:00:00Z",
    "2026-03-04T12:00:00", "2026-03-04T25:00:00Z", "2026-W10-1", "1969-12-31", "1969-12-31T23:59:59Z", "0001-01-01",
    "9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59", "2026-03-04T12:00:00.1234567Z", "٢٠٢٦-٠٣-٠٤", "9" * 500,
)  # fmt: skip
BAD = [
    *(("limit", bad) for bad in ("0", "201", "x", "")),
    *(("state", bad) for bad in ("", "done", "COMPLETED", "pending,failed")),
    *(("kind", bad) for bad in ("", "text_to_image", "x")),
    *(("batch", bad) for bad in ("", "x", "{" + "0" * 34 + "}", str(BATCHES[0]).replace("-", ""), "é" * 36)),
    *(("model", bad) for bad in ("", "a\0b", "x" * 201, "\udc80")),
    *((name, bad) for name in ("from", "to") for bad in BAD_TIMES),
    ("hidden", "true"),
    ("owner_id", "bo"),
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=[f"{n}={v[:26]!a}" for n, v in BAD])
def test_bad_value_names_its_parameter(name: str, value: str) -> None:
    """mission: 157"""
    with pytest.raises(InvalidQuery) as caught:
        parse_jobs_query({name: value}, "prompts")

    assert caught.value.field == name
    assert name in str(caught.value)
    assert len(str(caught.value)) < 250


def test_a_span_that_ends_before_it_begins_is_refused() -> None:
    """An empty list would hide the mistake. An empty span is one all the same."""
    with pytest.raises(InvalidQuery, match="from must not be after to"):
        parse_jobs_query({"from": "2026-03-05", "to": "2026-03-04"}, "prompts")

    assert parse_jobs_query({"from": "2026-03-04", "to": "2026-03-04"}, "prompts").since == NOON_US - 43_200_123_456


def parsed(parameters: dict[str, str]) -> JobsQuery | InvalidQuery:
    """The query or the refusal: any other error is a bug."""
    try:
        return parse_jobs_query(parameters, "generations")
    except InvalidQuery as error:
        return error


@given(name=st.sampled_from(["from", "to", "batch", "state", "kind", "hidden"]), value=st.text(max_size=40))
def test_any_text_is_a_query_or_an_invalid_query(name: str, value: str) -> None:
    """Whatever stands in the URL: never another error."""
    result = parsed({name: value})

    if isinstance(result, InvalidQuery):
        assert result.field == name
    else:
        assert decode_query(encode_query(result)) == result


queries = st.builds(
    JobsQuery,
    limit=st.integers(1, 40),
    sort=st.sampled_from(["newest", "oldest"]),
    state=st.sampled_from([None, "pending", "completed", "failed", "canceled", "uploading"]),
    model=st.sampled_from([None, "a", "it's", "nobody's"]),
    job_kind=st.sampled_from([None, None, "TEXT_TO_IMAGE", "IMAGE_TO_IMAGE"]),
    batch=st.sampled_from([None, None, *map(str, BATCHES), str(uuid.UUID(int=9))]),
    since=st.none() | st.integers(-1, 60).map(NOON_US.__add__),
    until=st.none() | st.integers(-1, 1_000_001).map(NOON_US.__add__),
    hidden=st.booleans(),
    called=st.sampled_from(["prompts", "generations"]),
)
positions = st.builds(Position, st.integers(-1, 60).map(NOON_US.__add__), st.uuids().map(str))


@given(query=queries, other=queries, position=positions)
def test_page_token_of_another_list_is_refused(query: JobsQuery, other: JobsQuery, position: Position) -> None:
    """Another sort, filter or name of the list."""
    is_same_list = [getattr(query, f) == getattr(other, f) for f in JobsQuery.__struct_fields__[1:]]
    token = page_token(query, position)
    assert with_page_token(query, token).after == position
    if not all(is_same_list):
        with pytest.raises(InvalidQuery, match="belongs to a list with another sort or other filters"):
            with_page_token(other, token)


def test_token_of_a_gallery_leads_nowhere_here() -> None:
    token = page_token(GalleryQuery(), Position(5, str(uuid.UUID(int=1))))

    with pytest.raises(InvalidQuery, match="page_token belongs"):
        parse_jobs_query({"page_token": token}, "prompts")


# --- two databases, one page -----------------------------------------------------------------------------------


class Both:
    """One user's jobs in the primary and in a replica at the same version."""

    def __init__(self, reads: PrimaryReads, replica: Replica) -> None:
        self.reads, self.replica = reads, replica

    async def body(self, query: Query) -> bytes | None:
        """The body, which both give byte for byte."""
        encoded = encode_query(query)
        page = await self.reads.read("ana", encoded)
        assert self.replica.read(encoded).body == page.body
        assert (page.at.epoch, page.at.version) == self.replica.cursor[:2]
        return page.body

    async def walk(self, query: JobsQuery) -> list[dict[str, Any]]:
        """The documents of all pages in order."""
        seen: list[dict[str, Any]] = []
        while True:
            page = json.loads(await self.body(query) or b"")
            assert set(page) == {"success", query.called, "next_page_token"}
            seen += page[query.called]
            assert len({document["id"] for document in seen}) == len(seen), "a job came twice"
            if page["next_page_token"] is None:
                return seen
            assert len(page[query.called]) == query.limit
            query = with_page_token(query, page["next_page_token"])


@pytest.fixture
async def connection(database: str) -> AsyncIterator[asyncpg.Connection]:
    made = await asyncpg.connect(database)
    yield made
    await made.close()


async def both_of(primary: Primary, folder: Path) -> Both:
    path = folder / f"{uuid.uuid4().hex}.db"
    await seed(primary, "ana", path, DOCUMENTS, synced_at=1.0)
    return Both(PrimaryReads(primary, DOCUMENTS), Replica.open(path, "ana", user_version(DOCUMENTS)))


@pytest.fixture
async def mixed(primary: Primary, connection: asyncpg.Connection, tmp_path: Path) -> AsyncIterator[Both]:
    """120 jobs of every sort, many at the same moment, among those of another user."""
    chance = random.Random(7)
    await add_jobs(connection, "bo", 5)
    await connection.execute("insert into users (id) values ('ana')")
    for batch in BATCHES:
        await connection.execute("insert into batches (id, owner_id, kind) values ($1, 'ana', 'batch')", batch)
    for n in range(120):
        (job,) = await add_jobs(
            connection, "ana",
            model=chance.choice(["a", "b", "it's"]), kind=chance.choice(["TEXT_TO_IMAGE", "IMAGE_TO_IMAGE"]),
            batch_id=chance.choice([None, None, *BATCHES]), hidden_at=NOON if chance.random() < 0.3 else None,
            created_at=NOON + timedelta(microseconds=chance.choice([0, 0, 1, 1_000_000, n])),
            prompt=chance.choice(["", "🎨", 'quo"te', "line\nbreak"]), n=3, watermark=chance.choice([None, "ana"]),
        )  # fmt: skip
        state = chance.choice(["pending", "uploading", "completed", "failed", "canceled"])
        if state in ("completed", "failed", "canceled"):
            await end_job(connection, job, state, pictures=2, cost_usd="0.0420")
        else:
            await connection.execute("update jobs set state = $2 where id = $1", job, state)
    made = await both_of(primary, tmp_path)
    yield made
    made.replica.close()


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(query=queries)
async def test_replica_and_primary_give_the_same_pages(mixed: Both, query: JobsQuery) -> None:
    """For any filters, sort and page size: byte for byte, page after page, and nothing twice or left out.

    mission: 152, 155
    """
    seen = await mixed.walk(query)

    rows = await mixed.reads._primary.fetch(
        "select id::text, created_at from jobs where owner_id = 'ana' and (hidden_at is not null) = $1 "
        "and ($2::text is null or state = $2) and ($3::text is null or model = $3) "
        "and ($4::text is null or kind = $4) and ($5::text is null or batch_id::text = $5) "
        "and ($6::bigint is null or extract(epoch from created_at) * 1000000 >= $6) "
        "and ($7::bigint is null or extract(epoch from created_at) * 1000000 < $7)",
        query.hidden, query.state, query.model, query.job_kind, query.batch, query.since, query.until,
    )  # fmt: skip
    expected = sorted(((row["created_at"], row["id"]) for row in rows), reverse=query.sort == "newest")
    assert [document["id"] for document in seen] == [row_id for _, row_id in expected]
    assert all((document["hidden_at"] is not None) == query.hidden for document in seen)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(query=queries, position=positions)
async def test_replica_and_primary_agree_after_any_position(mixed: Both, query: JobsQuery, position: Position) -> None:
    """A token may name a place where no job is."""
    await mixed.body(with_page_token(query, page_token(query, position)))


async def test_one_job_is_the_same_from_both(mixed: Both) -> None:
    """Whether it is hidden or not; nobody else's."""
    for hidden in (False, True):
        [document, *_] = await mixed.walk(JobsQuery(hidden=hidden))
        one = json.loads(await mixed.body(JobQuery(document["id"])) or b"")
        assert one == {"success": True, "prompt": document}
    rows = await mixed.reads._primary.fetch("select id::text from jobs where owner_id = 'bo'")
    for row in rows:
        assert await mixed.body(JobQuery(row["id"])) is None


async def test_walk_goes_on_while_jobs_come_and_are_hidden(primary: Primary, connection: asyncpg.Connection) -> None:
    """A page token is a place, not a number of rows: what was there all the time is visited once."""
    rows = [str(row) for row in await add_jobs(connection, "ana", 20)]
    reads = PrimaryReads(primary, DOCUMENTS)
    query, seen = JobsQuery(limit=5), []
    while True:
        page = json.loads((await reads.read("ana", encode_query(query))).body or b"")
        seen += [document["id"] for document in page["prompts"]]
        if page["next_page_token"] is None:
            break
        await connection.execute("update jobs set hidden_at = now() where id = $1::text::uuid", seen[-1])
        await add_jobs(connection, "ana", 2)
        query = with_page_token(query, page["next_page_token"])

    assert seen == rows[::-1]


async def test_stranger_has_an_empty_history(primary: Primary) -> None:
    page = await PrimaryReads(primary, DOCUMENTS).read("nobody", encode_query(JobsQuery()))

    assert (page.body, page.at.version) == (b'{"success":true,"prompts":[],"next_page_token":null}', 0)
