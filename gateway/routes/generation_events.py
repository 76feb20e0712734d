"""How far a generation is, as events (SSE)."""

from __future__ import annotations

import asyncio
import time
from typing import Final

import msgspec
from aiohttp import web

from gateway.errors import Unauthorized
from gateway.generating import look, told_one
from gateway.middleware import allow_origin
from gateway.payloads import generation_id
from gateway.routes.context import GATEWAY, caller, only_parameters
from store.errors import PrimaryUnavailable, StoreError
from store.generation.states import State

__all__ = ["follow_generation"]

_HEARTBEAT_S: Final = 15.0
_CHECK_S: Final = 1.0
#: A listener who takes nothing for so long is gone.
_WRITE_S: Final = 30.0
#: The last event's id: who comes back with it has heard everything.
_END: Final = "end"


async def follow_generation(request: web.Request) -> web.StreamResponse:
    """GET /api/generations/{id}/events: how far it is, until its end (SSE)."""
    user = (await caller(request)).user
    only_parameters(request)
    gateway, job_id = request.app[GATEWAY], generation_id(request)
    generation = await look(gateway, user, job_id)
    if generation.is_over and request.headers.get("Last-Event-ID") == _END:
        return web.Response(status=204)  # a browser does not come back after this
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )
    if gateway.settings.cors_origins:
        allow_origin(request, response, gateway.settings.cors_origins)
    with gateway.following.listen(user, job_id) as follower:
        try:
            await response.prepare(request)
            last_sent, shown = time.monotonic(), None
            while not (follower.is_over or follower.is_ended or generation.is_over):
                is_news = await follower.change(_CHECK_S)
                state = follower.latest.get(job_id)
                if is_news and state is not None and not state.is_over and state != shown:
                    await _send(response, b"data: " + msgspec.json.encode(_told_state(state)) + b"\n\n")
                    last_sent, shown = time.monotonic(), state
                elif time.monotonic() - last_sent >= _HEARTBEAT_S:
                    await _send(response, b":\n\n")
                    last_sent = time.monotonic()
                if request.transport is None or request.transport.is_closing() or not await _is_allowed(request):
                    return response
            if not follower.is_ended or generation.is_over:
                generation = await look(gateway, user, job_id)
                await _send(response, b"id: end\nevent: end\ndata: " + told_one(generation) + b"\n\n")
        except (ConnectionError, TimeoutError):
            if request.transport is not None:
                request.transport.abort()
        except StoreError:
            pass  # the primary is away, or the job is gone: whoever listens comes back, and is told
    return response


def _told_state(state: State) -> dict[str, object]:
    return {"state": state.state, "progress": state.progress, "queue_position": state.queue_position}


async def _send(response: web.StreamResponse, data: bytes) -> None:
    async with asyncio.timeout(_WRITE_S):
        await response.write(data)


async def _is_allowed(request: web.Request) -> bool:
    """Whether the listener's credential is still good, as far as anybody can tell now."""
    auth, header = request.app[GATEWAY].auth, request.headers.get("Authorization")
    if auth.known(header) is not None:
        return True
    try:
        await auth.identify(header)
    except Unauthorized:
        return False
    except PrimaryUnavailable:
        pass
    return True
