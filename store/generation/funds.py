"""What a user can spend: the balance, and the budgets that they set.

This asks for the whole of a request at once; the triggers of jobs.sql have the last word about every job.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from store.credits import credits_text
from store.errors import BudgetExceeded, InsufficientCredits
from store.primary import Connection

__all__ = ["Funds", "funds_of"]

_SPENT: Final = """
(select coalesce(sum(j.price_tenths - j.refunded_tenths), 0)::bigint from jobs j
 where j.owner_id = a.owner_id and j.created_at >= date_trunc('{period}', clock_timestamp(), 'UTC'))
"""
_FUNDS: Final = f"""
select a.balance_tenths, a.day_budget_tenths, a.month_budget_tenths,
  case when a.day_budget_tenths is not null then {_SPENT.format(period="day")} end,
  case when a.month_budget_tenths is not null then {_SPENT.format(period="month")} end
from accounts a where a.owner_id = $1
"""


class Funds(NamedTuple):
    """Tenths of a credit; a budget of None is no bound."""

    balance: int = 0
    day_budget: int | None = None
    month_budget: int | None = None
    day_spent: int | None = None
    month_spent: int | None = None

    def check(self, cost_tenths: int) -> None:
        """Raises: InsufficientCredits, BudgetExceeded. What costs nothing is always covered."""
        if not cost_tenths:
            return
        takes = f"this takes {credits_text(cost_tenths)} credits"
        if self.balance < cost_tenths:
            message = f"{takes}, and the balance is {credits_text(self.balance)}"
            raise InsufficientCredits(message, balance_tenths=self.balance, needed_tenths=cost_tenths)
        days, months = (self.day_budget, self.day_spent or 0), (self.month_budget, self.month_spent or 0)
        for period, (budget, spent) in (("day", days), ("month", months)):
            if budget is not None and spent + cost_tenths > budget:
                of = f"of the {period}'s budget of {credits_text(budget)} {credits_text(spent)} are spent"
                raise BudgetExceeded(
                    f"{takes}, and {of}", period=period, budget_tenths=budget, spent_tenths=spent,
                    needed_tenths=cost_tenths,
                )  # fmt: skip


async def funds_of(connection: Connection, user: str, *, hold: bool = False) -> Funds:
    """What `user` can spend now; nothing, if there is no such user. With `hold` nobody else spends it until the
    transaction ends."""
    row = await connection.fetchrow(f"{_FUNDS} for no key update" if hold else _FUNDS, user)
    return Funds() if row is None else Funds(*row)
