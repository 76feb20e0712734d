"""Health for load balancers, metrics for Prometheus, and who may call from a browser."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from actors import host as host_module
from actors.config import HostSettings
from actors.host import ReplicaHost
from gateway.app import Gateway, handler_options, make_app
from gateway.config import GatewaySettings
from gateway.hot import HotRunner
from gateway.routes import health
from store.config import StoreSettings
from store.errors import PrimaryUnavailable
from store.generation.config import ProviderSettings
from tests.gateway.asking import given_images, ids_of, replica_of, running
from tests.gateway.link import PrimaryLink
from tests.world import Reply, World, add_images, until

ORIGIN = "https://app.example.org"
FRESHNESS = ("Peruse-Bookmark", "Peruse-Age", "Peruse-Source")


@asynccontextmanager
async def lone_gateway(data: Path, database: str) -> AsyncIterator[aiohttp.ClientSession]:
    """A gateway without a host."""
    gateway = Gateway(
        data, primary_url=database, store=StoreSettings(), settings=GatewaySettings(), providers=ProviderSettings()
    )
    runner = HotRunner(make_app(gateway), shutdown_timeout=0.5, **handler_options())
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as session:
        yield session
    await runner.cleanup()


async def readyz(world: World) -> Reply:
    reply = await world.get("/readyz", user=None)
    assert reply.headers["Cache-Control"] == "no-store"
    assert reply.json["ready"] == reply.json["success"] == (reply.status == 200)
    return reply


async def is_ready(world: World, ready: bool) -> Reply:
    """The reply of /readyz once it says `ready`."""

    async def answer() -> Reply | None:
        reply = await readyz(world)
        return reply if reply.json["ready"] == ready else None

    return await until(answer)


async def test_healthz_says_that_the_process_answers(shared: World) -> None:
    """mission: 63, 153"""
    for path in ("/healthz", "/healthz?x=1"):
        reply = await shared.get(path, user=None)
        assert (reply.status, reply.json) == (200, {"success": True})
        assert reply.headers["Cache-Control"] == "no-store"
    assert (await shared.request("HEAD", "/healthz", user=None)).status == 200


async def test_gateway_is_ready_once_a_host_has_answered(tmp_path: Path, database: str) -> None:
    """mission: 153"""
    async with lone_gateway(tmp_path, database) as session:
        async with session.get("/readyz") as answer:
            assert answer.status == 503
            assert await answer.json() == {
                "success": False, "ready": False, "primary": "up", "hosts": {}, "lag_s": 0.0
            }  # fmt: skip
        async with session.get("/healthz") as answer:
            assert answer.status == 200

        host = ReplicaHost(
            tmp_path, slot=0, primary_url=database, store=StoreSettings(), settings=HostSettings(node="late"), build="t"
        )
        await host.start()

        async def status() -> bool:
            async with session.get("/readyz") as answer:
                return answer.status == 200 and (await answer.json())["hosts"] == {"late:0": "idle"}

        await until(status)
        await host.stop()


async def test_ready_body_names_primary_hosts_and_lag(shared: World, user: str) -> None:
    """An operator sees what is missing."""
    await replica_of(shared, user)

    body = (await readyz(shared)).json

    assert body.keys() == {"success", "ready", "primary", "hosts", "lag_s"}
    assert (body["primary"], body["hosts"]) == ("up", {"test:0": "live"})
    assert 0 <= body["lag_s"] < 5


async def test_gateway_stays_ready_without_hosts_while_the_primary_answers(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until no heartbeat has come through for ten seconds: then something is wrong with more than a host."""
    assert (await readyz(world)).status == 200
    await world.host.stop()

    assert (await readyz(world)).status == 200
    assert (await world.get("/api/images")).status == 200

    monkeypatch.setattr(health, "_NO_HEARTBEAT_S", 0.5)
    await until(lambda: _hosts(world, {"test:0": "gone"}))
    reply = await is_ready(world, False)
    assert reply.json["primary"] == "up"
    world.host = await world.start_host(0)
    await is_ready(world, True)
    await until(lambda: _hosts(world, {"test:0": "idle"}))


async def _hosts(world: World, expected: dict[str, str]) -> bool:
    return (await readyz(world)).json["hosts"] == expected


async def test_gateway_is_ready_without_the_primary_while_a_host_answers(
    tmp_path: Path, link: PrimaryLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not ready when neither answers."""
    async with running(World(tmp_path / "data", link.url)) as world:
        assert (await readyz(world)).status == 200
        monkeypatch.setattr(health, "_NO_HEARTBEAT_S", 0.0)
        await link.cut()

        reply = await readyz(world)
        assert (reply.status, reply.json["primary"]) == (200, "down")
        assert reply.json["hosts"] == {"test:0": "idle"}

        await world.host.stop()
        reply = await is_ready(world, False)
        assert reply.json["primary"] == "down"
        assert reply.json["hosts"]["test:0"] in ("gone", "silent")
        monkeypatch.undo()
        await link.open()
        await is_ready(world, True)


# --- the word for each host -------------------------------------------------------------------------------------


async def test_each_host_has_its_word(world: World) -> None:
    """What it says of itself, while it beats; silent when it beats and does not answer; gone when it does neither."""

    async def given(host: str, state: str, behind_s: float) -> None:
        await world.gateway.primary.fetch(
            "insert into hosts (id, address, node, build, capacity, state, heartbeat) "
            "values ($1, 'unix:/nowhere', 'n', 'b', 1, $2, clock_timestamp() - make_interval(secs => $3)) "
            "on conflict (id) do update set heartbeat = excluded.heartbeat returning 1",
            host, state, behind_s,
        )  # fmt: skip

    beating = {"a:0": "stuck", "b:0": "draining", "c:0": "live", "d:0": "gone"}
    for host, state in beating.items():
        await given(host, state, 0.0)
    expected = {"test:0": "idle", "a:0": "stuck", "b:0": "draining", "c:0": "silent", "d:0": "gone"}
    await until(lambda: _hosts(world, expected))
    listed = (await world.get("/admin/hosts", user="boss", role="admin")).json["hosts"]
    assert {row["host"]: row["state"] for row in listed} == {**beating, "test:0": "live"}

    for host, state in beating.items():
        await given(host, state, 6.0)
    await until(lambda: _hosts(world, {"test:0": "idle", **dict.fromkeys(beating, "gone")}))
    assert (await readyz(world)).status == 200


async def _fails(*_: object) -> None:
    raise PrimaryUnavailable("this pool does not answer")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten touches a second, and twice as many sweeps and beats."""
    for name, seconds in (("PULSE_S", 0.1), ("SWEEP_S", 0.05), ("BEAT_S", 0.05)):
        monkeypatch.setattr(host_module, name, seconds)


async def test_a_host_whose_sync_stands_still_is_stuck_until_it_moves_again(
    database: str, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers are answered by the primary meanwhile, and the metrics say which host it is. mission: 153"""
    async with running(World(tmp_path / "data", database)) as world:
        await replica_of(world, "ana")
        await until(lambda: _hosts(world, {"test:0": "live"}))
        assert (await samples(world))[0]["peruse_host_is_stuck", "host=test:0"] == 0

        with monkeypatch.context() as patch:
            patch.setattr(world.host._replicas._sync, "sweep", _fails)
            await until(lambda: _hosts(world, {"test:0": "stuck"}))
            await until(lambda: not any(row.is_live for row in world.gateway.client.hosts))
            reply = await readyz(world)
            assert (reply.status, reply.json["primary"], reply.json["hosts"]) == (200, "up", {"test:0": "stuck"})
            assert (await samples(world))[0]["peruse_host_is_stuck", "host=test:0"] == 1
            reply = await world.get("/api/images")
            assert (reply.status, reply.headers["Peruse-Source"]) == (200, "primary")

        await until(lambda: _hosts(world, {"test:0": "live"}))
        await replica_of(world, "ana")
        assert (await samples(world))[0]["peruse_host_is_stuck", "host=test:0"] == 0


async def test_a_host_that_does_not_reach_the_primary_is_lagging(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the gateway does: before its pulse has found anything."""
    monkeypatch.setattr(health, "_LAG_S", 0.3)
    await replica_of(world, "ana")
    with monkeypatch.context() as patch:
        patch.setattr(world.host._replicas._sync, "sweep", _fails)
        await until(lambda: _hosts(world, {"test:0": "lagging"}))
        assert (await readyz(world)).json["lag_s"] > 0.3
    monkeypatch.setattr(health, "_LAG_S", 5.0)
    await until(lambda: _hosts(world, {"test:0": "live"}))


async def test_an_absence_of_the_primary_is_never_called_stuck(tmp_path: Path, link: PrimaryLink, quick: None) -> None:
    """Neither when it is cut off nor when it says nothing more. mission: 137"""
    async with running(World(tmp_path / "data", link.url)) as world:
        await replica_of(world, "ana")
        await until(lambda: _hosts(world, {"test:0": "live"}))
        words = set()
        for stop in (link.cut, link.block):
            if (stopping := stop()) is not None:
                await stopping
            for _ in range(3):
                body = (await readyz(world)).json
                words.add(body["hosts"]["test:0"])
                assert (await world.get("/api/images")).headers["Peruse-Source"] == "replica"
            link.unblock()
            if stop == link.cut:
                await link.open()
            await until(lambda: _primary_is_up(world))
        assert words == {"live"}


async def _primary_is_up(world: World) -> bool:
    return (await readyz(world)).json["primary"] == "up"


# --- metrics ----------------------------------------------------------------------------------------------------


async def samples(world: World) -> tuple[dict[tuple[str, str], float], str]:
    """(name, labels) → value of everything that /metrics tells, and its text."""
    reply = await world.get("/metrics", user=None)
    assert reply.status == 200
    assert reply.headers["Content-Type"].startswith("text/plain")
    text = reply.body.decode()
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            assert (sample.name, labels) not in found
            found[sample.name, labels] = sample.value
    return found, text


async def test_metrics_count_requests_and_reads(world: World) -> None:
    """mission: 63, 153, 216"""
    await replica_of(world, "ana")
    before, _ = await samples(world)
    for _ in range(5):
        await world.get("/api/images")
    await world.get("/api/images?limit=x")
    await world.get("/api/images/01900000-0000-7000-8000-000000000000")
    await world.get("/no/such/path")
    await world.upload(prompt="x")

    after, _ = await samples(world)

    def grew(name: str, labels: str) -> float:
        return after.get((name, labels), 0) - before.get((name, labels), 0)

    requests = "peruse_http_requests_total"
    assert grew(requests, "gateway=0,method=GET,route=/api/images,status=200") == 5
    assert grew(requests, "gateway=0,method=GET,route=/api/images,status=400") == 1
    assert grew(requests, "gateway=0,method=GET,route=/api/images/{id},status=404") == 1
    assert grew(requests, "gateway=0,method=GET,route=unknown,status=404") == 1
    assert grew(requests, "gateway=0,method=POST,route=/api/images/upload,status=201") == 1
    assert grew("peruse_reads_total", "gateway=0,outcome=fresh,source=replica") == 6
    assert grew("peruse_http_seconds_count", "gateway=0") >= 9
    assert grew("peruse_host_reads_total", "host=test:0") == 6
    assert after["peruse_host_seeds_total", "host=test:0"] in (1, 2)  # hers, and the host's own
    assert after["peruse_host_active", "host=test:0"] == 1
    assert ("peruse_visible_seconds_count", "host=test:0") in after


async def test_metrics_tell_the_life_of_replicas(world: World) -> None:
    """What operators watch: how fast writes are seen, what is open, made, closed and refused, and what differed.

    mission: 153, 234
    """
    ids = await given_images(world, "ana", 3)
    await replica_of(world, "ana")
    await world.upload(prompt="seen soon")
    assert len(ids_of(await world.get("/api/images", headers={"Peruse-Validate": "1"}))) == len(ids) + 1
    await world.write("ana", lambda connection: add_images(connection, "ana", 501))
    await until(lambda: world.host.stats().metrics.resets)
    await until(lambda: not world.host.stats().seeding)
    await world.request("POST", "/admin/users/ana/replica/passivate", user="boss", role="admin")
    await world.get("/api/images")
    await world.request("POST", "/admin/users/ana/replica/audit", user="boss", role="admin")

    found, _ = await samples(world)

    host = "host=test:0"
    at_least = {
        ("peruse_visible_seconds_count", host): 1,
        ("peruse_visible_seconds_bucket", f"{host},le=+Inf"): 1,
        ("peruse_reads_total", "gateway=0,outcome=waited,source=replica"): 1,
        ("peruse_replica_refusals_total", "gateway=0,reason=seeding"): 1,
        ("peruse_host_resets_total", f"{host},reason=bulk"): 1,
        ("peruse_host_passivations_total", "cause=operator,host=test:0"): 1,
        ("peruse_host_seeds_total", host): 2,
        ("peruse_host_seed_seconds_total", host): 0.001,
        ("peruse_host_seed_wait_seconds_total", host): 0.0,
        ("peruse_host_seed_failures_total", host): 0,
        ("peruse_host_seeding", host): 0,
        ("peruse_host_activations_total", host): 3,
        ("peruse_host_reactivations_total", host): 0,
        ("peruse_host_shed_total", host): 0,
        ("peruse_host_active", host): 1,
        ("peruse_host_open_bytes", host): 10_000,
        ("peruse_host_kept_bytes", host): 100,
        ("peruse_host_disk_bytes", host): 0,
        ("peruse_host_lagging", host): 0,
        ("peruse_host_lag_s", host): 0,
        ("peruse_host_audits_total", host): 1,
        ("peruse_host_divergences_total", host): 0,
        ("peruse_host_in_flight", host): 1,  # the question itself
        ("peruse_host_overloads_total", host): 0,
        ("peruse_host_is_stuck", host): 0,
    }
    assert {key: found.get(key) for key, least in at_least.items() if found.get(key, -1) < least} == {}
    buckets = [value for (name, labels), value in found.items() if name == "peruse_visible_seconds_bucket"]
    assert buckets == sorted(buckets)
    assert found["peruse_host_open_bytes", host] > found["peruse_host_kept_bytes", host]


async def test_metrics_name_no_user(world: World) -> None:
    """mission: 209"""
    canary = "canary-4711"
    image = (await world.upload(user=canary, prompt=canary, model=canary)).json["image"]
    await replica_of(world, canary)
    await world.get(f"/api/images/{image['id']}?{canary}=1", user=canary)
    await world.get(f"/internal/users/{canary}/images", user=canary, role="service")
    await world.get(f"/{canary}", user=canary)
    await world.get(image["url"])

    _, text = await samples(world)

    assert canary not in text
    assert image["id"] not in text
    assert image["filename"] not in text


async def test_metrics_answer_without_hosts(world: World) -> None:
    """A scrape must not fail when it is needed most."""
    await world.get("/healthz")
    await world.host.stop()

    found, _ = await samples(world)

    assert any(name.startswith("peruse_http_requests") for name, _ in found)


# --- CORS -------------------------------------------------------------------------------------------------------


def allowed(reply: Reply) -> dict[str, str]:
    return {name.lower(): value for name, value in reply.headers.items() if name.lower().startswith("access-control")}


async def test_no_other_origin_is_allowed_by_default(shared: World, user: str) -> None:
    """A page of another site gets nothing to read."""
    origin = {"Origin": ORIGIN}
    asks = {**origin, "Access-Control-Request-Method": "GET"}

    assert allowed(await shared.get("/api/images", user=user, headers=origin)) == {}
    preflight = await shared.request("OPTIONS", "/api/images", user=None, headers=asks)
    assert (preflight.status, allowed(preflight)) == (405, {})


async def test_listed_origin_may_call(tmp_path: Path, database: str) -> None:
    """mission: 154"""
    origins = f"{ORIGIN}, http://localhost:5173"
    async with running(World(tmp_path / "data", database, cors_origins=origins)) as world:
        image = (await world.upload()).json["image"]
        for origin in (ORIGIN, "http://localhost:5173"):
            for path in ("/api/images", f"/api/images/{image['id']}", "/api/images?limit=x", image["url"], "/nowhere"):
                reply = await world.get(path, headers={"Origin": origin})
                assert reply.headers.getall("Access-Control-Allow-Origin") == [origin], path
                assert "Origin" in reply.headers["Vary"]
                exposed = reply.headers["Access-Control-Expose-Headers"].split(", ")
                assert {"Peruse-Bookmark", "Peruse-Age", "Peruse-Source", "ETag", "Location", "X-Request-Id"} <= {
                    *exposed
                }
                assert "Access-Control-Allow-Credentials" not in reply.headers
        # Who keeps pages must keep them apart by all three.
        assert (await world.get("/api/images")).headers["Vary"] == "Authorization, Cookie, Origin"
        refused = await world.get("/api/images", user=None, headers={"Origin": ORIGIN})
        assert (refused.status, refused.headers["Access-Control-Allow-Origin"]) == (401, ORIGIN)


async def test_preflight_of_a_listed_origin_is_answered(tmp_path: Path, database: str) -> None:
    """mission: 154"""
    async with running(World(tmp_path / "data", database, cors_origins=ORIGIN)) as world:
        for path, method in (("/api/images", "GET"), ("/api/images/x", "PATCH"), ("/api/images/upload", "POST")):
            reply = await world.request(
                "OPTIONS",
                path,
                user=None,
                headers={
                    "Origin": ORIGIN,
                    "Access-Control-Request-Method": method,
                    "Access-Control-Request-Headers": "authorization, peruse-bookmark",
                },
            )
            assert (reply.status, reply.body) == (204, b"")
            assert reply.headers["Access-Control-Allow-Origin"] == ORIGIN
            assert method in reply.headers["Access-Control-Allow-Methods"].split(", ")
            headers = {name.lower() for name in reply.headers["Access-Control-Allow-Headers"].split(", ")}
            assert {
                "authorization",
                "content-type",
                "idempotency-key",
                "if-none-match",
                "peruse-bookmark",
                "prefer",
            } <= headers

        for other in ("https://evil.example", f"{ORIGIN}.evil.example", "http://app.example.org", "null", "*"):
            asks = {"Origin": other, "Access-Control-Request-Method": "GET"}
            assert allowed(await world.request("OPTIONS", "/api/images", user=None, headers=asks)) == {}
            reply = await world.get("/api/images", headers={"Origin": other})
            assert allowed(reply) == {}
            assert "Origin" in reply.headers["Vary"]


@pytest.mark.parametrize("origins", ["*", "app.example.org", "https://app.example.org/", "https://a.example/x"])
def test_origin_that_is_none_is_refused_at_the_start(origins: str) -> None:
    """There is no wildcard."""
    with pytest.raises(ValueError, match="is not an origin like"):
        GatewaySettings(cors_origins=origins)
