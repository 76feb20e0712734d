"""A seed is the primary at one version, and appears whole or not at all."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from pathlib import Path

import aiosqlite
import pytest

from actors import seed as seed_module
from actors.errors import Retryable
from actors.messages import Outcome
from actors.replica import Replica
from actors.replicas import Answer
from actors.schema import user_version
from actors.seed import seed
from store.changes import Cursor, Delta, changes_since
from store.documents import Documents
from store.errors import PrimaryUnavailable
from store.primary import Connection, Primary
from tests.actors.fleet import ALL, Fleet, Gate, History, add_image, held, position, shown
from tests.world import add_images, ended, until

DOCUMENTS = Documents()


def opened(path: Path, user: str = "ana") -> Replica:
    return Replica.open(path, user, user_version(DOCUMENTS))


async def test_a_seed_holds_every_row_of_the_user_and_of_nobody_else(primary: Primary, tmp_path: Path) -> None:
    """Five hundred rows, as `document()` makes them. mission: 130, 131, 141"""
    async with primary.connection() as connection:
        ids = await add_images(connection, "ana", 500)
        await add_images(connection, "bob", 3)
        await connection.execute("insert into jobs (owner_id, prompt, provider, model) values ('ana', 'p', 'b', 'm')")
    path = tmp_path / "ana.1.db"

    seeded = await seed(primary, "ana", path, DOCUMENTS, synced_at=12.5)

    replica = opened(path)
    assert seeded.rows == 502  # and the account
    assert replica.cursor == seeded.cursor
    assert replica.synced_at == 12.5
    counts = [replica._connection.execute(f"select count(*) from {kind}").fetchone()[0]
              for kind in ("images", "jobs", "accounts", "reference_images")]  # fmt: skip
    assert counts == [500, 1, 1, 0]
    assert [image["id"] for image in shown(replica.read(ALL).body or b"")] == [str(i) for i in ids[:-201:-1]]
    replica.close()
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


async def test_a_user_whom_nobody_knows_is_empty_at_version_zero(primary: Primary, tmp_path: Path) -> None:
    path = tmp_path / "none.1.db"

    seeded = await seed(primary, "nobody", path, DOCUMENTS, synced_at=0.0)

    replica = opened(path, "nobody")
    assert (seeded.rows, replica.cursor.version) == (0, 0)
    assert shown(replica.read(ALL).body or b"") == []
    async with primary.connection() as connection:
        assert isinstance(await changes_since(connection, "nobody", replica.cursor), Delta)
    replica.close()


async def test_a_seed_among_writers_is_the_primary_at_exactly_one_version(
    primary: Primary, history: History, database: str, tmp_path: Path
) -> None:
    """Four writers always give two rows the same prompt in one transaction: no file ever shows them different."""
    rows = [await history.write(["ana"], lambda c: add_image(c, "ana", "0")) for _ in range(8)]
    pairs = [(rows[2 * n][0], rows[2 * n + 1][0]) for n in range(4)]
    numbers, stop = itertools.count(1), asyncio.Event()

    async def write(pair: tuple[str, str]) -> None:
        while not stop.is_set():
            prompt = str(next(numbers))

            async def both(connection: Connection, prompt: str = prompt) -> None:
                for image in pair:
                    await connection.execute("update images set prompt = $2 where id = $1::uuid", image, prompt)

            await history.write(["ana"], both)

    writers = [asyncio.create_task(write(pair)) for pair in pairs]
    seeds = await Primary.open(database, name="test seeds", size=2)
    versions: dict[Cursor, int] = {}
    for n in itertools.count(1):
        if len(versions) == 8:
            break
        path = tmp_path / f"ana.{n}.db"
        try:
            await seed(seeds, "ana", path, DOCUMENTS, synced_at=0.0)
        except Retryable:
            continue  # writers may be faster
        replica = opened(path)
        prompts = {image["id"]: image["prompt"] for image in shown(replica.read(ALL).body or b"")}
        assert all(prompts[a] == prompts[b] for a, b in pairs)
        versions[replica.cursor] = n
        replica.close()
    stop.set()
    await asyncio.gather(*writers)
    await seeds.close()

    fleet = await Fleet(tmp_path / "replicas", database).open()
    for n in versions.values():
        place = fleet.folder.next_path("ana")
        fleet.folder.delete_others("ana", place)
        (tmp_path / f"ana.{n}.db").rename(place)
        replica = opened(place)
        history.check("ana", Answer(replica.cursor, 0, replica.read(ALL), Outcome.FRESH, 0, 0))
        replica.close()

        answer = await fleet.read("ana")  # opens it, and pulls what was written since
        history.check("ana", answer)
        assert position(answer.cursor) == await history.head("ana")
        fleet.clock.move(61)
        fleet.replicas.life.close_idle()
    assert fleet.metrics.seeds == 0
    await fleet.close()


async def test_writes_during_the_copy_are_in_the_file(
    primary: Primary, history: History, database: str, tmp_path: Path
) -> None:
    """The staging file is pulled near the head before it appears."""
    await history.write(["ana"], lambda c: add_image(c, "ana", "before"))
    seeds = await Primary.open(database, name="test seeds", size=2)
    path = tmp_path / "ana.1.db"
    async with held(primary) as hold:  # the copy passes, the pull after it waits
        making = asyncio.create_task(seed(seeds, "ana", path, DOCUMENTS, synced_at=0.0))
        await until(hold.waiting)
        assert not path.exists()

    seeded = await making
    assert position(seeded.cursor) == await history.head("ana")
    await seeds.close()


async def test_a_cancelled_seed_leaves_nothing(primary: Primary, database: str, tmp_path: Path) -> None:
    """Neither a file, nor a staging file, nor a connection that is still in a transaction."""
    async with primary.connection() as connection:
        await add_images(connection, "ana", 20)
    seeds = await Primary.open(database, name="test seeds", size=1)
    for table in ("images", "change_log"):  # during the copy, and during the pull after it
        async with held(primary, table) as hold:
            making = asyncio.create_task(seed(seeds, "ana", tmp_path / "ana.1.db", DOCUMENTS, synced_at=0.0))
            await until(hold.waiting)
            assert [p.suffix for p in tmp_path.iterdir()] == [".staging"]
            making.cancel()
            with pytest.raises(asyncio.CancelledError):
                await making
        assert list(tmp_path.iterdir()) == []

    assert (await seed(seeds, "ana", tmp_path / "ana.1.db", DOCUMENTS, synced_at=0.0)).rows == 21
    await seeds.close()


async def test_a_seed_that_is_cancelled_does_not_wait_for_its_indexes(
    primary: Primary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a large gallery take seconds, and a host that stops has few."""
    indexing = threading.Event()
    execute = aiosqlite.Connection.executescript

    async def noted(self: aiosqlite.Connection, sql: str) -> aiosqlite.Cursor:
        await self.create_function("noted", 1, lambda _: indexing.set())
        return await execute(self, sql)

    monkeypatch.setattr(aiosqlite.Connection, "executescript", noted)
    endless = "with recursive n(i) as (select 1 union all select i + 1 from n) select count(noted(i)) from n;"
    monkeypatch.setattr(seed_module, "INDEXES", endless)
    seeding = asyncio.create_task(seed(primary, "ana", tmp_path / "ana.1.db", DOCUMENTS, synced_at=0.0))
    await until(indexing.is_set)

    seeding.cancel()

    await ended([seeding])
    assert seeding.cancelled()
    assert list(tmp_path.iterdir()) == []


async def test_a_seed_that_loses_the_primary_leaves_nothing(primary: Primary, gate: Gate, tmp_path: Path) -> None:
    async with primary.connection() as connection:
        await add_images(connection, "ana", 20)
    seeds = await Primary.open(gate.url, name="test seeds", size=1)
    async with held(primary, "images") as hold:
        making = asyncio.create_task(seed(seeds, "ana", tmp_path / "ana.1.db", DOCUMENTS, synced_at=0.0))
        await until(hold.waiting)
        await gate.shut()
        with pytest.raises(PrimaryUnavailable):
            await making

    assert list(tmp_path.iterdir()) == []
    await seeds.close()


async def test_history_that_changes_during_a_seed_ends_it(primary: Primary, database: str, tmp_path: Path) -> None:
    """What was copied belongs to a history that is no more."""
    async with primary.connection() as connection:
        await add_images(connection, "ana", 3)
    seeds = await Primary.open(database, name="test seeds", size=1)
    async with held(primary) as hold:
        making = asyncio.create_task(seed(seeds, "ana", tmp_path / "ana.1.db", DOCUMENTS, synced_at=0.0))
        await until(hold.waiting)
        async with primary.connection() as connection:
            await connection.execute("update sync_epoch set id = id + 1")

    with pytest.raises(Retryable, match="the primary's history changed during the seed of ana: epoch"):
        await making
    assert list(tmp_path.iterdir()) == []
    await seeds.close()


async def test_writers_that_are_faster_than_the_pulls_end_the_seed(
    primary: Primary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not go on for ever, and leaves nothing."""
    async with primary.connection() as connection:
        await add_images(connection, "ana", 3)
    monkeypatch.setattr(seed_module, "_NEAR", -1)

    with pytest.raises(Retryable, match="writers of ana were faster than 8 pulls"):
        await seed(primary, "ana", tmp_path / "ana.1.db", DOCUMENTS, synced_at=0.0)

    assert list(tmp_path.iterdir()) == []


async def test_a_log_that_an_older_file_left_does_no_harm(fleet: Fleet, history: History) -> None:
    """A crash may come between deleting a file and its log: the next file must not take that log for its own."""
    for n in range(30):
        await history.write(["ana"], lambda c, n=n: add_image(c, "ana", f"old {n}"))
    await fleet.read("ana")
    image, _ = await history.write(["ana"], lambda c: add_image(c, "ana", "newer"))
    first = (await fleet.replicas.sync("ana"))[0]
    file = fleet.file("ana")
    log = file.with_name(file.name + "-wal").read_bytes()
    assert log
    await fleet.close()
    file.unlink()
    file.with_name(file.name + "-wal").write_bytes(log)
    await history.write(["ana"], lambda c: c.execute("delete from images where id <> $1::uuid", image))

    await fleet.open()
    answer = await fleet.read("ana")

    history.check("ana", answer)
    assert [d["prompt"] for d in shown(answer)] == ["newer"]
    assert answer.cursor.version == first.version + 1


async def test_a_thousand_rows_take_no_second(primary: Primary, tmp_path: Path) -> None:
    """Off the loop: others are answered meanwhile. mission: 142"""
    async with primary.connection() as connection:
        await connection.execute("insert into users (id) values ('ana')")
        await connection.execute(
            "insert into images (owner_id, object_key, content_type, size_bytes, model) "
            "select 'ana', 'generated/' || n, 'image/png', 7, 'm' from generate_series(1, 1000) n"
        )
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0.001)

    counting = asyncio.create_task(count_turns())
    started = time.monotonic()
    seeded = await seed(primary, "ana", tmp_path / "ana.1.db", DOCUMENTS, synced_at=0.0)
    took_s = time.monotonic() - started
    counting.cancel()

    assert seeded.rows == 1001
    assert took_s < 5
    assert turns > 3
    assert isinstance(seeded.cursor, Cursor)
