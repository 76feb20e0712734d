"""Errors of the store as clients see them."""

from __future__ import annotations

import pytest

from gateway.errors import problem_of, problem_response
from store.errors import (
    FetchFailed,
    FetchRefused,
    FetchTooLarge,
    ObjectError,
    ObjectsRefused,
    ObjectsUnavailable,
    RangeOutside,
    ReservationEnded,
    StorageQuotaExceeded,
    StoreError,
)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ObjectsUnavailable("away"), 503, "objects_unavailable"),
        (RangeOutside("outside"), 416, "range_outside"),
        (FetchRefused("refused"), 422, "fetch_refused"),
        (FetchTooLarge("large"), 413, "too_large"),
        (FetchFailed("failed"), 502, "fetch_failed"),
        (ReservationEnded("late"), 503, "busy"),
        (StorageQuotaExceeded(1, used_bytes=2, reserved_bytes=3, limit_bytes=4), 413, "storage_quota_exceeded"),
    ],
)
def test_error_has_its_status_and_code(error: StoreError, status: int, code: str) -> None:
    """With what the error says; who may come back is told when."""
    assert problem_of(error)[:3] == (status, code, str(error))
    assert ("Retry-After" in problem_response(error, "r").headers) == (status == 503)


@pytest.mark.parametrize("error", [ObjectsRefused("the key AKID of bucket b is wrong"), ObjectError("/srv/x: denied")])
def test_our_own_fault_tells_nothing(error: ObjectError) -> None:
    """Neither a bucket's name nor a folder's: that is for the log."""
    assert problem_of(error) == (500, "internal", "something went wrong on our side", None)
