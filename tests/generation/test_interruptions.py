"""A worker is killed at each step of a job, by name, and another one goes on: what was asked, kept and charged then."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from store.credits import grant
from store.deletions import delete_due
from store.generation.canceling import cancel
from store.generation.creating import create
from store.generation.models import DOCUMENTS_MODEL, Models
from store.generation.params import JobParams
from store.generation.planning import Draft, Plan
from store.objects.keys import keys_of
from store.objects.local import LocalObjects
from store.objects.picture_process import PictureProcess
from store.primary import Primary
from store.storage import Limits
from tests.generation.laws import Laws
from tests.generation.scripted import SEED, Book, Play, Word
from tests.generation.workers import MODELS, TASKS, Shared, Worker

DIRECT = DOCUMENTS_MODEL
UNIT = 15


class Bench:
    """One user with 100 credits, and workers as they are wanted."""

    def __init__(self, primary: Primary, folder: Path, pictures: PictureProcess) -> None:
        self.primary, self.book, self.objects = primary, Book(), LocalObjects(folder)
        self.laws = Laws(primary, self.objects)
        self._shared = Shared(primary, self.objects, pictures, self.book, Limits(10**9, 10**9, 10**9))
        self.workers: list[Worker] = []

    async def job(self, model: str, *words: Word, n: int = 1, looks: int = 1) -> uuid.UUID:
        await self.primary.write("ana", lambda connection: grant(connection, "ana", 1000))
        found = Models().of(model)
        params = JobParams(width=512, height=512, seed=SEED)
        draft = Draft(found, "TEXT_TO_IMAGE", "a panda", params, None, n, False, n * UNIT, Decimal(0), 0, 1)
        made, _ = await self.primary.write(
            "ana", lambda connection: create(connection, "ana", Plan((draft,), None, ()))
        )
        self.book.plays[made.jobs[0]] = Play(list(words), looks)
        return made.jobs[0]

    async def worker(self) -> Worker:
        worker = Worker(f"worker-{len(self.workers)}", self._shared)
        self.workers.append(worker)
        assert await worker.claim() == 1
        return worker

    async def expire(self) -> None:
        await self.primary.fetch("update queue set lease_until = clock_timestamp() where worker is not null")

    async def rows(self) -> list[str]:
        """All that is written about jobs, but what is to be deleted."""
        tables = ("jobs", "queue", "attempts", "images", "credit_ledger", "accounts", "storage_reservations")
        all_rows = " union all ".join(f"select '{table} ' || t::text from {table} t" for table in tables)
        return sorted(row[0] for row in await self.primary.fetch(all_rows))

    async def after(self, job: uuid.UUID) -> After:
        """What there is, once everything that must hold was looked at."""
        assert not self.book.wrong
        await self.laws.check()
        row = (await self.primary.fetch("select * from jobs where id = $1", job))[0]
        lines = await self.primary.fetch(
            "select kind, amount_tenths from credit_ledger where job_id = $1 order by at", job
        )
        images = await self.primary.fetch("select count(*) from images where job_id = $1", job)
        attempts = await self.primary.fetch("select state from attempts where job_id = $1 order by call, number", job)
        return After(
            row["state"], row["error_code"], [asked.word for asked in self.book.of(job)],
            [tuple(line) for line in lines], images[0][0], [attempt[0] for attempt in attempts],
        )  # fmt: skip


class After(NamedTuple):
    state: str
    error_code: str | None
    asked: list[Word]
    """What the provider was asked, and may want to be paid for."""
    lines: list[tuple[Any, ...]]
    images: int
    attempts: list[str]


@pytest.fixture
async def bench(primary: Primary, tmp_path: Path, pictures: PictureProcess) -> AsyncIterator[Bench]:
    made = Bench(primary, tmp_path / "objects", pictures)
    yield made
    for worker in made.workers:
        await worker.crash()


_CHARGED = [("hold", -UNIT)]
_GIVEN_BACK = [("hold", -UNIT), ("refund", UNIT)]
#: Interruption → model, the gate at which the worker is killed, for which time it is there; how often the provider has
#: been asked then and at the end, and what becomes of the attempts.
_POINTS: dict[str, tuple[str, str, int, int, int, list[str]]] = {
    "before the attempt's row": (DIRECT, "write", 1, 0, 1, ["done"]),
    "after the attempt's row, before the call": (DIRECT, "ask", 1, 0, 1, ["unknown", "done"]),
    "after the call, before its answer": (DIRECT, "told", 1, 1, 2, ["unknown", "done"]),
    "after the bytes, before their keys": (DIRECT, "write", 2, 1, 2, ["unknown", "done"]),
    "after the keys, before the upload": (DIRECT, "put", 1, 1, 2, ["unknown", "done"]),
    "in the middle of the upload": (DIRECT, "half", 1, 1, 2, ["unknown", "done"]),
    "after the upload": (DIRECT, "put done", 1, 1, 1, ["done"]),
    "after the upload was noted, before the end": (DIRECT, "write", 4, 1, 1, ["done"]),
    "before a task's call": (TASKS, "ask", 1, 0, 1, ["unknown", "done"]),
    "after a task was taken, before its id was saved": (TASKS, "told", 1, 1, 2, ["unknown", "done"]),
    "in front of the save of a task's id": (TASKS, "write", 2, 1, 2, ["unknown", "done"]),
    "after a task's id was saved": (TASKS, "written", 2, 1, 1, ["done"]),
    "while a task runs": (TASKS, "look", 2, 1, 1, ["done"]),
    "after a task's bytes, before the upload": (TASKS, "put", 1, 1, 1, ["done"]),
    "in the middle of the upload of a task's picture": (TASKS, "half", 1, 1, 1, ["done"]),
    "after the upload of a task's picture": (TASKS, "put done", 1, 1, 1, ["done"]),
    "before the end of a task's job": (TASKS, "write", 5, 1, 1, ["done"]),
}


@pytest.mark.parametrize("point", list(_POINTS))
async def test_killed(bench: Bench, point: str) -> None:
    """Another worker brings the job to one picture and one charge; the provider is asked again only when nobody knows
    what became of the call, and once."""
    model, gate, time, asked_before, asked, attempts = _POINTS[point]
    job = await bench.job(model)
    first = await bench.worker()
    await first.come_to(job, gate, time)
    assert len(bench.book.of(job)) == asked_before
    await first.crash()
    await bench.laws.check()
    await bench.expire()
    second = await bench.worker()
    await second.work()
    assert await bench.after(job) == After("completed", None, ["ok"] * asked, _CHARGED, 1, attempts)


@pytest.mark.parametrize("point", list(_POINTS))
async def test_comes_back_after_its_lease(bench: Bench, point: str) -> None:
    """A worker that slept at the same step, and goes on behind the other one's end, changes nothing any more."""
    model, gate, time, _, asked, attempts = _POINTS[point]
    job = await bench.job(model)
    first = await bench.worker()
    await first.come_to(job, gate, time)
    await bench.expire()
    second = await bench.worker()
    await second.work()
    ended = await bench.after(job)
    assert ended == After("completed", None, ["ok"] * asked, _CHARGED, 1, attempts)
    await first.work()
    late = 1 if gate == "ask" else 0  # it had begun to ask when its lease ended: nothing holds that back
    assert await bench.after(job) == ended._replace(asked=["ok"] * (asked + late))


@pytest.mark.parametrize("point", list(_POINTS))
async def test_comes_back_in_the_middle(bench: Bench, point: str) -> None:
    """A worker that goes on while another one is at its job does not change a row."""
    model, gate, time, *_ = _POINTS[point]
    job = await bench.job(model)
    first = await bench.worker()
    await first.come_to(job, gate, time)
    await bench.expire()
    second = await bench.worker()
    await second.step(job, 2)
    before = await bench.rows()
    await first.work()
    assert await bench.rows() == before
    await second.work()
    assert (await bench.after(job))[3:5] == (_CHARGED, 1)


@pytest.mark.parametrize("gate", ["put", "half", "put done"])
@pytest.mark.parametrize("model", [DIRECT, TASKS])
async def test_what_came_late_is_deleted(bench: Bench, model: str, gate: str) -> None:
    """Objects that a worker stores after its lease, when what it had named is deleted already, do not stay."""
    job = await bench.job(model)
    first = await bench.worker()
    await first.come_to(job, gate)
    await bench.expire()
    await (await bench.worker()).work()
    await delete_due(bench.primary, bench.objects)
    await first.work()
    await delete_due(bench.primary, bench.objects)
    rows = await bench.primary.fetch("select object_key from images")
    assert {info.key async for info in bench.objects.scan()} == {key for row in rows for key in keys_of(row[0])}
    assert (await bench.after(job)).state == "completed"


@pytest.mark.parametrize("model", [DIRECT, TASKS])
async def test_killed_after_the_end_before_anybody_hears(bench: Bench, model: str) -> None:
    """The end is a commit: a worker that is killed behind it leaves nothing to do."""
    job = await bench.job(model)
    first = await bench.worker()
    await first.come_to(job, "written", 4 if model == DIRECT else 5)
    ended = await bench.after(job)
    assert ended == After("completed", None, ["ok"], _CHARGED, 1, ["done"])
    await first.crash()
    assert await bench.primary.fetch("select from queue") == []
    assert await bench.after(job) == ended


@pytest.mark.parametrize("model", [DIRECT, TASKS])
async def test_killed_twice_behind_the_call(bench: Bench, model: str) -> None:
    """Two outcomes that nobody knows are the most: the job fails, and all of it is given back."""
    job = await bench.job(model)
    for _ in range(2):
        worker = await bench.worker()
        await worker.come_to(job, "told")
        await worker.crash()
        await bench.expire()
    last = await bench.worker()
    await last.work()
    assert await bench.after(job) == After(
        "failed", "unknown_outcome", ["ok", "ok"], _GIVEN_BACK, 0, ["unknown", "unknown"]
    )


@pytest.mark.parametrize("model", [DIRECT, TASKS])
async def test_the_answer_is_lost(bench: Bench, model: str) -> None:
    """A provider that takes the call and never answers is asked once more; what it does not answer twice is given
    back."""
    again, lost = await bench.job(model, "lost"), None
    await (await bench.worker()).work()
    assert await bench.after(again) == After("completed", None, ["lost", "ok"], _CHARGED, 1, ["unknown", "done"])
    lost = await bench.job(model, "lost", "lost")
    await (await bench.worker()).work()
    assert await bench.after(lost) == After("failed", "timeout", ["lost", "lost"], _GIVEN_BACK, 0, ["unknown"] * 2)


async def test_killed_between_two_pictures(bench: Bench) -> None:
    """What is stored of a job is kept: only the call that was under way is made again."""
    job = await bench.job(DIRECT, n=2)
    first = await bench.worker()
    await first.come_to(job, "put done", 1)
    await first.crash()
    await bench.expire()
    await (await bench.worker()).work()
    after = await bench.after(job)
    assert (after.state, after.images, after.lines) == ("completed", 2, [("hold", -2 * UNIT)])
    assert len([asked for asked in bench.book.of(job) if asked.call == 0]) == 1


@pytest.mark.parametrize("model", [DIRECT, TASKS])
async def test_canceled_while_nobody_has_it(bench: Bench, model: str) -> None:
    """Pictures that were stored when their worker was killed are delivered and charged, though their user canceled
    meanwhile; a task is stopped, and given back."""
    job = await bench.job(model)
    first = await bench.worker()
    await first.come_to(job, "put done" if model == DIRECT else "look")
    await first.crash()
    await bench.primary.fetch("update queue set worker = null, lease_until = null")  # as a claim finds out
    said, _ = await bench.primary.write("ana", lambda connection: cancel(connection, "ana", job))
    assert said == "requested"
    await (await bench.worker()).work()
    after = await bench.after(job)
    if model == DIRECT:
        assert after == After("completed", None, ["ok"], _CHARGED, 1, ["done"])
    else:
        assert after[:5] == ("canceled", "canceled", ["ok"], _GIVEN_BACK, 0)


def test_the_models_are_what_their_names_say() -> None:
    """One of the two answers at once, the other by task."""
    assert (MODELS[DIRECT], MODELS[TASKS]) == ("workers_ai", "replicate")
