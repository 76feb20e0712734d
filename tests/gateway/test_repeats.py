"""Requests that were asked before: answered where the bytes come in, and nobody can tell but by the clock."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import pytest
from joserfc import jwt
from structlog.testing import capture_logs

import tests.world
from gateway import repeats
from gateway.auth import Role, Signer
from store import api_keys
from store.embedded import EmbeddedPostgres
from tests.actors.fleet import held
from tests.gateway.asking import bookmark_of, given_images, replica_of, running
from tests.gateway.raw import Connection, RawReply, connected
from tests.gateway.repeated import Seen, comparable, deliver, get, known
from tests.world import World, until

ORIGIN = "https://app.example.org"
HEALTHZ = b"GET /healthz HTTP/1.1\r\nHost: p\r\n\r\n"


@pytest.fixture(scope="module")
async def open_world(
    postgres: EmbeddedPostgres, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    """A world that logs every request and lets pages of one origin in."""
    admin = await asyncpg.connect(postgres.url)
    await admin.execute(f"create database repeats template {template} strategy wal_log")
    made = World(
        tmp_path_factory.mktemp("repeats") / "data",
        postgres.url.replace("/peruse?", "/repeats?"),
        cors_origins=(ORIGIN,),
        access_log="all",
    )
    async with running(made):
        yield made
    await admin.execute("drop database repeats with (force)")
    await admin.close()


# --- the same either way ----------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A request: `{name}` is filled in from what there is; `short` whether it is ever answered at once."""

    target: str = "/api/images"
    lines: tuple[str, ...] = ()
    role: Role | None = "user"
    version: str = "1.1"
    short: bool = True
    status: int = 200


CASES = {
    "plain": Case(),
    "of the first version": Case("/api/v1/images"),
    "a limit": Case("/api/images?limit=2&sort=oldest"),
    "a next page": Case("/api/images?limit=2&page_token={token}"),
    "one image": Case("/api/images/{image}"),
    "a whole URL": Case("http://p/api/images"),
    "a service's": Case("/internal/users/{user}/images", role="service"),
    "an admin's": Case("/internal/users/{user}/images?limit=1", role="admin"),
    "its tag": Case(lines=("If-None-Match: {etag}",), status=304),
    "its tag, weak": Case(lines=("If-None-Match: W/{etag}",), status=304),
    "its tag among others": Case(lines=('If-None-Match: "a", {etag},"b"',), status=304),
    "any tag": Case(lines=("If-None-Match: *",), status=304),
    "another tag": Case(lines=('If-None-Match: "a"',)),
    "no tag": Case(lines=("If-None-Match: nonsense",)),
    "an empty tag": Case(lines=("If-None-Match:",)),
    "a bookmark": Case(lines=("Peruse-Bookmark: {bookmark}",)),
    "an old bookmark": Case(lines=("Peruse-Bookmark: 1-1.1",)),
    "a cookie's bookmark": Case(lines=("Cookie: peruse_bookmark={bookmark}",)),
    "a cookie of somebody else": Case(lines=("Cookie: a=b; peruse_bookmark=nonsense",)),
    "at most so old": Case(lines=("Peruse-Max-Staleness: 60",)),
    "stale will do": Case(lines=("Peruse-On-Timeout: stale", "Peruse-Max-Wait: 10")),
    "a page that may": Case(lines=(f"Origin: {ORIGIN}",)),
    "a page that may not": Case(lines=("Origin: https://elsewhere.example.org",)),
    "an id of its own": Case(lines=("X-Request-Id: mine-1",)),
    "an id that is none": Case(lines=("X-Request-Id: no id; at all",)),
    "keep-alive, said": Case(lines=("Connection: keep-alive",)),
    "now": Case(lines=("Peruse-Validate: 1",), short=False),
    "fresher than can be": Case(lines=("Peruse-Max-Staleness: 0",), short=False),
    "a long head": Case(lines=(f"X-Long: {'x' * 2048}",), short=False),
    "the last on its connection": Case(lines=("Connection: close",), short=False),
    "an old client": Case(version="1.0", short=False),
    "an old client that stays": Case(version="1.0", lines=("Connection: keep-alive",), short=False),
    "no such image": Case("/api/images/00000000-0000-0000-0000-000000000000", short=False, status=404),
    "no such parameter": Case("/api/images?nonsense=1", short=False, status=400),
    "no such wish": Case(lines=("Peruse-Validate: 2",), short=False, status=400),
    "nobody": Case(role=None, short=False, status=401),
    "not a service": Case("/internal/users/{user}/images", short=False, status=403),
    "not a user": Case(role="service", short=False, status=403),
}


class Counted(NamedTuple):
    """What one request was counted and logged as."""

    requests: dict[Any, int]
    reads: dict[Any, int]
    latencies: int
    lines: list[dict[str, Any]]


async def counted(world: World, connection: Connection, request: bytes) -> tuple[RawReply, Counted]:
    metrics = world.gateway.metrics
    requests, reads, latencies = Counter(metrics.requests), Counter(metrics.reads), sum(metrics.latency)
    with capture_logs() as logs:
        reply = await connection.ask(request)
    lines = [line for line in logs if line["event"] == "request"]
    for line in lines:
        assert line.pop("request_id") == reply.headers["x-request-id"]
        assert line.pop("took_ms") >= 0
    more = (dict(Counter(metrics.requests) - requests), dict(Counter(metrics.reads) - reads))
    return reply, Counted(*more, sum(metrics.latency) - latencies, lines)


@pytest.mark.parametrize("name", CASES)
async def test_both_ways_end_in_the_same_bytes_counters_and_lines(
    open_world: World, user: str, seen: Seen, name: str
) -> None:
    """The first reply goes through parser, router and middleware; the second does not, when the case allows it."""
    world, case = open_world, CASES[name]
    (image, *_) = await given_images(world, user, 5)
    first = await replica_of(world, user, "/api/images?limit=2")
    plain = await replica_of(world, user, case.target if case.target.startswith("/api/v1") else "/api/images")
    words = {
        "user": user,
        "image": image,
        "token": first.json["next_page_token"],
        "etag": plain.headers["ETag"],
        "bookmark": plain.headers["Peruse-Bookmark"],
    }
    given = (text.format(**words) for text in case.lines)
    token = "" if case.role is None else world.token("mailer" if case.role != "user" else user, case.role)
    request = get(case.target.format(**words), token, *given, version=case.version)

    async def pair() -> tuple[tuple[RawReply, Counted], tuple[RawReply, Counted], bool] | None:
        """Two replies from the replica, the second at once if it may be."""
        world._runner.server._repeats._known.clear()  # type: ignore[union-attr]
        async with connected(world) as one, connected(world) as other:
            long = await counted(world, one, request)
            assert not any(seen.short[one.port])
            second = other if not case.short else one
            short = await counted(world, second, request)
            is_short = seen.short[second.port][-1]
        outcomes = [reply.headers.get("peruse-outcome") for reply, _ in (long, short)]
        is_right = is_short == case.short and (case.status >= 400 or outcomes[0] == outcomes[1])
        return (long, short, is_short) if is_right else None

    (long, how_long), (short, how_short), is_short = await until(pair)

    assert is_short == case.short
    assert long.status == short.status == case.status
    given_id = "X-Request-Id: mine-1" in case.lines
    if case.status < 400:
        assert comparable(short, given_id=given_id) == comparable(long, given_id=given_id)
    if not given_id:
        assert short.headers["x-request-id"] != long.headers["x-request-id"]
    assert how_short == how_long
    assert how_long.latencies == len(how_long.lines) == 1
    assert sum(how_long.requests.values()) == 1


async def test_many_connections_know_what_one_has_learned(open_world: World, user: str, seen: Seen) -> None:
    """And a request that was learned by one is never taken for that of another."""
    others = [f"{user}-{n}" for n in range(3)]
    for n, other in enumerate(others):
        await given_images(open_world, other, n + 1)
        await replica_of(open_world, other)
    requests = [get("/api/images", open_world.token(other)) for other in others]
    async with connected(open_world) as first:
        expected = [comparable(await known(first, seen, request)) for request in requests]

    async with connected(open_world) as second:
        replies = [await second.ask(request) for request in requests * 3]

        assert [comparable(reply) for reply in replies] == expected * 3
        assert sum(seen.short[second.port]) >= 6


async def test_what_is_known_has_a_bound(open_world: World, user: str, seen: Seen, monkeypatch: Any) -> None:
    """A client that never asks the same again is served as ever."""
    monkeypatch.setattr(repeats, "_MAX_REPEATS", 20)
    await given_images(open_world, user, 1)
    await replica_of(open_world, user)
    token = open_world.token(user)
    table = open_world._runner.server._repeats._known  # type: ignore[union-attr]
    sizes = set()

    async with connected(open_world) as connection:
        for n in range(100):
            reply = await connection.ask(get("/api/images", token, f"X-Nonce: {n}", f"X-Request-Id: {n}"))
            assert (reply.status, reply.headers["x-request-id"]) == (200, str(n))
            sizes.add(len(table))

    assert max(sizes) == 20


async def test_switched_off_every_read_asks_its_host(tmp_path: Path, database: str) -> None:
    """PERUSE_ZERO_HOP=0: what is recognised is asked from where it came in."""
    async with running(World(tmp_path / "data", database, zero_hop=False)) as world:
        await given_images(world, "ana", 2)
        await replica_of(world, "ana")
        request = get("/api/images", world.token("ana"))
        asked = world.host.stats().metrics.reads

        async with connected(world) as connection:
            replies = {comparable(await connection.ask(request))[2] for _ in range(5)}

        assert len(replies) == 1
        assert world.host.stats().metrics.reads == asked + 5


# --- where one request ends -------------------------------------------------------------------------------------------


class Poll(NamedTuple):
    """A request that the server knows, and the reply to it."""

    request: bytes
    expected: tuple[Any, ...]


@pytest.fixture
async def poll(shared: World, user: str, seen: Seen) -> Poll:
    await given_images(shared, user, 2)
    await replica_of(shared, user)
    request = get("/api/images", shared.token(user))
    async with connected(shared) as connection:
        return Poll(request, comparable(await known(connection, seen, request)))


async def test_known_bytes_that_are_a_body_are_a_body(shared: World, user: str, seen: Seen, poll: Poll) -> None:
    """One request, one reply; and what comes after it is answered right."""
    head = get("/api/images/sync", shared.token(user), f"Content-Length: {len(poll.request)}").replace(b"GET", b"POST")
    for pieces in ((head, poll.request), (head + poll.request,), (head[:20], head[20:], poll.request)):
        async with connected(shared) as connection:
            await deliver(connection, seen, *pieces)

            assert b'"applied"' in (await connection.reply()).body
            assert await connection.is_silent()
            assert comparable(await connection.ask(poll.request)) == poll.expected
            assert not any(seen.short[connection.port])


async def test_known_bytes_that_are_a_chunk_are_a_body(shared: World, user: str, seen: Seen, poll: Poll) -> None:
    """The same where the body tells its length as it goes."""
    head = get("/api/images/sync", shared.token(user), "Transfer-Encoding: chunked").replace(b"GET", b"POST")

    async with connected(shared) as connection:
        await deliver(connection, seen, head, b"%x\r\n" % len(poll.request), poll.request, b"\r\n0\r\n\r\n")

        assert b'"applied"' in (await connection.reply()).body
        assert await connection.is_silent()
        assert not any(seen.short[connection.port])


async def test_known_bytes_that_are_the_body_of_a_get_are_a_body(shared: World, seen: Seen, poll: Poll) -> None:
    """A GET may have one, and nobody reads it; a head that promises one is never known."""
    for request, is_page in ((HEALTHZ, False), (poll.request, True)):
        head = request[:-2] + b"Content-Length: %d\r\n\r\n" % len(poll.request)
        async with connected(shared) as connection:
            for _ in range(3):
                await deliver(connection, seen, head, poll.request)

                assert ("peruse-source" in (await connection.reply()).headers) == is_page
                assert await connection.is_silent()
                assert not any(seen.short[connection.port])
        async with connected(shared) as connection:
            await deliver(connection, seen, head)
            await connection.reply()
            assert not any(seen.short[connection.port])


async def test_known_bytes_that_continue_a_head_are_part_of_it(shared: World, seen: Seen, poll: Poll) -> None:
    """They are the end of another request, with its target and our credential."""
    async with connected(shared) as connection:
        await deliver(connection, seen, b"GET /healthz HTTP/1.1\r\nX-Half: ", poll.request)

        reply = await connection.reply()
        assert "peruse-source" not in reply.headers
        assert await connection.is_silent()
        assert not any(seen.short[connection.port])


async def test_known_bytes_cut_anywhere_are_one_request(shared: World, seen: Seen, poll: Poll) -> None:
    """In two pieces, at every place."""
    for cut in range(1, len(poll.request)):
        async with connected(shared) as connection:
            seen.forget(connection.port)
            await deliver(connection, seen, poll.request[:cut], poll.request[cut:])

            assert comparable(await connection.reply()) == poll.expected, cut
            assert seen.short[connection.port] == [False, False]


@pytest.mark.parametrize("count", [2, 3, 40])
async def test_known_bytes_many_times_at_once_are_as_many_requests(
    shared: World, seen: Seen, poll: Poll, count: int
) -> None:
    async with connected(shared) as connection:
        await connection.send(poll.request * count)

        assert [comparable(await connection.reply()) for _ in range(count)] == [poll.expected] * count
        assert await connection.is_silent()


async def test_known_bytes_glued_to_another_request_are_answered_in_order(
    shared: World, seen: Seen, poll: Poll
) -> None:
    for pieces, first in (((HEALTHZ + poll.request,), 1), ((poll.request + HEALTHZ,), 0), ((HEALTHZ, poll.request), 1)):
        async with connected(shared) as connection:
            await connection.send(b"".join(pieces)) if len(pieces) == 1 else await deliver(connection, seen, *pieces)

            replies = [await connection.reply(), await connection.reply()]
            assert comparable(replies[first]) == poll.expected
            assert "peruse-source" not in replies[1 - first].headers


async def test_known_bytes_wait_for_the_request_before(shared: World, user: str, seen: Seen, poll: Poll) -> None:
    """They come while a slow one is under way: its reply is the first."""
    slow = get("/api/images?limit=3", shared.token(user), "Peruse-Validate: 1", "Peruse-Max-Wait: 5000")

    async with connected(shared) as connection:
        async with held(shared.gateway.primary) as lock:
            await deliver(connection, seen, slow)
            await until(lock.waiting)
            await deliver(connection, seen, poll.request)
            assert await connection.is_silent()

        assert (await connection.reply()).headers["peruse-outcome"] == "waited"
        assert comparable(await connection.reply()) == poll.expected


async def test_what_is_learned_is_the_request_that_was_answered(shared: World, user: str, seen: Seen) -> None:
    """Another comes while one is under way: it is known afterwards as itself, or not at all."""
    await given_images(shared, user, 3)
    await replica_of(shared, user)
    other = get("/api/images?limit=2", shared.token(user))
    async with connected(shared) as connection:
        await known(connection, seen, get("/api/images", shared.token(user)))
    _, bookmark = await shared.gateway.primary.write(
        user, lambda c: c.execute("update images set title = 'new' where owner_id = $1", user)
    )
    slow = get("/api/images?limit=1", shared.token(user), f"Peruse-Bookmark: {bookmark}", "Peruse-Max-Wait: 5000")

    async with connected(shared) as connection:
        async with held(shared.gateway.primary) as lock:
            await deliver(connection, seen, slow)
            await until(lock.waiting)
            await deliver(connection, seen, other)
        bodies = [(await connection.reply()).body for _ in range(2)]

        assert [body.count(b'"id"') for body in bodies] == [1, 2]
        for _ in range(5):
            for request, count in ((other, 2), (slow, 1)):
                assert (await connection.ask(request)).body.count(b'"id"') == count


async def test_known_bytes_after_a_post_or_an_upgrade_are_answered(
    shared: World, user: str, seen: Seen, poll: Poll
) -> None:
    """On the same connection, each time the same."""
    post = get("/api/images/sync", shared.token(user), "Content-Length: 0").replace(b"GET", b"POST")
    upgrade = poll.request[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    for other in (post, upgrade, HEALTHZ):
        async with connected(shared) as connection:
            for _ in range(2):
                assert comparable(await connection.ask(poll.request)) == poll.expected
                assert (await connection.ask(other)).status == 200


@pytest.mark.parametrize("nonsense", [b"\r\n", b"\n", b"GET\r\n\r\n", b"\0", b"GET / HTTP/9.9\r\n\r\n"])
async def test_nonsense_before_known_bytes_harms_nobody_else(
    shared: World, seen: Seen, poll: Poll, nonsense: bytes
) -> None:
    """An empty line is passed over, everything else ends the connection."""
    async with connected(shared) as connection:
        await deliver(connection, seen, nonsense)
        await connection.send(poll.request)

        reply = await connection.reply()
        if nonsense.strip():
            assert reply.status == 400
            assert await connection.hung_up() == b""
        else:
            assert comparable(reply) == poll.expected
    async with connected(shared) as connection:
        assert comparable(await connection.ask(poll.request)) == poll.expected


# --- connections ------------------------------------------------------------------------------------------------------


async def test_a_client_that_does_not_read_is_not_written_for(shared: World, user: str, seen: Seen) -> None:
    """What waits for it is bounded, however much it asks; then it reads, and gets everything."""
    await given_images(shared, user, 200, prompt="long " * 150)
    await replica_of(shared, user, "/api/images?limit=200")
    request = get("/api/images?limit=200", shared.token(user))
    async with connected(shared) as other:
        expected = comparable(await known(other, seen, request))
    assert len(expected[2]) > 100_000

    async with connected(shared, receives=8192) as connection:
        count = 0
        while count == 0 or not seen.protocols[connection.port].writing_paused:
            await deliver(connection, seen, request)
            count += 1
        assert any(seen.short[connection.port])
        for _ in range(20):
            await deliver(connection, seen, request)
        waiting = seen.protocols[connection.port].transport.get_write_buffer_size()
        await connection.send(request * 100)
        replies = [comparable(await connection.reply()) for _ in range(count + 120)]

    assert 0 < waiting < 3 * len(expected[2])
    assert replies == [expected] * (count + 120)


async def test_a_connection_of_repeats_alone_stays_while_it_asks_and_is_closed_then(
    tmp_path: Path, database: str, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tests.world, "handler_options", lambda: {"keepalive_timeout": 1.0, "access_log": None})
    async with running(World(tmp_path / "data", database)) as world:
        await given_images(world, "ana", 1)
        await replica_of(world, "ana")
        request = get("/api/images", world.token("ana"))
        async with connected(world) as connection:
            await known(connection, seen, request)
            asked_until = time.monotonic() + 2.5
            while time.monotonic() < asked_until or sum(seen.short[connection.port]) <= 20:
                assert (await connection.ask(request)).status == 200
                await asyncio.sleep(0.05)
            assert sum(seen.short[connection.port]) > 20
            idle_since = time.monotonic()

            assert await connection.hung_up() == b""

            assert 0.9 < time.monotonic() - idle_since < 5


async def test_a_gateway_stops_under_repeats(tmp_path: Path, database: str, seen: Seen) -> None:
    """Every reply that began is whole, and the end comes soon."""
    world = await World(tmp_path / "data", database).start()
    await given_images(world, "ana", 2)
    await replica_of(world, "ana")
    request = get("/api/images", world.token("ana"))
    statuses: Counter[int] = Counter()
    cut: list[bytes] = []

    async def client() -> None:
        async with connected(world) as connection:
            try:
                while True:
                    statuses[(await connection.ask(request)).status] += 1
            except asyncio.IncompleteReadError as error:
                cut.append(error.partial)
            except ConnectionError:
                pass

    clients = [asyncio.ensure_future(client()) for _ in range(5)]
    await until(lambda: sum(map(sum, seen.short.values())) > 200)
    started = time.monotonic()
    await world.stop()

    await asyncio.wait_for(asyncio.gather(*clients), 5)
    assert time.monotonic() - started < 8
    assert set(cut) <= {b""}
    assert set(statuses) == {200}


# --- who asks ---------------------------------------------------------------------------------------------------------


async def test_a_token_that_expires_ends_what_was_known_with_it(shared: World, user: str, seen: Seen) -> None:
    await given_images(shared, user, 1)
    await replica_of(shared, user)
    now = int(time.time())
    claims = {"iss": "peruse", "aud": "peruse", "sub": user, "role": "user", "iat": now, "exp": time.time() - 27.5}
    token = jwt.encode({"alg": "Ed25519"}, claims, Signer(shared.data, shared.settings).key(), ["Ed25519"])
    async with connected(shared) as connection:
        request = get("/api/images", token)
        assert (await connection.ask(request)).status == 200

        async def is_over() -> bool:
            return (await connection.ask(request)).status == 401

        await until(is_over, timeout_s=5.0)
        assert (await connection.ask(request)).status == 401


async def test_a_credential_that_is_not_good_any_more_is_not_looked_up_in_what_is_known(
    shared: World, user: str, seen: Seen
) -> None:
    """A token is known, its page is known; then its time is over, and not one more reply is given."""
    await given_images(shared, user, 1)
    await replica_of(shared, user)
    auth, token = shared.gateway.auth, shared.token(user)
    request, header = get("/api/images", token), f"Bearer {token}"
    async with connected(shared) as connection:
        await known(connection, seen, request)

        auth._kept[header] = auth._kept[header]._replace(until=time.monotonic() - 1)
        await connection.ask(request)
        assert seen.short[connection.port][-1] is False
        await known(connection, seen, request)
        auth._kept[header] = auth._kept[header]._replace(user="somebody-else")
        assert b"picture" not in (await connection.ask(request)).body
        assert seen.short[connection.port][-1] is False
        auth._kept.clear()


async def test_a_revoked_key_ends_what_was_known_with_it_within_two_seconds(
    shared: World, user: str, seen: Seen
) -> None:
    """However often it is asked meanwhile. mission: 158"""
    await given_images(shared, user, 1)
    await replica_of(shared, user)
    key = await api_keys.create_key(shared.gateway.primary, user)
    request = get("/api/images", key.secret)
    async with connected(shared) as connection:
        await known(connection, seen, request)

        await api_keys.revoke_key(shared.gateway.primary, user, key.id)

        async def is_over() -> bool:
            return (await connection.ask(request)).status == 401

        await until(is_over, timeout_s=2.0)
        assert [(await connection.ask(request)).status for _ in range(20)] == [401] * 20


async def test_a_page_is_never_shown_with_another_credential(shared: World, user: str, seen: Seen) -> None:
    """The same bytes but for the token, its last character, its place, or none at all."""
    mine, theirs = f"{user}-mine", f"{user}-theirs"
    (image,) = await given_images(shared, mine, 1)
    for one in (mine, theirs):
        await replica_of(shared, one)
    token = shared.token(mine)
    request = get("/api/images", token)
    async with connected(shared) as connection:
        assert image.encode() in (await known(connection, seen, request)).body

        others = [
            (get("/api/images", shared.token(theirs)), 200),
            (get("/api/images", token[:-2] + ("A" if token[-2] != "A" else "B") + token[-1]), 401),
            (get("/api/images"), 401),
            (request.replace(b"Authorization", b"Xuthorization"), 401),
            (request.replace(b"Bearer", b"Basic "), 401),
            (get(f"/internal/users/{mine}/images", token), 403),
            (get("/api/images", shared.token(theirs), f"Authorization: Bearer {token}"), 200),
        ]
        for other, status in others * 2:
            reply = await connection.ask(other)
            assert (reply.status, image.encode() in reply.body) == (status, False), other
        assert image.encode() in (await connection.ask(request)).body


# --- what has changed -------------------------------------------------------------------------------------------------


async def test_the_first_read_after_a_write_shows_it(shared: World, user: str, seen: Seen) -> None:
    """Whether it has a tag or not; and a tag is never said to be right for content that it is not. mission: 143"""
    (image,) = await given_images(shared, user, 1)
    await replica_of(shared, user)
    token = shared.token(user)
    plain = get("/api/images", token)
    async with connected(shared) as connection:
        for n in range(12):
            before = await known(connection, seen, plain)
            with_tag = get("/api/images", token, f"If-None-Match: {before.headers['etag']}")
            assert (await known(connection, seen, with_tag)).status == 304

            change = await shared.request("PATCH", f"/api/images/{image}", user=user, json={"title": f"title {n}"})

            assert change.status == 200
            for request in (with_tag, plain) if n % 2 else (plain, with_tag):
                reply = await connection.ask(request)
                assert reply.status == 200
                assert f'"title {n}"'.encode() in reply.body
                assert reply.headers["peruse-bookmark"] == str(bookmark_of(change))
                assert reply.headers["etag"] != before.headers["etag"]


async def test_a_bookmark_beyond_what_is_kept_is_waited_for(shared: World, user: str, seen: Seen) -> None:
    """Another gateway's write, which this one has not heard of."""
    await given_images(shared, user, 1)
    await replica_of(shared, user)
    async with connected(shared) as connection:
        for n in range(5):
            await known(connection, seen, get("/api/images", shared.token(user)))
            _, bookmark = await shared.gateway.primary.write(
                user, lambda c, n=n: c.execute("update images set title = $2 where owner_id = $1", user, f"title {n}")
            )

            reply = await connection.ask(get("/api/images", shared.token(user), f"Peruse-Bookmark: {bookmark}"))

            assert f'"title {n}"'.encode() in reply.body
            assert reply.headers["peruse-bookmark"] == str(bookmark)


async def test_a_write_that_nobody_told_of_is_seen_by_repeats_within_the_sweep(
    shared: World, user: str, seen: Seen
) -> None:
    """And the age is never less than the truth meanwhile."""
    await given_images(shared, user, 1)
    await replica_of(shared, user)
    request = get("/api/images", shared.token(user))
    async with connected(shared) as connection:
        await known(connection, seen, request)
        await shared.gateway.primary.write(
            user, lambda c: c.execute("update images set title = 'told by nobody' where owner_id = $1", user)
        )
        written_at = time.monotonic()

        async def is_seen() -> bool:
            reply = await connection.ask(request)
            is_new = b"told by nobody" in reply.body
            assert is_new or int(reply.headers["peruse-age"]) >= time.monotonic() - written_at - 0.05
            return is_new

        await until(is_seen, timeout_s=4.0)


async def test_repeats_go_on_when_the_host_goes_and_comes(tmp_path: Path, database: str, seen: Seen) -> None:
    """The primary answers meanwhile, with the same bytes; afterwards they are answered at once again. mission: 137"""
    async with running(World(tmp_path / "data", database)) as world:
        await given_images(world, "ana", 2)
        await replica_of(world, "ana")
        request = get("/api/images", world.token("ana"))
        async with connected(world) as connection:
            before = await known(connection, seen, request)

            await world.host.stop()
            away = await connection.ask(request)
            assert (away.status, away.body, away.headers["peruse-source"]) == (200, before.body, "primary")
            world.host = await world.start_host(0)

            after = await known(connection, seen, request)
            assert comparable(after) == comparable(before)
