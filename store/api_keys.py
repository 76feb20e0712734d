"""API keys: `pk_` and 40 random characters, shown once and kept as a SHA-256.

256 bits of chance need no slow hash, and the look-up is by the hash itself, so nothing is compared byte by byte.
"""

from __future__ import annotations

import hashlib
import secrets
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from store.errors import NotFound
from store.primary import Connection, Primary
from store.users import ensure_user

__all__ = [
    "PREFIX",
    "NewKey",
    "create_key",
    "key_hash",
    "list_keys",
    "owner_of_key",
    "revoke_key",
    "revoked_since",
]

PREFIX: Final = "pk_"


class NewKey(NamedTuple):
    """A key just made; `secret` is nowhere else."""

    id: UUID
    secret: str


class KeyInfo(NamedTuple):
    """A key as its owner may see it."""

    id: UUID
    hint: str
    name: str
    created_at: datetime
    revoked_at: datetime | None


def key_hash(secret: str) -> bytes:
    """What the primary keeps of a key."""
    return hashlib.sha256(secret.encode()).digest()


async def create_key(primary: Primary, user: str, *, name: str = "") -> NewKey:
    """A new key for `user`, who is created when unknown."""
    secret = PREFIX + secrets.token_urlsafe(32)

    async def work(connection: Connection) -> UUID:
        await ensure_user(connection, user)
        row_id: UUID = await connection.fetchval(
            "insert into api_keys (user_id, hash, hint, name) values ($1, $2, $3, $4) returning id",
            user, key_hash(secret), secret[:8], name,
        )  # fmt: skip
        return row_id

    row_id, _ = await primary.write(user, work)
    return NewKey(row_id, secret)


async def list_keys(primary: Primary, user: str) -> list[KeyInfo]:
    """The user's keys, newest first."""
    rows = await primary.fetch(
        "select id, hint, name, created_at, revoked_at from api_keys where user_id = $1 order by created_at desc",
        user,
    )
    return [KeyInfo(*row) for row in rows]


async def revoke_key(primary: Primary, user: str, key: UUID) -> None:
    """End a key; gateways stop taking it within 2 s. Ending it twice is the same as once.

    Raises:
        NotFound: the user has no such key.
    """

    async def work(connection: Connection) -> bool:
        sql = (
            "update api_keys set revoked_at = coalesce(revoked_at, clock_timestamp()) "
            "where id = $1 and user_id = $2 returning true"
        )
        return await connection.fetchval(sql, key, user) is True

    found, _ = await primary.write(user, work)
    if not found:
        raise NotFound(f"user {user} has no key {key}")


async def owner_of_key(primary: Primary, secret: str) -> str | None:
    """The user whose living key this is."""
    rows = await primary.fetch("select user_id from api_keys where hash = $1 and revoked_at is null", key_hash(secret))
    return rows[0]["user_id"] if rows else None


async def revoked_since(primary: Primary, seconds: float) -> set[bytes]:
    """Hashes of the keys that were revoked in the last `seconds`, by the primary's clock."""
    rows = await primary.fetch(
        "select hash from api_keys where revoked_at > clock_timestamp() - make_interval(secs => $1)", seconds
    )
    return {row["hash"] for row in rows}
