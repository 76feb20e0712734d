"""Errors as clients see them: RFC 9457 problems with a stable `code`.

Every problem also says `success: false` and `error`, which the first clients of this API read.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from aiohttp import web

from actors import CallError, Overloaded
from store.errors import (
    BrokenPicture,
    FetchError,
    FetchFailed,
    FetchTooLarge,
    InvalidQuery,
    InvalidValue,
    LimitReached,
    NotFound,
    ObjectsUnavailable,
    PictureError,
    PicturesBusy,
    PictureTooLarge,
    PrimaryUnavailable,
    RangeOutside,
    ReservationEnded,
    StorageQuotaExceeded,
    UnsupportedPicture,
)

__all__ = ["BadRequest", "Forbidden", "Problem", "TooMany", "Unauthorized", "problem_of", "problem_response"]


class Problem(Exception):
    """Base of what the gateway refuses by itself."""

    status = 500
    code = "internal"

    def __init__(self, detail: str, *, field: str | None = None) -> None:
        super().__init__(detail)
        self.field = field


class BadRequest(Problem):
    """Raised when a request is malformed; `field` names the part at fault."""

    status = 400
    code = "invalid_request"


class Unauthorized(Problem):
    """Raised when there is no valid credential."""

    status = 401
    code = "unauthorized"


class Forbidden(Problem):
    """Raised when the credential is valid and its role is not the path's."""

    status = 403
    code = "forbidden"


class TooLarge(Problem):
    """Raised when a body is over its limit."""

    status = 413
    code = "too_large"


class TooMany(Problem):
    """Raised when the caller, or this process, has as many of something as it may."""

    status = 429
    code = "too_many"


#: First match wins: subclasses before their bases.
_TABLE: Final[tuple[tuple[type[Exception], int, str], ...]] = (
    (InvalidQuery, 400, "invalid_request"),
    (InvalidValue, 400, "invalid_request"),
    (NotFound, 404, "not_found"),
    (LimitReached, 409, "limit_reached"),
    (UnsupportedPicture, 415, "unsupported_picture"),
    (BrokenPicture, 422, "broken_picture"),
    (PictureTooLarge, 413, "too_large"),
    (PictureError, 422, "broken_picture"),
    (PicturesBusy, 503, "busy"),
    (StorageQuotaExceeded, 413, "storage_quota_exceeded"),
    (ReservationEnded, 503, "busy"),
    (RangeOutside, 416, "range_outside"),
    # What it refuses us is our own fault: a 500, which is logged.
    (ObjectsUnavailable, 503, "objects_unavailable"),
    (FetchTooLarge, 413, "too_large"),
    (FetchFailed, 502, "fetch_failed"),
    (FetchError, 422, "fetch_refused"),
    (PrimaryUnavailable, 503, "primary_unavailable"),
    (Overloaded, 503, "overloaded"),
    (CallError, 503, "replica_unavailable"),
)
_TITLES: Final = {
    400: "Bad request", 401: "Unauthorized", 403: "Forbidden", 404: "Not found", 405: "Method not allowed",
    409: "Conflict", 413: "Too large", 415: "Unsupported media type", 416: "Range not satisfiable",
    422: "Unprocessable", 429: "Too many", 500: "Internal error", 502: "Bad gateway", 503: "Unavailable",
}  # fmt: skip
_RETRY_AFTER_S: Final = "1"


def problem_of(error: Exception) -> tuple[int, str, str, str | None]:
    """(status, code, detail, field) of an error; 500 without any detail for what we did not expect."""
    if isinstance(error, Problem):
        return error.status, error.code, str(error), error.field
    if isinstance(error, web.HTTPException):
        return error.status, _http_code(error), _http_detail(error), None
    for kind, status, code in _TABLE:
        if isinstance(error, kind):
            return status, code, str(error), getattr(error, "field", None)
    return 500, "internal", "something went wrong on our side", None


def _http_code(error: web.HTTPException) -> str:
    codes = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 415: "unsupported_media_type"}
    return codes.get(error.status, "invalid_request" if error.status < 500 else "internal")


def _http_detail(error: web.HTTPException) -> str:
    if error.status == 404:
        return "there is nothing at this address"
    if isinstance(error, web.HTTPMethodNotAllowed):
        return f"this address takes {', '.join(sorted(error.allowed_methods))}"
    return error.reason


def _printable(text: str) -> str:
    """`text` without what has no UTF-8 form: messages quote what came in."""
    return text.encode("utf-8", "replace").decode()


def problem_response(error: Exception, request_id: str) -> web.Response:
    """The response for an error."""
    status, code, detail, field = problem_of(error)
    detail = _printable(detail)
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": _TITLES.get(status, "Error"),
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": request_id,
        "success": False,
        "error": _TITLES[401] if status == 401 else detail,
    }
    if field is not None:
        body["field"] = _printable(field)
    if isinstance(error, StorageQuotaExceeded):
        body |= {name: getattr(error, name) for name in ("used_bytes", "reserved_bytes", "limit_bytes")}
    response = web.Response(
        status=status, body=msgspec.json.encode(body), content_type="application/problem+json",
        headers={"Cache-Control": "no-store"},
    )  # fmt: skip
    if status == 401:
        response.headers["WWW-Authenticate"] = 'Bearer realm="peruse"'
    if status in (429, 503):
        response.headers["Retry-After"] = _RETRY_AFTER_S
    if isinstance(error, web.HTTPMethodNotAllowed):
        response.headers["Allow"] = ", ".join(sorted(error.allowed_methods))
    return response
