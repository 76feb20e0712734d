"""Gates: the places where a runner waits until a test lets it go on, so that it can be ended at any of them.

A runner gets its primary, objects and providers through gates, and everything else as it is. Nothing is open while a
runner waits at one: a gate stands before a transaction or behind its commit, never inside.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from store.errors import ObjectError
from store.objects.finishing import Finished
from store.objects.local import LocalObjects
from store.objects.picture_process import PictureProcess
from store.primary import Primary

__all__ = ["JOB", "Flow", "GatedObjects", "GatedPrimary", "Gates", "Pictures"]

T = TypeVar("T")

#: The job that the running task works on; tasks that it starts have it as well.
JOB: ContextVar[uuid.UUID | None] = ContextVar("job", default=None)
#: Turns of the loop in which nothing happens before everything is said to wait: no chain of callbacks is so long.
_QUIET = 25
_DEADLINE_S = 30.0
#: (bytes, watermark) → what the pictures' process made of them.
_READ: dict[tuple[bytes, str | None], Finished | Exception] = {}


@dataclass
class Flow:
    """Somebody who waits: `name` of the gate, `job` None for the runner's own loops."""

    name: str
    job: uuid.UUID | None
    go: asyncio.Future[None]


class Gates:
    """Of one runner. `log` names the gates that each job has come to, in order."""

    def __init__(self) -> None:
        self.flows: list[Flow] = []
        self.log: dict[uuid.UUID | None, list[str]] = {}
        self.is_dead = False
        #: What was begun behind the end of the runner: a crash leaves everything as it is.
        self.after_death: list[str] = []
        self._busy = 0
        self._idle = asyncio.Event()
        self._moves = 0

    async def wait(self, name: str) -> None:
        job = JOB.get()
        flow = Flow(name, job, asyncio.get_running_loop().create_future())
        self.flows.append(flow)
        self.log.setdefault(job, []).append(name)
        self._moves += 1
        try:
            await flow.go
        finally:
            self._moves += 1
            if flow in self.flows:
                self.flows.remove(flow)

    @contextmanager
    def busy(self, what: str) -> Any:
        """While something outside of this process is asked."""
        if self.is_dead:
            self.after_death.append(what)
        self._busy += 1
        self._idle.clear()
        self._moves += 1
        try:
            yield
        finally:
            self._busy -= 1
            self._moves += 1
            if not self._busy:
                self._idle.set()

    def let_go(self, flow: Flow) -> None:
        self.flows.remove(flow)
        flow.go.set_result(None)

    async def quiet(self) -> None:
        """Until everybody waits at a gate, or has come to an end."""
        deadline = asyncio.get_running_loop().time() + _DEADLINE_S
        still, moves = 0, self._moves
        while still < _QUIET:
            if self._busy:
                await asyncio.wait_for(self._idle.wait(), _DEADLINE_S)
            await asyncio.sleep(0)
            still = still + 1 if moves == self._moves and not self._busy else 0
            moves = self._moves
            assert asyncio.get_running_loop().time() < deadline, f"busy for {_DEADLINE_S} s: {self.log}"

    def of(self, *names: str) -> list[Flow]:
        return [flow for flow in self.flows if flow.name in names]

    @property
    def of_jobs(self) -> list[Flow]:
        """In the order of the jobs, and of each job in that in which they came: it is the same in every run."""
        return sorted((flow for flow in self.flows if flow.job is not None), key=lambda flow: str(flow.job))


class GatedPrimary:
    """The primary as a runner sees it: it claims and listens when it is let, and each write about a job has a gate
    before it (`write`) and behind its commit (`written`)."""

    def __init__(self, primary: Primary, gates: Gates) -> None:
        self._primary, self._gates = primary, gates

    async def fetch(self, sql: str, *parameters: Any) -> list[Any]:
        if "from attempts where job_id = $1" in sql:
            JOB.set(parameters[0])  # a job's task begins with what was tried before
        if sql.lstrip().startswith("select exists (select from queue"):
            await self._gates.wait("claim")
        if "lease_until = clock_timestamp() +" in sql or sql.startswith("select job_id, fence"):
            await self._gates.wait("listen")
        with self._gates.busy(sql):
            return await self._primary.fetch(sql, *parameters)

    async def write(self, owner: str, work: Callable[[Any], Awaitable[T]]) -> tuple[T, Any]:
        is_about_job = JOB.get() is not None
        if is_about_job:
            await self._gates.wait("write")
        with self._gates.busy("write"):
            answer = await self._primary.write(owner, work)
        if is_about_job:
            await self._gates.wait("written")
        return answer

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        with self._gates.busy("connection"):
            async with self._primary.connection() as connection:
                yield connection


class GatedObjects:
    """An object store with a gate before an upload (`put`), in the middle of it (`half`) and behind it (`put done`).

    `refuses` tells whether it does not take the pictures of a job. `saw` hears of what it took, and whether that was
    all.
    """

    def __init__(
        self,
        objects: LocalObjects,
        gates: Gates,
        refuses: Callable[[uuid.UUID | None], bool],
        saw: Callable[[Sequence[str], bool], Awaitable[None]],
    ) -> None:
        self._objects, self._gates, self._refuses, self._saw = objects, gates, refuses, saw

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objects, name)

    async def exists(self, key: str) -> bool:
        with self._gates.busy("exists"):
            return await self._objects.exists(key)

    async def put_many(self, items: Sequence[tuple[str, bytes]]) -> None:
        await self._gates.wait("put")
        if self._refuses(JOB.get()):
            raise ObjectError("the store is full")
        await self._put(items[:1], is_last=False)
        await self._gates.wait("half")
        await self._put(items[1:], is_last=True)
        await self._gates.wait("put done")

    async def _put(self, items: Sequence[tuple[str, bytes]], *, is_last: bool) -> None:
        with self._gates.busy("put"):
            await self._objects.put_many(items)
            await self._saw([key for key, _ in items], is_last)


class Pictures:
    """The pictures' process; each picture is read once for all plays, as the same few are sent again and again."""

    def __init__(self, pictures: PictureProcess, gates: Gates) -> None:
        self._pictures, self._gates = pictures, gates

    async def finish(self, data: bytes, *, watermark: str | None = None) -> Finished:
        if (data, watermark) not in _READ:
            with self._gates.busy("finish"):
                try:
                    _READ[data, watermark] = await self._pictures.finish(data, watermark=watermark)
                except Exception as error:
                    _READ[data, watermark] = error
        found = _READ[data, watermark]
        if isinstance(found, Exception):
            raise found
        return found
