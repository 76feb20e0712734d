"""The caller's own keys at providers, who then bill the caller. A key goes in and is never shown again."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from gateway.payloads import read_json
from gateway.routes.context import GATEWAY, answered, caller, only_parameters, written
from store import own_keys
from store.own_keys import OwnKey
from store.sealing import open_sealer
from store.text import time_text

__all__ = ["delete_key", "list_keys", "put_key"]


class NewKey(msgspec.Struct, forbid_unknown_fields=True):
    """PUT of a key."""

    key: str


async def list_keys(request: web.Request) -> web.Response:
    """GET /api/provider-keys: which providers the caller has keys at, with the ends of the keys."""
    user = (await caller(request)).user
    only_parameters(request)
    async with request.app[GATEWAY].fallback.connection() as connection:
        found = await own_keys.keys_of(connection, user)
    # Never longer than the list of providers: one page.
    return answered({"provider_keys": [_told(key) for key in found], "next_page_token": None})


async def put_key(request: web.Request) -> web.Response:
    """PUT /api/provider-keys/{provider}: in place of an older one."""
    user = (await caller(request)).user
    only_parameters(request)
    provider = request.match_info["provider"]
    own_keys.check_provider(provider)
    given = await read_json(request, NewKey)
    gateway = request.app[GATEWAY]
    sealer = open_sealer(gateway.data)
    kept, bookmark = await gateway.write(user, lambda c: own_keys.keep(c, sealer, user, provider, given.key))
    return written(msgspec.json.encode({"success": True, "provider_key": _told(kept)}), bookmark)


async def delete_key(request: web.Request) -> web.Response:
    """DELETE /api/provider-keys/{provider}: generations from now on are made with our key, for credits."""
    user = (await caller(request)).user
    only_parameters(request)
    provider = request.match_info["provider"]
    own_keys.check_provider(provider)
    _, bookmark = await request.app[GATEWAY].write(user, lambda c: own_keys.forget(c, user, provider))
    return written(b'{"success":true}', bookmark)


def _told(key: OwnKey) -> dict[str, Any]:
    return {"provider": key.provider, "hint": key.hint, "created_at": time_text(key.created_at)}
