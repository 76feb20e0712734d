"""A Postgres that somebody else runs, and parts that run apart."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.served import BIN, Served, eventually, peruse, processes_of

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]
PROMPTS = Path(__file__).parent.parent / "data" / "parti_prompts.tsv"


async def test_an_external_primary_is_used(open_folder: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """mission: 239"""
    monkeypatch.setenv("PERUSE_PRIMARY_URL", database)
    instance = Served(open_folder / "external")
    instance.start()
    try:
        assert not (instance.data / "postgres").exists()
        assert peruse("primary", data=instance.data).stdout.strip() == database
        peruse("import", str(PROMPTS), "--user", "ana", "--limit", "3", "--size", "64", data=instance.data)
        async with instance.client("ana") as client:

            async def from_replica() -> bool:
                reply = await client.get("/api/images")
                return reply.headers["Peruse-Source"] == "replica" and len(reply.json()["images"]) == 3

            await eventually(from_replica, timeout_s=10)
    finally:
        assert instance.stop() == 0
    assert processes_of(instance.data) == []


def test_an_external_primary_that_is_away_is_named_without_its_password(open_folder: Path) -> None:
    """One line, exit code 1, and the secret in neither."""
    environment = {**os.environ, "PERUSE_PRIMARY_URL": "postgresql://me:hunter2secret@127.0.0.1:9/gone"}
    command = [BIN, "serve", "--data", str(open_folder / "away"), "--port", "0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "postgresql://me:***@127.0.0.1:9/gone" in done.stderr
    assert "hunter2secret" not in done.stderr + done.stdout
