"""What can be asked of a user's account and usage: two summaries, each made of all documents of a few kinds.

One function makes the body from the documents, for replicas and for the fallback to the primary alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any, ClassVar, Final

import msgspec

from store import parameters as read
from store.documents import projection
from store.parameters import Parameters
from store.text import exact

__all__ = ["AccountQuery", "StatsQuery", "SummaryQuery", "parse_stats_query", "summary_from_postgres"]

MAX_DAYS: Final = 366
DEFAULT_DAYS: Final = 30

#: A user whom the primary does not know yet: as their account will be with their first write.
_NO_ACCOUNT: Final = (
    b'{"plan":"free","balance_credits":0,"held_credits":0,"storage_used_bytes":0,'
    b'"day_budget_credits":null,"month_budget_credits":null,"updated_at":null}'
)


class SummaryQuery(msgspec.Struct, frozen=True, array_like=True):
    """A body made of all of a user's documents of `kinds`."""

    kinds: ClassVar[tuple[str, ...]]

    def body(self, documents: Mapping[str, Sequence[bytes]]) -> bytes:
        """The JSON of it. `documents` are by kind, in any order."""
        raise NotImplementedError


class _Account(msgspec.Struct):
    plan: str
    storage_used_bytes: int


class _Day(msgspec.Struct):
    day: str
    generations_count: int
    generations_success: int
    generations_failed: int
    generations_canceled: int
    images_count: int
    credits_used: Decimal
    cost_usd: Decimal
    duration_ms: int
    model_usage: dict[str, int]


_decode_account: Final = msgspec.json.Decoder(_Account).decode
_decode_days: Final = msgspec.json.Decoder(list[_Day]).decode
_encode: Final = msgspec.json.Encoder().encode


class AccountQuery(SummaryQuery, frozen=True, array_like=True, tag=8):
    """The account, with the most bytes that its plan keeps.

    `limits` are those of the plans free, pro and enterprise, as the asking gateway is set: a new limit needs no new
    replica.
    """

    kinds: ClassVar[tuple[str, ...]] = ("accounts",)
    limits: tuple[int, int, int]

    def body(self, documents: Mapping[str, Sequence[bytes]]) -> bytes:
        document = documents["accounts"][0] if documents["accounts"] else _NO_ACCOUNT
        free, pro, enterprise = self.limits
        limit = {"free": free, "pro": pro}.get(_decode_account(document).plan, enterprise)
        return b'{"success":true,"account":%s,"storage_limit_bytes":%d}}' % (document[:-1], limit)


class StatsQuery(SummaryQuery, frozen=True, array_like=True, tag=7):
    """Usage: totals of all days, and the days themselves from `since` on (a day in UTC, as 2026-03-04).

    The day is in the query, and no clock is read where it is answered: its answer stays true until a change.
    """

    kinds: ClassVar[tuple[str, ...]] = ("usage_daily", "accounts")
    since: str

    def body(self, documents: Mapping[str, Sequence[bytes]]) -> bytes:
        texts = documents["usage_daily"]
        days = _decode_days(b"[%s]" % b",".join(texts))  # at once: a host's loop waits for years of them
        used = _decode_account(documents["accounts"][0]).storage_used_bytes if documents["accounts"] else 0
        shown = sorted(
            ((day.day, text) for day, text in zip(days, texts, strict=True) if day.day >= self.since), reverse=True
        )
        stats = {**_totals(days, used), "days": [msgspec.Raw(text) for _, text in shown]}
        return _encode({"success": True, "stats": stats})


def _totals(days: Sequence[_Day], storage_used_bytes: int) -> dict[str, Any]:
    """Sums over `days`. Six of them go by a second name too, which clients of other services know them by."""
    models: dict[str, int] = {}
    for day in days:
        for model, count in day.model_usage.items():
            models[model] = models.get(model, 0) + count
    totals: dict[str, Any] = {
        "generations_count": sum(day.generations_count for day in days),
        "generations_success": sum(day.generations_success for day in days),
        "generations_failed": sum(day.generations_failed for day in days),
        "generations_canceled": sum(day.generations_canceled for day in days),
        "images_count": sum(day.images_count for day in days),
        "credits_used": exact(sum((day.credits_used for day in days), Decimal(0)).normalize()),
        "cost_usd": exact(sum((day.cost_usd for day in days), Decimal("0.0000"))),
        "duration_ms": sum(day.duration_ms for day in days),
        # The most used first; of equals, by name: the order in which days are read must not show.
        "model_usage": dict(sorted(models.items(), key=lambda model: (-model[1], model[0]))),
        "storage_used_bytes": storage_used_bytes,
    }
    return totals | {other: totals[name] for other, name in _OTHER_NAMES.items()}


_OTHER_NAMES: Final = {
    "generationsCount": "generations_count",
    "generationsSuccess": "generations_success",
    "generationsFailed": "generations_failed",
    "creditsUsed": "credits_used",
    "modelUsage": "model_usage",
    "storageUsedBytes": "storage_used_bytes",
}


def parse_stats_query(parameters: Parameters, today: date) -> StatsQuery:
    """The query that a URL's parameters ask for: `days`, of which `today` (in UTC) is the last.

    Raises:
        InvalidQuery: names the parameter.
    """
    days = read.whole(read.known(parameters, ("days",)), "days", DEFAULT_DAYS, MAX_DAYS)
    return StatsQuery((today - timedelta(days=days - 1)).isoformat())


@lru_cache
def summary_from_postgres(kinds: tuple[str, ...]) -> str:
    """Postgres text: epoch, version, and for each kind an array of its rows, in one snapshot. $1 user."""
    arrays = "".join(
        f", array(select row_to_json(d)::text from (select {projection(kind)} from {kind} t where t.owner_id = $1) d)"
        for kind in kinds
    )
    return "select sync_epoch_now(), coalesce((select s.version from sync_user s where s.user_id = $1), 0)" + arrays
