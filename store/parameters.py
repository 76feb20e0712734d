"""Query parameters of a URL: each read by its type, and refused by its name."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final, TypeAlias

from store.errors import InvalidQuery

__all__ = [
    "DEFAULT_LIMIT",
    "Parameters",
    "choice",
    "day_or_time",
    "flag",
    "known",
    "limit",
    "page",
    "text",
    "uuid_text",
    "whole",
]

Parameters: TypeAlias = Mapping[str, str] | Sequence[tuple[str, str]]

MAX_LIMIT: Final = 200
DEFAULT_LIMIT: Final = 50
MAX_FILTER_CHARS: Final = 200

#: Beyond it, a time has no RFC 3339 form. In microseconds.
_END: Final = 253_402_300_800_000_000
_EPOCH_START: Final = datetime(1970, 1, 1, tzinfo=UTC)
#: RFC 3339: a day, or a moment with its offset. `fromisoformat` takes far more.
_DAY: Final = re.compile(r"\d{4}-\d{2}-\d{2}")
_MOMENT: Final = re.compile(r"\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(\.\d{1,6})?([Zz]|[+-]\d{2}:\d{2})")


def known(parameters: Parameters, names: tuple[str, ...]) -> dict[str, str]:
    """The parameters by name.

    Raises:
        InvalidQuery: one that is not of `names`, or is given twice.
    """
    pairs = list(parameters.items()) if isinstance(parameters, Mapping) else list(parameters)
    values: dict[str, str] = {}
    for name, value in pairs:
        if name not in names:
            raise InvalidQuery(name, f"unknown query parameter {name[:40]!r}; known are {', '.join(names)}")
        if name in values:
            raise InvalidQuery(name, f"query parameter {name!r} is given twice")
        values[name] = value
    return values


def page(values: Mapping[str, str]) -> dict[str, Any]:
    """What all lists take: `limit` and `sort`."""
    return {"limit": limit(values), "sort": choice(values, "sort", ("newest", "oldest")) or "newest"}


def limit(values: Mapping[str, str], *, most: int = MAX_LIMIT) -> int:
    """`limit`: rows on a page."""
    return whole(values, "limit", DEFAULT_LIMIT, most)


def whole(values: Mapping[str, str], name: str, default: int, most: int) -> int:
    """A whole number from 1 to `most`, which has up to four digits."""
    value = values.get(name)
    if value is None:
        return default
    if not (value.isascii() and value.isdigit() and len(value) <= 4 and 1 <= int(value) <= most):
        raise InvalidQuery(name, f"{name} must be a whole number from 1 to {most}, got {value[:20]!r}")
    return int(value)


def choice(values: Mapping[str, str], name: str, choices: tuple[str, ...]) -> str | None:
    """One of `choices`; None when it is not given."""
    value = values.get(name)
    if value is not None and value not in choices:
        raise InvalidQuery(name, f"{name} must be one of {', '.join(choices)}, got {value[:40]!r}")
    return value


def text(values: Mapping[str, str], name: str) -> str | None:
    """Any text that a column may hold; None when it is not given."""
    value = values.get(name)
    if value is not None and not (0 < len(value) <= MAX_FILTER_CHARS and "\0" not in value):
        raise InvalidQuery(name, f"{name} must have 1 to {MAX_FILTER_CHARS} characters and no NUL")
    if value is not None and any("\ud800" <= c <= "\udfff" for c in value):
        raise InvalidQuery(name, f"{name} is not valid Unicode")
    return value


def flag(values: Mapping[str, str], name: str) -> bool | None:
    """True or false; None when it is not given."""
    value = choice(values, name, ("true", "false", "1", "0"))
    return None if value is None else value in ("true", "1")


def uuid_text(values: Mapping[str, str], name: str) -> str | None:
    """A UUID in its one spelling; None when it is not given."""
    value = values.get(name)
    if value is None:
        return None
    try:
        if len(value) != 36:
            raise ValueError
        return str(uuid.UUID(value))
    except ValueError:
        raise InvalidQuery(name, f"{name} must be a UUID, got {value[:40]!r}") from None


def day_or_time(values: Mapping[str, str], name: str) -> int | None:
    """A day in UTC (its first moment) or a moment as RFC 3339 writes it, in microseconds; None when it is not given."""
    value = values.get(name)
    if value is None:
        return None
    try:
        if _DAY.fullmatch(value) and value.isascii():
            day = date.fromisoformat(value)
            moment = datetime(day.year, day.month, day.day, tzinfo=UTC)
        elif _MOMENT.fullmatch(value) and value.isascii():
            moment = datetime.fromisoformat(value.upper())
        else:
            raise ValueError
        microseconds = (moment - _EPOCH_START) // timedelta(microseconds=1)
        if not 0 <= microseconds < _END:
            raise ValueError
    except (ValueError, OverflowError):
        raise InvalidQuery(
            name, f"{name} must be a day or a time such as 2026-03-04 or 2026-03-04T12:00:00Z, got {value[:40]!r}"
        ) from None
    return microseconds
