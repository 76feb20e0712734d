"""Keeping a picture: room for it, its objects, its row, in this order, and back when one of them cannot be had.

A crash in between leaves at most objects without a row, which nobody sees, and reserved room, which ends by itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

import structlog

from store import storage
from store.epoch import Bookmark
from store.errors import ObjectError, PrimaryUnavailable
from store.primary import Connection
from store.storage import Reservation

if TYPE_CHECKING:
    from gateway.app import Gateway

__all__ = ["keep", "remove"]

log = structlog.get_logger()
T = TypeVar("T")


async def keep(
    gateway: Gateway, user: str, objects: Sequence[tuple[str, bytes]], work: Callable[[Connection], Awaitable[T]]
) -> tuple[T, Bookmark]:
    """Write the objects, of which the first is counted, then run `work` and commit it; answers as `Gateway.write`.

    Raises:
        StorageQuotaExceeded: the user's plan has no room for it.
        ObjectError: the objects could not be written.
        PrimaryUnavailable: when it went away during COMMIT the row, and with it the objects, may be there or not.
    """
    size_bytes = len(objects[0][1])
    reservation = await storage.reserve_alone(gateway.primary, user, size_bytes, gateway.storage_limits)

    async def transaction(connection: Connection) -> T:
        result = await work(connection)
        await storage.settle(connection, reservation)
        return result

    try:
        await gateway.objects.put_many(objects)
        try:
            return await gateway.write(user, transaction)
        except PrimaryUnavailable:
            raise  # nobody knows whether the row is there: without its objects it would be worse than they without it
        except Exception:
            await remove(gateway, [key for key, _ in objects])
            raise
    except Exception:
        await _give_back(gateway, reservation)
        raise


async def remove(gateway: Gateway, keys: Iterable[str]) -> None:
    """Remove objects that no row names any more. What the object store does not remove now is logged, and stays until
    somebody looks for objects without a row."""
    for key in keys:
        try:
            await gateway.objects.delete(key)
        except ObjectError as error:
            log.warning("objects.left_over", key=key, error=str(error))


async def _give_back(gateway: Gateway, reservation: Reservation) -> None:
    owner = reservation.owner_id
    try:
        await gateway.primary.write(owner, lambda connection: storage.release(connection, reservation))
    except PrimaryUnavailable:
        pass  # it ends by itself
