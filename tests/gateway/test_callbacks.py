"""Callbacks of providers: a hint for whoever works on the job, and nothing to anybody else."""

from __future__ import annotations

import uuid
from datetime import datetime

import pytest

from tests.gateway.generating import begin, generate
from tests.world import Reply, World

TASK = "task-1"


async def submitted(world: World, user: str, provider: str = "nanobanana") -> uuid.UUID:
    """A job whose task is at the provider."""
    job = (await generate(world, user, prompt="a fox")).json["generation"]["id"]
    await begin(world, job)
    sql = (
        "insert into attempts (job_id, owner_id, call, number, provider, model, fence, state, task_id) "
        "values ($1, $2, 0, 1, $3, 'm', 1, 'submitted', $4)"
    )
    await world.write(user, lambda c: c.execute(sql, uuid.UUID(job), user, provider, f"{TASK}-{user}"))
    return uuid.UUID(job)


async def nudged_at(world: World, job: uuid.UUID) -> datetime:
    rows = await world.gateway.primary.fetch("select run_at from queue where job_id = $1", job)
    found: datetime = rows[0][0]
    return found


async def call(world: World, user: str, provider: str = "nanobanana", *, token: str | None = None) -> Reply:
    path = f"/callbacks/{provider}/{token or world.gateway.callbacks._token(provider)}"
    return await world.request("POST", path, user=None, json={"code": 200, "data": {"taskId": f"{TASK}-{user}"}})


async def test_callback_has_the_task_looked_at_now(shared: World, user: str) -> None:
    """mission: 3, 23"""
    job = await submitted(shared, user)
    before = await nudged_at(shared, job)

    reply = await call(shared, user)

    assert (reply.status, reply.body) == (204, b"")
    assert await nudged_at(shared, job) > before
    rows = await shared.gateway.primary.fetch("select state from jobs where id = $1", job)
    assert rows[0][0] == "processing", "what it says is no result"


async def test_callback_about_nothing_changes_nothing(shared: World, user: str) -> None:
    """Late ones and doubled ones are as good as any."""
    assert [(await call(shared, f"nobody-{user}")).status for _ in range(2)] == [204, 204]


@pytest.mark.parametrize("provider", ["nanobanana", "fal", "builtin", "openai", "nothing"])
async def test_address_that_was_given_to_nobody_is_404(shared: World, user: str, provider: str) -> None:
    job = await submitted(shared, user)
    before = await nudged_at(shared, job)
    for token in ("x", "0" * 40, shared.gateway.callbacks._token("replicate")):
        assert (await call(shared, user, provider, token=token)).status == 404
    assert await nudged_at(shared, job) == before


async def test_callback_that_cannot_be_read_is_400(shared: World) -> None:
    path = f"/callbacks/nanobanana/{shared.gateway.callbacks._token('nanobanana')}"
    for body in (b"", b"{}", b"x", b'{"data": {"taskId": 5}}'):
        reply = await shared.request("POST", path, user=None, data=body)
        assert (reply.status, reply.json["code"]) == (400, "bad_callback"), reply
    builtin = await call(shared, "x", "builtin")
    assert (builtin.status, builtin.json["code"]) == (400, "bad_callback")


async def test_its_secret_is_in_no_line(shared: World, user: str, capsys: pytest.CaptureFixture[str]) -> None:
    """mission: 209"""
    assert (await call(shared, user)).status == 204
    assert (await call(shared, user, token="0" * 39 + "7")).status == 404

    said = "".join(capsys.readouterr())
    assert said.count("/callbacks/{provider}/{token}") == 2
    assert shared.gateway.callbacks._token("nanobanana") not in said
