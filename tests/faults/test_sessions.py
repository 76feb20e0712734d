"""Sessions in a storm: two gateways, two hosts, and no client is ever told anything that is not so."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import asyncpg
import pytest

from gateway.auth import Role, Signer
from gateway.config import GatewaySettings
from store.epoch import Bookmark
from tests.faults.promises import Gallery, Image, Read, Version, Write, recorded, start_recording, view, violations
from tests.faults.sessions import Client
from tests.faults.storm import Faults, SqlWriter
from tests.served import Served, eventually, peruse, processes_of
from tests.world import add_images

_LENGTH_S = float(os.environ.get("PERUSE_SESSION_S", "45"))
_USERS = ["ana", "ben", "cleo"]
#: Of each user's clients, whether they carry bookmarks: several, so that they meet in the same pulls and statements.
_CLIENTS = (True, True, True, False, False)

# --- the checker itself -------------------------------------------------------------------------------------------


def _image(name: str, title: str | None = None, *, starred: bool = False, trashed_at: str | None = None) -> Image:
    return Image(name, f"/files/{name}", title, starred, "unlisted", trashed_at, f"2026-01-0{name}T00:00:00.000000Z")


_ONE, _TWO = (_image("1"),), (_image("2", "new"), _image("1"))
_THREE = (_image("2", "newer"), _image("1", trashed_at="2026-02-01T00:00:00.000000Z"))
#: Versions 1, 2 and 3 of ana, made ten seconds apart.
_VERSIONS = {("ana", n): Version(1000.0 + 10 * n, gallery) for n, gallery in enumerate((_ONE, _TWO, _THREE), start=1)}


def _at(version: int, epoch: int = 5) -> Bookmark:
    return Bookmark(f"{epoch}-1", version)


def _read(
    at: Bookmark,
    *,
    images: Gallery | None = None,
    name: str = "newest",
    asked: Bookmark | None = None,
    on_timeout: str = "primary",
    outcome: str = "fresh",
    age_s: int = 1,
    max_age_s: int | None = None,
    sent_at: float = 0.0,
) -> Read:
    """A read of ana that is right, unless told otherwise."""
    shown = view(_VERSIONS["ana", at.version].gallery, name) if images is None else images
    return Read(sent_at, name, asked, on_timeout, max_age_s, at, outcome, "replica", age_s, shown)


_RIGHT: dict[str, list[Read | Write]] = {
    "forward": [_read(_at(1)), _read(_at(1)), _read(_at(3)), _read(_at(3, epoch=6))],
    "a new epoch": [_read(_at(3)), _read(_at(2, epoch=6))],
    "every view": [_read(_at(3), name=name) for name in ("newest", "oldest", "starred", "trash")],
    "its own write": [Write(_at(2), _TWO[0]), _read(_at(2))],
    "stale, as it was welcome": [_read(_at(3)), _read(_at(2), asked=_at(3), on_timeout="stale", outcome="stale")],
    "old, and says so": [_read(_at(1), sent_at=1100.0, age_s=80)],
}
_WRONG: dict[str, tuple[str, list[Read | Write]]] = {
    "back in time": ("I4", [_read(_at(2)), _read(_at(1))]),
    "back in time, later": ("I4", [_read(_at(3)), _read(_at(3)), _read(_at(2))]),
    "back to an older epoch": ("I4", [_read(_at(1, epoch=6)), _read(_at(2, epoch=5))]),
    "stale, but it had asked for the primary": ("I4", [_read(_at(2)), _read(_at(1), outcome="stale")]),
    "below the bookmark": ("I5", [_read(_at(1), asked=_at(2))]),
    "below the bookmark, and does not say so": ("I5", [_read(_at(1), asked=_at(2), on_timeout="stale")]),
    "not its own write": ("I5", [Write(_at(2), _TWO[0]), _read(_at(1))]),
    "a version that never was": ("I6", [_read(_at(4), images=_THREE)]),
    "an image too many": ("I6", [_read(_at(1), images=_TWO)]),
    "an image missing": ("I6", [_read(_at(2), images=_ONE)]),
    "an older title": ("I6", [_read(_at(3), images=_TWO[:1])]),
    "another order": ("I6", [_read(_at(2), images=_TWO[::-1])]),
    "the trash in the gallery": ("I6", [_read(_at(3), images=_THREE)]),
    "a write that was lost": ("I1", [Write(_at(2), _image("2", "mine"))]),
    "older than it says": ("age", [_read(_at(1), sent_at=1100.0, age_s=70)]),
    "older than was asked for": ("age", [_read(_at(3), age_s=5, max_age_s=4)]),
}


@pytest.mark.parametrize("name", _RIGHT)
def test_a_right_history_passes(name: str) -> None:
    """What is allowed is not reported."""
    assert violations("ana", _RIGHT[name], _VERSIONS) == []


@pytest.mark.parametrize("name", _WRONG)
def test_a_wrong_history_is_found_out(name: str) -> None:
    """Each of these breaks one promise, and the report names it."""
    promise, events = _WRONG[name]

    found = violations("ana", events, _VERSIONS)

    assert [line.partition(":")[0] for line in found] == [promise]


# --- the real thing -----------------------------------------------------------------------------------------------


@pytest.fixture
def served(open_folder: Path) -> Iterator[Served]:
    instance = Served(open_folder / "sessions", "--gateways", "2", "--hosts", "2")
    instance.start()
    yield instance
    assert instance.stop() == 0
    assert processes_of(instance.data) == []


def _token(served: Served, user: str, role: Role = "user") -> str:
    return Signer(served.data, GatewaySettings.load(served.data)).token(user, role=role)


async def _make_users(primary_url: str) -> None:
    connection = await asyncpg.connect(primary_url)
    await start_recording(connection)
    for user in _USERS:
        await add_images(connection, user, 12)
    await connection.close()


async def _gateways(served: Served) -> set[str]:
    """The gateways that new connections have led to."""
    found = set()
    async with aiohttp.ClientSession(served.url, connector=aiohttp.TCPConnector(force_close=True)) as http:
        for _ in range(20):
            async with http.get("/metrics") as answer:
                text = await answer.text()
            found |= {line.split('gateway="')[1][0] for line in text.splitlines() if line.startswith("peruse_reads_")}
    return found


async def _storm(clients: list[Client], writers: list[SqlWriter], faults: Faults) -> None:
    """Everything at once, for as long as was asked for."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for worker in (*clients, *writers, faults):
            group.create_task(worker.run(stop))
        await asyncio.sleep(_LENGTH_S * 0.6)
        await faults.cause(faults.kill_postgres)
        await asyncio.sleep(_LENGTH_S * 0.4)
        stop.set()


@pytest.mark.long
@pytest.mark.faults
@pytest.mark.timeout(_LENGTH_S + 240)
async def test_no_client_is_told_what_is_not_so(served: Served) -> None:
    """Random faults, with and without bookmarks: versions never go back (I4), nobody reads less than the bookmark sent
    or their own write without being told (I5), every page is the user's gallery at the version it names (I6).

    mission: 220
    """
    seed = int(os.environ.get("PERUSE_SESSION_SEED") or random.SystemRandom().getrandbits(32))
    print(f"\nsessions: seed {seed}")
    primary_url = peruse("primary", data=served.data).stdout.strip()
    await _make_users(primary_url)
    bookmarks: dict[str, Bookmark] = {}
    clients = [
        Client(served.url, user, _token(served, user), bookmarks=carries, seed=seed + n, others=bookmarks)
        for n, (user, carries) in enumerate(itertools.product(_USERS, _CLIENTS))
    ]
    faults = Faults(served, primary_url, _USERS, seed=seed, token=_token(served, "root", "admin"))
    writers = [SqlWriter(primary_url, _USERS, seed=seed + n, bookmarks=bookmarks) for n in range(2)]

    await _storm(clients, writers, faults)
    calm_since = time.monotonic()
    await eventually(lambda: _settled(served, primary_url), timeout_s=60)
    settled_s = time.monotonic() - calm_since

    by_sql = sum(writer.counts["committed"] for writer in writers)
    connection = await asyncpg.connect(primary_url)
    versions = await recorded(connection)
    await connection.close()
    counts: Counter[str] = sum((client.counts for client in clients), Counter())
    sessions = [(client.user, session) for client in clients for session in client.sessions]
    reads = sum(isinstance(event, Read) for _, session in sessions for event in session)
    print(f"sessions: {reads} reads, {counts['written']} writes over HTTP, {by_sql} by SQL, {len(versions)} versions")
    print(f"sessions: replies {dict(counts.most_common())}")
    print(f"sessions: faults {dict(faults.counts)}; settled after {settled_s:.1f} s")
    slowest_s = max(client.longest_s for client in clients)
    sticky_longest = max(len(s) for client in clients if not client.carries_bookmarks for s in client.sessions)
    print(f"sessions: longest wait {slowest_s:.1f} s, longest session without bookmarks {sticky_longest} replies")
    found = [line for client in clients for line in client.wrong]
    found += [line for user, session in sessions for line in violations(user, session, versions)]
    assert found == [], f"{len(found)} with seed {seed}; faults: {faults.done}"
    # Otherwise it did not look at what it says it does.
    assert reads > 20 * _LENGTH_S
    assert counts["written"] > _LENGTH_S
    assert by_sql > _LENGTH_S
    assert sum(faults.counts.values()) > _LENGTH_S / 10
    assert sticky_longest > 50
    assert all(any(key.startswith(f"{outcome} ") for key in counts) for outcome in ("fresh", "waited", "primary"))
    assert await _gateways(served) == {"0", "1"}


async def _settled(served: Served, primary_url: str) -> bool:
    """Every user's replica answers, at the head."""
    connection = await asyncpg.connect(primary_url)
    heads = dict(await connection.fetch("select user_id, version from sync_user"))
    await connection.close()
    for user in _USERS:
        async with served.client(user) as http:
            reply = await http.get("/api/images", params={"limit": "1"})
        at = Bookmark.parse(reply.headers.get("Peruse-Bookmark", ""))
        if at is None or at.version != heads[user] or reply.headers["Peruse-Source"] != "replica":
            return False
    return True
