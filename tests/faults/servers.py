"""Postgres servers side by side: copies and standbys of one another, and one address that leads to one of them."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import asyncpg

from store.embedded import EmbeddedPostgres
from store.postgres_binaries import is_root, postgres_user
from tests.world import until

__all__ = ["Address", "base_backup", "has_caught_up", "promote", "stop_following"]


def _socket_folder(server: EmbeddedPostgres) -> str:
    return parse_qs(urlsplit(server.url).query)["host"][0]


class Address:
    """`url` leads to whichever server it was last pointed at, as a name or a virtual address does."""

    def __init__(self, folder: Path) -> None:
        self._link = folder / "current"
        self.url = f"postgresql://postgres@/peruse?host={quote(str(self._link), safe='')}&port=5432"

    def lead_to(self, server: EmbeddedPostgres) -> None:
        """New connections go to `server`; those that are open stay where they are."""
        fresh = self._link.with_name("next")
        fresh.symlink_to(_socket_folder(server))
        fresh.replace(self._link)


async def base_backup(server: EmbeddedPostgres, folder: Path, *, standby: bool = False) -> EmbeddedPostgres:
    """A server, not started, on a copy of what `server` is now; a standby goes on following it."""
    cluster, user = folder / "cluster", postgres_user()
    folder.mkdir()
    folder.chmod(0o711)
    cluster.mkdir(mode=0o700)
    os.chown(cluster, user.pw_uid, user.pw_gid)
    program = Path(f"/proc/{server.pid}/exe").resolve().with_name("pg_basebackup")
    command = [program, "-D", cluster, "-h", _socket_folder(server), "-p", "5432", "-U", "postgres", "-c", "fast"]
    run_as = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if is_root() else {}
    done = await asyncio.to_thread(
        subprocess.run,
        [*command, *(["-R"] if standby else [])],
        capture_output=True,
        text=True,
        cwd="/",
        env={},
        **run_as,
    )
    assert done.returncode == 0, done.stderr
    return EmbeddedPostgres(folder)


async def _value(server: EmbeddedPostgres, sql: str, *values: object) -> object:
    connection = await asyncpg.connect(server.url)
    try:
        return await connection.fetchval(sql, *values)
    finally:
        await connection.close()


async def has_caught_up(standby: EmbeddedPostgres, server: EmbeddedPostgres) -> None:
    """Returns when `standby` has all that `server` had when this was called."""
    lsn = await _value(server, "select pg_current_wal_flush_lsn()")
    await until(lambda: _value(standby, "select pg_last_wal_replay_lsn() >= $1", lsn), timeout_s=20)


async def stop_following(standby: EmbeddedPostgres, server: EmbeddedPostgres) -> None:
    """What `server` writes from now on never reaches `standby`."""
    await _value(standby, "alter system set primary_conninfo = ''")
    await _value(standby, "select pg_reload_conf()")
    await until(lambda: _value(server, "select count(*) = 0 from pg_stat_replication"), timeout_s=20)


async def promote(standby: EmbeddedPostgres) -> None:
    """It takes writes when this returns."""
    assert await _value(standby, "select pg_promote(true, 30)")
