"""The primary is away for a minute: half of it silent, as a paused machine is, half of it refusing connections, as a
stopped one does. Reads go on and say how old they are, nothing hangs, and everything heals by itself."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from store.epoch import Bookmark
from store.primary import Primary
from tests.gateway.link import PrimaryLink
from tests.served import Served, eventually, processes_of
from tests.world import World, add_images, png, until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(200)]

_SILENT_S = _REFUSING_S = 30.0
_HEALED_S = 5.0
#: The longest that an answer may take: for reads what they wait for a host and then for the primary; for everything
#: that needs the primary, a statement on a connection that says nothing any more, and then a new connection.
_READ_S, _WRITE_S = 4.0, 20.0
_MAX_STALENESS_S = 5


class Asked(NamedTuple):
    """One answer. `at`: seconds since the primary went away, when it was asked."""

    what: str
    at: float
    took_s: float
    status: int
    headers: httpx.Headers
    body: bytes


@pytest.fixture
async def link(database: str) -> AsyncIterator[PrimaryLink]:
    opened = PrimaryLink(database)
    await opened.open()
    yield opened
    await opened.close()


@pytest.mark.long
async def test_a_minute_without_the_primary(
    open_folder: Path, link: PrimaryLink, primary: Primary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mission: 139, 142"""
    monkeypatch.setenv("PERUSE_PRIMARY_URL", link.url)
    served = Served(open_folder / "away")
    await asyncio.to_thread(served.start)
    try:
        clients = {user: await asyncio.to_thread(served.client, user) for user in ("ana", "bob", "cold")}
        try:
            await _minute(link, primary, clients)
        finally:
            for client in clients.values():
                await client.aclose()
    finally:
        assert await asyncio.to_thread(served.stop) == 0
    assert processes_of(served.data) == []


async def _minute(link: PrimaryLink, primary: Primary, clients: dict[str, httpx.AsyncClient]) -> None:
    images = {user: str((await primary.write(user, lambda c, u=user: add_images(c, u, 5)))[0][0]) for user in clients}
    for user in ("ana", "bob"):
        await eventually(lambda user=user: _is_from_replica(clients[user]), timeout_s=15)
    before = await clients["ana"].get("/api/images")
    for client in clients.values():
        client.timeout = httpx.Timeout(2 * _WRITE_S)  # what is late shall be seen to be late
    probes = Probes(clients, images, before)

    probes.start()
    link.block()
    try:
        await asyncio.sleep(_SILENT_S)
        await link.cut()
        await asyncio.sleep(_REFUSING_S)
    finally:
        asked = await probes.stop()
        link.unblock()
        await link.open()
    healed_at = time.monotonic()
    await _heals(clients, images, primary, healed_at)

    assert probes.lost == []
    _check_reads(asked, before)
    _check_refusals(asked)


class Probes:
    """Everything that a client may ask, each again and again, and the answers."""

    def __init__(self, clients: dict[str, httpx.AsyncClient], images: dict[str, str], before: httpx.Response) -> None:
        at = Bookmark.parse(before.headers["Peruse-Bookmark"])
        assert at is not None
        future = str(at._replace(version=at.version + 5))
        path = f"/api/images/{images['bob']}"
        self.lost: list[str] = []
        self._answers: list[Asked] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._ask: dict[str, Callable[[], Any]] = {
            "read": lambda: clients["ana"].get("/api/images"),
            "other read": lambda: clients["bob"].get("/api/images"),
            "young": _get(clients["ana"], **{"Peruse-Max-Staleness": str(_MAX_STALENESS_S)}),
            "however old": _get(clients["ana"], **{"Peruse-Max-Staleness": "3600"}),
            "stale": _get(clients["bob"], **{"Peruse-Bookmark": future, "Peruse-On-Timeout": "stale"}),
            "floor": _get(clients["bob"], **{"Peruse-Bookmark": future}),
            "floor or error": _get(clients["bob"], **{"Peruse-Bookmark": future, "Peruse-On-Timeout": "error"}),
            "validated": _get(clients["ana"], **{"Peruse-Validate": "1"}),
            "cold": lambda: clients["cold"].get("/api/images"),
            "patch": lambda: clients["bob"].patch(path, json={"title": "refused"}),
            "delete": lambda: clients["bob"].delete(path),
            "upload": lambda: clients["bob"].post(
                "/api/images/upload", data={"prompt": "refused"}, files={"file": ("a.png", png(), "image/png")}
            ),
            "sync": lambda: clients["bob"].post("/api/images/sync"),
        }

    def start(self) -> None:
        self._started_at = time.monotonic()
        self._tasks = [asyncio.create_task(self._keep_asking(what)) for what in self._ask]

    async def stop(self) -> list[Asked]:
        for task in self._tasks:
            task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        assert [r for r in results if isinstance(r, Exception) and not isinstance(r, asyncio.CancelledError)] == []
        return self._answers

    async def _keep_asking(self, what: str) -> None:
        while True:
            asked_at = time.monotonic()
            try:
                reply = await self._ask[what]()
            except httpx.HTTPError as error:
                self.lost.append(f"{what} after {asked_at - self._started_at:.1f} s: {error!r}")
                continue
            took_s = time.monotonic() - asked_at
            at = asked_at - self._started_at
            self._answers.append(Asked(what, at, took_s, reply.status_code, reply.headers, reply.content))
            await asyncio.sleep(0.25)


def _get(client: httpx.AsyncClient, **headers: str) -> Callable[[], Any]:
    return lambda: client.get("/api/images", headers=headers)


async def _is_from_replica(client: httpx.AsyncClient) -> bool:
    reply = await client.get("/api/images")
    return reply.headers["Peruse-Source"] == "replica" and len(reply.json()["images"]) == 5


def _check_reads(asked: list[Asked], before: httpx.Response) -> None:
    """Replicas go on, the same bytes and older each second; whoever sets a limit to that is refused beyond it."""
    for what in ("read", "other read", "however old"):
        answers = [one for one in asked if one.what == what]
        assert len(answers) > 100
        assert {(one.status, one.headers.get("Peruse-Source")) for one in answers} == {(200, "replica")}
        assert {one.headers["Peruse-Bookmark"] for one in answers} == {before.headers["Peruse-Bookmark"]}
        for one in answers:
            assert one.took_s < _READ_S, one
            age = int(one.headers["Peruse-Age"])
            assert one.at - 1 <= age <= one.at + one.took_s + 3, one
    assert {one.body for one in asked if one.what == "read"} == {before.content}

    young = [one for one in asked if one.what == "young"]
    for one in young:
        if one.status == 200:
            assert int(one.headers["Peruse-Age"]) <= _MAX_STALENESS_S, one
        assert one.status == 200 or one.at > _MAX_STALENESS_S - 3, one
        assert one.status == 503 or one.at < _MAX_STALENESS_S + 1, one
    assert {one.status for one in young} == {200, 503}

    stale = [one for one in asked if one.what == "stale"]
    assert len(stale) > 30
    assert {(one.status, one.headers.get("Peruse-Outcome")) for one in stale} == {(200, "stale")}


def _check_refusals(asked: list[Asked]) -> None:
    """What needs the primary is refused, with a time to come back, and within its deadline."""
    for what in ("floor", "floor or error", "validated", "cold", "patch", "delete", "upload", "sync", "young", "stale"):
        answers = [one for one in asked if one.what == what]
        deadline_s = _WRITE_S if what in ("patch", "delete", "upload", "sync") else _READ_S
        assert len(answers) >= 5, f"{what}: {len(answers)} answers"
        assert all(one.took_s < deadline_s for one in answers), [(what, one.at, one.took_s) for one in answers]
        for one in answers:
            if one.status == 503:
                assert int(one.headers["Retry-After"]) >= 1
                assert json.loads(one.body)["success"] is False
            else:
                assert what in ("young", "stale"), one


async def _heals(
    clients: dict[str, httpx.AsyncClient], images: dict[str, str], primary: Primary, healed_at: float
) -> None:
    """Writes, syncs, and replicas that equal the primary, all without a restart."""
    for user in clients:
        await eventually(lambda user=user: _is_healed(clients[user], user, images[user], primary), timeout_s=_HEALED_S)
    took_s = time.monotonic() - healed_at
    assert took_s < _HEALED_S, f"everything was well again after {took_s:.1f} s"
    (refused,) = await primary.fetch("select count(*) from images where title = 'refused' or prompt = 'refused'")
    assert refused[0] <= 3, "one write of each kind may have been under way when the primary stopped to answer"


async def _is_healed(client: httpx.AsyncClient, user: str, image: str, primary: Primary) -> bool:
    wrote = await client.patch(f"/api/images/{image}", json={"title": f"after {user}"})
    assert wrote.status_code == 200, wrote.text
    assert (await client.post("/api/images/sync")).status_code == 200
    reply = await client.get("/api/images", headers={"Peruse-Bookmark": wrote.headers["Peruse-Bookmark"]})
    assert reply.headers["Peruse-Source"] == "replica"
    assert int(reply.headers["Peruse-Age"]) <= 2
    rows = await primary.fetch("select id::text, title, prompt from images where owner_id = $1", user)
    shown = {(one["id"], one["title"], one["prompt"]) for one in reply.json()["images"]}
    return shown == {tuple(row) for row in rows}


async def test_calls_that_wait_for_the_primary_are_no_fault_of_the_host(
    link: PrimaryLink, database: str, tmp_path: Path
) -> None:
    """Syncs that end at their deadline while the primary is silent leave the host's breaker closed: nobody else could
    answer the reads."""
    world = World(tmp_path / "data", link.url)
    await world.start()
    try:
        await world.write("ana", lambda c: add_images(c, "ana", 3))
        await until(lambda: _from_replica_of(world))
        link.block()
        syncs = []
        for _ in range(100):
            syncs.append(asyncio.create_task(world.request("POST", "/api/images/sync")))
            await asyncio.sleep(0.003)
        refused = 0
        while not all(sync.done() for sync in syncs):
            refused += (await world.get("/api/images")).status != 200
            await asyncio.sleep(0.01)
        assert {(await sync).status for sync in syncs} == {503}
        assert refused == 0, f"{refused} reads were refused although their replica was at hand"
    finally:
        link.unblock()
        await world.stop()


async def _from_replica_of(world: World) -> bool:
    return (await world.get("/api/images")).headers["Peruse-Source"] == "replica"
