"""Credits over HTTP: the ledger, budgets, and what an admin gives and takes."""

from __future__ import annotations

import base64
import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from gateway.errors import problem_response
from store.generation.config import ProviderSettings
from tests.gateway.asking import bookmark_of, replica_of, running
from tests.money import add_job, add_user, end_job
from tests.world import Reply, World, until


async def grant(world: World, user: str, credits: Any, **body: Any) -> Reply:
    path = f"/admin/users/{user}/credits"
    return await world.request("POST", path, user="boss", role="admin", json={"credits": credits, **body})


async def budgets(world: World, user: str, **body: Any) -> Reply:
    return await world.request("PATCH", "/api/account", user=user, json=body)


async def lines(world: World, user: str, query: str = "") -> list[dict[str, Any]]:
    reply = await world.get(f"/api/account/ledger{query}", user=user)
    assert reply.status == 200, reply
    return reply.json["lines"]


async def test_what_an_admin_grants_is_a_line_that_the_user_reads(shared: World, user: str) -> None:
    """With its reason; the user need not be there yet. mission: 67"""
    given = await grant(shared, user, 7.5, reason="welcome")
    taken = await grant(shared, user, "-2.5")

    assert (given.status, taken.status) == (201, 201)
    line = given.json["line"]
    assert b'"amount_credits":7.5,"balance_credits":7.5,' in given.body
    assert (line["kind"], line["job_id"], line["reason"]) == ("grant", None, "welcome")
    assert bookmark_of(taken).version == bookmark_of(given).version + 1
    (newest, oldest) = await lines(shared, user)
    assert oldest == line
    assert (newest["amount_credits"], newest["balance_credits"], newest["reason"]) == (-2.5, 5, "")
    assert newest["at"] > oldest["at"]
    listed = await shared.get(f"/admin/users/{user}/ledger", user="boss", role="admin")
    assert listed.json["lines"] == [newest, oldest]


async def test_a_grant_reaches_the_replica(world: World) -> None:
    """As any other write: the host is told, and the bookmark of the reply says how far."""
    await grant(world, "ana", 5)
    await replica_of(world, "ana")

    granted = await grant(world, "ana", 1)

    async def is_there() -> bool:
        replica = await world.get("/admin/users/ana/replica", user="boss", role="admin")
        return replica.json["replica"]["version"] >= bookmark_of(granted).version

    assert await until(is_there)


@pytest.mark.parametrize(
    ("credits", "says"),
    [
        (0, "credits must not be 0"),
        (0.05, "more than one decimal"),
        ("0.25", "more than one decimal"),
        (1e300, "a number from -1000000000 to 1000000000"),
        ("much", "Invalid decimal"),
        (None, "Expected `decimal`"),
        ("NaN", "a number from"),
    ],
)
async def test_amount_that_cannot_be_is_refused_by_name(shared: World, user: str, credits: Any, says: str) -> None:
    """And nothing is made."""
    reply = await grant(shared, user, credits)

    assert (reply.status, reply.json["field"]) == (400, "credits"), reply
    assert says in reply.json["detail"]
    assert await lines(shared, user) == []


async def test_what_is_not_there_cannot_be_taken_back(shared: World, user: str) -> None:
    """402, with what there is and what it would take."""
    await grant(shared, user, 3)

    reply = await grant(shared, user, -3.5)

    assert (reply.status, reply.json["code"]) == (402, "insufficient_credits")
    assert (reply.json["balance_credits"], reply.json["cost_credits"]) == (3, 3.5)
    assert reply.json["error"] == "this takes 3.5 credits, and the balance is 3"


async def test_an_admin_sets_the_plan(shared: World, user: str) -> None:
    """Of whoever it is, once, and one of three."""
    path = f"/admin/users/{user}/plan"
    for plan in ("pro", "pro", "free"):
        reply = await shared.request("PUT", path, user="boss", role="admin", json={"plan": plan})
        assert (reply.status, reply.json) == (200, {"success": True, "user": user, "plan": plan})
    gold = await shared.request("PUT", path, user="boss", role="admin", json={"plan": "gold"})
    assert (gold.status, gold.json["field"]) == (400, "plan")
    for name in ("~node:1", "a%20b"):
        reply = await shared.request(
            "PUT", f"/admin/users/{name}/plan", user="boss", role="admin", json={"plan": "pro"}
        )
        assert (reply.status, reply.json["field"]) == (400, "user")


async def test_an_erased_user_gets_neither_credits_nor_a_plan(world: World) -> None:
    """404, and nobody comes back by it."""
    await grant(world, "ana", 5)
    await world.request("DELETE", "/admin/users/ana", user="boss", role="admin")

    given = await grant(world, "ana", 5)
    planned = await world.request("PUT", "/admin/users/ana/plan", user="boss", role="admin", json={"plan": "pro"})

    assert [(reply.status, reply.json["code"]) for reply in (given, planned)] == [(404, "not_found")] * 2
    assert await world.gateway.primary.fetch("select from users where id = 'ana'") == []


async def test_ledger_shows_holds_and_refunds_with_their_jobs(shared: World, user: str) -> None:
    """A refund is a line of its own, with its reason. mission: 53"""
    await grant(shared, user, 10)
    job = await shared.write(user, lambda c: add_job(c, user, 40, n=4))
    await shared.write(user, lambda c: end_job(c, user, job, "completed", 3))

    refund, hold, _ = await lines(shared, user)

    assert (refund["kind"], refund["amount_credits"], refund["balance_credits"]) == ("refund", 1, 7)
    assert (hold["kind"], hold["amount_credits"], hold["balance_credits"]) == ("hold", -4, 6)
    assert refund["job_id"] == hold["job_id"] == str(job)
    assert refund["reason"] == "1 of 4 pictures were not delivered"


async def test_ledger_is_turned_page_by_page(shared: World, user: str) -> None:
    """Every line on one page; a token of another list, or nobody's, is refused."""
    for number in range(1, 6):
        await grant(shared, user, number)
    seen, token = [], None
    for _ in range(3):
        query = "?limit=2" + (f"&page_token={token}" if token else "")
        reply = await shared.get(f"/api/account/ledger{query}", user=user)
        seen += [line["amount_credits"] for line in reply.json["lines"]]
        token = reply.json["next_page_token"]
    assert (seen, token) == ([5, 4, 3, 2, 1], None)

    first = (await shared.get("/api/account/ledger?limit=1", user=user)).json["next_page_token"]
    huge = base64.urlsafe_b64encode(json.dumps(["ledger", 1e300, str(uuid.UUID(int=0))]).encode()).decode().rstrip("=")
    for query, field in (
        ("limit=0", "limit"), ("limit=201", "limit"), ("limit=x", "limit"), ("page_token=x", "page_token"),
        (f"page_token={first}x", "page_token"), ("sort=oldest", "sort"), (f"page_token={huge}", "page_token"),
        (f"page_token={first}&page_token=x", "page_token"),
    ):  # fmt: skip
        reply = await shared.get(f"/api/account/ledger?{query}", user=user)
        assert (reply.status, reply.json["field"]) == (400, field), query
    reply = await shared.get(f"/api/templates?page_token={first}", user=user)
    assert (reply.status, reply.json["field"]) == (400, "page_token")


async def test_budgets_are_set_kept_and_ended(shared: World, user: str) -> None:
    """What is left out stays; null ends one. The answer is the account as it is now."""
    first = await budgets(shared, user, day_budget_credits=7.5, month_budget_credits="100")
    second = await budgets(shared, user, day_budget_credits=None)

    assert (first.status, second.status) == (200, 200)
    names = ("day_budget_credits", "month_budget_credits", "balance_credits", "plan")
    assert [first.json["account"][name] for name in names] == [7.5, 100, 0, "free"]
    assert [second.json["account"][name] for name in names] == [None, 100, 0, "free"]
    assert bookmark_of(second).version == bookmark_of(first).version + 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"day_budget_credits": -1}, "day_budget_credits"),
        ({"month_budget_credits": 0.01}, "month_budget_credits"),
        ({"day_budget_credits": 2, "plan": "pro"}, "plan"),
        ({"balance_credits": 100}, "balance_credits"),
        ({}, None),
    ],
)
async def test_nothing_but_budgets_can_be_changed(shared: World, user: str, body: Any, field: str | None) -> None:
    """Least of all the balance."""
    reply = await budgets(shared, user, **body)

    assert (reply.status, reply.json.get("field")) == (400, field)


async def test_a_generation_over_balance_or_budget_is_402_with_the_numbers(database: str, tmp_path: Path) -> None:
    """So that a client can tell how much is left; the budget is asked before anything is spent. mission: 30, 51"""
    made = World(tmp_path / "data", database)
    made.providers = ProviderSettings(openai_key=SecretStr("sk-" + "x" * 40))
    async with running(made) as world:
        body = {"prompt": "a heron", "model": "openai/dall-e-3"}
        poor = await world.request("POST", "/api/generations", json=body)
        await grant(world, "ana", 12)
        await budgets(world, "ana", day_budget_credits=9.5, month_budget_credits=100)
        made_one = await world.request("POST", "/api/generations", json=body)
        over = await world.request("POST", "/api/generations", json=body)

        assert (poor.status, poor.json["code"]) == (402, "insufficient_credits")
        assert (poor.json["balance_credits"], poor.json["cost_credits"]) == (0, 5)
        assert made_one.status == 202, made_one
        assert (over.status, over.json["code"], over.json["period"]) == (402, "budget_exceeded", "day")
        assert [over.json[f"{name}_credits"] for name in ("budget", "spent", "cost")] == [9.5, 5, 5]
        assert [line["amount_credits"] for line in await lines(world, "ana")] == [-5, 12]


async def test_the_primarys_own_refusal_is_402_whatever_route_it_came_through(shared: World, user: str) -> None:
    """So that no route can forget to say so."""
    with pytest.raises(Exception, match="does not cover") as error:
        await shared.write(user, lambda c: _poor(c, user))

    response = problem_response(error.value, "r-1")  # type: ignore[arg-type]

    assert response.status == 402
    told = json.loads(response.body)  # type: ignore[arg-type]
    assert (told["code"], told["balance_credits"], told["cost_credits"]) == ("insufficient_credits", 0, 0.5)


async def _poor(connection: Any, user: str) -> None:
    await add_user(connection, user)
    await add_job(connection, user, 5)
