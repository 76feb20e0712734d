"""The same for internal services, which act for any user."""

from __future__ import annotations

from aiohttp import web

from gateway.routes import images
from gateway.routes.context import gallery_query, read_response, service_for

__all__ = ["list_images", "save_image", "sync"]


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
