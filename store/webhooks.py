"""Webhooks: where a user is told of what happens to what is theirs.

Which events there are, and that a telling is written in the transaction of what it tells, is in webhooks.sql. A secret
leaves once, when it is made; at rest it is sealed for its webhook. Each function names the owner in its WHERE, so that
another user's webhook is simply not there.
"""

from __future__ import annotations

import base64
import secrets
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from store.errors import InvalidValue, LimitReached, NotFound
from store.ids import new_id
from store.primary import Connection, Primary
from store.sealing import Sealer
from store.text import time_text
from store.users import ensure_user
from store.webhook_posting import checked_url

__all__ = [
    "EVENTS",
    "MOST",
    "NewSecret",
    "Webhook",
    "change",
    "context_of",
    "create",
    "delete",
    "get",
    "list_webhooks",
    "rotate",
]

#: What may be told of. A test's `ping` comes whatever a webhook has chosen.
EVENTS: Final = (
    "generation.completed", "generation.failed", "generation.canceled", "image.deleted", "credits.low",
)  # fmt: skip
#: Webhooks of one user.
MOST: Final = 10
#: For how long the secret before the last rotation signs too.
OLD_SECRET_S: Final = 24 * 3600.0
_SECRET_BYTES: Final = 32
_NOT_FOUND: Final = "Webhook not found"
_COLUMNS: Final = (
    "id, url, events, state, disabled_reason, "
    "case when old_secret_until > clock_timestamp() then old_secret_until end, created_at, updated_at"
)


class Webhook(msgspec.Struct):
    """A webhook as its owner sees it."""

    id: uuid.UUID
    url: str
    events: list[str]  # empty: all
    state: str
    disabled_reason: str | None
    old_secret_until: str | None  # None: one secret signs
    created_at: str
    updated_at: str


class NewSecret(NamedTuple):
    """A webhook and its new secret, which is told nowhere else."""

    webhook: Webhook
    secret: str


def context_of(webhook_id: uuid.UUID) -> str:
    """What a secret is sealed for."""
    return f"webhook/{webhook_id}"


async def create(
    connection: Connection,
    sealer: Sealer,
    owner: str,
    *,
    url: str,
    events: Sequence[str],
    allow: Sequence[str],
    now_ms: int,
) -> NewSecret:
    """A new webhook of `owner`, who is created when unknown. Inside a transaction of `Primary.write`.

    Raises:
        InvalidValue: names the field.
        LimitReached: the owner has as many as may be.
    """
    checked_url(url, allow)
    known = _checked_events(events)
    await ensure_user(connection, owner)
    # One at a time, so that two do not both find room for the last one.
    await connection.execute("select pg_advisory_xact_lock(hashtextextended($1, 2))", owner)
    if await connection.fetchval("select count(*) from webhooks where owner_id = $1", owner) >= MOST:
        raise LimitReached(f"a user may have {MOST} webhooks, and these are all there")
    row_id = new_id(now_ms)
    key, text = _new_secret()
    row = await connection.fetchrow(
        f"insert into webhooks (id, owner_id, url, events, secret) values ($1, $2, $3, $4, $5) returning {_COLUMNS}",
        row_id, owner, url, known, sealer.seal(key, context_of(row_id)),
    )  # fmt: skip
    return NewSecret(_webhook(row), text)


async def list_webhooks(primary: Primary, owner: str) -> list[Webhook]:
    """The owner's webhooks, the newest first; at most ten."""
    sql = f"select {_COLUMNS} from webhooks where owner_id = $1 order by created_at desc, id desc"
    return [_webhook(row) for row in await primary.fetch(sql, owner)]


async def get(primary: Primary, owner: str, row_id: uuid.UUID) -> Webhook:
    """Raises: NotFound."""
    rows = await primary.fetch(f"select {_COLUMNS} from webhooks where id = $1 and owner_id = $2", row_id, owner)
    if not rows:
        raise NotFound(_NOT_FOUND)
    return _webhook(rows[0])


async def change(
    connection: Connection, owner: str, row_id: uuid.UUID, values: Mapping[str, Any], *, allow: Sequence[str]
) -> Webhook:
    """Set some of `url`, `events` and `state`. What waits to be sent goes to the new URL; a webhook that is made active
    again starts without a past.

    Raises:
        InvalidValue: names the field.
        NotFound: the owner has no such webhook.
    """
    checked = {name: _checked(name, value, allow) for name, value in values.items()}
    if "state" in checked:
        checked["disabled_reason"] = None
    assignments = "".join(f"{name} = ${n}, " for n, name in enumerate(checked, start=3))
    row = await connection.fetchrow(
        f"update webhooks set {assignments}updated_at = clock_timestamp() where id = $1 and owner_id = $2 "
        f"returning {_COLUMNS}",
        row_id, owner, *checked.values(),
    )  # fmt: skip
    if row is None:
        raise NotFound(_NOT_FOUND)
    return _webhook(row)


async def delete(connection: Connection, owner: str, row_id: uuid.UUID) -> None:
    """Delete a webhook and its log; what waits is not sent any more.

    Raises:
        NotFound: the owner has no such webhook.
    """
    # Its log first: until its row is locked, jobs that end need not wait for this transaction.
    await connection.execute("delete from webhook_deliveries where webhook_id = $1 and owner_id = $2", row_id, owner)
    if await connection.fetchval("delete from webhooks where id = $1 and owner_id = $2 returning true", row_id, owner):
        return
    raise NotFound(_NOT_FOUND)


async def rotate(connection: Connection, sealer: Sealer, owner: str, row_id: uuid.UUID) -> NewSecret:
    """A new secret; the one before it signs too for 24 hours, one from before that does not any more.

    Raises:
        NotFound: the owner has no such webhook.
    """
    key, text = _new_secret()
    row = await connection.fetchrow(
        "update webhooks set secret = $3, old_secret = secret, updated_at = clock_timestamp(), "
        "old_secret_until = clock_timestamp() + make_interval(secs => $4) "
        f"where id = $1 and owner_id = $2 returning {_COLUMNS}",
        row_id, owner, sealer.seal(key, context_of(row_id)), OLD_SECRET_S,
    )  # fmt: skip
    if row is None:
        raise NotFound(_NOT_FOUND)
    return NewSecret(_webhook(row), text)


def _new_secret() -> tuple[bytes, str]:
    key = secrets.token_bytes(_SECRET_BYTES)
    return key, f"whsec_{base64.b64encode(key).decode()}"


def _checked(name: str, value: Any, allow: Sequence[str]) -> Any:
    match name:
        case "url":
            checked_url(value, allow)
            return value
        case "events":
            return _checked_events(value)
        case "state" if value in ("active", "disabled"):
            return value
        case "state":
            raise InvalidValue("state", f"state must be active or disabled, got {str(value)[:40]!r}")
    raise InvalidValue(name, f"{name} cannot be changed")


def _checked_events(events: Sequence[str]) -> list[str]:
    for event in events:
        if event not in EVENTS:
            raise InvalidValue("events", f"events may hold {', '.join(EVENTS)}, not {event[:40]!r}")
    return sorted(set(events), key=EVENTS.index)


def _webhook(row: Any) -> Webhook:
    row_id, url, events, state, reason, old_until, created, updated = row
    return Webhook(
        row_id,
        url,
        list(events),
        state,
        reason,
        None if old_until is None else time_text(old_until),
        time_text(created),
        time_text(updated),
    )
