"""One world for the tests that need nothing special of it: each takes users of its own."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator

import asyncpg
import pytest

from store.embedded import EmbeddedPostgres
from tests.gateway.link import PrimaryLink
from tests.world import World

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
async def shared(
    postgres: EmbeddedPostgres, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    """A world for the whole run."""
    admin = await asyncpg.connect(postgres.url)
    await admin.execute(f"create database shared template {template} strategy wal_log")
    made = World(tmp_path_factory.mktemp("shared") / "data", postgres.url.replace("/peruse?", "/shared?"))
    await made.start()
    yield made
    await made.stop()
    await admin.execute("drop database shared with (force)")
    await admin.close()


@pytest.fixture
def user() -> str:
    """A user whom no other test knows."""
    return f"user-{next(_numbers)}"


@pytest.fixture
async def link(database: str) -> AsyncIterator[PrimaryLink]:
    """A way to the fresh database that can be cut."""
    made = PrimaryLink(database)
    await made.open()
    yield made
    await made.close()
