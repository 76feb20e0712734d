"""Calling: one call of a job, until it has pictures or there is nothing more to try.

A row is written before a provider is asked. So whoever takes the job up finds out what an earlier worker had come to:
pictures that are stored are used, tasks are looked at, and what was asked without a task's id may have been drawn and
paid for, so that it is asked again once at most.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from decimal import Decimal
from random import Random
from typing import Final

import msgspec
from pydantic import SecretStr

from store import storage
from store.generation import attempts
from store.generation.attempts import Attempt
from store.generation.delivering import Delivered, Delivery, Write
from store.generation.errors import (
    BadAnswer,
    Canceled,
    GenerationError,
    NoRoom,
    ProviderAccount,
    UnknownOutcome,
    error_named,
)
from store.generation.models import Models
from store.generation.pricing import Prices
from store.generation.providers import Done, Progress, Provider, Request, Task, polling
from store.generation.retries import Policy, retry_in
from store.generation.tally import Tally
from store.generation.work import Work
from store.ids import new_id
from store.primary import Connection, Primary

__all__ = ["Caller", "OwnKey"]

#: (user, provider) → the user's own key there, None if there is none.
OwnKey = Callable[[str, str], Awaitable[SecretStr | None]]

#: It draws by itself: asking it again costs nobody anything.
_FREE: Final = "builtin"
#: After the provider was asked to stop, in seconds: what it finishes by then is delivered.
_STOPS_S: Final = 3.0
#: A task that is resumed behind its deadline is still looked at for so long.
_LAST_S: Final = 5.0


class Caller:
    """Shared by all jobs of a worker."""

    def __init__(
        self,
        primary: Primary,
        write: Write,
        providers: Mapping[str, Provider],
        models: Models,
        prices: Prices,
        delivery: Delivery,
        own_key: OwnKey,
        tally: Tally,
        *,
        policy: Policy,
        dice: Random,
        every_s: float,
    ) -> None:
        self._primary, self._write, self._providers = primary, write, providers
        self._models, self._prices, self._delivery, self._own_key = models, prices, delivery, own_key
        self._policy, self._dice, self._every_s, self._tally = policy, dice, every_s, tally
        #: Drawing by ourselves takes a core: more at once only wait for each other.
        self._free_turns = asyncio.Semaphore(os.cpu_count() or 1)

    async def pictures(self, work: Work, call: int, request: Request, rows: Sequence[Attempt]) -> Delivered:
        """Pictures of a call; `rows` are what was tried before, by number.

        Raises:
            GenerationError: there are none.
            Lost: the job is not ours any more.
        """
        number = len(rows)
        ended = [row for row in rows if not row.is_open and row.state != "done"]
        repeated = len(ended)
        if rows and rows[-1].state == "done":
            return Delivered(rows[-1].id, rows[-1].pictures, None)
        if ended and not rows[-1].is_open:
            repeated -= 1
            repeated = await self._again(work, error_named(rows[-1].error_code or "", "it was tried before"), repeated)
        found = rows[-1] if rows and rows[-1].is_open else None
        while True:
            attempt = _Attempt(self, work, call, request)
            try:
                if found is None:
                    number += 1
                delivered = await (attempt.make(number) if found is None else attempt.resume(found))
                attempt.count("done")
                return delivered
            except GenerationError as error:
                await attempt.end(error)
                repeated = await self._again(work, error, repeated)
                found = None

    async def _again(self, work: Work, error: GenerationError, repeated: int) -> int:
        """Wait until the call may be repeated; answers how often it will have been. Raises the error if it may not."""
        if type(error) is UnknownOutcome and work.job.provider == _FREE:
            return repeated
        wait_s = retry_in(error, repeated=repeated, unknown=work.unknown, dice=self._dice, policy=self._policy)
        work.unknown += isinstance(error, UnknownOutcome)
        if wait_s is None:
            raise error
        await work.until_canceled(asyncio.sleep(wait_s))
        return repeated + 1


class _Attempt:
    """One try, new or found."""

    def __init__(self, caller: Caller, work: Work, call: int, request: Request) -> None:
        self._caller, self._work, self._call, self._request = caller, work, call, request
        self._job = work.job
        self._provider = caller._providers[self._job.provider]
        self._model = caller._models.of(self._job.model)
        self._id = new_id(int(time.time() * 1000))
        self._started_at = time.monotonic()
        self._is_written = False
        self._cost_usd = Decimal(0)

    async def make(self, number: int) -> Delivered:
        """Ask the provider."""
        if self._work.is_canceled:
            raise Canceled("its user canceled it")
        key = await self._key()
        if self._job.provider != _FREE:
            return await self._make(number, key)
        async with self._caller._free_turns:
            return await self._make(number, key)

    async def _make(self, number: int, key: SecretStr | None) -> Delivered:
        await self._caller._write(self._job, lambda connection: self._begin(connection, number))
        self._is_written = True
        if self._provider.capabilities.has_tasks:
            found = await self._provider.submit(self._request, key=key)  # to its end: a lost id is a lost picture
        else:
            found = await self._work.until_canceled(self._provider.submit(self._request, key=key))
        if isinstance(found, Task):
            task = found
            await self._caller._write(self._job, lambda connection: attempts.save_task(connection, self._id, task.id))
            found = await self._finish(task, key, self._deadline_s)
        return await self._deliver(found)

    async def resume(self, row: Attempt) -> Delivered:
        """Go on with what an earlier worker had come to."""
        self._id, self._is_written = row.id, True
        if await self._caller._delivery.is_stored(row.pictures):
            await self._caller._write(self._job, lambda connection: attempts.finish(connection, row.id))
            return Delivered(row.id, row.pictures, None)
        if row.task_id is None:
            raise UnknownOutcome(f"{self._job.provider}: the worker that had asked came to an end")
        task = self._provider.resume(self._job.model, row.task_id)
        left_s = max(_LAST_S, self._deadline_s - row.submitted_s_ago)
        return await self._deliver(await self._finish(task, await self._key(), left_s))

    async def end(self, error: GenerationError) -> None:
        """Write down that there is nothing."""
        self.count(error.code)
        if not self._is_written:
            return
        is_unknown = isinstance(error, UnknownOutcome)
        how: attempts.Ended = "canceled" if isinstance(error, Canceled) else "unknown" if is_unknown else "failed"
        if isinstance(error, BadAnswer) and not self._cost_usd:
            self._cost_usd = self._expected_usd(self._request.n)

        await self._caller._write(
            self._job, lambda connection: attempts.end(connection, self._id, how, error, self._cost_usd)
        )

    def count(self, outcome: str) -> None:
        self._caller._tally.saw_attempt(self._job.provider, outcome, time.monotonic() - self._started_at)

    async def _begin(self, connection: Connection, number: int) -> None:
        if await storage.is_full(connection, self._job.owner_id, self._caller._delivery.limits):
            raise NoRoom("there is no room for another picture")
        self._work.is_begun = True
        await attempts.begin(connection, self._job, self._id, call=self._call, number=number)

    async def _finish(self, task: Task, key: SecretStr | None, deadline_s: float) -> Done:
        async def progress(found: Progress) -> None:
            await self._work.progress(self._caller._primary, self._call, found)

        try:
            return await polling.finish(
                self._provider, task, deadline_s=deadline_s, key=key, progress=progress,
                every_s=self._caller._every_s, sleep=self._work.sleep,
            )  # fmt: skip
        except Canceled:
            if not self._work.is_canceled:
                raise
        return await self._stop(task, key)

    async def _stop(self, task: Task, key: SecretStr | None) -> Done:
        """The user wants no more: what is finished already is delivered. Raises: Canceled."""
        agreed = False
        try:
            agreed = await self._provider.cancel(task, key=key)
        except GenerationError:
            pass  # asked in vain; the look tells how it stands
        deadline = time.monotonic() + (_STOPS_S if agreed else 0.0)
        while True:
            try:
                found = await self._provider.poll(task, key=key)
                if isinstance(found, Done):
                    return found
            except GenerationError as error:
                raise Canceled("its user canceled it") from error
            if time.monotonic() >= deadline:
                raise Canceled("its user canceled it")
            await asyncio.sleep(self._caller._every_s)

    async def _deliver(self, done: Done) -> Delivered:
        done = msgspec.structs.replace(done, outputs=done.outputs[: self._request.n])  # more were not asked for
        made = len(done.outputs)
        self._cost_usd = self._expected_usd(made) if done.cost_usd is None else done.cost_usd
        watermark = None if self._model.limits.has_watermark else self._job.watermark
        return await self._caller._delivery.deliver(self._job, self._id, done, self._cost_usd, watermark=watermark)

    async def _key(self) -> SecretStr | None:
        """The user's own key where the job is to use it."""
        if not self._job.own_key:
            return None
        key = await self._caller._own_key(self._job.owner_id, self._job.provider)
        if key is None:
            raise ProviderAccount(f"{self._job.provider}: the user's own key is gone", provider=self._job.provider)
        return key

    @property
    def _deadline_s(self) -> float:
        return self._model.pace_of(self._request.width, self._request.height).deadline_s

    def _expected_usd(self, pictures: int) -> Decimal:
        return self._caller._prices.usd(self._job.model, self._request.width, self._request.height, pictures)
