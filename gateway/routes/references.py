"""The caller's reference images: list, look at, upload, delete. Nobody else ever sees one."""

from __future__ import annotations

import asyncio
import hashlib
import time
from typing import Final

from aiohttp import web

from gateway.keeping import keep
from gateway.payloads import NoFields, read_upload, reference_id
from gateway.routes.context import GATEWAY, caller, only_parameters, read_response, references_query, written
from store import references
from store.errors import NotFound
from store.gallery import ReferenceQuery, encode_query
from store.ids import new_id
from store.lists import one_body
from store.objects import keys
from store.objects.prefix import owner_secret
from store.objects.stored import stored_as
from store.primary import Connection

__all__ = ["delete_reference", "get_reference", "list_references", "upload"]

_KIND: Final = "reference_images"


class _KeptAlready(Exception):
    """Raised inside a transaction when another upload of the same bytes was faster."""


async def list_references(request: web.Request) -> web.StreamResponse:
    """GET /api/references: one page of them, from the caller's replica."""
    user = (await caller(request)).user
    return await read_response(request, user, references_query(request))


async def get_reference(request: web.Request) -> web.StreamResponse:
    """GET /api/references/{id}."""
    user = (await caller(request)).user
    only_parameters(request)
    return await read_response(request, user, encode_query(ReferenceQuery(str(reference_id(request)))))


async def upload(request: web.Request) -> web.Response:
    """POST /api/references: keep a picture; 200 with the one that is there when its bytes are kept already."""
    user = (await caller(request)).user
    only_parameters(request)
    gateway = request.app[GATEWAY]
    data, filename, _ = await read_upload(request, NoFields, max_bytes=gateway.settings.upload_max_bytes)
    picture = await gateway.pictures.prepare(data)
    # In a thread: 20 MB take the loop's attention for 10 ms and more.
    digest = await asyncio.to_thread(lambda: hashlib.sha256(data).digest())
    found = await _same(request, user, digest)
    if found is not None:
        return found
    now_ms = int(time.time() * 1000)
    tag = keys.owner_tag(user, owner_secret(gateway.data))
    reference = references.NewReference(
        id=new_id(now_ms),
        **stored_as("reference", tag, data, picture, now_ms),
        filename=references.tidy_filename(filename),
        sha256=digest,
    )

    async def transaction(connection: Connection) -> bytes:
        if not await references.insert(connection, user, reference):
            raise _KeptAlready
        return await references.document(connection, user, reference.id, gateway.documents)

    try:
        document, bookmark = await keep(gateway, user, picture.objects(reference.object_key, data), transaction)
    except _KeptAlready:
        found = await _same(request, user, digest)
        if found is None:
            raise NotFound("the same picture was deleted while it was uploaded") from None
        return found
    response = written(one_body(_KIND, document), bookmark, status=201)
    response.headers["Location"] = f"/api/references/{reference.id}"
    return response


async def _same(request: web.Request, user: str, digest: bytes) -> web.Response | None:
    """The response with the caller's reference of these bytes, if there is one."""
    gateway = request.app[GATEWAY]

    async def look(connection: Connection) -> bytes | None:
        row_id = await references.same_content(connection, user, digest)
        return None if row_id is None else await references.document(connection, user, row_id, gateway.documents)

    document, bookmark = await gateway.primary.write(user, look)
    return None if document is None else written(one_body(_KIND, document), bookmark)


async def delete_reference(request: web.Request) -> web.Response:
    """DELETE /api/references/{id}: for good, with its file and its thumbnails."""
    user = (await caller(request)).user
    row_id = reference_id(request)
    only_parameters(request)
    gateway = request.app[GATEWAY]
    _, bookmark = await gateway.write(user, lambda c: references.delete(c, user, row_id))
    gateway.housekeeping.objects_soon()
    return written(b'{"success":true}', bookmark)
