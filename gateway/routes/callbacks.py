"""What providers tell: that a task has ended. A reason to look at it now, never a result."""

from __future__ import annotations

from aiohttp import web

from gateway.routes.context import GATEWAY, only_parameters
from store.generation.jobs import nudge

__all__ = ["called_back"]


async def called_back(request: web.Request) -> web.Response:
    """POST /callbacks/{provider}/{token}: 204 for whatever the provider has signed, also when nobody waits for it."""
    gateway = request.app[GATEWAY]
    name, token = request.match_info["provider"], request.match_info["token"]
    provider = gateway.providers.get(name)
    if provider is None or not gateway.callbacks.is_valid(name, token):
        raise web.HTTPNotFound
    only_parameters(request)
    task_id = await provider.called_back(request.headers, await request.read())
    if "\0" not in task_id:
        await nudge(gateway.primary, name, task_id)
    return web.Response(status=204)
