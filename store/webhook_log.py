"""The log of a webhook: its deliveries, page by page, and those that a person asks for.

A replay is a delivery of its own with the event's old id and bytes, so that a receiver knows what it has seen before.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, NamedTuple

import msgspec

from store import parameters as read
from store.errors import InvalidValue, LimitReached, NotFound
from store.pages import page_token, read_token
from store.parameters import Parameters
from store.primary import Connection, Primary
from store.text import time_text

__all__ = ["Delivery", "LogQuery", "Page", "deliveries", "forget_old", "parse_log_query", "ping", "replay"]

MAX_LIMIT: Final = 100
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


class LogPlace(msgspec.Struct, frozen=True, array_like=True, tag="delivery"):
    """Where a page ended: microseconds, and the delivery."""

    at: Annotated[int, msgspec.Meta(ge=0, lt=253_402_300_800_000_000)]
    id: uuid.UUID

    @classmethod
    def of(cls, row: Any) -> LogPlace:
        return cls((row["created_at"] - _EPOCH_START) // timedelta(microseconds=1), row["id"])


class LogQuery(NamedTuple):
    """One page of a log: at most `limit` deliveries in `state`, those before `after`."""

    limit: int = read.DEFAULT_LIMIT
    state: str | None = None
    after: LogPlace | None = None


class Page(NamedTuple):
    """The newest first."""

    deliveries: list[Delivery]
    next_page_token: str | None


def parse_log_query(parameters: Parameters) -> LogQuery:
    """The page that a URL's parameters ask for.

    Raises:
        InvalidQuery: names the parameter.
    """
    values = read.known(parameters, ("limit", "page_token", "state"))
    token = values.get("page_token")
    return LogQuery(
        read.limit(values, most=MAX_LIMIT),
        read.choice(values, "state", _STATES),
        None if token is None else read_token(token, LogPlace, max_chars=256),
    )


async def deliveries(primary: Primary, owner: str, webhook_id: uuid.UUID, query: LogQuery) -> Page:
    """One page of the webhook's log.

    Raises:
        NotFound: the owner has no such webhook.
    """
    if not await primary.fetch("select true from webhooks where id = $1 and owner_id = $2", webhook_id, owner):
        raise NotFound("Webhook not found")
    at, row_id = (0, None) if query.after is None else (query.after.at, query.after.id)
    rows = await primary.fetch(
        f"select {_COLUMNS} from webhook_deliveries where webhook_id = $1 and owner_id = $2 "
        "and ($3::text is null or state = $3) and ($5::uuid is null or (created_at, id) < ($4, $5)) "
        "order by created_at desc, id desc limit $6",
        webhook_id, owner, query.state, _EPOCH_START + timedelta(microseconds=at), row_id, query.limit + 1,
    )  # fmt: skip
    shown = rows[: query.limit]
    token = page_token(LogPlace.of(shown[-1])) if len(rows) > query.limit else None
    return Page([_delivery(row) for row in shown], token)


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
        created_at=time_text(row["created_at"]),
        ended_at=None if row["ended_at"] is None else time_text(row["ended_at"]),
    )
