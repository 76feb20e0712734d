"""The one middleware: request ids, errors as problems, counting, the access log, and CORS.

One, because each costs every read; its order of things is its source order.
"""

from __future__ import annotations

import itertools
import re
import secrets
import time
from typing import Final

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from gateway.errors import problem_of, problem_response
from gateway.metrics import GatewayMetrics

__all__ = ["allow_origin", "make_middleware"]

log = structlog.get_logger()

_SLOW_S: Final = 0.1
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_EXPOSED: Final = (
    "ETag, Location, Peruse-Age, Peruse-Bookmark, Peruse-Outcome, Peruse-Source, Retry-After, X-Request-Id"
)


def make_middleware(metrics: GatewayMetrics, *, origins: tuple[str, ...], access_log: str) -> Middleware:
    """The middleware of one gateway."""
    prefix = secrets.token_hex(4)
    numbers = itertools.count(1)
    log_all, log_none = access_log == "all", access_log == "off"

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.perf_counter()
        headers = request.headers
        given = headers.get("X-Request-Id")
        request_id = given if given and _REQUEST_ID.fullmatch(given) else f"{prefix}-{next(numbers):x}"
        response: web.StreamResponse
        try:
            if origins and request.method == "OPTIONS" and "Access-Control-Request-Method" in headers:
                response = web.Response(status=204)
            else:
                response = await handler(request)
        except Exception as error:
            if problem_of(error)[0] == 500:
                log.exception("request.failed", request_id=request_id, method=request.method, path=request.path)
            response = problem_response(error, request_id)
        if not response.prepared:
            response.headers["X-Request-Id"] = request_id
            if origins:
                allow_origin(request, response, origins)
        seconds = time.perf_counter() - started
        if seconds > _SLOW_S and response.content_type == "text/event-stream":
            seconds = 0.0  # how long somebody listened is nobody's waiting
        resource = request.match_info.route.resource
        route = "unknown" if resource is None else resource.canonical
        status = response.status
        metrics.saw_request(request.method, route, status, seconds)
        if log_all or (not log_none and (status >= 400 or seconds > _SLOW_S or request.method not in ("GET", "HEAD"))):
            log.info(
                "request", request_id=request_id, method=request.method, path=request.path, status=status,
                took_ms=round(seconds * 1000, 2),
            )  # fmt: skip
        return response

    return middleware


def allow_origin(request: web.Request, response: web.StreamResponse, origins: tuple[str, ...]) -> None:
    """Let the pages of `origins` read the response."""
    headers = response.headers
    headers["Vary"] = f"{headers['Vary']}, Origin" if "Vary" in headers else "Origin"
    origin = request.headers.get("Origin")
    if origin not in origins:
        return
    headers["Access-Control-Allow-Origin"] = origin
    headers["Access-Control-Expose-Headers"] = _EXPOSED
    if request.method == "OPTIONS":
        headers["Access-Control-Allow-Methods"] = "GET, POST, PATCH, DELETE"
        headers["Access-Control-Allow-Headers"] = (
            "Authorization, Content-Type, If-None-Match, Last-Event-ID, Peruse-Bookmark, Peruse-Max-Staleness, "
            "Peruse-Max-Wait, Peruse-On-Timeout, Peruse-Validate, X-Request-Id"
        )
        headers["Access-Control-Max-Age"] = "600"
