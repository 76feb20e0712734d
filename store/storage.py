"""Storage: how many bytes a user keeps, and that it is never more than their plan allows.

An upload reserves its bytes first, and settles them in the transaction that makes its row. Both are one statement on
the user's account, whose row lock puts uploads at once in a line. A reservation is a row with an end: what a crash
leaves behind is taken back by the next upload that needs the room. The reserved bytes are in no document, so that a
reservation is no version.

Counted are the bytes of pictures as they came; thumbnails are on the house. Rows that other services insert by plain
SQL are not counted, as nobody reserved for them.
"""

from __future__ import annotations

import uuid
from typing import Final, NamedTuple

from store.errors import ReservationEnded, StorageQuotaExceeded
from store.primary import Connection, Primary
from store.users import IS_THERE, ensure_user

__all__ = ["Limits", "Reservation", "add", "free", "is_full", "release", "reserve", "reserve_alone", "settle"]

#: Longer than any upload, with all the retries of an object store.
_LIFETIME_S: Final = 2 * 3600.0


class Limits(NamedTuple):
    """Most bytes that a user of each plan keeps."""

    free: int
    pro: int
    enterprise: int


class Reservation(NamedTuple):
    """Room for so many bytes of one user, until it is settled or released, or ends by itself."""

    id: uuid.UUID
    owner_id: str
    size_bytes: int


_LIMIT: Final = "case plan when 'free' then $2::bigint when 'pro' then $3::bigint else $4::bigint end"
_MADE: Final = f"""
with there as ({IS_THERE}),
held as (
  update accounts set storage_reserved_bytes = storage_reserved_bytes + $5
  where owner_id = $1 and exists (select from there) and storage_used_bytes + storage_reserved_bytes + $5 <= {_LIMIT}
  returning owner_id),
made as (
  insert into storage_reservations (owner_id, size_bytes, expires_at)
  select owner_id, $5, clock_timestamp() + make_interval(secs => $6) from held returning id)
"""
_RESERVE: Final = f"{_MADE} select id from made"
#: As a transaction of its own, which does not wait for the disk: a crash of the primary gives the room back, and what
#: was uploaded meanwhile cannot be settled.
_RESERVE_ALONE: Final = f"{_MADE} select id, set_config('synchronous_commit', 'off', true) from made"
_TAKE_BACK: Final = """
with ended as (
  delete from storage_reservations where owner_id = $1 and expires_at <= clock_timestamp() returning size_bytes)
update accounts set storage_reserved_bytes = storage_reserved_bytes - (select sum(size_bytes) from ended)
where owner_id = $1 and exists (select from ended) returning true
"""
_SETTLE: Final = """
with ended as (delete from storage_reservations where id = $2 and owner_id = $1 returning size_bytes)
update accounts set storage_reserved_bytes = storage_reserved_bytes - ended.size_bytes,
                    storage_used_bytes = storage_used_bytes + $3, updated_at = clock_timestamp()
from ended where owner_id = $1 returning true
"""
_RELEASE: Final = """
with ended as (delete from storage_reservations where id = $2 and owner_id = $1 returning size_bytes)
update accounts set storage_reserved_bytes = storage_reserved_bytes - ended.size_bytes
from ended where owner_id = $1
"""
_STATE: Final = f"select storage_used_bytes, storage_reserved_bytes, {_LIMIT} from accounts where owner_id = $1"
_ADD: Final = """
update accounts set storage_used_bytes = greatest(storage_used_bytes + $2, 0), updated_at = clock_timestamp()
where owner_id = $1
"""


async def reserve(
    connection: Connection, user: str, size_bytes: int, limits: Limits, *, lifetime_s: float = _LIFETIME_S
) -> Reservation:
    """Take room for `size_bytes`, in a transaction of its own: it has to be committed before the upload begins.

    Raises:
        StorageQuotaExceeded: there is not so much; nothing was reserved.
    """
    await ensure_user(connection, user)
    wanted = (user, *limits, size_bytes, lifetime_s)
    row_id = await connection.fetchval(_RESERVE, *wanted)
    if row_id is None and await connection.fetchval(_TAKE_BACK, user):
        row_id = await connection.fetchval(_RESERVE, *wanted)
    if row_id is None:
        used, reserved, limit = await connection.fetchrow(_STATE, user, *limits)
        raise StorageQuotaExceeded(size_bytes, used_bytes=used, reserved_bytes=reserved, limit_bytes=limit)
    return Reservation(row_id, user, size_bytes)


async def reserve_alone(
    primary: Primary, user: str, size_bytes: int, limits: Limits, *, lifetime_s: float = _LIFETIME_S
) -> Reservation:
    """`reserve`, committed: as one statement if the user is there and has so much room.

    Raises:
        StorageQuotaExceeded: there is not so much; nothing was reserved.
        PrimaryUnavailable: the room may be reserved or not; what is, ends by itself.
    """
    rows = await primary.fetch(_RESERVE_ALONE, user, *limits, size_bytes, lifetime_s)
    if rows:
        return Reservation(rows[0]["id"], user, size_bytes)
    reservation, _ = await primary.write(
        user, lambda connection: reserve(connection, user, size_bytes, limits, lifetime_s=lifetime_s)
    )
    return reservation


async def is_full(connection: Connection, user: str, limits: Limits) -> bool:
    """Whether there is no room for a single byte: then nothing has to be made that could not be kept."""
    row = await connection.fetchrow(_STATE, user, *limits)
    return row is not None and row[0] + row[1] >= row[2]


async def settle(connection: Connection, reservation: Reservation) -> None:
    """Count what was reserved as used. Belongs last into the transaction that makes the row: a rollback leaves the
    reservation as it was, and the account's lock is held for one commit.

    Raises:
        ReservationEnded: it was released or took too long: its room may be somebody else's by now.
    """
    room = (reservation.owner_id, reservation.id, reservation.size_bytes)
    if await connection.fetchval(_SETTLE, *room) is None:
        raise ReservationEnded(f"the room for {reservation.size_bytes} bytes was not used in time")


async def release(connection: Connection, reservation: Reservation) -> None:
    """Give the room back. Nothing when it was settled: so it may follow a commit of which nobody knows whether it
    happened."""
    await connection.execute(_RELEASE, reservation.owner_id, reservation.id)


async def add(connection: Connection, user: str, size_bytes: int) -> None:
    """Count bytes that an operator put there, without asking whether there is room."""
    await connection.execute(_ADD, user, size_bytes)


async def free(connection: Connection, user: str, size_bytes: int) -> None:
    """Count bytes no more, in the transaction that deletes their rows. Never below nothing: rows that plain SQL
    inserted were not counted."""
    await connection.execute(_ADD, user, -size_bytes)
