"""Rows and objects, compared key by key: what differs is found, and nothing else is touched."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from store.config import StoreSettings
from store.deletions import delete_due
from store.objects import open_objects, pictures, reconcile
from store.objects.interface import Objects
from store.objects.keys import keys_of as keys_of_picture
from store.objects.keys import new_key, small_thumb_key, thumb_key
from store.objects.pictures import Picture
from store.objects.reconcile import Finding, Report
from store.primary import Primary
from tests.fakes.s3_server import S3Server, bucket_settings
from tests.world import png

_numbers = itertools.count(1)
TAG = "0123456789abcdef" * 2
LATER = timedelta(hours=2)


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.stop()


@pytest.fixture(params=["local", "s3"])
async def objects(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Objects]:
    """An empty object store."""
    settings = StoreSettings()
    if request.param == "s3":
        server: S3Server = request.getfixturevalue("s3")
        bucket = f"reconcile-{next(_numbers)}"
        server.make_bucket(bucket)
        settings = bucket_settings(server.url, bucket)
    made = open_objects(tmp_path, settings)
    yield made
    await made.close()


async def add_row(primary: Primary, key: str, thumb: str | None = None, table: str = "images") -> None:
    names, values = ("model", "'builtin'") if table == "images" else ("filename", "'a.png'")
    await primary.fetch("insert into users (id) values ('ana') on conflict do nothing")
    await primary.fetch(
        f"insert into {table} (owner_id, object_key, thumb_key, content_type, size_bytes, {names}) "
        f"values ('ana', $1, $2, 'image/png', 5, {values})",
        key, thumb,
    )  # fmt: skip


async def whole(primary: Primary, objects: Objects, count: int) -> list[str]:
    """Keys of images and references of which everything is there."""
    made = []
    for n in range(count):
        kind = "reference" if n % 3 == 0 else "generated"
        key = new_key(kind, TAG, "image/png", n)  # type: ignore[arg-type]
        thumb = None if n % 4 == 0 else thumb_key(key)
        await objects.put_many([(k, png()) for k in (keys_of_picture(key) if thumb else [key])])
        await add_row(primary, key, thumb, "reference_images" if kind == "reference" else "images")
        made.append(key)
    return made


async def prepared(data: bytes) -> Picture:
    return pictures.prepare(data)


async def run(
    primary: Primary, objects: Objects, *, repair: bool = False, after: timedelta = LATER
) -> tuple[Report, list[Finding]]:
    found: list[Finding] = []
    report = await reconcile.reconcile(
        primary, objects, now=datetime.now(UTC) + after, prepare=prepared if repair else None, found=found.append
    )
    return report, found


async def keys_of(objects: Objects) -> set[str]:
    return {info.key async for info in objects.scan()}


async def test_nothing_is_found_where_all_is_well(primary: Primary, objects: Objects) -> None:
    await whole(primary, objects, 12)

    report, found = await run(primary, objects, repair=True)

    assert (report.is_good, found, report.rows, report.objects) == (True, [], 30, 30)


@pytest.mark.parametrize("page", [1, 5000])
async def test_what_differs_is_found_and_only_that(
    primary: Primary, objects: Objects, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    """First, last and in between; whether a page or a key at a time is looked at."""
    monkeypatch.setattr(reconcile, "_PAGE", page)
    monkeypatch.setattr(reconcile, "_BATCH", min(page, 2))
    keys = await whole(primary, objects, 8)
    orphans = {new_key("generated", "0" * 32, "image/png", 0), new_key("reference", "f" * 32, "image/webp", 9)}
    await objects.put_many([(key, b"12345") for key in orphans])
    missing = {new_key("generated", "0" * 32, "image/png", 1), new_key("reference", "f" * 32, "image/png", 9), keys[1]}
    for key in missing - {keys[1]}:
        await add_row(primary, key)
    await objects.delete(keys[1])
    before = await keys_of(objects)

    report, found = await run(primary, objects)

    assert {f.key for f in found if f.kind == "orphan"} == orphans
    assert {f.key for f in found if f.kind == "missing"} == missing
    assert (report.orphans, report.orphan_bytes, report.missing, report.repaired) == (2, 10, 3, 0)
    assert not report.is_good
    assert await keys_of(objects) == before
    assert await primary.fetch("select 1 from deletions") == []


async def test_repair_deletes_orphans_and_makes_thumbnails_again(primary: Primary, objects: Objects) -> None:
    """A missing picture cannot be made: its row stays, and the run is not good."""
    keys = await whole(primary, objects, 6)
    orphan = new_key("generated", TAG, "image/png", 99)
    await objects.put(orphan, b"12345")
    thumbs = {thumb_key(keys[1]), small_thumb_key(keys[1])}
    for key in thumbs:
        await objects.delete(key)
    before = await keys_of(objects)

    report, found = await run(primary, objects, repair=True)
    await delete_due(primary, objects)

    assert report.is_good
    assert {(f.key, f.repaired) for f in found} == {
        (orphan, "to be deleted"),
        *((key, "made again") for key in thumbs),
    }
    assert await keys_of(objects) == before - {orphan} | thumbs
    assert (await objects.get(thumb_key(keys[1])))[8:12] == b"WEBP"

    await objects.delete(keys[2])
    report, (finding,) = await run(primary, objects, repair=True)
    assert (finding.key, finding.kind, finding.repaired, report.is_good) == (keys[2], "missing", "", False)
    assert len(await primary.fetch("select 1 from images where object_key = $1", keys[2])) == 1


async def test_what_is_under_way_is_no_finding(primary: Primary, objects: Objects) -> None:
    """An upload whose row is about to come; an object that is about to be deleted."""
    young, doomed = (new_key("generated", TAG, "image/png", n) for n in (1, 2))
    await objects.put(young, b"12345")

    report, _ = await run(primary, objects, repair=True, after=timedelta(minutes=59))
    assert (report.is_good, report.orphans, report.objects) == (True, 0, 1)

    await objects.delete(young)
    await objects.put(doomed, b"12345")
    await add_row(primary, doomed)
    await primary.fetch("delete from images")
    report, _ = await run(primary, objects)
    assert (report.is_good, report.orphans, report.objects, report.waiting) == (True, 0, 1, 1)


async def test_a_row_with_what_is_no_key_has_no_object(primary: Primary, objects: Objects) -> None:
    """Other services write rows; nothing of theirs becomes a path."""
    await add_row(primary, "../../etc/passwd")

    report, (finding,) = await run(primary, objects, repair=True)

    assert (finding.kind, finding.key, finding.repaired) == ("missing", "../../etc/passwd", "")
    assert not report.is_good


async def test_objects_of_a_job_in_work_are_no_orphans(primary: Primary, objects: Objects) -> None:
    """What an attempt of an unfinished job has named is not deleted, however old it is; what nobody names is."""
    mine, left = (new_key("generated", TAG, "image/png", n) for n in (1, 2))
    for key in (mine, left):
        await objects.put_many([(name, b"bytes") for name in keys_of_picture(key)])
    await primary.fetch("insert into users (id) values ('ana') on conflict do nothing")
    job = await primary.fetch(
        "insert into jobs (owner_id, prompt, provider, model) values ('ana', 'x', 'builtin', 'builtin') returning id"
    )
    await primary.fetch(
        "insert into attempts (job_id, owner_id, call, number, provider, model, fence, object_keys) "
        "values ($1, 'ana', 0, 1, 'builtin', 'builtin', 1, array[$2])",
        job[0][0], mine,
    )  # fmt: skip
    await primary.fetch("update queue set fence = 1")
    found: list[Finding] = []
    await reconcile.reconcile(primary, objects, now=datetime.now(UTC) + LATER, found=found.append)
    assert {finding.key for finding in found} == set(keys_of_picture(left))
