"""A storm: other services write by plain SQL, and parts of a served instance are killed, stopped and reset."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import aiohttp
import asyncpg

from store.epoch import Bookmark
from store.errors import PrimaryUnavailable
from store.primary import Primary
from store.retention import trim
from tests.served import Served, peruse
from tests.world import add_images

__all__ = ["EVERYTHING", "Faults", "SqlWriter"]

#: Name of a fault → how often among all.
EVERYTHING: Final = {
    "kill_host": 2,
    "stop_host": 3,
    "kill_gateway": 1,
    "passivate": 4,
    "reseed": 3,
    "rotate_epoch": 1,
    "forget_changes": 2,
}

_FEWEST, _MOST = 8, 25  # images of a user, about
_AWAY = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


class SqlWriter:
    """Another team's service: it knows the tables and nothing of replicas, so nobody is poked.

    `bookmarks`: user → a bookmark that it gave away, after its commit.
    """

    def __init__(self, url: str, users: list[str], *, seed: int, bookmarks: dict[str, Bookmark]) -> None:
        self.counts: Counter[str] = Counter()
        self._url = url
        self._users = users
        self._random = random.Random(seed)
        self._bookmarks = bookmarks

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`; the primary may come and go."""
        while not stop.is_set():
            try:
                connection = await asyncpg.connect(self._url, timeout=5, command_timeout=10)
                try:
                    while not stop.is_set():
                        await self._write(connection)
                        await asyncio.sleep(self._random.uniform(0, 0.08))
                finally:
                    connection.terminate()
            except _AWAY as error:
                self.counts[type(error).__name__] += 1
                await asyncio.sleep(0.2)

    async def _write(self, connection: asyncpg.Connection) -> None:
        user, other = self._random.sample(self._users, 2)
        bookmark: Bookmark | None = None
        transaction = connection.transaction()
        await transaction.start()
        for one in (user, other) if self._random.random() < 0.2 else (user,):
            await self._change(connection, one, other)
        if self._random.random() < 0.5:
            bookmark = Bookmark(*await connection.fetchrow("select epoch, version from sync_flush($1)", user))
        if self._random.random() < 0.1:
            await transaction.rollback()
            self.counts["rolled back"] += 1
            return
        await transaction.commit()
        self.counts["committed"] += 1
        if bookmark is not None:
            self._bookmarks[user] = bookmark

    async def _change(self, connection: asyncpg.Connection, user: str, other: str) -> None:
        count = await connection.fetchval("select count(*) from images where owner_id = $1", user)
        some = "id in (select id from images where owner_id = $1 order by random() limit 2)"
        if count < _FEWEST:
            await add_images(connection, user, 4)
        elif count > _MOST:
            await connection.execute(f"delete from images where {some}", user)
        elif self._random.random() < 0.15:
            await connection.execute(f"update images set owner_id = $2 where {some}", user, other)
        else:
            await connection.execute(f"update images set title = $2 where {some}", user, f"sql {uuid.uuid4().hex[:8]}")


class Faults:
    """Something of `kinds` goes wrong every second or so. `done` says what and when, `counts` how often."""

    def __init__(
        self,
        served: Served,
        primary_url: str,
        users: list[str],
        *,
        seed: int,
        token: str,
        kinds: Mapping[str, int] = EVERYTHING,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.done: list[str] = []
        self._served = served
        self._primary_url = primary_url
        self._users = users
        self._random = random.Random(seed)
        self._headers = {"Authorization": f"Bearer {token}"}
        self._kinds = kinds
        self._stopped: dict[int, asyncio.Task[None]] = {}
        self._started = time.monotonic()

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`; whatever was stopped goes on then."""
        async with aiohttp.ClientSession(
            self._served.url,
            headers=self._headers,
            connector=aiohttp.TCPConnector(force_close=True),
            timeout=aiohttp.ClientTimeout(total=10),
        ) as self._http:
            while not stop.is_set():
                (name,) = self._random.choices(list(self._kinds), list(self._kinds.values()))
                await self.cause(getattr(self, name))
                await asyncio.sleep(self._random.uniform(0.1, 2.5))
        await asyncio.gather(*self._stopped.values())

    async def cause(self, fault: Callable[[], Awaitable[bool]]) -> None:
        """Cause one; it is not counted when there was nobody to meet it."""
        try:
            happened = await fault()
        except (aiohttp.ClientError, OSError, PrimaryUnavailable, IndexError):
            happened = False  # whom it needs is away itself, and its pid file is empty while it starts
        if happened:
            name = getattr(fault, "__name__", "?")
            self.counts[name] += 1
            self.done.append(f"{time.monotonic() - self._started:.1f} s {name}")

    async def kill_host(self) -> bool:
        return self._signal(await self._host(), signal.SIGKILL)

    async def stop_host(self) -> bool:
        """For 1 to 8 s: longer than a heartbeat may be missed, so that others take it for dead."""
        pid = await self._host()
        if pid is None or pid in self._stopped or not self._signal(pid, signal.SIGSTOP):
            return False
        self._stopped[pid] = asyncio.create_task(self._go_on(pid, self._random.uniform(1, 8)))
        return True

    async def _go_on(self, pid: int, after_s: float) -> None:
        await asyncio.sleep(after_s)
        self._signal(pid, signal.SIGCONT)
        del self._stopped[pid]

    async def kill_gateway(self) -> bool:
        return self._signal(self._served.pid(f"gateway-{self._random.randrange(2)}"), signal.SIGKILL)

    async def kill_postgres(self) -> bool:
        path = self._served.data / "postgres" / "cluster" / "postmaster.pid"
        return self._signal(int(path.read_text().split()[0]), signal.SIGKILL)

    async def passivate(self) -> bool:
        return await self._post(f"/admin/users/{self._random.choice(self._users)}/replica/passivate")

    async def reseed(self) -> bool:
        return await self._post(f"/admin/users/{self._random.choice(self._users)}/replica/reseed")

    async def rotate_epoch(self) -> bool:
        done = await asyncio.to_thread(peruse, "epoch", "rotate", data=self._served.data, check=False)
        return done.returncode == 0

    async def forget_changes(self) -> bool:
        """Retention, with an age at which most replicas stand below the horizon."""
        primary = await Primary.open(self._primary_url, name="storm", size=1)
        try:
            return (await trim(primary, keep_s=self._random.choice([0.0, 0.2, 1.0]))).versions > 0
        finally:
            await primary.close()

    async def _post(self, path: str) -> bool:
        async with self._http.post(path) as answer:
            return answer.status == 200

    async def _host(self) -> int | None:
        """The process of a host that answers."""
        async with self._http.get("/admin/hosts") as answer:
            hosts: list[dict[str, Any]] = (await answer.json())["hosts"] if answer.status == 200 else []
        pids = [host["pid"] for host in hosts if "pid" in host]
        return self._random.choice(pids) if pids else None

    def _signal(self, pid: int | None, number: int) -> bool:
        if pid is None:
            return False
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        return True
