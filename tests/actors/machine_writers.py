"""Writers that take turns, one statement each: a transaction of one stays open while others write and commit."""

from __future__ import annotations

import uuid
from collections import Counter
from typing import NamedTuple

import asyncpg
from hypothesis import strategies as st

from store.epoch import Bookmark
from tests.store.test_changes import VERBS

__all__ = ["Step", "Writer", "steps"]

#: What ends a transaction and is nobody's fault. A row that stays locked is one: nobody waits for another's turn.
_ABORTS = (
    asyncpg.UniqueViolationError,
    asyncpg.ForeignKeyViolationError,
    asyncpg.LockNotAvailableError,
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
)
_BEGIN = {"begin": "read committed", "begin repeatable": "repeatable read", "begin serializable": "serializable"}
#: $1 the user, $2 the other user, $3 the row's id, $4 a new id; besides those of the pull's own test.
_SQL = {
    **VERBS,
    "rename onto": "update images set id = $3 where id = (select min(id::text)::uuid from images where owner_id = $1)",
    "prompt image": "update images set prompt = $4::text, generation_params = '{\"cfg\": 1.50}' where id = $3",
    "child image": "update images set parent_id = $3 where owner_id = $1 and id <> $3",
    "many images": "insert into images (owner_id, object_key, content_type, size_bytes, model, prompt) "
    "select $1, gen_random_uuid()::text, 'image/png', 7, 'm', 'one of many' from generate_series(1, 501)",
    "no more many": "delete from images where owner_id = $1 and prompt = 'one of many'",
}
_COPIED = ("id", "owner_id", "object_key", "content_type", "size_bytes", "model", "title")


class Step(NamedTuple):
    """One statement of writer number `writer`, about user `whose` (0 or 1) and row number `row`."""

    writer: int
    verb: str
    whose: int
    row: int


#: Enough begins that something is open most of the time, and more ends: what is never committed shows nothing.
_WEIGHED = (
    *(["begin", "begin repeatable", "begin serializable", "savepoint", "back to savepoint", "rollback"] * 2),
    *(["commit"] * 9),
    *(["flush", "copy", "create user", "insert image", "star image", "delete image", "move image", "rename onto"] * 2),
    *(["many images"] * 2),
    *sorted(_SQL),
)


def steps() -> st.SearchStrategy[list[Step]]:
    """A few statements of four writers."""
    step = st.builds(Step, st.integers(0, 3), st.sampled_from(_WEIGHED), st.integers(0, 1), st.integers(0, 2))
    return st.lists(step, max_size=10)


class Writer:
    """A session of another service, which knows nothing of us."""

    def __init__(self, connection: asyncpg.Connection, seen: Counter[str]) -> None:
        self._connection = connection
        self._seen = seen
        self._savepoints = 0
        #: What `sync_flush` promised in the transaction that is open: user → bookmark.
        self._promised: dict[str, Bookmark] = {}
        #: What was promised by transactions that were committed.
        self.promises: dict[str, Bookmark] = {}

    @property
    def is_open(self) -> bool:
        return self._connection.is_in_transaction()

    async def take(self, verb: str, users: tuple[str, str], row: uuid.UUID) -> None:
        """Say one statement; when it fails, go back to the last savepoint, or give up the transaction."""
        try:
            await self._say(verb, users, row)
        except _ABORTS as error:
            self._seen[type(error).__name__] += 1
            await self._give_way()
        else:
            self._seen[verb] += 1

    async def rollback(self) -> None:
        if self.is_open:
            await self._connection.execute("rollback")
        self._savepoints = 0
        self._promised.clear()

    async def _say(self, verb: str, users: tuple[str, str], row: uuid.UUID) -> None:
        execute = self._connection.execute
        if verb in _BEGIN:
            if not self.is_open:
                await execute(f"begin isolation level {_BEGIN[verb]}")
        elif verb == "commit":
            if self.is_open:
                await execute("commit")
                self.promises.update(self._promised)
            await self.rollback()
        elif verb == "rollback":
            await self.rollback()
        elif verb == "savepoint":
            if self.is_open:
                self._savepoints += 1
                await execute(f"savepoint s{self._savepoints}")
        elif verb == "back to savepoint":
            if self._savepoints:
                await self._give_way()
        elif verb == "flush":
            if self.is_open:
                promised = await self._connection.fetchrow("select epoch, version from sync_flush($1)", users[0])
                self._promised[users[0]] = Bookmark(*promised)
        elif verb == "copy":
            rows = [
                (uuid.uuid4(), user, f"copied/{uuid.uuid4().hex}", "image/png", 7, "m", "copied")
                for user in (*users, users[0])
            ]
            await self._connection.copy_records_to_table("images", records=rows, columns=_COPIED)
        else:
            # Postgres wants to know each parameter's type, the unused ones' too.
            typed = f"with unused as (select $1::text, $2::text, $3::uuid, $4::uuid) {_SQL[verb]}"
            await execute(typed, *users, row, uuid.uuid4())

    async def _give_way(self) -> None:
        self._promised.clear()
        if self._savepoints and self.is_open:
            await self._connection.execute(f"rollback to savepoint s{self._savepoints}")
            await self._connection.execute(f"release savepoint s{self._savepoints}")
            self._savepoints -= 1
        else:
            await self.rollback()
