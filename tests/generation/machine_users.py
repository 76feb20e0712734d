"""What users do to the machine's jobs and credits, and what somebody tries by plain SQL."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final

import asyncpg

from store import storage
from store.accounts import set_budgets, set_plan
from store.credits import grant
from store.erasure import erase
from store.errors import AlreadyEnded, BudgetExceeded, InsufficientCredits, NotFound, StoreError
from store.generation.canceling import cancel
from store.generation.creating import create
from store.generation.models import Models
from store.generation.params import JobParams
from store.generation.planning import Draft, Plan
from store.primary import Primary
from store.storage import Limits, Reservation
from tests.generation.interference import REFUSED
from tests.generation.laws import Laws
from tests.generation.scripted import SEED, Book, Play, Word

__all__ = ["LIMITS", "USERS", "UsersDo"]

USERS: Final = ("ana", "bob", "cyn")
#: Enough for some small pictures, so that now and then there is no room.
LIMITS: Final = Limits(12_000, 60_000, 10**9)


class UsersDo:
    """Half of a stage: each method is one thing, and says what has to come of it."""

    primary: Primary
    laws: Laws
    book: Book
    seen: Counter[str]
    _operator: asyncpg.Connection

    def begin_users(self) -> None:
        self.jobs: list[uuid.UUID] = []
        #: Jobs that something happened to: their end is not their provider's alone.
        self._disturbed: set[uuid.UUID | None] = set()
        #: job → user, words, pictures.
        self._said: dict[uuid.UUID, tuple[str, list[Word], int]] = {}
        self._erased: set[str] = set()
        self._keys = dict.fromkeys(USERS, True)
        self._filled: dict[str, Reservation] = {}

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
        room = getattr(LIMITS, account["plan"]) - account["storage_used_bytes"] - account["storage_reserved_bytes"]
        if room > 0:
            self._filled[user], _ = await self.primary.write(
                user, lambda connection: storage.reserve(connection, user, room, LIMITS)
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
