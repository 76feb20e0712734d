"""The caller's event stream."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web

from gateway.middleware import allow_origin
from gateway.routes.context import GATEWAY, caller, only_parameters
from gateway.stream import Stream
from store.epoch import Bookmark

__all__ = ["events"]

#: A listener who takes nothing for so long is gone.
_WRITE_S: Final = 30.0
#: Unsent bytes at which we stop writing: messages wait, as `resync` at the latest.
_HIGH_WATER: Final = 16 * 1024


async def events(request: web.Request) -> web.StreamResponse:
    """GET /api/events: a message per new version of the caller's data (SSE)."""
    user = (await caller(request)).user
    only_parameters(request)
    gateway = request.app[GATEWAY]
    given = request.headers.get("Last-Event-ID")
    last = None if given is None else Bookmark.parse(given)
    stream = Stream(user, request.headers["Authorization"], request.transport)
    await gateway.streams.open(stream, last, is_return=given is not None)
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )
    if gateway.settings.cors_origins:
        allow_origin(request, response, gateway.settings.cors_origins)
    try:
        await response.prepare(request)
        if request.transport is not None:
            request.transport.set_write_buffer_limits(_HIGH_WATER)
        while data := await stream.next():
            async with asyncio.timeout(_WRITE_S):
                await response.write(data)
                await request.writer.drain()  # `write` alone lets 64 KB pass first
    except (ConnectionError, TimeoutError):
        if request.transport is not None:
            request.transport.abort()
    finally:
        gateway.streams.close_stream(stream)
    return response
