"""Many users at once: a thousand whom nobody has a replica of, and more than a host has room for."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path

import aiohttp
import pytest

from actors import activation
from actors.budget import Reopenings
from actors.config import HostSettings
from actors.replica import Replica
from store.primary import Primary
from store.reads import PrimaryReads
from tests.gateway.asking import given_images, replica_of, running
from tests.world import Reply, World, until

USERS = 1_000


async def test_a_thousand_cold_users_at_once_all_get_an_answer(
    world: World, primary: Primary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None gets an error; the primary has no more connections than it was promised; all become replicas in time.

    mission: 129, 137, 141
    """
    # How long that takes is the machine's: here only that nobody is turned away.
    monkeypatch.setattr(world.gateway.fallback, "_wait_s", 20.0)
    monkeypatch.setitem(PrimaryReads.read.__kwdefaults__, "timeout_s", 20.0)
    users = [f"user-{n:04}" for n in range(USERS)]
    await primary.fetch(
        "with made as (insert into users (id) select unnest($1::text[]) returning id) "
        "insert into images (owner_id, object_key, content_type, size_bytes, prompt, model) "
        "select id, 'generated/' || id || n, 'image/png', 7, 'of ' || id, 'builtin' from made, generate_series(1, 3) n "
        "returning 1",
        users,
    )
    tokens = {user: {"Authorization": f"Bearer {world.token(user)}"} for user in users}
    most: Counter[str] = Counter()
    is_over = False

    async def count() -> None:
        while not is_over:
            rows = await primary.fetch(
                "select application_name, count(*) from pg_stat_activity "
                "where datname = current_database() and application_name like 'peruse %' group by 1"
            )
            for name, number in rows:
                most[name] = max(most[name], number)
            await asyncio.sleep(0.02)

    async def read(user: str) -> tuple[str, Reply]:
        async with session.get("/api/images", headers=tokens[user]) as answer:
            return user, Reply(answer.status, answer.headers.copy(), await answer.read())

    counting = asyncio.create_task(count())
    started = time.monotonic()
    async with aiohttp.ClientSession(world.url, connector=aiohttp.TCPConnector(limit=0)) as session:
        answers = await asyncio.gather(*map(read, users))
    took_s = time.monotonic() - started
    await until(lambda: world.host.stats().metrics.seeds > 50, timeout_s=30)
    is_over = True
    await counting

    refused = Counter((reply.status, reply.json.get("detail")) for _, reply in answers if reply.status != 200)
    assert not refused, f"{refused} in {took_s:.1f} s"
    for user, reply in answers:
        assert [image["prompt"] for image in reply.json["images"]] == [f"of {user}"] * 3
        assert reply.headers["Peruse-Source"] in ("seeding", "replica", "primary")
    bounds = {"gateway 0": 8, "gateway 0 reads": 4, "test:0 pulls": 4, "test:0 seeds": 2, "test:0 control": 2}
    assert {name: number for name, number in most.items() if number > bounds.get(name.removeprefix("peruse "), 8)} == {}
    assert most["peruse gateway 0 reads"] == 4
    stats = world.host.stats()
    assert stats.metrics.overloads == stats.metrics.seed_failures == stats.metrics.shed == 0
    # Whoever's question was not late at the host has a replica, or a place in the queue for one.
    asked = sum(reply.headers["Peruse-Source"] != "primary" for _, reply in answers)
    assert asked  # how many are in time is the machine's
    assert stats.seeding + stats.metrics.seeds >= asked


async def test_a_host_that_only_churns_sheds_load_with_a_time_to_come_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503 and Retry-After for those without an open replica; the primary does not get what the host cannot take, and
    those who are open are answered. mission: 137"""
    users = [f"user-{n}" for n in range(6)]
    for user in users:
        await given_images(world, user, 2)
        await replica_of(world, user)
    life = world.host._replicas.life
    monkeypatch.setattr(life.budget, "_max_open", 3)
    real = Replica.open

    def slow(*given: object) -> Replica:
        time.sleep(0.25)
        return real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(activation.Replica, "open", slow)
    refused: list[Reply] = []

    async def churned() -> bool:
        for user in users:
            reply = await world.get("/api/images", user=user)
            assert reply.status in (200, 503), reply
            if reply.status == 503:
                refused.append(reply)
        return len(refused) >= 3

    await until(churned, timeout_s=30)

    assert {reply.json["code"] for reply in refused} == {"overloaded"}
    assert all(int(reply.headers["Retry-After"]) >= 1 for reply in refused)
    metrics = world.host.stats().metrics
    assert metrics.shed >= len(refused)
    assert metrics.reactivations > 0
    monkeypatch.setattr(activation.Replica, "open", real)
    open_users = [user for user in users if user in life.active]
    assert open_users
    for user in open_users:
        reply = await world.get("/api/images", user=user)
        assert (reply.status, reply.headers["Peruse-Source"]) == (200, "replica")
    monkeypatch.setattr(life, "_reopenings", Reopenings())
    for user in users:
        reply = await world.get("/api/images", user=user)
        assert (reply.status, reply.headers["Peruse-Source"]) == (200, "replica")
    assert world.host.stats().metrics.seeds == len(users) + 1  # and the host's own


async def test_a_user_who_was_away_comes_back_to_the_same_file(database: str, tmp_path: Path) -> None:
    """Closed for being idle, opened by the next read, and not made anew. mission: 129, 130"""
    made = World(tmp_path / "data", database)
    made.host_settings = HostSettings(node="test", host_idle_s=1)
    async with running(made) as world:
        await given_images(world, "ana", 3)
        await replica_of(world, "ana")
        life = world.host._replicas.life
        path = life.active["ana"].replica.path
        await until(lambda: "ana" not in life.active)
        await given_images(world, "ana", 1)

        reply = await world.get("/api/images")

        assert (reply.status, len(reply.json["images"]), reply.headers["Peruse-Source"]) == (200, 4, "replica")
        assert life.active["ana"].replica.path == path
        assert world.host.stats().metrics.passivations["idle"] >= 1
