"""Removing for good: the row and the note of its objects in one transaction, then the objects until they are gone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from store import deletions, images, trash
from store.deletions import backlog, delete_due
from store.errors import NotFound, ObjectsUnavailable
from store.objects.interface import Objects
from store.objects.keys import new_key, thumb_key
from store.objects.local import LocalObjects
from store.primary import Connection, Primary
from tests.world import add_images

TAG = "0123456789abcdef" * 2
DAY_S = 86_400.0


@pytest.fixture
def objects(tmp_path: Path) -> LocalObjects:
    return LocalObjects(tmp_path / "objects")


class Unwell(LocalObjects):
    """A folder whose deletions fail while `is_unwell`."""

    is_unwell = True

    async def delete(self, key: str) -> None:
        if self.is_unwell:
            raise ObjectsUnavailable(f"object {key}: 503 SlowDown")
        await super().delete(key)


async def stored(primary: Primary, objects: Objects, user: str, count: int, *, days: int | None = None) -> list[str]:
    """Keys of new images with their thumbnails, `days` in the trash; objects and rows."""
    pictures = [new_key("generated", TAG, "image/png", n) for n in range(count)]
    await objects.put_many([(key, b"bytes") for k in pictures for key in (k, thumb_key(k))])

    async def work(connection: Connection) -> None:
        for key in pictures:
            (row_id,) = await add_images(connection, user, 1)
            await connection.execute(
                "update images set object_key = $2, thumb_key = $3, size_bytes = 5, "
                "trashed_at = clock_timestamp() - make_interval(days => $4) where id = $1",
                row_id, key, thumb_key(key), days,
            )  # fmt: skip

    await primary.write(user, work)
    await primary.fetch("delete from deletions")  # what add_images had called them
    return pictures


async def keys_of(objects: Objects) -> list[str]:
    return [info.key async for info in objects.scan()]


def noted(pictures: Sequence[str]) -> set[str]:
    """What is written down of them: the small thumbnail too, there or not."""
    return both(pictures) | {key.replace(".png", ".thumb96.webp") for key in pictures}


def both(pictures: Sequence[str]) -> set[str]:
    return {key for picture in pictures for key in (picture, thumb_key(picture))}


async def left(primary: Primary) -> list[str]:
    rows = await primary.fetch("select object_key from images order by object_key")
    return [row["object_key"] for row in rows]


async def test_a_removed_image_is_on_the_list_with_its_thumbnail(primary: Primary, objects: LocalObjects) -> None:
    """mission: 116, 124"""
    gone, kept = await stored(primary, objects, "ana", 2)
    (row,) = await primary.fetch("select id from images where object_key = $1", gone)

    with pytest.raises(NotFound):
        await primary.write("bob", lambda c: trash.remove(c, "bob", row["id"]))
    assert await deletions.waiting(primary) == 0
    removed, _ = await primary.write("ana", lambda c: trash.remove(c, "ana", row["id"]))

    assert removed == (1, 5)
    assert await left(primary) == [kept]
    assert {row["key"] for row in await primary.fetch("select key from deletions")} == noted([gone])
    assert set(await keys_of(objects)) == both([gone, kept])

    assert await delete_due(primary, objects) == (3, 0)
    assert set(await keys_of(objects)) == both([kept])
    assert await deletions.waiting(primary) == 0


async def test_a_removal_that_is_rolled_back_leaves_nothing_on_the_list(
    primary: Primary, objects: LocalObjects
) -> None:
    (key,) = await stored(primary, objects, "ana", 1)

    async def work(connection: Connection) -> None:
        await connection.execute("delete from images")
        raise LookupError

    with pytest.raises(LookupError):
        await primary.write("ana", work)

    assert await left(primary) == [key]
    assert await deletions.waiting(primary) == 0


async def test_objects_follow_rows_that_plain_sql_deletes_or_changes(primary: Primary, objects: LocalObjects) -> None:
    """Whoever writes: the list is kept by the primary itself."""
    first, second = await stored(primary, objects, "ana", 2)
    other = new_key("generated", TAG, "image/png", 9)

    await primary.fetch("update images set object_key = $2 where object_key = $1", first, other)
    await primary.fetch("update images set title = 'the same objects'")
    await primary.fetch("delete from users where id = 'ana'")

    listed = {row["key"] for row in await primary.fetch("select key from deletions")}
    assert listed == {first, other, *noted([first]), *noted([second])}


async def test_emptying_removes_what_is_in_the_trash_and_nothing_else(primary: Primary, objects: LocalObjects) -> None:
    """More than one transaction holds."""
    trashed = await stored(primary, objects, "ana", 3, days=1)
    kept = await stored(primary, objects, "ana", 2)
    others = await stored(primary, objects, "bob", 2, days=1)
    await primary.write("ana", lambda c: add_images(c, "ana", 450))
    await primary.fetch("update images set trashed_at = now() where owner_id = 'ana' and size_bytes = 7")

    removed, bookmark = await trash.empty(primary, "ana")

    assert removed == (453, 3 * 5 + 450 * 7)
    assert await left(primary) == sorted([*kept, *others])
    (head,) = await primary.fetch("select version from sync_user where user_id = 'ana'")
    assert bookmark.version == head["version"]
    await delete_due(primary, objects)
    assert set(await keys_of(objects)) == both([*kept, *others])
    assert set(trashed).isdisjoint(await keys_of(objects))
    assert (await trash.empty(primary, "ana"))[0] == (0, 0)


async def test_the_trash_is_purged_when_its_time_is_over(primary: Primary, objects: LocalObjects) -> None:
    """By several at once; what was restored in time stays."""
    for n in range(7):
        await stored(primary, objects, f"user-{n}", 3, days=31)
    young = await stored(primary, objects, "user-0", 1, days=29)
    restored, *_ = await stored(primary, objects, "user-1", 1, days=31)
    (row,) = await primary.fetch("select id from images where object_key = $1", restored)
    await primary.write("user-1", lambda c: images.restore(c, "user-1", row["id"]))

    done = await asyncio.gather(*(trash.purge(primary, keep_s=30 * DAY_S) for _ in range(3)))

    assert sum(part.images for part in done) == 21
    assert await left(primary) == sorted([*young, restored])
    await asyncio.gather(*(delete_due(primary, objects) for _ in range(3)))
    assert set(await keys_of(objects)) == both([*young, restored])


async def test_a_purge_waits_for_nobody(primary: Primary, objects: LocalObjects) -> None:
    """A row that somebody holds, who may be restoring it, is left for the next time."""
    held, _ = await stored(primary, objects, "ana", 2, days=31)
    async with primary.connection() as writer, writer.transaction():
        await writer.fetchval("select id from images where object_key = $1 for update", held)

        purged = await asyncio.wait_for(trash.purge(primary, keep_s=30 * DAY_S), 1.5)

        assert purged.images == 1
    assert await left(primary) == [held]
    assert (await trash.purge(primary, keep_s=30 * DAY_S)).images == 1


async def test_a_deletion_that_fails_is_tried_again_later(primary: Primary, tmp_path: Path) -> None:
    """And later each time."""
    objects = Unwell(tmp_path / "objects")
    (key,) = await stored(primary, objects, "ana", 1)
    await primary.fetch("delete from images")

    assert await delete_due(primary, objects) == (0, 3)
    assert await delete_due(primary, objects) == (0, 0), "not due yet"
    waits = "select extract(epoch from due_at - clock_timestamp())::float8 s from deletions"
    assert all(1.0 < row["s"] <= 2.0 for row in await primary.fetch(waits))
    await primary.fetch("update deletions set due_at = now(), attempts = 5")
    assert await delete_due(primary, objects) == (0, 3)
    assert all(60.0 < row["s"] <= 64.0 for row in await primary.fetch(waits))
    assert set(await keys_of(objects)) == both([key])

    objects.is_unwell = False
    await primary.fetch("update deletions set due_at = now(), attempts = 1000")
    assert await delete_due(primary, objects) == (3, 0)
    assert await keys_of(objects) == []


async def test_the_backlog_tells_how_many_wait_and_for_how_long(
    primary: Primary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest is the one that waits longest, however often it was put off; what is looked at is bounded."""
    objects = Unwell(tmp_path / "objects")
    assert await backlog(primary) == (0, 0.0)
    await primary.fetch(
        "insert into deletions (key, due_at) select k, clock_timestamp() - w "
        "from (values ('a', interval '90 s'), ('b', interval '0 s')) v (k, w)"
    )
    count, oldest_s = await backlog(primary)
    assert count == 2
    assert 90 <= oldest_s < 150

    await primary.fetch("delete from deletions where key = 'a'")
    for _ in range(3):
        await primary.fetch("update deletions set due_at = clock_timestamp()")
        assert await delete_due(primary, objects) == (0, 1)
    count, oldest_s = await backlog(primary)
    assert count == 1
    assert 5.9 < oldest_s < 60, "it was put off for 2 s and 4 s, and the 8 s have begun"

    await primary.fetch("update deletions set attempts = 15, due_at = clock_timestamp() + interval '1 hour'")
    assert 4094 + 4 * 3600 - 3700 < (await backlog(primary)).oldest_s < 4094 + 4 * 3600 - 3500
    monkeypatch.setattr(deletions, "_MOST_COUNTED", 1)
    assert (await backlog(primary)).objects == 1


async def test_an_object_whose_row_came_back_stays(primary: Primary, objects: LocalObjects) -> None:
    """Rows may be brought back from a backup before their objects went."""
    (key,) = await stored(primary, objects, "ana", 1)
    await primary.fetch("create table backup as select * from images")
    await primary.fetch("delete from images")
    await primary.fetch("insert into images select * from backup")

    assert await delete_due(primary, objects) == (0, 0)

    assert set(await keys_of(objects)) == both([key])
    assert await deletions.waiting(primary) == 0


async def test_what_a_killed_worker_took_is_due_again(primary: Primary, objects: LocalObjects) -> None:
    """Taken, and then nothing more was heard of it."""
    await stored(primary, objects, "ana", 1)
    await primary.fetch("delete from images")

    class Killed(LocalObjects):
        async def delete(self, key: str) -> None:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await delete_due(primary, Killed(objects.folder))
    assert await delete_due(primary, objects) == (0, 0), "somebody may still be at it"
    await primary.fetch("update deletions set due_at = due_at - interval '10 minutes'")

    assert await delete_due(primary, objects) == (3, 0)
    assert await keys_of(objects) == []
