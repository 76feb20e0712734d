"""Removing for good over HTTP: one image, the whole trash, a user."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway import housekeeping
from tests.gateway.asking import given_images, ids_of, object_files, replica_of, running
from tests.gateway.listening import listening
from tests.world import Reply, World, until


async def remove(world: World, user: str, path: str) -> Reply:
    reply = await world.request("DELETE", path, user=user)
    assert reply.status == 200, reply
    return reply


async def uploaded(world: World, user: str) -> dict:
    reply = await world.upload(user=user)
    assert reply.status == 201, reply
    return reply.json["image"]


def files_of(world: World, image: dict) -> list[Path]:
    """The object files of an image: those beside it, with its name."""
    stem = Path(image["url"]).name.partition(".")[0]
    return [path for path in object_files(world) if path.name.startswith(stem)]


async def test_an_image_that_is_removed_takes_its_objects_with_it(shared: World, user: str) -> None:
    """mission: 116, 124"""
    image, other = await uploaded(shared, user), await uploaded(shared, user)
    await replica_of(shared, user)
    assert len(files_of(shared, image)) >= 2

    reply = await remove(shared, user, f"/api/images/{image['id']}?forever=1")

    assert reply.json["removed"] == 1
    assert reply.json["freed_bytes"] == image["size_bytes"]
    assert ids_of(await shared.get("/api/images", user=user)) == [other["id"]]
    assert ids_of(await shared.get("/api/images?trashed=true", user=user)) == []
    assert (await shared.get(f"/api/images/{image['id']}", user=user)).status == 404
    restored = await shared.request("POST", f"/api/images/{image['id']}/restore", user=user)
    again = await shared.request("DELETE", f"/api/images/{image['id']}?forever=1", user=user)
    assert (restored.status, again.status) == (404, 404)
    await until(lambda: not files_of(shared, image))
    assert len(files_of(shared, other)) >= 2

    async def is_gone() -> bool:
        return (await shared.get(image["url"], user=user)).status == 404

    await until(is_gone)
    assert (await shared.get(other["url"], user=user)).status == 200


async def test_what_is_removed_is_counted_no_more(shared: World, user: str) -> None:
    """One image, the trash, a reference: the account has its bytes back, in the transaction of the row."""

    async def used() -> int:
        (row,) = await shared.gateway.primary.fetch(
            "select storage_used_bytes b from accounts where owner_id = $1", user
        )
        return int(row["b"])

    one, two = await uploaded(shared, user), await uploaded(shared, user)
    assert await used() == one["size_bytes"] + two["size_bytes"] > 0
    await remove(shared, user, f"/api/images/{two['id']}")
    assert await used() == one["size_bytes"] + two["size_bytes"], "what is in the trash counts"

    await remove(shared, user, "/api/images/trash")
    assert await used() == one["size_bytes"]
    await remove(shared, user, f"/api/images/{one['id']}?forever=1")
    assert await used() == 0


async def test_forever_is_said_plainly(shared: World, user: str) -> None:
    """Nothing is removed by a word that could mean something else."""
    image = await uploaded(shared, user)
    path = f"/api/images/{image['id']}"

    for query in ("forever=true", "forever=", "forever=1&forever=0", "forever=1&x=1", "Forever=1"):
        reply = await shared.request("DELETE", f"{path}?{query}", user=user)
        assert (reply.status, reply.json["code"]) == (400, "invalid_request"), query
    trashed = await remove(shared, user, f"{path}?forever=0")

    assert trashed.json["image"]["trashed_at"] is not None
    assert len(files_of(shared, image)) >= 2


async def test_emptying_the_trash_leaves_the_rest(shared: World, user: str) -> None:
    trashed, kept = await uploaded(shared, user), await uploaded(shared, user)
    await remove(shared, user, f"/api/images/{trashed['id']}")

    reply = await remove(shared, user, "/api/images/trash")

    assert (reply.json["removed"], reply.json["freed_bytes"]) == (1, trashed["size_bytes"])
    assert ids_of(await shared.get("/api/images?trashed=true", user=user)) == []
    assert ids_of(await shared.get("/api/images", user=user)) == [kept["id"]]
    await until(lambda: not files_of(shared, trashed))
    assert len(files_of(shared, kept)) >= 2
    assert (await remove(shared, user, "/api/images/trash")).json["removed"] == 0
    assert (await shared.request("DELETE", "/api/images/trash?all=1", user=user)).status == 400
    assert (await shared.get("/api/images/trash", user=user)).status == 400


async def test_the_trash_empties_itself(database: str, tmp_path: Path) -> None:
    """After its days; the row first, then the objects."""
    world = World(tmp_path / "data", database)
    async with running(world):
        old, young = await uploaded(world, "ana"), await uploaded(world, "ana")
        for image, days in ((old, 31), (young, 29)):
            await world.gateway.primary.fetch(
                "update images set trashed_at = now() - make_interval(days => $2) where id = $1::text::uuid",
                image["id"], days,
            )  # fmt: skip
    async with running(world):
        await until(lambda: not files_of(world, old))
        assert ids_of(await world.get("/api/images?trashed=true")) == [young["id"]]
        assert len(files_of(world, young)) >= 2


async def test_an_erased_user_is_gone_everywhere(world: World) -> None:
    """Rows, objects, replica file, token, API key, stream; and an upload does not bring them back."""
    from store import api_keys

    image = await uploaded(world, "ana")
    await given_images(world, "ana", 3)
    bob = await uploaded(world, "bob")
    for user in ("ana", "bob"):
        await replica_of(world, user)
    key = await api_keys.create_key(world.gateway.primary, "ana")
    by_key = {"Authorization": f"Bearer {key.secret}"}
    assert (await world.get("/api/images", user=None, headers=by_key)).status == 200
    replicas = world.data / "replicas"
    own = world.host._replicas.inspect("ana").path
    assert Path(own).exists()

    async with listening(world, "ana") as listener:
        await listener.begun()
        reply = await world.request("DELETE", "/admin/users/ana", user="boss", role="admin")
        assert (reply.status, reply.json["erased"]["images"]) == (200, 4), reply

        async def is_refused() -> bool:
            asked = [
                await world.get("/api/images"),
                await world.get("/api/images", user=None, headers=by_key),
                await world.upload(),
            ]
            assert all(one.status in (200, 401, 404) for one in asked)
            assert asked[2].status != 201
            return [one.status for one in asked] == [401, 401, 401]

        await until(is_refused, timeout_s=5)

    await until(lambda: not any(path.exists() for path in replicas.rglob(f"{Path(own).name.partition('.')[0]}*")))
    await until(lambda: not files_of(world, image))
    assert len(files_of(world, bob)) >= 2
    assert ids_of(await replica_of(world, "bob")) == [bob["id"]]
    service = await world.request("GET", "/internal/users/ana/images", user="s", role="service")
    assert (service.status, service.json["images"]) == (200, [])
    again = await world.request("DELETE", "/admin/users/ana", user="boss", role="admin")
    assert again.status == 404
    own_user = await world.request("DELETE", "/admin/users/~test:0", user="boss", role="admin")
    assert (own_user.status, own_user.json["field"]) == (400, "user")


async def test_a_gateway_that_starts_later_refuses_them_too(world: World, tmp_path: Path) -> None:
    """And an erasure that somebody was killed in is finished by it."""
    await uploaded(world, "ana")
    await uploaded(world, "bob")
    await world.request("DELETE", "/admin/users/ana", user="boss", role="admin")
    await world.gateway.primary.fetch(
        "insert into erased_users (user_id, erased_at) values ('bob', now() - interval '5 minutes')"
    )
    later = World(tmp_path / "later", world.database)
    later.host_settings = later.host_settings.model_copy(update={"node": "later"})
    async with running(later):

        async def refused() -> bool:
            return [(await later.get("/api/images", user=user)).status for user in ("ana", "bob")] == [401, 401]

        await until(refused, timeout_s=5)

        async def is_finished() -> bool:
            rows = await later.gateway.primary.fetch("select 1 from images union all select 1 from deletions")
            return not rows

        await until(is_finished)


async def test_the_object_store_is_asked_again_until_it_deletes(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A removal does not wait for it, and does not fail with it."""
    from store.errors import ObjectsUnavailable

    world = World(tmp_path / "data", database)
    async with running(world):
        image = await uploaded(world, "ana")
        delete, asked = world.gateway.objects.delete, []

        async def unwell(key: str) -> None:
            asked.append(key)
            if len(asked) <= 2:
                raise ObjectsUnavailable(f"object {key}: 503 SlowDown")
            await delete(key)

        monkeypatch.setattr(world.gateway.objects, "delete", unwell)
        await remove(world, "ana", f"/api/images/{image['id']}?forever=1")
        await until(lambda: len(asked) >= 2)
        assert len(files_of(world, image)) >= 2

        async def is_gone() -> bool:
            await world.gateway.primary.fetch("update deletions set due_at = now() where attempts > 0")
            world.gateway.housekeeping.objects_soon()
            await asyncio.sleep(0.05)
            return not files_of(world, image)

        await until(is_gone)


async def test_metrics_tell_what_cannot_be_deleted(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many objects wait, and for how long: an object store that refuses to delete is seen. mission: 153"""
    from store.errors import ObjectsRefused

    monkeypatch.setattr(housekeeping, "_COUNT_EVERY_S", 0.0)
    world = World(tmp_path / "data", database)
    async with running(world):

        async def told() -> tuple[float, float]:
            text = (await world.get("/metrics", user=None)).body.decode()
            lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("peruse_deletions"))
            count, oldest_s = (lines[f'peruse_deletions_{n}{{gateway="0"}}'] for n in ("waiting", "oldest_seconds"))
            return float(count), float(oldest_s)

        async def refuse(key: str) -> None:
            raise ObjectsRefused(f"object {key}: 403 AccessDenied")

        image = await uploaded(world, "ana")
        assert await told() == (0, 0)
        monkeypatch.setattr(world.gateway.objects, "delete", refuse)
        await remove(world, "ana", f"/api/images/{image['id']}?forever=1")

        async def is_seen() -> bool:
            await world.gateway.primary.fetch("update deletions set attempts = 9 where attempts > 0")
            world.gateway.housekeeping.objects_soon()
            count, oldest_s = await told()
            return count == 3 and oldest_s > 400

        await until(is_seen)
        monkeypatch.undo()
        monkeypatch.setattr(housekeeping, "_COUNT_EVERY_S", 0.0)

        async def is_over() -> bool:
            await world.gateway.primary.fetch("update deletions set due_at = now()")
            world.gateway.housekeeping.objects_soon()
            return await told() == (0, 0)

        await until(is_over)
