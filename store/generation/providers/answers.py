"""What a provider answered, and what its status means where the provider says no more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import msgspec

from store.generation.errors import (
    BadAnswer,
    GenerationError,
    InvalidRequest,
    ProviderAccount,
    ProviderFailed,
    RateLimited,
    Unavailable,
    UnknownOutcome,
)

__all__ = ["Answer", "Fault", "by_status"]

T = TypeVar("T")


class Fault(NamedTuple):
    """What an adapter reads from an error answer: the class, and the provider's own words."""

    error: type[GenerationError] | None
    """None: as the status says."""
    words: str = ""
    retry_after_s: float | None = None


class Answer(msgspec.Struct, frozen=True):
    """A whole answer within the size cap."""

    status: int
    headers: Mapping[str, str]
    """Keys in small letters."""
    body: bytes

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    def read(self, type: type[T]) -> T | None:
        """The JSON body as `type`, unknown fields ignored; None when it is something else."""
        try:
            return msgspec.json.decode(self.body, type=type, strict=False)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None


def by_status(status: int) -> type[GenerationError]:
    """The error of a status that is not 2xx."""
    match status:
        case 401 | 402 | 403:
            return ProviderAccount
        case 429 | 529:
            return RateLimited
        case 408 | 504 | 524:
            return UnknownOutcome
        case 502 | 503:
            return Unavailable
        case _ if 400 <= status < 500:
            return InvalidRequest
        case _ if status >= 500:
            return ProviderFailed
        case _:
            return BadAnswer
