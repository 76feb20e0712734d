"""What operators do about money: one set of answers for the commands and for /admin."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

import msgspec

from store import accounts, credits, money_audit
from store.credits import LedgerPlace, Line, as_json
from store.epoch import Bookmark
from store.errors import InvalidValue, NotFound
from store.ids import is_user_id
from store.pages import Page, page_token
from store.primary import Connection, Primary
from store.text import time_text

__all__ = ["Money", "Write", "ledger_page", "told_line"]

Write: TypeAlias = Callable[[str, Callable[[Connection], Awaitable[Any]]], Awaitable[tuple[Any, Bookmark]]]


def told_line(line: Line) -> dict[str, Any]:
    """A line of the ledger as clients see it."""
    return {
        "id": str(line.id),
        "kind": line.kind,
        "amount_credits": as_json(line.amount_tenths),
        "balance_credits": as_json(line.balance_tenths),
        "job_id": None if line.job_id is None else str(line.job_id),
        "reason": line.reason,
        "at": time_text(line.at),
    }


async def ledger_page(primary: Primary, user: str, page: Page[LedgerPlace]) -> dict[str, Any]:
    """One page of the user's ledger, newest first, and the token of the next."""
    async with primary.connection() as connection:
        lines, has_more = await credits.ledger(connection, user, page)
    token = page_token(LedgerPlace.of(lines[-1])) if has_more else None
    return {"lines": [told_line(line) for line in lines], "next_page_token": token}


class Money:
    """Grants, plans, and the audit. `write` commits, and lets the user's host know."""

    def __init__(self, primary: Primary, write: Write) -> None:
        self._primary = primary
        self._write = write

    async def grant(self, user: str, tenths: int, *, reason: str) -> tuple[dict[str, Any], Bookmark]:
        """Add tenths of a credit to the user's balance, or take them back; creates the user. Answers the line.

        Raises:
            InsufficientCredits: there is not so much to take back.
            InvalidValue: the amount or the reason cannot be.
            NotFound: the user was erased a short while ago.
        """
        line, bookmark = await self._write(_checked(user), lambda c: credits.grant(c, user, tenths, reason))
        return told_line(line), bookmark

    async def set_plan(self, user: str, plan: str) -> tuple[dict[str, Any], Bookmark]:
        """Set the user's plan; creates the user.

        Raises:
            InvalidValue: there is no such plan.
            NotFound: the user was erased a short while ago.
        """
        _, bookmark = await self._write(_checked(user), lambda c: accounts.set_plan(c, user, plan))
        return {"user": user, "plan": plan}, bookmark

    async def ledger(self, user: str, page: Page[LedgerPlace]) -> dict[str, Any]:
        """One page of a user's ledger."""
        return await ledger_page(self._primary, _checked(user), page)

    async def users_to_audit(self, user: str | None, sample: int | None) -> list[str]:
        """The user, or a sample, or all of them.

        Raises:
            NotFound: there is no such user.
        """
        if user is None:
            return await money_audit.users_with_money(self._primary, sample)
        if not await self._primary.fetch("select from users where id = $1", _checked(user)):
            raise NotFound(f"there is no user {user}")
        return [user]

    async def audit(self, users: Sequence[str]) -> tuple[list[dict[str, Any]], money_audit.Totals]:
        """What does not hold for `users`; see `money_audit`."""
        found, totals = await money_audit.audit_money(self._primary, users)
        return [msgspec.structs.asdict(finding) for finding in found], totals


def _checked(user: str) -> str:
    if not is_user_id(user) or user.startswith("~"):
        raise InvalidValue("user", f"{user[:40]!r} is not a user id")
    return user
