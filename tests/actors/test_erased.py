"""Files of users who were erased go at once, on every host, and nobody else's do."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from actors import host as host_module
from actors.errors import Retryable
from actors.folder import ReplicaFolder
from actors.host import ReplicaHost
from store.erasure import erase
from store.primary import Primary
from tests.actors.fleet import History, add_image, shown
from tests.actors.test_host import StartHost, a_client, read
from tests.world import until


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BEAT_S", "SWEEP_S", "ERASED_S"):
        monkeypatch.setattr(host_module, name, 0.05)


def files_of(host: ReplicaHost, user: str) -> list[Path]:
    folder = host._replicas._folder
    return sorted(folder.path.glob(f"??/??/{folder._stem(user).name}.*"))


async def test_the_file_of_an_erased_user_goes(start_host: StartHost, primary: Primary, history: History) -> None:
    """Open or not, with its log; the others serve on. mission: 129"""
    host = await start_host(0)
    client = await a_client(primary)
    for user in ("ana", "bob", "cyd"):
        await history.write([user], lambda c, user=user: add_image(c, user, f"of {user}"))
        await read(client, user)
    await client.passivate("bob")
    assert all(files_of(host, user) for user in ("ana", "bob", "cyd"))

    await erase(primary, "ana")
    await erase(primary, "bob")

    await until(lambda: not files_of(host, "ana") and not files_of(host, "bob"))
    await until(lambda: host.stats().metrics.files_removed >= 2)  # counted when all are gone
    assert files_of(host, "cyd")
    assert len(shown((await read(client, "cyd")).body)) == 1
    await client.close()
    await host.stop()


async def test_a_host_that_was_away_deletes_them_when_it_comes_back(
    start_host: StartHost, primary: Primary, history: History
) -> None:
    """And keeps the file of one who has come again since."""
    host = await start_host(0)
    client = await a_client(primary)
    for user in ("ana", "bob"):
        await history.write([user], lambda c, user=user: add_image(c, user, f"of {user}"))
        await read(client, user)
    await client.close()
    await host.stop()
    for user in ("ana", "bob"):
        await erase(primary, user)
    await primary.fetch("update erased_users set erased_at = erased_at - interval '26 hours'")
    await history.write(["bob"], lambda c: add_image(c, "bob", "again"))

    host = await start_host(0)

    await until(lambda: not files_of(host, "ana"))
    assert files_of(host, "bob")
    client = await a_client(primary)
    await client.sync("bob", timeout_s=5)
    assert len(shown((await read(client, "bob")).body)) == 1
    await client.close()
    await host.stop()


async def test_a_file_that_comes_late_goes_too(start_host: StartHost, primary: Primary, history: History) -> None:
    """A read in the last second of a token makes one, of nothing."""
    host = await start_host(0)
    client = await a_client(primary)
    await history.write(["ana"], lambda c: add_image(c, "ana", "one"))
    await read(client, "ana")
    await erase(primary, "ana")
    await until(lambda: not files_of(host, "ana"))
    made = host.stats().metrics.seeds

    async def is_read() -> bool:
        try:
            page = await read(client, "ana")
        except Retryable:
            return False  # each of those that were made went before it could be read
        assert shown(page.body) == []
        return True

    await until(is_read)

    await until(lambda: host.stats().metrics.seeds > made)
    await until(lambda: not files_of(host, "ana"))
    await client.close()
    await host.stop()


async def test_files_of_hosts_that_never_come_back_go_too(
    start_host: StartHost, primary: Primary, history: History
) -> None:
    """By the hand of a host beside them; nobody else's go, and nothing of a folder that somebody holds. mission: 129"""
    gone = await start_host(1)
    client = await a_client(primary)
    for user in ("ana", "bob"):
        await history.write([user], lambda c, user=user: add_image(c, user, f"of {user}"))
        await read(client, user)
    await client.close()
    await gone.stop()
    left = files_of(gone, "ana")
    assert left
    staging = left[0].with_suffix(".staging")
    staging.write_bytes(b"half of a seed")
    held = ReplicaFolder.claim(gone._replicas._folder.path.parent, "zombie:0", generation=1)
    theirs = held.next_path("ana")
    theirs.write_bytes(b"a replica")
    host = await start_host(0)

    await erase(primary, "ana")

    await until(lambda: not files_of(gone, "ana"))
    assert not staging.exists()
    assert files_of(gone, "bob")
    await asyncio.sleep(0.2)
    assert theirs.exists()
    held.release()
    await until(lambda: not theirs.exists())
    await host.stop()
    back = await start_host(1)
    assert back._replicas._folder.path == gone._replicas._folder.path
    assert files_of(back, "bob")
    await back.stop()
