"""The caller's images: list, look at, change, trash, bring back, upload, sync."""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web

from gateway.errors import BadRequest
from gateway.keeping import keep
from gateway.payloads import ImageChanges, UploadFields, image_id, read_json, read_upload
from gateway.routes.context import GATEWAY, caller, flag, gallery_query, only_parameters, read_response, written
from gateway.routes.files import get_own_file
from store import images, trash
from store.epoch import Bookmark
from store.gallery import ImageQuery, encode_query
from store.ids import new_id
from store.lists import one_body
from store.objects import keys
from store.objects.prefix import owner_secret
from store.objects.stored import stored_as
from store.primary import Connection

__all__ = [
    "change_image",
    "delete_image",
    "empty_trash",
    "get_image",
    "list_images",
    "restore_image",
    "save_upload",
    "sync",
    "sync_user",
    "upload",
]

_SYNC_S = 10.0


async def list_images(request: web.Request) -> web.StreamResponse:
    """GET /api/images: one page of the caller's gallery, from their replica."""
    user = (await caller(request)).user
    return await read_response(request, user, gallery_query(request))


async def get_image(request: web.Request) -> web.StreamResponse:
    """GET /api/images/{id}: the document; with a file name instead of an id, the file."""
    user = (await caller(request)).user
    only_parameters(request)
    if keys.is_filename(filename := request.match_info["id"]):
        return await get_own_file(request, user, filename)
    return await read_response(request, user, encode_query(ImageQuery(str(image_id(request)))))


async def change_image(request: web.Request) -> web.Response:
    """PATCH /api/images/{id}: visibility, starred, title."""
    user = (await caller(request)).user
    only_parameters(request)
    row_id = image_id(request)
    changes = await read_json(request, ImageChanges)
    values = {k: v for k, v in msgspec.structs.asdict(changes).items() if v is not msgspec.UNSET}
    if not values:
        raise BadRequest(f"nothing to change: give one of {', '.join(ImageChanges.__struct_fields__)}")
    return await _change(request, user, row_id, lambda c: images.change(c, user, row_id, values))


async def delete_image(request: web.Request) -> web.Response:
    """DELETE /api/images/{id}: to the trash. With ?forever=1: the row, and then its objects, for good."""
    user = (await caller(request)).user
    row_id = image_id(request)
    if not flag(request, "forever"):
        return await _change(request, user, row_id, lambda c: images.trash(c, user, row_id))
    gateway = request.app[GATEWAY]
    removed, bookmark = await gateway.write(user, lambda c: trash.remove(c, user, row_id))
    return _removed(request, removed, bookmark)


async def empty_trash(request: web.Request) -> web.Response:
    """DELETE /api/images/trash: what is in the trash now goes for good."""
    user = (await caller(request)).user
    only_parameters(request)
    gateway = request.app[GATEWAY]
    removed, bookmark = await trash.empty(gateway.primary, user)
    gateway.reads.wrote(user, bookmark)
    return _removed(request, removed, bookmark)


def _removed(request: web.Request, removed: trash.Removed, bookmark: Bookmark) -> web.Response:
    request.app[GATEWAY].housekeeping.objects_soon()
    body = msgspec.json.encode({"success": True, "removed": removed.images, "freed_bytes": removed.bytes})
    return written(body, bookmark)


async def restore_image(request: web.Request) -> web.Response:
    """POST /api/images/{id}/restore: back from the trash."""
    user = (await caller(request)).user
    only_parameters(request)
    row_id = image_id(request)
    return await _change(request, user, row_id, lambda c: images.restore(c, user, row_id))


async def _change(
    request: web.Request, user: str, row_id: uuid.UUID, work: Callable[[Connection], Awaitable[Any]]
) -> web.Response:
    gateway = request.app[GATEWAY]

    async def transaction(connection: Connection) -> bytes:
        await work(connection)
        return await images.document(connection, user, row_id, gateway.documents)

    document, bookmark = await gateway.write(user, transaction)
    return written(one_body("images", document), bookmark)


async def upload(request: web.Request) -> web.Response:
    """POST /api/images/upload: keep an image that the client already has."""
    user = (await caller(request)).user
    return await save_upload(request, user)


async def save_upload(request: web.Request, user: str) -> web.Response:
    """Store the uploaded picture of `user`: checked, then its bytes, then its row."""
    only_parameters(request)
    gateway = request.app[GATEWAY]
    data, _, fields = await read_upload(request, UploadFields, max_bytes=gateway.settings.upload_max_bytes)
    picture = await gateway.pictures.prepare(data)
    now_ms = int(time.time() * 1000)
    tag = keys.owner_tag(user, owner_secret(gateway.data))
    image = images.NewImage(
        id=new_id(now_ms),
        **stored_as("generated", tag, data, picture, now_ms),
        **msgspec.structs.asdict(fields),
    )
    image.check()

    async def transaction(connection: Connection) -> bytes:
        await images.insert(connection, user, image)
        return await images.document(connection, user, image.id, gateway.documents)

    document, bookmark = await keep(gateway, user, picture.objects(image.object_key, data), transaction)
    response = written(one_body("images", document), bookmark, status=201)
    response.headers["Location"] = f"/api/images/{image.id}"
    return response


async def sync(request: web.Request) -> web.Response:
    """POST /api/images/sync: bring the caller's replica to head now."""
    user = (await caller(request)).user
    return await sync_user(request, user)


async def sync_user(request: web.Request, user: str) -> web.Response:
    """Bring `user`'s replica to head and say where it is."""
    only_parameters(request)
    gateway = request.app[GATEWAY]
    reply = await gateway.client.sync(user, timeout_s=_SYNC_S)
    return web.json_response(
        {"success": True, "version": reply.version, "applied": reply.applied},
        headers={"Peruse-Bookmark": f"{reply.epoch}.{reply.version}", "Cache-Control": "no-store"},
    )
