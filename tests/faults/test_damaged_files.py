"""Replica files that were damaged while nobody had them open: found, counted, made anew, and nothing of another user in
any answer.

Bytes inside a stored document are left out: only a comparison with the primary can see that they changed.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest

from actors.replica_file import delete_files
from store.gallery import GalleryQuery, encode_query
from store.primary import Connection, Primary
from tests.actors.fleet import Fleet, History, add_image, position, shown

_PAGE, _HEADER = 4096, 100
_OLDEST_FIRST = encode_query(GalleryQuery(sort="oldest", limit=200))
_FIRST_THREE = encode_query(GalleryQuery(limit=3))


class Left(NamedTuple):
    """What a host leaves of a replica: the file and its log."""

    file: bytes
    log: bytes = b""


class Gallery:
    """A user with 60 images, whose replica's file a test may put others in the place of."""

    def __init__(self, fleet: Fleet, history: History, user: str) -> None:
        self.fleet, self.history, self.user = fleet, history, user

    async def make(self) -> Gallery:
        self.ids, self.head = await self.history.write([self.user], self._add)
        await self._look()
        return self

    async def _add(self, connection: Connection) -> list[str]:
        return [await add_image(connection, self.user, f"{self.user}'s picture {n}") for n in range(60)]

    @property
    def path(self) -> Path:
        return self.fleet.file(self.user)

    @property
    def log(self) -> Path:
        return self.path.with_name(f"{self.path.name}-wal")

    async def finds(self, left: Left) -> bool:
        """Put `left` in the place of the file, then read and write as people do. Answers whether it was found to be
        broken; fails unless every answer is true, and what was broken is counted and made anew once."""
        fleet = self.fleet
        fleet.replicas.passivate(self.user)
        path = self.path
        delete_files(path)
        path.write_bytes(left.file)
        if left.log:
            path.with_name(f"{path.name}-wal").write_bytes(left.log)
        before = fleet.metrics.broken, fleet.metrics.seeds

        await self._look()
        await self.change()
        broken, seeds = fleet.metrics.broken - before[0], fleet.metrics.seeds - before[1]
        assert (broken, seeds) in ((0, 0), (1, 1))
        return bool(broken)

    async def change(self) -> None:
        """A few rows, here and there, and a look at what came of it."""
        some = self.ids[:: len(self.ids) // 5]

        async def work(connection: Connection) -> None:
            await connection.execute("update images set starred = not starred where id::text = any($1)", some)

        _, self.head = await self.history.write([self.user], work)
        await self._look()

    async def _look(self) -> None:
        answer = await self.fleet.read(self.user, self.head)
        assert position(answer.cursor) == self.head
        self.history.check(self.user, answer)
        everything = shown(answer)
        assert shown(await self.fleet.read(self.user, query=_OLDEST_FIRST)) == everything[::-1]
        assert shown(await self.fleet.read(self.user, query=_FIRST_THREE)) == everything[:3]


@pytest.fixture
async def fleet(database: str, tmp_path: Path) -> AsyncIterator[Fleet]:
    opened = await Fleet(tmp_path / "replicas", database).open()
    yield opened
    await opened.close()


@pytest.fixture
async def ana(fleet: Fleet, primary: Primary) -> Gallery:
    return await Gallery(fleet, History(primary), "ana").make()


@pytest.fixture
async def bob(fleet: Fleet, primary: Primary) -> Gallery:
    return await Gallery(fleet, History(primary), "bob").make()


async def _closed(*galleries: Gallery) -> list[Left]:
    """What an orderly end leaves: everything in the file, and no log."""
    for gallery in galleries:
        gallery.fleet.replicas.passivate(gallery.user)
        assert not gallery.log.exists()
    return [Left(gallery.path.read_bytes()) for gallery in galleries]


async def _killed(*galleries: Gallery) -> list[Left]:
    """What a kill leaves: some of it in the log. The next host has the same folder."""
    fleet = galleries[0].fleet
    for gallery in galleries:
        await gallery.change()
    await fleet.crash()
    left = [Left(gallery.path.read_bytes(), gallery.log.read_bytes()) for gallery in galleries]
    await fleet.open()
    return left


def _with(left: Left, offset: int, content: bytes) -> Left:
    return left._replace(file=left.file[:offset] + content + left.file[offset + len(content) :])


def _flipped(content: bytes, offset: int, chance: random.Random) -> bytes:
    return content[:offset] + bytes([content[offset] ^ chance.randrange(1, 256)]) + content[offset + 1 :]


async def test_damaged_pages_are_found_or_in_nobodys_way(ana: Gallery) -> None:
    """The tree of every page in turn: its type, its count of cells, the places of its cells, all of it."""
    (left,) = await _closed(ana)
    found = []
    for start in range(0, len(left.file), _PAGE):
        tree = start or _HEADER  # the first page begins with the file's own header
        leaf_bytes = 12 if left.file[tree] in (2, 5) else 8
        cells = int.from_bytes(left.file[tree + 3 : tree + 5], "big")
        damages = (
            _with(left, tree, b"\0"),
            _with(left, tree + 3, b"\xff\xff"),
            _with(left, tree + leaf_bytes, b"\xff" * 2 * cells),
            _with(left, start, b"\xa5" * _PAGE),
        )
        found.append([await ana.finds(damage) for damage in damages])

    # The trees of kinds that this user has nothing of are not read, and their pages hold no cells.
    assert sum(map(all, found)) >= len(found) / 3
    assert all(any(one) == one[0] for one in found), found


async def test_a_damaged_header_or_schema_is_found_or_in_nobodys_way(ana: Gallery) -> None:
    """Each byte of the header in turn, and sixty of the schema's text."""
    (left,) = await _closed(ana)
    chance = random.Random(3)
    schema = range(int.from_bytes(left.file[_HEADER + 5 : _HEADER + 7], "big"), _PAGE)
    offsets = [*range(_HEADER), *chance.sample(schema, 60)]

    found = [await ana.finds(Left(_flipped(left.file, offset, chance))) for offset in offsets]

    assert sum(found[:_HEADER]) >= 20
    assert sum(found[_HEADER:]) >= 30


async def test_a_file_that_was_cut_off_is_found(ana: Gallery) -> None:
    """To nothing, within a page, between two, and with its log."""
    (closed,) = await _closed(ana)
    half = len(closed.file) // _PAGE // 2 * _PAGE
    for size in (0, 1, 99, _PAGE // 2, _PAGE, _PAGE + 1, half, half + _PAGE // 2):
        assert await ana.finds(Left(closed.file[:size])), size

    (killed,) = await _killed(ana)
    assert await ana.finds(killed._replace(file=killed.file[:_PAGE]))


async def test_a_damaged_log_is_worth_what_is_whole_of_it(ana: Gallery) -> None:
    """Its checksums cut it off at the first wrong byte: the version before is true too, and pulled from."""
    await ana.finds((await _closed(ana))[0])
    (left,) = await _killed(ana)
    assert len(left.log) > _PAGE
    assert not await ana.finds(left)
    chance = random.Random(4)

    for offset in chance.sample(range(len(left.log)), 50):
        assert not await ana.finds(left._replace(log=_flipped(left.log, offset, chance))), offset
    for size in (1, 31, 32, 56, 57, _PAGE, len(left.log) // 2, len(left.log) - 1):
        assert not await ana.finds(left._replace(log=left.log[:size])), size
    assert not await ana.finds(left._replace(log=b"\xa5" * len(left.log)))


async def test_a_file_of_another_user_is_found_and_shown_to_nobody(ana: Gallery, bob: Gallery) -> None:
    """Files, logs, and one's file under the other's log, put in each other's places. mission: 141"""
    for leave in (_closed, _killed):
        left, other = await leave(ana, bob)
        assert await ana.finds(other)
        assert await bob.finds(left)
    left, other = await _killed(ana, bob)
    # Whose log it is, a log does not say: laid over a file, its pages carry their owner's name into it.
    assert await ana.finds(Left(left.file, other.log))
    assert await ana.finds(Left(other.file, left.log))
    assert await ana.finds(Left(b"", other.log))
    for gallery, stranger in ((ana, bob), (bob, ana)):
        files = list(gallery.path.parent.glob("*.db*"))
        assert [file for file in files if f"{stranger.user}'s ".encode() in file.read_bytes()] == []
