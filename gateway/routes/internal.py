"""The same for internal services, which act for any user."""

from __future__ import annotations

from aiohttp import web

from gateway.routes import images
from gateway.routes.context import (
    account_response,
    gallery_query,
    prompts_query,
    read_response,
    service_for,
    stats_response,
)

__all__ = ["account", "list_images", "list_prompts", "save_image", "stats", "sync"]


async def list_images(request: web.Request) -> web.StreamResponse:
    """GET /internal/users/{user}/images: one page of the user's gallery."""
    user = await service_for(request)
    return await read_response(request, user, gallery_query(request))


async def save_image(request: web.Request) -> web.Response:
    """POST /internal/users/{user}/images: keep an image for the user, as an upload."""
    user = await service_for(request)
    return await images.save_upload(request, user)


async def sync(request: web.Request) -> web.Response:
    """POST /internal/users/{user}/sync: bring the user's replica to head now."""
    user = await service_for(request)
    return await images.sync_user(request, user)


async def list_prompts(request: web.Request) -> web.StreamResponse:
    """GET /internal/users/{user}/prompts: one page of the user's prompt history."""
    user = await service_for(request)
    return await read_response(request, user, prompts_query(request))


async def stats(request: web.Request) -> web.StreamResponse:
    """GET /internal/users/{user}/stats: the user's usage."""
    return await stats_response(request, await service_for(request))


async def account(request: web.Request) -> web.StreamResponse:
    """GET /internal/users/{user}/account: the user's account."""
    return await account_response(request, await service_for(request))
