"""One primary, four writers and one host, and everything that may happen to them; what must hold is checked at once.

Nobody writes between two calls: so what the primary has after a commit is what it had at that version.
"""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, Literal

import asyncpg

from actors import Outcome
from actors.active import Active
from actors.errors import Behind, CallError, ReplicaBroken
from actors.replicas import Answer
from store.documents import Documents
from store.epoch import Bookmark, rotate
from store.errors import PrimaryUnavailable
from store.retention import trim
from tests.actors.fleet import Fleet, position
from tests.actors.machine_backup import restore, save
from tests.actors.machine_files import Damage, Written, damage, left_in
from tests.actors.machine_oracle import Oracle, gallery, parse, replica_state, with_base
from tests.actors.machine_split import SplitLaw
from tests.actors.machine_writers import Step, Writer
from tests.world import until

__all__ = ["USERS", "Beside", "Crash", "Stage"]

USERS = ("ana", "bob")
#: What is under way while a transaction commits.
Beside = Literal["pull", "read", "sweep", "seed"]
#: A host ends before its pull is applied, in the middle of writing it, or after.
Crash = Literal["before", "during", "after"]
#: What may stand before URLs of files.
_BASES = ("", "https://cdn.example")
_ROWS = tuple(uuid.UUID(int=n + 1) for n in range(3))


class Stage:
    """`open` once; `begin`, anything in any order, `settle` and `end` for each play."""

    def __init__(self, database: str, folder: Path) -> None:
        self.database = database
        self.folder = folder
        #: How often what was seen, over all plays.
        self.seen: Counter[str] = Counter()
        self._numbers = count(1)

    async def open(self) -> None:
        self._operator = await asyncpg.connect(self.database)
        self._oracle_connection = await asyncpg.connect(self.database)
        self._writer_connections = [
            await asyncpg.connect(self.database, server_settings={"lock_timeout": "15ms"}) for _ in range(5)
        ]
        await save(self._operator, "origin")

    async def close(self) -> None:
        for connection in (self._operator, self._oracle_connection, *self._writer_connections):
            await connection.close()

    async def begin(self, *, many: int) -> None:
        """An empty primary and a host without files; at most `many` times more than 500 rows at once."""
        await restore(self._operator, "origin")
        self._folder = self.folder / f"play-{next(self._numbers)}"
        self.writers = [Writer(connection, self.seen) for connection in self._writer_connections]
        self.oracle = Oracle(self._oracle_connection, USERS)
        await self.oracle.begin()
        self._base = _BASES[0]
        self.fleet = await Fleet(self._folder / "replicas", self.database, files_base=self._base).open()
        self.split = SplitLaw(self._folder / "split", self.database, self.oracle)
        await self.split.open()
        self._many = many
        #: The oracle's line at the backup.
        self._backup: dict[str, dict[int, str]] = {}
        #: user → the newest position that a reader has been shown in this history.
        self._shown: dict[str, Bookmark] = {}
        #: Users whose file was damaged and may not have been found out yet.
        self._damaged: set[str] = set()
        for user in (0, 1):
            await self.write([Step(0, "create user", user, user), Step(0, "insert image", user, user)])
        await self.back_up(rotates=False)

    async def end(self) -> None:
        for writer in self.writers:
            await writer.rollback()
        for metrics in (self.fleet.metrics, self.split.metrics):
            self.seen.update({f"reset: {reason}": n for reason, n in metrics.resets.items()})
        self.seen.update(seeds=self.fleet.metrics.seeds, pulls=self.fleet.metrics.pulls)
        await self.fleet.close()
        await self.split.close()
        shutil.rmtree(self._folder)

    # --- writers ------------------------------------------------------------------------------------------------

    async def write(self, steps: list[Step]) -> None:
        for step in steps:
            if step.verb == "many images":
                if self._many == 0:
                    continue
                self._many -= 1
            writer = self.writers[step.writer]
            users = (USERS[step.whose], USERS[1 - step.whose])
            is_alone = step.verb == "commit" or not writer.is_open
            await writer.take(step.verb, users, _ROWS[step.row])
            if is_alone:
                await self._committed(writer)

    async def _write_one(self, user: str) -> None:
        """One more version of `user`, by a fifth writer; none when another one has the row."""
        whose = USERS.index(user)
        await self.write([Step(4, "create user", whose, 0), Step(4, "grant", whose, 0)])

    async def commit_beside(self, number: int, beside: Beside, user: str) -> None:
        """Commit while a pull, a read, a sweep or a seed is under way: each is before it or after it, never between."""
        open_writers = [writer for writer in self.writers if writer.is_open] or self.writers
        writer = open_writers[number % len(open_writers)]
        works: dict[Beside, Callable[[], Awaitable[Any]]] = {
            "pull": lambda: self.fleet.replicas.sync(user),
            "read": lambda: self._read(user, None),
            "sweep": self.fleet.replicas.sweep,
            "seed": lambda: self._reseed(user),
        }
        await asyncio.gather(writer.take("commit", USERS, _ROWS[0]), works[beside]())
        self.seen["commit beside a reader"] += 1
        await self._committed(writer)
        await self._check(user)

    async def _committed(self, writer: Writer) -> None:
        for user in await self.oracle.committed():
            self.seen["versions"] += 1
            await self.split.keep(user)
        for user, promised in writer.promises.items():
            assert not promised.is_after(*position(self.oracle.heads[user])), f"{user} was promised {promised}"
        writer.promises.clear()

    # --- readers ------------------------------------------------------------------------------------------------

    async def read(self, user: str, *, has_floor: bool) -> None:
        floor = self._shown.get(user) if has_floor else None
        answer = await self._check(user, floor)
        if floor is not None and self.oracle.is_current(user, answer.cursor):
            assert not floor.is_after(*position(answer.cursor)), f"{user} asked for {floor}, got {answer.cursor}"

    async def pull(self, user: str) -> None:
        cursor, _ = await self.fleet.replicas.sync(user)
        assert cursor == self.oracle.heads[user], f"{user} is at {cursor} after a pull"
        await self._check(user, at_head=True)

    async def _check(self, user: str, floor: Bookmark | None = None, *, at_head: bool = False) -> Answer:
        """One read: it is what the user had at the version that it names (I6, I2), and not before the last (I4)."""
        answer = await self._read(user, floor)
        cursor, base = answer.cursor, self._base
        state = self.oracle.states.get((user, cursor))
        assert state is not None, f"{user} was answered at {cursor}, which never was"
        expected = with_base(state, base)
        assert answer.page.body is not None
        assert parse(answer.page.body)["images"] == gallery(expected), f"page of {user} at {cursor}"
        try:
            found = replica_state(self._active(user).replica._use())
        except (sqlite3.DatabaseError, UnicodeDecodeError, ReplicaBroken):
            # The page above was still good; what is behind it will be found out when it is needed.
            assert user in self._damaged
            self.fleet.replicas.reseed(user)
            self._damaged.discard(user)
            return await self._check(user, floor, at_head=at_head)
        assert found == expected, f"replica of {user} at {cursor}"
        if at_head:
            assert cursor == self.oracle.heads[user], f"{user} is at {cursor}"
        # A reader who is told that it may be old has his gateway's floor against that.
        if self.oracle.is_current(user, cursor) and answer.outcome is not Outcome.STALE:
            at, before = position(cursor), self._shown.get(user)
            assert before is None or not before.is_after(*at), f"{user} went back from {before} to {at}"
            self._shown[user] = at
        self.seen["answers"] += 1
        return answer

    async def _read(self, user: str, floor: Bookmark | None) -> Answer:
        for _ in range(20):
            try:
                return await self.fleet.read(user, floor)
            except Behind:  # a busy machine: it says so, and may be asked again
                continue
        raise AssertionError(f"{user} is never brought to {floor}")

    # --- hints --------------------------------------------------------------------------------------------------

    async def poke(self, user: str, *, times: int, ahead: int) -> None:
        """As often as it is said, and of a version that is not there yet: pulled and at head then."""
        self.fleet.clock.move(1)
        await self._write_one(user)
        head = self.oracle.heads[user]
        bookmark = Bookmark(head.epoch, head.version + ahead)
        pulls = self.fleet.metrics.pulls
        active = self.fleet.replicas._active.get(user)
        is_news = active is not None and active.is_behind(bookmark)
        for _ in range(times):
            self.fleet.replicas.poke(user, bookmark)
        if is_news:
            await until(lambda: self.fleet.metrics.pulls > pulls)
            await self._is_at_head(user)
            await self._check(user, at_head=True)
            self.seen["pokes"] += 1

    async def sweep(self) -> None:
        """Every open replica is at head after it, whatever was lost before (I7)."""
        self.fleet.clock.move(1)
        users = list(self.fleet.replicas._active)
        await self.fleet.replicas.sweep()
        for user in users:
            await self._is_at_head(user)
            await self._check(user, at_head=True)
        self.seen["sweeps"] += 1

    async def _is_at_head(self, user: str) -> None:
        def is_there() -> bool:
            active = self.fleet.replicas._active.get(user)
            return active is not None and active.replica.cursor == self.oracle.heads[user]

        await until(is_there, timeout_s=5.0)

    # --- the host -----------------------------------------------------------------------------------------------

    async def passivate(self, user: str) -> None:
        self.fleet.replicas.passivate(user)

    async def rest(self, user: str) -> None:
        """What a host without room does: pages are packed, and the connection is given back."""
        active = self.fleet.replicas._active.get(user)
        if active is not None:
            active.replica.pack()
            active.replica.rest()
            self.seen["rest"] += 1

    async def restart(self, *, has_other_documents: bool) -> None:
        """Close and open; with other documents, as a base for URLs is set or unset, all files are made again."""
        await self.fleet.close()
        if has_other_documents:
            self._base = _BASES[not self._base]
            self.fleet.documents = Documents(self._base)
            self.seen["other documents"] += 1
        await self.fleet.open()

    async def crash(self, user: str, moment: Crash, seed: int) -> None:
        """The host ends at a moment of `user`'s pull; what it leaves is whole, and it finds it again."""
        chance = Random(seed)
        if moment == "before":
            pulling = asyncio.ensure_future(self.fleet.replicas.sync(user))
            for _ in range(chance.randrange(20)):
                await asyncio.sleep(0)
            await self.fleet.crash()
            (result,) = await asyncio.gather(pulling, return_exceptions=True)
            ends = (CallError, PrimaryUnavailable, asyncio.CancelledError)
            assert isinstance(result, (tuple, *ends)), result
        else:
            await self._read(user, None)  # it has a file, and its log is open
            await self._write_one(user)
            before = Written.of(self.fleet.file(user))
            await self.fleet.replicas.sync(user)
            after = Written.of(self.fleet.file(user))
            await self.fleet.crash()
            if moment == "during" and after.grew_from(before):
                with after.log.open("r+b") as log:
                    log.truncate(chance.randint(before.log_bytes, after.log_bytes))
                self.seen["torn logs"] += 1
        self.seen[f"crash {moment}"] += 1
        for each in USERS:
            if each not in self._damaged:
                self._check_file(each)
        await self.fleet.open()

    def _check_file(self, user: str) -> None:
        """What a host that ended has left is one version, with the cursor that says so."""
        path = self.fleet.folder.find(user)
        if path is None:
            return
        owner, cursor, found = left_in(path, self._folder / "aside.db")
        assert owner == user
        state = self.oracle.states.get((user, cursor))
        assert state is not None, f"file of {user} is at {cursor}, which never was"
        # A file of other documents lies there until somebody asks for it.
        assert found in [with_base(state, base) for base in _BASES], f"file of {user} at {cursor}"

    async def damage(self, user: str, how: Damage) -> None:
        """A file is not what was written; the host finds out, and makes it again."""
        path = self.fleet.folder.find(user)
        if path is not None:
            self.fleet.replicas.passivate(user)
            damage(path, how)
            self._damaged.add(user)
            self.seen[f"damage: {how}"] += 1

    async def _reseed(self, user: str) -> None:
        self.fleet.replicas.reseed(user)
        await self._read(user, None)

    def _active(self, user: str) -> Active:
        return self.fleet.replicas._active[user]

    # --- the primary --------------------------------------------------------------------------------------------

    async def trim(self, user: str, keep: int) -> None:
        """Retention forgets all versions of `user` but the newest `keep`, unless a writer holds the counter."""
        await self._write_one(user)
        oldest = self.oracle.heads[user].version - keep
        await self._operator.execute(
            "update change_log set at = at - interval '3 days' where user_id = $1 and version <= $2", user, oldest
        )
        self.seen["trimmed versions"] += (await trim(self.fleet.pulls, keep_s=48 * 3600)).versions

    async def rotate(self) -> None:
        await rotate(self.fleet.pulls)
        await self.oracle.look()
        self.seen["rotations"] += 1

    async def back_up(self, *, rotates: bool) -> None:
        """Keep what the primary has; a new epoch right after it would be lost by a restore."""
        await save(self._operator, "backup")
        self._backup = {user: dict(self.oracle.line[user]) for user in USERS}
        if rotates:
            await self.rotate()

    async def restore(self, *, loses: str | None, rotates: bool, is_written_again: bool) -> None:
        """Back to the backup, and a new epoch as the runbook says. Or not, and then `loses` is written until it has
        the version again that its replica has: only the nonce can tell the two histories apart."""
        if loses is not None:
            await self._write_one(loses)
            await self.pull(loses)
        for writer in self.writers:
            await writer.rollback()
        await restore(self._operator, "backup")
        self.oracle.line.update({user: dict(line) for user, line in self._backup.items()})
        await self.oracle.look()
        self.seen["restores"] += 1
        if rotates:
            await self.rotate()
        else:
            self._shown.clear()  # without a new epoch a lost history is not told from this one
        if loses is not None and is_written_again:
            there = self.fleet.replicas.inspect(loses).version
            while self.oracle.heads[loses].version < there:
                await self._write_one(loses)
            self.seen["the same version in another history"] += self.oracle.heads[loses].version == there
            await self.pull(loses)

    # --- the end ------------------------------------------------------------------------------------------------

    async def check_split(self, user: str) -> None:
        self.seen["splits"] += await self.split.check(user)

    async def settle(self) -> None:
        """Writes and faults have stopped: sweeps alone bring every replica to what the primary has (I7), no row is in
        two of them (I2), and the split law holds for every cursor that there was."""
        for writer in self.writers:
            await writer.rollback()
        for user in USERS:
            await self._read(user, None)
        await self.sweep()
        rows = [key for user in USERS for key in replica_state(self._active(user).replica._use())]
        assert len(rows) == len(set(rows))
        for user in USERS:
            await self.check_split(user)
