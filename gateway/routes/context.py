"""What every route uses: the gateway, who is asking, and how a read becomes a response."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler
from multidict import istr

from actors import Terms
from gateway.auth import Identity, need
from gateway.errors import BadRequest
from gateway.freshness import ANY, Wish
from gateway.page import Asked, page_response
from store.epoch import Bookmark
from store.errors import InvalidQuery, NotFound
from store.gallery import Query, decode_query, encode_query, parse_gallery_query, parse_references_query
from store.ids import is_user_id
from store.job_lists import parse_jobs_query
from store.lists import OneQuery
from store.parameters import Parameters
from store.usage import AccountQuery, parse_stats_query

if TYPE_CHECKING:
    from gateway.app import Gateway

__all__ = [
    "GATEWAY",
    "account_response",
    "admitted",
    "answered",
    "caller",
    "flag",
    "gallery_query",
    "generations_query",
    "only_parameters",
    "prompts_query",
    "read_response",
    "references_query",
    "service_for",
    "stats_response",
    "written",
]

GATEWAY: web.AppKey[Gateway] = web.AppKey("gateway")

#: Longest Peruse-Max-Wait, in milliseconds.
MAX_WAIT_MS: Final = 10_000
BOOKMARK_COOKIE: Final = "peruse_bookmark"
_BOOKMARK_COOKIE_S: Final = 300
_WISHES: Final = frozenset(
    map(
        istr,
        (
            "Peruse-Bookmark",
            "Peruse-Max-Wait",
            "Peruse-On-Timeout",
            "Peruse-Max-Staleness",
            "Peruse-Validate",
            "Cookie",
        ),
    )
)
_MAX_QUERIES: Final = 20_000
#: Parser and query string → encoded query. Parsing costs more than all the rest of a kept page's read.
_queries: dict[tuple[Callable[[Parameters], Query], str], bytes] = {}


def admitted(handler: Handler) -> Handler:
    """The handler of an upload, which is refused before its body is read when there is no room for it."""

    async def admit(request: web.Request) -> web.StreamResponse:
        with request.app[GATEWAY].upload_room.hold(request.content_length):
            return await handler(request)

    return admit


async def caller(request: web.Request) -> Identity:
    """The user who asks.

    Raises:
        Unauthorized: no valid credential.
        Forbidden: a token of another role.
    """
    auth = request.app[GATEWAY].auth
    header = request.headers.get("Authorization")
    return need(auth.known(header) or await auth.identify(header), "user")


async def service_for(request: web.Request) -> str:
    """The user of the path, for whom a service may act.

    Raises:
        Unauthorized: no valid credential.
        Forbidden: not a service's.
        BadRequest: the path's user is not a user id.
    """
    auth = request.app[GATEWAY].auth
    header = request.headers.get("Authorization")
    need(auth.known(header) or await auth.identify(header), "service", "admin")
    user = request.match_info["user"]
    if not is_user_id(user) or user.startswith("~"):
        raise BadRequest(f"{user[:40]!r} is not a user id", field="user")
    return user


def _list_query(parse: Callable[[Parameters], Query], request: web.Request) -> bytes:
    """The encoded query of a URL that lists something.

    Raises:
        InvalidQuery: names the parameter.
    """
    string = request.raw_path.partition("?")[2]
    encoded = _queries.get((parse, string))
    if encoded is None:
        encoded = _encoded(parse, request)
        if len(_queries) >= _MAX_QUERIES:
            _queries.clear()
        if len(string) <= 512:
            _queries[parse, string] = encoded
    return encoded


def _encoded(parse: Callable[[Parameters], Query], request: web.Request) -> bytes:
    try:
        return encode_query(parse(list(request.query.items())))
    except UnicodeEncodeError:
        raise InvalidQuery("query", "the query string is not valid UTF-8") from None


gallery_query = partial(_list_query, parse_gallery_query)
references_query = partial(_list_query, parse_references_query)
prompts_query = partial(_list_query, partial(parse_jobs_query, called="prompts"))
generations_query = partial(_list_query, partial(parse_jobs_query, called="generations"))


def only_parameters(request: web.Request, *names: str) -> None:
    """Refuse query parameters other than `names`.

    Raises:
        InvalidQuery: names the first of them.
    """
    for name in request.query:
        if name not in names:
            known = ", ".join(names) or "none"
            raise InvalidQuery(name, f"unknown query parameter {name[:40]!r}; this address takes {known}")


def flag(request: web.Request, name: str) -> bool:
    """Whether the query parameter `name`, the only one that is known, is 1.

    Raises:
        InvalidQuery: names another one, or this one when it is neither 1 nor 0.
    """
    only_parameters(request, name)
    value = request.query.getall(name, ["0"])
    if value not in (["0"], ["1"]):
        raise InvalidQuery(name, f"{name} must be 1 or 0")
    return value == ["1"]


def wish_of(request: web.Request) -> Wish:
    """How fresh the reader wants the answer to be.

    Raises:
        BadRequest: a header that cannot be meant; names it.
    """
    headers = request.headers
    text = headers.get("Peruse-Bookmark")
    if text is None and "Cookie" in headers:
        bookmark = Bookmark.parse(request.cookies.get(BOOKMARK_COOKIE, ""))  # a stale or foreign one is nothing
    else:
        bookmark = None if text is None else Bookmark.parse(text)
    if text is not None and bookmark is None:
        raise BadRequest("Peruse-Bookmark must be epoch.version as an earlier reply gave it", field="Peruse-Bookmark")
    on_timeout = headers.get("Peruse-On-Timeout", "primary")
    if on_timeout not in ("stale", "primary", "error"):
        raise BadRequest("Peruse-On-Timeout must be stale, primary or error", field="Peruse-On-Timeout")
    validate = headers.get("Peruse-Validate", "0")
    if validate not in ("0", "1"):
        raise BadRequest("Peruse-Validate must be 1 or 0", field="Peruse-Validate")
    terms = Terms(
        max_wait_ms=_whole(headers, "Peruse-Max-Wait", 250, MAX_WAIT_MS),
        max_age_s=_whole(headers, "Peruse-Max-Staleness", -1, 86_400),
        validate=validate == "1",
        stale_ok=on_timeout == "stale",
    )
    return Wish(bookmark, terms, or_primary=on_timeout == "primary")


def _whole(headers: Mapping[str, str], name: str, default: int, most: int) -> int:
    text = headers.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and int(text) <= most):
        raise BadRequest(f"{name} must be a whole number from 0 to {most}", field=name)
    return int(text)


async def read_response(
    request: web.Request, user: str, encoded: bytes, *, is_lasting: bool = True
) -> web.StreamResponse:
    """Read, and say how fresh it is. `is_lasting`: the same request will always come to this query.

    Raises:
        NotFound: the query names a row that is not there.
        PrimaryUnavailable: nobody can answer.
    """
    gateway = request.app[GATEWAY]
    headers = request.headers
    wish = ANY if _WISHES.isdisjoint(headers) else wish_of(request)
    read = gateway.reads.glance(user, encoded, wish) or await gateway.reads.read(user, encoded, wish)
    gateway.metrics.saw_read(read.source, read.outcome)
    if read.body is None:
        query = decode_query(encoded)
        assert isinstance(query, OneQuery)
        raise NotFound(f"{query.noun} not found")
    return page_response(request, read, Asked(user, encoded, wish, headers.get("If-None-Match"), is_lasting))


async def stats_response(request: web.Request, user: str) -> web.StreamResponse:
    """The user's usage, as the URL asks for it: its days end with today.

    Raises:
        InvalidQuery: names the parameter.
    """
    today = datetime.now(UTC).date()
    encoded = _encoded(partial(parse_stats_query, today=today), request)
    return await read_response(request, user, encoded, is_lasting=False)


async def account_response(request: web.Request, user: str) -> web.StreamResponse:
    """The user's account.

    Raises:
        InvalidQuery: names the parameter.
    """
    only_parameters(request)
    return await read_response(request, user, encode_query(AccountQuery(request.app[GATEWAY].storage_limits)))


def answered(members: Mapping[str, Any]) -> web.Response:
    """The response to a read of the primary: what was found, and nobody keeps it."""
    body = msgspec.json.encode({"success": True, **members})
    return web.Response(
        body=body, content_type="application/json", charset="utf-8", headers={"Cache-Control": "no-store"}
    )


def written(body: bytes, bookmark: Bookmark, *, status: int = 200) -> web.Response:
    """The response to a write: where the writer has to be read at to see it; browsers keep it in a cookie."""
    response = web.Response(
        status=status, body=body, content_type="application/json", charset="utf-8",
        headers={"Peruse-Bookmark": str(bookmark), "Cache-Control": "no-store"},
    )  # fmt: skip
    response.set_cookie(
        BOOKMARK_COOKIE, str(bookmark), max_age=_BOOKMARK_COOKIE_S, httponly=True, samesite="Lax", path="/"
    )
    return response
