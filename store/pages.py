"""Pages of the primary's own lists: how many rows, and from where. A token is base64url of where the last page ended;
it is unsigned, for the owner filter always applies."""

from __future__ import annotations

import base64
import binascii
from typing import Final, Generic, NamedTuple, TypeVar

import msgspec

from store import parameters as read
from store.errors import InvalidQuery
from store.parameters import Parameters

__all__ = ["Page", "page_token", "parse_page", "read_token"]

_MAX_TOKEN_CHARS: Final = 2048

P = TypeVar("P", bound=msgspec.Struct)


class Page(NamedTuple, Generic[P]):
    """At most `limit` rows behind `after`; None: from the beginning."""

    limit: int = read.DEFAULT_LIMIT
    after: P | None = None


def parse_page(parameters: Parameters, place: type[P]) -> Page[P]:
    """The page that a URL's parameters ask for; `place` is a tagged struct, so that a token fits one list only.

    Raises:
        InvalidQuery: an unknown, repeated or malformed parameter; names it.
    """
    values = read.known(parameters, ("limit", "page_token"))
    token = values.get("page_token")
    return Page(read.limit(values), None if token is None else read_token(token, place))


def page_token(last: msgspec.Struct) -> str:
    """The token of the page after the one that ended at `last`."""
    return base64.urlsafe_b64encode(msgspec.json.encode(last)).rstrip(b"=").decode()


def read_token(token: str, place: type[P], *, max_chars: int = _MAX_TOKEN_CHARS) -> P:
    """Where the page ended that `token` follows.

    Raises:
        InvalidQuery: this list did not give it out.
    """
    wrong = InvalidQuery("page_token", "page_token is not one that this list gave out")
    if len(token) > max_chars or not token.isascii():
        raise wrong
    try:
        text = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        found = msgspec.json.decode(text, type=place)
    except (binascii.Error, msgspec.DecodeError, UnicodeDecodeError, ValueError, RecursionError):
        raise wrong from None
    if any(isinstance(value, str) and "\0" in value for value in msgspec.structs.astuple(found)):
        raise wrong
    return found
