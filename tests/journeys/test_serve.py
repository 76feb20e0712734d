"""What the README promises, done as a person would: serve, import, read, stop, start again."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import sqlite3
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.served import BIN, Served, eventually, peruse, processes_of

PROMPTS = Path(__file__).parent.parent / "data" / "parti_prompts.tsv"


async def _all_from_replica(client: Any, path: str) -> list[dict[str, Any]]:
    """Every image of a list, page by page, each page answered by the replica."""
    images: list[dict[str, Any]] = []
    token = ""
    while True:
        reply = await client.get(path, params={"limit": "25", **({"page_token": token} if token else {})})
        assert reply.status_code == 200, reply.text
        images += reply.json()["images"]
        token = reply.json()["next_page_token"]
        if not token:
            return images


async def test_real_prompts_become_a_gallery_of_real_images(served: Served) -> None:
    """mission: 137, 148, 155, 186, 221"""
    done = peruse("import", str(PROMPTS), "--user", "ana", "--limit", "60", data=served.data)
    assert "imported 60 images for ana" in done.stdout
    assert "ms CPU each" in done.stdout

    again = peruse("import", str(PROMPTS), "--user", "ana", "--limit", "60", data=served.data)
    assert "imported 0 images for ana (60 were there already)" in again.stdout

    async with served.client("ana") as ana, served.client("images-service", "--service") as service:

        async def from_replica() -> bool:
            return (await ana.get("/api/images")).headers["Peruse-Source"] == "replica"

        await eventually(from_replica, timeout_s=10)
        images = await _all_from_replica(ana, "/api/images")
        assert len({image["id"] for image in images}) == 60
        assert images == await _all_from_replica(service, "/internal/users/ana/images")
        lines = PROMPTS.read_text().splitlines()[1:61]
        assert {image["prompt"] for image in images} == {line.split("\t")[0].strip() for line in lines}

        picture = Image.open(io.BytesIO((await ana.get(images[0]["url"])).content))
        picture.load()
        assert (picture.size, picture.format) == ((512, 512), "PNG")
        thumb = Image.open(io.BytesIO((await ana.get(images[0]["thumb_url"])).content))
        thumb.load()
        assert (max(thumb.size), thumb.format) == (384, "WEBP")


async def test_each_user_has_one_file_with_only_their_rows(served: Served) -> None:
    """mission: 129, 130, 141, 220"""
    for user in ("file-a", "file-b"):
        peruse("import", str(PROMPTS), "--user", user, "--limit", "5", "--size", "64", data=served.data)
        async with served.client(user) as client:
            assert (await client.post("/api/images/sync")).json()["success"] is True

    owners: dict[str, list[Path]] = {}
    for path in (served.data / "replicas").rglob("*.db"):
        # The live file is its host's alone: a copy shows what is in it (with its -wal).
        copy = served.data / "copy.db"
        for suffix in ("", "-wal"):
            Path(f"{copy}{suffix}").unlink(missing_ok=True)
            source = path.with_name(path.name + suffix)
            if source.exists():
                Path(f"{copy}{suffix}").write_bytes(source.read_bytes())
        replica = sqlite3.connect(copy)
        (owner,) = replica.execute("select user_id from meta").fetchone()
        owners.setdefault(owner, []).append(path)
        if owner in ("file-a", "file-b"):
            ids = {row[0] for row in replica.execute("select id from images")}
            primary = await served.primary()
            rows = await primary.fetch("select id::text from images where owner_id = $1", owner)
            await primary.close()
            assert ids == {row["id"] for row in rows}
            assert len(ids) == 5
        replica.close()
    assert len(owners["file-a"]) == len(owners["file-b"]) == 1


async def test_reads_go_on_while_postgres_hangs(served: Served) -> None:
    """mission: 139, 148, 221"""
    peruse("import", str(PROMPTS), "--user", "calm", "--limit", "5", "--size", "64", data=served.data)
    async with served.client("calm") as client:
        await client.post("/api/images/sync")
        before = await client.get("/api/images")
        assert before.headers["Peruse-Source"] == "replica"

        postgres = [pid for pid in processes_of(served.data) if _is_postgres(pid)]
        assert postgres
        for pid in postgres:
            os.kill(pid, signal.SIGSTOP)
        try:
            for _ in range(20):
                reply = await client.get("/api/images")
                assert reply.status_code == 200
                assert reply.headers["Peruse-Source"] == "replica"
                assert reply.content == before.content

            async def aged() -> bool:
                return int((await client.get("/api/images")).headers["Peruse-Age"]) >= 2

            await eventually(aged, timeout_s=10)
        finally:
            for pid in postgres:
                os.kill(pid, signal.SIGCONT)

        async def young() -> bool:
            return int((await client.get("/api/images")).headers["Peruse-Age"]) <= 1

        await eventually(young, timeout_s=15)


def _is_postgres(pid: int) -> bool:
    try:
        exe = os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return False
    return exe.endswith("/postgres")


def test_nothing_listens_beyond_this_machine(served: Served) -> None:
    """Every TCP port of every process of the instance, Ray's too, is on a loopback address."""
    ours = set()
    for pid in processes_of(served.data):
        for handle in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                ours.add(os.readlink(handle))
            except OSError:
                continue
    listening = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and f"socket:[{rest[5]}]" in ours:
                listening.append(local.split(":")[0])
    assert len(listening) > 5
    # 127.0.0.1, and the same as IPv6 writes it; words are in the machine's byte order.
    assert set(listening) <= {"0100007F", "0000000000000000FFFF00000100007F", "0" * 24 + "01000000"}


def test_ray_runs_without_what_nobody_here_uses(served: Served) -> None:
    """Neither its autoscaler nor its reader of logs, at 50 MB each; its node is there."""
    commands = " ".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in processes_of(served.data))
    assert "/raylet/raylet" in commands
    assert "log_monitor.py" not in commands
    assert "autoscaler" not in commands


def test_a_second_instance_on_the_folder_is_refused(served: Served) -> None:
    """One line that says who has it, and exit code 2."""
    done = peruse("serve", "--port", "0", data=served.data, check=False)
    assert done.returncode == 2
    assert f"another Peruse runs on {served.data} (process {served.process.pid}, {served.url})" in done.stderr
    assert peruse("primary", data=served.data).stdout.startswith("postgresql://")  # the first one is still found


def test_a_port_in_use_is_named(open_folder: Path) -> None:
    """One line that names the port, and exit code 2; nothing is made."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        data = open_folder / "never"
        done = peruse("serve", "--port", str(port), data=data, check=False)
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in done.stderr
    assert not data.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs Postgres as another user")
def test_a_folder_that_postgres_cannot_enter_is_named(open_folder: Path) -> None:
    """Checked before anything is made, exit code 2."""
    closed = open_folder / "closed"
    closed.mkdir(mode=0o700)
    done = peruse("serve", "--port", "0", data=closed / "data", check=False)
    assert done.returncode == 2
    assert f"{closed} cannot be entered by the user 'nobody'" in done.stderr
    assert not (closed / "data").exists()


def test_a_wrong_setting_is_named(open_folder: Path) -> None:
    """mission: 66"""
    environment = {**os.environ, "PERUSE_READ_TIMEOUT_MS": "soon"}
    command = [BIN, "serve", "--data", str(open_folder / "never"), "--port", "0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert "PERUSE_READ_TIMEOUT_MS" in done.stderr
    assert done.stderr.count("\n") == 1


async def test_stopped_and_started_again_everything_is_there(open_folder: Path) -> None:
    """SIGTERM and Ctrl-C end it with 0 within 10 s and leave no process; a second start finds all."""
    data = open_folder / "twice"
    first = Served(data)
    first.start()
    peruse("import", str(PROMPTS), "--user", "ana", "--limit", "10", "--size", "64", data=data)
    async with first.client("ana") as client:
        before = (await client.get("/api/images")).json()
    started = time.monotonic()
    assert first.stop(signal.SIGTERM) == 0
    assert time.monotonic() - started < 10
    assert processes_of(data) == []

    second = Served(data)
    second.start()
    async with second.client("ana") as client:
        assert (await client.get("/api/images")).json() == before
        assert len(before["images"]) == 10
        assert (await client.get(before["images"][0]["url"])).status_code == 200
    assert second.stop(signal.SIGINT) == 0
    assert processes_of(data) == []


async def test_operators_ask_from_the_shell(served: Served, open_folder: Path) -> None:
    """mission: 234"""
    peruse("import", str(PROMPTS), "--user", "shell", "--limit", "3", "--size", "64", data=served.data)
    async with served.client("shell") as client:
        await client.post("/api/images/sync")

    found = json.loads(peruse("inspect", "shell", "--json", data=served.data).stdout)
    assert (found["state"], found["lag"]) == ("active", 0)
    assert found["host"] in peruse("locate", "shell", data=served.data).stdout
    assert "shell" in {row["user"] for row in json.loads(peruse("replicas", "--json", data=served.data).stdout)}
    assert "shell" in peruse("users", data=served.data).stdout
    assert "passivated  True" in peruse("passivate", "shell", data=served.data).stdout
    assert "reseeding  True" in peruse("reseed", "shell", data=served.data).stdout

    out = open_folder / "shell.db"
    made = json.loads(peruse("export", "shell", str(out), "--json", data=served.data).stdout)
    assert made["rows"] == 4  # three images and the account
    replica = sqlite3.connect(out)
    assert replica.execute("select count(*) from images").fetchone() == (3,)
    replica.close()
    again = peruse("export", "shell", str(out), data=served.data, check=False)
    assert (again.returncode, "exists already" in again.stderr) == (2, True)
