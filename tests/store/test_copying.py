"""Moving a store: all of it, once, the same bytes, from wherever it stopped."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from store.config import StoreSettings
from store.errors import ObjectsUnavailable
from store.objects import open_objects
from store.objects.copying import copy, measure
from store.objects.interface import Objects
from store.objects.keys import new_key, thumb_key
from store.objects.local import LocalObjects
from tests.fakes.s3_server import S3Server, bucket_settings

_numbers = itertools.count(1)
TAG = "0123456789abcdef" * 2
Make = Callable[[str], Objects]


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.stop()


@pytest.fixture
async def make(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Make]:
    """Makes stores, `local` or `s3`, each empty."""
    made: list[Objects] = []

    def one(kind: str) -> Objects:
        settings = StoreSettings()
        if kind == "s3":
            server: S3Server = request.getfixturevalue("s3")
            bucket = f"copying-{next(_numbers)}"
            server.make_bucket(bucket)
            settings = bucket_settings(server.url, bucket)
        made.append(open_objects(tmp_path / str(next(_numbers)), settings))
        return made[-1]

    yield one
    for objects in made:
        await objects.close()


async def fill(objects: Objects, count: int) -> dict[str, bytes]:
    """Objects of many sizes, an empty one among them."""
    made = {}
    for n in range(count):
        key = new_key("reference" if n % 3 == 0 else "generated", TAG, "image/png", n)
        made |= {key: bytes([n]) * (n * 997), thumb_key(key): b"thumb %d" % n}
    await objects.put_many(list(made.items()))
    return made


async def content(objects: Objects) -> dict[str, bytes]:
    return {info.key: await objects.get(info.key) async for info in objects.scan()}


@pytest.mark.parametrize(("origin", "target"), [("local", "s3"), ("s3", "local"), ("local", "local"), ("s3", "s3")])
async def test_everything_is_there_once_and_the_same(make: Make, origin: str, target: str) -> None:
    """Twice is as once; the source stays as it is."""
    source, destination = make(origin), make(target)
    made = await fill(source, 12)
    seen: list[str] = []

    done = await copy(source, destination, progress=lambda info: seen.append(info.key))

    assert await measure(source) == (24, sum(map(len, made.values())))
    assert (done.copied, done.copied_bytes, done.present, done.differ) == (24, sum(map(len, made.values())), 0, [])
    assert sorted(seen) == sorted(made)
    assert await content(destination) == made
    assert await content(source) == made

    again = await copy(source, destination)
    assert (again.copied, again.present, again.extra) == (0, 24, 0)


async def test_a_copy_goes_on_where_it_stopped(make: Make) -> None:
    """And leaves alone what only the destination has."""
    source, destination = make("local"), make("s3")
    made = await fill(source, 10)
    some = dict(list(made.items())[5:15])
    own = {new_key("generated", "f" * 32, "image/png", 1): b"own", new_key("generated", "0" * 32, "image/png", 1): b"o"}
    await destination.put_many(list((some | own).items()))

    done = await copy(source, destination)

    assert (done.copied, done.present, done.extra, done.differ) == (10, 10, 2, [])
    assert await content(destination) == made | own


async def test_an_object_that_is_not_the_same_is_told_and_left(make: Make) -> None:
    """Another size at once, other bytes of the same size when everything is read."""
    source, destination = make("s3"), make("local")
    made = await fill(source, 6)
    longer, other = sorted(made)[3], max(made, key=lambda key: len(made[key]))
    await destination.put(longer, made[longer] + b"more")
    await destination.put(other, b"x" * len(made[other]))

    assert (await copy(source, destination)).differ == [longer]
    verified = await copy(source, destination, verify=True)

    assert sorted(verified.differ) == sorted([longer, other])
    assert (verified.copied, verified.present) == (0, 10)
    assert await destination.get(other) == b"x" * len(made[other])


async def test_bytes_that_a_disk_changed_are_noticed(make: Make, tmp_path: Path) -> None:
    """Each copied object is read back."""

    class Lying(LocalObjects):
        async def put(self, key: str, data: bytes) -> None:
            await super().put(key, data[:-1] + b"?" if data else data)

    source = make("local")
    made = await fill(source, 4)

    done = await copy(source, Lying(tmp_path / "lying"))

    assert sorted(done.differ) == sorted(key for key in made if made[key])
    assert done.copied == 1


async def test_a_store_that_fails_ends_the_copy_and_the_next_run_ends_it(make: Make, tmp_path: Path) -> None:
    class Failing(LocalObjects):
        left = 7

        async def put(self, key: str, data: bytes) -> None:
            self.left -= 1
            if self.left == 0:
                raise ObjectsUnavailable("no room")
            await super().put(key, data)

    source, folder = make("local"), tmp_path / "failing"
    made = await fill(source, 20)

    with pytest.raises(ObjectsUnavailable, match="no room"):
        await copy(source, Failing(folder))

    destination = LocalObjects(folder)
    there = len(await content(destination))
    assert 0 < there < 40
    assert (await copy(source, destination)).present == there
    assert await content(destination) == made


async def test_two_copies_at_once_end_as_one(make: Make) -> None:
    source, destination = make("local"), make("local")
    made = await fill(source, 15)

    done = await asyncio.gather(copy(source, destination), copy(source, destination))

    assert sum(part.copied for part in done) == 30
    assert all(part.copied + part.present == 30 and not part.differ for part in done)
    assert await content(destination) == made


async def test_an_object_that_is_deleted_meanwhile_is_no_error(make: Make, tmp_path: Path) -> None:
    class Shrinking(LocalObjects):
        async def get(self, key: str) -> bytes:
            await self.delete(key)
            return await super().get(key)

    source = make("local")
    assert isinstance(source, LocalObjects)
    await fill(source, 3)
    destination = make("local")

    done = await copy(Shrinking(source.folder), destination)

    assert (done.gone, done.copied, await content(destination)) == (6, 0, {})
