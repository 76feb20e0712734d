"""The account over HTTP: credits, budgets and room, from the replica."""

from __future__ import annotations

from pathlib import Path

import pytest

from store.gallery import encode_query
from store.usage import AccountQuery
from tests.gateway.asking import bookmark_of, replica_of, running
from tests.jobs import add_jobs, end_job, grant
from tests.world import World

ACCOUNT = "/api/account"


async def test_account_follows_every_credit(shared: World, user: str) -> None:
    """What a job holds is out of the balance at once, and what it gives back is in it. mission: 194"""
    await shared.write(user, lambda connection: grant(connection, user, 105))
    await replica_of(shared, user, ACCOUNT)
    [job] = await shared.write(user, lambda c: add_jobs(c, user, 1, price_tenths=15))

    held = (await shared.get(ACCOUNT, user=user)).json["account"]
    await shared.write(user, lambda c: end_job(c, job, "failed"))
    back = (await shared.get(ACCOUNT, user=user)).json["account"]

    assert (held["balance_credits"], held["held_credits"]) == (9, 1.5)
    assert (back["balance_credits"], back["held_credits"]) == (10.5, 0)


async def test_account_is_the_same_from_replica_and_primary(shared: World, user: str) -> None:
    """With the room of the plan, which is the gateway's setting."""
    uploaded = await shared.upload(user=user)
    first = await shared.get(ACCOUNT, user=user)
    own = await replica_of(shared, user, ACCOUNT)

    limits = shared.gateway.storage_limits
    page = await shared.gateway.reads._primary.read(user, encode_query(AccountQuery(limits)))

    assert own.body == first.body == page.body
    assert own.headers["ETag"] == first.headers["ETag"]
    assert bookmark_of(own) == bookmark_of(uploaded)
    account = own.json["account"]
    assert (account["plan"], account["storage_limit_bytes"]) == ("free", limits.free)
    assert account["storage_used_bytes"] == uploaded.json["image"]["size_bytes"]
    kept = await shared.get(ACCOUNT, user=user, headers={"If-None-Match": own.headers["ETag"]})
    assert kept.status == 304


async def test_another_setting_is_another_limit(database: str, tmp_path: Path) -> None:
    """At once, from the replica that was there before; a client's ETag does not match any more."""
    before = World(tmp_path / "data", database)
    async with running(before):
        await before.upload(user="ana")
        old = await replica_of(before, "ana", ACCOUNT)
    after = World(tmp_path / "data", database)
    after.store = after.store.model_copy(update={"storage_free_bytes": 123_456})
    async with running(after):
        new = await after.get(ACCOUNT, headers={"If-None-Match": old.headers["ETag"]})

        assert new.status == 200
        assert new.json["account"] == old.json["account"] | {"storage_limit_bytes": 123_456}
        assert after.host.stats().metrics.seeds <= 1  # the host's own, and not hers


async def test_new_user_has_an_account(shared: World, user: str) -> None:
    """Free, without credits, at version 0; reading makes nobody a user."""
    reply = await shared.get(ACCOUNT, user=user)

    account = reply.json["account"]
    assert (account["plan"], account["balance_credits"], account["updated_at"]) == ("free", 0, None)
    assert reply.headers["Peruse-Bookmark"].endswith(".0")
    assert await shared.gateway.primary.fetch("select 1 from users where id = $1", user) == []


async def test_parameters_are_refused(shared: World, user: str) -> None:
    """mission: 157"""
    reply = await shared.get(f"{ACCOUNT}?user=bob", user=user)

    assert (reply.status, reply.json["field"]) == (400, "user")


@pytest.mark.parametrize("name", ["account", "stats", "prompts"])
async def test_service_is_told_who_is_not_a_user(shared: World, name: str) -> None:
    """mission: 157"""
    reply = await shared.get(f"/internal/users/~test/{name}", user="mailer", role="service")

    assert (reply.status, reply.json["field"]) == (400, "user")


async def test_service_reads_a_users_account(shared: World, user: str) -> None:
    """The same bytes as the user gets."""
    await shared.upload(user=user)
    own = await replica_of(shared, user, ACCOUNT)

    reply = await shared.get(f"/internal/users/{user}/account", user="mailer", role="service")

    assert (reply.body, reply.headers["ETag"]) == (own.body, own.headers["ETag"])
