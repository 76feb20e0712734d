"""Reads that no host is asked for, in a storm: they are as true as all others."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path

import aiohttp
import asyncpg
import pytest

from gateway.auth import Role, Signer
from gateway.config import GatewaySettings
from store.epoch import Bookmark
from tests.faults.poller import Poller
from tests.faults.promises import Read, Version, recorded, start_recording, violations
from tests.faults.sessions import Client
from tests.faults.storm import Faults, SqlWriter
from tests.served import Served, peruse, processes_of
from tests.world import add_images

_LENGTH_S = float(os.environ.get("PERUSE_ZERO_HOP_S", "60"))
#: Those who write over HTTP too, and one of whom gateways hear nothing but what slots and hosts say.
_WRITING, _QUIET = ["ana", "ben", "cleo"], "dora"
_USERS = [*_WRITING, _QUIET]
_POLLERS = 3  # of each user
_KINDS = {"kill_host": 1, "stop_host": 1, "passivate": 4, "reseed": 3}
#: What the clocks of a version and of a read may differ by.
_CLOCKS_S = 1.0


@pytest.fixture
def served(open_folder: Path) -> Iterator[Served]:
    instance = Served(open_folder / "zero-hop", "--gateways", "2", "--hosts", "2")
    instance.start()
    yield instance
    assert instance.stop() == 0
    assert processes_of(instance.data) == []


def _token(served: Served, user: str, role: Role = "user") -> str:
    return Signer(served.data, GatewaySettings.load(served.data)).token(user, role=role)


class HostReads:
    """How many reads hosts answered, those that died too: as last seen of each of their lives."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._most: dict[tuple[str, str], float] = {}

    @property
    def total(self) -> int:
        return int(sum(self._most.values()))

    async def run(self, stop: asyncio.Event) -> None:
        """Look four times a second, until `stop`."""
        timeout = aiohttp.ClientTimeout(total=10)
        async with aiohttp.ClientSession(self._url, timeout=timeout) as http:
            while not stop.is_set():
                try:
                    async with http.get("/metrics") as answer:
                        self._look(await answer.text())
                except (aiohttp.ClientError, TimeoutError):
                    pass
                await asyncio.sleep(0.25)

    def _look(self, text: str) -> None:
        found: dict[str, dict[str, str]] = {"reads_total": {}, "generation": {}}
        for line in text.splitlines():
            for name, values in found.items():
                if line.startswith(f"peruse_host_{name}{{"):
                    host, _, value = line.partition("{")[2].partition("} ")
                    values[host] = value
        for host, reads in found["reads_total"].items():
            life = (host, found["generation"][host])
            self._most[life] = max(self._most.get(life, 0.0), float(reads))


def too_young(user: str, events: list[Read], versions: Mapping[tuple[str, int], Version]) -> list[str]:
    """Reads whose age is less than the time for which there had been a newer version."""
    found = []
    for event in events:
        after = versions.get((user, event.at.version + 1))
        if after is not None and after.made_at + _CLOCKS_S < event.sent_at - event.age_s:
            old_s = event.sent_at - after.made_at
            found.append(f"age: {user} reads {event.at} {old_s:.2f} s after the next one, age {event.age_s} s")
    return found


@pytest.mark.faults
@pytest.mark.timeout(_LENGTH_S + 180)
async def test_what_is_served_without_asking_is_as_true_as_what_is_asked_for(served: Served) -> None:
    """Pollers, writers, hosts that are killed, stopped and emptied: no version goes back (I4) or below a bookmark (I5),
    every page is the gallery of its version (I6), no age is too young; and hosts were asked for the fewest of them.

    mission: 220
    """
    seed = int(os.environ.get("PERUSE_SESSION_SEED") or random.SystemRandom().getrandbits(32))
    print(f"\nzero-hop: seed {seed}")
    primary_url = peruse("primary", data=served.data).stdout.strip()
    connection = await asyncpg.connect(primary_url)
    await start_recording(connection)
    for user in _USERS:
        await add_images(connection, user, 12)
    bookmarks: dict[str, Bookmark] = {}
    pollers = [
        Poller(served.url, user, _token(served, user), seed=seed + n, bookmarks={} if user == _QUIET else bookmarks)
        for n, (user, _) in enumerate(product(_USERS, range(_POLLERS)))
    ]
    clients = [
        Client(served.url, user, _token(served, user), bookmarks=True, seed=seed - n, others=bookmarks)
        for n, user in enumerate(_WRITING)
    ]
    writer = SqlWriter(primary_url, _USERS, seed=seed, bookmarks=bookmarks)
    faults = Faults(served, primary_url, _USERS, seed=seed, token=_token(served, "root", "admin"), kinds=_KINDS)
    host_reads = HostReads(served.url)

    stop, started = asyncio.Event(), time.monotonic()
    async with asyncio.TaskGroup() as group:
        for worker in (*pollers, *clients, writer, faults, host_reads):
            group.create_task(worker.run(stop))
        await asyncio.sleep(_LENGTH_S)
        stop.set()

    versions = await recorded(connection)
    await connection.close()
    polls = sum(poller.reads for poller in pollers)
    replicas_polls = sum(event.source == "replica" for poller in pollers for s in poller.sessions for event in s)
    replies: Counter[str] = sum((poller.counts for poller in pollers), Counter())
    print(f"zero-hop: {polls} polls in {time.monotonic() - started:.0f} s, {replicas_polls} from replicas")
    print(f"zero-hop: hosts answered {host_reads.total} reads of anybody; {len(versions)} versions")
    print(f"zero-hop: replies {dict(replies.most_common())}")
    print(f"zero-hop: faults {dict(faults.counts)}")
    found = [line for one in (*pollers, *clients) for line in one.wrong]
    found += [line for one in pollers for s in one.sessions for line in violations(one.user, s, versions)]
    found += [line for one in clients for s in one.sessions for line in violations(one.user, s, versions)]
    found += [line for one in pollers for s in one.sessions for line in too_young(one.user, s, versions)]
    assert found == [], f"{len(found)} with seed {seed}; faults: {faults.done}"
    # Otherwise it did not look at what it says it does.
    assert polls > 100 * _LENGTH_S
    assert len(versions) > 5 * _LENGTH_S
    assert sum(faults.counts.values()) > _LENGTH_S / 10
    assert replicas_polls > 20 * _LENGTH_S
    assert host_reads.total < replicas_polls / 2
    assert sum(count for name, count in replies.items() if name.startswith("304")) > 0
