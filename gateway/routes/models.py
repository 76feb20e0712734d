"""The models: what each can do, what it costs, and whether the caller can use it."""

from __future__ import annotations

import msgspec
from aiohttp import web

from gateway.routes.context import GATEWAY, caller, only_parameters
from store.own_keys import keys_of

__all__ = ["list_models"]

_encode = msgspec.json.Encoder(decimal_format="number").encode


async def list_models(request: web.Request) -> web.Response:
    """GET /api/models."""
    user = (await caller(request)).user
    only_parameters(request)
    gateway = request.app[GATEWAY]
    async with gateway.fallback.connection() as connection:
        own_keys = {key.provider for key in await keys_of(connection, user)}
    body = _encode({"success": True, "models": list(gateway.catalog.told(own_keys))})
    return web.Response(body=body, content_type="application/json", headers={"Cache-Control": "no-store"})
