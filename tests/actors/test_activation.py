"""The life of a host's replicas: cold, seeding, active, passive, gone."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from actors import seeding
from actors.errors import Behind, Overloaded, Retryable, Seeding
from store.epoch import Bookmark
from store.errors import PrimaryUnavailable
from store.primary import Primary
from tests.actors.fleet import ALL, Fleet, Gate, History, add_image, held, position, shown
from tests.world import add_images, ended, until


async def read_now(fleet: Fleet, user: str, floor: Bookmark | None = None) -> Any:
    """As a host answers a request: no second try."""
    return fleet.replicas.peek(user, ALL, floor) or await fleet.replicas.read(user, ALL, floor)


# --- cold and seeding -------------------------------------------------------------------------------------------


async def test_cold_readers_start_one_seed_however_many_they_are(fleet: Fleet, primary: Primary) -> None:
    """mission: 129, 220"""
    async with primary.connection() as connection:
        await add_images(connection, "ana", 3)

    answers = await asyncio.gather(*(read_now(fleet, "ana") for _ in range(50)), return_exceptions=True)

    assert all(isinstance(answer, Seeding) for answer in answers)
    assert str(answers[0]) == "replica of ana is being made"
    assert fleet.replicas.seeding_count == 1
    await until(lambda: fleet.replicas.seeding_count == 0)
    assert fleet.metrics.seeds == 1
    assert len(shown(await read_now(fleet, "ana"))) == 3
    assert len([name for name in fleet.files() if name.endswith(".db")]) == 1


async def test_every_user_has_a_replica_of_their_own(fleet: Fleet, history: History) -> None:
    """mission: 129, 130, 137, 141, 220, 221"""
    users = [f"user-{n}" for n in range(12)]
    for user in users:
        await history.write([user], lambda c, user=user: add_image(c, user, f"secret of {user}"))

    answers = await asyncio.gather(*(fleet.read(user) for user in users))

    for user, answer in zip(users, answers, strict=True):
        history.check(user, answer)
        assert [image["prompt"] for image in shown(answer)] == [f"secret of {user}"]
    assert fleet.metrics.seeds == fleet.replicas.active_count == len(users)
    assert len({fleet.file(user) for user in users}) == len(users)


async def test_a_user_without_a_row_is_answered_with_nothing(fleet: Fleet, history: History) -> None:
    """Their first row arrives like every other."""
    answer = await fleet.read("nobody")
    assert (answer.cursor.version, shown(answer)) == (0, [])
    await fleet.replicas.sweep()
    assert fleet.metrics.pulls == 0

    _, bookmark = await history.write(["nobody"], lambda c: add_image(c, "nobody", "the first"))
    answer = await fleet.read("nobody", bookmark)

    history.check("nobody", answer)
    assert position(answer.cursor) == bookmark


async def test_waiting_seeds_are_bounded(fleet: Fleet, primary: Primary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeding, "MAX_WAITING", 3)
    async with held(primary, "images"):
        for user in ("a", "b", "c"):
            with pytest.raises(Seeding):
                await read_now(fleet, user)
        with pytest.raises(Overloaded, match="3 replicas wait to be made"):
            await read_now(fleet, "d")

    await until(lambda: fleet.replicas.seeding_count == 0)
    assert (fleet.metrics.seeds, fleet.metrics.overloads) == (3, 1)
    assert (await fleet.read("d")).cursor.version == 0


async def test_no_more_seeds_at_once_than_allowed(fleet: Fleet, primary: Primary) -> None:
    """A storm queues: it does not fail and does not take every connection."""
    async with held(primary, "images") as hold:
        for n in range(8):
            with pytest.raises(Seeding):
                await read_now(fleet, f"user-{n}")
        await until(lambda: _is(hold, 2))
        assert len(fleet.staged()) == 2

    await until(lambda: fleet.replicas.seeding_count == 0)
    assert fleet.metrics.seeds == 8


async def _is(hold: held, waiting: int) -> bool:
    return await hold.waiting() == waiting


async def test_a_seed_that_fails_is_counted_and_tried_again_by_the_next_reader(
    database: str, gate: Gate, tmp_path: Path
) -> None:
    fleet = await Fleet(tmp_path / "replicas", gate.url).open()
    await gate.shut()

    with pytest.raises(Seeding):
        await read_now(fleet, "ana")
    await until(lambda: fleet.metrics.seed_failures == 1)
    with pytest.raises(PrimaryUnavailable):
        await fleet.replicas.sync("ana")
    assert fleet.files() == []

    await gate.open()
    assert (await fleet.read("ana")).cursor.version == 0
    await fleet.close()


# --- active and passive -----------------------------------------------------------------------------------------


async def test_idle_replicas_are_closed_and_opened_again_without_a_seed(fleet: Fleet, history: History) -> None:
    """mission: 129, 130, 132"""
    await history.write(["ana"], lambda c: add_image(c, "ana", "one"))
    await fleet.read("ana")
    fleet.clock.move(30)
    await fleet.read("bob")
    file = fleet.file("ana")

    fleet.clock.move(31)
    assert fleet.replicas.life.close_idle() == 1

    assert fleet.replicas.active_count == 1
    assert fleet.replicas.peek("bob", ALL, None) is not None
    assert not file.with_name(file.name + "-wal").exists()
    await history.write(["ana"], lambda c: add_image(c, "ana", "two"))
    answer = await read_now(fleet, "ana")
    history.check("ana", answer)
    assert len(shown(answer)) == 2
    assert (fleet.metrics.seeds, fleet.metrics.activations, fleet.metrics.passivations) == (2, 3, {"idle": 1})
    assert fleet.file("ana") == file


async def test_passivation_closes_at_most_so_many_at_once(fleet: Fleet) -> None:
    """The loop stays free for readers."""
    for n in range(5):
        await fleet.read(f"user-{n}")
    fleet.clock.move(61)

    assert [fleet.replicas.life.close_idle(at_most=2) for _ in range(4)] == [2, 2, 1, 0]


async def test_the_replica_that_was_read_longest_ago_makes_room(database: str, tmp_path: Path) -> None:
    fleet = await Fleet(tmp_path / "replicas", database, max_active=3).open()
    for user in ("a", "b", "c"):
        await fleet.read(user)
        fleet.clock.move(1)
    await fleet.read("a")
    fleet.clock.move(1)

    await fleet.read("d")

    assert fleet.replicas.active_count == 3
    assert [fleet.replicas.peek(user, ALL, None) is not None for user in "abcd"] == [True, False, True, True]
    assert fleet.metrics.seeds == 4
    await fleet.read("b")
    assert (fleet.metrics.seeds, fleet.replicas.active_count) == (4, 3)
    await fleet.close()


async def test_closing_keeps_the_files_and_the_first_read_afterwards_pulls(fleet: Fleet, history: History) -> None:
    """mission: 130, 133, 136"""
    await history.write(["ana"], lambda c: add_image(c, "ana", "one"))
    before = await fleet.read("ana")
    await fleet.close()
    assert len(fleet.files()) == 1
    await history.write(["ana"], lambda c: add_image(c, "ana", "two"))

    await fleet.open()
    assert fleet.replicas.peek("ana", ALL, None) is None
    answer = await read_now(fleet, "ana")

    history.check("ana", answer)
    assert answer.cursor.version == before.cursor.version + 1
    assert fleet.metrics.seeds == 1


async def test_a_killed_host_finds_its_files_again(fleet: Fleet, history: History) -> None:
    """mission: 130, 133"""
    for n in range(5):
        await history.write(["ana"], lambda c, n=n: add_image(c, "ana", f"{n}"))
        await fleet.read("ana", await history.head("ana"))

    await fleet.crash()
    await fleet.open()
    answer = await read_now(fleet, "ana")

    history.check("ana", answer)
    assert len(shown(answer)) == 5
    assert fleet.metrics.seeds == 1


@pytest.mark.parametrize("damage", [b"", b"\xff" * 20_000, b"SQLite format 3\0" + b"\0" * 9000])
async def test_a_broken_file_is_deleted_and_made_again(fleet: Fleet, history: History, damage: bytes) -> None:
    """Counted, and nobody is shown what was in it."""
    await history.write(["ana"], lambda c: add_image(c, "ana", "one"))
    await fleet.read("ana")
    await fleet.close()
    fleet.file("ana").write_bytes(damage)

    await fleet.open()
    with pytest.raises(Seeding):
        await read_now(fleet, "ana")
    await until(lambda: fleet.replicas.seeding_count == 0)

    history.check("ana", await read_now(fleet, "ana"))
    assert (fleet.metrics.broken, fleet.metrics.seeds) == (1, 2)
    assert len([name for name in fleet.files() if name.endswith(".db")]) == 1


async def test_a_file_that_breaks_while_it_is_open_is_made_again(fleet: Fleet, history: History) -> None:
    for n in range(40):
        await history.write(["ana"], lambda c, n=n: add_image(c, "ana", f"{n}"))
    await fleet.read("ana")
    fleet.clock.move(61)
    fleet.replicas.life.close_idle()
    path = fleet.file("ana")
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))

    answer = await fleet.read("ana")

    history.check("ana", answer)
    assert fleet.metrics.broken >= 1
    assert fleet.metrics.seeds == 2


async def test_a_file_of_other_documents_is_made_again(fleet: Fleet, history: History, database: str) -> None:
    """A public base for URLs was set since. mission: 132"""
    await history.write(["ana"], lambda c: add_image(c, "ana", "one"))
    await fleet.read("ana")
    await fleet.close()

    other = await Fleet(fleet.path, database, files_base="https://cdn.example").open()
    answer = await other.read("ana")

    assert shown(answer)[0]["url"].startswith("https://cdn.example/files/generated/")
    assert (other.metrics.broken, other.metrics.seeds) == (1, 1)
    await other.close()
    await fleet.open()


# --- floors, and the primary away -------------------------------------------------------------------------------


async def test_a_read_with_a_floor_is_never_older(fleet: Fleet, history: History) -> None:
    """mission: 139, 140"""
    await fleet.read("ana")
    for n in range(20):
        _, bookmark = await history.write(["ana"], lambda c, n=n: add_image(c, "ana", f"{n}"))

        answer = await read_now(fleet, "ana", bookmark)

        assert position(answer.cursor) == bookmark
        history.check("ana", answer)


async def test_a_floor_beyond_the_head_is_asked_for_once_and_dropped(fleet: Fleet, history: History) -> None:
    _, bookmark = await history.write(["ana"], lambda c: add_image(c, "ana"))
    await fleet.read("ana")
    pulls = fleet.metrics.pulls

    answer = await read_now(fleet, "ana", bookmark._replace(version=bookmark.version + 9))

    assert position(answer.cursor) == bookmark
    assert fleet.metrics.pulls == pulls + 1


async def test_a_floor_of_an_older_epoch_asks_for_nothing(fleet: Fleet, history: History) -> None:
    await history.write(["ana"], lambda c: add_image(c, "ana"))
    await fleet.read("ana")

    assert fleet.replicas.peek("ana", ALL, Bookmark("1-1", 10**9)) is not None


async def test_without_the_primary_an_active_replica_serves_with_a_growing_age(
    gate: Gate, history: History, tmp_path: Path
) -> None:
    """mission: 137, 139"""
    fleet = await Fleet(tmp_path / "replicas", gate.url).open()
    _, bookmark = await history.write(["ana"], lambda c: add_image(c, "ana", "one"))
    await fleet.read("ana")
    await gate.shut()

    ages = []
    for _ in range(3):
        fleet.clock.move(1.5)
        with pytest.raises(PrimaryUnavailable):
            await fleet.replicas.sweep()
        answer = await read_now(fleet, "ana", bookmark)
        history.check("ana", answer)
        ages.append(answer.age_s)
    assert ages == [2, 3, 5]
    assert fleet.replicas.lag_s == 4.5

    beyond = bookmark._replace(version=bookmark.version + 1)
    with pytest.raises(Behind, match="ana could not be brought up to date in time: the primary is not answering"):
        await read_now(fleet, "ana", beyond)
    with pytest.raises(PrimaryUnavailable):
        await fleet.replicas.sync("ana")

    await gate.open()
    await fleet.replicas.sweep()
    assert (await read_now(fleet, "ana")).age_s == 0
    assert position((await read_now(fleet, "ana", beyond)).cursor) == bookmark
    await fleet.close()


async def test_a_file_opened_without_the_primary_is_as_old_as_it_was_when_closed(
    gate: Gate, history: History, tmp_path: Path
) -> None:
    """Age counts through the time in which nobody had it open."""
    fleet = await Fleet(tmp_path / "replicas", gate.url).open()
    await history.write(["ana"], lambda c: add_image(c, "ana", "one"))
    await fleet.read("ana")
    fleet.clock.move(100)
    fleet.replicas.life.close_idle()
    await gate.shut()
    fleet.clock.move(900)

    answer = await read_now(fleet, "ana")

    history.check("ana", answer)
    assert answer.age_s == 1000
    assert fleet.replicas.peek("ana", ALL, None) is not None  # not asked for at every read
    await fleet.close()


# --- a replica that is closed or replaced under a reader ----------------------------------------------------------


async def test_a_reader_whose_replica_is_closed_meanwhile_still_gets_its_floor(
    database: str, primary: Primary, history: History, tmp_path: Path
) -> None:
    """Room for one: another user's read closes the replica while its pull is under way. mission: 139"""
    fleet = await Fleet(tmp_path / "replicas", database, max_active=1).open()
    await fleet.read("bob")
    await history.write(["ana"], lambda c: add_image(c, "ana", "one"))
    await fleet.read("ana")
    _, bookmark = await history.write(["ana"], lambda c: add_image(c, "ana", "two"))

    async with held(primary) as hold:
        reading = asyncio.create_task(read_now(fleet, "ana", bookmark))
        await until(hold.waiting)
        fleet.clock.move(1)
        await read_now(fleet, "bob")

    answer = await reading
    await fleet.close()
    history.check("ana", answer)
    assert position(answer.cursor) == bookmark


@pytest.mark.parametrize("reason", ["bulk", "horizon"])
async def test_a_read_with_a_floor_is_not_answered_with_the_version_before_a_reset(
    fleet: Fleet, history: History, reason: str
) -> None:
    """The old version may be served meanwhile, but not to whoever asks for more than it has."""
    await history.write(["ana"], lambda c: add_image(c, "ana", "one"))
    await fleet.read("ana")
    bookmark = await change(history, "ana", reason)

    try:
        answer = await read_now(fleet, "ana", bookmark)
    except (Seeding, Behind, Retryable):
        answer = await fleet.read("ana", bookmark)
    assert not bookmark.is_after(*position(answer.cursor)), f"asked for {bookmark}, got {position(answer.cursor)}"


@pytest.mark.parametrize("reason", ["bulk", "horizon"])
async def test_sync_comes_to_the_head_also_through_a_reset(fleet: Fleet, history: History, reason: str) -> None:
    """Whoever syncs is told the position that the replica has then, and it is not the one of before. mission: 133"""
    await history.write(["ana"], lambda c: add_image(c, "ana", "one"))
    await fleet.read("ana")
    bookmark = await change(history, "ana", reason)

    cursor, _ = await fleet.replicas.sync("ana")

    assert position(cursor) == bookmark
    assert fleet.replicas.peek("ana", ALL, bookmark) is not None


async def change(history: History, user: str, reason: str) -> Bookmark:
    """A write after which a replica of `user` has to be made anew for `reason`; answers its bookmark."""
    if reason == "bulk":
        return (await history.write([user], lambda c: add_many(c, user)))[1]  # type: ignore[no-any-return]
    _, bookmark = await history.write([user], lambda c: add_image(c, user, "after"))
    async with history.primary.connection() as connection:
        await connection.execute("update sync_user set horizon = version, horizon_nonce = nonce")
        await connection.execute("delete from change_log where user_id = $1", user)
    return bookmark  # type: ignore[no-any-return]


async def add_many(connection: Any, user: str) -> None:
    await connection.execute(
        "insert into images (owner_id, object_key, content_type, size_bytes, model) "
        "select $1, gen_random_uuid()::text, 'image/png', 7, 'm' from generate_series(1, 501)",
        user,
    )


async def test_closing_ends_seeds_and_pulls(fleet: Fleet, primary: Primary) -> None:
    before = asyncio.all_tasks()
    await fleet.read("ana")
    async with held(primary), held(primary, "images"):
        with pytest.raises(Seeding):
            await read_now(fleet, "bob")
        fleet.replicas.poke("ana", await _beyond(fleet, "ana"))
        await fleet.replicas.life.close_all()
        assert (fleet.replicas.active_count, fleet.replicas.seeding_count) == (0, 0)

    await ended(asyncio.all_tasks() - before)
    assert fleet.staged() == []


async def _beyond(fleet: Fleet, user: str) -> Bookmark:
    at = position((await fleet.read(user)).cursor)
    return at._replace(version=at.version + 1)
