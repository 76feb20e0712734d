"""Users of the primary. A user's id is the `sub` of their token; the first write creates them."""

from __future__ import annotations

from store.errors import InvalidValue
from store.ids import is_user_id
from store.primary import Connection

__all__ = ["ensure_user", "touch"]


async def ensure_user(connection: Connection, user: str) -> None:
    """Make sure that `user` exists, with an account (plan free, no credits).

    Raises:
        InvalidValue: `user` cannot be a user's id.
    """
    if not is_user_id(user):
        raise InvalidValue("user", f"user id {user[:40]!r} is not 1 to 128 of A-Z a-z 0-9 . _ @ | : -")
    # Asked first: an insert that conflicts would still burn a transaction id and dirty a page, on every write.
    if await connection.fetchval("select 1 from users where id = $1", user) is None:
        await connection.execute("insert into users (id) values ($1) on conflict do nothing", user)


async def touch(connection: Connection, user: str) -> None:
    """A new version of `user` in which nothing but their account's time has changed. Without a user, nothing."""
    await connection.execute("update accounts set updated_at = clock_timestamp() where owner_id = $1", user)
