"""Runners that wait at gates: one step at a time, until they are ended."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import SecretStr

from store.generation.models import DOCUMENTS_MODEL, Models
from store.generation.pricing import read_prices
from store.generation.retries import Policy
from store.generation.runner import Rhythm, Runner
from store.objects.local import LocalObjects
from store.objects.picture_process import PictureProcess
from store.objects.signing import GatewayUrls
from store.primary import Primary
from store.storage import Limits
from tests.generation.gates import JOB, GatedObjects, GatedPrimary, Gates, Pictures
from tests.generation.scripted import FREE, Book, Scripted

__all__ = ["MODELS", "MOST", "TASKS", "Shared", "Worker"]

#: The one whose provider takes tasks.
TASKS: Final = "replicate/black-forest-labs/flux-schnell"
#: Model → its provider: at once and many pictures a call, at once and one, by task, drawn by ourselves.
MODELS: Final = {
    "openai/dall-e-2": "openai",
    DOCUMENTS_MODEL: "workers_ai",
    TASKS: "replicate",
    "builtin": FREE,
}
#: Provider → most jobs at once.
MOST: Final = {"openai": 2, "workers_ai": 64, "replicate": 3, FREE: 64}
#: As often as can be: the gates say when.
_RHYTHM: Final = Rhythm(
    jobs=4, provider_jobs=MOST, lease_s=3600, beat_s=0.0, look_s=0.002, claim_s=0.0, batch_s=0.0, poll_s=0.0
)
_POLICY: Final = Policy(waits_s=(0.0, 0.0, 0.0), most_retry_after_s=0.0)
_PRICES: Final = read_prices()[1]
#: More gates than any job comes to.
_MANY: Final = 500


async def _no_key(user: str, provider: str) -> SecretStr | None:
    return None


@dataclass
class Shared:
    """What all workers of a play work with. `refused`: jobs whose pictures the object store does not take."""

    primary: Primary
    objects: LocalObjects
    pictures: PictureProcess
    book: Book
    limits: Limits
    own_key: Callable[[str, str], Awaitable[SecretStr | None]] = _no_key
    refused: set[uuid.UUID] = field(default_factory=set)


class Worker:
    """A runner, from its start on."""

    def __init__(self, name: str, shared: Shared) -> None:
        self.name, self._shared, self.gates = name, shared, Gates()
        providers = {
            provider: Scripted(provider, shared.book, self.gates, self._has, has_tasks=provider == "replicate")
            for provider in MODELS.values()
        }
        primary: Any = GatedPrimary(shared.primary, self.gates)
        objects: Any = GatedObjects(shared.objects, self.gates, lambda job: job in shared.refused, self._stored)
        pictures: Any = Pictures(shared.pictures, self.gates)
        self.runner = Runner(
            primary, objects, pictures, providers, Models(), _PRICES,
            name=name, fetch=_fetch, urls=GatewayUrls(b"secret", base=""), owner_secret=b"owner",
            limits=shared.limits, own_key=shared.own_key, rhythm=_RHYTHM, policy=_POLICY,
        )  # fmt: skip
        self._task = asyncio.create_task(self.runner.run())

    async def claim(self) -> int:
        """One look for jobs; answers how many were taken."""
        await self.gates.quiet()
        before = self.runner.running
        for flow in self.gates.of("claim"):
            self.gates.let_go(flow)
        await self.gates.quiet()
        return self.runner.running - before

    async def step(self, job: uuid.UUID | None, steps: int = 1) -> str:
        """Let a job pass so many gates; answers the last gate that it came to, "end" when there was none."""
        name = "end"
        for _ in range(steps):
            flow = next((flow for flow in self.gates.of_jobs if flow.job == job), None)
            if flow is None:
                return "end"
            self.gates.let_go(flow)
            await self.gates.quiet()
            name = self.gates.log[job][-1]
        return name

    async def come_to(self, job: uuid.UUID, gate: str, time: int = 1) -> None:
        """Let a job go on until it waits at a gate for that time."""
        await self.gates.quiet()
        for _ in range(_MANY):
            log = self.gates.log.get(job, [])
            if log.count(gate) >= time and any(flow.job == job and flow.name == gate for flow in self.gates.flows):
                return
            assert await self.step(job) != "end", f"{job} never came to {gate} for the {time}. time: {log}"
        raise AssertionError(f"{job} goes on for ever: {self.gates.log[job][-20:]}")

    async def work(self, *, at_once: bool = False) -> None:
        """All jobs as far as they come: one gate after the other, or everybody `at_once`."""
        for _ in range(_MANY):
            flows = self.gates.of_jobs
            if not flows:
                return
            for flow in flows if at_once else flows[:1]:
                self.gates.let_go(flow)
            await self.gates.quiet()
        raise AssertionError(f"no end is in sight: {[(flow.name, flow.job) for flow in self.gates.flows]}")

    async def listen(self) -> None:
        """One look at what is wanted of the jobs in work."""
        if self.runner.running:
            deadline = asyncio.get_running_loop().time() + 10
            while not self.gates.of("listen"):
                await asyncio.sleep(0.001)
                assert asyncio.get_running_loop().time() < deadline, f"{self.name} does not listen"
            for flow in self.gates.of("listen"):
                self.gates.let_go(flow)
            await self.gates.quiet()

    async def crash(self) -> None:
        """Ended as by kill -9: nothing more is asked or written."""
        self.gates.is_dead = True
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.gates.quiet()
        assert not self.gates.after_death, self.gates.after_death

    async def stop(self) -> None:
        """Asked to end, without time for it; a look for jobs that is under way finds some."""
        stopping = asyncio.create_task(self.runner.stop(grace_s=0.0))
        while not stopping.done():
            for flow in self.gates.of("claim"):
                self.gates.let_go(flow)
            await asyncio.sleep(0)
        await stopping
        await asyncio.wait_for(self._task, 10)

    async def _has(self, job: uuid.UUID) -> bool:
        sql = "select true from queue where job_id = $1 and worker = $2"
        return bool(await self._shared.primary.fetch(sql, job, self.name))

    async def _stored(self, keys: Sequence[str], is_last: bool) -> None:
        """When all pictures of an attempt that is ours are there, nobody may ask for them again. What came when the job
        was another's already is for the repair."""
        job = JOB.get()
        assert job is not None
        sql = (
            "select a.call from attempts a join queue q using (job_id) where a.job_id = $1 and q.worker = $2 "
            "and a.ended_at is null and exists (select from unnest(a.object_keys) o "
            "cross join object_keys(o, regexp_replace(o, '[.][^.]*$', '.thumb.webp')) k where k = any($3))"
        )
        rows = await self._shared.primary.fetch(sql, job, self.name, list(keys))
        if not rows:
            self._shared.book.late |= set(keys)
        elif is_last:
            self._shared.book.stored |= {(job, row[0]) for row in rows}


async def _fetch(url: str) -> bytes:
    raise AssertionError(f"nothing is at an address here: {url}")
