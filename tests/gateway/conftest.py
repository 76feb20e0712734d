"""One world for the tests that need nothing special of it: each takes users of its own."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from store.config import StoreSettings
from store.embedded import EmbeddedPostgres
from store.generation.config import ProviderSettings
from tests.fakes.s3_proxy import S3Proxy
from tests.fakes.s3_server import S3Server, bucket_settings
from tests.gateway.link import PrimaryLink
from tests.gateway.repeated import Seen, look_on
from tests.world import World

_numbers = itertools.count(1)


# Of the package, not of the run: tests of other packages change the parts of a host while they run.
@pytest.fixture(scope="package")
async def shared(
    postgres: EmbeddedPostgres, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    """A world for all of them."""
    admin = await asyncpg.connect(postgres.url)
    await admin.execute(f"create database shared template {template} strategy wal_log")
    made = World(tmp_path_factory.mktemp("shared") / "data", postgres.url.replace("/peruse?", "/shared?"))
    await made.start()
    yield made
    await made.stop()
    await admin.execute("drop database shared with (force)")
    await admin.close()


@pytest.fixture(scope="package")
async def studio(
    postgres: EmbeddedPostgres, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    """A world with a key at every provider, of which none is called: it has no workers."""
    admin = await asyncpg.connect(postgres.url)
    await admin.execute(f"create database studio template {template} strategy wal_log")
    made = World(tmp_path_factory.mktemp("studio") / "data", postgres.url.replace("/peruse?", "/studio?"))
    keys = {f"{name}_key": "k" for name in ("openrouter", "workers_ai", "openai", "nanobanana", "replicate", "fal")}
    made.providers = ProviderSettings(workers_ai_account="account", **keys)
    await made.start()
    yield made
    await made.stop()
    await admin.execute("drop database studio with (force)")
    await admin.close()


@pytest.fixture
def user() -> str:
    """A user whom no other test knows."""
    return f"user-{next(_numbers)}"


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """What comes in at servers, and which of it they knew."""
    return look_on(monkeypatch)


@pytest.fixture
async def link(database: str) -> AsyncIterator[PrimaryLink]:
    """A way to the fresh database that can be cut."""
    made = PrimaryLink(database)
    await made.open()
    yield made
    await made.close()


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """A real S3 server, without a bucket."""
    server = S3Server()
    yield server
    server.stop()


@pytest.fixture
async def proxy(s3: S3Server) -> AsyncIterator[S3Proxy]:
    """A way to it that can fail."""
    made = S3Proxy(s3.url)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def on_s3(s3: S3Server, proxy: S3Proxy, database: str, tmp_path: Path) -> AsyncIterator[World]:
    """A world whose objects are in a bucket of its own, by way of `proxy`; a free plan has room for 100,000 bytes."""
    bucket = f"world-{next(_numbers)}"
    s3.make_bucket(bucket)
    made = World(tmp_path / "data", database)
    made.store = bucket_settings(proxy.url, bucket, storage_free_bytes=100_000, s3_timeout_s=5.0)
    await made.start()
    proxy.forget()
    yield made
    await made.stop()


@pytest.fixture
async def on_disk(database: str, tmp_path: Path) -> AsyncIterator[World]:
    """The same with a folder."""
    made = World(tmp_path / "data", database)
    made.store = StoreSettings(storage_free_bytes=100_000)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture(params=["local", "s3"])
def either(request: pytest.FixtureRequest) -> World:
    """A world on each of the object stores."""
    made: World = request.getfixturevalue("on_disk" if request.param == "local" else "on_s3")
    return made
