"""Files: the bytes of images, streamed to whoever has the unguessable URL, as its image's state allows."""

from __future__ import annotations

import time
from typing import Final

from aiohttp import web

from gateway.errors import Unauthorized
from gateway.routes.context import GATEWAY
from store import images
from store.errors import NotFound, ObjectMissing, PrimaryUnavailable
from store.images import FileInfo
from store.objects import keys

__all__ = ["get_file"]

_FRESH_S: Final = 1.0  # how long a gateway believes what it knows of a file
_STALE_S: Final = 300.0  # and while the primary is away
_MAX_KEPT: Final = 50_000
_kept: dict[str, tuple[FileInfo, float]] = {}


async def get_file(request: web.Request) -> web.StreamResponse:
    """GET /files/{key}: with Range, ETag and conditional requests.

    Raises:
        NotFound: no such file, or not for this caller: the two look the same.
    """
    key = request.match_info["key"]
    missing = NotFound("Image not found")
    if not keys.is_key(key):
        raise missing
    gateway = request.app[GATEWAY]
    info = await _info(request, key)
    if info is None or not (info.is_open or info.owner_id == await _reader(request)):
        raise missing
    try:
        path = gateway.objects.path(key)
    except ObjectMissing:
        raise missing from None
    if not path.is_file():
        raise missing
    public = info.is_public and info.is_open
    return web.FileResponse(
        path,
        chunk_size=256 * 1024,
        headers={
            "Content-Type": keys.content_type_of(key),
            "Cache-Control": "public, max-age=31536000, immutable" if public else _private(info),
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "default-src 'none'; sandbox",
            "Cross-Origin-Resource-Policy": "cross-origin" if public else "same-site",
            "Referrer-Policy": "no-referrer",
        },
    )


def _private(info: FileInfo) -> str:
    return "private, max-age=300" if info.is_open else "private, no-store"


async def _info(request: web.Request, key: str) -> FileInfo | None:
    now = time.monotonic()
    kept = _kept.get(key)
    if kept is not None and now - kept[1] < _FRESH_S:
        return kept[0]
    try:
        info = await images.file_of(request.app[GATEWAY].fallback, key)
    except PrimaryUnavailable:
        if kept is not None and now - kept[1] < _STALE_S:
            return kept[0]
        raise
    if info is not None:
        if len(_kept) >= _MAX_KEPT:
            _kept.clear()
        _kept[key] = (info, now)
    return info


async def _reader(request: web.Request) -> str | None:
    header = request.headers.get("Authorization")
    if header is None:
        return None
    try:
        return (await request.app[GATEWAY].auth.identify(header)).user
    except Unauthorized:
        return None
