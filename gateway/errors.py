"""Errors as clients see them: RFC 9457 problems with a stable `code`.

Every problem also says `success: false` and `error`, which the first clients of this API read.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from aiohttp import web

from actors import CallError, Overloaded
from store.credits import as_json, refused
from store.errors import (
    AlreadyEnded,
    BrokenPicture,
    BudgetExceeded,
    FetchError,
    FetchFailed,
    FetchTooLarge,
    InsufficientCredits,
    InvalidQuery,
    InvalidValue,
    KeyInFlight,
    KeyReused,
    LimitReached,
    NameTaken,
    NoProviderKey,
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
from store.generation.errors import BadCallback, GenerationError, InvalidRequest, PromptRequired

__all__ = [
    "BadRequest",
    "Forbidden",
    "NotGenerated",
    "Problem",
    "TooMany",
    "Unauthorized",
    "problem_of",
    "problem_response",
]


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


class NotGenerated(Problem):
    """Raised when somebody waited for pictures and there will be none; `code` is what the job ended in."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class TooMany(Problem):
    """Raised when the caller, or this process, has as many of something as it may."""

    status = 429
    code = "too_many"


#: First match wins: subclasses before their bases.
_TABLE: Final[tuple[tuple[type[Exception], int, str], ...]] = (
    (InvalidQuery, 400, "invalid_request"),
    (InvalidValue, 400, "invalid_request"),
    (NotFound, 404, "not_found"),
    (InvalidRequest, 400, "invalid_request"),
    (BadCallback, 400, "bad_callback"),
    (GenerationError, 503, "provider_unavailable"),  # a provider was to be asked, and did not answer
    (NoProviderKey, 409, "provider_key_required"),
    (AlreadyEnded, 409, "already_ended"),
    (KeyInFlight, 409, "idempotency_in_flight"),
    (KeyReused, 422, "idempotency_key_reused"),
    (NameTaken, 409, "name_taken"),
    (LimitReached, 409, "limit_reached"),
    (InsufficientCredits, 402, "insufficient_credits"),
    (BudgetExceeded, 402, "budget_exceeded"),
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
    400: "Bad request", 401: "Unauthorized", 402: "Payment required", 403: "Forbidden", 404: "Not found",
    405: "Method not allowed", 409: "Conflict", 413: "Too large", 415: "Unsupported media type",
    416: "Range not satisfiable", 422: "Unprocessable", 429: "Too many", 500: "Internal error", 502: "Bad gateway",
    503: "Unavailable",
}  # fmt: skip
_RETRY_AFTER_S: Final = "1"


def problem_of(error: Exception) -> tuple[int, str, str, str | None]:
    """(status, code, detail, field) of an error; 500 without any detail for what we did not expect."""
    error = refused(error) or error
    if isinstance(error, Problem):
        return error.status, error.code, str(error), error.field
    if isinstance(error, web.HTTPException):
        return error.status, _http_code(error), _http_detail(error), None
    for kind, status, code in _TABLE:
        if isinstance(error, kind):
            field = getattr(error, "field", None)
            is_unknown = isinstance(error, InvalidRequest) and not field  # only the provider knows it
            return status, code, str(error), None if is_unknown else field
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


def _members(error: Exception) -> dict[str, Any]:
    """What a client can count with."""
    match error:
        case StorageQuotaExceeded():
            return {name: getattr(error, name) for name in ("used_bytes", "reserved_bytes", "limit_bytes")}
        case InsufficientCredits():
            return {"balance_credits": as_json(error.balance_tenths), "cost_credits": as_json(error.needed_tenths)}
        case BudgetExceeded():
            return {
                "period": error.period,
                "budget_credits": as_json(error.budget_tenths),
                "spent_credits": as_json(error.spent_tenths),
                "cost_credits": as_json(error.needed_tenths),
            }
    return {}


def _sentence(error: Exception, status: int, detail: str) -> str:
    """The member `error`: what the documents say where they say something."""
    if status == 401:
        return _TITLES[401]
    if isinstance(error, PromptRequired):
        return error.error
    return GenerationError.error if isinstance(error, NotGenerated) else detail


def problem_response(error: Exception, request_id: str) -> web.Response:
    """The response for an error."""
    error = refused(error) or error
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
        "error": _sentence(error, status, detail),
    }
    if field is not None:
        body["field"] = _printable(field)
    body |= _members(error)
    response = web.Response(
        status=status, body=msgspec.json.encode(body), content_type="application/problem+json",
        headers={"Cache-Control": "no-store"},
    )  # fmt: skip
    if status == 401:
        response.headers["WWW-Authenticate"] = 'Bearer realm="peruse"'
    if status in (429, 503) or isinstance(error, KeyInFlight):
        response.headers["Retry-After"] = _RETRY_AFTER_S
    if isinstance(error, web.HTTPMethodNotAllowed):
        response.headers["Allow"] = ", ".join(sorted(error.allowed_methods))
    return response
