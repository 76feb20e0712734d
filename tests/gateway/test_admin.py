"""/admin, and the commands that ask the same."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from tests.gateway.asking import bookmark_of, given_images, ids_of, replica_of
from tests.world import World, until


async def ask(world: World, path: str, method: str = "GET") -> dict[str, object]:
    """What an admin is told."""
    reply = await world.request(method, f"/admin/{path}", user="boss", role="admin")
    assert reply.status == 200, reply
    return reply.json  # type: ignore[no-any-return]


async def test_a_replica_can_be_found_closed_and_made_again(world: World) -> None:
    """mission: 234"""
    await given_images(world, "ana", 3)
    assert (await ask(world, "users/ana/replica"))["replica"]["state"] == "cold"
    head = bookmark_of(await replica_of(world, "ana"))

    found = (await ask(world, "users/ana/replica"))["replica"]
    assert (found["state"], found["version"], found["head"], found["lag"]) == ("active", head.version, head.version, 0)
    assert found["host"] == "test:0"
    assert found["file_bytes"] > 0
    assert [r["user"] for r in (await ask(world, "replicas"))["replicas"]] == ["ana"]

    assert (await ask(world, "users/ana/replica/passivate", "POST"))["replica"] == {"user": "ana", "passivated": True}
    assert (await ask(world, "users/ana/replica/passivate", "POST"))["replica"]["passivated"] is False
    assert (await ask(world, "users/ana/replica"))["replica"]["state"] == "passive"
    reply = await world.get("/api/images")
    assert (reply.headers["Peruse-Source"], len(ids_of(reply))) == ("replica", 3)

    def seeds() -> int:
        return world.host.stats().metrics.seeds

    before = seeds()
    await ask(world, "users/ana/replica/reseed", "POST")

    async def again() -> bool:
        return seeds() > before and (await ask(world, "users/ana/replica"))["replica"]["state"] == "active"

    await until(again)
    assert len(ids_of(await world.get("/api/images"))) == 3


async def test_the_export_is_the_users_replica(world: World, tmp_path: Path) -> None:
    """A SQLite file with the user's rows and nobody else's, at one version."""
    ids = await given_images(world, "ana", 4)
    await given_images(world, "bob", 2)
    reply = await world.get("/admin/users/ana/replica/export", user="boss", role="admin")
    assert (reply.status, reply.headers["Content-Type"]) == (200, "application/vnd.sqlite3")
    path = tmp_path / "export.db"
    path.write_bytes(reply.body)

    replica = sqlite3.connect(path)
    try:
        assert {row[0] for row in replica.execute("select id from images")} == set(ids)
        assert replica.execute("select user_id, version from meta").fetchall() == [
            ("ana", bookmark_of(await world.get("/api/images")).version)
        ]
        assert replica.execute("pragma integrity_check").fetchall() == [("ok",)]
    finally:
        replica.close()


async def test_hosts_and_users_are_listed(world: World) -> None:
    """With what they hold; users page by page."""
    for user in ("ana", "bob", "cyd"):
        await given_images(world, user, 2)
    await replica_of(world, "ana")

    (host,) = (await ask(world, "hosts"))["hosts"]
    assert (host["host"], host["state"], host["answers"], host["active"]) == ("test:0", "live", True, 1)
    users = (await ask(world, "users?limit=2"))["users"]
    assert [(u["user"], u["images"]) for u in users] == [("ana", 2), ("bob", 2)]
    assert [u["user"] for u in (await ask(world, "users?after=bob"))["users"]] == ["cyd"]

    for path, field in (("users?limit=0", "limit"), ("hosts?x=1", "x"), ("users/a%20b/replica", "user")):
        reply = await world.get(f"/admin/{path}", user="boss", role="admin")
        assert (reply.status, reply.json["field"]) == (400, field), path


@pytest.mark.parametrize(
    ("method", "path", "field", "known"),
    [
        ("GET", "users?limit=2&x=1", "x", "after, limit"),
        ("POST", "users/ana/replica/audit?repair=1&x=1", "x", "repair"),
        ("POST", "epoch/rotate?x=1&y=1", "x", "none"),
    ],
)
async def test_the_parameter_that_is_unknown_is_named(
    shared: World, method: str, path: str, field: str, known: str
) -> None:
    """Not a known one before it; with those that the address takes."""
    reply = await shared.request(method, f"/admin/{path}", user="boss", role="admin")
    assert (reply.status, reply.json["field"]) == (400, field)
    assert reply.json["detail"] == f"unknown query parameter {field!r}; this address takes {known}"


async def test_a_new_epoch_makes_every_replica_anew(world: World) -> None:
    """None serves what it had; each comes back with the new epoch."""
    for user in ("ana", "bob"):
        await given_images(world, user, 2)
        await replica_of(world, user)
    old = bookmark_of(await world.get("/api/images"))
    (before,) = await world.gateway.client.stats()

    epoch = (await ask(world, "epoch/rotate", "POST"))["epoch"]

    for user in ("ana", "bob"):

        async def renewed(user: str = user) -> bool:
            reply = await world.get("/api/images", user=user)
            return reply.headers["Peruse-Source"] == "replica" and bookmark_of(reply).epoch == epoch

        await until(renewed)
    assert bookmark_of(await world.get("/api/images")).is_after(*old)
    (after,) = await world.gateway.client.stats()
    assert after.metrics.resets.get("epoch", 0) - before.metrics.resets.get("epoch", 0) in (2, 3)  # and the host's own
    assert after.metrics.seeds - before.metrics.seeds in (2, 3)
