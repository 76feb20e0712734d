"""The split law: seed(..n) = apply(seed(..c), pull(c..n)), for every c at which the primary was."""

from __future__ import annotations

import shutil
import sqlite3
from itertools import count
from pathlib import Path
from typing import Any

from actors.seed import seed
from store.changes import Cursor
from tests.actors.fleet import Fleet
from tests.actors.machine_oracle import Oracle

__all__ = ["SplitLaw"]

#: Cursors that must be refused, tried at each check.
_REFUSED = 3


class SplitLaw:
    """Keeps a seed of every version, each as a host left it that has been away since."""

    def __init__(self, folder: Path, database: str, oracle: Oracle) -> None:
        self._folder = folder
        self._oracle = oracle
        self._host = Fleet(folder / "host", database)
        self.metrics = self._host.metrics
        self._kept: list[tuple[str, Cursor, Path]] = []
        self._numbers = count(1)

    async def open(self) -> None:
        self._folder.mkdir(parents=True)
        await self._host.open()

    async def close(self) -> None:
        await self._host.close()

    async def keep(self, user: str) -> None:
        """Seed `user` at the head."""
        self._kept.append((user, self._oracle.heads[user], await self._seed(user)))

    async def check(self, user: str) -> int:
        """From every kept seed of `user` one pull makes the file that a seed makes now, row for row and byte for byte;
        a pull is refused where it must be, and nowhere else. Answers how many pulls there were."""
        now = _rows(await self._seed(user))
        split = refused = 0
        for one in [one for one in self._kept if one[0] == user]:
            _, cursor, path = one
            expected = await self._oracle.verdict(user, cursor)
            if expected is not None:
                self._kept.remove(one)  # mostly it is refused for ever: a few of them show it
                refused += 1
                if refused > _REFUSED:
                    continue
            before = self.metrics.resets.copy()

            shutil.copy(path, self._host.folder.next_path(user))
            after, _ = await self._host.replicas.sync(user)
            file = self._host.file(user)
            self._host.replicas.passivate(user)

            resets = [reason for reason, n in self.metrics.resets.items() if n > before.get(reason, 0)]
            assert resets == ([] if expected is None else [expected]), f"{user} from {cursor}: {resets}"
            assert after == self._oracle.heads[user], f"{user} from {cursor}"
            assert _rows(file) == now, f"{user} from {cursor} to {after}"
            file.unlink()
            split += expected is None
        return split

    async def _seed(self, user: str) -> Path:
        path = self._folder / f"{next(self._numbers)}.db"
        seeded = await seed(self._host.seeds, user, path, self._host.documents, synced_at=0.0)
        assert seeded.cursor == self._oracle.heads[user]
        return path


def _rows(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table of a closed replica; when it was last in step is no part of what it says."""
    connection = sqlite3.connect(path)
    try:
        tables = [name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")]
        rows = {table: sorted(connection.execute(f"select * from {table}"), key=repr) for table in tables}
    finally:
        connection.close()
    rows["meta"] = [row[:-1] for row in rows["meta"]]
    return rows
