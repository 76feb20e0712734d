"""What readers are promised: never back in time, their own writes, and an answer whoever is away."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import freshness
from gateway.freshness import Floors
from store.embedded import EmbeddedPostgres
from store.epoch import Bookmark
from tests.gateway.asking import bookmark_of, form, given_images, ids_of, picture, replica_of, running, stored
from tests.gateway.link import PrimaryLink
from tests.world import Reply, World, add_images, until

# --- floors -----------------------------------------------------------------------------------------------------

_epochs = st.tuples(st.integers(1, 3), st.integers(1, 3)).map(lambda parts: f"{parts[0]}-{parts[1]}")
_bookmarks = st.builds(Bookmark, _epochs, st.integers(0, 5))


def order(bookmark: Bookmark) -> tuple[int, int, int]:
    first, _, second = bookmark.epoch.partition("-")
    return int(first), int(second), bookmark.version


@given(st.lists(st.tuples(st.sampled_from("ab"), _bookmarks), max_size=30))
def test_floors_never_go_back(raised: list[tuple[str, Bookmark]]) -> None:
    """A floor is the greatest of what it was raised to, per user."""
    floors = Floors()

    for number, (user, bookmark) in enumerate(raised, start=1):
        floors.raise_to(user, bookmark)
        for one in "ab":
            seen = [b for u, b in raised[:number] if u == one]
            assert floors.get(one) == (max(seen, key=order) if seen else None)


def test_floors_forget_who_was_not_raised_for_two_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """So they hold twice the most at most, and nobody active is forgotten."""
    monkeypatch.setattr(freshness, "_MAX_FLOORS", 3)
    floors = Floors()
    floors.raise_to("quiet", Bookmark("1-1", 9))

    for number in range(50):
        floors.raise_to("busy", Bookmark("1-1", number))
        floors.raise_to(f"user {number}", Bookmark("1-1", 1))
        assert floors.get("busy") == Bookmark("1-1", number)

    assert floors.get("quiet") is None
    assert len(floors._young) + len(floors._old) <= 6


def test_floor_that_is_raised_again_moves_with_the_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time alone turns them too; what is in the older half still counts."""
    floors = Floors()
    floors.raise_to("ana", Bookmark("1-1", 9))
    monkeypatch.setattr(floors, "_rotate_at", 0.0)

    floors.raise_to("ana", Bookmark("1-1", 2))

    assert floors.get("ana") == Bookmark("1-1", 9)
    monkeypatch.setattr(floors, "_rotate_at", 0.0)
    floors.raise_to("bob", Bookmark("1-1", 1))
    assert floors.get("ana") == Bookmark("1-1", 9)
    monkeypatch.setattr(floors, "_rotate_at", 0.0)
    floors.raise_to("bob", Bookmark("1-1", 1))
    assert floors.get("ana") is None


# --- who answers ------------------------------------------------------------------------------------------------


async def test_cold_user_is_answered_from_the_primary_while_the_replica_is_made(shared: World, user: str) -> None:
    """mission: 129, 148"""
    ids = await given_images(shared, user, 3)

    first = await shared.get("/api/images", user=user)
    later = await replica_of(shared, user)

    assert (first.headers["Peruse-Source"], first.headers["Peruse-Age"]) == ("seeding", "0")
    assert ids_of(first) == ids
    assert (later.body, later.headers["ETag"]) == (first.body, first.headers["ETag"])
    assert bookmark_of(later) == bookmark_of(first)


async def test_reads_without_a_host_have_the_same_bytes(world: World) -> None:
    """mission: 221"""
    await given_images(world, "ana", 30, model="m")
    ids = await given_images(world, "ana", 30, title="日本", seed=4294967295, negative_prompt='"\\\n')
    await world.request("DELETE", f"/api/images/{ids[3]}")
    await world.request("PATCH", f"/api/images/{ids[4]}", json={"starred": True})
    token = (await world.get("/api/images?limit=7")).json["next_page_token"]
    paths = ["/api/images", f"/api/images?limit=7&page_token={token}", f"/api/images/{ids[3]}"]
    paths += [f"/api/images?{query}" for query in ("sort=oldest", "model=m&limit=3", "starred=1", "trashed=1")]
    kept = [await replica_of(world, "ana", path) for path in paths]

    await world.host.stop()

    for path, before in zip(paths, kept, strict=True):
        after = await world.get(path)
        assert (after.headers["Peruse-Source"], after.headers["Peruse-Age"]) == ("primary", "0")
        assert after.body == before.body
        assert after.headers["ETag"] == before.headers["ETag"]
        known = await world.get(path, headers={"If-None-Match": before.headers["ETag"]})
        assert (known.status, known.body) == (304, b"")


async def test_host_that_comes_back_goes_on_with_its_files(world: World) -> None:
    """What was written meanwhile is pulled, and nothing is read back in time."""
    await given_images(world, "ana", 3)
    await replica_of(world, "ana")
    await world.host.stop()
    wrote = await world.upload(prompt="meanwhile")
    without = await world.get("/api/images")
    assert (without.status, without.headers["Peruse-Source"]) == (200, "primary")

    world.host = await world.start_host(0)

    reply = await replica_of(world, "ana")
    assert bookmark_of(reply) == bookmark_of(wrote)
    assert len(ids_of(reply)) == 4
    assert world.host.stats().metrics.seeds == 0


async def test_versions_never_go_back_while_hosts_come_and_go(world: World) -> None:
    """Without any bookmark, through both sources."""
    seen = bookmark_of(await world.get("/api/images"))
    for turn in range(3):
        await world.upload(prompt=f"turn {turn}")
        for action in ("stop", "start"):
            if action == "stop":
                await world.host.stop()
            else:
                world.host = await world.start_host(0)
            for _ in range(20):
                reply = await world.get("/api/images")
                assert reply.status == 200
                assert not seen.is_after(*bookmark_of(reply))
                assert len(ids_of(reply)) == turn + 1
                seen = bookmark_of(reply)


async def test_writer_without_a_bookmark_reads_his_write_though_every_poke_is_lost(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway remembers what it committed, and asks his replica for no less."""
    (image,) = await given_images(world, "ana", 1)
    await replica_of(world, "ana")
    monkeypatch.setattr(world.gateway.client, "poke", lambda *_: None)

    for turn in range(20):
        wrote = await world.request("PATCH", f"/api/images/{image}", json={"title": f"turn {turn}"})
        reply = await world.get("/api/images")

        assert not bookmark_of(wrote).is_after(*bookmark_of(reply)), f"turn {turn}"
        assert [one["title"] for one in reply.json["images"]] == [f"turn {turn}"]


# --- without the primary ----------------------------------------------------------------------------------------


def is_refused(reply: Reply) -> bool:
    """503, and when to come back."""
    assert reply.status == 503, reply
    assert int(reply.headers["Retry-After"]) >= 1
    assert reply.json["success"] is False
    return True


async def ask_everything(world: World, image: str) -> list[Reply]:
    """One of every request that needs the primary."""
    path = f"/api/images/{image}"
    return [
        await world.upload(prompt="refused"),
        await world.request("PATCH", path, json={"starred": True}),
        await world.request("DELETE", path),
        await world.request("POST", f"{path}/restore"),
        await world.request("POST", "/api/images/sync"),
        await world.get("/api/images", user="never-seen"),
    ]


@asynccontextmanager
async def outage(world: World, link: PrimaryLink) -> AsyncIterator[None]:
    """The way to the primary is cut inside, and works again after."""
    await link.cut()
    try:
        yield
    finally:
        await link.open()


async def test_reads_go_on_without_the_primary_and_say_how_old_they_are(tmp_path: Path, link: PrimaryLink) -> None:
    """mission: 139, 142"""
    async with running(World(tmp_path / "data", link.url)) as world:
        ids = await given_images(world, "ana", 3)
        before = await replica_of(world, "ana")

        async with outage(world, link):
            started = time.monotonic()
            ages = []
            while not ages or ages[-1] < 3:
                reply = await until(lambda: world.get("/api/images"))
                assert (reply.headers["Peruse-Source"], reply.body) == ("replica", before.body)
                assert reply.headers["ETag"] == before.headers["ETag"]
                ages.append(int(reply.headers["Peruse-Age"]))
                assert ages == sorted(ages)
                assert time.monotonic() - started < 6
            # A page that was never asked for before comes from the same file.
            assert ids_of(await world.get("/api/images?limit=2&sort=oldest")) == ids[:0:-1]
            lag = (await world.get("/readyz")).json["lag_s"]
            assert lag >= 2

        async def is_fresh() -> bool:
            return int((await world.get("/api/images")).headers["Peruse-Age"]) <= 2

        await until(is_fresh)


async def test_what_needs_the_primary_is_refused_at_once_and_recovers_by_itself(
    tmp_path: Path, link: PrimaryLink
) -> None:
    """Nothing is lost, nothing hangs, nothing has to be restarted."""
    async with running(World(tmp_path / "data", link.url)) as world:
        (image,) = await given_images(world, "ana", 1)
        await replica_of(world, "ana")
        before = await stored(world)

        async with outage(world, link):
            started = time.monotonic()
            for reply in await ask_everything(world, image):
                assert is_refused(reply)
            assert time.monotonic() - started < 5
            future = {"Peruse-Bookmark": f"{bookmark_of(await world.get('/api/images')).epoch}.99"}
            assert is_refused(await world.get("/api/images", headers=future))
            assert (await world.get("/api/images")).headers["Peruse-Source"] == "replica"

        async def recovered() -> Reply | None:
            reply = await world.request("POST", "/api/images/upload", data=form(picture("PNG")))
            return reply if reply.status == 201 else None

        wrote = await until(recovered)
        reply = await world.get("/api/images")
        assert not bookmark_of(wrote).is_after(*bookmark_of(reply))
        assert {one.status for one in (await ask_everything(world, image))} == {200, 201}
        rows = await world.gateway.primary.fetch("select count(*) from images where prompt = 'refused'")
        assert rows[0][0] == 1
        assert before[0] < (await stored(world))[0]


async def test_primary_that_says_nothing_is_as_one_that_is_away(tmp_path: Path, link: PrimaryLink) -> None:
    """A paused machine keeps its connections: 503 within the deadlines, and no 500."""
    async with running(World(tmp_path / "data", link.url)) as world:
        await given_images(world, "ana", 1)
        before = await replica_of(world, "ana")
        await world.get("/api/images", user="warms-the-pool")
        link.block()
        try:
            reply = await world.get("/api/images")
            assert (reply.status, reply.body) == (200, before.body)
            started = time.monotonic()
            assert is_refused(await world.get("/api/images", user="cold"))
            assert time.monotonic() - started < 4
        finally:
            link.unblock()


async def test_row_that_stays_locked_is_a_503(tmp_path: Path, database: str) -> None:
    """The lock's owner is slow, not we: come back later."""
    async with running(World(tmp_path / "data", database)) as world:
        (image,) = await given_images(world, "ana", 1)
        holder = await asyncpg.connect(database)
        try:
            async with holder.transaction():
                await holder.execute("select 1 from images for update")
                assert is_refused(await world.request("PATCH", f"/api/images/{image}", json={"starred": True}))
        finally:
            await holder.close()
        assert (await world.request("PATCH", f"/api/images/{image}", json={"starred": True})).status == 200


async def test_database_that_takes_no_connections_is_away(world: World, postgres: EmbeddedPostgres) -> None:
    """As during a restore: the same promises."""
    (image,) = await given_images(world, "ana", 1)
    before = await replica_of(world, "ana")
    name = urlsplit(world.database).path[1:]
    admin = await asyncpg.connect(postgres.url)
    try:
        await admin.execute(f"alter database {name} allow_connections false")
        await admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = $1", name)

        reply = await world.get("/api/images")
        assert (reply.status, reply.headers["Peruse-Source"], reply.body) == (200, "replica", before.body)
        for refused in await ask_everything(world, image):
            assert is_refused(refused)
    finally:
        await admin.execute(f"alter database {name} allow_connections true")
        await admin.close()

    async def recovered() -> bool:
        return (await world.request("PATCH", f"/api/images/{image}", json={"starred": True})).status == 200

    await until(recovered)
    assert (await world.get("/api/images")).json["images"][0]["starred"] is True


async def test_write_of_somebody_else_is_seen_within_the_sweep(shared: World, user: str) -> None:
    """mission: 143"""
    await replica_of(shared, user)
    async with shared.gateway.primary.connection() as connection, connection.transaction():
        (image,) = await add_images(connection, user, 1)

    async def is_seen() -> bool:
        reply = await shared.get("/api/images", user=user)
        assert reply.headers["Peruse-Source"] == "replica"
        return ids_of(reply) == [str(image)]

    await until(is_seen, timeout_s=3.0)


async def test_what_was_served_to_a_bookmark_is_the_floor_of_those_without(shared: World, user: str) -> None:
    """This gateway has shown the version: whoever reads here without a bookmark is promised no less."""
    (image,) = await given_images(shared, user, 1)
    await replica_of(shared, user)
    _, written = await shared.gateway.primary.write(
        user, lambda c: c.execute("update images set title = 'elsewhere' where id = $1::text::uuid", image)
    )

    reply = await shared.get("/api/images", user=user, headers={"Peruse-Bookmark": str(written)})

    assert bookmark_of(reply) == written
    assert shared.gateway.reads.floors.get(user) == written
