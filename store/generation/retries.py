"""Retries: which errors are tried again, and when. Pure: the runner counts, waits and calls.

A call is repeated after 2, 4 and 8 s, at most three times. An unknown outcome may have been paid for, so it is repeated
at most once per job, whatever else happened.
"""

from __future__ import annotations

import math
from email.utils import parsedate_to_datetime
from random import Random
from typing import Final

import msgspec

from store.generation.errors import GenerationError, ProviderFailed, RateLimited, Unavailable, UnknownOutcome

__all__ = ["Policy", "retry_after", "retry_in"]

_REPEATABLE: Final = (RateLimited, Unavailable, ProviderFailed, UnknownOutcome)


class Policy(msgspec.Struct, frozen=True):
    """How patient we are. Seconds."""

    waits_s: tuple[float, ...] = (2.0, 4.0, 8.0)
    """Before the first, second … repetition; their number is the most repetitions."""
    jitter: float = 0.25
    """Up to this share is added to a wait, so that calls that failed together do not come back together."""
    most_retry_after_s: float = 60.0
    """A provider that asks for more is asked again after this: the job's owner is waiting."""
    max_unknown: int = 1
    """Repetitions after an unknown outcome."""


def retry_in(
    error: GenerationError, *, repeated: int, unknown: int, dice: Random, policy: Policy | None = None
) -> float | None:
    """Seconds until the call is repeated; None: give up.

    `repeated`: how often this call was repeated already. `unknown`: how many unknown outcomes it had before this one.
    The wait is never shorter than the schedule's, nor than what the provider asked for within the cap.
    """
    policy = policy or Policy()
    if not isinstance(error, _REPEATABLE) or repeated >= len(policy.waits_s):
        return None
    if isinstance(error, UnknownOutcome) and unknown >= policy.max_unknown:
        return None
    asked = min(error.retry_after_s or 0.0, policy.most_retry_after_s)
    return max(policy.waits_s[repeated], asked) * (1 + policy.jitter * dice.random())


def retry_after(value: str | None, *, now_s: float) -> float | None:
    """Seconds from a Retry-After header, a number or a date; None when it is absent or makes no sense."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - now_s
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
