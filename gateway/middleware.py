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

from gateway.errors import Problem, problem_of, problem_response
from gateway.metrics import GatewayMetrics

__all__ = ["WAITED_S", "RequestLog", "allow_origin", "make_middleware"]

log = structlog.get_logger()

_SLOW_S: Final = 0.1
#: How long a request waited because its client wished to: nobody's slowness.
WAITED_S: Final = web.RequestKey("waited_s", float)
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_EXPOSED: Final = (
    "ETag, Idempotency-Replayed, Location, Peruse-Age, Peruse-Bookmark, Peruse-Outcome, Peruse-Source, "
    "Preference-Applied, Retry-After, X-Request-Id"
)


class RequestLog:
    """Ids of requests, and what is counted and written down about each."""

    def __init__(self, metrics: GatewayMetrics, *, access_log: str) -> None:
        self._metrics = metrics
        self._prefix = secrets.token_hex(4)
        self._numbers = itertools.count(1)
        self._log_all, self._log_none = access_log == "all", access_log == "off"

    def given_id(self, given: str | None) -> str | None:
        """The id that the client gave its request (X-Request-Id), if it can be one."""
        return given if given and _REQUEST_ID.fullmatch(given) else None

    def next_id(self) -> str:
        return f"{self._prefix}-{next(self._numbers):x}"

    def answered(self, method: str, path: str, route: str, status: int, request_id: str, seconds: float) -> None:
        """A request was answered, which took so long."""
        self._metrics.saw_request(method, route, status, seconds)
        if self._log_all or (
            not self._log_none and (status >= 400 or seconds > _SLOW_S or method not in ("GET", "HEAD"))
        ):
            log.info(
                "request", request_id=request_id, method=method, path=path, status=status,
                took_ms=round(seconds * 1000, 2),
            )  # fmt: skip


def make_middleware(requests: RequestLog, *, origins: tuple[str, ...]) -> Middleware:
    """The middleware of one gateway."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.perf_counter()
        headers = request.headers
        request_id = requests.given_id(headers.get("X-Request-Id")) or requests.next_id()
        resource = request.match_info.route.resource
        route = "unknown" if resource is None else resource.canonical
        # The address of a callback is its secret.
        path = route if route.startswith("/callbacks/") else request.path
        response: web.StreamResponse
        try:
            if origins and request.method == "OPTIONS" and "Access-Control-Request-Method" in headers:
                response = web.Response(status=204)
            else:
                response = await handler(request)
        except Exception as error:
            if problem_of(error)[0] == 500 and not isinstance(error, Problem):
                log.exception("request.failed", request_id=request_id, method=request.method, path=path)
            response = problem_response(error, request_id)
        if not response.prepared:
            response.headers["X-Request-Id"] = request_id
            if origins:
                allow_origin(request, response, origins)
        seconds = time.perf_counter() - started - request.get(WAITED_S, 0.0)
        if seconds > _SLOW_S and response.content_type == "text/event-stream":
            seconds = 0.0  # how long somebody listened is nobody's waiting
        requests.answered(request.method, path, route, response.status, request_id, seconds)
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
        headers["Access-Control-Allow-Methods"] = "GET, POST, PUT, PATCH, DELETE"
        headers["Access-Control-Allow-Headers"] = (
            "Authorization, Content-Type, Idempotency-Key, If-None-Match, Last-Event-ID, Peruse-Bookmark, "
            "Peruse-Max-Staleness, Peruse-Max-Wait, Peruse-On-Timeout, Peruse-Validate, Prefer, X-Request-Id"
        )
        headers["Access-Control-Max-Age"] = "600"
