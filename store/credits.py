"""Credits: how they are counted and written, grants, and the ledger as its owner sees it.

The primary counts in tenths of a credit; people and clients read credits with at most one decimal, and only this
module converts. What a job holds and gets back is written by the triggers of jobs.sql; nobody but `grant` adds a line.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Final, NamedTuple

import asyncpg
import msgspec

from store.errors import BudgetExceeded, InsufficientCredits, InvalidValue, StoreError
from store.pages import Page
from store.primary import Connection
from store.text import check_text
from store.users import ensure_user

__all__ = [
    "LedgerPlace",
    "Line",
    "as_json",
    "credits_text",
    "grant",
    "ledger",
    "refused",
    "tenths_of",
]

_MOST: Final = 1_000_000_000
_MAX_REASON_CHARS: Final = 500
_START: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)

_LINE: Final = "id, kind, amount_tenths, balance_tenths, job_id, reason, at"
_GRANT: Final = f"""
insert into credit_ledger (owner_id, kind, amount_tenths, reason) values ($1, 'grant', $2, $3) returning {_LINE}
"""
# $2, $3: where the last page ended.
_LEDGER: Final = f"""
select {_LINE} from credit_ledger where owner_id = $1 and ($2::timestamptz is null or (at, id) < ($2, $3::uuid))
order by at desc, id desc limit $4
"""


class Line(NamedTuple):
    """A line of the ledger: `amount_tenths` was added, `balance_tenths` was there after it."""

    id: uuid.UUID
    kind: str
    amount_tenths: int
    balance_tenths: int
    job_id: uuid.UUID | None
    reason: str
    at: datetime


class LedgerPlace(msgspec.Struct, frozen=True, array_like=True, tag="ledger"):
    """Where a page ended: microseconds, and the line."""

    at: Annotated[int, msgspec.Meta(ge=0, lt=253_402_300_800_000_000)]
    id: uuid.UUID

    @classmethod
    def of(cls, line: Line) -> LedgerPlace:
        return cls((line.at - _START) // _MICROSECOND, line.id)


def credits_text(tenths: int) -> str:
    """Credits as they are written: `7.5`, `-3`."""
    whole, tenth = divmod(abs(tenths), 10)
    return f"{'-' if tenths < 0 else ''}{whole}{f'.{tenth}' if tenth else ''}"


def as_json(tenths: int) -> msgspec.Raw:
    """The same as a number of a JSON document."""
    return msgspec.Raw(credits_text(tenths).encode())


def tenths_of(amount: Decimal, *, field: str = "credits") -> int:
    """Tenths of an amount of credits.

    Raises:
        InvalidValue: more than one decimal, or beyond a thousand million.
    """
    if not amount.is_finite() or abs(amount) > _MOST:
        raise InvalidValue(field, f"{field} must be a number from {-_MOST} to {_MOST}")
    tenths = amount * 10
    if tenths != int(tenths):
        raise InvalidValue(field, f"{field} has more than one decimal: a tenth of a credit is the least")
    return int(tenths)


async def grant(connection: Connection, user: str, tenths: int, reason: str = "") -> Line:
    """Add `tenths` to the user's balance, or take them back when negative; creates the user. Answers the new line.

    Raises:
        InvalidValue: it is nothing, or too much, or the reason is no text that can be kept.
        InsufficientCredits: the balance does not have what is to be taken back; nothing changed.
        NotFound: the user was erased a short while ago.
    """
    if tenths == 0:
        raise InvalidValue("credits", "credits must not be 0")
    check_text("reason", reason, max_chars=_MAX_REASON_CHARS)
    await ensure_user(connection, user)
    with refusals():
        return Line(*await connection.fetchrow(_GRANT, user, tenths, reason))


async def ledger(connection: Connection, user: str, page: Page[LedgerPlace]) -> tuple[list[Line], bool]:
    """One page of the user's lines, newest first, and whether another follows."""
    at = None if page.after is None else _START + page.after.at * _MICROSECOND
    row_id = None if page.after is None else page.after.id
    rows = await connection.fetch(_LEDGER, user, at, row_id, page.limit + 1)
    return [Line(*row) for row in rows[: page.limit]], len(rows) > page.limit


def refused(error: BaseException) -> StoreError | None:
    """What the primary's refusal of an amount means: InsufficientCredits or BudgetExceeded; None for other errors."""
    code = getattr(error, "sqlstate", None)
    if not (isinstance(error, asyncpg.PostgresError) and code in ("PE001", "PE002")):
        return None
    told = json.loads(error.detail)
    if code == "PE001":
        return InsufficientCredits(
            f"this takes {credits_text(told['needed'])} credits, and the balance is {credits_text(told['balance'])}",
            balance_tenths=told["balance"],
            needed_tenths=told["needed"],
        )
    period, budget, spent, needed = told["period"], told["budget"], told["spent"], told["needed"]
    return BudgetExceeded(
        f"this takes {credits_text(needed)} credits, and of the {period}'s budget of {credits_text(budget)} credits "
        f"{credits_text(spent)} are spent",
        period=period,
        budget_tenths=budget,
        spent_tenths=spent,
        needed_tenths=needed,
    )


@contextmanager
def refusals() -> Iterator[None]:
    """Raises what `refused` makes of the block's errors."""
    try:
        yield
    except asyncpg.PostgresError as error:
        meant = refused(error)
        if meant is None:
            raise
        raise meant from error
