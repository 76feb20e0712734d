"""Users of the primary. A user's id is the `sub` of their token; the first write creates them."""

from __future__ import annotations

from typing import Final

from store.errors import InvalidValue, NotFound
from store.ids import is_user_id
from store.primary import Connection

__all__ = ["IS_THERE", "REFUSED_S", "ensure_user", "lock_user", "touch"]

#: For how long an erased id is refused: every token from before has ended then (they live a day at most).
REFUSED_S: Final = 25 * 3600.0

#: $1 user. The row is held as a row that refers to it would hold it: until this transaction ends, nobody erases it.
IS_THERE: Final = """
select true from users u
where u.id = $1 and not exists (select from erased_users e where e.user_id = u.id and e.finished_at is null)
for key share
"""
#: $1 user, $2 seconds.
_IS_REFUSED: Final = """
select true from erased_users
where user_id = $1 and (finished_at is null or erased_at > clock_timestamp() - make_interval(secs => $2))
"""


async def ensure_user(connection: Connection, user: str) -> None:
    """Make sure that `user` exists, with an account (plan free, no credits).

    Raises:
        InvalidValue: `user` cannot be a user's id.
        NotFound: the user was erased a short while ago: see `erasure`.
    """
    if not is_user_id(user):
        raise InvalidValue("user", f"user id {user[:40]!r} is not 1 to 128 of A-Z a-z 0-9 . _ @ | : -")
    # Asked first: an insert that conflicts would still burn a transaction id and dirty a page, on every write.
    if await connection.fetchval(IS_THERE, user) is not None:
        return
    await lock_user(connection, user)
    if await connection.fetchval(_IS_REFUSED, user, REFUSED_S):
        raise NotFound(f"user {user} was erased")
    await connection.execute("insert into users (id) values ($1) on conflict do nothing", user)


async def lock_user(connection: Connection, user: str) -> None:
    """Until this transaction ends nobody else creates or erases `user`."""
    await connection.execute("select pg_advisory_xact_lock(hashtextextended($1, 1))", user)


async def touch(connection: Connection, user: str) -> None:
    """A new version of `user` in which nothing but their account's time has changed. Without a user, nothing."""
    await connection.execute("update accounts set updated_at = clock_timestamp() where owner_id = $1", user)
