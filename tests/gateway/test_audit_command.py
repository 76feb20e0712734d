"""`peruse audit` and POST /admin/users/{user}/replica/audit: what is printed, and which exit code says what."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from actors.host import ReplicaHost
from tests.gateway.asking import given_images, ids_of, replica_of
from tests.gateway.test_cli import peruse
from tests.world import World, until


async def audit(world: World, *words: str) -> CompletedProcess[str]:
    """Run the command beside the world, which goes on answering."""
    return await asyncio.to_thread(
        peruse, "audit", *words, data=world.data, PERUSE_PRIMARY_URL=world.database, COLUMNS="40"
    )


def file_of(host: ReplicaHost, user: str) -> Path:
    path = host._replicas._folder.find(user)
    assert path is not None
    return path


def damage(world: World, user: str, statement: str) -> None:
    """Change a replica's file while its host has it closed."""
    world.host._replicas.passivate(user)
    connection = sqlite3.connect(file_of(world.host, user))
    with connection:
        connection.execute(statement)
    connection.close()


def outcomes(done: CompletedProcess[str]) -> dict[str, str]:
    return {report["user"]: report["outcome"] for report in json.loads(done.stdout)}


async def test_the_command_finds_repairs_and_says_so_with_its_exit_code(world: World) -> None:
    """0: all are equal or repaired; 1: some differ. mission: 234"""
    ids = await given_images(world, "ana", 30)
    for user in ("bob", "cyd"):
        await given_images(world, user, 2)
    for user in ("ana", "bob"):
        await replica_of(world, user)

    done = await audit(world, "--json")
    assert (done.returncode, outcomes(done)) == (0, {"ana": "equal", "bob": "equal", "cyd": "cold"})
    assert outcomes(await audit(world, "--sample", "2", "--json")).keys() < {"ana", "bob", "cyd"}

    damage(world, "ana", "delete from images where rowid <= 25")
    done = await audit(world, "--json")
    assert (done.returncode, outcomes(done)) == (1, {"ana": "differs", "bob": "equal", "cyd": "cold"})
    (images,) = [kind for kind in json.loads(done.stdout)[0]["kinds"] if kind["kind"] == "images"]
    assert (images["replica_rows"], images["primary_rows"], images["differences"]) == (5, 30, 25)
    assert images["replica_hash"] != images["primary_hash"]
    assert len(images["missing"]) == 20
    assert {*images["missing"]} < {*ids}

    done = await audit(world, "--user", "ana")
    assert done.returncode == 1
    (heading, row) = done.stdout.splitlines()
    assert heading.split() == ["user", "outcome", "version", "rows", "differ"]
    assert row.split()[:4] == ["ana", "differs", "1", "31"]
    assert f"images: 25 rows (missing {', '.join(images['missing'][:3])})" in row

    done = await audit(world, "--user", "ana", "--repair", "--json")
    assert (done.returncode, outcomes(done)) == (0, {"ana": "repaired"})
    done = await audit(world, "--user", "ana", "--json")
    assert (done.returncode, outcomes(done)) == (0, {"ana": "equal"})
    assert ids_of(await world.get("/api/images")) == ids


async def test_what_was_asked_wrongly_is_exit_code_2_and_what_cannot_be_audited_1(world: World) -> None:
    """Nothing is reported for what nobody looked at."""
    wrong = {
        ("--user", "ana", "--sample", "1"): "give --user or --sample, not both",
        ("--user", "a b"): "'a b' is not a user id",
        ("--sample", "0"): "Invalid value",
    }
    for words, said in wrong.items():
        done = await audit(world, *words)
        assert (done.returncode, done.stdout) == (2, ""), done
        assert said in " ".join(done.stderr.replace("│", "").split())

    await given_images(world, "ana", 1)
    await replica_of(world, "ana")
    await world.host.stop()
    await until(lambda: not any(row.is_live for row in world.gateway.client.hosts))
    done = await audit(world, "--json")
    assert done.returncode == 1
    (report,) = json.loads(done.stdout)
    assert (report["user"], report["outcome"], report["error"]) == ("ana", "failed", "no replica host is live")
    world.host = await world.start_host(0)


async def test_an_admin_audits_over_http(world: World) -> None:
    """The same answer as the command's; looking is what happens without `repair`."""
    await given_images(world, "ana", 3)
    await replica_of(world, "ana")
    damage(world, "ana", "update images set doc = replace(cast(doc as text), 'picture', 'pigture') where rowid = 2")

    async def ask(query: str = "", status: int = 200) -> Any:
        reply = await world.request("POST", f"/admin/users/ana/replica/audit{query}", user="boss", role="admin")
        assert reply.status == status, reply
        return reply.json.get("audit")

    assert (await ask())["outcome"] == "differs"
    found = await ask("?repair=0")
    assert found["outcome"] == "differs"
    assert [(kind["kind"], kind["differences"], len(kind["different"])) for kind in found["kinds"]] == [
        ("images", 1, 1), ("reference_images", 0, 0), ("jobs", 0, 0), ("accounts", 0, 0), ("usage_daily", 0, 0)
    ]  # fmt: skip
    await ask("?repair=yes", 400)
    await ask("?repair=0&repair=1", 400)
    await ask("?x=1", 400)
    assert (await ask("?repair=1"))["outcome"] == "repaired"
    assert (await ask())["outcome"] == "equal"
    for role in ("user", "service"):
        reply = await world.request("POST", "/admin/users/ana/replica/audit", user="ana", role=role)  # type: ignore[arg-type]
        assert reply.status == 403


async def test_a_client_that_kept_the_wrong_page_gets_the_right_one_after_a_repair(world: World) -> None:
    """The version is another one, so its ETag is not the page's any more. mission: 139"""
    await given_images(world, "ana", 3)
    right = await replica_of(world, "ana")
    damage(world, "ana", "delete from images where rowid = 2")
    wrong = await replica_of(world, "ana")
    assert (wrong.headers["ETag"], len(ids_of(wrong))) == (right.headers["ETag"], 2)
    known = {"If-None-Match": wrong.headers["ETag"]}
    assert (await world.get("/api/images", headers=known)).status == 304

    await world.request("POST", "/admin/users/ana/replica/audit?repair=1", user="boss", role="admin")

    async def is_another() -> bool:
        return (await world.get("/api/images", headers=known)).status == 200

    await until(is_another)
    reply = await world.get("/api/images", headers=known)
    assert ids_of(reply) == ids_of(right)
    assert reply.headers["ETag"] != wrong.headers["ETag"]
