"""Users with credits, jobs of all kinds, workers that wait at gates, and everything that may happen to them.

Nothing runs between two calls: every worker waits at a gate. So what must hold is looked at after each.
"""

from __future__ import annotations

import shutil
import uuid
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any, Final

import asyncpg
from pydantic import SecretStr

from store import storage
from store.accounts import set_budgets, set_plan
from store.credits import grant
from store.deletions import delete_due
from store.erasure import erase
from store.errors import (
    AlreadyEnded,
    BudgetExceeded,
    InsufficientCredits,
    NotFound,
    StoreError,
)
from store.generation import jobs
from store.generation.canceling import cancel
from store.generation.creating import create
from store.generation.models import Models
from store.generation.params import JobParams
from store.generation.planning import Draft, Plan
from store.money_audit import audit_money
from store.objects.keys import keys_of
from store.objects.local import LocalObjects
from store.objects.picture_process import PictureProcess
from store.objects.reconcile import Finding, reconcile
from store.primary import Primary
from store.storage import Limits, Reservation
from tests.actors.machine_backup import restore, save
from tests.generation.interference import REFUSED
from tests.generation.laws import Laws
from tests.generation.scripted import SEED, Book, Play, Word
from tests.generation.workers import MOST, Shared, Worker

__all__ = ["USERS", "Stage"]

USERS: Final = ("ana", "bob", "cyn")
_WORKERS: Final = 3
#: Enough for some small pictures, so that now and then there is no room.
_LIMITS: Final = Limits(12_000, 60_000, 10**9)
#: What ends in pictures if the worker is left in peace, at most three times for nothing.
_TAME: Final = frozenset({"ok", "busy", "away", "failed"})


class Stage:
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
        self._shared = Shared(self.primary, self.objects, self._pictures, self.book, _LIMITS, self._own_key)
        self.jobs: list[Any] = []
        self._disturbed: set[Any] = set()
        self._said: dict[Any, tuple[str, list[Word], int]] = {}
        self._erased: set[str] = set()
        self._keys = {user: True for user in USERS}
        self._filled: dict[str, Reservation] = {}
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

    # --- users ----------------------------------------------------------------------------------------------------

    async def create(
        self, user: str, model: str, n: int, unit: int, words: Sequence[Word], looks: int, own_key: bool
    ) -> None:
        """One job; it is refused just when balance or budgets do not cover it."""
        found = Models().of(model)
        n = min(n, found.limits.max_n)
        price = 0 if own_key else n * unit
        params = JobParams(width=512, height=512, seed=SEED if found.limits.has_seed else None)
        draft = Draft(found, "TEXT_TO_IMAGE", "a red panda", params, None, n, own_key, price, Decimal(0), 0, 1)
        refusals = await self._refusals(user, price)
        plan, refused = Plan((draft,), None, ()), None
        try:
            made, _ = await self.primary.write(user, lambda connection: create(connection, user, plan))
        except (InsufficientCredits, BudgetExceeded, NotFound) as error:
            refused = type(error)
        assert refused in (refusals or {None}), f"{price} tenths: {refused} and not {refusals}"
        if refused is not None:
            self.seen[f"refused: {refused.__name__}"] += 1
            return
        self.jobs += made.jobs
        self.book.plays[made.jobs[0]] = Play(list(words), looks)
        self._said[made.jobs[0]] = user, list(words), n
        if own_key and not self._keys[user]:
            self._disturbed |= set(made.jobs)
        self.seen["created"] += 1

    async def _refusals(self, user: str, price: int) -> set[type[StoreError]]:
        if user in self._erased:
            return {NotFound}
        rows = await self.primary.fetch(
            """select a.*, (select coalesce(sum(price_tenths - refunded_tenths), 0) from jobs where owner_id = $1) spent
            from accounts a where owner_id = $1""",
            user,
        )  # fmt: skip
        account, found = rows[0], set[type[StoreError]]()
        if price > account["balance_tenths"]:
            found.add(InsufficientCredits)
        budgets = [account[name] for name in ("day_budget_tenths", "month_budget_tenths")]
        if price and any(budget is not None and account["spent"] + price > budget for budget in budgets):
            found.add(BudgetExceeded)
        return found

    async def cancel(self, which: int) -> None:
        """Any job, at any moment."""
        job = self._pick(which)
        if job is None:
            return
        rows = await self.primary.fetch("select * from jobs where id = $1", job)
        waits = await self.primary.fetch(
            """select true from queue where job_id = $1 and worker is null and not exists (
              select from attempts where job_id = $1 and state in ('started', 'submitted', 'done'))""",
            job,
        )  # fmt: skip
        user = rows[0]["owner_id"] if rows else USERS[0]
        said: str
        try:
            said, _ = await self.primary.write(user, lambda connection: cancel(connection, user, job))
        except (NotFound, AlreadyEnded) as error:
            said = type(error).__name__
        is_over = job in self.laws.ended
        expected = "AlreadyEnded" if is_over else "canceled" if waits else "requested" if rows else "NotFound"
        assert said == expected
        self._disturbed.add(job)
        self.seen[f"cancel: {said}"] += 1

    async def grant(self, user: str, tenths: int) -> None:
        try:
            await self.primary.write(user, lambda connection: grant(connection, user, tenths, "a gift"))
        except InsufficientCredits:
            assert tenths < 0
        except NotFound:
            assert user in self._erased

    async def plan(self, user: str, plan: str) -> None:
        if user not in self._erased:
            await self.primary.write(user, lambda connection: set_plan(connection, user, plan))

    async def budget(self, user: str, day: int | None, month: int | None) -> None:
        budgets = {"day_budget_credits": day, "month_budget_credits": month}
        if user not in self._erased:
            await self.primary.write(user, lambda connection: set_budgets(connection, user, budgets))

    async def own_key(self, user: str, has_key: bool) -> None:
        """The user's own key at the providers goes, or comes back."""
        self._keys[user] = has_key
        self._disturb(user)

    async def fill(self, user: str) -> None:
        """Another upload takes all the room that there is; the next time it gives it back."""
        self._disturb(user)
        if (held := self._filled.pop(user, None)) is not None:
            await self.primary.write(user, lambda connection: storage.release(connection, held))
            return
        if user in self._erased:
            return
        rows = await self.primary.fetch("select * from accounts where owner_id = $1", user)
        account = rows[0]
        room = getattr(_LIMITS, account["plan"]) - account["storage_used_bytes"] - account["storage_reserved_bytes"]
        if room > 0:
            self._filled[user], _ = await self.primary.write(
                user, lambda connection: storage.reserve(connection, user, room, _LIMITS)
            )
            self.seen["filled"] += 1

    async def erase(self, user: str) -> None:
        """The user goes, whatever their jobs are at."""
        if user in self._erased:
            return
        self._erased.add(user)
        self._filled.pop(user, None)
        await erase(self.primary, user)
        self.seen["erased"] += 1

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

    async def interfere(self, which: int) -> None:
        """Somebody tries by plain SQL what nobody may."""
        job = self._pick(which)
        if job is None or not await self.primary.fetch("select true from jobs where id = $1", job):
            return
        for name, sql in REFUSED.items():
            try:
                said = await self._operator.execute(sql, job)
            except asyncpg.PostgresError as error:
                said = error.sqlstate
                self.seen[f"sql refused: {name}"] += 1
            assert said in ("PE003", "UPDATE 0", "DELETE 0"), f"{name}: {said}"

    def _pick(self, which: int) -> Any:
        return self.jobs[which % len(self.jobs)] if self.jobs else None

    def _disturb(self, user: str) -> None:
        self._disturbed |= {job for job, (owner, *_) in self._said.items() if owner == user}

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
