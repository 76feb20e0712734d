"""Text: what Postgres can keep, checked before it is sent so that a refusal names the field; times, exact numbers."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import msgspec

from store.errors import InvalidValue

__all__ = ["check_text", "exact", "time_text"]


def check_text(name: str, value: str, *, max_chars: int | None = None, max_bytes: int | None = None) -> None:
    """Refuse what a text column cannot hold, or should not.

    Raises:
        InvalidValue: names the field.
    """
    if "\0" in value:
        raise InvalidValue(name, f"{name} must not hold a NUL")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise InvalidValue(name, f"{name} is not valid Unicode") from None
    if max_bytes is not None and size > max_bytes:
        raise InvalidValue(name, f"{name} has {size} bytes, the most is {max_bytes}")
    if max_chars is not None and len(value) > max_chars:
        raise InvalidValue(name, f"{name} has {len(value)} characters, the most is {max_chars}")


def time_text(moment: datetime) -> str:
    """RFC 3339 in UTC with six digits, as documents have it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def exact(amount: Decimal) -> msgspec.Raw:
    """A number of a JSON document with all its digits: sums of money are neither floats nor texts."""
    return msgspec.Raw(f"{amount:f}".encode())
