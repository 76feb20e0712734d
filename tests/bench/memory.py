"""Memory: what a host grows by for each active user among many that it only knows the files of."""

from __future__ import annotations

import shutil
import sqlite3
import time
from pathlib import Path
from typing import Final

from actors.folder import ReplicaFolder
from tests.bench.client import Target, activate, bearer, scrape
from tests.bench.result import BenchError, Line, at_most

__all__ = ["IDLE_S", "add_passive", "measure_memory"]

#: So long no replica may be closed for being idle: all have to be open at the end.
IDLE_S: Final = 600
_SECTION: Final = "memory"
_AT_ONCE: Final = 8
_RESIDENT: Final = "peruse_host_resident_bytes"
_ACTIVE: Final = "peruse_host_active"
_KEPT: Final = "peruse_host_kept_bytes"


def add_passive(replicas: Path, users: list[str]) -> None:
    """Give `users` replica files in the one host's folder, copied from one that is there. The host must not run."""
    (path,) = (marker.parent for marker in replicas.glob("*/boot_id"))
    folder = ReplicaFolder.claim(replicas, path.name, generation=0)
    try:
        template = next(path.glob("??/??/*.db"))
        for user in users:
            made = folder.next_path(user)
            shutil.copyfile(template, made)
            replica = sqlite3.connect(made, isolation_level=None)
            replica.execute("update meta set user_id = ?", (user,))
            replica.close()
    finally:
        folder.release()


async def measure_memory(
    url: str, service_token: str, warm: list[str], users: list[str], *, known_users: int
) -> list[Line]:
    """Open the replicas of `users`, with a first page kept of each. `warm` are opened before the first look."""
    await activate(url, _targets(warm, service_token))
    before = await scrape(url)
    started = time.monotonic()
    await activate(url, _targets(users, service_token), at_once=_AT_ONCE)
    took_s = time.monotonic() - started
    after = await scrape(url)
    grown, active, kept = (after.value(name) - before.value(name) for name in (_RESIDENT, _ACTIVE, _KEPT))
    if active < 0.9 * len(users):  # a host that is at its limit closes some again
        raise BenchError(f"{active:.0f} replicas are open for {len(users)} users")
    note = f"{len(users):,} users of 50 images, {_AT_ONCE} readers at once, seeds included"
    return [
        Line(_SECTION, "resident memory per active user", "KB", [grown / active / 1000], at_most(250),
             key="memory_user_kb"),
        Line(_SECTION, "  of which the kept page", "KB", [kept / active / 1000]),
        Line(_SECTION, "the host in all", "MB", [after.value(_RESIDENT) / 1e6],
             note=f"{active:,.0f} users active, files of {known_users:,}"),
        Line(_SECTION, "to make all of them active", "s", [took_s], note=note),
    ]  # fmt: skip


def _targets(users: list[str], service_token: str) -> list[Target]:
    return [Target(f"/internal/users/{user}/images", bearer(service_token)) for user in users]
