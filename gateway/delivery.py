"""How an object becomes a response: whole or in part, once per client, as something that no browser runs.

An object never changes, so its file name is its validator and the time in its key its age: a client that has it
already costs no call of the object store.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any, Final

import structlog
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from gateway.page import tags_match
from store.errors import ObjectError, RangeOutside
from store.objects import keys
from store.objects.interface import Objects, OpenObject

__all__ = ["deliver"]

log = structlog.get_logger()

#: Longest time in which a client takes no chunk at all.
_WRITE_S: Final = 60.0


async def deliver(request: web.Request, objects: Objects, key: str, headers: dict[str, str]) -> web.StreamResponse:
    """The response for a GET or HEAD of the object, with `headers` added.

    Raises:
        ObjectMissing: no object has this key.
        ObjectError: it cannot be read now.
    """
    filename = key.rpartition("/")[2]
    created_at = datetime.fromtimestamp(int(filename[:13]) // 1000, UTC)
    headers = {
        **headers,
        "Content-Type": keys.content_type_of(key),
        "ETag": f'"{filename}"',
        "Last-Modified": format_datetime(created_at, usegmt=True),
        "Accept-Ranges": "bytes",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "Referrer-Policy": "no-referrer",
    }
    if _is_known(request, headers["ETag"], created_at):
        return web.Response(status=304, headers=headers)
    if request.method == "HEAD":
        info = await objects.head(key)
        return web.Response(headers={**headers, "Content-Length": str(info.size_bytes)})
    try:
        start, end = await _range(request, objects, key, headers)
        opened = await _Delivery.open(objects, key, start, end)
    except RangeOutside:
        size = (await objects.head(key)).size_bytes
        return web.Response(status=416, headers={"Content-Range": f"bytes */{size}", "Cache-Control": "no-store"})
    if (start, end) != (0, None) or _is_partial(request, headers):
        size = opened.object.info.size_bytes
        headers["Content-Range"] = f"bytes {opened.object.start}-{opened.object.end - 1}/{size}"
        opened.set_status(206)
    opened.headers.update(headers)
    return opened


class _Delivery(web.StreamResponse):
    """Sends an object that is open already, and its first chunk here: what goes wrong until then is an error with a
    status of its own. Later the connection ends early, which the client can tell from the length it was promised."""

    def __init__(self, opened: OpenObject, first: bytes, stack: AsyncExitStack) -> None:
        super().__init__()
        self.content_length = opened.end - opened.start
        self.object = opened
        self._first = first
        self._stack = stack

    @classmethod
    async def open(cls, objects: Objects, key: str, start: int, end: int | None) -> _Delivery:
        async with AsyncExitStack() as stack:
            opened = await stack.enter_async_context(objects.open(key, start=start, end=end))
            first = await anext(opened.chunks, b"")
            return cls(opened, first, stack.pop_all())
        raise AssertionError("unreachable")

    async def prepare(self, request: Any) -> AbstractStreamWriter | None:
        try:
            return await super().prepare(request)
        except BaseException:
            await self._stack.aclose()
            raise

    async def write_eof(self, data: bytes = b"") -> None:
        if self._eof_sent:
            return
        request = self._req
        assert request is not None
        try:
            async with self._stack:
                await self._send(self._first)
                async for chunk in self.object.chunks:
                    await self._send(chunk)
            await super().write_eof()
        except (ObjectError, ConnectionError, TimeoutError) as error:
            if isinstance(error, ObjectError):
                log.warning("object.cut_off", key=self.object.info.key, error=str(error))
            self._eof_sent = True
            if request.transport is not None:
                request.transport.abort()

    async def _send(self, chunk: bytes) -> None:
        async with asyncio.timeout(_WRITE_S):
            await self.write(chunk)


def _is_known(request: web.Request, etag: str, created_at: datetime) -> bool:
    tags = request.headers.get("If-None-Match")
    if tags is not None:  # then the time does not count
        return tags_match(tags, etag)
    since = request.if_modified_since
    return since is not None and created_at <= since


def _is_partial(request: web.Request, headers: dict[str, str]) -> bool:
    """Whether a part is asked for, of this very object."""
    if "Range" not in request.headers:
        return False
    condition = request.headers.get("If-Range")
    return condition is None or condition in (headers["ETag"], headers["Last-Modified"])


async def _range(request: web.Request, objects: Objects, key: str, headers: dict[str, str]) -> tuple[int, int | None]:
    """The bytes that are asked for, half open; from 0 up to None: all.

    Raises:
        RangeOutside: there are no such bytes, or this is no single range of bytes.
    """
    if not _is_partial(request, headers):
        return 0, None
    try:
        asked = request.http_range
    except ValueError:
        raise RangeOutside(f"{request.headers['Range'][:40]!r} is not one range of bytes") from None
    if asked.start is not None and asked.start < 0:  # the last so many
        size = (await objects.head(key)).size_bytes
        return max(0, size + asked.start), size
    return asked.start or 0, asked.stop
