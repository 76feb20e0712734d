"""What every object store must do, asked of each: a folder, and a bucket of a real S3 server."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from store.config import StoreSettings
from store.errors import InvalidValue, ObjectError, ObjectExists, ObjectMissing, RangeOutside
from store.objects import open_objects
from store.objects.interface import ObjectInfo, Objects
from store.objects.keys import cache_control_of, new_key, owner_tag, thumb_key
from store.objects.local import LocalObjects
from store.objects.s3 import S3Objects
from tests.fakes.s3_server import S3Server, bucket_settings

TAG, OTHER_TAG = owner_tag("user-1", b"secret"), owner_tag("user-2", b"secret")
BIG = bytes(range(256)) * 4000  # four chunks, the last one not full
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.stop()


@pytest.fixture(params=["local", "s3"])
async def objects(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Objects]:
    """An empty object store."""
    if request.param == "local":
        settings = StoreSettings()
    else:
        server: S3Server = request.getfixturevalue("s3")
        bucket = f"objects-{next(_numbers)}"
        server.make_bucket(bucket)
        settings = bucket_settings(server.url, bucket)
    made = open_objects(tmp_path, settings)
    await made.check()
    yield made
    await made.close()


def a_key(now_ms: int = 1, tag: str = TAG) -> str:
    return new_key("generated", tag, "image/png", now_ms)


async def read(objects: Objects, key: str, start: int = 0, end: int | None = None) -> bytes:
    async with objects.open(key, start=start, end=end) as opened:
        data = b"".join([chunk async for chunk in opened.chunks])
        assert len(data) == opened.end - opened.start
        assert opened.start == start
    return data


async def keys_of(objects: Objects, prefix: str = "", after: str = "") -> list[str]:
    return [info.key async for info in objects.scan(prefix, after=after)]


def test_settings_choose_the_store(tmp_path: Path) -> None:
    """mission: 170, 176"""
    assert isinstance(open_objects(tmp_path, StoreSettings()), LocalObjects)
    assert isinstance(open_objects(tmp_path, bucket_settings("http://127.0.0.1:1", "bucket")), S3Objects)


async def test_object_is_there_after_put_and_gone_after_delete(objects: Objects) -> None:
    """mission: 159, 161, 163, 164, 222"""
    key = a_key()
    assert not await objects.exists(key)

    await objects.put(key, b"bytes")

    assert await objects.exists(key)
    assert await objects.get(key) == b"bytes"
    await objects.delete(key)
    assert not await objects.exists(key)
    await objects.delete(key)
    for reading in (objects.get(key), objects.head(key), read(objects, key)):
        with pytest.raises(ObjectMissing, match=f"^object {key} does not exist$"):
            await reading


async def test_key_never_changes_its_bytes(objects: Objects) -> None:
    key = a_key()
    await objects.put(key, b"first")

    for data in (b"second", b"first"):
        with pytest.raises(ObjectExists, match=f"^object {key} exists$"):
            await objects.put(key, data)

    assert await objects.get(key) == b"first"


async def test_of_many_writers_of_a_key_exactly_one_wins(objects: Objects) -> None:
    key = a_key()
    contents = [bytes([n]) * 10_000 for n in range(12)]

    results = await asyncio.gather(*(objects.put(key, c) for c in contents), return_exceptions=True)

    winners = [content for content, result in zip(contents, results, strict=True) if result is None]
    assert len(winners) == 1
    assert [type(result) for result in results if result is not None] == [ObjectExists] * 11
    assert await objects.get(key) == winners[0]


async def test_put_many_writes_all_or_none(objects: Objects) -> None:
    key, taken, fresh = a_key(1), a_key(2), a_key(3)
    await objects.put_many([(key, b"picture"), (thumb_key(key), b"thumb")])
    await objects.put(taken, b"mine")

    with pytest.raises(ObjectExists, match=f"^object {taken} exists$"):
        await objects.put_many([(fresh, b"new"), (taken, b"yours")])
    await objects.put_many([])

    assert await objects.get(taken) == b"mine"
    assert await keys_of(objects) == sorted([key, thumb_key(key), taken])


async def test_head_tells_what_get_gives(objects: Objects) -> None:
    """mission: 168, 169"""
    for kind, cache_control in (
        ("generated", "public, max-age=31536000, immutable"),
        ("reference", "private, max-age=300"),
    ):
        for content_type in ("image/png", "image/jpeg", "image/webp", "image/avif"):
            key = new_key(kind, TAG, content_type, 1)  # type: ignore[arg-type]
            await objects.put(key, BIG)

            info = await objects.head(key)
            async with objects.open(key) as opened:
                assert opened.info == info
            assert (info.key, info.size_bytes, info.content_type) == (key, len(BIG), content_type)
            assert info.cache_control == cache_control == cache_control_of(key)
            assert abs(datetime.now(UTC) - info.modified_at) < timedelta(minutes=5)
            assert info.etag
            assert '"' not in info.etag


def test_only_a_key_has_a_cache_control() -> None:
    with pytest.raises(InvalidValue, match="'x' is not a key"):
        cache_control_of("x")


async def test_empty_object_is_an_object(objects: Objects) -> None:
    key = a_key()

    await objects.put(key, b"")

    assert await objects.get(key) == await read(objects, key) == b""
    assert (await objects.head(key)).size_bytes == 0
    with pytest.raises(RangeOutside):
        await read(objects, key, 0, 1)


@pytest.mark.parametrize(
    ("start", "end"),
    [(0, None), (0, 1), (1, None), (300_000, 700_000), (len(BIG) - 1, None), (5, len(BIG)), (7, 10**9)],
)
async def test_range_is_half_open(objects: Objects, start: int, end: int | None) -> None:
    key = a_key()
    await objects.put(key, BIG)

    assert await read(objects, key, start, end) == BIG[start:end]


@pytest.mark.parametrize(("start", "end"), [(len(BIG), None), (10**9, 2 * 10**9), (-1, None), (3, 3), (3, 2), (0, 0)])
async def test_range_without_a_byte_is_an_error(objects: Objects, start: int, end: int | None) -> None:
    key = a_key()
    await objects.put(key, BIG)

    with pytest.raises(RangeOutside, match=f"object {key} has "):
        await read(objects, key, start, end)


async def test_a_read_may_be_given_up(objects: Objects) -> None:
    key = a_key()
    await objects.put(key, BIG)

    for _ in range(40):  # more often than there are connections
        async with objects.open(key) as opened:
            assert await anext(opened.chunks)

    assert await objects.get(key) == BIG


async def test_scan_goes_through_all_keys_in_order(objects: Objects) -> None:
    written = [a_key(n, tag) for tag in (OTHER_TAG, TAG) for n in (3, 1, 2)]
    written += [thumb_key(written[0]), new_key("reference", TAG, "image/webp", 2)]
    await objects.put_many([(key, key.encode()) for key in written])
    written.sort()

    assert await keys_of(objects) == written
    assert await keys_of(objects, f"generated/{TAG}/") == [k for k in written if k.startswith(f"generated/{TAG}/")]
    assert await keys_of(objects, "reference/") == [k for k in written if k.startswith("reference/")]
    assert await keys_of(objects, written[0][:-20]) == [k for k in written if k.startswith(written[0][:-20])]
    assert await keys_of(objects, "nothing") == []
    for number, key in enumerate(written):
        assert await keys_of(objects, after=key) == written[number + 1 :]
    assert await keys_of(objects, "generated/", after=written[1]) == [k for k in written[2:] if k.startswith("gen")]
    infos: list[ObjectInfo] = [info async for info in objects.scan()]
    assert infos[0].size_bytes == len(written[0])
    assert infos[0].etag == (await objects.head(infos[0].key)).etag


@pytest.mark.parametrize(
    "key",
    ["../../etc/passwd", "/etc/passwd", "", f"generated/{TAG}", f"generated/../{TAG}/0000000000001-{'a' * 32}.png"],
)
async def test_malformed_key_is_no_object(objects: Objects, key: str) -> None:
    for call in (objects.put(key, b"x"), objects.get(key), objects.head(key), read(objects, key)):
        with pytest.raises(ObjectMissing, match="is not a key, so no object has it"):
            await call
    assert not await objects.exists(key)
    await objects.delete(key)
    assert await keys_of(objects) == []


async def test_many_at_once_keep_their_own_bytes(objects: Objects) -> None:
    written = {a_key(n): hashlib.sha256(bytes([n])).digest() * 5000 for n in range(40)}

    await asyncio.gather(*(objects.put(key, data) for key, data in written.items()))

    assert dict(zip(written, await asyncio.gather(*map(objects.get, written)), strict=True)) == written
    await asyncio.gather(*map(objects.delete, written))
    assert await keys_of(objects) == []


async def test_closed_store_can_be_closed_again(objects: Objects) -> None:
    assert await objects.sweep_temporary(3600) == 0
    await objects.close()
    await objects.close()


async def test_store_that_is_not_there_is_named_by_check(tmp_path: Path, s3: S3Server) -> None:
    """mission: 66"""
    missing = S3Objects(bucket_settings(s3.url, "no-such-bucket"))
    with pytest.raises(ObjectError, match=r"bucket no-such-bucket: 404 NoSuchBucket; is PERUSE_S3_BUCKET its name"):
        await missing.check()
    await missing.close()

    gone = LocalObjects(tmp_path / "objects")
    (tmp_path / "objects" / ".tmp").rmdir()
    with pytest.raises(ObjectError, match=f"folder {tmp_path / 'objects'} of the objects cannot be written to"):
        await gone.check()
