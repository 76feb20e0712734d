"""Requests byte by byte: what no client library would send."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple
from urllib.parse import urlsplit

from tests.world import World

__all__ = ["Connection", "RawReply", "connected", "exchange"]


class RawReply(NamedTuple):
    """Status line and headers as they came, and the rest."""

    status: int
    head: bytes
    body: bytes

    @property
    def headers(self) -> dict[str, str]:
        """By name in small letters; each comes once."""
        lines = [line.partition(": ") for line in self.head.decode("latin-1").split("\r\n")[1:]]
        found = {name.lower(): value for name, _, value in lines}
        assert len(found) == len(lines), f"a header comes twice: {lines}"
        return found


class Connection:
    """A connection that stays open: bytes go out as they are given, replies are cut by their lengths."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def reply(self) -> RawReply:
        """The next reply.

        Raises:
            asyncio.IncompleteReadError: the server hung up before its end; `partial` is what there was of the head.
        """
        async with asyncio.timeout(10):
            head = (await self._reader.readuntil(b"\r\n\r\n"))[:-4]
            reply = RawReply(int(head.split(b" ", 2)[1]), head, b"")
            if reply.status in (204, 304):
                return reply
            return reply._replace(body=await self._reader.readexactly(int(reply.headers["content-length"])))

    async def ask(self, request: bytes) -> RawReply:
        await self.send(request)
        return await self.reply()

    async def is_silent(self, seconds: float = 0.1) -> bool:
        """Whether nothing comes for a while, and the server has not hung up."""
        try:
            async with asyncio.timeout(seconds):
                return await self._reader.read(1) is None
        except TimeoutError:
            return True

    async def hung_up(self, timeout_s: float = 10) -> bytes:
        """What still comes before the server hangs up."""
        async with asyncio.timeout(timeout_s):
            return await self._reader.read()

    @property
    def port(self) -> int:
        """Our end's, by which the server knows us."""
        return int(self._writer.get_extra_info("sockname")[1])

    def close(self) -> None:
        self._writer.close()


@asynccontextmanager
async def connected(world: World, *, receives: int | None = None) -> AsyncIterator[Connection]:
    """`receives`: bytes that the kernel takes for us before we read."""
    parts = urlsplit(world.url)
    made = socket.socket()
    if receives is not None:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receives)
    made.setblocking(False)
    await asyncio.get_running_loop().sock_connect(made, (parts.hostname, parts.port))
    connection = Connection(*await asyncio.open_connection(sock=made, limit=4096 if receives else 2**16))
    try:
        yield connection
    finally:
        connection.close()


async def exchange(world: World, request: bytes) -> RawReply:
    """Send `request`, which must ask for `Connection: close`, and read until the server hangs up."""
    parts = urlsplit(world.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(request)
        answer = await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return RawReply(int(head.split(b" ", 2)[1]), head, body)
