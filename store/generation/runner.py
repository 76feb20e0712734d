"""The runner: one loop that has many jobs in work at once, and may be killed at any moment.

claim → calls, each with its attempts → pictures stored → one last transaction. What a killed runner leaves behind is
claimed by another one as soon as the lease has ended, and gone on with from the attempts' rows.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from random import Random
from typing import Final

import msgspec
import structlog

from store.epoch import Bookmark
from store.errors import PrimaryUnavailable
from store.generation import jobs
from store.generation.attempts import Attempt, attempts_of
from store.generation.calling import Caller, OwnKey
from store.generation.delivering import Delivered, Delivery
from store.generation.errors import GenerationError, InvalidRequest, WorkerFailed
from store.generation.jobs import Claimed, Lost
from store.generation.models import Models
from store.generation.moderation import Moderation, allow
from store.generation.pricing import Prices
from store.generation.providers import Fetch, Provider, Request
from store.generation.requests import Requests
from store.generation.retries import Policy
from store.generation.settling import fail, settle
from store.generation.tally import Tally
from store.generation.work import Work
from store.generation.writing import Writer
from store.objects.interface import Objects
from store.objects.picture_process import PictureProcess
from store.objects.signing import SignedUrls
from store.primary import Primary
from store.storage import Limits

__all__ = ["Runner", "Rhythm"]

log = structlog.get_logger()

#: A job that was claimed so often without coming to its end ends its workers: it gets what is there, and no more.
_MOST_CLAIMS: Final = 25
#: And one that cannot even be ended like that is failed.
_MOST_ENDS: Final = 35
#: A job that could not be worked on waits so long per claim it has had, in seconds.
_PAUSE_S: Final = 2.0
_PROVIDER_JOBS: Final = 64
#: Calls of one job that are under way at once.
_CALLS: Final = 4


class Rhythm(msgspec.Struct, frozen=True, kw_only=True):
    """How much a runner does, and how often. Seconds."""

    jobs: int = 64
    """At once."""
    provider_jobs: Mapping[str, int] = {}
    """At once at a provider, by all runners together, where it is not the usual number."""
    lease_s: float = 30.0
    beat_s: float = 5.0
    look_s: float = 0.5
    """Between two looks at what users and providers want of the jobs in work."""
    claim_s: float = 0.1
    """Between two looks for new jobs."""
    batch_s: float = 0.02
    """Between two claims, so that a busy runner takes several jobs with each."""
    poll_s: float = 1.0
    """Between two looks at a task."""


async def _no_own_key(user: str, provider: str) -> None:
    return None


class Runner:
    """Works jobs off: `run`, and `stop` from elsewhere."""

    def __init__(
        self,
        primary: Primary,
        objects: Objects,
        pictures: PictureProcess,
        providers: Mapping[str, Provider],
        models: Models,
        prices: Prices,
        *,
        name: str,
        fetch: Fetch,
        urls: SignedUrls,
        owner_secret: bytes,
        limits: Limits,
        on_change: Callable[[str, Bookmark], None] = lambda user, bookmark: None,
        own_key: OwnKey = _no_own_key,
        moderation: Moderation = allow,
        callback_url: Callable[[str], str] = lambda provider: "",
        rhythm: Rhythm | None = None,
        policy: Policy | None = None,
        dice: Random | None = None,
    ) -> None:
        """`name` tells this runner from all others, also from those before it. `callback_url`: provider → where it may
        tell that a task has ended, "" for nowhere."""
        self.tally = Tally()
        self._primary, self._providers, self._models = primary, providers, models
        self._name, self._limits, self._on_change, self._callback_url = name, limits, on_change, callback_url
        self._rhythm = rhythm or Rhythm()
        self._most = {name: self._rhythm.provider_jobs.get(name, _PROVIDER_JOBS) for name in providers}
        self._write = Writer(primary, on_change)
        self._requests = Requests(primary, objects, urls)
        delivery = Delivery(primary, self._write, objects, pictures, fetch, moderation, limits, owner_secret)
        self._caller = Caller(
            primary, self._write, providers, models, prices, delivery, own_key, self.tally,
            policy=policy or Policy(), dice=dice or Random(), every_s=self._rhythm.poll_s,
        )  # fmt: skip
        self._held: dict[uuid.UUID, tuple[Work, asyncio.Task[None]]] = {}
        self._has_room = asyncio.Event()
        self._claims_no_more = asyncio.Event()
        self._stopping = asyncio.Event()
        self._stopped = asyncio.Event()

    @property
    def running(self) -> int:
        """Jobs in work now."""
        return len(self._held)

    async def run(self) -> None:
        """Until `stop`. Cancelled, it leaves everything as it is, as a crash does."""
        ticking = asyncio.create_task(self._tick())
        try:
            await self._claim_until_stopping()
            self._claims_no_more.set()
            await self._stopped.wait()
        finally:
            tasks = [ticking, *(task for _, task in self._held.values())]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def stop(self, *, grace_s: float) -> None:
        """Take no more. Jobs that nobody was asked for yet wait again at once; the others have `grace_s` to come to
        their end, and are then left to whoever resumes them."""
        self._stopping.set()
        await self._claims_no_more.wait()  # a claim that is under way brings jobs
        untouched = [(work, task) for work, task in self._held.values() if not work.is_begun]
        await self._drop([task for _, task in untouched])
        try:
            for user, head in (await jobs.put_back(self._primary, [work.job for work, _ in untouched])).items():
                self._on_change(user, head)
            left = dict(self._held)
            if left:
                await asyncio.wait([task for _, task in left.values()], timeout=grace_s)
            late = [(work, task) for work, task in left.values() if not task.done()]
            await self._drop([task for _, task in late])
            await jobs.give_back(self._primary, [work.job for work, _ in late])
        except PrimaryUnavailable:
            log.warning("runner.left", jobs=len(self._held))  # their leases end
        self._stopped.set()

    async def _drop(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- taking and keeping ---------------------------------------------------------------------------------------

    async def _claim_until_stopping(self) -> None:
        while not self._stopping.is_set():
            wait_s = self._rhythm.claim_s
            room = self._rhythm.jobs - len(self._held)
            try:
                if room and await jobs.is_work_waiting(self._primary, self._most):
                    wait_s = self._rhythm.batch_s if await self._claim(room) else wait_s
            except PrimaryUnavailable:
                wait_s = 1.0
            await self._pause(wait_s)
            if len(self._held) >= self._rhythm.jobs:
                await self._until_room()

    async def _claim(self, room: int) -> int:
        taken, heads = await jobs.claim(
            self._primary, self._name, most=self._most, room=room, lease_s=self._rhythm.lease_s
        )
        for job in taken:
            self._start(job)
        for user, head in heads.items():
            self._on_change(user, head)
        return len(taken)

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            pass

    async def _until_room(self) -> None:
        self._has_room.clear()
        waiting = [asyncio.ensure_future(event.wait()) for event in (self._has_room, self._stopping)]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waiting:
                one.cancel()

    async def _tick(self) -> None:
        """Keep the leases, and hear what is wanted of the jobs. Ended by `run`."""
        beat_at = 0.0
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._rhythm.look_s)
            held = dict(self._held)
            if not held:
                continue
            try:
                if loop.time() >= beat_at:
                    known = await jobs.beat(self._primary, self._name, held, lease_s=self._rhythm.lease_s)
                    beat_at = loop.time() + self._rhythm.beat_s
                else:
                    known = await jobs.look(self._primary, self._name, held)
            except PrimaryUnavailable:
                continue  # nobody else can claim them either
            for id, (work, task) in held.items():
                beaten = known.get(id)
                if beaten is not None and beaten.fence == work.job.fence:
                    work.hear(beaten)
                elif not work.is_ending:
                    task.cancel()

    def _start(self, job: Claimed) -> None:
        if job.id in self._held:  # our own lease had ended, and we were first to find out
            self._held[job.id][1].cancel()
        work = Work(job)
        task = asyncio.create_task(self._keep(work))
        self._held[job.id] = work, task
        task.add_done_callback(lambda task: self._ended(job, task))

    def _ended(self, job: Claimed, task: asyncio.Task[None]) -> None:
        if self._held.get(job.id, (None, None))[1] is task:
            del self._held[job.id]
        self._has_room.set()
        if not task.cancelled():
            task.exception()  # read, so that asyncio does not log it

    # --- one job --------------------------------------------------------------------------------------------------

    async def _keep(self, work: Work) -> None:
        """One job as far as it comes."""
        job = work.job
        try:
            state = await self._work(work)
            self.tally.saw_job(job.provider, state)
            log.info("job.ended", job=str(job.id), user=job.owner_id, model=job.model, state=state)
        except Lost as lost:
            log.info("job.lost", job=str(job.id), reason=str(lost))
        except Exception:
            log.exception("job.dropped", job=str(job.id), fence=job.fence)
            try:
                await jobs.give_back(self._primary, [job], after_s=_PAUSE_S * job.fence)
            except PrimaryUnavailable:
                pass  # its lease ends

    async def _work(self, work: Work) -> str:
        """Bring a job to its end; answers its final state."""
        job = work.job
        rows = await attempts_of(self._primary, job)
        try:
            if job.fence > _MOST_ENDS:
                raise WorkerFailed(f"{job.fence - 1} claims did not bring the job to its end")
            if job.provider not in self._providers:
                raise InvalidRequest(f"there is no provider {job.provider!r}", model=job.model)
            callback_url = self._callback_url(job.provider)
            params, requests = await self._requests.of(job, self._models.of(job.model), callback_url=callback_url)
        except GenerationError as error:
            work.is_ending, reason = True, error
            return await self._write(job, lambda connection: fail(connection, job, reason))
        if job.fence > _MOST_CLAIMS:
            found: list[Delivered | GenerationError] = [
                *(Delivered(row.id, row.pictures, None) for row in rows if row.state == "done"),
                WorkerFailed(f"{job.fence - 1} claims did not bring the job to its end"),
            ]
        else:
            found = await self._call_all(work, requests, rows)
        delivered = [one for one in found if isinstance(one, Delivered)]
        errors = [one for one in found if isinstance(one, GenerationError)]
        work.is_ending = True
        return await self._write(
            job,
            lambda connection: settle(
                connection, job, params, delivered, errors, self._limits, is_canceled=work.is_canceled and bool(errors)
            ),
        )

    async def _call_all(
        self, work: Work, requests: list[Request], rows: list[Attempt]
    ) -> list[Delivered | GenerationError]:
        """What became of each call, in their order."""
        before = {call: list(some) for call, some in groupby(rows, lambda row: row.call)}
        # The last row of a call that is unknown is weighed when the call goes on.
        work.unknown = sum(row.state == "unknown" for some in before.values() for row in some[:-1])
        work.expect(len(requests))
        turns = asyncio.Semaphore(_CALLS)

        async def one(call: int, request: Request) -> Delivered | GenerationError:
            async with turns:
                try:
                    return await self._caller.pictures(work, call, request, before.get(call, []))
                except GenerationError as error:
                    return error

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(call, request)) for call, request in enumerate(requests)]
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from failed
        return [task.result() for task in tasks]
