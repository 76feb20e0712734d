"""Change capture: whoever writes to the primary, in plain SQL, every change is numbered once."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg
import pytest

from store.epoch import Bookmark
from store.primary import Primary
from store.tables import ZERO_NONCE
from tests.world import add_images

COLUMNS = ("id", "owner_id", "object_key", "content_type", "size_bytes", "model", "prompt")


async def assert_consistent(connection: Any) -> None:
    """What must hold in every primary at any moment at which nobody writes."""
    gaps = await connection.fetch(
        "select s.user_id, s.version, s.horizon, array_agg(l.version order by l.version) as versions "
        "from sync_user s left join change_log l using (user_id) group by s.user_id"
    )
    for user, version, horizon, versions in gaps:
        assert [v for v in versions if v is not None] == list(range(horizon + 1, version + 1)), user
    heads = "select s.user_id from sync_user s left join change_log l using (user_id, version) "
    assert await connection.fetch(heads + "where s.version > s.horizon and s.nonce is distinct from l.nonce") == []
    strangers = "select l.user_id from change_log l left join sync_user s using (user_id) where s.user_id is null"
    assert await connection.fetch(strangers) == []
    lines = "select nonce, user_id from change_log group by nonce, user_id having count(*) > 1"
    assert await connection.fetch(lines) == [], "two versions of one transaction"
    unequal = await connection.fetch(
        "select * from (select distinct nonce, user_id from change_row) r "
        "full join change_log l using (nonce, user_id) where l.version is null or r.nonce is null"
    )
    assert unequal == [], "rows without a version, or a version without rows"
    firsts = "select nonce, user_id from change_row group by nonce, user_id having count(*) filter (where first) <> 1"
    assert await connection.fetch(firsts) == []


async def version_of(connection: Any, user: str) -> int:
    """The user's head; 0 when nothing was ever his."""
    return await connection.fetchval("select version from sync_user where user_id = $1", user) or 0


async def rows_of(connection: Any, user: str, version: int) -> set[tuple[str, str]]:
    """(kind, row id) of what the user's `version` changed."""
    return set(
        map(
            tuple,
            await connection.fetch(
                "select r.kind, r.row_id from change_log l join change_row r using (nonce, user_id) "
                "where l.user_id = $1 and l.version = $2",
                user,
                version,
            ),
        )
    )


def image(user: str, **columns: Any) -> dict[str, Any]:
    """The columns of a new image."""
    fresh = uuid.uuid4()
    return {
        "id": fresh, "owner_id": user, "object_key": f"generated/{fresh.hex}", "content_type": "image/png",
        "size_bytes": 1, "model": "builtin", "prompt": "a picture", **columns,
    }  # fmt: skip


async def insert(connection: Any, table: str, rest: str = "", **columns: Any) -> Any:
    """Insert one row; answers its id. `rest` goes behind the values."""
    marks = ", ".join(f"${n}" for n in range(1, len(columns) + 1))
    sql = f"insert into {table} ({', '.join(columns)}) values ({marks}) {rest} returning id"
    return await connection.fetchval(sql, *columns.values())


async def insert_image(connection: Any, user: str, **columns: Any) -> uuid.UUID:
    return await insert(connection, "images", **image(user, **columns))


async def insert_job(connection: Any, user: str, **columns: Any) -> uuid.UUID:
    return await insert(connection, "jobs", owner_id=user, prompt="a job", provider="p", model="m", **columns)


@asynccontextmanager
async def services(database: str, count: int) -> AsyncIterator[list[asyncpg.Connection]]:
    """Connections that know nothing of us."""
    async with AsyncExitStack() as stack:
        made = []
        for _ in range(count):
            made.append(await asyncpg.connect(database))
            stack.push_async_callback(made[-1].close)
        yield made


@pytest.fixture
async def service(database: str) -> AsyncIterator[asyncpg.Connection]:
    """Another team's service, with the users ana and bo at version 1; what it leaves must be consistent."""
    connection = await asyncpg.connect(database)
    await connection.execute("insert into users (id) values ('ana'), ('bo')")
    yield connection
    await assert_consistent(connection)
    await connection.close()


# --- one row ---------------------------------------------------------------------------------------------------


async def test_new_user_is_at_version_one_with_an_account(service: asyncpg.Connection) -> None:
    """Whoever creates a user creates the account that the dashboard reads, and that is version 1."""
    assert await version_of(service, "ana") == 1
    assert await rows_of(service, "ana", 1) == {("accounts", "ana")}


async def test_insert_update_and_delete_by_plain_sql_are_a_version_each(service: asyncpg.Connection) -> None:
    """Three statements of a service that never heard of us are three versions.

    mission: 118, 134
    """
    row = await insert_image(service, "ana")
    await service.execute("update images set title = 'new' where id = $1", row)
    await service.execute("delete from images where id = $1", row)

    assert await version_of(service, "ana") == 4
    assert [await rows_of(service, "ana", v) for v in (2, 3, 4)] == [{("images", str(row))}] * 3


async def test_every_replicated_table_is_captured(service: asyncpg.Connection) -> None:
    """Images, reference images, jobs and accounts alike."""
    reference = {k: v for k, v in image("ana", filename="a.png").items() if k not in ("model", "prompt")}
    reference_id = await insert(service, "reference_images", **reference)
    job_id = await insert_job(service, "ana")
    await service.execute("update accounts set plan = 'pro' where owner_id = 'ana'")

    assert await rows_of(service, "ana", 2) == {("reference_images", str(reference_id))}
    assert await rows_of(service, "ana", 3) == {("jobs", str(job_id))}
    assert await rows_of(service, "ana", 4) == {("accounts", "ana")}


async def test_row_that_moves_to_another_user_changes_for_both(service: asyncpg.Connection) -> None:
    """The old owner is told of the key, so that his replica deletes it."""
    row = await insert_image(service, "ana")

    await service.execute("update images set owner_id = 'bo' where id = $1", row)

    assert await rows_of(service, "ana", 3) == {("images", str(row))}
    assert await rows_of(service, "bo", 2) == {("images", str(row))}


async def test_changed_key_names_the_old_and_the_new_row(service: asyncpg.Connection) -> None:
    row, new = await insert_image(service, "ana"), uuid.uuid4()

    await service.execute("update images set id = $2 where id = $1", row, new)

    assert await rows_of(service, "ana", 3) == {("images", str(row)), ("images", str(new))}


async def test_account_that_moves_changes_for_both(service: asyncpg.Connection) -> None:
    """An account's key is its owner."""
    await service.execute("delete from accounts where owner_id = 'bo'")

    await service.execute("update accounts set owner_id = 'bo' where owner_id = 'ana'")

    assert await rows_of(service, "ana", 2) == {("accounts", "ana")}
    assert await rows_of(service, "bo", 3) == {("accounts", "bo")}


# --- one transaction -------------------------------------------------------------------------------------------


async def test_transaction_is_one_version_per_user(service: asyncpg.Connection) -> None:
    """However many rows, tables and users: one version for each user, under one nonce."""
    async with service.transaction():
        mine = [await insert_image(service, "ana") for _ in range(3)]
        his = await insert_job(service, "bo")
        await service.execute("update images set starred = true where id = $1", mine[0])

    assert (await version_of(service, "ana"), await version_of(service, "bo")) == (2, 2)
    assert await rows_of(service, "ana", 2) == {("images", str(row)) for row in mine}
    assert await rows_of(service, "bo", 2) == {("jobs", str(his))}
    assert await service.fetchval("select count(distinct nonce) from change_log where version = 2") == 1


async def test_rollback_leaves_nothing(service: asyncpg.Connection) -> None:
    """A number that was taken and given back would be a gap."""
    transaction = service.transaction()
    await transaction.start()
    await insert_image(service, "ana")
    await service.execute("update accounts set plan = 'pro'")
    assert (await flush(service, "ana")).version == 2
    await transaction.rollback()

    assert (await version_of(service, "ana"), await version_of(service, "bo")) == (1, 1)
    assert await service.fetchval("select count(*) from change_row") == 2
    await insert_image(service, "ana")
    assert await version_of(service, "ana") == 2


async def test_savepoint_rolled_back_is_not_in_the_version(service: asyncpg.Connection) -> None:
    async with service.transaction():
        kept = await insert_image(service, "ana")
        await service.execute("savepoint one")
        await insert_image(service, "ana")
        await insert_image(service, "bo")
        await service.execute("rollback to one")

    assert await rows_of(service, "ana", 2) == {("images", str(kept))}
    assert await version_of(service, "bo") == 1


async def test_savepoint_released_is_in_the_version(service: asyncpg.Connection) -> None:
    async with service.transaction():
        rows = [await insert_image(service, "ana")]
        await service.execute("savepoint one")
        rows.append(await insert_image(service, "ana"))
        await service.execute("release one")

    assert await version_of(service, "ana") == 2
    assert await rows_of(service, "ana", 2) == {("images", str(row)) for row in rows}


@pytest.mark.parametrize("end", ["release one", "rollback to one"])
async def test_first_write_may_be_inside_a_savepoint(service: asyncpg.Connection, end: str) -> None:
    """The transaction's name is made in the savepoint, and made again when that is undone."""
    async with service.transaction():
        await service.execute("savepoint one")
        first = await insert_image(service, "ana")
        await service.execute(end)
        second = await insert_image(service, "ana")
        await service.execute("savepoint two")
        await service.execute("savepoint three")
        third = await insert_image(service, "bo")
        await service.execute("release two")

    expected = {first, second} if end.startswith("release") else {second}
    assert await rows_of(service, "ana", 2) == {("images", str(row)) for row in expected}
    assert await rows_of(service, "bo", 2) == {("images", str(third))}


async def test_caught_exception_in_a_function_is_a_savepoint(service: asyncpg.Connection) -> None:
    """plpgsql's EXCEPTION undoes the rows and the name; what follows is captured."""
    await service.execute(
        """
        do $$ begin
          begin
            insert into jobs (owner_id, prompt, provider, model) values ('ana', '', 'p', 'm');
            perform 1 / 0;
          exception when division_by_zero then null; end;
          insert into jobs (owner_id, prompt, provider, model) values ('bo', '', 'p', 'm');
        end $$
        """
    )

    assert (await version_of(service, "ana"), await version_of(service, "bo")) == (1, 2)


async def test_bulk_update_is_one_version_of_each_user_it_touches(service: asyncpg.Connection) -> None:
    await add_images(service, "ana", 3)
    await add_images(service, "bo", 2)

    await service.execute("update images set starred = true")

    assert (await version_of(service, "ana"), await version_of(service, "bo")) == (5, 4)
    assert len(await rows_of(service, "ana", 5)) == 3
    assert len(await rows_of(service, "bo", 4)) == 2


async def test_copy_is_one_version(service: asyncpg.Connection) -> None:
    """An import of 2,000 rows by COPY is one version that names each of them."""
    records = [tuple(image("ana").values()) for _ in range(2000)]

    await service.copy_records_to_table("images", columns=COLUMNS, records=records)

    assert await rows_of(service, "ana", 2) == {("images", str(record[0])) for record in records}


async def test_insert_on_conflict_counts_what_it_did(service: asyncpg.Connection) -> None:
    """DO NOTHING is no version, DO UPDATE is one, with the old owner told when the row changes hands."""
    first = image("ana")
    await insert(service, "images", **first)

    await insert(service, "images", "on conflict do nothing", **first)
    assert await version_of(service, "ana") == 2

    await insert(service, "images", "on conflict (id) do update set title = 'again'", **first)
    assert await rows_of(service, "ana", 3) == {("images", str(first["id"]))}

    await insert(
        service, "images", "on conflict (id) do update set owner_id = excluded.owner_id", **{**first, "owner_id": "bo"}
    )
    assert await rows_of(service, "ana", 4) == await rows_of(service, "bo", 2) == {("images", str(first["id"]))}


async def test_merge_is_captured(service: asyncpg.Connection) -> None:
    """One MERGE that inserts, updates and deletes is one version with three rows."""
    if service.get_server_version() < (15,):
        pytest.skip("MERGE came with Postgres 15")
    changed, deleted = await insert_image(service, "ana"), await insert_image(service, "ana")
    new = uuid.uuid4()

    await service.execute(
        f"""
        merge into images i using (values ('{changed}'::uuid, 1), ('{deleted}', 2), ('{new}', 3)) v(id, what)
        on i.id = v.id
        when matched and what = 1 then update set title = 'merged'
        when matched then delete
        when not matched then insert (id, owner_id, object_key, content_type, size_bytes, model)
          values (v.id, 'ana', 'generated/merged', 'image/png', 1, 'm')
        """
    )

    assert await rows_of(service, "ana", 4) == {("images", str(row)) for row in (changed, deleted, new)}


# --- what a service may do to its session --------------------------------------------------------------------------


async def test_replica_role_does_not_switch_capture_off(service: asyncpg.Connection) -> None:
    """Loaders set session_replication_role = replica to skip triggers: not these."""
    await service.execute("set session_replication_role = replica")

    row = await insert_image(service, "ana")
    await service.execute("update images set title = 'x'")
    with pytest.raises(asyncpg.RaiseError, match="TRUNCATE"):
        await service.execute("truncate images")
    await service.execute("insert into users (id) values ('carl')")

    assert await version_of(service, "ana") == 3
    assert await rows_of(service, "ana", 3) == {("images", str(row))}
    assert await version_of(service, "carl") == 1


async def test_role_without_rights_on_the_log_is_captured(service: asyncpg.Connection) -> None:
    """Another team needs rights on its tables alone, and cannot forge a version."""
    role = f"team_{uuid.uuid4().hex}"
    await service.execute(f"create role {role}; grant select, insert, update on images to {role}")
    try:
        await service.execute(f"set role {role}")
        await insert_image(service, "ana")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await service.execute("update sync_user set version = 9")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await service.execute("delete from change_log")
        await service.execute("reset role")

        assert await version_of(service, "ana") == 2
    finally:
        await service.execute(f"reset role; drop owned by {role}; drop role {role}")


async def test_temporary_tables_and_a_search_path_do_not_mislead_capture(service: asyncpg.Connection) -> None:
    await service.execute(
        "create temp table change_row (like change_row); create temp table sync_user (like sync_user);"
        "set search_path = pg_temp"
    )

    await service.execute(
        "insert into public.images (owner_id, object_key, content_type, size_bytes, model) "
        "values ('ana', 'generated/hidden', 'image/png', 1, 'm')"
    )

    await service.execute("reset search_path; drop table pg_temp.change_row; drop table pg_temp.sync_user")
    assert await version_of(service, "ana") == 2


@pytest.mark.parametrize("tag", ["", "/", "1/2", "not ours", f"1/{uuid.UUID(int=7)}"])
async def test_stale_name_in_the_session_is_not_used(service: asyncpg.Connection, tag: str) -> None:
    """A pooler that leaves peruse.tx behind gives no transaction the name of another."""
    await service.execute(f"set peruse.tx = '{tag}'")

    await insert_image(service, "ana")
    await insert_image(service, "ana")

    assert await version_of(service, "ana") == 3
    assert await service.fetchval("select count(distinct nonce) from change_log where user_id = 'ana'") == 3


@pytest.mark.parametrize("isolation", ["repeatable_read", "serializable"])
async def test_stricter_transactions_are_captured(service: asyncpg.Connection, isolation: Any) -> None:
    async with service.transaction(isolation=isolation):
        await insert_image(service, "ana")
        await insert_image(service, "ana")

    assert await version_of(service, "ana") == 2


async def test_constraints_made_immediate_are_still_one_version(service: asyncpg.Connection) -> None:
    """SET CONSTRAINTS ALL IMMEDIATE stamps earlier; the rest of the transaction joins that version."""
    async with service.transaction():
        rows = [await insert_image(service, "ana")]
        await service.execute("set constraints all immediate")
        rows.append(await insert_image(service, "ana"))
        await insert_image(service, "bo")

    assert await rows_of(service, "ana", 2) == {("images", str(row)) for row in rows}
    assert (await version_of(service, "ana"), await version_of(service, "bo")) == (2, 2)


@pytest.mark.parametrize(("wished", "used"), [("off", "on"), ("on", "on"), ("local", "local")])
async def test_commit_that_would_not_wait_for_the_disk_does(
    service: asyncpg.Connection, wished: str, used: str
) -> None:
    """What a replica has seen must survive a crash, so synchronous_commit = off becomes on for that transaction."""
    await service.execute(f"set synchronous_commit = {wished}")

    async with service.transaction():
        await insert_image(service, "ana")
        assert await service.fetchval("show synchronous_commit") == used

    assert await service.fetchval("show synchronous_commit") == wished


async def test_commit_that_cannot_stamp_fails_whole(database: str, service: asyncpg.Connection) -> None:
    """Behind a lock on its counter a transaction gives up at COMMIT and leaves neither row nor version."""
    async with services(database, 1) as [holder], holder.transaction():
        await holder.execute("select from sync_user where user_id = 'ana' for update")
        await service.execute("set lock_timeout = '100ms'")
        with pytest.raises(asyncpg.LockNotAvailableError):
            await insert_image(service, "ana")

    assert await service.fetchval("select count(*) from images") == 0
    assert await version_of(service, "ana") == 1


# --- what is no change -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "nothing",
    [
        "update images set title = title, starred = starred",
        'update images set generation_params = \'{ "a": 1, "b" : 2}\'',
        "update jobs set response_data = '{\"raw\": true}'",
        "update users set email = 'ana@example.com', updated_at = clock_timestamp()",
        "delete from images where false",
        "update images set title = 'x' where owner_id = 'nobody'",
        "select * from images for update",
    ],
)
async def test_statement_that_changes_no_document_is_no_version(service: asyncpg.Connection, nothing: str) -> None:
    """Bookkeeping columns and updates to the same value send nothing to anybody."""
    await insert_image(service, "ana", generation_params='{"a": 1, "b": 2}')
    await insert_job(service, "ana")

    await service.execute(nothing)

    assert (await version_of(service, "ana"), await version_of(service, "bo")) == (3, 1)


async def test_number_written_with_other_digits_is_a_change(service: asyncpg.Connection) -> None:
    """jsonb holds 1.0 and 1.00 for equal, but keeps and prints them as written: the document's bytes change."""
    row = await insert_image(service, "ana", generation_params='{"guidance": 1.0}')

    await service.execute("update images set generation_params = '{\"guidance\": 1.00}' where id = $1", row)

    assert await service.fetchval("select generation_params::text from images") == '{"guidance": 1.00}'
    assert await version_of(service, "ana") == 3


@pytest.mark.parametrize("table", ["images", "reference_images", "jobs", "accounts", "users"])
async def test_truncate_is_refused(service: asyncpg.Connection, table: str) -> None:
    """No row trigger would see it, so the message says what to do instead."""
    await insert_image(service, "ana")

    with pytest.raises(asyncpg.RaiseError, match=r"TRUNCATE of \w+ would not be seen by replicas: use DELETE"):
        await service.execute(f"truncate {table} cascade")

    assert await service.fetchval("select count(*) from images") == 1


# --- cascades --------------------------------------------------------------------------------------------------


async def test_deleted_user_is_one_version_with_all_that_was_his(service: asyncpg.Connection) -> None:
    """The cascade deletes every row, and his replica is told of each."""
    row, job = await insert_image(service, "ana"), await insert_job(service, "ana")

    await service.execute("delete from users where id = 'ana'")

    assert await rows_of(service, "ana", 4) == {("images", str(row)), ("jobs", str(job)), ("accounts", "ana")}
    assert await version_of(service, "bo") == 1


async def test_user_who_comes_back_counts_on(service: asyncpg.Connection) -> None:
    """A version that was given out once is never given to another history of the same user."""
    await service.execute("delete from users where id = 'ana'")
    await service.execute("insert into users (id) values ('ana')")
    await insert_image(service, "ana")

    assert await version_of(service, "ana") == 4


@pytest.mark.parametrize("column", ["job_id", "parent_id"])
async def test_deleted_job_or_parent_changes_the_images_made_from_it(service: asyncpg.Connection, column: str) -> None:
    """ON DELETE SET NULL is an update like any other, also of another user's image.

    mission: 109
    """
    is_job = column == "job_id"
    origin = await (insert_job if is_job else insert_image)(service, "ana")
    mine = await insert_image(service, "ana", **{column: origin})
    his = await insert_image(service, "bo", **{column: origin})

    await service.execute(f"delete from {'jobs' if is_job else 'images'} where id = $1", origin)

    assert await rows_of(service, "ana", 4) == {
        ("jobs" if is_job else "images", str(origin)),
        ("images", str(mine)),
    }
    assert await rows_of(service, "bo", 3) == {("images", str(his))}


# --- sync_flush: our own writers' last statement ---------------------------------------------------------------


async def flush(connection: Any, user: str) -> Bookmark:
    row = await connection.fetchrow("select epoch, version from sync_flush($1)", user)
    return Bookmark(row["epoch"], row["version"])


async def head_of(connection: Any, user: str) -> Bookmark:
    return Bookmark(await connection.fetchval("select sync_epoch_now()"), await version_of(connection, user))


async def test_flush_answers_inside_the_transaction_what_commit_makes_true(
    database: str, service: asyncpg.Connection
) -> None:
    """The bookmark is known before COMMIT, and nobody else sees the version before it."""
    async with services(database, 1) as [other]:
        async with service.transaction():
            await insert_image(service, "ana")
            await insert_image(service, "bo")
            bookmark = await flush(service, "ana")
            assert await version_of(other, "ana") == 1

        assert bookmark.version == 2
        assert await head_of(other, "ana") == bookmark
        assert await version_of(other, "bo") == 2


async def test_write_after_flush_stays_in_its_version(service: asyncpg.Connection) -> None:
    """A second write joins the version that was answered; a user who comes late is stamped at COMMIT."""
    async with service.transaction():
        rows = [await insert_image(service, "ana")]
        first = await flush(service, "ana")
        rows.append(await insert_image(service, "ana"))
        await insert_image(service, "bo")
        second = await flush(service, "ana")
        await service.execute("insert into users (id) values ('carl')")

    assert first == second == await head_of(service, "ana")
    assert await rows_of(service, "ana", 2) == {("images", str(row)) for row in rows}
    assert (await version_of(service, "bo"), await version_of(service, "carl")) == (2, 1)


async def test_flush_without_a_write_answers_the_head(service: asyncpg.Connection) -> None:
    """A write that changed nothing has the bookmark of what is there, and makes no version."""
    await insert_image(service, "ana")

    async with service.transaction():
        assert await flush(service, "ana") == await head_of(service, "ana")
        assert (await flush(service, "nobody")).version == 0
    async with service.transaction():
        await service.execute("update users set name = 'Ana' where id = 'ana'")
        assert (await flush(service, "ana")).version == 2

    assert await version_of(service, "ana") == 2


async def test_flush_undone_by_a_savepoint_takes_no_number(service: asyncpg.Connection) -> None:
    async with service.transaction():
        await service.execute("savepoint one")
        await insert_image(service, "ana")
        assert (await flush(service, "ana")).version == 2
        await service.execute("rollback to one")
        assert (await flush(service, "ana")).version == 1
        row = await insert_image(service, "ana")
        assert (await flush(service, "ana")).version == 2

    assert await rows_of(service, "ana", 2) == {("images", str(row))}


async def test_nonce_of_a_user_is_that_of_the_newest_line(service: asyncpg.Connection) -> None:
    """The head's nonce proves which history made it."""
    await insert_image(service, "ana")

    nonce = await service.fetchval("select nonce from sync_user where user_id = 'ana'")

    assert nonce == await service.fetchval("select nonce from change_log where user_id = 'ana' and version = 2")
    assert str(nonce) != ZERO_NONCE


# --- side by side ----------------------------------------------------------------------------------------------

WRITERS = 6
TRANSACTIONS = 40  # of each writer


class Outcome:
    """What concurrent writers did, by their own account."""

    def __init__(self) -> None:
        self.committed: list[tuple[str, ...]] = []
        self.rolled_back = 0
        self.errors: list[Exception] = []
        self.kept: dict[str, set[str]] = defaultdict(set)


async def write_at_random(connection: Any, users: list[str], outcome: Outcome, seed: int) -> None:
    """`TRANSACTIONS` transactions of one writer: some users of `users` in a random order, one in four undone."""
    chance = random.Random(seed)
    for _ in range(TRANSACTIONS):
        touched = chance.choices(users, k=chance.randint(1, 4))
        transaction = connection.transaction()
        await transaction.start()
        try:
            made = []
            for user in touched:
                is_undone = chance.random() < 0.2
                inner = connection.transaction()
                await inner.start()
                row = await insert_image(connection, user)
                if is_undone:
                    await inner.rollback()
                else:
                    await inner.commit()
                    made.append((user, str(row)))
            if chance.random() < 0.3 and made:
                await flush(connection, made[0][0])
            if chance.random() < 0.25:
                await transaction.rollback()
                outcome.rolled_back += 1
                continue
            await transaction.commit()
        except asyncpg.PostgresError as error:
            outcome.errors.append(error)
            if connection.is_in_transaction():
                await transaction.rollback()
            continue
        outcome.committed.append(tuple({user for user, _ in made}))
        for user, row in made:
            outcome.kept[user].add(row)


async def watch(connection: Any, users: list[str], seen: list[tuple[str, int, set[str]]], done: asyncio.Event) -> None:
    """Look at version and rows of a user in one snapshot, over and over."""
    for n in range(10**9):
        user = users[n % len(users)]
        row = await connection.fetchrow(
            "select coalesce((select version from sync_user where user_id = $1), 0), "
            "array(select id::text from images where owner_id = $1)",
            user,
        )
        seen.append((user, row[0], set(row[1])))
        if done.is_set():
            return


@pytest.mark.parametrize("many", [1, 12], ids=["one user", "many users"])
async def test_concurrent_writers_make_gapless_versions_in_commit_order(database: str, many: int) -> None:
    """Six writers, 240 transactions with rollbacks: no deadlock, no gap, and whoever sees version v sees exactly
    the rows of versions 1 to v."""
    users = [f"user{n}" for n in range(many)]
    outcome, seen, done = Outcome(), [], asyncio.Event()
    async with services(database, WRITERS + 2) as connections:
        reader, other = connections[-2:]
        await reader.execute("insert into users (id) select unnest($1::text[])", users)
        watchers = [asyncio.create_task(watch(c, users, seen, done)) for c in (reader, other)]
        await asyncio.gather(*(write_at_random(connections[n], users, outcome, n) for n in range(WRITERS)))
        done.set()
        await asyncio.gather(*watchers)

        assert outcome.errors == []
        assert outcome.rolled_back > 10
        await assert_consistent(reader)
        written = Counter(user for touched in outcome.committed for user in touched)
        for user in users:
            version = await version_of(reader, user)
            assert version == written[user] + 1, "one version per transaction, and one of the account"
            grown: list[set[str]] = [set()]
            for v in range(1, version + 1):
                new = {row for kind, row in await rows_of(reader, user, v) if kind == "images"}
                grown.append(grown[-1] | new)
            assert grown[version] == outcome.kept[user]
            for _, at, rows in (s for s in seen if s[0] == user):
                assert rows == grown[at], f"{user} at {at}"
    assert len({(user, at) for user, at, _ in seen}) > 20, "the watchers saw too little to prove anything"


async def test_hold_and_settle_claims_and_bulk_updates_never_deadlock(database: str, primary: Primary) -> None:
    """The three shapes of write that lock each other when versions are taken row by row, for 2 s."""
    users = [f"user{n}" for n in range(8)]
    counts, deadlocks, others = Counter[str](), Counter[str](), []
    loop = asyncio.get_running_loop()
    end = loop.time() + 2.0

    async def forever(name: str, work: Callable[[], Awaitable[object]]) -> None:
        while loop.time() < end:
            try:
                await work()
                counts[name] += 1
            except asyncpg.DeadlockDetectedError:
                deadlocks[name] += 1
            except asyncpg.PostgresError as error:
                others.append((name, error))

    async with services(database, 7) as [setup, one, two, claimer, claimer_too, bulk, outsider]:
        await setup.execute("insert into users (id) select unnest($1::text[])", users)
        for user in users:
            await add_images(setup, user, 10)

        async def hold_and_settle(connection: Any) -> None:
            user = random.choice(users)
            async with connection.transaction():
                await connection.execute(
                    "update accounts set storage_used_bytes = storage_used_bytes + 1 where owner_id = $1", user
                )
                job = await insert_job(connection, user)
            async with connection.transaction():
                await connection.execute(
                    "update accounts set storage_used_bytes = storage_used_bytes - 1 where owner_id = $1", user
                )
                await connection.execute("update jobs set state = 'failed' where id = $1", job)
                await flush(connection, user)

        async def claim(connection: Any) -> None:
            await connection.execute(
                "update jobs set state = 'processing' where id in (select id from jobs where state = 'pending' "
                "order by random() limit 5 for update skip locked)"
            )

        async def star_all() -> None:
            await bulk.execute("update images set starred = not starred")

        async def touch_two(work_on: Primary) -> None:
            first, second = random.sample(users, 2)

            async def work(connection: Any) -> None:
                await insert_image(connection, first)
                await insert_image(connection, second)

            await work_on.write(first, work)

        async def insert_backwards() -> None:
            async with outsider.transaction():
                for user in random.sample(users, 4):
                    await insert_job(outsider, user)

        await asyncio.gather(
            forever("hold", lambda: hold_and_settle(one)),
            forever("hold", lambda: hold_and_settle(two)),
            forever("claim", lambda: claim(claimer)),
            forever("claim", lambda: claim(claimer_too)),
            forever("bulk", star_all),
            forever("write", lambda: touch_two(primary)),
            forever("write", lambda: touch_two(primary)),
            forever("outsider", insert_backwards),
        )

        assert deadlocks == Counter()
        assert others == []
        assert min(counts.values()) > 5, counts
        await assert_consistent(setup)
