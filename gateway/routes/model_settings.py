"""What the caller wants of a model whenever a request does not say otherwise. A model's id has slashes: the path ends
with it."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from gateway.payloads import read_json
from gateway.routes.context import GATEWAY, answered, caller, only_parameters, written
from store import model_settings
from store.errors import NotFound
from store.generation.defaults import read_defaults
from store.model_settings import ModelSettings
from store.text import time_text

__all__ = ["delete_settings", "list_settings", "put_settings"]


async def list_settings(request: web.Request) -> web.Response:
    """GET /api/model-settings: those of every model that the caller has settings of."""
    user = (await caller(request)).user
    only_parameters(request)
    async with request.app[GATEWAY].fallback.connection() as connection:
        found = await model_settings.all_settings(connection, user)
    # Never longer than the list of models: one page.
    return answered({"settings": [_told(settings) for settings in found], "next_page_token": None})


async def put_settings(request: web.Request) -> web.Response:
    """PUT /api/model-settings/{model}: fields of a request for a generation, in place of older settings."""
    user = (await caller(request)).user
    only_parameters(request)
    gateway = request.app[GATEWAY]
    id = request.match_info["model"]
    model = gateway.catalog.models.get(id)
    if model is None:
        raise NotFound(f"there is no model {id[:80]!r}")
    defaults = read_defaults(await read_json(request, dict[str, Any]))
    kept, bookmark = await gateway.write(user, lambda c: model_settings.keep(c, user, model, defaults))
    return written(msgspec.json.encode({"success": True, "settings": _told(kept)}), bookmark)


async def delete_settings(request: web.Request) -> web.Response:
    """DELETE /api/model-settings/{model}."""
    user = (await caller(request)).user
    only_parameters(request)
    model = request.match_info["model"]
    _, bookmark = await request.app[GATEWAY].write(user, lambda c: model_settings.forget(c, user, model))
    return written(b'{"success":true}', bookmark)


def _told(settings: ModelSettings) -> dict[str, Any]:
    return {"model": settings.model, "params": settings.params, "updated_at": time_text(settings.updated_at)}
