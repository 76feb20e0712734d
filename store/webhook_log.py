"""The log of a webhook: its deliveries, page by page, and those that a person asks for.

A replay is a delivery of its own with the event's old id and bytes, so that a receiver knows what it has seen before.
"""

from __future__ import annotations

import base64
import binascii
import json
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import msgspec

from store.errors import InvalidQuery, InvalidValue, LimitReached, NotFound
from store.primary import Connection, Primary
from store.webhooks import time_text

__all__ = ["Delivery", "LogQuery", "Page", "deliveries", "forget_old", "parse_log_query", "ping", "replay"]

MAX_LIMIT: Final = 100
DEFAULT_LIMIT: Final = 50
#: Deliveries of one webhook that may wait while a person asks for more.
MOST_WAITING: Final = 100
_STATES: Final = ("pending", "delivered", "failed")
_EPOCH_START: Final = datetime(1970, 1, 1, tzinfo=UTC)
_COLUMNS: Final = (
    "id, event_id, event, payload, state, attempts, run_at, status, response, took_ms, created_at, ended_at"
)
# $1 webhook, $2 owner. The webhook's row is held as a row that refers to it would hold it.
_STATE: Final = "select state from webhooks where id = $1 and owner_id = $2 for key share"
#: By the index of the log, so that an old and long one costs nothing.
_WAITING: Final = """
select count(*) from (
  select from webhook_deliveries where webhook_id = $1 and created_at > clock_timestamp() - interval '1 hour'
  and state = 'pending' order by created_at desc limit $2) w
"""
_PING: Final = f"""
insert into webhook_deliveries (webhook_id, owner_id, event_id, event, payload)
select $1, $2, gen_random_uuid(), 'ping', json_build_object(
  'type', 'ping', 'timestamp', webhook_time(clock_timestamp()), 'data', json_build_object('webhook_id', $1::uuid))::text
returning {_COLUMNS}
"""
_REPLAY: Final = f"""
insert into webhook_deliveries (webhook_id, owner_id, event_id, event, payload)
select d.webhook_id, d.owner_id, d.event_id, d.event, d.payload from webhook_deliveries d
where d.webhook_id = $1 and d.owner_id = $2 and d.id = $3
returning {_COLUMNS}
"""
# $1 age in seconds, $2 rows of one webhook, $3 rows. Webhook by webhook, each by its index.
_FORGET: Final = """
delete from webhook_deliveries where id in (
  select d.id from webhooks w cross join lateral (
    select id from webhook_deliveries where webhook_id = w.id and created_at < now() - make_interval(secs => $1)
    order by created_at limit $2) d
  limit $3)
returning true
"""


class Delivery(msgspec.Struct):
    """One telling of one event."""

    id: uuid.UUID
    event_id: uuid.UUID  # as `webhook-id`: the same in every repetition and replay
    event: str
    payload: msgspec.Raw  # as it is sent
    state: str
    attempts: int
    next_attempt_at: str | None  # None: it has ended
    status: int | None  # of the last answer; None: there was none
    response: str | None  # the beginning of the last answer, or why there was none
    took_ms: int | None
    created_at: str
    ended_at: str | None


class LogQuery(NamedTuple):
    """One page of a log: at most `limit` deliveries in `state`, those before `after` (created_at in µs, id)."""

    limit: int = DEFAULT_LIMIT
    state: str | None = None
    after: tuple[int, uuid.UUID] | None = None


class Page(NamedTuple):
    """The newest first."""

    deliveries: list[Delivery]
    next_page_token: str | None


def parse_log_query(parameters: Sequence[tuple[str, str]]) -> LogQuery:
    """The page that a URL's parameters ask for.

    Raises:
        InvalidQuery: names the parameter.
    """
    values = dict(parameters)
    for name, _ in parameters:
        if name not in ("limit", "page_token", "state"):
            raise InvalidQuery(name, f"unknown query parameter {name[:40]!r}; known are limit, page_token, state")
    if len(values) < len(parameters):
        raise InvalidQuery("limit", "limit, page_token and state may be given once")
    limit, state, token = (values.get(name) for name in ("limit", "state", "page_token"))
    if limit is not None and not (limit.isascii() and limit.isdigit() and len(limit) <= 3 and 1 <= int(limit) <= 100):
        raise InvalidQuery("limit", f"limit must be a whole number from 1 to {MAX_LIMIT}")
    if state is not None and state not in _STATES:
        raise InvalidQuery("state", f"state must be one of {', '.join(_STATES)}")
    return LogQuery(
        DEFAULT_LIMIT if limit is None else int(limit), state, None if token is None else _read_token(token)
    )


async def deliveries(primary: Primary, owner: str, webhook_id: uuid.UUID, query: LogQuery) -> Page:
    """One page of the webhook's log.

    Raises:
        NotFound: the owner has no such webhook.
    """
    if not await primary.fetch("select true from webhooks where id = $1 and owner_id = $2", webhook_id, owner):
        raise NotFound("Webhook not found")
    at, row_id = query.after or (0, None)
    rows = await primary.fetch(
        f"select {_COLUMNS} from webhook_deliveries where webhook_id = $1 and owner_id = $2 "
        "and ($3::text is null or state = $3) and ($5::uuid is null or (created_at, id) < ($4, $5)) "
        "order by created_at desc, id desc limit $6",
        webhook_id, owner, query.state, _EPOCH_START + timedelta(microseconds=at), row_id, query.limit + 1,
    )  # fmt: skip
    shown = rows[: query.limit]
    return Page([_delivery(row) for row in shown], _token(shown[-1]) if len(rows) > query.limit else None)


async def ping(connection: Connection, owner: str, webhook_id: uuid.UUID) -> Delivery:
    """A delivery of the event `ping`, whatever the webhook has chosen. Inside a transaction of `Primary.write`.

    Raises:
        NotFound: the owner has no such webhook.
        InvalidValue: it is disabled.
        LimitReached: many wait already.
    """
    await _ready(connection, owner, webhook_id)
    return _delivery(await connection.fetchrow(_PING, webhook_id, owner))


async def replay(connection: Connection, owner: str, webhook_id: uuid.UUID, delivery_id: uuid.UUID) -> Delivery:
    """A new delivery of what another one told, with its id of the event.

    Raises:
        NotFound: the owner has no such webhook, or it no such delivery.
        InvalidValue: it is disabled.
        LimitReached: many wait already.
    """
    await _ready(connection, owner, webhook_id)
    row = await connection.fetchrow(_REPLAY, webhook_id, owner, delivery_id)
    if row is None:
        raise NotFound("Delivery not found")
    return _delivery(row)


async def forget_old(primary: Primary, *, keep_s: float, batch: int = 1000, batches: int = 1000) -> int:
    """Forget deliveries from more than `keep_s` seconds ago, in small transactions; answers how many went."""
    gone = 0
    for _ in range(batches):
        rows = await primary.fetch(_FORGET, keep_s, batch, batch)
        gone += len(rows)
        if not rows:
            break
    return gone


async def _ready(connection: Connection, owner: str, webhook_id: uuid.UUID) -> None:
    state = await connection.fetchval(_STATE, webhook_id, owner)
    if state is None:
        raise NotFound("Webhook not found")
    if state != "active":
        raise InvalidValue("state", "state of the webhook is disabled: make it active first")
    if await connection.fetchval(_WAITING, webhook_id, MOST_WAITING) >= MOST_WAITING:
        raise LimitReached(f"{MOST_WAITING} deliveries of this webhook wait already")


def _delivery(row: Any) -> Delivery:
    is_over = row["state"] != "pending"
    return Delivery(
        id=row["id"],
        event_id=row["event_id"],
        event=row["event"],
        payload=msgspec.Raw(row["payload"].encode()),
        state=row["state"],
        attempts=row["attempts"],
        next_attempt_at=None if is_over else time_text(row["run_at"]),
        status=row["status"],
        response=row["response"],
        took_ms=row["took_ms"],
        created_at=time_text(row["created_at"]) or "",
        ended_at=time_text(row["ended_at"]),
    )


def _token(row: Any) -> str:
    raw = json.dumps([(row["created_at"] - _EPOCH_START) // timedelta(microseconds=1), str(row["id"])])
    return base64.urlsafe_b64encode(raw.encode()).rstrip(b"=").decode()


def _read_token(token: str) -> tuple[int, uuid.UUID]:
    """Unsigned: the owner and the webhook are always asked for too."""
    wrong = InvalidQuery("page_token", "page_token is not one that this list gave out")
    if len(token) > 256 or not token.isascii():
        raise wrong
    try:
        at, row_id = json.loads(base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True))
        if type(at) is not int or not 0 <= at < 253_402_300_800_000_000:
            raise wrong
        return at, uuid.UUID(row_id)
    except (binascii.Error, ValueError, TypeError, AttributeError, RecursionError):
        raise wrong from None
