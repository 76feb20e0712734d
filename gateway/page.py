"""The response of a page: its head is text that is made once per page, and a few lines that are made per reply.

Only for HTTP/1.1 with keep-alive, which is what clients in a hurry speak; others get an ordinary response with the
same headers. Measured with `make bench`.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import SERVER_SOFTWARE

from gateway.freshness import Read, Wish

__all__ = ["Asked", "PageResponse", "etag_of", "head_of", "page_response", "tags_match"]

_CONTENT_TYPE: Final = "application/json; charset=utf-8"
_CACHE_CONTROL: Final = "private, no-cache"
_VARY: Final = "Authorization, Cookie"


class Asked(NamedTuple):
    """What a request came to: whose page, which, how fresh, and the tags (If-None-Match) that the client has.
    `is_lasting`: the same bytes will always come to the same."""

    user: str
    query: bytes
    wish: Wish
    tags: str | None
    is_lasting: bool = True


def etag_of(read: Read) -> str:
    """The strong validator of an answer: position and query."""
    return f'"{read.at.epoch}.{read.at.version}.{read.hash}"'


def tags_match(given: str, etag: str) -> bool:
    """Weak comparison with each of a list of tags, as RFC 9110 says for If-None-Match."""
    tags = [tag.strip().removeprefix("W/") for tag in given.split(",")]
    return "*" in tags or etag in tags


def page_response(request: web.Request, read: Read, asked: Asked) -> web.StreamResponse:
    """The response for `read`, whose body is there; 304 without it when the client has it already."""
    assert read.body is not None
    is_known = asked.tags is not None and tags_match(asked.tags, etag_of(read))
    if request.keep_alive and request.version == HttpVersion11:
        return PageResponse(read, asked, is_known=is_known)
    headers = {
        "Cache-Control": _CACHE_CONTROL,
        "Vary": _VARY,
        "Peruse-Bookmark": str(read.at),
        "Peruse-Age": str(read.age_s),
        "Peruse-Source": read.source,
        "Peruse-Outcome": read.outcome,
        "ETag": etag_of(read),
    }
    if is_known:
        return web.Response(status=304, headers=headers)
    return web.Response(body=read.body, headers={**headers, "Content-Type": _CONTENT_TYPE})


class PageResponse(web.StreamResponse):
    """Writes its head and body in one go. What the middleware adds to `headers` goes out too."""

    def __init__(self, read: Read, asked: Asked, *, is_known: bool) -> None:
        super().__init__(status=304 if is_known else 200)
        self.read = read
        self.asked = asked
        self.headers["Vary"] = _VARY  # here, as the middleware may extend it

    async def prepare(self, request: Any) -> AbstractStreamWriter:
        self._req = request
        self._keep_alive = True
        writer: AbstractStreamWriter = request._payload_writer
        self._payload_writer = writer
        return writer

    async def write_eof(self, data: bytes = b"") -> None:
        if self._eof_sent:
            return
        self._eof_sent = True
        request, is_known = self._req, self.status == 304
        assert request is not None
        assert self.read.body is not None
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client is gone")
        added = "".join([f"{name}: {value}\r\n" for name, value in self.headers.items()])
        head = head_of(self.read, added, is_known=is_known)
        learn = getattr(request.protocol, "learn", None)
        if learn is not None and self.asked.is_lasting:
            learn(request, self)
        transport.writelines((head,) if is_known else (head, self.read.body))
        # A client that reads slowly waits here, with at most one page of it buffered.
        await request.writer.drain()


def head_of(read: Read, added: str, *, is_known: bool) -> bytes:
    """The head of a reply; `added` are whole lines."""
    page = read.page
    if page is None:
        fixed = _fixed_head(read, is_known=is_known)
    else:
        heads = page.heads
        if heads is None:
            page.heads = heads = (_fixed_head(read, is_known=False), _fixed_head(read, is_known=True))
        fixed = heads[is_known]
    return f"{fixed}Date: {rfc822_formatted_time()}\r\nPeruse-Age: {read.age_s}\r\n{added}\r\n".encode("latin-1")


def _fixed_head(read: Read, *, is_known: bool) -> str:
    assert read.body is not None
    first = (
        "HTTP/1.1 304 Not Modified\r\n"
        if is_known
        else f"HTTP/1.1 200 OK\r\nContent-Type: {_CONTENT_TYPE}\r\nContent-Length: {len(read.body)}\r\n"
    )
    position = f"{read.at.epoch}.{read.at.version}"
    return (
        f"{first}Cache-Control: {_CACHE_CONTROL}\r\nServer: {SERVER_SOFTWARE}\r\nPeruse-Bookmark: {position}\r\n"
        f"Peruse-Source: {read.source}\r\nPeruse-Outcome: {read.outcome}\r\n"
        f'ETag: "{position}.{read.hash}"\r\n'
    )
