"""Erasing a user: everything goes, whoever is killed half-way, and nobody comes back with an old token."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import asyncpg
import pytest

from store import api_keys, erasure
from store.changes import START, Delta, changes_since
from store.erasure import erase, finish_erasures, finished_since, marks_since
from store.errors import NotFound
from store.primary import Connection, Primary
from store.users import REFUSED_S, ensure_user
from tests.world import add_images, until


async def given(primary: Primary, user: str, images: int = 3) -> None:
    """A user with rows in every table that has an owner."""

    async def work(connection: Connection) -> None:
        await add_images(connection, user, images)
        await connection.execute(
            "insert into reference_images (owner_id, object_key, content_type, size_bytes, filename) "
            "values ($1, 'reference/' || $1, 'image/png', 9, 'a.png')", user,
        )  # fmt: skip
        await connection.execute(
            "insert into jobs (owner_id, prompt, provider, model) values ($1, 'p', 'builtin', 'm')", user
        )

    await primary.write(user, work)
    await api_keys.create_key(primary, user)


async def rows_of(primary: Primary, user: str) -> int:
    """How many rows name the user, in all tables but those that outlive them."""
    columns = await primary.fetch(
        "select c.table_name t, c.column_name c from information_schema.columns c "
        "where c.table_schema = current_schema() and (c.column_name in ('owner_id', 'user_id') "
        "or (c.table_name = 'users' and c.column_name = 'id')) "
        "and c.table_name not in ('sync_user', 'change_log', 'change_row', 'erased_users')"
    )
    assert len(columns) >= 6
    count = 0
    for column in columns:
        (row,) = await primary.fetch(f"select count(*) from {column['t']} where {column['c']} = $1", user)
        count += row[0]
    return count


async def version_of(primary: Primary, user: str) -> int:
    (row,) = await primary.fetch("select version from sync_user where user_id = $1", user)
    return int(row["version"])


def create(user: str) -> Callable[[Connection], Awaitable[None]]:
    return lambda connection: ensure_user(connection, user)


async def test_everything_of_a_user_goes_and_nothing_of_another(
    primary: Primary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In several transactions; versions go on, and the objects are on the list."""
    monkeypatch.setattr(erasure, "_BATCH", 2)
    await given(primary, "ana", 5)
    await given(primary, "bob")
    before, bobs = await version_of(primary, "ana"), await rows_of(primary, "bob")
    await primary.fetch("update images set parent_id = (select id from images where owner_id = 'ana' limit 1)")

    erased = await erase(primary, "ana")

    assert erased == ("ana", 5, 1, 1, 5 * 7 + 9)
    assert await rows_of(primary, "ana") == 0
    assert await rows_of(primary, "bob") == bobs
    assert await version_of(primary, "ana") > before
    assert len(await primary.fetch("select 1 from deletions")) == 6
    async with primary.connection() as connection:
        epoch = await connection.fetchval("select sync_epoch_now()")
        answer = await changes_since(connection, "ana", START._replace(epoch=epoch))
    assert isinstance(answer, Delta)
    assert all(change.source is None for change in answer.changes)
    with pytest.raises(NotFound):
        await erase(primary, "ana")
    with pytest.raises(NotFound):
        await erase(primary, "nobody")


async def test_an_erased_user_is_refused_for_a_day(primary: Primary) -> None:
    """And may then come again, as a new one; a later erasure counts from its own time."""
    await given(primary, "ana")
    await erase(primary, "ana")

    with pytest.raises(NotFound, match="was erased"):
        await primary.write("ana", create("ana"))
    with pytest.raises(NotFound):
        await api_keys.create_key(primary, "ana")
    assert [mark.user for mark in await marks_since(primary, None)] == ["ana"]
    assert [mark.user for mark in await finished_since(primary, None, within_s=60)] == ["ana"]

    await primary.fetch(
        "update erased_users set erased_at = erased_at - make_interval(secs => $1), finished_at = null", REFUSED_S
    )
    with pytest.raises(NotFound):
        await primary.write("ana", create("ana"))
    await primary.fetch("update erased_users set finished_at = clock_timestamp()")
    await primary.write("ana", create("ana"))
    assert await marks_since(primary, None) == []
    assert await finished_since(primary, None, within_s=60) == [], "the files are a new user's"

    await erase(primary, "ana")
    with pytest.raises(NotFound):
        await primary.write("ana", create("ana"))
    assert [mark.user for mark in await finished_since(primary, None, within_s=60)] == ["ana"]


@pytest.mark.parametrize("statements", range(1, 26, 2))
async def test_an_erasure_that_is_interrupted_is_finished_later(
    primary: Primary, database: str, monkeypatch: pytest.MonkeyPatch, statements: int
) -> None:
    """Wherever: before the mark nothing has happened, after it nobody creates the user again."""
    monkeypatch.setattr(erasure, "_BATCH", 2)
    await given(primary, "ana", 3)
    before = await rows_of(primary, "ana")
    victim = await Primary.open(database, name="victim", size=1)

    class Cut(Exception):
        pass

    left = [statements]
    monkeypatch.setattr(asyncpg.Connection, "_execute", _counting(asyncpg.Connection._execute, left, Cut))
    try:
        await erase(victim, "ana")
        is_cut = False
    except Cut:
        is_cut = True
    finally:
        monkeypatch.undo()
        await victim.close()

    assert await finish_erasures(primary) == [], "whoever began may still be at it"
    await finish_erasures(primary, older_than_s=0)
    rest = await rows_of(primary, "ana")
    if await marks_since(primary, None):
        assert rest == 0
        with pytest.raises(NotFound):
            await primary.write("ana", create("ana"))
    else:
        assert is_cut
        assert rest == before


def _counting(execute: Callable[..., Awaitable[object]], left: list[int], cut: type[Exception]) -> object:
    async def counted(self: asyncpg.Connection, *values: object, **options: object) -> object:
        left[0] -= 1
        if left[0] < 0:
            raise cut
        return await execute(self, *values, **options)

    return counted


async def test_a_writer_and_an_erasure_at_once_leave_no_row(primary: Primary) -> None:
    """Whichever is first; nothing is written for a user who is gone."""
    for n in range(12):
        user = f"user-{n}"
        await given(primary, user, 1)
        refused = 0

        async def write(user: str = user) -> None:
            nonlocal refused
            for _ in range(6):
                try:
                    await primary.write(user, lambda c: _insert(c, user))
                except NotFound:
                    refused += 1

        await asyncio.gather(write(), write(), erase(primary, user))

        assert await rows_of(primary, user) == 0
        with pytest.raises(NotFound):
            await primary.write(user, lambda c, user=user: _insert(c, user))


async def _insert(connection: Connection, user: str) -> None:
    await ensure_user(connection, user)
    await connection.execute(
        "insert into images (owner_id, object_key, content_type, size_bytes, model) "
        "values ($1, gen_random_uuid()::text, 'image/png', 7, 'builtin')", user,
    )  # fmt: skip


async def test_two_who_erase_at_once_are_as_one(primary: Primary) -> None:
    await given(primary, "ana", 30)

    done = await asyncio.gather(*(erase(primary, "ana") for _ in range(3)), return_exceptions=True)

    erased = [one for one in done if isinstance(one, erasure.Erased)]
    assert sum(one.images for one in erased) == 30
    assert all(isinstance(one, erasure.Erased | NotFound) for one in done)
    assert await rows_of(primary, "ana") == 0


async def test_looks_miss_no_mark_that_is_committed_late(primary: Primary) -> None:
    """Times are taken before commits: a look begins a minute before the last one's end."""
    for user in ("ana", "bob"):
        await given(primary, user)
    async with primary.connection() as slow, slow.transaction():
        await slow.execute("insert into erased_users (user_id) values ('ana')")
        await erase(primary, "bob")
        (bob,) = await marks_since(primary, None)
        assert bob.user == "bob"

    async def late() -> bool:
        return {mark.user for mark in await marks_since(primary, bob.at)} == {"ana", "bob"}

    await until(late)


async def test_an_erasure_waits_for_a_write_that_has_begun(primary: Primary) -> None:
    """The write is whole, and then erased with the rest; it never meets a user who is gone half-way."""
    await given(primary, "ana")
    async with primary.connection() as writer, writer.transaction():
        await ensure_user(writer, "ana")
        erasing = asyncio.create_task(erase(primary, "ana"))

        async def waits() -> bool:
            blocked = "select 1 from pg_locks where not granted and pid <> pg_backend_pid()"
            return erasing.done() or bool(await primary.fetch(blocked))

        await until(waits)
        await writer.execute(
            "insert into images (owner_id, object_key, content_type, size_bytes, model) "
            "values ('ana', 'late', 'image/png', 7, 'builtin')"
        )
    await erasing

    assert await rows_of(primary, "ana") == 0
