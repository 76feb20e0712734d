"""Accounts: the plan, and how much their owner wants to spend at most. Balance and holds follow the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from store.documents import Documents, projection
from store.errors import InvalidValue
from store.primary import Connection
from store.users import ensure_user

__all__ = ["BUDGETS", "PLANS", "document", "set_budgets", "set_plan"]

PLANS: Final = ("free", "pro", "enterprise")
#: Name in requests and documents → column.
BUDGETS: Final = {"day_budget_credits": "day_budget_tenths", "month_budget_credits": "month_budget_tenths"}

_DOCUMENT: Final = (
    f"select row_to_json(d) from (select {projection('accounts')} from accounts t where t.owner_id = $1) d"
)


async def document(connection: Connection, user: str, documents: Documents) -> bytes:
    """The document of an account that is there, as this transaction sees it."""
    return documents.row("accounts", await connection.fetchval(_DOCUMENT, user)).document


async def set_budgets(connection: Connection, user: str, budgets: Mapping[str, int | None]) -> None:
    """Set the budgets that are named (see `BUDGETS`), in tenths; None ends one. Jobs that are under way stay.

    Raises:
        InvalidValue: below nothing.
    """
    for name, tenths in budgets.items():
        if tenths is not None and tenths < 0:
            raise InvalidValue(name, f"{name} must not be below 0")
    await ensure_user(connection, user)
    assignments = "".join(f"{BUDGETS[name]} = ${n}, " for n, name in enumerate(budgets, start=2))
    sql = f"update accounts set {assignments}updated_at = clock_timestamp() where owner_id = $1"
    await connection.execute(sql, user, *budgets.values())


async def set_plan(connection: Connection, user: str, plan: str) -> None:
    """Set the user's plan; creates the user.

    Raises:
        InvalidValue: there is no such plan.
        NotFound: the user was erased a short while ago.
    """
    if plan not in PLANS:
        raise InvalidValue("plan", f"plan must be one of {', '.join(PLANS)}, got {plan[:40]!r}")
    await ensure_user(connection, user)
    sql = "update accounts set plan = $2, updated_at = clock_timestamp() where owner_id = $1 and plan <> $2"
    await connection.execute(sql, user, plan)
