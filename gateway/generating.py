"""Generations as a gateway makes and tells them: estimates, creations under an idempotency key, waiting for the end."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from store import idempotency
from store.credits import as_json
from store.epoch import Bookmark
from store.errors import StoreError
from store.generation.creating import create
from store.generation.funds import funds_of
from store.generation.planning import Plan, plan
from store.generation.states import Generation, batch_of, generations, jobs_of_batch
from store.generation.wanted import Wanted
from store.idempotency import KeptReply
from store.primary import Connection

if TYPE_CHECKING:
    from gateway.app import Gateway

__all__ = ["Key", "Made", "estimate", "look", "look_at_batch", "make", "made_at", "told_one"]

_GENERATION: Final = "/api/generations/"
_BATCH: Final = "/api/batches/"
_encode = msgspec.json.Encoder(decimal_format="number").encode


class Key(NamedTuple):
    """An idempotency key, and the hash of the request that it came with."""

    text: str
    request_hash: bytes


class Made(NamedTuple):
    """The answer to a creation, and where its client has to read to see it."""

    reply: KeptReply
    is_replayed: bool
    bookmark: Bookmark


async def estimate(gateway: Gateway, user: str, wanted: Wanted) -> bytes:
    """What `wanted` would cost and hold, and whether it is covered; nothing is written.

    Raises:
        StoreError: what a creation would be refused with, but for money.
    """
    async with gateway.primary.connection() as connection:
        planned = await plan(connection, user, wanted, gateway.catalog)
        funds = await funds_of(connection, user)
    try:
        funds.check(planned.price_tenths)
        is_covered = True
    except StoreError:
        is_covered = False
    lows, highs = [draft.low_s for draft in planned.drafts], [draft.high_s for draft in planned.drafts]
    return _encode(
        {
            "success": True,
            "cost_credits": as_json(planned.price_tenths),
            "cost_usd": sum((draft.usd for draft in planned.drafts), Decimal(0)),
            # All at once at best, one after the other at worst.
            "expected_s": {"low": max(lows), "high": sum(highs)},
            "balance_credits": as_json(funds.balance),
            "is_covered": is_covered,
            "jobs": list(_told_drafts(planned)),
            **_dropped(wanted, planned),
        }
    )


def _told_drafts(planned: Plan) -> Iterable[dict[str, Any]]:
    for draft in planned.drafts:
        yield {
            "model": draft.model.id,
            "provider": draft.model.provider,
            "kind": draft.kind,
            "image_size": draft.image_size,
            "n": draft.n,
            "own_key": draft.own_key,
            "cost_credits": as_json(draft.price_tenths),
            "cost_usd": draft.usd,
            "expected_s": {"low": draft.low_s, "high": draft.high_s},
        }


async def make(gateway: Gateway, user: str, wanted: Wanted, key: Key | None) -> Made:
    """Create what is `wanted`, in one transaction; with a key it is done once, however often it is asked for.

    Raises:
        StoreError: nothing was created.
    """

    async def transaction(connection: Connection) -> tuple[KeptReply, bool]:
        async def work() -> KeptReply:
            return await _create(gateway, connection, user, wanted)

        if key is None:
            return await work(), False
        return await idempotency.once(connection, user, key.text, key.request_hash, work)

    (reply, is_replayed), bookmark = await gateway.write(user, transaction)
    return Made(reply, is_replayed, bookmark)


async def _create(gateway: Gateway, connection: Connection, user: str, wanted: Wanted) -> KeptReply:
    planned = await plan(connection, user, wanted, gateway.catalog)
    created = await create(connection, user, planned)
    told = await generations(connection, user, created.jobs, gateway.documents)
    dropped = _dropped(wanted, planned)
    if created.batch is None:
        return KeptReply(202, told_one(told[0], **dropped), f"{_GENERATION}{created.jobs[0]}")
    batch = {"id": str(created.batch), "kind": planned.kind}
    return KeptReply(202, _told_many(batch, told), f"{_BATCH}{created.batch}")


def _dropped(wanted: Wanted, planned: Plan) -> dict[str, Any]:
    return {} if wanted.remix_of is None else {"dropped": list(planned.dropped)}


def told_one(generation: Generation, **members: Any) -> bytes:
    """The body of a reply about one generation."""
    body = b'{"success":true,"generation":%s' % generation.document
    return body + (b"," + _encode(members)[1:] if members else b"}")


def _told_many(batch: dict[str, Any], told: Sequence[Generation]) -> bytes:
    documents = b",".join(generation.document for generation in told)
    return b'{"success":true,"batch":%s,"generations":[%s]}' % (_encode(batch), documents)


async def look(gateway: Gateway, user: str, job_id: uuid.UUID) -> Generation:
    """One generation as it is now in the primary; the user's reads from now on are not older.

    Raises:
        NotFound: the user has no such job.
    """
    (generation,) = await generations(gateway.fallback, user, [job_id], gateway.documents)
    gateway.reads.wrote(user, generation.at)
    return generation


async def look_at_batch(gateway: Gateway, user: str, batch_id: uuid.UUID) -> tuple[bytes, Bookmark | None]:
    """The body that tells a batch and its jobs as they are now.

    Raises:
        NotFound: the user has no such batch.
    """
    kind, created_at = await batch_of(gateway.fallback, user, batch_id)
    ids = await jobs_of_batch(gateway.fallback, user, batch_id)
    told = await generations(gateway.fallback, user, ids, gateway.documents)
    states = [generation.state for generation in told]
    batch = {
        "id": str(batch_id),
        "kind": kind,
        "created_at": created_at,
        "is_over": all(generation.is_over for generation in told),
        "states": {state: states.count(state) for state in dict.fromkeys(states)},
        "cost_credits": as_json(sum(generation.cost_tenths for generation in told)),
        "refunded_credits": as_json(sum(generation.refunded_tenths for generation in told)),
    }
    if not told:
        return _told_many(batch, told), None
    gateway.reads.wrote(user, told[0].at)
    return _told_many(batch, told), told[0].at


async def made_at(gateway: Gateway, user: str, location: str) -> list[uuid.UUID]:
    """The jobs that an answer's Location stands for."""
    row_id = uuid.UUID(location.rpartition("/")[2])
    if location.startswith(_BATCH):
        return await jobs_of_batch(gateway.fallback, user, row_id)
    return [row_id]
