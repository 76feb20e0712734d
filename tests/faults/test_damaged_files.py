"""Replica files that were damaged while nobody had them open: found, counted, made anew, and nothing of another user in
any answer.

Bytes inside a stored document are left out: only a comparison with the primary can see that they changed.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from actors.activation import Answer
from actors.errors import Seeding
from actors.replica import delete_files
from store.epoch import Bookmark
from store.gallery import GalleryQuery, ImageQuery, encode_query
from store.primary import Connection
from tests.actors.fleet import ALL, Fleet, History, add_image, position, shown
from tests.world import until

_PAGE = 4096
_WAL_HEAD, _FRAME_HEAD = 32, 24
_QUERIES = (ALL, encode_query(GalleryQuery(sort="oldest", limit=200)), encode_query(GalleryQuery(limit=3)))


class Left(NamedTuple):
    """What a killed host leaves of a replica: the file and its log."""

    file: bytes
    log: bytes


class Gallery:
    """A user with 60 images, whose replica's file a test may replace by another."""

    def __init__(self, fleet: Fleet, history: History, user: str) -> None:
        self.fleet, self.history, self.user = fleet, history, user

    async def make(self) -> Gallery:
        """Half of the rows in the file, the newer half in its log."""
        for part in ("older", "newer"):
            self.ids, self.head = await self.history.write([self.user], lambda c, p=part: self._add(c, p))
            await self._read()
            if part == "older":
                self.fleet.replicas.passivate(self.user)
        await self._read(self.head)
        self.path = self.fleet.file(self.user)
        return self

    async def _add(self, connection: Connection, part: str) -> list[str]:
        return [await add_image(connection, self.user, f"{self.user}'s {part} picture {n}") for n in range(30)]

    async def _read(self, floor: Bookmark | None = None) -> Answer:
        return await self.fleet.read(self.user, floor)

    async def damaged(self, left: Left) -> int:
        """Put `left` in the place of the file, and read and write as people do. Answers how often that was found to be
        broken; fails unless every answer is true."""
        fleet, replicas = self.fleet, self.fleet.replicas
        replicas.passivate(self.user)
        delete_files(self.path)
        self.path = fleet.file(self.user) if fleet.folder.find(self.user) else self.path
        self.path.write_bytes(left.file)
        if left.log:
            self.path.with_name(f"{self.path.name}-wal").write_bytes(left.log)
        broken, seeds = fleet.metrics.broken, fleet.metrics.seeds
        for query in _QUERIES:
            self._check(await fleet.read(self.user, query=query), query)
        await fleet.read(self.user, query=encode_query(ImageQuery(self.ids[0])))
        found = fleet.metrics.broken - broken
        assert fleet.metrics.seeds - seeds == found, "every broken file is made anew once"
        self.path = fleet.file(self.user)
        return found

    def _check(self, answer: Answer, query: bytes) -> None:
        assert position(answer.cursor) == self.head
        if query == ALL:
            self.history.check(self.user, answer)
        assert all(document["prompt"].startswith(f"{self.user}'s ") for document in shown(answer))


@pytest.fixture
async def galleries(fleet: Fleet, history: History) -> tuple[Gallery, Gallery]:
    return await Gallery(fleet, history, "ana").make(), await Gallery(fleet, history, "bob").make()


async def _left_by_a_kill(fleet: Fleet, galleries: tuple[Gallery, Gallery]) -> tuple[Left, Left]:
    """End the host as a kill does; the next one has the same folder."""
    await fleet.crash()
    left = tuple(
        Left(g.path.read_bytes(), g.path.with_name(f"{g.path.name}-wal").read_bytes()) for g in galleries
    )
    await fleet.open()
    return left  # type: ignore[return-value]


async def _closed(fleet: Fleet, galleries: tuple[Gallery, Gallery]) -> tuple[Left, Left]:
    """What an orderly end leaves: everything in the file, and no log."""
    await fleet.close()
    left = tuple(Left(g.path.read_bytes(), b"") for g in galleries)
    await fleet.open()
    return left  # type: ignore[return-value]
