"""The primary's pool and the reads from it: retried where that is right, refused in time where it is not."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from store.documents import Documents
from store.epoch import Bookmark
from store.errors import PrimaryUnavailable, SettingError
from store.gallery import GalleryQuery, ImageQuery, encode_query
from store.primary import Primary, asyncpg_url, hide_password
from store.reads import Page, PrimaryReads
from tests.store.test_capture import assert_consistent, insert_image, services, version_of
from tests.world import add_images, until

FIRST_PAGE = encode_query(GalleryQuery())


@pytest.fixture
async def connection(database: str) -> AsyncIterator[asyncpg.Connection]:
    """A plain connection, with the user ana at version 1."""
    made = await asyncpg.connect(database)
    await made.execute("insert into users (id) values ('ana')")
    yield made
    await made.close()


@pytest.fixture
def black_hole() -> Iterator[str]:
    """URL of a server that takes connections and never says a word."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=64)
    yield f"postgresql://postgres@127.0.0.1:{listening.getsockname()[1]}/peruse"
    listening.close()


@pytest.fixture
async def silent(black_hole: str) -> AsyncIterator[Primary]:
    """A pool on the black hole, whose callers wait 0.3 s."""
    made = await Primary.open(black_hole, name="test", size=4, wait_s=0.3)
    yield made
    await made.close()


async def nothing(connection: Any) -> None:
    return None


async def add_one(connection: Any) -> Any:
    return await insert_image(connection, "ana")


# --- URLs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+asyncpg", "postgresql+psycopg"])
def test_url_may_name_any_driver(scheme: str) -> None:
    assert asyncpg_url(f"{scheme}://me:p%40ss@host:1/db?a=b") == "postgresql://me:p%40ss@host:1/db?a=b"


@pytest.mark.parametrize(
    "url", ["", "postgresql://", "mysql://me:secret@host/db", "me:secret@host", "sqlite:///secret"]
)
def test_url_of_something_else_is_refused_without_showing_it(url: str) -> None:
    """mission: 66, 209"""
    with pytest.raises(SettingError, match="PERUSE_PRIMARY_URL must look like") as caught:
        asyncpg_url(url)

    assert "secret" not in str(caught.value)


def test_password_is_hidden_from_people() -> None:
    """mission: 209"""
    assert hide_password("postgresql://me:secret@host:1/db?a=b") == "postgresql://me:***@host:1/db?a=b"
    assert hide_password("postgresql://me@host/db") == "postgresql://me@host/db"
    assert "p%40ss" not in hide_password("postgresql://me:p%40ss@host/db")


# --- writes ----------------------------------------------------------------------------------------------------


async def test_write_answers_its_result_and_the_users_head(primary: Primary, connection: asyncpg.Connection) -> None:
    """The bookmark is what sync_user says after the commit; what was written is there.

    mission: 113, 139
    """
    row, bookmark = await primary.write("ana", add_one)

    epoch = await connection.fetchval("select sync_epoch_now()")
    assert bookmark == Bookmark(epoch, 2) == Bookmark(epoch, await version_of(connection, "ana"))
    assert await connection.fetchval("select count(*) from images where id = $1", row) == 1


async def test_write_of_nothing_answers_the_head_as_it_is(primary: Primary, connection: asyncpg.Connection) -> None:
    """A change to the same value, or a user who is not there, still has a bookmark."""
    assert (await primary.write("ana", nothing))[1].version == 1
    assert (await primary.write("nobody", nothing))[1].version == 0
    await assert_consistent(connection)


async def test_write_that_fails_leaves_nothing(primary: Primary, connection: asyncpg.Connection) -> None:
    """An error of the work comes out as it is, and nothing of the work stays."""

    async def fail(inside: Any) -> None:
        await add_one(inside)
        raise KeyError("ours")

    with pytest.raises(KeyError, match="ours"):
        await primary.write("ana", fail)

    assert await version_of(connection, "ana") == 1
    assert (await primary.write("ana", add_one))[1].version == 2


async def test_deadlock_is_tried_again(primary: Primary, connection: asyncpg.Connection) -> None:
    """Two writes that lock each other: Postgres ends one of them, which runs again and succeeds.

    mission: 113
    """
    [first, second] = await add_images(connection, "ana", 2)
    both_hold_one, runs = asyncio.Barrier(2), 0

    async def touch(inside: Any, one: Any, other: Any) -> None:
        nonlocal runs
        runs += 1
        await inside.execute("set local deadlock_timeout = '50ms'")
        await inside.execute("update images set steps = coalesce(steps, 0) + 1 where id = $1", one)
        if runs <= 2:
            await both_hold_one.wait()
        await inside.execute("update images set steps = coalesce(steps, 0) + 1 where id = $1", other)

    await asyncio.gather(
        primary.write("ana", lambda inside: touch(inside, first, second)),
        primary.write("ana", lambda inside: touch(inside, second, first)),
    )

    assert runs == 3
    assert [row[0] for row in await connection.fetch("select steps from images")] == [2, 2]
    await assert_consistent(connection)


async def test_serialization_failure_is_tried_again(primary: Primary, connection: asyncpg.Connection) -> None:
    """A stricter transaction that met a newer row runs again on a new snapshot."""
    [row] = await add_images(connection, "ana", 1)
    runs = 0

    async def work(inside: Any) -> int:
        nonlocal runs
        runs += 1
        await inside.execute("set transaction isolation level repeatable read")
        steps = await inside.fetchval("select coalesce(steps, 0) from images where id = $1", row)
        if runs == 1:
            await connection.execute("update images set steps = 10 where id = $1", row)
        await inside.execute("update images set steps = $2 where id = $1", row, steps + 1)
        return runs

    result, bookmark = await primary.write("ana", work)

    assert (result, runs) == (2, 2)
    assert await connection.fetchval("select steps from images") == 11
    assert bookmark.version == await version_of(connection, "ana")


async def test_write_that_conflicts_for_ever_gives_up(primary: Primary, connection: asyncpg.Connection) -> None:
    """Five attempts, then an error that says so."""
    runs = 0

    async def work(inside: Any) -> None:
        nonlocal runs
        runs += 1
        await inside.execute("do $$ begin raise serialization_failure; end $$")

    with pytest.raises(PrimaryUnavailable, match="gave up after 5 attempts"):
        await primary.write("ana", work)

    assert runs == 5


@pytest.mark.parametrize("locked", ["images", "sync_user"])
async def test_row_that_stays_locked_is_unavailable(database: str, connection: asyncpg.Connection, locked: str) -> None:
    """A stuck transaction of somebody else: the write gives up within its lock timeout and leaves nothing."""
    await add_images(connection, "ana", 1)
    primary = await Primary.open(database, name="test", size=2)
    try:

        async def work(inside: Any) -> None:
            await inside.execute("set local lock_timeout = '100ms'")
            await inside.execute("update images set starred = true")

        async with services(database, 1) as [holder], holder.transaction():
            await holder.execute(f"select from {locked} for update")
            with pytest.raises(PrimaryUnavailable, match="a row of the primary stayed locked"):
                await primary.write("ana", work)
        assert await connection.fetchval("select starred from images") is False
        assert (await primary.write("ana", work))[1].version == 3
        assert await primary.fetch("show lock_timeout") == [("2s",)]
    finally:
        await primary.close()


async def test_statement_that_takes_too_long_is_unavailable(database: str) -> None:
    primary = await Primary.open(database, name="test", size=1, statement_timeout_s=0.1)
    try:
        with pytest.raises(PrimaryUnavailable, match="took too long"):
            await primary.fetch("select pg_sleep(30)")
        assert await primary.fetch("select 1") == [(1,)]
    finally:
        await primary.close()


async def test_value_that_postgres_cannot_hold_is_no_outage(primary: Primary) -> None:
    """A mistake in our own code must not look like a primary that is away, which callers try again for ever."""
    with pytest.raises(asyncpg.DataError, match="invalid input for query argument"):
        await primary.fetch("select $1::int4", 2**40)


# --- a primary that is away ------------------------------------------------------------------------------------


async def test_opening_does_not_need_the_primary(black_hole: str, tmp_path: Path) -> None:
    """Reads go on from replicas: a host starts without it."""
    for url in (black_hole, f"postgresql://postgres@/peruse?host={tmp_path}"):
        primary = await Primary.open(url, name="test", size=1)
        await primary.close()


async def test_stopped_primary_is_unavailable_at_once(tmp_path: Path) -> None:
    """Nobody listens: no reason to wait."""
    primary = await Primary.open(f"postgresql://postgres@/peruse?host={tmp_path}", name="test", size=1)
    began = time.monotonic()
    try:
        with pytest.raises(PrimaryUnavailable, match="is not answering"):
            await primary.fetch("select 1")
        with pytest.raises(PrimaryUnavailable, match="is not answering"):
            await primary.write("ana", nothing)
    finally:
        await primary.close()

    assert time.monotonic() - began < 1.5


async def test_silent_primary_is_unavailable_within_the_wait(silent: Primary) -> None:
    """A network that swallows everything: reads and writes give up after their wait.

    mission: 24
    """
    began = time.monotonic()

    results = await asyncio.gather(
        *(silent.fetch("select 1") for _ in range(6)),
        *(silent.write("ana", nothing) for _ in range(6)),
        return_exceptions=True,
    )

    assert {type(result) for result in results} == {PrimaryUnavailable}
    assert time.monotonic() - began < 1.5


MINE = "select pid from pg_stat_activity where application_name = 'peruse test' and datname = current_database()"
END_MINE = f"select pg_terminate_backend(pid, 5000) from ({MINE}) m"


async def fill(primary: Primary) -> None:
    """Open all the connections that the pool may have."""
    await asyncio.gather(*(primary.fetch("select pg_sleep(0.05)") for _ in range(8)))


def end_from_elsewhere(database: str) -> None:
    """End the connections of the pool while the loop is busy, so that it hears of nothing."""

    async def end_them() -> None:
        connection = await asyncpg.connect(database)
        await connection.execute(END_MINE)
        await connection.close()

    elsewhere = threading.Thread(target=asyncio.run, args=(end_them(),))
    elsewhere.start()
    elsewhere.join()


async def is_asked(database: str, statement: str) -> bool:
    """Whether somebody waits for the answer of `statement`."""
    connection = await asyncpg.connect(database)
    found = await connection.fetch("select 1 from pg_stat_activity where state = 'active' and query = $1", statement)
    await connection.close()
    return bool(found)


async def test_pool_comes_back_after_all_its_connections_were_ended(
    primary: Primary, connection: asyncpg.Connection
) -> None:
    """A restart of the primary: the very next read and write work, on new connections."""
    await fill(primary)
    assert len(await connection.fetch(MINE)) == 8

    for _ in range(3):
        await connection.execute(END_MINE)
        assert await primary.fetch("select 1") == [(1,)]
    await connection.execute(END_MINE)
    assert (await primary.write("ana", add_one))[1].version == 2


async def test_read_on_a_connection_that_is_dead_already_is_tried_again(database: str, primary: Primary) -> None:
    """Connections ended while the loop was busy look alive until they are used: a read survives that."""
    await fill(primary)

    end_from_elsewhere(database)

    assert await primary.fetch("select 1") == [(1,)]


@pytest.mark.parametrize("is_writing", [False, True])
async def test_whoever_is_cancelled_as_the_primary_goes_is_cancelled(
    database: str, primary: Primary, is_writing: bool
) -> None:
    """Not told that the primary is away: a loop that goes on after that could not be ended."""
    await fill(primary)
    statement = "select pg_sleep(30)"
    asking = asyncio.ensure_future(
        primary.write("ana", lambda inside: inside.execute(statement)) if is_writing else primary.fetch(statement)
    )
    await until(lambda: is_asked(database, statement))

    end_from_elsewhere(database)
    asking.cancel()

    assert isinstance((await asyncio.gather(asking, return_exceptions=True))[0], asyncio.CancelledError)


async def test_write_whose_connection_is_ended_is_unavailable(primary: Primary, connection: asyncpg.Connection) -> None:
    """In the middle of a transaction nothing is tried again by itself; nothing of it stays, and the pool goes on."""

    async def work(inside: Any) -> None:
        await add_one(inside)
        await connection.execute("select pg_terminate_backend($1, 5000)", inside.get_server_pid())

    with pytest.raises(PrimaryUnavailable):
        await primary.write("ana", work)

    assert await version_of(connection, "ana") == 1
    assert (await primary.write("ana", add_one))[1].version == 2


async def test_full_pool_is_unavailable_within_the_wait(database: str) -> None:
    """All connections are busy: the next caller waits its time and no longer."""
    primary = await Primary.open(database, name="test", size=1, wait_s=0.1)
    try:
        async with primary.connection():
            with pytest.raises(PrimaryUnavailable):
                await primary.fetch("select 1")
        assert await primary.fetch("select 1") == [(1,)]
    finally:
        await primary.close()


# --- reads from the primary ------------------------------------------------------------------------------------


class Counted:
    """A primary whose reads are counted, and held back while `gate` is closed."""

    def __init__(self, primary: Primary) -> None:
        self._primary = primary
        self.statements = self.answered = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def fetch(self, sql: str, *values: Any) -> list[asyncpg.Record]:
        self.statements += 1
        rows = await self._primary.fetch(sql, *values)
        self.answered += 1
        await self.gate.wait()
        return rows


@pytest.fixture
def counted(primary: Primary) -> Counted:
    return Counted(primary)


def reads_of(primary: Any, **options: Any) -> PrimaryReads:
    return PrimaryReads(primary, Documents(), **options)


async def test_equal_reads_share_one_statement(counted: Counted, connection: asyncpg.Connection) -> None:
    """Fifty readers of one page cost one statement; the next one after them asks again."""
    await add_images(connection, "ana", 3)
    reads = reads_of(counted)

    pages = await asyncio.gather(*(reads.read("ana", FIRST_PAGE) for _ in range(50)))

    assert counted.statements == 1
    assert len(set(pages)) == 1
    await reads.read("ana", FIRST_PAGE)
    assert counted.statements == 2


async def test_reads_that_differ_share_nothing(counted: Counted, connection: asyncpg.Connection) -> None:
    """Another user or another query is another statement.

    mission: 141
    """
    await add_images(connection, "bo", 1)
    reads = reads_of(counted)
    other = encode_query(GalleryQuery(limit=3))

    pages = await asyncio.gather(
        reads.read("ana", FIRST_PAGE), reads.read("bo", FIRST_PAGE), reads.read("bo", other), reads.read("ana", other)
    )

    assert counted.statements == 4
    assert [b"picture" in (page.body or b"") for page in pages] == [False, True, True, False]


async def test_reader_with_a_newer_floor_gets_a_statement_of_its_own(
    counted: Counted, connection: asyncpg.Connection
) -> None:
    """It must see its own write, which the statement under way was too early for."""
    reads = reads_of(counted)
    counted.gate.clear()
    early = asyncio.create_task(reads.read("ana", FIRST_PAGE))
    await until(lambda: counted.answered == 1)
    await add_images(connection, "ana", 1)
    floor = Bookmark(await connection.fetchval("select sync_epoch_now()"), 2)
    late = asyncio.create_task(reads.read("ana", FIRST_PAGE, floor=floor))
    old = asyncio.create_task(reads.read("ana", FIRST_PAGE, floor=floor._replace(version=1)))
    await asyncio.sleep(0)

    counted.gate.set()

    assert (await early).at.version == (await old).at.version == 1
    assert (await late).at == floor
    assert b"picture" in ((await late).body or b"")
    assert counted.statements == 2


async def test_readers_with_a_newer_floor_share_their_statement(
    counted: Counted, connection: asyncpg.Connection
) -> None:
    """However many waited for a page that was too old for them, the next statement is new enough for all."""
    reads = reads_of(counted)
    counted.gate.clear()
    early = asyncio.create_task(reads.read("ana", FIRST_PAGE))
    await until(lambda: counted.answered == 1)
    await add_images(connection, "ana", 1)
    floor = Bookmark(await connection.fetchval("select sync_epoch_now()"), 2)
    late = [asyncio.create_task(reads.read("ana", FIRST_PAGE, floor=floor)) for _ in range(40)]
    await asyncio.sleep(0)

    counted.gate.set()

    assert (await early).at.version == 1
    assert {page.at for page in await asyncio.gather(*late)} == {floor}
    assert counted.statements == 2


async def test_floor_that_the_primary_does_not_have_is_answered_as_it_is(
    primary: Primary, connection: asyncpg.Connection
) -> None:
    """A bookmark of a lost history: the primary is the newest there is, and says where it is."""
    floor = Bookmark(await connection.fetchval("select sync_epoch_now()"), 99)

    page = await reads_of(primary).read("ana", FIRST_PAGE, floor=floor)

    assert page.at == floor._replace(version=1)


async def test_queue_refuses_beyond_its_bound(counted: Counted, connection: asyncpg.Connection) -> None:
    """So many different reads wait; one more is refused at once, while one that is under way may be joined."""
    reads = reads_of(counted, max_waiting=3)
    counted.gate.clear()
    waiting = [asyncio.create_task(reads.read(f"user{n}", FIRST_PAGE)) for n in range(3)]
    await until(lambda: counted.statements == 3)

    with pytest.raises(PrimaryUnavailable, match="3 reads wait for the primary already"):
        await reads.read("one more", FIRST_PAGE)
    joined = asyncio.create_task(reads.read("user0", FIRST_PAGE))
    await asyncio.sleep(0)
    counted.gate.set()

    assert all(isinstance(page, Page) for page in await asyncio.gather(*waiting, joined))
    assert counted.statements == 3
    assert (await reads.read("one more", FIRST_PAGE)).at.version == 0


async def test_reader_who_goes_away_does_not_end_the_others_read(
    counted: Counted, connection: asyncpg.Connection
) -> None:
    """A client that closes its connection cancels itself alone."""
    reads = reads_of(counted)
    counted.gate.clear()
    leaver, stayer = (asyncio.create_task(reads.read("ana", FIRST_PAGE)) for _ in range(2))
    await until(lambda: counted.statements == 1)

    leaver.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaver
    counted.gate.set()

    assert (await stayer).at.version == 1
    assert counted.statements == 1


async def test_missing_image_is_an_answer(primary: Primary, connection: asyncpg.Connection) -> None:
    """No such row at this version: body None, with the position it is true for."""
    page = await reads_of(primary).read("ana", encode_query(ImageQuery("00000000-0000-0000-0000-000000000001")))

    assert page == Page(Bookmark(await connection.fetchval("select sync_epoch_now()"), 1), None)


async def test_failed_read_fails_all_who_share_it_and_is_forgotten(tmp_path: Path) -> None:
    """An outage is told to everybody who waited; nothing of it is kept."""
    primary = await Primary.open(f"postgresql://postgres@/peruse?host={tmp_path}", name="test", size=1)
    reads = reads_of(primary)
    try:
        results = await asyncio.gather(*(reads.read("ana", FIRST_PAGE) for _ in range(5)), return_exceptions=True)
        assert [type(result) for result in results] == [PrimaryUnavailable] * 5
        assert reads._shared == {}
    finally:
        await primary.close()


@pytest.mark.parametrize("timeout_s", [0.1, 5.0])
async def test_read_from_a_silent_primary_is_unavailable_within_its_timeout(silent: Primary, timeout_s: float) -> None:
    """Whichever ends first, the caller's time or the pool's: the error is the same, and so is the answer 503."""
    reads = reads_of(silent)
    began = time.monotonic()

    with pytest.raises(PrimaryUnavailable):
        await reads.read("ana", FIRST_PAGE, timeout_s=timeout_s)

    assert time.monotonic() - began < 1.0
    await until(lambda: not reads._shared)
