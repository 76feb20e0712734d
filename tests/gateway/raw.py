"""Requests byte by byte: what no client library would send."""

from __future__ import annotations

import asyncio
from typing import NamedTuple
from urllib.parse import urlsplit

from tests.world import World

__all__ = ["RawReply", "exchange"]


class RawReply(NamedTuple):
    """Status line and headers as they came, and the rest."""

    status: int
    head: bytes
    body: bytes


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
