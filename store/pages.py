"""Pages of the primary's own lists: how many rows, and from where. A token is base64url of where the last page ended;
it is unsigned, for the owner filter always applies."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Final, Generic, NamedTuple, TypeVar

import msgspec

from store.errors import InvalidQuery

__all__ = ["Page", "page_token", "parse_page"]

MAX_LIMIT: Final = 200
DEFAULT_LIMIT: Final = 50
_MAX_TOKEN_CHARS: Final = 2048

P = TypeVar("P", bound=msgspec.Struct)


class Page(NamedTuple, Generic[P]):
    """At most `limit` rows behind `after`; None: from the beginning."""

    limit: int = DEFAULT_LIMIT
    after: P | None = None


def parse_page(parameters: Sequence[tuple[str, str]], place: type[P]) -> Page[P]:
    """The page that a URL's parameters ask for; `place` is a tagged struct, so that a token fits one list only.

    Raises:
        InvalidQuery: an unknown, repeated or malformed parameter; names it.
    """
    values: dict[str, str] = {}
    for name, value in parameters:
        if name not in ("limit", "page_token"):
            raise InvalidQuery(name, f"unknown query parameter {name[:40]!r}; known are limit, page_token")
        if name in values:
            raise InvalidQuery(name, f"query parameter {name!r} is given twice")
        values[name] = value
    limit, token = values.get("limit", str(DEFAULT_LIMIT)), values.get("page_token")
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 4 and 1 <= int(limit) <= MAX_LIMIT):
        raise InvalidQuery("limit", f"limit must be a whole number from 1 to {MAX_LIMIT}, got {limit[:20]!r}")
    return Page(int(limit), None if token is None else _read(token, place))


def page_token(last: msgspec.Struct) -> str:
    """The token of the page after the one that ended at `last`."""
    return base64.urlsafe_b64encode(msgspec.json.encode(last)).rstrip(b"=").decode()


def _read(token: str, place: type[P]) -> P:
    wrong = InvalidQuery("page_token", "page_token is not one that this list gave out")
    if len(token) > _MAX_TOKEN_CHARS or not token.isascii():
        raise wrong
    try:
        text = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        found = msgspec.json.decode(text, type=place)
    except (binascii.Error, msgspec.DecodeError, UnicodeDecodeError, ValueError, RecursionError):
        raise wrong from None
    if any(isinstance(value, str) and "\0" in value for value in msgspec.structs.astuple(found)):
        raise wrong
    return found
