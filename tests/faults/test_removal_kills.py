"""kill -9 of whoever removes, erases or copies, at any moment: nothing is left that is not finished later."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from store.deletions import delete_due
from store.erasure import finish_erasures
from store.objects.copying import copy
from store.objects.keys import keys_of, named_key, new_key, thumb_key
from store.objects.local import LocalObjects
from store.objects.reconcile import reconcile
from store.primary import Connection, Primary
from tests.world import until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]
TAG = "0123456789abcdef" * 2
_ROUNDS = 25

#: Lives until it is killed: removes and empties the trash, erases users, deletes objects.
_REMOVER = """
import asyncio, random, sys
from pathlib import Path
from store import trash
from store.deletions import delete_due
from store.erasure import erase
from store.errors import NotFound
from store.objects.local import LocalObjects
from store.primary import Primary

async def main(url, folder):
    primary = await Primary.open(url, name="victim", size=4)
    objects = LocalObjects(Path(folder))
    print("begun", flush=True)

    async def remove():
        while True:
            rows = await primary.fetch("select owner_id, id from images order by random() limit 1")
            if not rows:
                return
            owner, row_id = rows[0]
            try:
                await primary.write(owner, lambda c: trash.remove(c, owner, row_id))
            except NotFound:
                pass
            if random.random() < 0.02:
                await trash.empty(primary, owner)
            if random.random() < 0.01:
                try:
                    await erase(primary, owner)
                except NotFound:
                    pass

    async def delete():
        while True:
            await delete_due(primary, objects)
            await asyncio.sleep(0.001)

    await asyncio.gather(remove(), remove(), delete())

asyncio.run(main(*sys.argv[1:]))
"""

_COPIER = """
import asyncio, sys
from pathlib import Path
from store.objects.copying import copy
from store.objects.local import LocalObjects
print("begun", flush=True)
asyncio.run(copy(LocalObjects(Path(sys.argv[1])), LocalObjects(Path(sys.argv[2]))))
print("done", flush=True)
"""


def start(script: str, *words: str) -> subprocess.Popen[str]:
    """Returns when it has begun."""
    process = subprocess.Popen([sys.executable, "-c", script, *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def kill(process: subprocess.Popen[str]) -> str:
    """What it had said since."""
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    with process.stdout as said:
        return said.read()


async def given(primary: Primary, objects: LocalObjects, number: int) -> None:
    """Some users with images, of which some are in the trash."""
    for n in range(6):
        user = f"user-{number}-{n}"
        keys = [new_key("generated", TAG, "image/png", number) for _ in range(30)]
        await objects.put_many([(k, b"bytes") for key in keys for k in keys_of(key)])

        async def work(connection: Connection, user: str = user, keys: list[str] = keys) -> None:
            await connection.execute("insert into users (id) values ($1)", user)
            await connection.executemany(
                "insert into images (owner_id, object_key, thumb_key, content_type, size_bytes, model, trashed_at) "
                "values ($1, $2, $3, 'image/png', 5, 'builtin', case when $4 then now() end)",
                [(user, key, thumb_key(key), random.random() < 0.3) for key in keys],
            )

        await primary.write(user, work)


async def test_removals_that_are_killed_leave_nothing(primary: Primary, database: str, tmp_path: Path) -> None:
    """Every object has its row or is on the list; with the list worked off, rows and objects are the same again."""
    objects = LocalObjects(tmp_path / "objects")
    moments = random.Random(7)
    in_the_middle = 0
    for number in range(_ROUNDS):
        await given(primary, objects, number)
        process = await asyncio.to_thread(start, _REMOVER, database, str(objects.folder))
        await asyncio.sleep(moments.uniform(0.0, 0.25))
        await asyncio.to_thread(kill, process)
        await _until_alone(primary)

        now = datetime.now(UTC) + timedelta(hours=2)
        report = await reconcile(primary, objects, now=now)
        assert (report.orphans, report.missing) == (0, 0), f"round {number}: {report}"
        (row,) = await primary.fetch("select count(*) from deletions")
        in_the_middle += row[0] > 0

    await finish_erasures(primary, older_than_s=0)
    await primary.fetch("update deletions set due_at = now()")
    await delete_due(primary, objects)
    rows = await primary.fetch("select object_key k from images union all select thumb_key from images")
    assert {named_key(info.key) async for info in objects.scan()} == {row["k"] for row in rows}
    left = await primary.fetch(
        "select 1 from erased_users e where finished_at is null or exists (select from users u where u.id = e.user_id)"
    )
    assert left == []
    assert in_the_middle > _ROUNDS / 4, in_the_middle


async def _until_alone(primary: Primary) -> None:
    """The victim's backends are gone, and with them what they had not committed."""

    async def is_alone() -> bool:
        rows = await primary.fetch(
            "select 1 from pg_stat_activity where datname = current_database() and application_name = 'peruse victim'"
        )
        return not rows

    await until(is_alone)


async def test_a_copy_that_is_killed_goes_on(tmp_path: Path) -> None:
    """As often as it takes; each object whole."""
    source, destination = LocalObjects(tmp_path / "from"), LocalObjects(tmp_path / "to")
    made = {new_key("generated", TAG, "image/png", n): random.randbytes(20_000 + n) for n in range(600)}
    await source.put_many(list(made.items()))
    moments = random.Random(3)
    kills, there = 0, 0
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        process = await asyncio.to_thread(start, _COPIER, str(source.folder), str(destination.folder))
        await asyncio.sleep(moments.uniform(0.02, 0.06) * (kills + 1))
        said = await asyncio.to_thread(kill, process)
        found = {info.key: await destination.get(info.key) async for info in destination.scan()}
        assert found.items() <= made.items()
        assert len(found) >= there
        there = len(found)
        if said == "done\n":
            break
        kills += 1
    assert kills >= 2
    assert there == len(made)
    done = await copy(source, destination, verify=True)
    assert (done.copied, done.present, done.differ) == (0, len(made), [])
