"""What each user's gallery was at each version, written down by the transaction that made it, and what a replica's
file says beside it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import shutil
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from store.epoch import Bookmark
from store.errors import PrimaryUnavailable
from store.primary import Connection, Primary
from tests.actors.fleet import add_image

__all__ = ["FileState", "Recorder", "digest_of", "read_files"]

#: In words of its own: a fault of the documents or of the pull is not in it too.
_STATE = (
    "select s.nonce::text, (select coalesce(string_agg(concat_ws('|', id, object_key, prompt, starred), ',' "
    "order by id), '') from images where owner_id = $1) from sync_user s where s.user_id = $1"
)


class State(NamedTuple):
    """A gallery at one version: the nonce of the transaction that made it, and a digest of all rows."""

    nonce: str
    digest: str


class FileState(NamedTuple):
    """What is in a replica's file."""

    user: str
    at: Bookmark
    state: State
    is_whole: bool  # SQLite's own integrity check


class Recorder:
    """Writes for users, one transaction at a time each, and remembers every version by its digest.

    `heads`: the newest version of each user whose commit was acknowledged.
    """

    def __init__(self, primary: Primary, *, seed: int = 1) -> None:
        self.heads: dict[str, Bookmark] = {}
        self._primary = primary
        self._states: dict[tuple[str, Bookmark], State] = {}
        self._random = random.Random(seed)
        self._tasks: list[asyncio.Task[None]] = []
        self._is_over = False

    async def write(self, user: str, work: Any) -> Bookmark:
        """Do `work` in a transaction and write down what it made."""

        async def recorded(connection: Connection) -> None:
            await work(connection)
            row = await connection.fetchrow("select epoch, version from sync_flush($1)", user)
            nonce, text = await connection.fetchrow(_STATE, user)
            # Nobody passes until we have committed: should that fail, whoever gets the version writes it again.
            self._states[user, Bookmark(row["epoch"], row["version"])] = State(nonce, _digest(text))

        _, bookmark = await self._primary.write(user, recorded)
        self.heads[user] = bookmark
        return bookmark

    async def fill(self, user: str, rows: int) -> None:
        """Give `user` so many images."""

        async def work(connection: Connection) -> None:
            await connection.execute("insert into users (id) values ($1) on conflict do nothing", user)
            await connection.execute(
                "insert into images (owner_id, object_key, content_type, size_bytes, prompt, model) "
                "select $1, gen_random_uuid()::text, 'image/png', 7, 'filled ' || n, 'builtin' "
                "from generate_series(1, $2::int) n",
                user, rows,
            )  # fmt: skip

        await self.write(user, work)

    async def __aenter__(self) -> Recorder:
        self._tasks = [asyncio.create_task(self._keep_writing(user)) for user in list(self.heads)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._is_over = True  # not cancelled: a commit that nobody waits for would not be among the heads
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        broken = [r for r in results if isinstance(r, Exception) and not isinstance(r, asyncio.CancelledError)]
        assert broken == []

    async def _keep_writing(self, user: str) -> None:
        """Small transactions, a large one now and then, and rarely one that is too large to be pulled."""
        while not self._is_over:
            rows = self._random.choices((0, 1, 2, 150, 450, 10_000), (6, 6, 6, 4, 2, 1))[0]
            try:
                await self.write(user, lambda c, rows=rows: self._change(c, user, rows))
            except PrimaryUnavailable:
                pass  # it may have been committed: then its version is written down
            await asyncio.sleep(self._random.uniform(0, 0.02))

    async def _change(self, connection: Connection, user: str, rows: int) -> None:
        """Rewrite up to `rows` images; for 0 put one in the place of another."""
        if rows == 0:
            await connection.execute(
                "delete from images where id = (select id from images where owner_id = $1 limit 1)", user
            )
            await add_image(connection, user, f"new {self._random.random()}")
            return
        await connection.execute(
            "update images set starred = not starred, prompt = $2 where id in "
            "(select id from images where owner_id = $1 order by md5(id::text || $2) limit $3)",
            user, f"{self._random.random()} " + "x" * self._random.choice((10, 400)), rows,
        )  # fmt: skip

    def check(self, found: FileState) -> None:
        """Fail unless the file holds exactly what its user had at the version that it names."""
        if found.user.startswith("~"):
            return  # the host's own, which nobody recorded
        known = self._states.get((found.user, found.at))
        assert known is not None, f"{found.user} is at {found.at}, which never was"
        assert found.is_whole, f"{found.user} at {found.at}: the file is damaged"
        assert found.state == known, f"{found.user} at {found.at}: rows and cursor are not of one version"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of(documents: Iterable[dict[str, Any]]) -> str:
    """The digest of a gallery from its documents."""
    rows = sorted((d["id"], d["url"].removeprefix("/files/"), d["prompt"], "ft"[d["starred"]]) for d in documents)
    return _digest(",".join("|".join(row) for row in rows))


def read_files(replicas: Path, scratch: Path) -> list[FileState]:
    """The state of every replica file below `replicas`, whose host is dead. Reads copies: whoever opens the file with
    its log changes both."""
    return [_read(path, scratch) for path in sorted(replicas.rglob("*.db"))]


def _read(path: Path, scratch: Path) -> FileState:
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    for part in (path, path.with_name(f"{path.name}-wal")):
        if part.exists():
            shutil.copy(part, scratch)
    connection = sqlite3.connect(scratch / path.name)
    try:
        user, epoch, version, nonce = connection.execute("select user_id, epoch, version, nonce from meta").fetchone()
        documents = [json.loads(doc) for (doc,) in connection.execute("select doc from images")]
        is_whole = connection.execute("pragma integrity_check").fetchall() == [("ok",)]
    finally:
        connection.close()
    return FileState(user, Bookmark(epoch, version), State(nonce, digest_of(documents)), is_whole)
