"""Delivering: what a provider made becomes objects under keys that were written down before.

The order protects what was paid for. Bytes are read and judged first, so that nothing refused is ever stored; room is
taken and keys are written down in one transaction; only then come the objects. A crash behind it leaves an attempt
whose objects are all there, which is as good as done, or one whose objects are not, which is as if nothing had come.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Final, NamedTuple, Protocol, TypeVar

import structlog

from store import storage
from store.errors import (
    FetchError,
    FetchFailed,
    InvalidValue,
    ObjectError,
    ObjectExists,
    ObjectsUnavailable,
    PictureError,
    StorageQuotaExceeded,
)
from store.generation import attempts, jobs
from store.generation.attempts import Stored
from store.generation.errors import BadAnswer, GenerationError, InvalidRequest, Moderated, NoRoom, Undeliverable
from store.generation.jobs import Claimed
from store.generation.moderation import Moderation
from store.generation.providers import Done, Fetch, Output
from store.generation.providers.outputs import bytes_of
from store.objects import keys
from store.objects.finishing import Finished
from store.objects.interface import Objects
from store.objects.picture_process import PictureProcess
from store.primary import Connection
from store.storage import Limits

__all__ = ["Delivered", "Delivery", "Write"]

log = structlog.get_logger()
T = TypeVar("T")

#: Before another try of what costs nothing to try again, in seconds.
_WAITS_S: Final = (0.5, 2.0, 8.0)


class Write(Protocol):
    """A transaction about a job that is ours, committed as soon as the primary is there. Raises: Lost."""

    async def __call__(self, job: Claimed, work: Callable[[Connection], Awaitable[T]]) -> T: ...


class Delivered(NamedTuple):
    """Pictures of an attempt whose objects are there. `error` says why there are not more."""

    attempt: uuid.UUID
    pictures: tuple[Stored, ...]
    error: GenerationError | None


class _Ready(NamedTuple):
    finished: Finished
    output: Output


class Delivery:
    """Shared by all jobs of a worker."""

    def __init__(
        self,
        write: Write,
        objects: Objects,
        pictures: PictureProcess,
        fetch: Fetch,
        moderation: Moderation,
        limits: Limits,
        owner_secret: bytes,
    ) -> None:
        self._write, self._objects, self._pictures, self._fetch = write, objects, pictures, fetch
        self._moderation, self._limits, self._owner_secret = moderation, limits, owner_secret

    @property
    def limits(self) -> Limits:
        return self._limits

    async def deliver(
        self, job: Claimed, attempt: uuid.UUID, done: Done, cost_usd: Decimal, *, watermark: str | None
    ) -> Delivered:
        """Store the pictures of a call.

        Raises:
            GenerationError: none of them can be kept.
            Lost: the job is not ours any more.
        """
        found = await asyncio.gather(*(self._read(job, output, watermark) for output in done.outputs))
        error = next((one for one in found if isinstance(one, GenerationError)), None)
        ready = [one for one in found if isinstance(one, _Ready)]
        if not ready:
            assert error is not None
            raise error
        named, refused = await self._write(
            job, lambda connection: self._name(connection, job, attempt, ready, cost_usd)
        )
        if not named:
            assert refused is not None
            raise refused
        await self._store(
            [item for stored, one in named for item in one.finished.picture.objects(stored.key, one.finished.data)]
        )
        await self._write(job, lambda connection: attempts.finish(connection, attempt))
        return Delivered(attempt, tuple(stored for stored, _ in named), refused or error)

    async def is_stored(self, pictures: tuple[Stored, ...]) -> bool:
        """Whether all the objects are there that an attempt has named.

        Raises:
            ObjectError: nobody can tell now.
        """
        wanted = [key for picture in pictures for key in keys.keys_of(picture.key)]
        return bool(wanted) and all(await asyncio.gather(*(self._objects.exists(key) for key in wanted)))

    async def _read(self, job: Claimed, output: Output, watermark: str | None) -> _Ready | GenerationError:
        """A picture that may be stored, or why not."""
        try:
            data = await self._bytes_of(output)
            finished = await self._pictures.finish(data, watermark=watermark)
            await self._judge(job, finished)
        except PictureError as error:
            return BadAnswer(f"{job.provider}: {job.model}: the picture cannot be read: {error}")
        except InvalidValue as error:
            return InvalidRequest(str(error), field=error.field, model=job.model)
        except GenerationError as error:
            return error
        return _Ready(finished, output)

    async def _bytes_of(self, output: Output) -> bytes:
        for wait_s in (*_WAITS_S, None):
            try:
                return await bytes_of(output, self._fetch)
            except FetchFailed as error:
                if wait_s is None:
                    raise BadAnswer(f"the result's address gave nothing: {error}") from error
                await asyncio.sleep(wait_s)
            except FetchError as error:
                raise Undeliverable(f"the result must not be fetched: {error}") from error
        raise AssertionError("unreachable")

    async def _judge(self, job: Claimed, finished: Finished) -> None:
        """Raises: Moderated; Undeliverable when nobody could tell."""
        content_type = finished.picture.content_type
        try:
            verdict = await self._moderation(finished.data, content_type, job.prompt, job.owner_id)
        except Exception as error:  # somebody else's code: what it does not allow is not stored
            log.exception("moderation.failed", job=str(job.id))
            raise Undeliverable(f"the moderation failed: {type(error).__name__}") from error
        if not verdict.is_allowed:
            raise Moderated(f"the moderation refused the picture: {verdict.reason or 'no reason'}")

    async def _name(
        self, connection: Connection, job: Claimed, attempt: uuid.UUID, ready: list[_Ready], cost_usd: Decimal
    ) -> tuple[list[tuple[Stored, _Ready]], GenerationError | None]:
        """In a transaction: room for as many as there is room for, and their keys."""
        tag, now_ms = keys.owner_tag(job.owner_id, self._owner_secret), int(time.time() * 1000)
        named: list[tuple[Stored, _Ready]] = []
        refused: GenerationError | None = None
        for one in ready:
            data, picture = one.finished
            try:
                reservation = await storage.reserve(connection, job.owner_id, len(data), self._limits)
            except StorageQuotaExceeded as error:
                refused = NoRoom(str(error))
                continue
            stored = Stored(
                key=keys.new_key("generated", tag, picture.content_type, now_ms),
                content_type=picture.content_type,
                size_bytes=len(data),
                width=picture.width,
                height=picture.height,
                thumbhash=picture.thumbhash,
                reservation_id=reservation.id,
                seed=one.output.seed,
                revised_prompt=attempts.storable(one.output.revised_prompt, 2000),
            )
            named.append((stored, one))
        if named:
            await attempts.name(connection, attempt, [stored for stored, _ in named], cost_usd)
            await jobs.set_uploading(connection, job)
        return named, refused

    async def _store(self, items: list[tuple[str, bytes]]) -> None:
        """Raises: Undeliverable."""
        for wait_s in (*_WAITS_S, None):
            try:
                await self._objects.put_many(items)
                return
            except ObjectExists:
                return  # nobody else knows these keys: an earlier try had come through
            except ObjectsUnavailable as error:
                if wait_s is None:
                    raise Undeliverable(f"the picture could not be stored: {error}") from error
                await asyncio.sleep(wait_s)
            except ObjectError as error:
                raise Undeliverable(f"the picture could not be stored: {error}") from error
