"""Real Postgres for every test: one embedded server per run, one fresh database per test."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from store.embedded import EmbeddedPostgres
from store.migrations import migrate
from store.primary import Primary
from tests.world import World

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def open_folder() -> Iterator[Path]:
    """A folder that any user may enter: pytest's own is closed to the one that Postgres runs as under root."""
    folder = Path(tempfile.mkdtemp(prefix="peruse-test-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
async def postgres(open_folder: Path) -> AsyncIterator[EmbeddedPostgres]:
    """The run's Postgres."""
    server = EmbeddedPostgres(open_folder / "postgres")
    await server.start()
    yield server
    await server.stop()


@pytest.fixture(scope="session")
async def template(postgres: EmbeddedPostgres) -> str:
    """Name of a migrated database that tests copy."""
    admin = await asyncpg.connect(postgres.url)
    await admin.execute("create database template_peruse")
    await admin.close()
    await migrate(postgres.url.replace("/peruse?", "/template_peruse?"))
    return "template_peruse"


@pytest.fixture
async def database(postgres: EmbeddedPostgres, template: str) -> AsyncIterator[str]:
    """URL of a fresh, migrated database."""
    name = f"test_{next(_numbers)}"
    admin = await asyncpg.connect(postgres.url)
    try:
        await admin.execute(f"create database {name} template {template} strategy wal_log")
        yield postgres.url.replace("/peruse?", f"/{name}?")
        await admin.execute(f"drop database {name} with (force)")
    finally:
        await admin.close()


@pytest.fixture
async def primary(database: str) -> AsyncIterator[Primary]:
    """A pool on the fresh database."""
    opened = await Primary.open(database, name="test", size=8)
    yield opened
    await opened.close()


@pytest.fixture
async def world(database: str, tmp_path: Path) -> AsyncIterator[World]:
    """A host and a gateway in this process, on the fresh database: everything but Ray."""
    made = World(tmp_path / "data", database)
    await made.start()
    yield made
    await made.stop()
