"""Objects in a folder: written once, durable, whole or absent."""

from __future__ import annotations

import asyncio
import hashlib
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from store.errors import ObjectError, ObjectExists, ObjectMissing
from store.objects import local
from store.objects.keys import new_key, owner_tag, thumb_key
from store.objects.local import LocalObjects

TAG = owner_tag("user-1", b"secret")


@pytest.fixture
def objects(tmp_path: Path) -> LocalObjects:
    return LocalObjects(tmp_path / "objects")


def a_key(now_ms: int = 1) -> str:
    return new_key("generated", TAG, "image/png", now_ms)


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


async def test_object_is_one_file_until_it_is_deleted(objects: LocalObjects) -> None:
    key = a_key()

    await objects.put(key, b"bytes")

    assert files_below(objects.folder) == [objects.path(key)]
    assert objects.path(key).read_bytes() == b"bytes"
    await objects.delete(key)
    assert files_below(objects.folder) == []


async def test_what_is_no_object_is_not_listed(objects: LocalObjects) -> None:
    key = a_key()
    await objects.put(key, b"bytes")
    (objects.folder / "generated" / "note.txt").write_bytes(b"")
    (objects.path(key).parent / "lost+found").mkdir()
    (objects.folder / ".tmp" / "1-a").write_bytes(b"")

    assert [info.key async for info in objects.scan()] == [key]


def test_public_url_is_the_gateways(objects: LocalObjects, tmp_path: Path) -> None:
    """mission: 167"""
    key = a_key()

    assert objects.public_url(key) == f"/files/{key}"
    elsewhere = LocalObjects(tmp_path, files_base="https://img.example.org/")
    assert elsewhere.public_url(key) == f"https://img.example.org/files/{key}"


async def test_key_never_changes_its_bytes(objects: LocalObjects) -> None:
    key = a_key()
    await objects.put(key, b"first")

    with pytest.raises(ObjectExists, match=f"object {key} exists"):
        await objects.put(key, b"second")

    assert await objects.get(key) == b"first"
    assert files_below(objects.folder) == [objects.path(key)]


async def test_folders_are_synced_up_to_the_root_until_they_are_known_to_last(
    objects: LocalObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each new name is synced; what leads there once, and again if somebody has taken it away."""
    synced: list[Path] = []
    sync = local._sync_folder
    monkeypatch.setattr(local, "_sync_folder", lambda folder: (synced.append(folder), sync(folder)))
    key = a_key(1)
    parent = objects.path(key).parent

    await objects.put(key, b"bytes")
    assert {*synced} == {parent, parent.parent, objects.folder}

    synced.clear()
    await objects.put(a_key(2), b"bytes")
    assert synced == [parent]

    shutil.rmtree(parent.parent)
    synced.clear()
    await objects.put(a_key(3), b"bytes")
    assert {*synced} == {parent, parent.parent, objects.folder}


async def test_of_many_writers_of_a_key_exactly_one_wins(objects: LocalObjects) -> None:
    key = a_key()
    contents = [bytes([n]) * 100_000 for n in range(20)]

    results = await asyncio.gather(*(objects.put(key, c) for c in contents), return_exceptions=True)

    winners = [content for content, result in zip(contents, results, strict=True) if result is None]
    losers = [result for result in results if result is not None]
    assert len(winners) == 1
    assert [type(loser) for loser in losers] == [ObjectExists] * 19
    assert await objects.get(key) == winners[0]
    assert files_below(objects.folder) == [objects.path(key)]


async def test_put_many_writes_all_or_none(objects: LocalObjects) -> None:
    key, taken = a_key(1), a_key(2)
    await objects.put_many([(key, b"picture"), (thumb_key(key), b"thumb")])
    await objects.put(taken, b"mine")
    fresh = a_key(3)

    with pytest.raises(ObjectExists, match=f"object {taken} exists"):
        await objects.put_many([(fresh, b"new"), (taken, b"yours")])

    assert await objects.get(key) == b"picture"
    assert await objects.get(thumb_key(key)) == b"thumb"
    assert await objects.get(taken) == b"mine"
    assert not await objects.exists(fresh)
    assert len(files_below(objects.folder)) == 3


async def test_only_the_owner_can_read(objects: LocalObjects) -> None:
    key = a_key()

    await objects.put(key, b"bytes")

    path = objects.path(key)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for folder in (path.parent, path.parent.parent, objects.folder, objects.folder / ".tmp"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder


@pytest.mark.parametrize(
    "key",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "",
        ".tmp/1-a",
        "generated",
        f"generated/{TAG}",
        f"generated/{TAG}/..",
        f"generated/../{TAG}/0000000000001-{'a' * 32}.png",
        f"generated/{TAG}/0000000000001-{'a' * 32}.png\0.webp",
    ],
)
async def test_malformed_key_reaches_no_file(objects: LocalObjects, key: str) -> None:
    with pytest.raises(ObjectMissing, match="is not a key"):
        objects.path(key)
    with pytest.raises(ObjectMissing, match="is not a key"):
        await objects.put(key, b"bytes")
    with pytest.raises(ObjectMissing, match="is not a key"):
        await objects.put_many([(a_key(), b"bytes"), (key, b"bytes")])
    with pytest.raises(ObjectMissing, match="is not a key"):
        await objects.get(key)
    assert not await objects.exists(key)
    await objects.delete(key)
    assert files_below(objects.folder) == []


async def test_full_disk_leaves_nothing_and_names_the_key(objects: LocalObjects) -> None:
    """A limit on the size of files stands in for a full disk: both fail in the middle of a write."""
    key = a_key()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(ObjectError, match=f"object {key}: File too large") as caught:
            await objects.put(key, bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert type(caught.value) is ObjectError
    assert files_below(objects.folder) == []


async def test_file_in_the_way_of_a_folder_is_an_error_that_names_the_key(objects: LocalObjects) -> None:
    (objects.folder / "generated").write_bytes(b"")
    key = a_key()

    with pytest.raises(ObjectError, match=f"object {key}: Not a directory") as caught:
        await objects.put(key, b"bytes")

    assert type(caught.value) is ObjectError
    assert not list((objects.folder / ".tmp").iterdir())


async def test_sweep_removes_old_leftovers_only(tmp_path: Path) -> None:
    now = 2_000_000_000.0
    objects = LocalObjects(tmp_path, clock=lambda: now)
    key = a_key()
    await objects.put(key, b"bytes")
    old, young = tmp_path / ".tmp" / "1-old", tmp_path / ".tmp" / "1-young"
    for path, age_s in ((old, 3601), (young, 3599), (objects.path(key), 10**6)):
        path.touch()
        os.utime(path, (now - age_s, now - age_s))

    removed = await objects.sweep_temporary(3600)

    assert removed == 1
    assert not old.exists()
    assert young.exists()
    assert await objects.get(key) == b"bytes"
    assert await objects.sweep_temporary(3600) == 0


WRITER = """
import asyncio, hashlib, sys
from pathlib import Path
from store.objects.keys import new_key
from store.objects.local import LocalObjects

async def main():
    objects, n = LocalObjects(Path(sys.argv[1])), 0
    while True:
        data = n.to_bytes(4, "big") * 200_000
        key = new_key("generated", sys.argv[2], "image/png", n)
        await objects.put(key, data)
        print(key, hashlib.sha256(data).hexdigest(), flush=True)
        n += 1

asyncio.run(main())
"""


@pytest.mark.parametrize("acknowledged", [1, 4, 9])
async def test_killed_writer_leaves_whole_objects_or_none(tmp_path: Path, acknowledged: int) -> None:
    """What was acknowledged is there; what was not is there whole, or not at all."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path), TAG],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert writer.stdout is not None
    lines = [writer.stdout.readline().split() for _ in range(acknowledged)]
    writer.send_signal(signal.SIGKILL)
    lines += [line.split() for line in writer.stdout.read().splitlines() if len(line.split()) == 2]
    writer.stdout.close()
    assert writer.wait(10) == -signal.SIGKILL

    objects = LocalObjects(tmp_path, clock=lambda: 2e10)
    for key, digest in lines:
        assert hashlib.sha256(await objects.get(key)).hexdigest() == digest
    finished = files_below(tmp_path / "generated")
    assert len(lines) <= len(finished) <= len(lines) + 1
    for path in finished:
        data = path.read_bytes()
        assert data == int(path.name[:13]).to_bytes(4, "big") * 200_000
    await objects.sweep_temporary(3600)
    assert not list((tmp_path / ".tmp").iterdir())
