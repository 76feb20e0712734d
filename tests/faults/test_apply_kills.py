"""kill -9 of a host in the middle of applies and seeds: rows and cursor of every file are of one version, nothing is
left over, and whoever comes next goes on from there."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from actors import ReplicaClient
from actors.errors import CallError
from store import hosts
from store.epoch import Bookmark
from store.primary import Primary
from tests.actors.fleet import Fleet
from tests.faults.load import Load
from tests.faults.recorder import Recorder, digest_of, read_files
from tests.served import Served, eventually, peruse, processes_of

pytestmark = [pytest.mark.faults, pytest.mark.timeout(180)]

_ROUNDS = 200
_RAY_ROUNDS = 5
#: user → images: one who is seeded often (a change of all is too large to be pulled), one in between, a small one.
_GALLERIES = {"ana": 600, "bob": 200, "eve": 20}


class Nursery:
    """The program that makes hosts and kills them."""

    def __init__(self, database: str, folder: Path) -> None:
        command = [sys.executable, "-m", "tests.faults.victim", database, str(folder), *_GALLERIES]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def kill_one(self, moment: str) -> dict[str, Any]:
        """What one host told before it was killed at `moment`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{moment}\n")
        self._process.stdin.flush()
        told: dict[str, Any] = json.loads(self._process.stdout.readline())
        return told

    def close(self) -> None:
        with self._process:
            self._process.communicate(timeout=10)


async def test_a_host_that_is_killed_at_any_moment_leaves_true_files(
    database: str, primary: Primary, tmp_path: Path
) -> None:
    """Two hundred times: each file holds what its user had at exactly the version that it names; the next host finds
    no half-made file, throws no file away, and comes to the head. mission: 133, 135, 136"""
    folder, recorder = tmp_path / "replicas", Recorder(primary)
    for user, rows in _GALLERIES.items():
        await recorder.fill(user, rows)
    nursery, moments = Nursery(database, folder), random.Random(5)
    in_applies = in_seeds = files = 0
    try:
        async with recorder:
            for n in range(_ROUNDS):
                before = dict(recorder.heads)
                moment = moments.choices(("start", "apply", "seed", "any"), (3, 8, 5, 4))[0]
                told = await asyncio.to_thread(nursery.kill_one, moment)

                assert "failed" not in told, told["failed"]
                assert told.get("left", []) == [], f"round {n}: the next host found what a seed left"
                if "at" in told:
                    assert told["broken"] == 0, f"round {n}: a kill broke a file"
                    for user, bookmark in before.items():
                        assert not bookmark.is_after(*told["at"][user]), f"round {n}: {user} at {told['at'][user]}"
                for found in read_files(folder, tmp_path / "copy"):
                    recorder.check(found)
                    files += 1
                in_applies += told["applying"]
                in_seeds += any(folder.rglob("*.staging"))
    finally:
        nursery.close()

    assert in_applies > _ROUNDS / 10, in_applies
    assert in_seeds > _ROUNDS / 10, in_seeds
    assert files > _ROUNDS, files
    await _comes_to_the_head(folder, database, recorder, tmp_path / "copy")


async def _comes_to_the_head(folder: Path, database: str, recorder: Recorder, scratch: Path) -> None:
    """A last host, which is left alone."""
    fleet = await Fleet(folder, database).open()
    try:
        assert not any(folder.rglob("*.staging*"))
        for user, head in recorder.heads.items():
            cursor, _ = await fleet.replicas.sync(user)
            assert Bookmark(*cursor[:2]) == head
    finally:
        await fleet.close()
    found = read_files(folder, scratch)
    assert {state.user: state.at for state in found} == recorder.heads
    for state in found:
        recorder.check(state)


async def test_an_actor_that_is_killed_leaves_true_files(open_folder: Path, tmp_path: Path) -> None:
    """Under Ray, among writers, readers and seeds: Ray starts it again, and it goes on from its files. mission: 133"""
    served = Served(open_folder / "actor")
    served.start()
    replicas = served.data / "replicas"
    url = peruse("primary", data=served.data).stdout.strip()
    primary = await Primary.open(url, name="test", size=8)
    client = ReplicaClient(lambda: hosts.list_hosts(primary))
    await client.start()
    try:
        recorder = Recorder(primary)
        for user in ("ana", "bob"):
            await recorder.fill(user, 150)
        async with served.client("ana") as ana, served.client("bob") as bob:
            loads = Load(ana, [], pause_s=0.02), Load(bob, [], pause_s=0.02)
            async with recorder, loads[0], loads[1]:
                seeding = asyncio.create_task(_keep_seeding(client, "bob"))
                try:
                    for _ in range(_RAY_ROUNDS):
                        await _kill_and_look(served, replicas, recorder, tmp_path / "copy")
                        for load in loads:
                            await load.goes_on()
                finally:
                    seeding.cancel()
                    await asyncio.gather(seeding, return_exceptions=True)
            assert [load.went_back for load in loads] == [[], []]
            assert [load.lost for load in loads] == [[], []]
            for user, one in (("ana", ana), ("bob", bob)):
                await eventually(lambda u=user, c=one: _is_at_head(c, u, primary), timeout_s=10)
        assert list(replicas.rglob("*.staging*")) == []
    finally:
        await client.close()
        await primary.close()
        assert served.stop() == 0
    assert processes_of(served.data) == []


async def _keep_seeding(client: ReplicaClient, user: str) -> None:
    while True:
        try:
            await client.reseed(user)
        except CallError:
            pass  # it is dead just now
        await asyncio.sleep(random.uniform(0.05, 0.3))


async def _kill_and_look(served: Served, replicas: Path, recorder: Recorder, scratch: Path) -> None:
    pid = await served.host_pid()

    async def replicas_are_there() -> bool:
        return any(replicas.rglob("*.db"))

    await eventually(replicas_are_there, timeout_s=10)
    await asyncio.sleep(random.uniform(0, 0.3))
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: _is_dead(pid), timeout_s=5)
    left = {path: path.stat().st_ino for path in replicas.rglob("*.staging*")}
    # Ray needs a second or more for the next process, so nobody has the files now.
    for found in read_files(replicas, scratch):
        recorder.check(found)

    async def another_serves() -> bool:
        return await served.host_pid() != pid

    await eventually(another_serves, timeout_s=20)
    for path, inode in left.items():
        assert not (path.exists() and path.stat().st_ino == inode), f"{path} of the killed host is still there"


async def _is_dead(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def _is_at_head(client: Any, user: str, primary: Primary) -> bool:
    """The replica shows what the primary has."""
    rows: list[asyncpg.Record] = await primary.fetch(
        "select id::text, object_key, prompt, starred from images where owner_id = $1", user
    )
    reply = await client.get("/api/images", params={"limit": "200"})
    assert reply.headers["Peruse-Source"] == "replica"
    shown = digest_of(reply.json()["images"])
    return shown == digest_of(
        {"id": r["id"], "url": f"/files/{r['object_key']}", "prompt": r["prompt"], "starred": r["starred"]}
        for r in rows
    )
