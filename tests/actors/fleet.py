"""What tests of the replica side share: replicas of one host without its sockets, a clock to move, a way to take the
primary away, and what each version of a user was, written down by the transaction that made it."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit, urlunsplit

from actors.activation import Limits
from actors.errors import Seeding
from actors.folder import ReplicaFolder
from actors.metrics import HostMetrics
from actors.replicas import Answer, Replicas
from store.changes import Cursor
from store.documents import Documents
from store.epoch import Bookmark
from store.gallery import GalleryQuery, encode_query
from store.primary import Connection, Primary
from tests.world import until

__all__ = ["ALL", "FakeClock", "Fleet", "Gate", "History", "add_image", "held", "position", "shown"]

#: Every image of a small gallery, newest first.
ALL = encode_query(GalleryQuery(limit=200))


class FakeClock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.wall_offset = 1_700_000_000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now + self.wall_offset

    def move(self, seconds: float) -> None:
        self.now += seconds


class Fleet:
    """The replicas of one host. `open` may follow `close` or `crash`: the files stay."""

    def __init__(self, folder: Path, database: str, *, files_base: str = "", **limits: Any) -> None:
        self.path = folder
        self.database = database
        self.documents = Documents(files_base)
        self.clock = FakeClock()
        self.metrics = HostMetrics()
        self.limits = Limits(max_active=100, max_bytes=2**30, idle_s=60.0, pulls=4, seeds=2)._replace(**limits)
        self.replicas: Replicas

    async def open(self) -> Fleet:
        self.pulls = await Primary.open(self.database, name="test pulls", size=4)
        self.seeds = await Primary.open(self.database, name="test seeds", size=2)
        self.folder = ReplicaFolder.claim(self.path, "test:0", generation=1)
        self.replicas = Replicas(
            self.folder,
            self.pulls,
            self.seeds,
            self.documents,
            self.limits,
            clock=self.clock,
            metrics=self.metrics,
        )
        return self

    async def close(self) -> None:
        await self.replicas.life.close_all()
        self.folder.release()
        await self.pulls.close()
        await self.seeds.close()

    async def crash(self) -> None:
        """End as `kill -9` ends a host: the files and their logs are as they were, and nothing was closed."""
        left = {path: path.read_bytes() for path in self.path.rglob("*.db*")}
        await self.close()
        for path in self.path.rglob("*.db*"):
            path.unlink()
        for path, content in left.items():
            path.write_bytes(content)

    async def read(self, user: str, floor: Bookmark | None = None, *, query: bytes = ALL) -> Answer:
        """The answer, after the seed that a cold read starts."""
        for _ in range(5):
            try:
                return self.replicas.peek(user, query, floor) or await self.replicas.read(user, query, floor)
            except Seeding:
                await until(lambda: user not in self.replicas.life.seeds)
        raise AssertionError(f"replica of {user} is never made")

    def file(self, user: str) -> Path:
        path = self.folder.find(user)
        assert path is not None, f"{user} has no file"
        return path

    def files(self) -> list[str]:
        """Names of everything below the fan-out folders."""
        return sorted(path.name for path in self.path.glob("*/??/??/*"))

    def staged(self) -> list[str]:
        """Names of the replicas that are being made."""
        return [name for name in self.files() if name.endswith(".staging")]


def position(cursor: Cursor) -> Bookmark:
    return Bookmark(cursor.epoch, cursor.version)


def shown(answer: Answer | bytes) -> list[dict[str, Any]]:
    """The documents of a page."""
    body = answer if isinstance(answer, bytes) else answer.page.body
    assert body is not None
    images: list[dict[str, Any]] = json.loads(body)["images"]
    return images


class History:
    """What each user's gallery was at each version, seen from inside the transaction that made the version.

    It asks Postgres in its own words, so that a fault of the pull, the seed or the documents is not in the answer too.
    """

    _SQL = (
        "select id::text, prompt, visibility, starred, object_key from images "
        "where owner_id = $1 and trashed_at is null order by created_at desc, id desc"
    )

    def __init__(self, primary: Primary) -> None:
        self.primary = primary
        self._seen: dict[tuple[str, Bookmark], list[tuple[Any, ...]]] = {}

    async def write(self, users: list[str], work: Callable[[Connection], Awaitable[Any]]) -> Any:
        """Do `work`, which concerns `users`, in one transaction."""

        async def recorded_work(connection: Connection) -> Any:
            result = await work(connection)
            # The first flush stamps all of them, and nobody passes until we have committed: should that fail,
            # whoever gets the same version writes down another state.
            for user in users:
                row = await connection.fetchrow("select epoch, version from sync_flush($1)", user)
                rows = [tuple(r) for r in await connection.fetch(self._SQL, user)]
                self._seen[user, Bookmark(row["epoch"], row["version"])] = rows
            return result

        return await self.primary.write(users[0], recorded_work)

    def check(self, user: str, answer: Answer) -> None:
        """Fail unless the answer is exactly what `user` had at the version it names."""
        at = position(answer.cursor)
        expected = self._seen.get((user, at), [] if at.version == 0 else None)
        assert expected is not None, f"{user} was answered at {at}, which never was"
        found = [
            (d["id"], d["prompt"], d["visibility"], d["starred"], d["url"].removeprefix("/files/"))
            for d in shown(answer)
        ]
        assert found == expected, f"{user} at {at}"

    async def head(self, user: str) -> Bookmark:
        return (await self.primary.write(user, _nothing))[1]


async def _nothing(_: Connection) -> None: ...


async def add_image(connection: Connection, user: str, prompt: str = "", *, image: uuid.UUID | None = None) -> str:
    """One row by plain SQL; answers its id."""
    await connection.execute("insert into users (id) values ($1) on conflict do nothing", user)
    row_id = await connection.fetchval(
        "insert into images (id, owner_id, object_key, content_type, size_bytes, prompt, model) "
        "values ($1, $2, $3, 'image/png', 7, $4, 'builtin') returning id::text",
        image or uuid.uuid4(), user, f"generated/{uuid.uuid4().hex}", prompt,
    )  # fmt: skip
    return str(row_id)


class held:
    """While inside, nothing that reads `table` gets an answer: a pull is sent and stays under way."""

    def __init__(self, primary: Primary, table: str = "change_log") -> None:
        self._primary = primary
        self._table = table

    async def __aenter__(self) -> held:
        self._context = self._primary.connection()
        self._connection = await self._context.__aenter__()
        self._transaction = self._connection.transaction()
        await self._transaction.start()
        await self._connection.execute(f"lock table {self._table} in access exclusive mode")
        return self

    async def waiting(self) -> int:
        """How many statements wait for the table now."""
        return int(
            await self._connection.fetchval(
                "select count(*) from pg_locks where not granted and relation = $1::regclass", self._table
            )
        )

    async def __aexit__(self, *_: object) -> None:
        await self._transaction.rollback()
        await self._context.__aexit__(None, None, None)


class Gate:
    """A way to the primary that can be shut: connections end, and new ones are refused."""

    def __init__(self, folder: Path, url: str) -> None:
        parts = urlsplit(url)
        options = parse_qs(parts.query)
        port = options.get("port", ["5432"])[0]
        self._to = f"{options['host'][0]}/.s.PGSQL.{port}"
        self._path = folder / f".s.PGSQL.{port}"
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        query = f"host={quote(str(folder), safe='')}&port={port}"
        self.url = urlunsplit(parts._replace(query=query))

    async def open(self) -> Gate:
        self._server = await asyncio.start_unix_server(self._pass, self._path)
        return self

    async def shut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)
            for writer in list(self._open):
                writer.transport.abort()
            await self._server.wait_closed()
            self._server = None

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            far_reader, far_writer = await asyncio.open_unix_connection(self._to)
            self._open.add(far_writer)
            await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))
            self._open.discard(far_writer)
        finally:
            self._open.discard(writer)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()
