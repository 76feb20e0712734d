"""What requests look like that were asked before, and whether the server knew them."""

from __future__ import annotations

from typing import Any

import pytest

from gateway import repeats
from tests.gateway.raw import Connection, RawReply
from tests.world import until

__all__ = ["Seen", "comparable", "deliver", "get", "known", "look_on"]


class Seen:
    """What came in at the server: `chunks` by the client's port, and whether each was `short`: answered at once."""

    def __init__(self) -> None:
        self.chunks: dict[int, list[bytes]] = {}
        self.short: dict[int, list[bool]] = {}
        self.protocols: dict[int, Any] = {}

    def forget(self, port: int) -> None:
        """What an earlier connection sent: the kernel gives ports again, so each of many begins with this."""
        self.chunks.pop(port, None)
        self.short.pop(port, None)

    def bytes_of(self, port: int) -> int:
        return sum(map(len, self.chunks.get(port, [])))


def look_on(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Connections work as ever meanwhile."""
    made = Seen()
    received, reply = repeats._RepeatHandler.data_received, repeats.Repeats.reply
    answered: list[bool] = []

    def looked_at_reply(self: Any, *asked: Any) -> Any:
        answered.append(True)
        return reply(self, *asked)

    def looked_at(self: Any, data: bytes) -> None:
        answered.clear()
        port = self.peername[1] if self.peername else 0
        received(self, data)
        if data:
            made.protocols[port] = self
            made.chunks.setdefault(port, []).append(data)
            made.short.setdefault(port, []).append(any(answered))

    monkeypatch.setattr(repeats.Repeats, "reply", looked_at_reply)
    monkeypatch.setattr(repeats._RepeatHandler, "data_received", looked_at)
    return made


def get(target: str, token: str = "", *lines: str, version: str = "1.1") -> bytes:
    """The bytes of a GET."""
    given = (f"GET {target} HTTP/{version}", "Host: p", *([f"Authorization: Bearer {token}"] if token else []), *lines)
    return "\r\n".join((*given, "", "")).encode()


async def deliver(connection: Connection, seen: Seen, *pieces: bytes) -> None:
    """Send each piece once the server has taken the one before."""
    for piece in pieces:
        before = seen.bytes_of(connection.port)
        await connection.send(piece)
        await until(lambda before=before, piece=piece: seen.bytes_of(connection.port) >= before + len(piece))


async def known(connection: Connection, seen: Seen, request: bytes) -> RawReply:
    """The reply to `request` once it is answered where its bytes come in."""

    async def answered() -> RawReply | None:
        reply = await connection.ask(request)
        return reply if seen.short[connection.port][-1] else None

    reply: RawReply = await until(answered)
    return reply


def comparable(reply: RawReply, *, given_id: bool = False) -> tuple[Any, ...]:
    """All of a reply but what differs from one moment to the next."""
    headers = reply.headers
    for name in ("date", "peruse-age", *([] if given_id else ["x-request-id"])):
        assert headers.pop(name), name
    return reply.head.partition(b"\r\n")[0], headers, reply.body
