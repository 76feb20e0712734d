"""What every user's rows were at every version, asked of Postgres in plain SQL, and what a replica must hold for them.

Nothing of the product's pull, seed, projection or documents is used: a fault of theirs is not in the answer too.
"""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

import asyncpg

from store.changes import Cursor

__all__ = ["Oracle", "Shown", "State", "gallery", "parse", "replica_state", "with_base"]

_START = datetime(1970, 1, 1, tzinfo=UTC)
_ZERO = "00000000-0000-0000-0000-000000000000"


class Shown(NamedTuple):
    """A row as clients are given it: its document, and the columns by which lists filter and sort, times in µs."""

    document: dict[str, Any]
    filters: dict[str, Any]


#: (kind, row id) → what is shown for it.
State = dict[tuple[str, str], Shown]


class Oracle:
    """`states` keeps what every user had at every cursor that ever was, also in histories that are lost since."""

    def __init__(self, connection: asyncpg.Connection, users: tuple[str, ...]) -> None:
        self._connection = connection
        self._users = users
        self.states: dict[tuple[str, Cursor], State] = {}
        #: user → the newest committed cursor.
        self.heads: dict[str, Cursor] = {}
        #: user → version → nonce, of the history that the primary has now.
        self.line: dict[str, dict[int, str]] = defaultdict(dict)

    async def begin(self) -> None:
        """Forget everything and look at what is there."""
        self.states.clear()
        self.heads.clear()
        self.line.clear()
        await self.look()

    async def look(self) -> None:
        """Write down where everybody is, after something that is not a commit: a rotation, a restore."""
        for user, cursor, state in await self._look():
            known = self.states.setdefault((user, cursor), state)
            assert known == state, f"{user} at {cursor} is not what it was"
            self.heads[user] = cursor
            self.line[user][cursor.version] = cursor.nonce

    async def committed(self) -> list[str]:
        """Write down where everybody is after one commit or none; answers who has a new version.

        A version more, never two, exactly for those whose rows are others than before.
        """
        changed = []
        for user, cursor, state in await self._look():
            before = self.heads[user]
            if cursor == before:
                assert state == self.states[user, before], f"rows of {user} changed and the version did not"
                continue
            assert cursor.epoch == before.epoch
            assert cursor.version == before.version + 1, f"{user}: {cursor.version} after {before.version}"
            assert cursor.nonce not in self.line[user].values(), "a nonce that was used before"
            self.heads[user] = cursor
            self.line[user][cursor.version] = cursor.nonce
            self.states[user, cursor] = state
            changed.append(user)
        return changed

    def is_current(self, user: str, cursor: Cursor) -> bool:
        """Whether the primary's history has been at this cursor, in whichever epoch."""
        return self.line[user].get(cursor.version) == cursor.nonce

    async def verdict(self, user: str, cursor: Cursor) -> str | None:
        """Why a pull from `cursor` must be refused; None when it must not."""
        head = self.heads[user]
        if cursor.epoch != head.epoch:
            return "epoch"
        if cursor.version > head.version:
            return "ahead"
        row = await self._connection.fetchrow("select horizon from sync_user where user_id = $1", user)
        if row is not None and cursor.version < row["horizon"]:
            return "horizon"
        if not self.is_current(user, cursor):
            return "nonce"
        rows = await self._connection.fetchval(
            "select count(distinct (kind, row_id)) from change_log join change_row using (nonce, user_id) "
            "where user_id = $1 and version > $2",
            user,
            cursor.version,
        )
        return "bulk" if rows > 500 else None

    async def _look(self) -> list[tuple[str, Cursor, State]]:
        """(user, head, rows) of everybody, from one snapshot."""
        c, users = self._connection, list(self._users)
        async with c.transaction(isolation="repeatable_read", readonly=True):
            epoch = await c.fetchval("select id from sync_epoch")
            heads = await c.fetch("select user_id, version, nonce::text from sync_user where user_id = any($1)", users)
            rows = {
                kind: await c.fetch(f"select * from {kind} where owner_id = any($1::text[])", users) for kind in _MAKERS
            }
        at = {user: Cursor(f"{epoch}-1", 0, _ZERO) for user in users}
        at.update({user: Cursor(f"{epoch}-1", version, nonce) for user, version, nonce in heads})
        states: dict[str, State] = {user: {} for user in users}
        for kind, make in _MAKERS.items():
            for row in rows[kind]:
                key = row["owner_id"] if kind == "accounts" else str(row["id"])
                states[row["owner_id"]][kind, key] = make(row)
        return [(user, at[user], states[user]) for user in users]


# --- documents, in the test's own words ---------------------------------------------------------------------------


def _image(row: Any) -> Shown:
    same = (
        "thumbhash", "content_type", "size_bytes", "width", "height", "prompt", "negative_prompt", "model", "seed",
        "steps", "visibility", "starred", "title", "moderation",
    )  # fmt: skip
    document = {
        **_object(row),
        **{name: row[name] for name in same},
        "generation_params": parse(row["generation_params"]),
        "job_id": _text(row["job_id"]),
        "parent_id": _text(row["parent_id"]),
        "trashed_at": _time(row["trashed_at"]),
    }
    names = ("visibility", "model", "starred", "trashed_at", "created_at")
    return Shown(document, {name: _plain(row[name]) for name in names})


def _reference(row: Any) -> Shown:
    same = ("thumbhash", "content_type", "size_bytes", "width", "height", "filename")
    document = {**_object(row), **{name: row[name] for name in same}}
    return Shown(document, {"created_at": _plain(row["created_at"])})


def _job(row: Any) -> Shown:
    same = (
        "kind", "prompt", "image_size", "watermark", "n", "provider", "model", "own_key", "state", "duration_ms",
        "cost_usd",
    )  # fmt: skip
    has_failed = row["error_code"] is not None
    document = {
        **{name: row[name] for name in same},
        "id": str(row["id"]),
        "params": parse(row["params"]),
        "cost_credits": Decimal(row["price_tenths"] - row["refunded_tenths"]) / 10,
        "refunded_credits": Decimal(row["refunded_tenths"]) / 10,
        "image_ids": [str(i) for i in row["image_ids"]],
        "error": {"code": row["error_code"], "message": row["error_message"] or ""} if has_failed else None,
        "batch_id": _text(row["batch_id"]),
        "hidden_at": _time(row["hidden_at"]),
        "created_at": _time(row["created_at"]),
        "updated_at": _time(row["updated_at"]),
    }
    filters = {name: _plain(row[name]) for name in ("state", "model", "kind", "hidden_at", "created_at")}
    return Shown(document, filters | {"batch_id": document["batch_id"]})


def _account(row: Any) -> Shown:
    document = {name: row[name] for name in ("plan", "storage_used_bytes")}
    document["updated_at"] = _time(row["updated_at"])
    document["balance_credits"] = Decimal(row["balance_tenths"]) / 10
    document["held_credits"] = Decimal(row["held_tenths"]) / 10
    for period in ("day", "month"):
        tenths = row[f"{period}_budget_tenths"]
        document[f"{period}_budget_credits"] = None if tenths is None else Decimal(tenths) / 10
    return Shown(document, {})


def _usage(row: Any) -> Shown:
    same = (
        "generations_count", "generations_success", "generations_failed", "generations_canceled", "images_count",
        "cost_usd", "duration_ms", "storage_used_bytes",
    )  # fmt: skip
    document = {name: row[name] for name in same}
    document["day"] = row["day"].isoformat()
    document["credits_used"] = Decimal(row["credits_used_tenths"]) / 10
    document["model_usage"] = parse(row["model_usage"])
    return Shown(document, {"day": row["day"].isoformat()})


_MAKERS: dict[str, Callable[[Any], Shown]] = {
    "images": _image,
    "reference_images": _reference,
    "jobs": _job,
    "accounts": _account,
    "usage_daily": _usage,
}


def _object(row: Any) -> dict[str, Any]:
    return {
        "id": str(row["id"]),
        "url": "/files/" + row["object_key"],
        "thumb_url": None if row["thumb_key"] is None else "/files/" + row["thumb_key"],
        "filename": row["filename"] if "filename" in row else row["object_key"].split("/")[-1],
        "created_at": _time(row["created_at"]),
    }


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _plain(value: Any) -> Any:
    """A value as SQLite has it."""
    return (value - _START) // timedelta(microseconds=1) if isinstance(value, datetime) else value


def parse(text: str | bytes) -> Any:
    """JSON with its numbers exact."""
    return json.loads(text, parse_float=Decimal)


# --- what a replica holds -----------------------------------------------------------------------------------------


def replica_state(connection: sqlite3.Connection) -> State:
    """What the tables of a replica hold, all of it."""
    state: State = {}
    for kind in _MAKERS:
        rows = connection.execute(f"select * from {kind}")
        names = [column[0] for column in rows.description]
        for row in rows:
            values = dict(zip(names, row, strict=True))
            state[kind, values.pop("id")] = Shown(parse(values.pop("doc")), values)
    return state


def with_base(state: State, base: str) -> State:
    """The same rows where `base` stands before the URLs of files."""
    return {key: Shown(_based(shown.document, base), shown.filters) for key, shown in state.items()}


def _based(document: dict[str, Any], base: str) -> dict[str, Any]:
    urls = {name: document[name] and base + document[name] for name in ("url", "thumb_url") if name in document}
    return {**document, **urls}


def gallery(state: State, *, limit: int = 200) -> list[dict[str, Any]]:
    """The documents of the newest images that are not in the trash, newest first."""
    rows = [
        (shown.filters["created_at"], row_id, shown.document)
        for (kind, row_id), shown in state.items()
        if kind == "images" and shown.filters["trashed_at"] is None
    ]
    return [document for _, _, document in sorted(rows, key=lambda row: row[:2], reverse=True)[:limit]]
