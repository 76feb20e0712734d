"""Requests that repeat others but for the names of their traces: the same answer, with the id of this very request."""

from __future__ import annotations

import re
from random import Random

import pytest

from gateway.repeats import _untraced
from tests.gateway.asking import given_images, replica_of
from tests.gateway.raw import Connection, connected
from tests.gateway.repeated import Seen, comparable, deliver, get, known
from tests.world import World

TRACES = (
    "X-Request-Id: mine-{n}",
    "x-request-id: mine-{n}",
    "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-{n:016x}-01",
    "tracestate: vendor=t61rcWkgMzE-{n}",
    "Baggage: userId=alice,n={n}",
    "X-Correlation-ID: {n}",
    "b3: 80f198ee56343ba864fe8b2a57d3eff7-{n:016x}-1",
    "X-B3-ParentSpanId: {n:016x}",
    "sentry-trace: 12312012123120121231201212312012-{n:016x}-0",
    "uber-trace-id: {n:x}:{n:x}:0:1",
    "x-datadog-parent-id: {n}",
    "X-Amzn-Trace-Id: Root=1-67891233-abcdef012345678912{n:06x}",
    "X-Cloud-Trace-Context: 105445aa7843bc8bf206b12000100000/{n};o=1",
    "CF-Ray: {n:016x}-AMS",
)
END = b"\r\n\r\n"


@pytest.mark.parametrize("line", TRACES)
async def test_the_name_of_a_trace_makes_no_other_request(shared: World, user: str, seen: Seen, line: str) -> None:
    """Every one is answered at once as soon as one was answered, also without it and beside another."""
    await given_images(shared, user, 2)
    await replica_of(shared, user)
    token = shared.token(user)
    async with connected(shared) as connection:
        expected = comparable(await known(connection, seen, get("/api/images", token, line.format(n=0))))
        for given in ([line.format(n=1)], [line.format(n=2**20)], [], [line.format(n=3), "traceparent: 00-a-b-01"]):
            reply = await connection.ask(get("/api/images", token, *given))

            assert seen.short[connection.port][-1], given
            is_id = given and given[0].lower().startswith("x-request-id")
            if is_id:
                assert reply.headers["x-request-id"] == given[0].partition(": ")[2]
            assert comparable(reply) == expected


@pytest.mark.parametrize(
    "line", ["X-Trace: {n}", "X-Request: {n}", "X-Request-Ids: {n}", "Cookie: a={n}", "If-None-Match: traceparent:{n}"]
)
async def test_any_other_line_makes_another_request(shared: World, user: str, seen: Seen, line: str) -> None:
    await given_images(shared, user, 1)
    await replica_of(shared, user)
    async with connected(shared) as connection:
        for n in range(3):
            await connection.ask(get("/api/images", shared.token(user), line.format(n=n)))

        assert seen.short[connection.port] == [False] * 3


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["X-Request-Id: mine-1"], "mine-1"),
        (["x-REQUEST-iD:mine-2"], "mine-2"),
        (["X-Request-Id:   mine-3  "], "mine-3"),
        (["X-Request-Id:\tmine-4"], "mine-4"),
        (["X-Request-Id: mine-5", "X-Request-Id: mine-6"], "mine-5"),
        (["traceparent: 00-a-b-01", "X-Request-Id: mine-7", "CF-Ray: 1"], "mine-7"),
        (["X-Request-Id: no id; at all"], None),
        (["X-Request-Id:"], None),
        ([f"X-Request-Id: {'m' * 65}"], None),
        (["X-Request-Id: no id; at all", "X-Request-Id: mine-8"], None),
        (["X-Request-Id: m\u00fcller"], None),
    ],
)
async def test_a_request_has_its_own_id_either_way(
    shared: World, user: str, seen: Seen, lines: list[str], expected: str | None
) -> None:
    """The one that its client gave, or one that no other request has."""
    await given_images(shared, user, 1)
    await replica_of(shared, user)
    made = set()
    async with connected(shared) as connection:
        await known(connection, seen, get("/api/images", shared.token(user)))
        for _ in range(3):
            reply = await connection.ask(get("/api/images", shared.token(user), *lines))

            assert reply.status == 200
            given = reply.headers["x-request-id"]
            assert given == expected or expected is None
            made.add(given)

    assert len(made) == (3 if expected is None else 1)
    assert all(re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]+", one) for one in made) or expected


async def test_what_follows_a_head_is_not_cut_out_of_it(shared: World, user: str, seen: Seen) -> None:
    """The name of a trace after the end of a request is the beginning of the next, and no good one."""
    await given_images(shared, user, 1)
    await replica_of(shared, user)
    request = get("/api/images", shared.token(user))
    assert _untraced(request + b"X-Request-Id: a\r\n")[0] == request  # so the bytes alone do not tell
    async with connected(shared) as connection:
        await known(connection, seen, request)

        await deliver(connection, seen, request + b"X-Request-Id: a\r\n")

        assert not seen.short[connection.port][-1]
        assert (await connection.reply()).status == 400
        assert await connection.hung_up() == b""


def _changed(dice: Random, request: bytes) -> bytes:
    """`request` with pieces of traces at one to three places, at ends of lines or anywhere."""
    pieces = (
        b"\r\nX-Request-Id: a", b"\r\nX-Request-Id: b", b"\r\ntraceparent: 00-a-b-01", b"\r\nbaggage:",
        b"\r\nX-Request-Id: a\r\n b", b"\r\nX-Request-Id : a", b"\r\n X-Request-Id: a", b"\r\nX-Request-Id: a\nb: c",
        b"\r\nX-Request-Id: a\0", b"\r\nX-Request-Id: a\r", b"\r\nX-Request-Id: a\x7f", b"\nX-Request-Id: a",
        b"\r\nX-Request-Id", b"\r\nX-Request-Id: \xff", b"\r\nX-Request-Id: a\r\n", b"X-Request-Id: a\r\n",
        b"\r\nX-Request-Id: \r\nContent-Length: 3", b"\r\nContent-Length: 0\r\nX-Request-Id: a",
    )  # fmt: skip
    for _ in range(dice.randint(1, 3)):
        ends = [found.start() for found in re.finditer(b"\r\n", request)] + [len(request)]
        place = dice.choice(ends) if dice.random() < 0.8 else dice.randrange(len(request))
        request = request[:place] + dice.choice(pieces) + request[place:]
    return request


async def _transcript(connection: Connection, seen: Seen, data: bytes) -> bytes:
    """All that comes for `data` and one more request, without what differs from one moment to the next."""
    await deliver(connection, seen, data)
    await connection.send(get("/healthz", "", "Connection: close"))
    came = await connection.hung_up()
    came = re.sub(rb"(Date|Peruse-Age): [^\r]*", rb"\1", came)
    return re.sub(rb"[0-9a-f]{8}-[0-9a-f]+(?=[\r\"])", b"an id", came)


async def test_whatever_bytes_come_they_are_answered_as_if_nothing_was_known(
    shared: World, user: str, seen: Seen
) -> None:
    """Three hundred heads with names of traces in good and bad places: the parser's word stands."""
    await given_images(shared, user, 1)
    await replica_of(shared, user)
    request = get("/api/images", shared.token(user))
    table = shared._runner.server._repeats._known  # type: ignore[union-attr]
    dice, shorts = Random(1), 0
    for _ in range(300):
        data = _changed(dice, request)
        came = []
        for is_known in (False, True):
            async with connected(shared) as connection:
                seen.forget(connection.port)
                if is_known:
                    await known(connection, seen, request)
                else:
                    table.clear()
                    await connection.ask(request)
                    table.clear()
                came.append(_ordered(await _transcript(connection, seen, data)))
                shorts += is_known and data != request and seen.short[connection.port][-2]

        assert came[0] == came[1], data
    assert shorts > 30


def _ordered(transcript: bytes) -> list[list[bytes]]:
    """Its heads line by line, in any order: the long way writes the id before other lines."""
    return [sorted(part.split(b"\r\n")) for part in transcript.split(END)]
