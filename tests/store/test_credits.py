"""Credits: exact amounts, grants, holds and what becomes of them, the ledger's pages, budgets, plans."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from store import accounts, credits
from store.credits import LedgerPlace, credits_text, tenths_of
from store.errors import BudgetExceeded, InsufficientCredits, InvalidValue, NotFound
from store.money_audit import audit_money
from store.pages import Page
from store.primary import Primary
from tests.money import add_job, add_user, balance_of, end_job, lines_of
from tests.world import add_images

_numbers = itertools.count(1)


async def grant(primary: Primary, tenths: int, reason: str = "") -> credits.Line:
    made, _ = await primary.write("ana", lambda c: credits.grant(c, "ana", tenths, reason))
    return made


# --- amounts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tenths", "text"),
    [(0, "0"), (5, "0.5"), (-5, "-0.5"), (-25, "-2.5"), (75, "7.5"), (-30, "-3"), (10**18 + 1, f"1{'0' * 17}.1")],
)  # fmt: skip
def test_amounts_have_one_decimal_at_most_and_come_back_as_they_went(tenths: int, text: str) -> None:
    """mission: 67, 71"""
    assert credits_text(tenths) == text
    if abs(tenths) < 10**10:
        assert tenths_of(Decimal(text)) == tenths


@pytest.mark.parametrize("text", ["0.05", "7.55", "1e-3", "1000000000.1", "-1e10", "NaN", "Infinity", "1e999999"])
def test_amount_that_cannot_be_counted_is_refused(text: str) -> None:
    """Nothing is rounded, and nothing takes long."""
    with pytest.raises(InvalidValue) as error:
        tenths_of(Decimal(text), field="day_budget_credits")

    assert error.value.field == "day_budget_credits"
    assert "day_budget_credits" in str(error.value)


# --- grants ---------------------------------------------------------------------------------------------------------


async def test_grant_makes_the_user_and_is_a_line_with_its_reason(primary: Primary) -> None:
    """mission: 67"""
    line = await grant(primary, 75, "welcome")

    assert (line.kind, line.amount_tenths, line.balance_tenths, line.job_id, line.reason) == (
        "grant",
        75,
        75,
        None,
        "welcome",
    )
    async with primary.connection() as connection:
        assert await balance_of(connection, "ana") == (75, 0)
        assert await lines_of(connection, "ana") == [("grant", 75, 75)]


async def test_what_is_taken_back_is_never_more_than_there_is(primary: Primary) -> None:
    """What a job holds is not there to be taken."""
    await grant(primary, 100)
    async with primary.connection() as connection:
        await add_job(connection, "ana", 60)

    with pytest.raises(InsufficientCredits) as error:
        await grant(primary, -41)
    await grant(primary, -40, "by mistake")

    assert (error.value.balance_tenths, error.value.needed_tenths) == (40, 41)
    assert str(error.value) == "this takes 4.1 credits, and the balance is 4"
    async with primary.connection() as connection:
        assert await balance_of(connection, "ana") == (0, 60)


async def test_a_grant_that_means_nothing_is_refused(primary: Primary) -> None:
    """And makes no user."""
    for tenths, reason, field in ((0, "", "credits"), (10, "x" * 501, "reason"), (10, "a\0b", "reason")):
        with pytest.raises(InvalidValue) as error:
            await grant(primary, tenths, reason)
        assert error.value.field == field

    assert await primary.fetch("select from users where id = 'ana'") == []


async def test_an_erased_user_is_given_nothing(primary: Primary) -> None:
    """Nor a plan, nor a budget: all of that would bring the name back."""
    async with primary.connection() as connection:
        await connection.execute("insert into erased_users (user_id, finished_at) values ('ana', clock_timestamp())")

    for work in (
        lambda c: credits.grant(c, "ana", 10),
        lambda c: accounts.set_plan(c, "ana", "pro"),
        lambda c: accounts.set_budgets(c, "ana", {"day_budget_credits": 10}),
    ):
        with pytest.raises(NotFound, match="user ana was erased"):
            await primary.write("ana", work)


# --- what jobs do to the balance ------------------------------------------------------------------------------------

creates = st.tuples(st.just("create"), st.sampled_from([10, 0, 30, 45, 75]), st.integers(1, 4))
ends = st.tuples(
    st.just("end"), st.integers(0, 50), st.sampled_from(["completed", "failed", "canceled"]), st.integers(1, 4)
)
operations = st.one_of(
    creates,
    ends,
    st.tuples(st.just("grant"), st.integers(-300, 600)),
    creates,
    ends,
    st.tuples(st.just("work"), st.integers(0, 50), st.sampled_from(["processing", "uploading"])),
    st.tuples(st.just("delete"), st.integers(0, 50)),
    creates,
    ends,
    st.tuples(st.just("lose images"), st.integers(0, 50)),
    st.tuples(st.just("budget"), st.one_of(st.none(), st.integers(0, 400))),
)


class Books:
    """What the primary must say, kept by hand."""

    def __init__(self) -> None:
        self.balance = 0
        self.budget: int | None = None
        #: Unfinished: id → (price, n). All: what each has spent so far.
        self.open: dict[uuid.UUID, tuple[int, int]] = {}
        self.ended: list[uuid.UUID] = []
        self.spent: dict[uuid.UUID, int] = {}

    @property
    def held(self) -> int:
        return sum(price for price, _ in self.open.values())

    def pick(self, number: int) -> uuid.UUID | None:
        return list(self.open)[number % len(self.open)] if self.open else None

    async def run(self, c: Any, user: str, operation: tuple[Any, ...]) -> None:
        match operation:
            case ("grant", tenths) if tenths:
                try:
                    async with c.transaction():
                        await credits.grant(c, user, tenths)
                except InsufficientCredits:
                    assert self.balance + tenths < 0
                else:
                    self.balance += tenths
            case ("create", unit, n):
                price = unit * n
                budget_left = None if self.budget is None else self.budget - sum(self.spent.values())
                try:
                    job = await add_job(c, user, price, n=n)
                except asyncpg.PostgresError as error:
                    match credits.refused(error):
                        case InsufficientCredits():
                            assert price > self.balance
                        case BudgetExceeded():
                            assert budget_left is not None
                            assert price > budget_left
                        case _:
                            raise
                else:
                    assert price <= self.balance
                    assert price == 0 or budget_left is None or price <= budget_left
                    self.balance -= price
                    self.open[job], self.spent[job] = (price, n), price
            case ("work", number, state) if (job := self.pick(number)) is not None:
                await c.execute("update jobs set state = $2 where id = $1", job, state)
            case ("end", number, state, wished) if (job := self.pick(number)) is not None:
                price, n = self.open.pop(job)
                delivered = min(wished, n) if state == "completed" else 0
                await end_job(c, user, job, state, delivered)
                self.balance += price - price // n * delivered
                self.spent[job] = price // n * delivered
                self.ended.append(job)
            case ("delete", number) if (job := self.pick(number)) is not None:
                price, _ = self.open.pop(job)
                await c.execute("delete from jobs where id = $1", job)
                self.balance += price
                del self.spent[job]
            case ("lose images", number) if self.ended:
                job = self.ended[number % len(self.ended)]
                await c.execute("delete from images where id in (select id from images where job_id = $1 limit 1)", job)
            case ("budget", tenths):
                await accounts.set_budgets(c, user, {"day_budget_credits": tenths, "month_budget_credits": tenths})
                self.budget = tenths


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=st.lists(operations, min_size=15, max_size=40))
async def test_whatever_happens_the_books_balance(primary: Primary, history: list[tuple[Any, ...]]) -> None:
    """After every step of every history: balance, holds and lines are what was kept by hand, and the audit is silent.

    mission: 30, 31, 53, 54, 55, 56, 67, 70
    """
    user = f"ana{next(_numbers)}"
    books = Books()
    async with primary.connection() as connection:
        await add_user(connection, user)
        for operation in [("grant", 500), *history]:
            await books.run(connection, user, operation)
            assert await balance_of(connection, user) == (books.balance, books.held)
            assert sum(amount for _, amount, _ in await lines_of(connection, user)) == books.balance
    assert (await audit_money(primary, [user]))[0] == []


async def test_fifty_jobs_at_once_against_a_balance_for_ten(database: str) -> None:
    """Ten are made, forty are told why not, and nothing is below nothing. mission: 30, 31"""
    primary = await Primary.open(database, name="fifty", size=20, wait_s=30.0)
    await grant(primary, 100)

    async def create() -> bool:
        try:
            await primary.write("ana", lambda c: add_job(c, "ana", 10))
        except asyncpg.PostgresError as error:
            meant = credits.refused(error)
            assert isinstance(meant, InsufficientCredits)
            assert (meant.balance_tenths, meant.needed_tenths) == (0, 10)
            return False
        return True

    made = await asyncio.gather(*(create() for _ in range(50)))

    async with primary.connection() as connection:
        assert made.count(True) == 10
        assert await balance_of(connection, "ana") == (0, 100)
        assert await connection.fetchval("select count(*) from jobs") == 10
        assert await connection.fetchval("select count(*) from queue") == 10
    assert (await audit_money(primary, ["ana"]))[0] == []
    await primary.close()


async def test_everything_at_once_and_the_books_balance(database: str) -> None:
    """Grants, new jobs, ends and deletions of one user on many connections: each counts once."""
    primary = await Primary.open(database, name="storm", size=12, wait_s=30.0)
    await grant(primary, 10_000)
    jobs = [(await primary.write("ana", lambda c: add_job(c, "ana", 40, n=4)))[0] for _ in range(30)]

    async def end(number: int, job: uuid.UUID) -> None:
        if number % 3 == 0:
            await primary.write("ana", lambda c: c.execute("delete from jobs where id = $1", job))
        else:
            state, delivered = ("completed", number % 4 + 1) if number % 3 == 1 else ("failed", 0)
            await primary.write("ana", lambda c: end_job(c, "ana", job, state, delivered))

    await asyncio.gather(
        *(end(number, job) for number, job in enumerate(jobs)),
        *(grant(primary, 7) for _ in range(30)),
        *(primary.write("ana", lambda c: add_job(c, "ana", 15)) for _ in range(30)),
    )

    delivered = sum(number % 4 + 1 for number in range(30) if number % 3 == 1)
    async with primary.connection() as connection:
        assert await balance_of(connection, "ana") == (10_000 - 10 * delivered + 30 * 7 - 30 * 15, 30 * 15)
    assert (await audit_money(primary, ["ana"]))[0] == []
    await primary.close()


async def test_refund_of_what_was_not_delivered_is_one_line_with_its_reason(primary: Primary) -> None:
    """mission: 53, 70"""
    async with primary.connection() as connection:
        await add_user(connection, "ana", 100)
        job = await add_job(connection, "ana", 40, n=4)
        await connection.execute("update jobs set error_message = 'the provider sent one' where id = $1", job)
        await end_job(connection, "ana", job, "completed", 1)
        (line, *_), _ = await credits.ledger(connection, "ana", Page())

    assert (line.kind, line.amount_tenths, line.balance_tenths, line.job_id) == ("refund", 30, 90, job)
    assert line.reason == "3 of 4 pictures were not delivered: the provider sent one"


# --- the ledger's pages ---------------------------------------------------------------------------------------------


async def test_every_line_is_on_one_page_the_newest_first(primary: Primary) -> None:
    """Also those that come while somebody turns the pages."""
    for number in range(1, 8):
        await grant(primary, number, f"line {number}")
    seen: list[str] = []
    page: Page[LedgerPlace] = Page(3)

    async with primary.connection() as connection:
        for _ in range(3):
            lines, has_more = await credits.ledger(connection, "ana", page)
            seen += [line.reason for line in lines]
            page = Page(3, LedgerPlace.of(lines[-1]))
            await credits.grant(connection, "ana", 100, "meanwhile")
        assert await credits.ledger(connection, "bob", Page()) == ([], False)

    assert not has_more
    assert seen == [f"line {number}" for number in range(7, 0, -1)]


# --- budgets and plans ----------------------------------------------------------------------------------------------


async def job_error(connection: Any, price: int) -> BudgetExceeded | None:
    """What refuses a job of `price`; None when it is made."""
    try:
        await add_job(connection, "ana", price)
    except asyncpg.PostgresError as error:
        meant = credits.refused(error)
        assert isinstance(meant, BudgetExceeded)
        return meant
    return None


async def test_budget_counts_what_was_spent_to_the_tenth(primary: Primary) -> None:
    """What was given back is not spent, what costs nothing is never refused, and None ends a budget."""
    async with primary.connection() as connection:
        await add_user(connection, "ana", 1000)
        await accounts.set_budgets(connection, "ana", {"day_budget_credits": 100})
        failed, half = await add_job(connection, "ana", 60), await add_job(connection, "ana", 40, n=2)

        error = await job_error(connection, 1)
        assert error is not None
        assert (error.period, error.budget_tenths, error.spent_tenths, error.needed_tenths) == ("day", 100, 100, 1)
        assert str(error) == "this takes 0.1 credits, and of the day's budget of 10 credits 10 are spent"
        await add_job(connection, "ana", 0)
        await end_job(connection, "ana", failed, "failed")
        await end_job(connection, "ana", half, "completed", 1)
        assert await job_error(connection, 81) is not None
        assert await job_error(connection, 80) is None
        await accounts.set_budgets(connection, "ana", {"day_budget_credits": None})
        assert await job_error(connection, 500) is None
    assert (await audit_money(primary, ["ana"]))[0] == []


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati", "Pacific/Pago_Pago"])
async def test_days_and_months_begin_at_midnight_in_utc(database: str, zone: str) -> None:
    """To the microsecond, wherever the one who writes believes to be."""
    connection = await asyncpg.connect(database, server_settings={"timezone": zone})
    await add_user(connection, "ana", 10_000)
    now = datetime.now(UTC)
    day = now.replace(hour=0, minute=0, second=0, microsecond=0)
    month = day.replace(day=1)
    before = timedelta(microseconds=1)
    for moment, price in ((day, 10), (day - before, 200), (month, 3000), (month - before, 4000)):
        await add_job(connection, "ana", price, created_at=moment)
    of_day = 10 + (3000 if day == month else 0)
    of_month = 3010 + (200 if day - before >= month else 0)

    for name, period, spent in (("day_budget_credits", "day", of_day), ("month_budget_credits", "month", of_month)):
        both: dict[str, int | None] = {"day_budget_credits": None, "month_budget_credits": None}
        await accounts.set_budgets(connection, "ana", {**both, name: spent + 9})
        error = await job_error(connection, 10)
        assert error is not None
        assert (error.period, error.spent_tenths, error.needed_tenths) == (period, spent, 10)
    await connection.close()


async def test_budget_below_nothing_is_refused(primary: Primary) -> None:
    """0 is a budget: nothing that costs."""
    async with primary.connection() as connection:
        await add_user(connection, "ana", 100)
        with pytest.raises(InvalidValue, match="month_budget_credits must not be below 0"):
            await accounts.set_budgets(connection, "ana", {"month_budget_credits": -1})
        await accounts.set_budgets(connection, "ana", {"month_budget_credits": 0})
        error = await job_error(connection, 1)
        assert error is not None
        assert error.period == "month"
        assert await job_error(connection, 0) is None


async def test_jobs_at_once_do_not_pass_a_budget_together(database: str) -> None:
    """Fifty, and a budget for seven."""
    primary = await Primary.open(database, name="budget", size=20, wait_s=30.0)
    await grant(primary, 10_000)
    await primary.write("ana", lambda c: accounts.set_budgets(c, "ana", {"day_budget_credits": 79}))

    async def create() -> bool:
        async with primary.connection() as connection:
            return await job_error(connection, 10) is None

    made = await asyncio.gather(*(create() for _ in range(50)))

    assert made.count(True) == 7
    await primary.close()


async def test_plan_is_one_of_three(primary: Primary) -> None:
    """mission: 74, 75, 76"""
    for plan in ("pro", "enterprise", "free"):
        await primary.write("ana", lambda c, plan=plan: accounts.set_plan(c, "ana", plan))
        assert await primary.fetch("select plan from accounts where owner_id = 'ana'") == [(plan,)]
    with pytest.raises(InvalidValue, match="plan must be one of free, pro, enterprise, got 'gold'"):
        await primary.write("ana", lambda c: accounts.set_plan(c, "ana", "gold"))


async def test_other_errors_are_not_about_money(primary: Primary) -> None:
    """They stay what they are."""
    async with primary.connection() as connection:
        await add_user(connection, "ana")
        with pytest.raises(asyncpg.PostgresError) as rule:
            await connection.execute("update accounts set balance_tenths = 5")
        with pytest.raises(asyncpg.UniqueViolationError) as unique:
            await connection.execute("insert into users (id) values ('ana')")
        await add_images(connection, "ana", 1)

    assert [credits.refused(error) for error in (rule.value, unique.value, ValueError("x"))] == [None, None, None]
