"""Replicas at rest: without a connection they serve what they kept, are found to be at head or behind, and connect
again for everything else; and many that are opened at once are looked at together."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import sync as sync_module
from actors.budget import sqlite_bytes
from actors.errors import ReplicaBroken, Seeding
from actors.messages import Outcome
from actors.replica import Replica
from store.changes import Cursor
from store.errors import PrimaryUnavailable
from store.gallery import GalleryQuery, encode_query
from store.primary import Connection, Primary
from tests.actors.fleet import ALL, Fleet, History, add_image, held, position, shown
from tests.actors.test_replica import VERSION, cursor_at, image, make, prompts
from tests.world import until

OTHER = encode_query(GalleryQuery(limit=7))


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    """With two images and its first page kept."""
    opened = Replica.open(make(tmp_path / "ana.1.db"), "ana", VERSION)
    opened.apply(cursor_at(2), [image(1, "a lighthouse"), image(2, "a harbour")])
    opened.read(ALL)
    yield opened
    opened.close()


def handles(path: Path) -> list[str]:
    """The files of the replica at `path` that this process has open."""
    found = [os.readlink(handle) for handle in Path("/proc/self/fd").iterdir() if handle.exists()]
    return [name for name in found if name.startswith(str(path))]


# --- one replica ------------------------------------------------------------------------------------------------


def test_a_resting_replica_has_no_handle_and_serves_what_it_kept(replica: Replica) -> None:
    """Its file is whole, with nothing beside it. mission: 129, 130"""
    page = replica.read(ALL)
    assert handles(replica.path)

    replica.rest()

    assert replica.is_resting
    assert handles(replica.path) == []
    assert sorted(replica.path.parent.iterdir()) == [replica.path]
    assert replica.read(ALL) is page
    assert replica.is_resting


def test_what_is_not_at_hand_is_read_from_the_file_again(replica: Replica) -> None:
    """And what is applied after a rest is in the pages, and in the file."""
    replica.rest()
    assert prompts(replica, OTHER) == ["a harbour", "a lighthouse"]
    assert not replica.is_resting

    replica.rest()
    replica.apply(cursor_at(3), [image(3, "a bridge")])
    replica.rest()

    assert prompts(replica) == ["a bridge", "a harbour", "a lighthouse"]
    assert replica.cursor == cursor_at(3)
    replica.close()
    again = Replica.open(replica.path, "ana", VERSION)
    assert (again.cursor, prompts(again)) == (cursor_at(3), ["a bridge", "a harbour", "a lighthouse"])
    again.close()


def test_a_file_that_another_hand_changed_meanwhile_is_not_used(replica: Replica) -> None:
    """What it holds would be shown under a position that is not its own."""
    replica.rest()
    other = sqlite3.connect(replica.path)
    other.execute("update meta set version = version - 1")
    other.commit()
    other.close()

    with pytest.raises(ReplicaBroken, match="changed by another hand"):
        replica.read(OTHER)
    with pytest.raises(ReplicaBroken, match="changed by another hand"):
        replica.apply(cursor_at(3), [])
    assert handles(replica.path) == []


@pytest.mark.parametrize("damage", [None, b"", b"\xff" * 20_000])
def test_a_file_that_was_damaged_or_went_meanwhile_is_broken(replica: Replica, damage: bytes | None) -> None:
    replica.rest()
    replica.path.unlink()
    if damage is not None:
        replica.path.write_bytes(damage)

    with pytest.raises(ReplicaBroken):
        replica.read(OTHER)
    assert replica.is_resting


def test_packed_pages_are_the_same_in_less_room(replica: Replica) -> None:
    """The same bytes under the same stamp, so that nobody has to be sent them again."""
    replica.apply(cursor_at(3), [image(n, "a harbour at dawn") for n in range(3, 60)])
    page = replica.read(ALL)
    body, stamp, size = page.body, page.stamp, replica.kept_bytes

    replica.pack()
    replica.pack()

    assert replica.kept_bytes == page.size < size / 3
    assert replica.read(ALL) is page
    assert (page.body, page.stamp) == (body, stamp)
    replica.apply(cursor_at(4), [image(60, "new")])
    assert replica.kept_bytes == 0
    assert prompts(replica)[0] == "new"


def test_a_file_is_as_old_as_its_replica_was_when_it_closed(replica: Replica) -> None:
    """Also when it had been at head for long after its last write, at rest."""
    replica.synced_at = 1_700_000_000.0
    replica.rest()
    assert not replica.path.with_name(f"{replica.path.name}-wal").exists()
    replica.synced_at = 1_700_003_600.5
    replica.close()

    again = Replica.open(replica.path, "ana", VERSION)
    assert again.synced_at == 1_700_003_600.5
    again.close()


def test_a_file_that_was_not_closed_is_as_old_as_what_it_says_itself(replica: Replica, tmp_path: Path) -> None:
    """The time of the file is that of some write, which may be later than what it holds was the head."""
    replica.synced_at = 1_700_000_000.0
    replica.rest()
    replica.apply(cursor_at(3), [image(3)])
    killed = tmp_path / "killed.1.db"
    for suffix in ("", "-wal"):
        killed.with_name(killed.name + suffix).write_bytes(Path(f"{replica.path}{suffix}").read_bytes())

    again = Replica.open(killed, "ana", VERSION)
    assert (again.cursor, again.synced_at) == (cursor_at(3), 1_700_000_000.0)
    again.close()


# --- a host with more users than it has room for -----------------------------------------------------------------


async def crowd(database: str, primary: Primary, folder: Path, history: History, count: int) -> Fleet:
    """A host with room for two connections and the pages of many; each of `count` users has been read."""
    fleet = await Fleet(folder / "replicas", database, max_bytes=sqlite_bytes() + 1_000_000).open()
    for n in range(count):
        await history.write([f"user-{n}"], lambda c, n=n: add_images_of(c, n))
        await fleet.read(f"user-{n}")
    return fleet


async def add_images_of(connection: Connection, n: int) -> None:
    for number in range(3):
        await add_image(connection, f"user-{n}", f"{number} of {n}")


def resting(fleet: Fleet) -> set[str]:
    return {user for user, active in fleet.replicas.life.active.items() if active.replica.is_resting}


async def test_connections_go_first_and_nobody_is_closed_for_them(
    database: str, primary: Primary, history: History, tmp_path: Path
) -> None:
    """All are answered from what was kept, without a file, a pull or the primary. mission: 129, 130"""
    fleet = await crowd(database, primary, tmp_path, history, 30)
    before = fleet.metrics.activations, fleet.metrics.pulls, sqlite_bytes()

    for _ in range(3):
        for n in range(30):
            answer = fleet.replicas.peek(f"user-{n}", ALL, None)
            assert answer is not None
            history.check(f"user-{n}", answer)

    assert 20 <= len(resting(fleet)) < 30
    assert "user-29" not in resting(fleet)
    assert (fleet.metrics.activations, fleet.metrics.pulls, sqlite_bytes()) == before
    assert fleet.metrics.passivations == {}
    assert not fleet.replicas.life.budget.is_over()
    await fleet.close()


async def test_a_resting_replica_is_found_behind_by_the_sweep_and_by_its_readers(
    database: str, primary: Primary, history: History, tmp_path: Path
) -> None:
    """It is as fresh as one with a connection. mission: 134, 139, 140"""
    fleet = await crowd(database, primary, tmp_path, history, 30)
    users = sorted(resting(fleet))[:4]
    for user in users:
        await history.write([user], lambda c, user=user: add_image(c, user, "swept"))

    await fleet.replicas.sweep()
    await until(lambda: all(fleet.replicas.life.active[user].replica.cursor.version == 2 for user in users))

    for user in users:
        answer = await fleet.read(user)
        history.check(user, answer)
        assert [image["prompt"] for image in shown(answer)].count("swept") == 1
        fleet.replicas.life.active[user].replica.rest()
        _, bookmark = await history.write([user], lambda c, user=user: add_image(c, user, "asked for"))
        answer = await fleet.read(user, bookmark)
        history.check(user, answer)
        assert position(answer.cursor) == bookmark
    await fleet.close()


async def test_a_file_that_breaks_at_rest_is_made_again(fleet: Fleet, history: History) -> None:
    """By the first who needs it; until then its pages are served, which were true."""
    await history.write(["ana"], lambda c: add_image(c, "ana", "one"))
    await fleet.read("ana")
    fleet.replicas.life.active["ana"].replica.rest()
    fleet.file("ana").write_bytes(b"\xff" * 9000)
    history.check("ana", await fleet.read("ana"))

    with pytest.raises(Seeding):
        fleet.replicas.peek("ana", OTHER, None) or await fleet.replicas.read("ana", OTHER, None)
    await until(lambda: fleet.replicas.seeding_count == 0)

    history.check("ana", await fleet.read("ana"))
    assert (fleet.metrics.broken, fleet.metrics.seeds) == (1, 2)


async def test_pages_are_packed_before_a_replica_closes(
    database: str, primary: Primary, history: History, tmp_path: Path
) -> None:
    """The one that was read longest ago first; what is read is the same."""
    fleet = await crowd(database, primary, tmp_path, history, 12)
    for n in range(12):
        await history.write([f"user-{n}"], lambda c, n=n: add_many(c, f"user-{n}"))
        await fleet.read(f"user-{n}", await history.head(f"user-{n}"))
    budget, active = fleet.replicas.life.budget, fleet.replicas.life.active
    fleet.replicas.peek("user-0", ALL, None)
    while len(resting(fleet)) < 12:
        budget.max_bytes = budget.used_bytes
        assert budget.ease()
    sizes = {user: one.replica.kept_bytes for user, one in active.items()}

    budget.max_bytes = budget.used_bytes - max(sizes.values())
    assert fleet.replicas.life.close_idle() == 0

    packed = {user for user, one in active.items() if one.replica.kept_bytes < sizes[user] / 2}
    assert "user-1" in packed
    assert "user-0" not in packed
    for user in active:
        answer = fleet.replicas.peek(user, ALL, None)
        assert answer is not None
        history.check(user, answer)
    budget.max_bytes = 0
    assert fleet.replicas.life.close_idle() == 12
    await fleet.close()


async def add_many(connection: Any, user: str) -> None:
    for n in range(40):
        await add_image(connection, user, f"{n}")


# --- opened at once -----------------------------------------------------------------------------------------------


class Looks:
    """What `heads_of` is asked, while it is in its place."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.asked: list[list[str]] = []
        self._real = sync_module.heads_of
        patch.setattr(sync_module, "heads_of", self._heads_of)

    async def _heads_of(self, connection: Connection, users: list[str]) -> tuple[str, dict[str, Cursor]]:
        self.asked.append(sorted(users))
        return await self._real(connection, users)


async def test_those_who_are_opened_in_one_turn_are_looked_at_in_one_statement(
    fleet: Fleet, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only those who changed while they were closed pull. mission: 129, 133"""
    users = [f"user-{n}" for n in range(20)]
    await history.write(users, lambda c: add_to_all(c, users))
    for user in users:
        await fleet.read(user)
        fleet.replicas.passivate(user)
    changed = users[3:5]
    await history.write(changed, lambda c: add_to_all(c, changed))
    looks, pulls = Looks(monkeypatch), fleet.metrics.pulls

    answers = await asyncio.gather(*(fleet.read(user) for user in users))

    for user, answer in zip(users, answers, strict=True):
        history.check(user, answer)
        assert position(answer.cursor) == await history.head(user)
        assert answer.age_s == 0
    assert looks.asked == [sorted(users)]
    assert fleet.metrics.pulls == pulls + len(changed)


async def add_to_all(connection: Connection, users: list[str]) -> None:
    for user in users:
        await add_image(connection, user, "for all")


async def test_callers_join_only_a_look_that_is_not_sent_yet(
    fleet: Fleet, primary: Primary, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One under way may have read before the caller's own write: who comes meanwhile shares the next. mission: 139"""
    users = ["ana", "bob", "cyd"]
    await history.write(users, lambda c: add_to_all(c, users))
    for user in users:
        await fleet.read(user)
        fleet.replicas.passivate(user)
    looks = Looks(monkeypatch)

    async with held(primary, "sync_user") as hold:
        first = asyncio.create_task(fleet.replicas.read("ana", ALL, None, max_wait_s=10))
        await until(hold.waiting)
        later = [asyncio.create_task(fleet.replicas.read(user, ALL, None, max_wait_s=10)) for user in users]
        await asyncio.sleep(0)
        assert looks.asked == [["ana"]]

    for user, answer in zip(["ana", *users], await asyncio.gather(first, *later), strict=True):
        history.check(user, answer)
    assert looks.asked == [["ana"], users]


async def lost(connection: Connection, users: list[str]) -> tuple[str, dict[str, Cursor]]:
    raise PrimaryUnavailable("the primary is not answering")


async def test_a_look_that_the_primary_does_not_answer_is_forgotten(
    fleet: Fleet, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All who waited for it hear of it, and the next one is asked for again. mission: 137"""
    await history.write(["ana"], lambda c: add_image(c, "ana", "one"))
    await fleet.read("ana")
    fleet.replicas.passivate("ana")
    with monkeypatch.context() as patch:
        patch.setattr(sync_module, "heads_of", lost)
        answer = await fleet.replicas.read("ana", ALL, None)
        history.check("ana", answer)
        assert answer.outcome == Outcome.STALE
    failures = fleet.metrics.pull_failures
    assert failures == 1

    fleet.replicas.passivate("ana")
    answer = await fleet.replicas.read("ana", ALL, None)
    assert (answer.outcome, fleet.metrics.pull_failures) == (Outcome.WAITED, failures)
