"""What operators look at first: totals at /admin/overview, and the queues in /metrics."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest

from gateway import queues
from store import overview as overview_module
from store.overview import overview
from tests.gateway.asking import running
from tests.gateway.link import PrimaryLink
from tests.gateway.test_health import samples
from tests.jobs import add_jobs, end_job, grant
from tests.world import World, until


async def told(world: World) -> Any:
    reply = await world.get("/admin/overview", user="boss", role="admin")
    assert reply.status == 200, reply
    return reply.json["overview"]


async def attempt(connection: Any, job: uuid.UUID, user: str, number: int, **columns: Any) -> None:
    """One call of a provider for `job`."""
    values = {"provider": "builtin", "state": "done", "seconds": 1.0, "age_s": 60.0, "cost_usd": "0.0100", **columns}
    await connection.execute(
        "insert into attempts (job_id, owner_id, call, number, provider, model, fence, state, cost_usd, started_at, "
        "ended_at) values ($1, $2, $3, 1, $4, 'm', 1, $5, $6, now() - make_interval(secs => $7), "
        "case when $5 <> 'started' then now() - make_interval(secs => $7) + make_interval(secs => $8) end)",
        job, user, number, values["provider"], values["state"], values["cost_usd"], values["age_s"], values["seconds"],
    )  # fmt: skip


async def test_overview_adds_up(world: World) -> None:
    """Users, images, bytes, jobs, credits and the cost of a day. mission: 57, 194, 210"""
    uploaded = await world.upload(user="ana")
    await world.write("bob", lambda c: grant(c, "bob", 1000))
    await world.write("bob", lambda c: grant(c, "bob", -100))
    ends = ("completed", "completed", "failed", "canceled")
    jobs = await world.write("bob", lambda c: add_jobs(c, "bob", 6, price_tenths=15))
    for job, state in zip(jobs, ends, strict=False):
        await world.write("bob", lambda c, job=job, state=state: end_job(c, job, state, cost_usd="0.0300"))
    await world.write("bob", lambda c: c.execute("update jobs set state = 'processing' where id = $1", jobs[4]))
    old = "update jobs set created_at = now() - interval '2 days' where id = $1"
    await world.write("bob", lambda c: c.execute(old, jobs[0]))

    found = await told(world)

    assert (found["users"], found["images"], found["estimates"]) == (2, 1, [])
    assert found["stored_bytes"] == uploaded.json["image"]["size_bytes"]
    assert found["jobs"] == {
        "pending": 1, "processing": 1, "uploading": 0, "completed": 2, "failed": 1, "canceled": 1,
    }  # fmt: skip
    assert [found[f"credits_{name}"] for name in ("granted", "balance", "held", "used")] == [90, 84, 3, 3]
    assert found["cost_usd"] == 0.12
    assert found["last_day"] == {"jobs": 5, "credits_used": 4.5, "cost_usd": 0.09}
    granted = "select sum(amount_tenths) from credit_ledger where kind = 'grant'"
    assert found["credits_granted"] * 10 == await _value(world, granted)


async def _value(world: World, sql: str) -> Any:
    ((value,),) = await world.gateway.primary.fetch(sql)
    return value


async def test_overview_shows_slow_and_failing_providers(world: World) -> None:
    """Of the last hour: how many calls, how many failed, and how long they took. mission: 216"""
    await world.write("ana", lambda c: grant(c, "ana", 100))
    old, *jobs = await world.write("ana", lambda c: add_jobs(c, "ana", 4))

    async def calls(connection: Any) -> None:
        for number in range(20):
            await attempt(connection, jobs[0], "ana", number, provider="fal", seconds=number + 1)
        for number, state in enumerate(("failed", "unknown", "done")):
            await attempt(connection, jobs[1], "ana", number, provider="openai", state=state, seconds=0.25)
        await attempt(connection, jobs[2], "ana", 0, provider="replicate", state="started")
        await attempt(connection, jobs[2], "ana", 1, provider="yesterday", age_s=3700)
        # Made long ago, and at a worker now: its calls count.
        await attempt(connection, old, "ana", 0, provider="late")
        await connection.execute("update jobs set created_at = now() - interval '9 hours' where id = $1", old)
        await connection.execute(
            "update queue set worker = 'w', lease_until = now() + interval '1 minute' where job_id = $1", old
        )

    await world.write("ana", calls)

    found = {report.pop("provider"): report for report in (await told(world))["providers"]}

    assert found == {
        "fal": {"attempts": 20, "failures": 0, "p50_ms": 10_500, "p95_ms": 19_050, "cost_usd": 0.2},
        "late": {"attempts": 1, "failures": 0, "p50_ms": 1000, "p95_ms": 1000, "cost_usd": 0.01},
        "openai": {"attempts": 3, "failures": 2, "p50_ms": 250, "p95_ms": 250, "cost_usd": 0.03},
        "replicate": {"attempts": 1, "failures": 0, "p50_ms": None, "p95_ms": None, "cost_usd": 0.01},
    }


async def test_large_tables_are_estimated(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the answer says which: counting them would take longer every day."""
    await world.write(
        "ana", lambda c: c.execute("insert into users (id) select 'u' || n from generate_series(1, 300) n")
    )
    async with world.gateway.primary.connection() as connection:
        await connection.execute("analyze users")
    sql = overview_module._COUNTS.replace(str(overview_module._LARGE), "200")
    monkeypatch.setattr(overview_module, "_COUNTS", sql)

    found = await overview(world.gateway.primary)

    assert found["estimates"] == ["users"]
    assert 290 <= found["users"] <= 310
    assert found["images"] == 0


async def test_empty_instance_has_an_overview(world: World) -> None:
    found = await told(world)

    assert (found["users"], found["queue"], found["providers"]) == (0, [], [])
    assert (found["credits_granted"], found["cost_usd"]) == (0, 0)


async def test_metrics_tell_how_long_the_queues_are(
    link: PrimaryLink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Per provider: who waits, who is worked on, how long the oldest waits; nothing while the primary is away.

    mission: 153
    """
    monkeypatch.setattr(queues, "_EVERY_S", 0.05)
    async with running(World(tmp_path / "data", link.url)) as world:
        await world.write("ana", lambda c: grant(c, "ana", 100))
        jobs = await world.write("ana", lambda c: add_jobs(c, "ana", 3, provider="fal"))
        work = "update queue set worker = 'w', lease_until = now() + interval '1 minute' where job_id = $1"
        await world.write("ana", lambda c: c.execute(work, jobs[0]))
        await world.write("ana", lambda c: c.execute("update queue set created_at = now() - interval '90 seconds'"))

        async def shown() -> dict[str, float]:
            names = ("waiting", "running", "oldest_waiting_seconds")
            found, _ = await samples(world)
            labels = "gateway=0,provider=fal"
            return {
                n: found[f"peruse_generation_{n}", labels] for n in names if (f"peruse_generation_{n}", labels) in found
            }

        async def settled() -> bool:
            found = await shown()
            return found.get("oldest_waiting_seconds", 0) >= 90 and (found["waiting"], found["running"]) == (2, 1)

        await until(settled)
        assert [(d["provider"], d["waiting"], d["running"]) for d in (await told(world))["queue"]] == [("fal", 2, 1)]

        await link.cut()

        async def gone() -> bool:
            return await shown() == {}

        await until(gone)
        await link.open()
        await until(settled)
