"""Sync: what a replica shows is what the user had at the version it names, whatever happens in between."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from actors import sync as sync_module
from actors.errors import CallError, Seeding
from actors.messages import Event
from actors.replicas import Answer
from store.epoch import Bookmark
from store.gallery import GalleryQuery, encode_query
from store.primary import Connection, Primary
from tests.actors.fleet import ALL, Fleet, Gate, History, add_image, held, position, shown
from tests.world import until


async def pulled(fleet: Fleet, history: History, user: str) -> Answer:
    """`user` after one pull, checked."""
    await fleet.replicas.sync(user)
    answer = await fleet.read(user)
    history.check(user, answer)
    assert position(answer.cursor) == await history.head(user)
    return answer


def prompts(answer: Answer) -> list[str]:
    return [image["prompt"] for image in shown(answer)]


# --- what a pull brings -----------------------------------------------------------------------------------------


async def test_a_pull_brings_only_what_changed_since_the_cursor(fleet: Fleet, history: History) -> None:
    """mission: 133, 134, 135, 136, 138, 140"""
    ids = [(await history.write(["ana"], lambda c, n=n: add_image(c, "ana", f"{n}")))[0] for n in range(10)]
    await pulled(fleet, history, "ana")

    await history.write(["ana"], lambda c: c.execute("delete from images where id = $1::uuid", ids[0]))
    await history.write(["ana"], lambda c: c.execute("update images set starred = true where id = $1::uuid", ids[1]))
    await history.write(["ana"], lambda c: add_image(c, "ana", "new"))
    await history.write(["ana"], lambda c: c.execute("update images set starred = false where id = $1::uuid", ids[1]))
    cursor, applied = await fleet.replicas.sync("ana")

    assert applied == 3  # four versions of three rows
    assert prompts(await pulled(fleet, history, "ana")) == ["new", *map(str, range(9, 0, -1))]
    assert (await fleet.replicas.sync("ana")) == (cursor, 0)
    assert fleet.metrics.seeds == 1


async def test_visibility_and_trash_move_rows_between_lists(fleet: Fleet, history: History) -> None:
    """mission: 135"""
    image, _ = await history.write(["ana"], lambda c: add_image(c, "ana", "one"))
    assert shown(await pulled(fleet, history, "ana"))[0]["visibility"] == "unlisted"

    await history.write(["ana"], lambda c: c.execute("update images set visibility = 'public'"))
    assert shown(await pulled(fleet, history, "ana"))[0]["visibility"] == "public"

    await history.write(["ana"], lambda c: c.execute("update images set trashed_at = now() where id = $1::uuid", image))
    assert shown(await pulled(fleet, history, "ana")) == []


async def test_an_image_that_changes_its_owner_disappears_for_one_and_appears_for_the_other(
    fleet: Fleet, history: History
) -> None:
    """mission: 141"""
    image, _ = await history.write(["ana"], lambda c: add_image(c, "ana", "moves"))
    await history.write(["bob"], lambda c: add_image(c, "bob", "stays"))
    await pulled(fleet, history, "ana")
    await pulled(fleet, history, "bob")

    for owner, expected in (("bob", ([], ["stays", "moves"])), ("ana", (["moves"], ["stays"]))):
        await history.write(
            ["ana", "bob"],
            lambda c, owner=owner: c.execute("update images set owner_id = $2 where id = $1::uuid", image, owner),
        )
        assert prompts(await pulled(fleet, history, "ana")) == expected[0]
        assert prompts(await pulled(fleet, history, "bob")) == expected[1]
    assert fleet.metrics.seeds == 2


async def test_an_id_that_is_deleted_and_inserted_again_is_one_row(fleet: Fleet, history: History) -> None:
    """Also when the second owner is another user, and when both happen in one transaction."""
    image = uuid.uuid4()
    await history.write(["ana"], lambda c: add_image(c, "ana", "first", image=image))
    await pulled(fleet, history, "ana")
    await pulled(fleet, history, "bob")

    async def again(connection: Connection) -> None:
        await connection.execute("delete from images where id = $1", image)
        await add_image(connection, "ana", "second", image=image)

    await history.write(["ana"], again)
    assert prompts(await pulled(fleet, history, "ana")) == ["second"]

    async def elsewhere(connection: Connection) -> None:
        await connection.execute("delete from images where id = $1", image)
        await add_image(connection, "bob", "third", image=image)

    await history.write(["ana", "bob"], elsewhere)
    assert prompts(await pulled(fleet, history, "ana")) == []
    assert prompts(await pulled(fleet, history, "bob")) == ["third"]


async def test_a_rollback_brings_nothing(fleet: Fleet, history: History, primary: Primary) -> None:
    await history.write(["ana"], lambda c: add_image(c, "ana", "one"))
    before = await pulled(fleet, history, "ana")

    async with primary.connection() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await add_image(connection, "ana", "never")
        await fleet.replicas.sync("ana")
        await transaction.rollback()

    assert (await pulled(fleet, history, "ana")).cursor == before.cursor


async def test_a_row_of_a_kind_that_this_host_does_not_know_leaves_nothing_half_applied(
    fleet: Fleet, history: History
) -> None:
    """The primary was migrated by a newer release while this host runs on."""
    await history.write(["ana"], lambda c: add_image(c, "ana", "one"))
    await pulled(fleet, history, "ana")

    async def newer(connection: Connection) -> None:
        await add_image(connection, "ana", "two")
        await connection.execute(
            "insert into change_row (nonce, user_id, kind, row_id, first) "
            "values (split_part(current_setting('peruse.tx'), '/', 2)::uuid, 'ana', 'zebras', 'z', false)"
        )

    await history.write(["ana"], newer)
    await asyncio.gather(fleet.replicas.sync("ana"), return_exceptions=True)

    history.check("ana", await fleet.read("ana", query=encode_query(GalleryQuery(limit=199))))


# --- joining ----------------------------------------------------------------------------------------------------


async def test_callers_join_only_a_pull_that_is_not_sent_yet(fleet: Fleet, primary: Primary, history: History) -> None:
    """One is under way, one is waiting for it: everybody who comes now shares the second."""
    await history.write(["ana"], lambda c: add_image(c, "ana", "one"))
    await fleet.read("ana")
    pulls = fleet.metrics.pulls

    async with held(primary) as hold:
        first = asyncio.create_task(fleet.replicas.sync("ana"))
        await until(hold.waiting)
        later = [asyncio.create_task(fleet.replicas.sync("ana")) for _ in range(20)]
        await asyncio.sleep(0)
        assert await hold.waiting() == 1

    await asyncio.gather(first, *later)
    assert fleet.metrics.pulls == pulls + 2


async def test_a_writer_sees_its_own_write_after_its_own_pull(fleet: Fleet, history: History) -> None:
    """Two hundred rounds of eight writers at random moments: none joins a pull that was sent before its commit.

    mission: 139, 140
    """
    random = Random(5)
    await fleet.read("ana")
    rounds = iter(range(200))

    async def write_and_look() -> None:
        for n in rounds:
            for _ in range(random.randrange(4)):
                await asyncio.sleep(0)
            _, bookmark = await history.write(["ana"], lambda c, n=n: add_image(c, "ana", f"{n}"))
            for _ in range(random.randrange(4)):
                await asyncio.sleep(0)
            if random.random() < 0.5:
                cursor, _ = await fleet.replicas.sync("ana")
            else:
                answer = await fleet.read("ana", bookmark)
                history.check("ana", answer)
                cursor = answer.cursor
            assert not bookmark.is_after(cursor.epoch, cursor.version), f"{bookmark} was missed at {cursor}"

    await asyncio.gather(*(write_and_look() for _ in range(8)))

    await pulled(fleet, history, "ana")


async def test_a_caller_that_gives_up_does_not_end_the_pull_of_the_others(
    fleet: Fleet, primary: Primary, history: History
) -> None:
    await fleet.read("ana")
    _, bookmark = await history.write(["ana"], lambda c: add_image(c, "ana", "one"))
    async with held(primary) as hold:
        impatient = asyncio.create_task(fleet.read("ana", bookmark))
        patient = asyncio.create_task(fleet.read("ana", bookmark))
        await until(hold.waiting)
        impatient.cancel()
        with pytest.raises(asyncio.CancelledError):
            await impatient

    assert position((await patient).cursor) == bookmark


# --- pokes and sweeps -------------------------------------------------------------------------------------------


async def test_a_sweep_finds_what_was_written_by_plain_sql(fleet: Fleet, primary: Primary) -> None:
    """Nobody poked; only those that changed are pulled. mission: 133, 134"""
    for user in ("ana", "bob"):
        await fleet.read(user)
    await fleet.replicas.sweep()
    pulls = fleet.metrics.pulls
    async with primary.connection() as connection:
        await add_image(connection, "ana", "by psql")

    await fleet.replicas.sweep()
    await until(lambda: fleet.metrics.pulls > pulls)

    assert prompts(await fleet.read("ana")) == ["by psql"]
    assert fleet.metrics.pulls == pulls + 1
    await fleet.replicas.sweep()
    assert fleet.metrics.pulls == pulls + 1


async def test_a_sweep_of_many_asks_for_some_at_a_time(
    fleet: Fleet, primary: Primary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And misses none of them, nor of those who are watched and sleep; each is as young as its own question.

    mission: 134
    """
    monkeypatch.setattr(sync_module, "_BATCH", 3)
    users = [f"user-{n}" for n in range(10)]
    for user in users:
        await fleet.read(user)
    assert {active.replica.cursor.version for active in fleet.replicas.life.active.values()} == {0}
    heard: list[str] = []
    for user in users[7:]:
        at = position((await fleet.read(user)).cursor)
        fleet.replicas.passivate(user)
        fleet.replicas.watch(user, Ear(heard), at)
    async with primary.connection() as connection:
        for user in users[::3]:
            await add_image(connection, user, "plain")
    asked: list[int] = []
    real = sync_module.heads_of

    async def heads_of(connection: Connection, names: list[str]) -> Any:
        asked.append(len(names))
        fleet.clock.move(0.25)
        return await real(connection, names)

    monkeypatch.setattr(sync_module, "heads_of", heads_of)
    fleet.clock.move(10)

    await fleet.replicas.sweep()

    assert asked == [3, 3, 1, 3]
    active = fleet.replicas.life.active
    await until(lambda: all(active[user].replica.cursor.version > 0 for user in ("user-0", "user-3", "user-6")))
    assert [round(fleet.clock.now - active[f"user-{n}"].verified_at, 2) for n in (1, 2, 4, 5)] == [1.0, 1.0, 0.75, 0.75]
    await until(lambda: "user-9" in heard)


class Ear:
    """Hears who has changed."""

    def __init__(self, heard: list[str]) -> None:
        self._heard = heard

    def tell(self, event: Event) -> None:
        self._heard.append(event.user)


async def test_a_sweep_that_finds_nothing_makes_replicas_younger(fleet: Fleet) -> None:
    """Age counts from the moment at which the sweep was sent."""
    await fleet.read("ana")
    fleet.clock.move(7.2)
    assert (await fleet.read("ana")).age_s == 8

    await fleet.replicas.sweep()

    assert (await fleet.read("ana")).age_s == 0
    assert fleet.replicas.lag_s == 0.0


async def test_age_counts_from_the_moment_at_which_the_primary_was_asked(
    fleet: Fleet, primary: Primary, history: History
) -> None:
    """What is written while the answer is on its way is not in it."""
    await fleet.read("ana")
    for ask in (fleet.replicas.sweep, lambda: fleet.replicas.sync("ana")):
        fleet.clock.move(10)
        async with held(primary, "sync_user") as hold:
            asking = asyncio.ensure_future(ask())
            await until(hold.waiting)
            fleet.clock.move(3)
        await asking
        assert (await fleet.read("ana")).age_s == 3


async def test_a_poke_that_is_doubled_late_or_wrong_does_no_harm(fleet: Fleet, history: History) -> None:
    """mission: 140"""
    await fleet.read("ana")
    pulls = fleet.metrics.pulls
    bookmarks = [
        (await history.write(["ana"], lambda c, n=n: add_image(c, "ana", f"{n}")))[1] for n in range(3)
    ]  # fmt: skip

    for bookmark in (*bookmarks, *bookmarks):
        fleet.replicas.poke("ana", bookmark)
    fleet.replicas.poke("nobody", bookmarks[0])
    await until(lambda: fleet.replicas.peek("ana", ALL, bookmarks[-1]))
    assert fleet.metrics.pulls == pulls + 1

    for bookmark in bookmarks:
        fleet.replicas.poke("ana", bookmark)
    assert fleet.metrics.pulls == pulls + 1
    fleet.replicas.poke("ana", bookmarks[-1]._replace(version=99))  # a version that never was
    await until(lambda: fleet.metrics.pulls == pulls + 2)
    history.check("ana", await fleet.read("ana"))
    assert fleet.metrics.seeds == 1


async def test_a_poke_without_the_primary_does_no_harm(gate: Gate, history: History, tmp_path: Path) -> None:
    fleet = await Fleet(tmp_path / "replicas", gate.url).open()
    await fleet.read("ana")
    _, bookmark = await history.write(["ana"], lambda c: add_image(c, "ana", "one"))
    await gate.shut()

    fleet.replicas.poke("ana", bookmark)
    await until(lambda: fleet.metrics.pull_failures == 1)
    assert (await fleet.read("ana")).cursor.version == 0

    await gate.open()
    assert position((await fleet.read("ana", bookmark)).cursor) == bookmark
    await fleet.close()


async def test_a_full_disk_is_served_by_the_primary_until_there_is_room(fleet: Fleet, history: History) -> None:
    """Neither a crash loop nor an old answer."""
    await history.write(["ana"], lambda c: add_image(c, "ana", "one"))
    await fleet.read("ana")
    connection = fleet.replicas._active["ana"].replica._connection
    (pages,) = connection.execute("pragma page_count").fetchone()
    connection.execute(f"pragma max_page_count = {pages}")

    async def much(c: Connection) -> None:
        for n in range(30):
            await add_image(c, "ana", f"{n} " + "x" * 2000)

    _, bookmark = await history.write(["ana"], much)
    with pytest.raises(CallError):
        await fleet.replicas.read("ana", ALL, bookmark)
    assert fleet.replicas.peek("ana", ALL, None) is None
    with pytest.raises(CallError, match="there is no room for changes of ana"):
        await fleet.replicas.read("ana", ALL, None)
    assert fleet.metrics.seeds == 1

    connection.execute(f"pragma max_page_count = {pages * 100}")
    await fleet.replicas.sweep()
    await until(lambda: fleet.replicas.peek("ana", ALL, bookmark))
    history.check("ana", await fleet.read("ana"))


# --- resets -----------------------------------------------------------------------------------------------------

_FALSE = {
    "epoch": "update sync_epoch set id = id + 1",
    "ahead": "with gone as (delete from change_log where user_id = 'ana' and version = 3) "
    "update sync_user set version = 2, nonce = (select nonce from change_log where user_id = 'ana' and version = 2) "
    "where user_id = 'ana'",
    "nonce": "with other as (update change_log set nonce = gen_random_uuid() where user_id = 'ana' and version = 3 "
    "returning nonce) update sync_user set nonce = (select nonce from other) where user_id = 'ana'",
}


@pytest.mark.parametrize("reason", _FALSE)
@pytest.mark.parametrize("seen_by", ["sweep", "poke", "read"])
async def test_a_replica_of_a_history_that_is_no_more_stops_serving_at_once(
    fleet: Fleet, primary: Primary, history: History, reason: str, seen_by: str
) -> None:
    """What it has may never have happened: the next answer is Seeding, never its rows."""
    for n in range(3):
        await history.write(["ana"], lambda c, n=n: add_image(c, "ana", f"{n}"))
    at = position((await fleet.read("ana")).cursor)
    old = fleet.file("ana")
    async with primary.connection() as connection:
        await connection.execute(_FALSE[reason])
        await connection.execute("alter table images disable trigger all; delete from images where prompt = '2'")

    async with fleet.seeds.connection(), fleet.seeds.connection():  # the seed has to wait for one
        if seen_by == "sweep":
            await fleet.replicas.sweep()
        elif seen_by == "poke":
            fleet.replicas.poke("ana", at._replace(version=at.version + 1))
        else:
            with pytest.raises(Seeding):
                await fleet.replicas.read("ana", ALL, at._replace(version=at.version + 1))
        await until(lambda: fleet.metrics.resets == {reason: 1})
        assert fleet.replicas.peek("ana", ALL, None) is None
        with pytest.raises(Seeding):
            await fleet.replicas.read("ana", ALL, None)
        assert not old.exists()

    answer = await fleet.read("ana")
    assert prompts(answer) == ["1", "0"]
    assert fleet.metrics.seeds == 2


async def test_a_new_timeline_alone_keeps_the_file(fleet: Fleet, history: History, primary: Primary) -> None:
    """A clean failover: the nonce proves the history, and the file adopts the epoch."""
    await history.write(["ana"], lambda c: add_image(c, "ana", "one"))
    await fleet.read("ana")
    fleet.clock.move(61)
    fleet.replicas.life.close_idle()
    async with primary.connection() as connection:
        await connection.execute(
            "create or replace function sync_epoch_now() returns text language sql stable "
            "as $$ select e.id || '-7' from sync_epoch e $$"
        )

    answer = await fleet.read("ana")

    assert answer.cursor.epoch.endswith("-7")
    assert prompts(answer) == ["one"]
    assert (fleet.metrics.seeds, fleet.metrics.resets) == (1, {})


@pytest.mark.parametrize("reason", ["bulk", "horizon"])
async def test_an_old_but_true_replica_serves_while_another_is_made(
    fleet: Fleet, history: History, reason: str
) -> None:
    """Whoever asks for no more than it has is answered at once, and then by the new one."""
    await history.write(["ana"], lambda c: add_image(c, "ana", "one"))
    before = await fleet.read("ana")
    old = fleet.file("ana")
    await (_bulk(history) if reason == "bulk" else _trim(history))

    async with fleet.seeds.connection(), fleet.seeds.connection():  # the seed has to wait for one
        for _ in range(3):
            await fleet.replicas.sweep()
            await until(lambda: fleet.metrics.resets == {reason: 1})  # once, however often it is found old
        assert fleet.replicas.seeding_count == 1
        answer = fleet.replicas.peek("ana", ALL, None)
        assert answer is not None
        assert (answer.cursor, answer.page.body) == (before.cursor, before.page.body)
        history.check("ana", answer)

    head = await history.head("ana")
    await until(lambda: fleet.replicas.seeding_count == 0 and fleet.metrics.seeds == 2)
    after = await fleet.read("ana", head)
    assert position(after.cursor) == head
    assert fleet.metrics.resets == {reason: 1}
    assert fleet.metrics.seeds == 2
    assert not old.exists()
    assert fleet.replicas.active_count == 1


async def _bulk(history: History) -> Bookmark:
    return (  # type: ignore[no-any-return]
        await history.write(
            ["ana"],
            lambda c: c.execute(
                "insert into images (owner_id, object_key, content_type, size_bytes, model) "
                "select 'ana', gen_random_uuid()::text, 'image/png', 7, 'm' from generate_series(1, 501)"
            ),
        )
    )[1]


async def _trim(history: History) -> Bookmark:
    """Write, and trim the log as retention does, to the head."""
    _, bookmark = await history.write(["ana"], lambda c: add_image(c, "ana", "two"))
    async with history.primary.connection() as connection:
        await connection.execute("update sync_user set horizon = version, horizon_nonce = nonce")
        await connection.execute("delete from change_log where user_id = 'ana'")
    return bookmark  # type: ignore[no-any-return]


async def test_an_idle_user_on_the_horizon_is_not_made_again(fleet: Fleet, history: History) -> None:
    """All of their log is trimmed, and they are where it ends."""
    await history.write(["ana"], lambda c: add_image(c, "ana", "one"))
    await _trim(history)
    await fleet.read("ana")

    await history.write(["ana"], lambda c: add_image(c, "ana", "three"))

    assert prompts(await pulled(fleet, history, "ana")) == ["three", "two", "one"]
    assert (fleet.metrics.seeds, fleet.metrics.resets) == (1, {})


# --- everything at once -----------------------------------------------------------------------------------------


class Driver:
    """Does random things to two users and their replicas, and checks every answer that it gets."""

    def __init__(self, fleet: Fleet, history: History, seed: int) -> None:
        self.fleet, self.history, self.random = fleet, history, Random(seed)
        self.images: list[str] = []
        self.last: dict[str, Bookmark] = {}
        self.written: dict[str, Bookmark] = {}
        self.done: list[str] = []
        self.reads = 0
        self.steps: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (20, self.insert), (10, self.update), (8, self.delete), (6, self.move), (4, self.several),
            (25, self.read), (10, self.read_own_write), (8, self.sync), (8, self.sweep), (6, self.poke),
            (4, self.passivate), (3, self.reopen), (3, self.crash), (3, self.corrupt), (2, self.trim), (1, self.rotate),
        ]  # fmt: skip

    def user(self) -> str:
        return self.random.choice(("ana", "bob"))

    async def run(self, steps: int) -> None:
        weights = [weight for weight, _ in self.steps]
        for _ in range(steps):
            (_, step) = self.random.choices(self.steps, weights)[0]
            self.done.append(step.__name__)
            await step()

    async def write(self, users: list[str], work: Callable[[Connection], Awaitable[Any]]) -> Any:
        result, bookmark = await self.history.write(users, work)
        self.written[users[0]] = bookmark
        if self.random.random() < 0.5:  # the other pokes are lost
            self.fleet.replicas.poke(users[0], bookmark)
        return result

    async def insert(self) -> None:
        user = self.user()
        self.images.append(await self.write([user], lambda c: add_image(c, user, str(len(self.done)))))

    async def update(self) -> None:
        if self.images:
            image, prompt = self.random.choice(self.images), str(len(self.done))
            await self.write(
                ["ana", "bob"],
                lambda c: c.execute("update images set prompt = $2 where id = $1::uuid", image, prompt),
            )

    async def delete(self) -> None:
        if self.images:
            image = self.images.pop(self.random.randrange(len(self.images)))
            await self.write(["ana", "bob"], lambda c: c.execute("delete from images where id = $1::uuid", image))

    async def move(self) -> None:
        if self.images:
            image, user = self.random.choice(self.images), self.user()
            await self.write(
                ["ana", "bob"],
                lambda c: c.execute("update images set owner_id = $2 where id = $1::uuid", image, user),
            )

    async def several(self) -> None:
        """Rows of both users in one transaction."""

        async def work(connection: Connection) -> list[str]:
            made = [await add_image(connection, user, "pair") for user in ("bob", "ana", "bob")]
            await connection.execute("update images set starred = not starred where owner_id = 'ana'")
            return made

        self.images += await self.write(["ana", "bob"], work)

    async def read(self) -> None:
        await self.check(self.user(), None)

    async def read_own_write(self) -> None:
        user = self.user()
        await self.check(user, self.written.get(user))

    async def check(self, user: str, floor: Bookmark | None) -> None:
        self.reads += 1
        answer = await self.fleet.read(user, floor)
        self.history.check(user, answer)
        at = position(answer.cursor)
        if floor is not None:
            assert not floor.is_after(*at), f"{user} asked for {floor} and got {at}"
        before = self.last.get(user)
        assert before is None or not before.is_after(*at), f"{user} went back from {before} to {at}"
        self.last[user] = at

    async def sync(self) -> None:
        await self.fleet.replicas.sync(self.user())

    async def sweep(self) -> None:
        await self.fleet.replicas.sweep()

    async def poke(self) -> None:
        """Late, doubled, or of a version that is not there."""
        user = self.user()
        if user in self.written:
            at = self.written[user]
            self.fleet.replicas.poke(user, at._replace(version=at.version + self.random.randrange(2)))

    async def passivate(self) -> None:
        self.fleet.clock.move(61)
        self.fleet.replicas.life.close_idle(at_most=self.random.randint(1, 2))

    async def reopen(self) -> None:
        await self.fleet.close()
        await self.fleet.open()

    async def crash(self) -> None:
        await self.fleet.crash()
        await self.fleet.open()

    async def corrupt(self) -> None:
        path = self.fleet.folder.find(self.user())
        if path is not None:
            size = path.stat().st_size
            start = self.random.choice((0, 4096))
            if size > start:
                with path.open("r+b") as file:
                    file.seek(start)
                    file.write(b"\xff" * (size - start))

    async def trim(self) -> None:
        """As retention does, to the head of one user."""
        async with self.history.primary.connection() as connection, connection.transaction():
            user = self.user()
            await connection.execute(
                "update sync_user set horizon = version, horizon_nonce = nonce where user_id = $1", user
            )
            await connection.execute("delete from change_log where user_id = $1", user)

    async def rotate(self) -> None:
        async with self.history.primary.connection() as connection:
            await connection.execute("update sync_epoch set id = id + 1")
        for user in ("ana", "bob"):  # the same rows and versions, under a new name
            await self.write([user], lambda c, user=user: add_image(c, user, "after"))

    async def converge(self) -> None:
        """Writes and faults have stopped: sweeps alone bring everything to the head."""
        for user in ("ana", "bob"):
            await self.fleet.read(user)
            head = await self.history.head(user)

            async def is_there(user: str = user, head: Bookmark = head) -> bool:
                await self.fleet.replicas.sweep()
                answer = self.fleet.replicas.peek(user, ALL, head)
                return answer is not None and position(answer.cursor) == head

            await until(is_there, timeout_s=5)
            self.history.check(user, await self.fleet.read(user, head))


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_every_answer_is_a_version_that_was_and_versions_never_go_back(
    fleet: Fleet, history: History, seed: int
) -> None:
    """Four hundred random writes, reads, losses and damages: and in the end everything is equal. mission: 133, 141"""
    driver = Driver(fleet, history, seed)
    for user in ("ana", "bob"):
        await history.write([user], lambda c, user=user: add_image(c, user, "first"))

    try:
        await driver.run(400)
        await driver.converge()
    except Exception as error:
        error.add_note(f"seed {seed}, last steps: {driver.done[-12:]}")
        raise

    assert driver.reads > 80
    assert fleet.metrics.seeds > 5
