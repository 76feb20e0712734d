"""Users with credits, jobs of all kinds, workers that wait at gates, and everything that may happen to them.

Nothing runs between two calls: every worker waits at a gate. So what must hold is looked at after each.
"""

from __future__ import annotations

import shutil
import uuid
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Final

import asyncpg
from pydantic import SecretStr

from store.deletions import delete_due
from store.generation import jobs
from store.money_audit import audit_money
from store.objects.keys import keys_of
from store.objects.local import LocalObjects
from store.objects.picture_process import PictureProcess
from store.objects.reconcile import Finding, reconcile
from store.primary import Primary
from tests.actors.machine_backup import restore, save
from tests.generation.laws import Laws
from tests.generation.machine_users import LIMITS, USERS, UsersDo
from tests.generation.scripted import Book
from tests.generation.workers import MOST, Shared, Worker

__all__ = ["Stage"]

_WORKERS: Final = 3
#: What ends in pictures if the worker is left in peace, at most three times for nothing.
_TAME: Final = frozenset({"ok", "busy", "away", "failed"})


class Stage(UsersDo):
    """`open` once; `begin`, anything in any order, `settle` and `end` for each play."""

    def __init__(self, database: str, folder: Path) -> None:
        self.database, self.folder = database, folder
        #: How often what was seen, over all plays.
        self.seen: Counter[str] = Counter()
        self._numbers = count(1)

    async def open(self) -> None:
        self._operator = await asyncpg.connect(self.database)
        name = await self._operator.fetchval("select current_database()")
        await self._operator.execute(f"alter database {name} set synchronous_commit = off")  # nobody cuts the power
        self.primary = await Primary.open(self.database, name="machine", size=16)
        self._pictures = PictureProcess(max_workers=1, max_waiting=1000)
        await save(self._operator, "origin")

    async def close(self) -> None:
        await self._pictures.close()
        await self.primary.close()
        await self._operator.close()

    async def begin(self) -> None:
        await restore(self._operator, "origin")
        self._folder = self.folder / f"play-{next(self._numbers)}"
        self.objects = LocalObjects(self._folder)
        self.laws = Laws(self.primary, self.objects)
        self.book = Book()
        self._shared = Shared(self.primary, self.objects, self._pictures, self.book, LIMITS, self._own_key)
        self.begin_users()
        self.workers = [self._worker() for _ in range(_WORKERS)]
        for user in USERS:
            await self.grant(user, 300)
        await self.plan(USERS[1], "pro")

    def _worker(self) -> Worker:
        return Worker(f"worker-{next(self._numbers)}", self._shared)

    async def _own_key(self, user: str, provider: str) -> SecretStr | None:
        return SecretStr("a user's own key") if self._keys[user] else None

    async def end(self) -> None:
        for worker in self.workers:
            await worker.crash()
        self.seen.update(f"asked: {asked.word}" for asked in self.book.asked)
        self.seen.update(f"ended: {end[0]}" for end in self.laws.ended.values())
        self.seen["drawn twice"] += sum(n > 0 for n in self.book.twice.values())
        shutil.rmtree(self._folder)

    # --- workers --------------------------------------------------------------------------------------------------

    async def claim(self, which: int) -> None:
        await self.primary.fetch("update queue set run_at = clock_timestamp() where run_at > clock_timestamp()")
        taken = await self.workers[which % _WORKERS].claim()
        self.seen["claimed"] += taken

    async def step(self, which: int, steps: int) -> None:
        """Some job goes so many gates further."""
        flows = [(worker, flow.job) for worker in self.workers for flow in worker.gates.of_jobs]
        if flows:
            worker, job = flows[which % len(flows)]
            self.seen[f"at {await worker.step(job, steps)}"] += 1

    async def work(self, which: int) -> None:
        """All jobs of a worker come as far as they can."""
        await self._busy_worker(which).work()

    async def crash(self, which: int, gate: str | None) -> None:
        """A worker ends where its jobs are, or with one of them at a gate."""
        worker, _ = await self._come_to(which, gate)
        for flow in worker.gates.of_jobs:
            self.seen["crashed"] += 1
            self.seen[f"left at {flow.name}"] += 1
            self._disturbed.add(flow.job)
        await worker.crash()
        self.workers[self.workers.index(worker)] = self._worker()

    async def _come_to(self, which: int, gate: str | None) -> tuple[Worker, uuid.UUID | None]:
        """A worker, with one of its jobs at a gate if it comes there soon."""
        worker = self._busy_worker(which)
        flows = worker.gates.of_jobs
        job = flows[which % len(flows)].job if flows else None
        for _ in range(12):
            if gate is None or job is None or gate in {flow.name for flow in worker.gates.of_jobs if flow.job == job}:
                break
            await worker.step(job)
        return worker, job

    async def oversleep(self, which: int, gate: str, steps: int, is_cleared: bool) -> None:
        """A worker sleeps at a gate until its lease has ended and another one went some steps with its job, and then
        goes on."""
        worker, job = await self._come_to(which, gate)
        if job is None:
            return
        self._disturbed.add(job)
        for flow in worker.gates.of_jobs:
            self.seen[f"left at {flow.name}"] += flow.job == job
        await self.primary.fetch(
            "update queue set lease_until = clock_timestamp() - interval '1 s' where job_id = $1 and worker = $2",
            job, worker.name,
        )  # fmt: skip
        other = self.workers[(self.workers.index(worker) + 1) % _WORKERS]
        self.seen["claimed"] += await other.claim()
        await other.step(job, steps)
        if is_cleared:
            await self.clear_away()
        await worker.step(job, 60)
        self.seen["overslept"] += 1

    async def stop(self, which: int) -> None:
        """A worker is asked to end, and does not get time for it."""
        worker = self._busy_worker(which)
        self._disturbed |= {flow.job for flow in worker.gates.of_jobs}
        await worker.stop()
        self.seen["stopped"] += 1
        self.workers[self.workers.index(worker)] = self._worker()

    def _busy_worker(self, which: int) -> Worker:
        busy = [worker for worker in self.workers if worker.gates.of_jobs] or self.workers
        return busy[which % len(busy)]

    async def expire(self, which: int, everything: bool) -> None:
        """Leases end; whose they were goes on without knowing."""
        rows = await self.primary.fetch("select job_id from queue where worker is not null order by fence, job_id")
        ids = [row[0] for row in rows]
        if ids:
            ended = ids if everything else [ids[which % len(ids)]]
            self._disturbed |= set(ended)
            await self.primary.fetch(
                "update queue set lease_until = clock_timestamp() - interval '1 s' where job_id = any($1)", ended
            )
            self.seen["expired"] += len(ended)

    async def listen(self, which: int) -> None:
        """A worker keeps its leases, and hears of cancels, callbacks and jobs that it has lost."""
        await self.workers[which % _WORKERS].listen()

    async def call_back(self, which: int, times: int) -> None:
        """A provider tells that a task has ended: rightly, too early, late, or twice."""
        tasks = [asked for asked in self.book.asked if asked.task is not None]
        if tasks:
            task = tasks[which % len(tasks)].task
            assert task is not None
            for _ in range(times):
                self.seen[f"called back: {await jobs.nudge(self.primary, 'replicate', task)}"] += 1
            assert not await jobs.nudge(self.primary, "replicate", "nobody's")

    async def clear_away(self) -> None:
        """Objects that nobody has are deleted, now and not at the end."""
        self.seen["cleared away"] += (await delete_due(self.primary, self.objects)).gone

    async def refuse_store(self, which: int) -> None:
        """The object store does not take the pictures of a job."""
        job = self._pick(which)
        if job is not None:
            self._disturbed.add(job)
            self._shared.refused.add(job)

    # --- what must hold -------------------------------------------------------------------------------------------

    async def check(self) -> None:
        for worker in self.workers:
            await worker.gates.quiet()
            assert not worker.gates.after_death, worker.gates.after_death
        assert not self.book.wrong, self.book.wrong
        await self.laws.check(kept=[room.id for room in self._filled.values()], most=MOST)

    async def settle(self) -> None:
        """Whatever is left comes to its end, and leaves nothing behind."""
        for which in range(2):
            await self.interfere(which)
        for user in list(self._filled):
            await self.fill(user)
        for turn in range(60):
            if not await self.primary.fetch("select true from queue limit 1"):
                break
            if turn > 10:
                await self.expire(0, True)
            for which in range(_WORKERS):
                await self.claim(which)
                await self.workers[which].work(at_once=True)
        left = await self.primary.fetch("select j.*, q.fence from queue q join jobs j on j.id = q.job_id")
        assert not left, f"stuck: {[dict(row) for row in left]}"
        for worker in self.workers:
            await worker.work(at_once=True)
        await self.interfere(0)
        await self.check()
        await self._check_tame()
        found, _ = await audit_money(self.primary, USERS)
        assert not found, found
        await self._clear_away()

    async def _check_tame(self) -> None:
        """Jobs that nobody disturbed, and that there was room for, ended as their providers let them."""
        rows = await self.primary.fetch("select id, error_code from jobs")
        errors = {row["id"]: row["error_code"] for row in rows}
        for job, (_, words, n) in self._said.items():
            if job in self._disturbed or job not in errors or not _TAME.issuperset(words):
                continue
            if errors[job] != "storage_quota_exceeded" and sum(word != "ok" for word in words) <= 3:
                state, _, images = self.laws.ended[job]
                assert (state, len(images)) == ("completed", n), f"{words} ended in {state}: {errors[job]}"
                self.seen["in peace"] += 1

    async def _clear_away(self) -> None:
        """Deletions, and a repair an hour later, leave the objects of the images and no others."""
        later = datetime.now(UTC) + timedelta(hours=2)
        await delete_due(self.primary, self.objects)
        found: list[Finding] = []
        prepare = self._pictures.prepare
        report = await reconcile(self.primary, self.objects, now=later, prepare=prepare, found=found.append)
        assert report.missing == 0
        strays = {finding.key for finding in found}
        assert strays <= self.book.late, f"nobody would delete {strays - self.book.late}"
        self.seen["strays"] += len(strays)
        await delete_due(self.primary, self.objects)
        rows = await self.primary.fetch("select object_key from images")
        wanted = {key for row in rows for key in keys_of(row[0])}
        assert {info.key async for info in self.objects.scan()} == wanted
