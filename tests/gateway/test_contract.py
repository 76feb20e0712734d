"""The freshness contract: what a reader may ask for, and what each reply says about itself."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from store.epoch import Bookmark
from tests.gateway.asking import bookmark_of, given_images, ids_of, replica_of, running
from tests.gateway.link import PrimaryLink
from tests.world import World, add_images, until

GALLERY = "/api/images"


def said(reply: Any) -> tuple[int, str, str]:
    """Status, source and outcome of a reply."""
    return reply.status, reply.headers["Peruse-Source"], reply.headers["Peruse-Outcome"]


async def test_what_is_at_hand_is_fresh_and_what_had_to_be_pulled_waited(shared: World, user: str) -> None:
    """Each way has its word."""
    await given_images(shared, user, 1)
    first = await shared.get(GALLERY, user=user)
    assert said(first) == (200, "seeding", "primary")
    await replica_of(shared, user)
    assert said(await shared.get(GALLERY, user=user)) == (200, "replica", "fresh")

    # By plain SQL, so that nobody pokes: only the bookmark tells.
    async with shared.gateway.primary.connection() as connection, connection.transaction():
        (new,) = await add_images(connection, user, 1)
        row = await connection.fetchrow("select epoch, version from sync_flush($1)", user)
    reply = await shared.get(GALLERY, user=user, headers={"Peruse-Bookmark": f"{row['epoch']}.{row['version']}"})

    assert said(reply) == (200, "replica", "waited")
    assert ids_of(reply)[0] == str(new)


async def test_validate_asks_the_primary_first(shared: World, user: str) -> None:
    """A write that nobody told of is seen at once."""
    await given_images(shared, user, 1)
    await replica_of(shared, user)
    for _ in range(10):
        async with shared.gateway.primary.connection() as connection:
            (new,) = await add_images(connection, user, 1)

        reply = await shared.get(GALLERY, user=user, headers={"Peruse-Validate": "1"})

        assert said(reply) == (200, "replica", "waited")
        assert ids_of(reply)[0] == str(new)


@pytest.mark.parametrize(
    ("on_timeout", "expected"),
    [("stale", (200, "replica", "stale")), ("primary", "primary_unavailable"), ("error", "replica_unavailable")],
)
async def test_a_primary_that_hangs_is_waited_for_as_long_as_asked(
    link: PrimaryLink, tmp_path: Path, on_timeout: str, expected: tuple[int, str, str] | str
) -> None:
    """Stale is served and says so; else 503 with Retry-After, from the primary only when it was to be asked. Never a
    hang."""
    async with running(World(tmp_path / "data", link.url)) as world:
        await given_images(world, "ana", 2)
        seen = bookmark_of(await replica_of(world, "ana"))
        link.block()
        ahead = {"Peruse-Bookmark": str(seen._replace(version=seen.version + 1)), "Peruse-On-Timeout": on_timeout}

        started = time.monotonic()
        reply = await world.get(GALLERY, headers={**ahead, "Peruse-Max-Wait": "100"})
        took_s = time.monotonic() - started
        link.unblock()

        if not isinstance(expected, str):
            assert said(reply) == expected
            assert bookmark_of(reply) == seen
            assert took_s < 1
        else:
            assert (reply.status, reply.json["code"]) == (503, expected), reply
            assert reply.headers["Retry-After"]
            assert took_s < 4
        assert took_s > 0.09


async def test_an_answer_is_never_older_than_max_staleness(link: PrimaryLink, tmp_path: Path) -> None:
    """With the primary away, reads go on until then, and are refused from then on."""
    async with running(World(tmp_path / "data", link.url)) as world:
        await given_images(world, "ana", 2)
        await replica_of(world, "ana")
        await link.cut()

        async def aged() -> bool:
            return int((await world.get(GALLERY)).headers["Peruse-Age"]) >= 2

        await until(aged)
        assert (await world.get(GALLERY, headers={"Peruse-Max-Staleness": "3600"})).status == 200
        for on_timeout in ("stale", "primary", "error"):
            asked = {"Peruse-Max-Staleness": "1", "Peruse-On-Timeout": on_timeout}
            reply = await world.get(GALLERY, headers=asked)
            assert (reply.status, bool(reply.headers.get("Retry-After"))) == (503, True), on_timeout

        await link.open()

        async def answered() -> bool:
            reply = await world.get(GALLERY, headers={"Peruse-Max-Staleness": "1"})
            return reply.status == 200 and int(reply.headers["Peruse-Age"]) <= 1

        await until(answered)


async def test_a_bookmark_that_nobody_can_reach_costs_little(shared: World, user: str) -> None:
    """From the future, of another epoch, or made up: answered at once, and at most 20 pulls a second for it."""
    await given_images(shared, user, 1)
    seen = bookmark_of(await replica_of(shared, user))
    (before,) = await shared.gateway.client.stats()
    newer = f"{int(seen.epoch.split('-')[0]) + 10**6}-1"
    older = f"{int(seen.epoch.split('-')[0]) - 10**6}-1"
    started = time.monotonic()
    for n in range(60):
        for made_up in (Bookmark(seen.epoch, 10**9 + n), Bookmark(newer, 1), Bookmark(older, 10**9)):
            reply = await shared.get(GALLERY, user=user, headers={"Peruse-Bookmark": str(made_up)})
            assert (reply.status, reply.headers["Peruse-Source"], bookmark_of(reply)) == (200, "replica", seen)
    took_s = time.monotonic() - started

    (after,) = await shared.gateway.client.stats()
    assert after.metrics.pulls - before.metrics.pulls <= 20 + 20 * took_s + 5


async def test_a_reader_of_their_own_writes_spends_nothing(shared: World, user: str) -> None:
    """However fast they write and read: their bookmarks are all reached."""
    (image,) = await given_images(shared, user, 1)
    await replica_of(shared, user)
    for n in range(60):
        done = await shared.request("PATCH", f"{GALLERY}/{image}", user=user, json={"title": f"title {n}"})
        bookmark = {"Peruse-Bookmark": done.headers["Peruse-Bookmark"]}
        reply = await shared.get(GALLERY, user=user, headers=bookmark)
        assert reply.json["images"][0]["title"] == f"title {n}"
        assert reply.headers["Peruse-Source"] == "replica"

    allowance = shared.host._replicas._active[user].forced
    assert allowance._left == 20


async def test_a_write_that_changes_nothing_is_not_waited_for(shared: World, user: str) -> None:
    """Its bookmark is the position that was there before."""
    (image,) = await given_images(shared, user, 1)
    await replica_of(shared, user)
    done = await shared.request("PATCH", f"{GALLERY}/{image}", user=user, json={"starred": False})

    reply = await shared.get(GALLERY, user=user, headers={"Peruse-Bookmark": done.headers["Peruse-Bookmark"]})

    assert said(reply) == (200, "replica", "fresh")


async def test_a_browser_carries_the_bookmark_in_a_cookie(shared: World, user: str) -> None:
    """For five minutes, out of reach of scripts; a broken one is nothing."""
    (image,) = await given_images(shared, user, 1)
    done = await shared.request("PATCH", f"{GALLERY}/{image}", user=user, json={"starred": True})
    cookie = done.headers["Set-Cookie"]
    assert cookie.startswith(f"peruse_bookmark={done.headers['Peruse-Bookmark']}; HttpOnly; Max-Age=300; Path=/;")
    assert "SameSite=Lax" in cookie

    async with shared.gateway.primary.connection() as connection, connection.transaction():
        await add_images(connection, user, 1)
        row = await connection.fetchrow("select epoch, version from sync_flush($1)", user)
    await until(lambda: shared.gateway.client.sync(user, timeout_s=5))
    for value, version in ((f"{row['epoch']}.{row['version']}", row["version"]), ("nonsense", row["version"])):
        reply = await shared.get(GALLERY, user=user, headers={"Cookie": f"peruse_bookmark={value}"})
        assert (reply.status, bookmark_of(reply).version) == (200, version)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Peruse-Max-Wait", "soon"),
        ("Peruse-Max-Wait", "-1"),
        ("Peruse-Max-Wait", "10001"),
        ("Peruse-Max-Staleness", "1.5"),
        ("Peruse-Max-Staleness", "99999999999"),
        ("Peruse-On-Timeout", "never"),
        ("Peruse-Validate", "yes"),
        ("Peruse-Bookmark", "1"),
    ],
)
async def test_a_wish_that_cannot_be_meant_is_400(shared: World, user: str, name: str, value: str) -> None:
    """It names the header."""
    reply = await shared.get(GALLERY, user=user, headers={name: value})

    assert (reply.status, reply.json["field"]) == (400, name)


async def test_services_may_wish_the_same(shared: World, user: str) -> None:
    """/internal answers with the same contract."""
    await given_images(shared, user, 1)
    await replica_of(shared, user)

    reply = await shared.get(
        f"/internal/users/{user}/images", user="svc", role="service", headers={"Peruse-Validate": "1"}
    )

    assert said(reply) == (200, "replica", "waited")
