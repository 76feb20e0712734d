"""Files: the bytes of pictures, for whoever has the unguessable URL, as the state of its row allows.

Generated images are streamed. References are private: their owner is sent to a URL that ends soon and needs no
credential, so that a browser can show them.
"""

from __future__ import annotations

import time
from typing import Final

from aiohttp import web

from gateway.delivery import deliver
from gateway.errors import Unauthorized
from gateway.routes.context import GATEWAY
from store import images, references
from store.errors import NotFound, ObjectMissing, PrimaryUnavailable
from store.images import FileInfo
from store.objects import keys
from store.objects.prefix import owner_secret
from store.objects.signing import GatewayUrls

__all__ = ["get_file", "get_own_file"]

_FRESH_S: Final = 1.0  # how long a gateway believes what it knows of a file
_STALE_S: Final = 300.0  # and while the primary is away
_MAX_KEPT: Final = 50_000
_SIGNED_S: Final = 300  # longest life of a URL of a reference
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
    if info is None:
        raise missing
    if key.startswith("reference/") and not _is_signed(request, key):
        if info.owner_id != await _reader(request):
            raise missing
        url = await gateway.urls.url(key, lifetime_s=_SIGNED_S)
        return web.Response(status=302, headers={"Location": url, "Cache-Control": "private, no-store"})
    if not info.is_open and not _is_signed(request, key) and info.owner_id != await _reader(request):
        raise missing
    return await _serve(request, key, info)


async def get_own_file(request: web.Request, user: str, filename: str) -> web.StreamResponse:
    """A generated image of `user`, or a thumbnail of it, by its file name: its key begins with the user's own tag.

    Raises:
        NotFound: the user has no such file.
    """
    key = f"generated/{keys.owner_tag(user, owner_secret(request.app[GATEWAY].data))}/{filename}"
    info = await _info(request, key)
    if info is None or info.owner_id != user:
        raise NotFound("Image not found")
    return await _serve(request, key, info)


async def _serve(request: web.Request, key: str, info: FileInfo) -> web.StreamResponse:
    public = info.is_public and info.is_open
    headers = {
        "Cache-Control": "public, max-age=31536000, immutable" if public else _private(key, info),
        "Cross-Origin-Resource-Policy": "cross-origin" if public else "same-site",
    }
    try:
        return await deliver(request, request.app[GATEWAY].objects, key, headers)
    except ObjectMissing:
        raise NotFound("Image not found") from None


def _private(key: str, info: FileInfo) -> str:
    return "private, max-age=300" if info.is_open or key.startswith("reference/") else "private, no-store"


def _is_signed(request: web.Request, key: str) -> bool:
    """Whether the URL is one that we gave out for this very file, and has not ended."""
    urls, query = request.app[GATEWAY].urls, request.query
    return isinstance(urls, GatewayUrls) and urls.is_valid(key, query.get("expires", ""), query.get("signature", ""))


async def _info(request: web.Request, key: str) -> FileInfo | None:
    now = time.monotonic()
    kept = _kept.get(key)
    if kept is not None and now - kept[1] < _FRESH_S:
        return kept[0]
    file_of = references.file_of if key.startswith("reference/") else images.file_of
    try:
        info = await file_of(request.app[GATEWAY].fallback, key)
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
