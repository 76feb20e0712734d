"""A host that is made to be killed: replicas under constant pulls and seeds, in a process that ends by kill -9.

    python -m tests.faults.victim DATABASE FOLDER USER…

Every line on standard input is one round, and names the moment of the kill: `start`, `apply`, `seed` or `any`. A child
is forked from this warm process, lives until then, and is killed; then one line of JSON tells about its life.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from actors.errors import CallError
from actors.replica import Applied, Replica
from store.changes import Cursor
from store.errors import PrimaryUnavailable
from store.logs import configure
from tests.actors.fleet import Fleet

#: Bytes of memory that outlive the child: whether it serves, and whether it is inside an apply.
_SERVES, _APPLIES = 0, 1
_PATIENCE_S = 5.0


async def live(database: str, folder: Path, users: list[str], flags: mmap.mmap, tell: Callable[..., None]) -> None:
    """The child's life: take the folder, bring everybody to head, then pull and seed until the end."""
    fleet = await Fleet(folder, database, seeds=2).open()
    tell(left=[path.name for path in folder.rglob("*.staging*")])
    at = {user: (await fleet.replicas.sync(user))[0][:2] for user in users}
    tell(at=at, broken=fleet.metrics.broken, seeds=fleet.metrics.seeds)
    flags[_SERVES] = 1
    await asyncio.gather(*(_keep_busy(fleet, user) for user in users))


async def _keep_busy(fleet: Fleet, user: str) -> None:
    while True:
        match random.randrange(25):
            case 0:
                fleet.replicas.reseed(user)
            case 1 | 2:
                fleet.replicas.passivate(user)
        try:
            await fleet.replicas.sync(user)
            await fleet.read(user)
        except (CallError, PrimaryUnavailable):
            await asyncio.sleep(0.01)


def _note_applies(flags: mmap.mmap) -> None:
    apply = Replica.apply

    def noted(self: Replica, head: Cursor, changes: Iterable[Applied]) -> None:
        flags[_APPLIES] = 1
        apply(self, head, changes)
        flags[_APPLIES] = 0

    Replica.apply = noted  # type: ignore[method-assign]


def _child(database: str, folder: Path, users: list[str], flags: mmap.mmap, said: int) -> None:
    def tell(**facts: Any) -> None:
        os.write(said, json.dumps(facts).encode() + b"\n")

    try:
        asyncio.run(live(database, folder, users, flags, tell))
    except BaseException:
        tell(failed=traceback.format_exc()[-3000:])
    os._exit(1)


def _wait_for(moment: str, folder: Path, flags: mmap.mmap) -> None:
    """Returns when it is time to kill."""
    if moment == "start":
        time.sleep(random.uniform(0, 0.12))
        return
    _until(lambda: flags[_SERVES])
    if moment == "apply":
        _until(lambda: flags[_APPLIES])
        time.sleep(random.uniform(0, 0.002))
    elif moment == "seed":
        _until(lambda: next(folder.rglob("*.staging"), None))
        time.sleep(random.uniform(0, 0.01))
    else:
        time.sleep(random.uniform(0, 0.15))


def _until(check: Callable[[], object]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not check() and time.monotonic() < deadline:
        time.sleep(0.0002)


def round_of(moment: str, database: str, folder: Path, users: list[str], flags: mmap.mmap) -> dict[str, Any]:
    """One life and its end. `failed` is there when it ended by itself, `at` when it came to serve."""
    flags[_SERVES] = flags[_APPLIES] = 0
    hears, said = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(database, folder, users, flags, said)
    os.close(said)
    try:
        _wait_for(moment, folder, flags)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    with open(hears, "rb") as lines:
        facts = {name: fact for line in lines for name, fact in json.loads(line).items()}
    return {"applying": bool(flags[_APPLIES]), **facts}


def main() -> None:
    database, folder, *users = sys.argv[1:]
    configure(process="victim", level="error", stream=sys.stderr)  # standard output is for what is told
    flags = mmap.mmap(-1, 2)
    _note_applies(flags)
    for line in sys.stdin:
        print(json.dumps(round_of(line.strip(), database, Path(folder), users, flags)), flush=True)


if __name__ == "__main__":
    main()
