"""What nobody may do to money and jobs by plain SQL: each is refused, or touches nothing. $1 is a job."""

from __future__ import annotations

from typing import Final

__all__ = ["REFUSED"]

_OWNER: Final = "owner_id = (select owner_id from jobs where id = $1)"
_IS_OVER: Final = "state in ('completed', 'failed', 'canceled')"

REFUSED: Final = {
    "more balance": f"update accounts set balance_tenths = balance_tenths + 10 where {_OWNER}",
    "less held": f"update accounts set held_tenths = held_tenths + 1 where {_OWNER}",
    "a deleted line": "delete from credit_ledger where job_id = $1",
    "a cheaper hold": "update credit_ledger set amount_tenths = amount_tenths + 1 where job_id = $1 and kind = 'hold'",
    "a second refund": "insert into credit_ledger (owner_id, kind, amount_tenths, job_id) "
    "select owner_id, 'refund', 10, id from jobs where id = $1",
    "a second hold": "insert into credit_ledger (owner_id, kind, amount_tenths, job_id) "
    "select owner_id, 'hold', -10, id from jobs where id = $1",
    "an end undone": f"update jobs set state = 'pending' where id = $1 and {_IS_OVER}",
    "another end": f"update jobs set state = case state when 'failed' then 'canceled' else 'failed' end "
    f"where id = $1 and {_IS_OVER}",
    "completed without images": f"update jobs set state = 'completed' where id = $1 and not {_IS_OVER}",
    "a cheaper job": "update jobs set price_tenths = price_tenths + n where id = $1",
    "another n": "update jobs set n = n + 1 where id = $1",
    "more given back": "update jobs set refunded_tenths = refunded_tenths + 1 where id = $1",
    "a deleted account": f"delete from accounts where {_OWNER} and (balance_tenths <> 0 or held_tenths <> 0)",
}
