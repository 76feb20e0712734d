"""Migrations: the same tables as tables.py says, at any time, from anywhere, whole or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine

from store import migrations
from store.embedded import EmbeddedPostgres
from store.errors import PrimaryUnavailable
from store.images import NewImage
from store.migrations import migrate
from store.primary import Primary
from store.tables import metadata
from tests.store.test_capture import assert_consistent, insert_image, services
from tests.world import add_images, until

_numbers = itertools.count(1)


@pytest.fixture
async def empty(postgres: EmbeddedPostgres) -> AsyncIterator[str]:
    """URL of a database with nothing in it."""
    name = f"empty_{next(_numbers)}"
    admin = await asyncpg.connect(postgres.url)
    try:
        await admin.execute(f"create database {name}")
        yield postgres.url.replace("/peruse?", f"/{name}?")
        await admin.execute(f"drop database {name} with (force)")
    finally:
        await admin.close()


@pytest.fixture
async def connection(empty: str) -> AsyncIterator[asyncpg.Connection]:
    made = await asyncpg.connect(empty)
    yield made
    await made.close()


CATALOG = """
select 'column' as what, format('%s.%s', c.relname, a.attname) as name,
       concat_ws(' ', format_type(a.atttypid, a.atttypmod), l.collname, case when a.attnotnull then 'not null' end,
                 pg_get_expr(d.adbin, d.adrelid), col_description(c.oid, a.attnum)) as definition
from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
left join pg_collation l on l.oid = a.attcollation and l.collname <> 'default'
where c.relkind = 'r' and c.relnamespace = current_schema()::regnamespace and c.relname <> 'peruse_migrations'
union all
select 'constraint', conname, pg_get_constraintdef(oid) from pg_constraint
where connamespace = current_schema()::regnamespace and contype <> 'n' and conrelid <> 0
  and conrelid::regclass::text <> 'peruse_migrations' and contype <> 't'
union all
select 'index', indexname, indexdef from pg_indexes
where schemaname = current_schema() and tablename <> 'peruse_migrations'
union all
select 'options', relname, reloptions::text from pg_class
where relkind = 'r' and relnamespace = current_schema()::regnamespace and relname <> 'peruse_migrations'
order by 1, 2
"""
PROGRAMS = """
select 'trigger' as what, tgrelid::regclass::text || '.' || tgname as name,
       pg_get_triggerdef(t.oid) || tgenabled::text as definition
from pg_trigger t join pg_class c on c.oid = t.tgrelid
where not tgisinternal and c.relnamespace = current_schema()::regnamespace
union all
select 'function', proname, pg_get_functiondef(oid) from pg_proc where pronamespace = current_schema()::regnamespace
order by 1, 2
"""


async def catalog(connection: Any, sql: str = CATALOG) -> dict[tuple[str, str], str]:
    """(what, name) → definition, as Postgres prints it."""
    return {(row["what"], row["name"]): row["definition"] for row in await connection.fetch(sql)}


async def everything(connection: Any) -> dict[tuple[str, str], str]:
    return {**await catalog(connection), **await catalog(connection, PROGRAMS)}


async def on(url: str, work: Any) -> Any:
    """Run a function of a plain SQLAlchemy connection."""
    engine = create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://", 1))
    try:
        async with engine.begin() as connection:
            return await connection.run_sync(work)
    finally:
        await engine.dispose()


async def find_deadlocks_soon(url: str) -> None:
    """Postgres looks for deadlocks after a second; in new sessions of this database after 50 ms."""
    connection = await asyncpg.connect(url)
    name = await connection.fetchval("select current_database()")
    await connection.execute(f"alter database {name} set deadlock_timeout = '50ms'")
    await connection.close()


async def test_migrations_make_what_the_tables_say(database: str) -> None:
    """Alembic finds nothing to add, drop or change."""

    def differs(*sides: Any) -> bool | None:
        # Alembic lets Postgres compute both: a clock gives two times. Its text is compared in the next test.
        return False if "clock_timestamp" in str(sides[-1]) else None

    def compare(connection: Connection) -> list[Any]:
        options = {"compare_type": True, "compare_server_default": differs, "version_table": "peruse_migrations"}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), metadata))

    assert await on(database, compare) == []


async def test_migrations_make_every_constraint_of_the_tables(
    database: str, empty: str, connection: asyncpg.Connection
) -> None:
    """What Alembic does not compare too: checks, collations, comments, storage options, as Postgres prints them.

    mission: 97, 98, 99, 101, 102, 103, 106, 108, 109, 110, 111
    """
    await on(empty, metadata.create_all)
    migrated = await asyncpg.connect(database)
    try:
        assert await catalog(migrated) == await catalog(connection)
    finally:
        await migrated.close()


async def test_second_migration_changes_nothing(database: str) -> None:
    """Run at every start: rows, versions, the epoch, tables and triggers stay as they are."""
    connection = await asyncpg.connect(database)
    try:
        await add_images(connection, "ana", 2)
        rows = "select * from sync_user, sync_epoch, change_log, images, peruse_migrations"
        before, rows_before = await everything(connection), await connection.fetch(rows)

        await migrate(database)
        await migrate(database)

        assert await everything(connection) == before
        assert await connection.fetch(rows) == rows_before
        await add_images(connection, "ana", 1)
        await assert_consistent(connection)
    finally:
        await connection.close()


async def test_migrations_at_once_all_succeed(empty: str, connection: asyncpg.Connection, database: str) -> None:
    """Several gateways that start together on an empty primary: one does the work, the others wait."""
    await asyncio.gather(*(migrate(empty) for _ in range(4)))

    other = await asyncpg.connect(database)
    try:
        assert await everything(connection) == await everything(other)
    finally:
        await other.close()
    assert await connection.fetchval("select count(*) from sync_epoch") == 1
    assert await connection.fetchval("select count(*) from peruse_migrations") == 1


async def test_migration_beside_writers_loses_no_version(database: str) -> None:
    """The triggers are replaced in one transaction: there is no moment without them."""
    await find_deadlocks_soon(database)
    writer = await asyncpg.connect(database)
    try:
        await add_images(writer, "ana", 1)
        done = asyncio.Event()
        written = 0

        async def write() -> None:
            nonlocal written
            while not done.is_set():
                try:
                    await insert_image(writer, "ana")
                    written += 1
                except asyncpg.DeadlockDetectedError:  # another test's claim
                    pass

        writing = asyncio.create_task(write())
        for _ in range(2):
            with contextlib.suppress(PrimaryUnavailable):
                await migrate(database)
        done.set()
        await writing

        assert written > 0
        assert await writer.fetchval("select version from sync_user where user_id = 'ana'") == written + 2
        await assert_consistent(writer)
    finally:
        await writer.close()


async def test_migration_that_has_nothing_to_do_never_deadlocks_with_a_writer(database: str) -> None:
    """A service that reads images and then writes one, while a gateway starts: both succeed."""
    await find_deadlocks_soon(database)
    async with services(database, 2) as [writer, other]:
        await add_images(writer, "ana", 1)
        async with writer.transaction():
            await writer.fetch("select count(*) from images")
            migrating = asyncio.create_task(migrate(database))
            waiting = "select exists (select from pg_locks where not granted)"

            async def is_waiting_or_done() -> bool:
                return migrating.done() or await other.fetchval(waiting)

            await until(is_waiting_or_done)
            write = await asyncio.gather(insert_image(writer, "ana"), return_exceptions=True)
            if isinstance(write[0], Exception):
                await migrating
                raise write[0]
        await migrating

        assert await other.fetchval("select version from sync_user where user_id = 'ana'") == 3


async def test_migration_mends_a_trigger_that_was_switched_off(database: str) -> None:
    """A restore or a careless load leaves a disabled trigger: the next start puts it back."""
    connection = await asyncpg.connect(database)
    try:
        await add_images(connection, "ana", 1)
        before = await catalog(connection, PROGRAMS)
        await connection.execute(
            "alter table images disable trigger sync_insert_delete; drop trigger sync_update on jobs;"
            "alter table change_row disable trigger sync_stamp; alter table users disable trigger account_open"
        )
        assert await catalog(connection, PROGRAMS) != before

        await migrate(database)

        assert await catalog(connection, PROGRAMS) == before
    finally:
        await connection.close()


@pytest.mark.parametrize("schema", ["Odd name", 'say "hi"', "select"])
async def test_schema_may_have_any_name(empty: str, connection: asyncpg.Connection, schema: str) -> None:
    """A search_path of the database decides where everything goes, and capture works from any other search_path."""
    quoted = '"' + schema.replace('"', '""') + '"'
    name = await connection.fetchval("select current_database()")
    await connection.execute(f"create schema {quoted}; alter database {name} set search_path = {quoted}, public")

    await migrate(empty)
    await migrate(empty)

    service = await asyncpg.connect(empty)
    primary = await Primary.open(empty, name="test", size=2)
    try:
        tables = "select distinct schemaname from pg_tables where tablename in ('images', 'peruse_migrations', 'users')"
        assert await service.fetchval(tables) == schema
        assert await service.fetchval(tables.replace("distinct schemaname", "count(*)")) == 3
        await add_images(service, "ana", 2)
        await service.execute("set search_path = pg_catalog")
        await service.execute(f"update {quoted}.images set starred = true")
        await service.execute("reset search_path")
        assert await service.fetchval("select version from sync_user where user_id = 'ana'") == 4
        await assert_consistent(service)

        async def work(inside: Any) -> None:
            await insert_image(inside, "ana")

        _, bookmark = await primary.write("ana", work)
        assert bookmark.version == 5
    finally:
        await primary.close()
        await service.close()


async def test_failed_migration_leaves_nothing(
    empty: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error in the very last step undoes the first too; the next try succeeds."""
    whole = migrations.triggers
    with monkeypatch.context() as broken:
        broken.setattr(migrations, "triggers", lambda schema: whole(schema) + "\nselect 1 / 0;")
        with pytest.raises(PrimaryUnavailable, match="division by zero"):
            await migrate(empty)

    assert await everything(connection) == {}
    assert await connection.fetchval("select to_regclass('peruse_migrations')") is None
    await migrate(empty)
    assert await connection.fetchval("select count(*) from sync_epoch") == 1


async def test_killed_migration_leaves_nothing_and_no_lock(
    empty: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its session is ended in the middle: nothing is there, and another migration need not wait."""
    whole = migrations.triggers
    with monkeypatch.context() as slow:
        slow.setattr(migrations, "triggers", lambda schema: whole(schema) + "\nselect pg_sleep(60);")
        migrating = asyncio.create_task(migrate(empty))
        victims = "select pid from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'"
        pid = await until(lambda: connection.fetchval(victims))
        assert await connection.fetchval("select pg_terminate_backend($1, 5000)", pid)
        with pytest.raises(PrimaryUnavailable):
            await migrating

    assert await everything(connection) == {}
    async with asyncio.timeout(10):
        await migrate(empty)
    assert await connection.fetchval("select count(*) from sync_epoch") == 1


@pytest.mark.parametrize("option", ["sslmode=disable", "application_name=setup"])
async def test_url_that_reads_can_use_can_be_migrated(empty: str, option: str) -> None:
    """A managed primary's URL has options such as sslmode: one URL is for everything."""
    url = f"{empty}&{option}"
    primary = await Primary.open(url, name="test", size=1)
    try:
        assert await primary.fetch("select 1")
    finally:
        await primary.close()

    await migrate(url)


def test_columns_of_a_new_image_are_columns_of_the_table() -> None:
    """What an import may say of an image is a column of it."""
    assert set(NewImage.__struct_fields__) <= {c.name for c in metadata.tables["images"].columns}
