"""Which errors are tried again, how often, and when."""

from __future__ import annotations

import inspect
import pickle
from datetime import UTC, datetime
from email.utils import format_datetime
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.errors import StoreError
from store.generation import errors
from store.generation.errors import GenerationError
from store.generation.retries import Policy, retry_after, retry_in

REPEATABLE = {
    errors.RateLimited, errors.Unavailable, errors.ProviderFailed,
    errors.UnknownOutcome, errors.TimedOut, errors.BadAnswer,
}  # fmt: skip
EVERY = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, GenerationError)]


class NoDice(Random):
    def random(self) -> float:
        return 0.0


def waits(error: GenerationError, *, dice: Random | None = None, policy: Policy | None = None) -> list[float]:
    """What a runner would wait if the same error came again and again."""
    found: list[float] = []
    unknown = 0
    while (
        wait := retry_in(error, repeated=len(found), unknown=unknown, dice=dice or NoDice(), policy=policy)
    ) is not None:
        found.append(wait)
        unknown += isinstance(error, errors.UnknownOutcome)
    return found


@pytest.mark.parametrize("kind", [errors.RateLimited, errors.Unavailable, errors.ProviderFailed])
def test_three_repetitions_after_2_4_and_8_seconds(kind: type[GenerationError]) -> None:
    """mission: 43, 44, 45, 47, 48"""
    assert waits(kind("x")) == [2.0, 4.0, 8.0]


@pytest.mark.parametrize("kind", [errors.UnknownOutcome, errors.TimedOut, errors.BadAnswer])
def test_an_unknown_outcome_is_repeated_once(kind: type[GenerationError]) -> None:
    """It may have been paid for.

    mission: 46
    """
    assert waits(kind("x")) == [2.0]
    assert retry_in(kind("x"), repeated=1, unknown=0, dice=NoDice()) == 4.0
    assert waits(kind("x"), policy=Policy(max_unknown=0)) == []


@pytest.mark.parametrize("kind", sorted(set(EVERY) - REPEATABLE, key=lambda kind: kind.__name__))
def test_everything_else_is_never_repeated(kind: type[GenerationError]) -> None:
    """mission: 49, 50"""
    assert waits(kind("x")) == []


@given(seed=st.integers())
def test_jitter_only_adds(seed: int) -> None:
    """mission: 44"""
    found = waits(errors.Unavailable("x"), dice=Random(seed))

    assert all(base <= wait <= base * 1.25 for base, wait in zip((2, 4, 8), found, strict=True))
    assert found != waits(errors.Unavailable("x"), dice=Random(seed + 1))


def test_a_provider_that_says_when_is_heard_up_to_a_minute() -> None:
    """mission: 48"""
    assert waits(errors.RateLimited("x", retry_after_s=3)) == [3.0, 4.0, 8.0]
    assert waits(errors.Unavailable("x", retry_after_s=30)) == [30.0] * 3
    assert waits(errors.RateLimited("x", retry_after_s=86_400)) == [60.0] * 3
    assert waits(errors.RateLimited("x", retry_after_s=0)) == [2.0, 4.0, 8.0]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None), ("", None), ("7", 7.0), ("0", 0.0), ("1.5", 1.5), ("-4", 0.0),
        ("inf", None), ("nan", None), ("soon", None), ("Sat, 99 Nov 2026 00:00:00 GMT", None),
    ],
)  # fmt: skip
def test_retry_after_is_a_number_of_seconds(value: str | None, seconds: float | None) -> None:
    assert retry_after(value, now_s=0.0) == seconds


def test_retry_after_may_be_a_date() -> None:
    at = datetime(2026, 11, 21, 5, 0, 30, tzinfo=UTC)

    assert retry_after(format_datetime(at, usegmt=True), now_s=at.timestamp() - 30) == 30.0
    assert retry_after(format_datetime(at, usegmt=True), now_s=at.timestamp() + 30) == 0.0


@pytest.mark.parametrize("kind", EVERY)
def test_every_error_has_its_code_and_words_for_people(kind: type[GenerationError]) -> None:
    """mission: 65"""
    error = kind("x")

    assert isinstance(error, StoreError)
    assert error.code.replace("_", "").isalpha()
    assert error.error in ("Failed to generate image", "Prompt is required")
    assert error.advice.endswith(".")


def test_codes_are_told_apart() -> None:
    """But of kinds that a client need not tell from their parents."""
    codes = [kind.code for kind in EVERY if kind not in (errors.PromptRequired, errors.Moderated)]

    assert len(set(codes)) == len(codes)


def test_an_error_travels_between_processes() -> None:
    error = errors.RateLimited("x", provider="fal", model="m", status=429, retry_after_s=3)

    found = pickle.loads(pickle.dumps(error))

    assert (str(found), found.provider, found.model, found.status, found.retry_after_s) == ("x", "fal", "m", 429, 3)
