"""The gallery's list rule: the same page from the primary and from a replica, every image exactly once."""

from __future__ import annotations

import base64
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
from store.gallery import (
    GalleryQuery,
    ImageQuery,
    Query,
    ReferenceQuery,
    ReferencesQuery,
    decode_query,
    encode_query,
    parse_gallery_query,
    query_hash,
)
from store.job_lists import JobQuery, JobsQuery
from store.lists import Position, page_token
from store.primary import Primary
from store.reads import PrimaryReads
from store.usage import AccountQuery, StatsQuery
from tests.store.test_capture import COLUMNS, image, insert_image
from tests.world import add_images

DOCUMENTS = Documents()
NOON = datetime(2026, 3, 4, 12, 0, 0, 123456, tzinfo=UTC)

# --- from a URL ------------------------------------------------------------------------------------------------


def test_no_parameters_are_the_first_page_newest_first() -> None:
    """mission: 114"""
    assert parse_gallery_query({}) == GalleryQuery(limit=50, sort="newest", after=None, trashed=False)


def test_every_parameter_is_read() -> None:
    """mission: 155"""
    query = parse_gallery_query(
        {"limit": "7", "sort": "oldest", "model": "a b", "visibility": "public", "starred": "0", "trashed": "true"}
    )

    assert query == GalleryQuery(7, "oldest", None, "a b", "public", False, True)
    assert parse_gallery_query([("starred", "1"), ("trashed", "false")]) == GalleryQuery(starred=True)


LONE_SURROGATE = "\udc80"

BAD = [
    *(("limit", bad) for bad in ("0", "201", "-1", "", "x", "1.5", "1e2", " 5", "+5", "٣", "²", "9" * 5000)),
    *(("sort", bad) for bad in ("", "new", "NEWEST", "created_at desc", "newest ")),
    *(("visibility", bad) for bad in ("", "private", "Public", "public' or 1=1")),
    *(("starred", bad) for bad in ("", "yes", "TRUE", "2", "null")),
    *(("trashed", bad) for bad in ("", "no", "True", "01")),
    *(("model", bad) for bad in ("", "a\0b", "x" * 201, f"a{LONE_SURROGATE}")),
    *(("page_token", bad) for bad in ("", "?", "AAAA", "é", "x" * 257, LONE_SURROGATE)),
    ("owner_id", "bo"),
    ("", ""),
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=[f"{n}={v[:12]!a}" for n, v in BAD])
def test_bad_value_names_its_parameter(name: str, value: str) -> None:
    """Unknown, out of range or malformed: the answer says which parameter, in few words.

    mission: 157
    """
    with pytest.raises(InvalidQuery) as caught:
        parse_gallery_query({name: value})

    assert caught.value.field == name
    assert (name or "''") in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", ["limit", "sort", "model", "visibility", "starred", "trashed", "page_token"])
def test_parameter_given_twice_is_refused(name: str) -> None:
    """Two proxies may choose different ones: neither is chosen."""
    value = {"limit": "5", "sort": "oldest", "visibility": "public", "starred": "1", "trashed": "1"}.get(name, "x")

    with pytest.raises(InvalidQuery, match="is given twice") as caught:
        parse_gallery_query([(name, value), (name, value)])

    assert caught.value.field == name


parameter_text = st.text(max_size=30) | st.sampled_from(["1", "0", "true", "newest", "public", "W10", "bnVsbA", "e30"])
parameter_names = st.sampled_from(["limit", "page_token", "sort", "model", "visibility", "starred", "trashed", "x"])


def parsed(parameters: dict[str, str]) -> GalleryQuery | InvalidQuery:
    """The query or the refusal: any other error is a bug."""
    try:
        return parse_gallery_query(parameters)
    except InvalidQuery as error:
        return error


@given(name=parameter_names, value=parameter_text)
def test_any_text_is_a_query_or_an_invalid_query(name: str, value: str) -> None:
    """Whatever stands in the URL: never another error."""
    result = parsed({name: value})

    if isinstance(result, InvalidQuery):
        assert result.field == name
    else:
        assert decode_query(encode_query(result)) == result


# --- page tokens -----------------------------------------------------------------------------------------------

queries = st.builds(
    GalleryQuery,
    limit=st.integers(1, 40),
    sort=st.sampled_from(["newest", "oldest"]),
    model=st.sampled_from([None, "a", "b", "it's", 'a "b" é', "nobody's"]),
    visibility=st.sampled_from([None, "public", "unlisted"]),
    starred=st.sampled_from([None, True, False]),
    trashed=st.booleans(),
)
positions = st.builds(
    Position, st.integers(0, 253_402_300_799_999_999), st.uuids().map(str)
)  # fmt: skip


def parameters_of(query: GalleryQuery) -> dict[str, str]:
    """The URL parameters that ask for `query`."""
    given = {"limit": str(query.limit), "sort": query.sort, "trashed": str(query.trashed).lower()}
    if query.model is not None:
        given["model"] = query.model
    if query.visibility is not None:
        given["visibility"] = query.visibility
    if query.starred is not None:
        given["starred"] = str(query.starred).lower()
    if query.after is not None:
        given["page_token"] = page_token(query, query.after)
    return given


def with_token(query: GalleryQuery, token: str) -> GalleryQuery:
    return parse_gallery_query({**parameters_of(query), "page_token": token})


@given(query=queries, position=positions)
def test_page_token_leads_back_to_its_position(query: GalleryQuery, position: Position) -> None:
    """Also with another page size, which a client may change on the way."""
    token = page_token(query, position)

    assert with_token(query, token).after == position
    assert parse_gallery_query({**parameters_of(query), "limit": "3", "page_token": token}).after == position
    assert token.isascii()
    assert len(token) <= 256
    assert not set(token) & set("+/= ")


@given(query=queries, other=queries, position=positions)
def test_page_token_of_another_list_is_refused(query: GalleryQuery, other: GalleryQuery, position: Position) -> None:
    """Another sort or other filters would skip or repeat images without a word."""
    is_same_list = [getattr(query, f) == getattr(other, f) for f in GalleryQuery.__struct_fields__[1:]]
    token = page_token(query, position)
    if all(is_same_list):
        assert with_token(other, token).after == position
        return

    with pytest.raises(InvalidQuery, match="belongs to a list with another sort or other filters") as caught:
        with_token(other, token)

    assert caught.value.field == "page_token"


def token_of(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def token_parts() -> list[Any]:
    token = page_token(GalleryQuery(), Position(5, str(uuid.UUID(int=1))))
    parts: list[Any] = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    return parts


TAMPERED = [
    token_of(None), token_of(7), token_of("abcd"), token_of([]), token_of({}), token_of([1, 2, 3, 4, 5]),
    token_of({"a": 1, "b": 2, "c": 3, "d": 4}), token_of([[]] * 4), token_of([None] * 4),
    token_of([*token_parts()[:2], -1, str(uuid.UUID(int=1))]),
    token_of([*token_parts()[:2], 1.5, str(uuid.UUID(int=1))]),
    token_of([*token_parts()[:2], True, str(uuid.UUID(int=1))]),
    token_of([*token_parts()[:2], "5", str(uuid.UUID(int=1))]),
    token_of([*token_parts()[:2], 10**18, str(uuid.UUID(int=1))]),
    token_of([*token_parts()[:2], 10**80, str(uuid.UUID(int=1))]),
    token_of([*token_parts()[:2], 5, "not a uuid"]),
    token_of([*token_parts()[:2], 5, 5]),
    token_of([*token_parts()[:3], "' or 1=1 --"]),
    base64.urlsafe_b64encode(b"\xff\xfe\xff").decode(), base64.urlsafe_b64encode(b"[" * 150).decode(),
    base64.urlsafe_b64encode(b'{"a":').decode(), "====", "a", "a b c d", "W10=W10=", "A" * 256, "A" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("token", TAMPERED, ids=range(len(TAMPERED)))
def test_tampered_token_is_refused(token: str) -> None:
    """Not base64, not JSON, not ours, or far too long: always the same error, never another one."""
    with pytest.raises(InvalidQuery, match="page_token is not one that a list of ours gave out") as caught:
        parse_gallery_query({"page_token": token})

    assert caught.value.field == "page_token"


@given(data=st.data(), position=positions)
def test_token_with_one_sign_changed_is_refused_or_a_position(data: st.DataObject, position: Position) -> None:
    """Tokens are not signed: a changed one may only name another place in the same user's list."""
    query = GalleryQuery()
    token = page_token(query, position)
    at = data.draw(st.integers(0, len(token) - 1))
    changed = token[:at] + data.draw(st.characters(codec="ascii")) + token[at + 1 :]

    result = parsed({"page_token": changed})

    if isinstance(result, InvalidQuery):
        assert result.field == "page_token"
    else:
        assert result.after is not None
        assert str(uuid.UUID(result.after.id)) == result.after.id
        assert datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=result.after.created_at)


# --- encoding and ETags ----------------------------------------------------------------------------------------


@given(query=queries, position=st.none() | positions)
def test_query_comes_back_from_its_bytes(query: GalleryQuery, position: Position | None) -> None:
    """Equal queries have equal bytes: they share pages and statements."""
    query = GalleryQuery(*[getattr(query, f) if f != "after" else position for f in GalleryQuery.__struct_fields__])

    assert decode_query(encode_query(query)) == query
    assert encode_query(decode_query(encode_query(query))) == encode_query(query)


def test_etag_differs_by_query_and_by_what_documents_look_like() -> None:
    """A page of another query or another deployment is never taken for this one.

    mission: 146
    """
    some: list[Query] = [
        GalleryQuery(), GalleryQuery(limit=49), GalleryQuery(sort="oldest"), GalleryQuery(model="a"),
        GalleryQuery(visibility="public"), GalleryQuery(starred=True), GalleryQuery(starred=False),
        GalleryQuery(trashed=True), GalleryQuery(after=Position(1, str(uuid.UUID(int=1)))),
        GalleryQuery(after=Position(2, str(uuid.UUID(int=1)))), ImageQuery(str(uuid.UUID(int=1))),
        ReferencesQuery(), ReferenceQuery(str(uuid.UUID(int=1))), JobsQuery(), JobsQuery(called="generations"),
        JobsQuery(hidden=True), JobsQuery(model="a"), JobsQuery(state="a"), JobQuery(str(uuid.UUID(int=1))),
        StatsQuery("2026-03-04"), StatsQuery("2026-03-05"), AccountQuery((1, 2, 3)), AccountQuery((1, 2, 4)),
    ]  # fmt: skip
    fingerprints = [DOCUMENTS.fingerprint, Documents("https://cdn.example.com").fingerprint, 0, 2**31 - 1]

    hashes = {query_hash(encode_query(query), fingerprint) for query in some for fingerprint in fingerprints}

    assert len(hashes) == len(some) * len(fingerprints)
    assert all(len(h) == 12 and int(h, 16) >= 0 for h in hashes)
    assert query_hash(encode_query(some[0]), 5) == query_hash(encode_query(GalleryQuery()), 5)


# --- two databases, one page -----------------------------------------------------------------------------------


class Both:
    """One user's images in the primary and in a replica at the same version."""

    def __init__(self, reads: PrimaryReads, replica: Replica) -> None:
        self.reads, self.replica = reads, replica

    async def body(self, query: Query) -> bytes | None:
        """The body, which both give byte for byte."""
        encoded = encode_query(query)
        page = await self.reads.read("ana", encoded)
        assert self.replica.read(encoded).body == page.body
        assert (page.at.epoch, page.at.version) == self.replica.cursor[:2]
        return page.body

    async def walk(self, query: GalleryQuery) -> list[str]:
        """The ids of all pages in order."""
        seen: list[str] = []
        while True:
            page = json.loads(await self.body(query) or b"")
            assert len(page["images"]) <= query.limit
            seen += [document["id"] for document in page["images"]]
            assert len(seen) == len(set(seen)), "an image came twice"
            if page["next_page_token"] is None:
                return seen
            assert len(page["images"]) == query.limit
            query = with_token(query, page["next_page_token"])


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
    """120 images of every sort, many at the same moment, among those of another user."""
    chance = random.Random(7)
    await add_images(connection, "bo", 5)
    await connection.execute("insert into users (id) values ('ana')")
    for n in range(120):
        await insert_image(
            connection, "ana",
            model=chance.choice(["a", "b", "it's", 'a "b" é']), visibility=chance.choice(["public", "unlisted"]),
            starred=chance.random() < 0.4, trashed_at=NOON if chance.random() < 0.3 else None,
            created_at=NOON + timedelta(microseconds=chance.choice([0, 0, 1, 1_000_000, n])),
            prompt=chance.choice(["", "🎨", 'quo"te', "line\nbreak"]), generation_params='{"cfg": 7.50}',
        )  # fmt: skip
    made = await both_of(primary, tmp_path)
    yield made
    made.replica.close()


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(query=queries)
async def test_replica_and_primary_give_the_same_pages(mixed: Both, query: GalleryQuery) -> None:
    """For any filters, sort and page size: byte for byte, page after page, and nothing twice or left out.

    mission: 137, 148
    """
    seen = await mixed.walk(query)

    sql = (
        "select id::text from images where owner_id = 'ana' and (trashed_at is not null) = $1 "
        "and ($2::text is null or model = $2) and ($3::text is null or visibility = $3) "
        "and ($4::bool is null or starred = $4)"
    )
    rows = await mixed.reads._primary.fetch(sql, query.trashed, query.model, query.visibility, query.starred)
    assert sorted(seen) == sorted(row[0] for row in rows)


NOON_MICROSECONDS = 1_772_625_600_123_456
near_noon = st.builds(Position, st.integers(-1, 2).map(NOON_MICROSECONDS.__add__), st.uuids().map(str))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(query=queries, position=positions | near_noon)
async def test_replica_and_primary_agree_after_any_position(
    mixed: Both, query: GalleryQuery, position: Position
) -> None:
    """A token may name a place where no image is: deleted since, or made up."""
    await mixed.body(with_token(query, page_token(query, position)))


@pytest.mark.parametrize("sort", ["newest", "oldest"])
@pytest.mark.parametrize("limit", [1, 7, 100, 125, 200])
async def test_images_of_one_moment_are_each_visited_once(
    primary: Primary, connection: asyncpg.Connection, tmp_path: Path, sort: Any, limit: int
) -> None:
    """250 images with an equal created_at, as an import makes them: the id decides, on both sides alike.

    mission: 114, 121, 155
    """
    await connection.execute("insert into users (id) values ('ana')")
    records = [(*image("ana").values(), NOON) for _ in range(250)]
    await connection.copy_records_to_table("images", columns=(*COLUMNS, "created_at"), records=records)
    both = await both_of(primary, tmp_path)

    seen = await both.walk(GalleryQuery(limit=limit, sort=sort))

    assert seen == sorted((str(record[0]) for record in records), reverse=sort == "newest")
    both.replica.close()


async def test_page_that_is_exactly_full_has_no_next(mixed: Both) -> None:
    """The token says whether anything follows, so that nobody asks for an empty page."""
    total = len(await mixed.walk(GalleryQuery(limit=200)))
    last = json.loads(await mixed.body(GalleryQuery(limit=total)) or b"")
    short = json.loads(await mixed.body(GalleryQuery(limit=total - 1)) or b"")

    assert last["next_page_token"] is None
    assert len(last["images"]) == total
    assert isinstance(short["next_page_token"], str)


async def test_walk_goes_on_when_images_come_and_go(primary: Primary, connection: asyncpg.Connection) -> None:
    """A page token is a place, not a number of rows: what was there all the time is visited once."""
    rows = [str(row) for row in await add_images(connection, "ana", 20)]
    reads = PrimaryReads(primary, DOCUMENTS)
    query, seen = GalleryQuery(limit=5), []
    while True:
        page = json.loads((await reads.read("ana", encode_query(query))).body or b"")
        seen += [document["id"] for document in page["images"]]
        if page["next_page_token"] is None:
            break
        await connection.execute("delete from images where id = $1::text::uuid", seen[-1])
        await add_images(connection, "ana", 2)
        query = with_token(query, page["next_page_token"])

    assert seen == rows[::-1]


async def test_empty_gallery_is_a_page_at_a_version(primary: Primary, connection: asyncpg.Connection) -> None:
    """A user whom nobody knows has an empty list at version 0, not an error."""
    await connection.execute("insert into users (id) values ('ana')")
    reads = PrimaryReads(primary, DOCUMENTS)

    stranger, ana = [await reads.read(user, encode_query(GalleryQuery())) for user in ("nobody", "ana")]

    assert stranger.body == ana.body == b'{"success":true,"images":[],"next_page_token":null}'
    assert (stranger.at.version, ana.at.version) == (0, 1)


async def test_nobody_sees_the_images_of_another(primary: Primary, connection: asyncpg.Connection) -> None:
    """Neither in the list nor by id.

    mission: 141, 208
    """
    [row] = await add_images(connection, "bo", 1)
    await add_images(connection, "ana", 1)
    reads = PrimaryReads(primary, DOCUMENTS)

    page = await reads.read("ana", encode_query(GalleryQuery()))
    mine = await reads.read("ana", encode_query(ImageQuery(str(row))))
    his = await reads.read("bo", encode_query(ImageQuery(str(row))))

    assert str(row).encode() not in (page.body or b"")
    assert mine.body is None
    assert his.body is not None
