"""`peruse grant`, `peruse plan` and `peruse audit --money`: what is printed, and which exit code says what."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from subprocess import CompletedProcess

import asyncpg
import pytest

from store.epoch import Bookmark
from tests.gateway.test_cli import peruse
from tests.money import add_job, end_job, lines_of
from tests.world import World, until


async def run(world: World, *words: str) -> CompletedProcess[str]:
    """Run the command beside the world, which goes on answering."""
    return await asyncio.to_thread(peruse, *words, data=world.data, PERUSE_PRIMARY_URL=world.database, COLUMNS="40")


async def test_credits_are_granted_and_taken_back(world: World) -> None:
    """An unknown user is made; the line has the reason; a minus is no option. mission: 67"""
    done = await run(world, "grant", "ana", "7.5", "--reason", "welcome")
    assert (done.returncode, done.stdout, done.stderr) == (0, "ana has 7.5 credits\n", "")

    done = await run(world, "grant", "ana", "-2.5", "--json")
    line = json.loads(done.stdout)
    assert (line["kind"], line["amount_credits"], line["balance_credits"]) == ("grant", -2.5, 5)

    (_, first) = (await world.get("/api/account/ledger")).json["lines"]
    assert (first["amount_credits"], first["reason"]) == (7.5, "welcome")
    done = await run(world, "users", "--json")
    assert [(row["user"], row["balance_credits"], row["plan"]) for row in json.loads(done.stdout)] == [
        ("ana", 5, "free")
    ]
    heading, row = (await run(world, "users")).stdout.splitlines()
    assert row.split()[heading.split().index("balance_credits")] == "5"


async def test_the_users_host_hears_of_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, not by its next sweep."""
    heard: list[tuple[str, int]] = []
    replicas = world.host._replicas
    poke = replicas.poke

    def listen(user: str, bookmark: Bookmark) -> None:
        heard.append((user, bookmark.version))
        poke(user, bookmark)

    monkeypatch.setattr(replicas, "poke", listen)

    for words in (["grant", "ana", "5"], ["plan", "ana", "pro"]):
        assert (await run(world, *words)).returncode == 0

    assert await until(lambda: len(heard) == 2)
    assert heard == [("ana", 1), ("ana", 2)]


async def test_a_plan_is_set(world: World) -> None:
    """Also of somebody who is not there yet. mission: 75, 76"""
    done = await run(world, "plan", "ana", "enterprise")
    assert (done.returncode, done.stdout, done.stderr) == (0, "ana is on plan enterprise\n", "")
    assert await world.gateway.primary.fetch("select plan from accounts where owner_id = 'ana'") == [("enterprise",)]
    done = await run(world, "plan", "ana", "pro", "--json")
    assert json.loads(done.stdout) == {"user": "ana", "plan": "pro"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["grant", "ana", "much"], "'much' is not a number of credits"),
        (["grant", "ana", "0.25"], "credits has more than one decimal"),
        (["grant", "ana", "0"], "credits must not be 0"),
        (["grant", "ana", "1e999"], "credits must be a number from"),
        (["grant", "ana", "-3"], "this takes 3 credits, and the balance is 0"),
        (["grant", "a b", "3"], "'a b' is not a user id"),
        (["grant", "~node:1", "3"], "'~node:1' is not a user id"),
        (["plan", "ana", "gold"], "plan must be one of free, pro, enterprise, got 'gold'"),
        (["grant", "gone", "3"], "user gone was erased"),
        (["plan", "gone", "pro"], "user gone was erased"),
        (["audit", "--money", "--user", "cyd"], "there is no user cyd"),
        (["audit", "--money", "--user", "a b"], "'a b' is not a user id"),
    ],
)
async def test_what_cannot_be_is_one_line_and_exit_code_2(shared: World, words: list[str], says: str) -> None:
    """And changes nothing."""
    primary = shared.gateway.primary
    await primary.fetch("insert into erased_users (user_id, finished_at) values ('gone', now()) on conflict do nothing")
    before = await primary.fetch("select count(*) from credit_ledger")

    done = await run(shared, *words)

    assert (done.returncode, done.stdout) == (2, ""), done
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert await primary.fetch("select count(*) from credit_ledger") == before


@pytest.mark.parametrize("words", [["--repair"], ["--user", "ana", "--sample", "3"]])
async def test_the_audit_of_money_repairs_nothing(tmp_path: Path, words: list[str]) -> None:
    """Asked for, it says so before it looks at anything."""
    done = peruse("audit", "--money", *words, data=tmp_path)

    assert done.returncode == 2
    assert done.stdout == ""


async def test_the_audit_of_money_says_what_it_saw_and_what_is_wrong(world: World) -> None:
    """Exit code 0 when all adds up, 1 when something does not; what is wrong stays as it is."""
    for user in ("ana", "bob"):
        await run(world, "grant", user, "10")
        job = await world.write(user, lambda c, user=user: add_job(c, user, 40, n=4))
        await world.write(user, lambda c, user=user, job=job: end_job(c, user, job, "completed", 3))

    done = await run(world, "audit", "--money")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "users: 2, lines: 6, jobs: 2, credits: 14, held: 0: nothing wrong\n"

    hand = await asyncpg.connect(world.database)
    await hand.execute("set session_replication_role = replica")
    await hand.execute("update accounts set balance_tenths = balance_tenths + 5 where owner_id = 'ana'")
    done = await run(world, "audit", "--money")
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "ana  balance: the balance is 75, the lines add up to 70",
        "users: 2, lines: 6, jobs: 2, credits: 14.5, held: 0: 1 wrong",
    ]
    told = json.loads((await run(world, "audit", "--money", "--json")).stdout)
    assert (told["users"], told["balance_tenths"]) == (2, 145)
    assert told["findings"] == [
        {"user": "ana", "check": "balance", "row": "", "said": "the balance is 75, the lines add up to 70"}
    ]
    assert (await run(world, "audit", "--money", "--user", "ana")).returncode == 1
    assert (await run(world, "audit", "--money", "--user", "bob")).returncode == 0
    assert json.loads((await run(world, "audit", "--money", "--sample", "1", "--json")).stdout)["users"] == 1
    assert await lines_of(hand, "ana") == [("grant", 100, 100), ("hold", -40, 60), ("refund", 10, 70)]
    await hand.close()


async def test_many_users_are_audited_in_batches(world: World) -> None:
    """All of them, each once."""
    await world.gateway.primary.fetch("insert into users (id) select 'u' || n from generate_series(1, 450) n")

    done = await run(world, "audit", "--money", "--json")

    assert done.returncode == 0, done
    assert json.loads(done.stdout)["users"] == 450
