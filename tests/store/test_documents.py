"""Documents: one list of columns everywhere, exact values, and the same bytes from wherever they come."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.queries import answer
from actors.replica import Applied, Replica
from actors.schema import SCHEMA, user_version
from actors.seed import seed
from store import documents
from store.changes import Delta, changes_since, seed_rows
from store.documents import FILTERS, Documents, projection
from store.gallery import ImageQuery, encode_query
from store.primary import Primary
from store.reads import PrimaryReads
from store.tables import REPLICATED, TIME_COLUMNS, metadata
from tests.store.test_capture import insert_image, insert_job
from tests.world import add_images

ROWS = {
    "images": documents._ImageRow,
    "reference_images": documents._ReferenceRow,
    "jobs": documents._JobRow,
    "accounts": documents._AccountRow,
    "usage_daily": documents._UsageRow,
}


@pytest.fixture
async def connection(database: str) -> AsyncIterator[asyncpg.Connection]:
    """A plain connection, with the user ana."""
    made = await asyncpg.connect(database)
    await made.execute("insert into users (id) values ('ana')")
    yield made
    await made.close()


async def source_of(connection: Any, kind: str, row_id: Any) -> str:
    key = "owner_id" if kind == "accounts" else "id"
    sql = f"select row_to_json(d)::text from (select {projection(kind)} from {kind} t where t.{key} = $1) d"
    source: str = await connection.fetchval(sql, row_id)
    return source


async def document_of(connection: Any, kind: str, row_id: Any) -> dict[str, Any]:
    made = Documents().row(kind, await source_of(connection, kind, row_id)).document
    document: dict[str, Any] = json.loads(made)
    return document


# --- one list of columns -------------------------------------------------------------------------------------------


def test_row_structs_are_the_replicated_columns() -> None:
    """Field by field and in order: what is selected is what is decoded."""
    assert {kind: row.__struct_fields__ for kind, row in ROWS.items()} == REPLICATED


def test_replicated_and_filter_columns_are_columns_of_the_table() -> None:
    """A filter column is replicated, or a change of it would not reach the replica."""
    for kind, columns in REPLICATED.items():
        assert set(columns) <= {c.name for c in metadata.tables[kind].columns}
        assert set(FILTERS[kind]) <= set(columns)
    assert set(FILTERS) == set(REPLICATED)


def test_every_time_column_is_projected_as_microseconds() -> None:
    """A time that were left as text would not fit its struct, and would be lost on a replica's index."""
    for kind, columns in REPLICATED.items():
        times = {c.name for c in metadata.tables[kind].columns if "TIMESTAMP" in str(c.type)}
        assert times & set(columns) == TIME_COLUMNS & set(columns)


def test_replica_keeps_the_filter_columns_beside_the_document() -> None:
    for kind, columns in FILTERS.items():
        names = re.search(rf"create table {kind} \((.*?)\);", SCHEMA)
        assert names is not None
        assert [part.split()[0] for part in names[1].split(", ")] == ["id", *columns, "doc"]


async def test_triggers_watch_the_replicated_columns_and_the_owner(connection: asyncpg.Connection) -> None:
    """As Postgres itself prints them: a column that is in the document and not in the trigger would go stale."""
    for kind, columns in REPLICATED.items():
        definition = await connection.fetchval(
            "select pg_get_triggerdef(oid) from pg_trigger "
            "where tgrelid = $1::text::regclass and tgname = 'sync_update'",
            kind,
        )
        watched = set(re.findall(r"\bold\.(\w+)", definition))
        assert watched == {*columns, "owner_id"}, kind
        assert watched == set(re.findall(r"\bnew\.(\w+)", definition))


async def test_update_of_each_replicated_column_is_a_version(connection: asyncpg.Connection) -> None:
    """Not by reading the trigger, but by changing the column."""
    values = {
        "id": "gen_random_uuid()", "object_key": "'k'", "thumb_key": "'t'", "thumbhash": "'h'", "content_type": "'c'",
        "size_bytes": "2", "width": "3", "height": "4", "prompt": "'q'", "negative_prompt": "'n'", "model": "'o'",
        "seed": "5", "steps": "6", "generation_params": "'{\"x\": 1}'", "visibility": "'public'", "starred": "true",
        "title": "'t'", "moderation": "'pending'", "filename": "'f'", "kind": "'IMAGE_TO_IMAGE'",
        "params": "'{\"x\": 1}'", "image_size": "'1x1'", "watermark": "'w'", "n": "2", "provider": "'q'",
        "state": "'failed'", "price_tenths": "8", "cost_usd": "8", "duration_ms": "9", "error_code": "'e'",
        "error_message": "'m'", "own_key": "true", "refunded_tenths": "1", "image_ids": "array[gen_random_uuid()]",
        "day_budget_tenths": "13", "month_budget_tenths": "14", "day": "'2001-01-01'", "generations_count": "15",
        "generations_success": "16", "generations_failed": "17", "generations_canceled": "18", "images_count": "19",
        "credits_used_tenths": "20", "model_usage": "'{\"m\": 21}'", "plan": "'pro'", "balance_tenths": "10",
        "held_tenths": "11", "storage_used_bytes": "12", "owner_id": "'bo'",
        **dict.fromkeys(TIME_COLUMNS, "'2001-01-01Z'"),
    }  # fmt: skip
    await connection.execute("set session_replication_role = replica")  # not about the rules of jobs
    await connection.execute("insert into users (id) values ('bo'); delete from accounts where owner_id = 'bo'")
    parent, job = await insert_image(connection, "bo"), await insert_job(connection, "bo")
    batch = await connection.fetchval("insert into batches (owner_id, kind) values ('bo', 'batch') returning id")
    values |= {"job_id": f"'{job}'", "parent_id": f"'{parent}'", "batch_id": f"'{batch}'"}
    await insert_image(connection, "ana")
    await insert_job(connection, "ana")
    await connection.execute(
        "insert into reference_images (owner_id, object_key, content_type, size_bytes, filename) "
        "values ('ana', 'reference/a', 'image/png', 1, 'a.png')"
    )
    await connection.execute("insert into usage_daily (owner_id, day) values ('ana', '2000-01-01')")
    await connection.execute("set session_replication_role = replica")  # not about the rules of jobs
    for kind, columns in REPLICATED.items():
        for column in columns:
            before = await connection.fetchval("select version from sync_user where user_id = 'ana'")
            async with connection.transaction():
                await connection.execute(f"update {kind} set {column} = {values[column]} where owner_id = 'ana'")
            after = await connection.fetchval("select version from sync_user where user_id = 'ana'")
            assert after == before + 1, f"{kind}.{column}"
            if kind == "accounts" and column == "owner_id":
                await connection.execute("update accounts set owner_id = 'ana' where owner_id = 'bo'")


# --- what is in a document -----------------------------------------------------------------------------------------


async def test_image_document_has_exactly_these_fields_in_this_order(connection: asyncpg.Connection) -> None:
    """All that was asked for of a generated image, and nothing of how it is stored.

    mission: 14, 19, 81, 84, 86, 87, 88, 89, 90, 91, 92, 93, 94, 95, 96
    """
    row = await insert_image(
        connection, "ana", object_key="generated/ab/0001-cd.png", thumb_key="generated/ab/0001-cd.thumb.webp"
    )

    document = await document_of(connection, "images", row)

    assert list(document) == [
        "id", "url", "thumb_url", "thumbhash", "filename", "content_type", "size_bytes", "width", "height", "prompt",
        "negative_prompt", "model", "seed", "steps", "generation_params", "job_id", "parent_id", "visibility",
        "starred", "title", "moderation", "trashed_at", "created_at",
    ]  # fmt: skip
    assert document["url"] == "/files/generated/ab/0001-cd.png"
    assert document["thumb_url"] == "/files/generated/ab/0001-cd.thumb.webp"
    assert document["filename"] == "0001-cd.png"
    assert (document["visibility"], document["moderation"], document["starred"]) == ("unlisted", "approved", False)


async def test_urls_are_absolute_under_a_public_base(connection: asyncpg.Connection) -> None:
    """A CDN in front changes the URLs, and the fingerprint, so that replicas are made again.

    mission: 167
    """
    row = await insert_image(connection, "ana", object_key="generated/a.png")
    cdn = Documents("https://cdn.example.com/")

    document = json.loads(cdn.row("images", await source_of(connection, "images", row)).document)

    assert document["url"] == "https://cdn.example.com/files/generated/a.png"
    assert document["thumb_url"] is None
    assert cdn.fingerprint != Documents().fingerprint
    assert cdn.fingerprint == Documents("https://cdn.example.com").fingerprint
    assert 0 <= cdn.fingerprint < 2**31


async def test_reference_document_has_no_visibility(connection: asyncpg.Connection) -> None:
    """References are always private, and called as the user's file was.

    mission: 100, 101
    """
    row = await connection.fetchval(
        "insert into reference_images (owner_id, object_key, content_type, size_bytes, filename) "
        "values ('ana', 'reference/ab/0001-cd.png', 'image/png', 1, 'Mein Foto.png') returning id"
    )

    document = await document_of(connection, "reference_images", row)

    assert list(document) == [
        "id", "url", "thumb_url", "thumbhash", "filename", "content_type", "size_bytes", "width", "height",
        "created_at",
    ]  # fmt: skip
    assert document["filename"] == "Mein Foto.png"


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        ("2026-02-03T04:05:06.789012Z", "2026-02-03T04:05:06.789012Z"),
        ("2026-02-03T04:05:06Z", "2026-02-03T04:05:06.000000Z"),
        ("2026-02-03T04:05:06.000001Z", "2026-02-03T04:05:06.000001Z"),
        ("2026-02-03T04:05:06+09:00", "2026-02-02T19:05:06.000000Z"),
        ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00.000000Z"),
        ("9999-12-30T23:59:59.999999Z", "9999-12-30T23:59:59.999999Z"),
    ],
)
async def test_times_are_utc_with_six_digits(connection: asyncpg.Connection, stored: str, shown: str) -> None:
    """RFC 3339 of one length, so that text sorts as time, whatever the session's time zone."""
    await connection.execute("set timezone = 'America/St_Johns'")
    row = await insert_image(connection, "ana")
    await connection.execute(f"update images set created_at = '{stored}', trashed_at = '{stored}'")

    document = await document_of(connection, "images", row)

    assert (document["created_at"], document["trashed_at"]) == (shown, shown)


@pytest.mark.parametrize("never", ["1969-12-31T23:59:59.999999Z", "9999-12-31T00:00:00Z", "infinity", "-infinity"])
async def test_time_without_a_form_is_refused(connection: asyncpg.Connection, never: str) -> None:
    """One row with such a time would stop its owner's sync for good."""
    for table, column in (("images", "created_at"), ("images", "trashed_at"), ("jobs", "hidden_at")):
        row = await (insert_image if table == "images" else insert_job)(connection, "ana")
        with pytest.raises(asyncpg.CheckViolationError, match=f"{table}_{column}_in_range"):
            await connection.execute(f"update {table} set {column} = '{never}' where id = $1", row)


@given(st.integers(0, 253_402_214_399_999_999))
def test_time_is_what_datetime_says(microseconds: int) -> None:
    """No microsecond is lost on the way, over all the time that the primary takes."""
    shown = documents._time_of(microseconds)

    assert len(shown) == 27
    assert datetime.fromisoformat(shown) == datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)


@pytest.mark.parametrize("value", [None, 0, 1, 4_294_967_295])
async def test_seed_is_up_to_32_bits(connection: asyncpg.Connection, value: int | None) -> None:
    """mission: 11, 94"""
    row = await insert_image(connection, "ana", seed=value)

    assert (await document_of(connection, "images", row))["seed"] == value


@pytest.mark.parametrize("value", [-1, 4_294_967_296])
async def test_larger_seed_is_refused(connection: asyncpg.Connection, value: int) -> None:
    """A seed that JavaScript or a provider would not give back exactly has no place in the column."""
    with pytest.raises(asyncpg.CheckViolationError, match="images_seed"):
        await insert_image(connection, "ana", seed=value)


@pytest.mark.parametrize(
    ("tenths", "shown"), [(0, "0"), (5, "0.5"), (10, "1"), (75, "7.5"), (2**63 - 1, "922337203685477580.7")]
)
async def test_credits_have_at_most_one_decimal(connection: asyncpg.Connection, tenths: int, shown: str) -> None:
    """Exact, as text of a number: 7.5 is never 7.499999.

    mission: 67, 71
    """
    await connection.execute("set session_replication_role = replica")  # shown is what is there
    await connection.execute("update accounts set balance_tenths = $1 where owner_id = 'ana'", tenths)
    job = await insert_job(connection, "ana", price_tenths=tenths)

    account = Documents().row("accounts", await source_of(connection, "accounts", "ana")).document
    made = Documents().row("jobs", await source_of(connection, "jobs", job)).document

    assert f'"balance_credits":{shown},'.encode() in account
    assert f'"cost_credits":{shown},'.encode() in made


@pytest.mark.parametrize("usd", ["0", "0.005", "0.0125", "0.045", "12345678.9999"])
async def test_dollars_are_exact_with_four_digits(connection: asyncpg.Connection, usd: str) -> None:
    """mission: 78, 79"""
    job = await insert_job(connection, "ana", cost_usd=Decimal(usd))

    made = Documents().row("jobs", await source_of(connection, "jobs", job)).document

    assert f'"cost_usd":{Decimal(usd):.4f},'.encode() in made


async def test_failed_job_shows_its_error(connection: asyncpg.Connection) -> None:
    """An error object with code and message, or null.

    mission: 58, 107
    """
    fine = await insert_job(connection, "ana")
    failed = await insert_job(connection, "ana", error_code="timeout", error_message="took 60 s", state="failed")
    silent = await insert_job(connection, "ana", error_code="timeout")

    errors = [(await document_of(connection, "jobs", job))["error"] for job in (fine, failed, silent)]

    assert errors == [None, {"code": "timeout", "message": "took 60 s"}, {"code": "timeout", "message": ""}]


# --- odd content -----------------------------------------------------------------------------------------------

ODD = [
    "plain",
    "",
    " ",
    'a "quoted" \\ word',
    "line\nbreak\r\n\ttab",
    "emoji 🎨🧑‍🎨 and é as e\u0301",
    "</script><!-- \u2028\u2029",
    "\x01\x1f\x7f\x80\ufeff\uffff",
    "{}[]null\\u0000",
    "أهلا 你好",
]


@pytest.mark.parametrize("text", ODD)
async def test_odd_text_comes_through_unchanged(connection: asyncpg.Connection, text: str) -> None:
    """Prompts are what people type."""
    row = await insert_image(connection, "ana", prompt=text, title=text, negative_prompt=text, model=text)

    document = await document_of(connection, "images", row)

    assert [document[name] for name in ("prompt", "title", "negative_prompt", "model")] == [text] * 4


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=40))
async def test_any_text_comes_through_unchanged(connection: asyncpg.Connection, text: str) -> None:
    row = await insert_image(connection, "ana", prompt=text)

    assert (await document_of(connection, "images", row))["prompt"] == text


async def test_nul_is_refused_by_the_primary(connection: asyncpg.Connection) -> None:
    """In text and in JSON: so no document can hold one."""
    with pytest.raises(asyncpg.CharacterNotInRepertoireError):
        await insert_image(connection, "ana", prompt="a\0b")
    with pytest.raises(asyncpg.UntranslatableCharacterError):
        await insert_image(connection, "ana", generation_params='{"a": "\\u0000"}')


sayable = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
names = st.text("abc_é\"'", max_size=4)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | sayable,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(params=st.dictionaries(st.text("abc", max_size=3), json_values, max_size=4))
async def test_nested_generation_params_come_through_unchanged(
    connection: asyncpg.Connection, params: dict[str, Any]
) -> None:
    """mission: 19, 95"""
    row = await insert_image(connection, "ana", generation_params=json.dumps(params))
    job = await insert_job(connection, "ana", params=json.dumps(params))

    assert (await document_of(connection, "images", row))["generation_params"] == params
    assert (await document_of(connection, "jobs", job))["params"] == params


async def test_numbers_in_generation_params_keep_their_digits(connection: asyncpg.Connection) -> None:
    """A seed too large for the column is kept here to the last digit."""
    numbers = '{"cfg": 7.50, "seed": 123456789012345678901234567890, "tiny": 0.000000000000000000001}'
    row = await insert_image(connection, "ana", generation_params=numbers)

    made = Documents().row("images", await source_of(connection, "images", row)).document

    for digits in (b"7.50", b"123456789012345678901234567890", b"0.000000000000000000001"):
        assert digits in made


def test_row_of_another_shape_is_refused() -> None:
    """A column that is missing or of another type is an error, not a document with a hole."""
    with pytest.raises(msgspec.ValidationError):
        Documents().row("images", '{"id": "x"}')
    with pytest.raises(msgspec.ValidationError):
        Documents().row("accounts", json.dumps(dict.fromkeys(REPLICATED["accounts"], "text")))
    with pytest.raises(KeyError):
        Documents().row("users", "{}")


# --- the same bytes from wherever they come ------------------------------------------------------------------------


async def test_seed_pull_and_primary_give_the_same_bytes(
    database: str, connection: asyncpg.Connection, primary: Primary, tmp_path: Path
) -> None:
    """Half of the rows come by a seed, half by a pull; each is byte for byte what the primary answers.

    mission: 131, 137
    """
    made = Documents()
    for text in ODD[:5]:
        await add_images(connection, "ana", 1, prompt=text, generation_params=json.dumps({"t": text, "n": [1.50]}))
    seeded = await seed(primary, "ana", tmp_path / "ana.db", made, synced_at=1.0)
    for text in ODD[5:]:
        await add_images(
            connection, "ana", 1, title=text, seed=4_294_967_295, trashed_at=datetime(2026, 1, 1, tzinfo=UTC)
        )
    delta = await changes_since(connection, "ana", seeded.cursor)
    assert isinstance(delta, Delta)

    replica = Replica.open(tmp_path / "ana.db", "ana", user_version(made))
    replica.apply(
        delta.head, [Applied(kind, row_id, made.row(kind, source)) for kind, row_id, source in delta.changes if source]
    )
    reads = PrimaryReads(primary, made)
    try:
        rows = await connection.fetch(seed_rows(), "ana")
        ids = [json.loads(source)["id"] for kind, source in rows if kind == "images"]
        assert len(ids) == len(ODD)
        for row_id in [*ids, str(uuid.uuid4())]:
            encoded = encode_query(ImageQuery(row_id))
            page = await reads.read("ana", encoded)
            assert replica.read(encoded).body == page.body == answer(replica._connection, ImageQuery(row_id))
            assert (page.at.epoch, page.at.version) == replica.cursor[:2]
    finally:
        replica.close()
