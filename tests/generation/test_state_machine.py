"""Jobs and credits against everything at once: workers that end at any step, leases that run out, providers whose
answers are lost, users who cancel, fill their room or go; a failing order is made short before it is shown."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from store.generation.models import DOCUMENTS_MODEL
from tests.generation.interference import REFUSED
from tests.generation.machine import Stage
from tests.generation.machine_users import USERS
from tests.generation.scripted import Word
from tests.generation.workers import MODELS, TASKS

#: How many orders are tried. By default always the same ones; a number asks for so many new ones.
_EXAMPLES = int(os.environ.get("PERUSE_TEST_EXAMPLES", "0"))

_users = st.sampled_from(USERS)
_which = st.integers(0, 11)
_words = st.lists(st.sampled_from(["ok", "ok", "ok", "lost", *get_args(Word)]), max_size=5)

#: A method of `Stage`, and its arguments.
Thing = tuple[str, dict[str, Any]]


def _thing(name: str, **arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Thing]:
    return st.tuples(st.just(name), st.fixed_dictionaries(arguments))


_CREATE = _thing(
    "create", user=_users, model=st.sampled_from([*MODELS, TASKS]), n=st.integers(1, 4),
    unit=st.sampled_from([0, 15, 60]),
    words=_words, looks=st.integers(0, 2), own_key=st.sampled_from([False, False, False, True]),
)  # fmt: skip
_CLAIM = _thing("claim", which=_which)
_STEP = _thing("step", which=_which, steps=st.integers(1, 14))
_LISTEN = _thing("listen", which=_which)
_WORK = st.one_of(_CLAIM, _STEP, _STEP)
#: What comes before something happens: jobs that have come somewhere.
_works = st.lists(_WORK, min_size=1, max_size=3)
_GATES = ("write", "written", "ask", "told", "look", "put", "half", "put done")
_CRASH = _thing("crash", which=_which, gate=st.sampled_from([None, *_GATES]))
_OVERSLEEP = _thing(
    "oversleep", which=_which, gate=st.sampled_from(_GATES), steps=st.sampled_from([*range(1, 13), 60]),
    is_cleared=st.booleans(),
)  # fmt: skip
_CRASHES = st.one_of(
    _CRASH,
    _CRASH,
    _CRASH,
    _OVERSLEEP,
    _OVERSLEEP,
    _thing("expire", which=_which, everything=st.booleans()),
    _thing("stop", which=_which),
    _thing("work", which=_which),
    _thing("refuse_store", which=_which),
    _thing("clear_away"),
)
_WANTS = st.one_of(
    _thing("cancel", which=_which),
    _thing("cancel", which=_which),
    _thing("call_back", which=_which, times=st.integers(1, 2)),
)
_BUDGET = _thing("budget", user=_users, day=st.sampled_from([30, 60, None]), month=st.sampled_from([30, 90, None]))
_USERS_DO = st.one_of(
    _thing("grant", user=_users, tenths=st.sampled_from([300, 25, -40])),
    _thing("plan", user=_users, plan=st.sampled_from(["free", "pro"])),
    _thing("own_key", user=_users, has_key=st.booleans()),
    _thing("fill", user=_users),
    _thing("erase", user=st.just(USERS[2])),
    _thing("interfere", which=_which),
)


class MoneyMachine(RuleBasedStateMachine):
    """`Stage` does each thing; what must hold is looked at behind it."""

    def __init__(self, stage: Stage, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.stage = stage
        self._loop = loop
        self._has_failed = False

    def do(self, thing: Thing) -> None:
        name, arguments = thing
        self.run(getattr(self.stage, name)(**arguments))
        self.run(self.stage.check())

    def run(self, work: Coroutine[Any, Any, Any]) -> None:
        try:
            self._loop.run_until_complete(work)
        except BaseException:
            self._has_failed = True
            raise

    @initialize(creates=st.lists(_CREATE, min_size=2, max_size=4), end=_CRASH | _OVERSLEEP)
    def begin(self, creates: list[Thing], end: Thing) -> None:
        self.run(self.stage.begin())
        for thing in (*creates, ("claim", {"which": 0}), end):
            self.do(thing)

    def teardown(self) -> None:
        try:
            if not self._has_failed:
                self.run(self.stage.settle())
        finally:
            self.run(self.stage.end())

    # Few rules and not one for each thing: of many, Hypothesis leaves most out of any one order.

    @rule(claim=_CLAIM, works=_works, crash=_CRASHES)
    def crash(self, claim: Thing, works: list[Thing], crash: Thing) -> None:
        for thing in (claim, *works, crash):
            self.do(thing)

    @rule(works=_works, want=_WANTS, listen=_LISTEN)
    def want(self, works: list[Thing], want: Thing, listen: Thing) -> None:
        for thing in (*works, want, listen):
            self.do(thing)

    @rule(thing=_USERS_DO | _BUDGET, create=_CREATE, works=_works)
    def create(self, thing: Thing, create: Thing, works: list[Thing]) -> None:
        create[1]["user"] = thing[1].get("user", create[1]["user"])
        for one in (thing, create, *works):
            self.do(one)


def _rehearsal(gate: str) -> list[Thing]:
    """Each thing once, with a worker that ends at `gate` and another that sleeps there."""
    create = {"n": 1, "unit": 15, "looks": 1, "own_key": False}
    return [
        *(("create", {**create, "user": "ana", "model": model, "words": ["ok"]}) for model in MODELS),
        *(("create", {**create, "user": "bob", "model": TASKS, "words": [word]}) for word in get_args(Word)),
        ("create", {**create, "user": "cyn", "model": DOCUMENTS_MODEL, "n": 3, "words": ["lost", "failed"]}),
        ("create", {**create, "user": "cyn", "model": "openai/dall-e-2", "n": 3, "words": ["fewer"]}),
        ("create", {**create, "user": "cyn", "model": "builtin", "n": 4, "unit": 100, "words": []}),
        ("budget", {"user": "cyn", "day": 60, "month": None}),
        ("create", {**create, "user": "cyn", "model": "builtin", "words": []}),
        ("cancel", {"which": 0}), ("cancel", {"which": 0}),
        ("claim", {"which": 0}), ("claim", {"which": 1}),
        ("oversleep", {"which": 0, "gate": gate, "steps": 60, "is_cleared": True}), ("claim", {"which": 0}),
        *(("oversleep", {"which": 0, "gate": gate, "steps": n, "is_cleared": False}) for n in (2, 5)),
        *(
            thing for which in range(4) for thing in (
                ("claim", {"which": which}), ("crash", {"which": which, "gate": gate}),
                ("expire", {"which": 0, "everything": True}))
        ),
        ("claim", {"which": 2}), ("step", {"which": 0, "steps": 5}),
        *(("cancel", {"which": which}) for which in range(4, 8)), ("call_back", {"which": 0, "times": 2}),
        ("step", {"which": 0, "steps": 9}), ("listen", {"which": 2}),
        ("expire", {"which": 0, "everything": True}), ("claim", {"which": 1}), ("stop", {"which": 0}),
        *(("cancel", {"which": which}) for which in range(8, 12)),
        ("fill", {"user": "bob"}), ("claim", {"which": 1}), ("work", {"which": 0}),
        ("call_back", {"which": 0, "times": 1}), ("interfere", {"which": 1}), ("clear_away", {}),
        ("erase", {"user": "cyn"}), ("create", {**create, "user": "cyn", "model": "builtin", "words": []}),
    ]  # fmt: skip


#: What has to have happened before nothing found means anything.
_SEEN = (
    "created", "claimed", "expired", "stopped", "erased", "filled", "drawn twice", "in peace", "crashed", "overslept",
    *(f"left at {gate}" for gate in _GATES), "cancel: canceled", "cancel: requested", "cancel: AlreadyEnded",
    "called back: True", "called back: False", "ended: completed", "ended: failed", "ended: canceled",
    "refused: InsufficientCredits", "refused: BudgetExceeded", "refused: NotFound",
    *(f"asked: {word}" for word in get_args(Word)), *(f"sql refused: {name}" for name in REFUSED),
)  # fmt: skip


@pytest.mark.timeout(0 if _EXAMPLES else 900)  # a failing order is made short, which takes its time
def test_no_credit_and_no_picture_is_lost_in_whatever_order_things_happen(database: str, tmp_path: Path) -> None:
    """Ledger, balance, holds, refunds, images, objects, room and queue agree after every step, no provider draws twice
    unless its answer was lost, and every job comes to one end.

    mission: 31, 43, 54, 56
    """
    loop = asyncio.new_event_loop()
    stage = Stage(database, tmp_path)
    loop.run_until_complete(stage.open())
    try:
        for gate in _GATES:
            play = MoneyMachine(stage, loop)
            play.begin(_rehearsal(gate), ("listen", {"which": 0}))
            play.teardown()
        run_state_machine_as_test(
            lambda: MoneyMachine(stage, loop),
            settings=settings(
                max_examples=_EXAMPLES or 70,
                stateful_step_count=30 if _EXAMPLES else 8,
                derandomize=not _EXAMPLES,
                database=None,
                deadline=None,
                report_multiple_bugs=False,
                phases=(Phase.generate, Phase.shrink),
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        loop.run_until_complete(stage.close())
        loop.close()
    print(dict(stage.seen.most_common()))
    assert [name for name in _SEEN if not stage.seen[name]] == []
