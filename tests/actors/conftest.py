"""Replicas of one host on the fresh database, and a gate before it."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.config import HostSettings
from actors.host import ReplicaHost
from store.clock import Clock
from store.config import StoreSettings
from store.primary import Primary
from tests.actors.fleet import Fleet, Gate, History


@pytest.fixture
async def fleet(database: str, tmp_path: Path) -> AsyncIterator[Fleet]:
    """The replicas of one host."""
    opened = await Fleet(tmp_path / "replicas", database).open()
    yield opened
    await opened.close()


@pytest.fixture
def history(primary: Primary) -> History:
    """Every version of every user that was written through it."""
    return History(primary)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path leaves room for the name of a socket."""
    with tempfile.TemporaryDirectory(prefix="peruse-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
async def gate(database: str, short_folder: Path) -> AsyncIterator[Gate]:
    """An open way to the primary."""
    opened = await Gate(short_folder, database).open()
    yield opened
    await opened.shut()


@pytest.fixture
async def start_host(database: str, short_folder: Path) -> AsyncIterator[Callable[..., Awaitable[ReplicaHost]]]:
    """Starts the host of a slot, as often as it is called; all are stopped at the end."""
    started: list[ReplicaHost] = []

    async def start(slot: int, *, url: str = database, clock: Clock | None = None, **settings: Any) -> ReplicaHost:
        host = ReplicaHost(
            short_folder / "data",
            slot=slot,
            primary_url=url,
            store=StoreSettings(),
            settings=HostSettings(node="test", **settings),
            build="test",
            clock=clock,
        )
        started.append(host)
        await host.start()
        return host

    yield start
    for host in started:
        await host.stop()
