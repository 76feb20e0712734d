"""A host's folder: one owner, new names for new files, and nothing left of another life."""

from __future__ import annotations

import fcntl
import stat
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from actors import folder as folder_module
from actors.folder import ReplicaFolder


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[ReplicaFolder]:
    claimed = ReplicaFolder.claim(tmp_path, "node:0", generation=1)
    yield claimed
    claimed.release()


class releasing(closing):  # type: ignore[type-arg]
    def __exit__(self, *_: object) -> None:
        self.thing.release()


def put(folder: ReplicaFolder, user: str) -> Path:
    path = folder.next_path(user)
    path.write_text("a replica")
    return path


def test_the_second_of_two_owners_gets_a_folder_of_its_generation(tmp_path: Path, folder: ReplicaFolder) -> None:
    """A process that was given up may still be writing."""
    kept = put(folder, "ana")

    with releasing(ReplicaFolder.claim(tmp_path, "node:0", generation=2)) as second:
        assert folder.path == tmp_path / "node_0"
        assert second.path == tmp_path / "node_0.2"
        assert second.find("ana") is None
        with pytest.raises(OSError, match="both locked"):
            ReplicaFolder.claim(tmp_path, "node:0", generation=2)

    folder.release()
    with releasing(ReplicaFolder.claim(tmp_path, "node:0", generation=3)) as third:
        assert third.path == folder.path
        assert third.find("ana") == kept


def test_hosts_of_one_machine_have_folders_of_their_own(tmp_path: Path, folder: ReplicaFolder) -> None:
    with releasing(ReplicaFolder.claim(tmp_path, "node:1", generation=1)) as other:
        assert other.path == tmp_path / "node_1"
        assert stat.S_IMODE(other.path.stat().st_mode) == 0o700


def test_files_go_when_the_machine_was_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are written without fsync, which survives the end of a process and not the end of a kernel."""
    with releasing(ReplicaFolder.claim(tmp_path, "node:0", generation=1)) as first:
        path = put(first, "ana")
    with releasing(ReplicaFolder.claim(tmp_path, "node:0", generation=2)) as same_boot:
        assert same_boot.find("ana") == path

    monkeypatch.setattr(folder_module, "_boot_id", lambda: "another boot")
    with releasing(ReplicaFolder.claim(tmp_path, "node:0", generation=3)) as next_boot:
        assert next_boot.find("ana") is None
        assert not path.exists()
        path = put(next_boot, "ana")
    with releasing(ReplicaFolder.claim(tmp_path, "node:0", generation=4)) as still:
        assert still.find("ana") == path


def test_files_go_when_nobody_wrote_down_the_boot(tmp_path: Path, folder: ReplicaFolder) -> None:
    put(folder, "ana")
    (folder.path / "boot_id").unlink()
    folder.release()

    with releasing(ReplicaFolder.claim(tmp_path, "node:0", generation=2)) as again:
        assert again.find("ana") is None


def test_what_a_killed_seed_left_is_swept(tmp_path: Path, folder: ReplicaFolder) -> None:
    path = put(folder, "ana")
    staging = path.with_suffix(".staging")
    staging.touch()
    staging.with_name(staging.name + "-journal").touch()
    folder.release()

    with releasing(ReplicaFolder.claim(tmp_path, "node:0", generation=2)) as again:
        assert again.find("ana") == path
        assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_numbers_count_up_and_the_newest_is_found(folder: ReplicaFolder) -> None:
    """Beyond nine too: they are numbers, not text."""
    assert folder.find("ana") is None

    paths = [put(folder, "ana") for _ in range(12)]

    assert [int(path.name.split(".")[1]) for path in paths] == list(range(1, 13))
    assert folder.find("ana") == paths[-1]
    assert len({path.parent for path in paths}) == 1
    paths[-1].unlink()
    assert folder.find("ana") == paths[-2]


def test_names_of_users_are_not_names_of_files(folder: ReplicaFolder) -> None:
    """mission: 129, 141"""
    names = [put(folder, user) for user in ("ana", "Ana", "~x", "a/../../b", "a.1")]

    assert len(set(names)) == 5
    for path in names:
        assert path.is_relative_to(folder.path)
        assert path.name.endswith(".1.db")
        assert len(path.name) == 64 + len(".1.db")


def test_delete_others_keeps_one_file_and_every_other_user(folder: ReplicaFolder) -> None:
    old, kept = put(folder, "ana"), put(folder, "ana")
    log = old.with_name(old.name + "-wal")
    log.touch()
    other = put(folder, "bob")

    folder.delete_others("ana", kept)

    assert not old.exists()
    assert not log.exists()
    assert kept.exists()
    assert other.exists()


def test_a_name_whose_log_is_still_there_is_not_used_again(folder: ReplicaFolder) -> None:
    """Deleting a file may end between it and its log; a new file of that name would take the log for its own."""
    path = put(folder, "ana")
    path.with_name(path.name + "-wal").touch()
    path.unlink()

    assert folder.next_path("ana") != path


def test_a_folder_that_is_tidied_is_not_taken_for_one_in_use(tmp_path: Path, folder: ReplicaFolder) -> None:
    """A host that starts meanwhile waits: another folder would cost a seed of every user."""
    kept = put(folder, "ana")
    folder.release()
    tidying, done = (folder.path / "lock").open(), threading.Event()
    fcntl.flock(tidying, fcntl.LOCK_SH)

    def finish() -> None:
        done.wait(10)
        tidying.close()

    threading.Thread(target=finish).start()
    threading.Timer(0.1, done.set).start()
    with releasing(ReplicaFolder.claim(tmp_path, "node:0", generation=2)) as claimed:
        assert done.is_set()
        assert claimed.path == folder.path
        assert claimed.find("ana") == kept


def test_files_go_from_folders_that_nobody_has(tmp_path: Path, folder: ReplicaFolder) -> None:
    """Of the users that are named; whatever else lies there stays."""
    with releasing(ReplicaFolder.claim(tmp_path, "node:1", generation=1)) as other:
        names = [put(other, user) for user in ("ana", "ana", "bob")]
        assert folder.delete_in_abandoned(["ana"]) == 0
    names[0].with_name(names[0].name + "-wal").write_text("a log")
    (tmp_path / "notes").mkdir()
    mine = put(folder, "ana")

    assert folder.delete_in_abandoned(["ana", "nobody"]) == 3

    assert [path.exists() for path in names] == [False, False, True]
    assert mine.exists()
    assert folder.delete_in_abandoned(["ana"]) == 0
