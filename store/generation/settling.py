"""Settling: the end of a job in one transaction, with its images, its credits and the room that they take.

What is paid, given back and counted follows from the job's row, in the database (jobs.sql). So there is no moment in
which an image is there and not paid for, or the other way round.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from store import images, storage
from store.errors import ReservationEnded, StorageQuotaExceeded
from store.generation import attempts
from store.generation.attempts import Stored
from store.generation.delivering import Delivered
from store.generation.errors import (
    BadAnswer,
    Canceled,
    ContentPolicy,
    GenerationError,
    InvalidRequest,
    NoImage,
    NoRoom,
    ProviderAccount,
    TimedOut,
    Undeliverable,
)
from store.generation.jobs import Claimed
from store.generation.params import JobParams
from store.ids import new_id
from store.objects.keys import thumb_key
from store.primary import Connection
from store.storage import Limits, Reservation

__all__ = ["fail", "settle"]

#: Of several reasons the one that its user can do something about.
_TELLING: Final = (ContentPolicy, InvalidRequest, NoRoom, ProviderAccount, Undeliverable, NoImage, BadAnswer, TimedOut)
_MAX_SEED: Final = 2**32 - 1
_REFUNDED: Final = "Nothing was charged. "

_END: Final = """
update jobs set state = $2, image_ids = $3, error_code = $4, error_message = $5, response_data = $6::text::jsonb,
  cost_usd = (select coalesce(sum(cost_usd), 0) from attempts where job_id = $1),
  duration_ms = (
    select (extract(epoch from clock_timestamp() - min(started_at)) * 1000)::bigint from attempts where job_id = $1),
  updated_at = clock_timestamp()
where id = $1
"""
_PARENT: Final = "select id from images where id = $1 and owner_id = $2 for key share"


async def settle(
    connection: Connection,
    job: Claimed,
    params: JobParams,
    delivered: Sequence[Delivered],
    errors: Sequence[GenerationError],
    limits: Limits,
    *,
    is_canceled: bool,
) -> str:
    """End a job with the pictures that it has; answers its final state."""
    parent = await connection.fetchval(_PARENT, params.parent_id, job.owner_id) if params.parent_id else None
    kept: list[images.NewImage] = []
    reasons = [*errors, *(one.error for one in delivered if one.error is not None)]
    for picture in (picture for one in delivered for picture in one.pictures):
        if not await _take_room(connection, job, picture, limits):
            reasons.append(NoRoom("the room for the picture was not used in time"))
            continue
        image = _image(job, params, picture)
        image.parent_id = parent
        await images.insert(connection, job.owner_id, image)
        kept.append(image)
    error = _most_telling(reasons) or NoImage(f"{job.provider}: {job.model}: {len(kept)} of {job.n} pictures came")
    if is_canceled:
        error = Canceled("its user canceled it")
    await attempts.end_all(connection, job, "canceled" if is_canceled else "failed", error)
    state = "completed" if kept else "canceled" if is_canceled else "failed"
    await _end(connection, job, state, kept, None if len(kept) == job.n else error)
    return state


async def fail(connection: Connection, job: Claimed, error: GenerationError) -> str:
    """End a job that gave nothing; answers its final state."""
    await attempts.end_all(connection, job, "failed", error, with_done=True)
    await _end(connection, job, "failed", [], error)
    return "failed"


async def _end(
    connection: Connection, job: Claimed, state: str, kept: Sequence[images.NewImage], error: GenerationError | None
) -> None:
    response: dict[str, Any] = {"images": [msgspec.json.decode(image.generation_params) for image in kept]}
    code = message = None
    if error is not None:
        code, message = error.code, _advice(job, error, has_images=bool(kept))
        response["error"] = {"message": attempts.storable(str(error), 1000), "status": error.status}
    ids = [image.id for image in kept]
    await connection.execute(_END, job.id, state, ids, code, message, msgspec.json.encode(response).decode())


def _advice(job: Claimed, error: GenerationError, *, has_images: bool) -> str:
    """What the job's user is told."""
    if isinstance(error, ProviderAccount) and job.own_key:
        advice = f"{job.provider} does not accept your key. Nothing was charged. Change the key, or leave it out."
    else:
        advice = error.advice
    return advice.replace(_REFUNDED, "The pictures that are missing were not charged. ") if has_images else advice


def _most_telling(errors: Sequence[GenerationError]) -> GenerationError | None:
    ranked = [error for kind in _TELLING for error in errors if isinstance(error, kind)]
    return next(iter([*ranked, *errors]), None)


def _image(job: Claimed, params: JobParams, picture: Stored) -> images.NewImage:
    seed = picture.seed if picture.seed is None or picture.seed <= _MAX_SEED else None
    said: dict[str, Any] = {"width": params.width, "height": params.height, **params.options}
    if picture.seed is not None:
        said["seed"] = picture.seed if seed is not None else str(picture.seed)
    if picture.revised_prompt:
        said["revised_prompt"] = picture.revised_prompt
    return images.NewImage(
        id=new_id(int(time.time() * 1000)),
        object_key=picture.key,
        content_type=picture.content_type,
        size_bytes=picture.size_bytes,
        width=picture.width,
        height=picture.height,
        thumb_key=thumb_key(picture.key),
        thumbhash=picture.thumbhash,
        model=job.model,
        prompt=job.prompt,
        negative_prompt=params.negative_prompt,
        seed=seed,
        steps=params.steps,
        generation_params=msgspec.json.encode(said).decode(),
        visibility=params.visibility,
        job_id=job.id,
    )


async def _take_room(connection: Connection, job: Claimed, picture: Stored, limits: Limits) -> bool:
    """Count a picture's bytes; False, and its objects are to be deleted, when their room is somebody else's by now."""
    reservation = Reservation(picture.reservation_id, job.owner_id, picture.size_bytes)
    try:
        await storage.settle(connection, reservation)
    except ReservationEnded:
        try:
            again = await storage.reserve(connection, job.owner_id, picture.size_bytes, limits)
        except StorageQuotaExceeded:
            await attempts.forget(connection, [picture.key])
            return False
        await storage.settle(connection, again)
    return True
