"""Sync against everything at once: writers that interleave, hints that are lost, hosts that end, files that break and
primaries that are restored, in any order; a failing order is made short before it is shown."""

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

from tests.actors.machine import USERS, Beside, Crash, Stage
from tests.actors.machine_files import Damage
from tests.actors.machine_writers import Step, steps

#: How many orders are tried. By default always the same ones; a number asks for so many new ones.
_EXAMPLES = int(os.environ.get("PERUSE_TEST_EXAMPLES", "0"))

_users = st.sampled_from(USERS)
_seldom = st.sampled_from([False, False, False, True])

#: A method of `Stage`, and its arguments.
Thing = tuple[str, dict[str, Any]]


def _thing(name: str, **arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Thing]:
    return st.tuples(st.just(name), st.fixed_dictionaries(arguments))


_READERS = st.one_of(
    _thing("read", user=_users, has_floor=st.booleans()),
    _thing("pull", user=_users),
    _thing("poke", user=_users, times=st.integers(1, 3), ahead=st.sampled_from([0, 0, 0, 1, -1])),
    _thing("sweep"),
    _thing("commit_beside", number=st.integers(0, 3), beside=st.sampled_from(get_args(Beside)), user=_users),
    _thing("check_split", user=_users),
)
_TROUBLES = st.one_of(
    _thing("crash", user=_users, moment=st.sampled_from(get_args(Crash)), seed=st.integers(0, 99)),
    _thing("passivate", user=_users),
    _thing("rest", user=_users),
    _thing("restart", has_other_documents=st.booleans()),
    _thing("damage", user=_users, how=st.sampled_from(get_args(Damage))),
    _thing("trim", user=_users, keep=st.integers(0, 3)),
    _thing("back_up", rotates=_seldom),
    _thing("restore", loses=st.none() | _users, rotates=_seldom, is_written_again=st.booleans()),
    _thing("restore", loses=_users, rotates=st.just(False), is_written_again=st.just(True)),
)


class SyncMachine(RuleBasedStateMachine):
    """Each rule is a few statements of writers, and then one thing that happens; `Stage` does it and checks what must
    hold."""

    def __init__(self, stage: Stage, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.stage = stage
        self._loop = loop
        self._has_failed = False

    def do(self, steps: list[Step], thing: Thing) -> None:
        name, arguments = thing
        self.run(self.stage.write(steps))
        self.run(getattr(self.stage, name)(**arguments))

    def run(self, work: Coroutine[Any, Any, Any]) -> None:
        try:
            self._loop.run_until_complete(work)
        except BaseException:
            self._has_failed = True
            raise

    @initialize(many=st.sampled_from([0, 1]))
    def begin(self, many: int) -> None:
        self.run(self.stage.begin(many=many))

    def teardown(self) -> None:
        try:
            if not self._has_failed:
                self.run(self.stage.settle())
        finally:
            self.run(self.stage.end())

    # Two rules and not one for each thing: of many, Hypothesis leaves most out of any one order.

    @rule(steps=steps(), thing=_READERS)
    def read(self, steps: list[Step], thing: Thing) -> None:
        self.do(steps, thing)

    @rule(steps=steps(), thing=_TROUBLES)
    def trouble(self, steps: list[Step], thing: Thing) -> None:
        self.do(steps, thing)


#: What has to have happened before nothing found means anything.
_SEEN = (
    "commit", "rollback", "savepoint", "back to savepoint", "flush", "copy", "many images", "move image",
    "rename image", "delete user", "LockNotAvailableError", "SerializationError", "UniqueViolationError",
    "commit beside a reader", "pokes", "sweeps",
    "crash before", "crash during", "crash after", "torn logs", "other documents", "trimmed versions", "rotations",
    "rest", "restores", "the same version in another history", "splits", "reset: epoch", "reset: ahead", "reset: nonce",
    "reset: horizon", "reset: bulk",
)  # fmt: skip


@pytest.mark.timeout(0 if _EXAMPLES else 900)  # a failing order is made short, which takes its time
def test_every_answer_is_a_version_that_was_in_whatever_order_things_happen(database: str, tmp_path: Path) -> None:
    """Every answer is one snapshot at the version it names, versions do not go back, nobody is shown a row of another,
    all replicas converge, and from any earlier version one pull makes the file that a seed makes.

    mission: 118, 133, 134, 135, 136, 138, 141
    """
    loop = asyncio.new_event_loop()
    stage = Stage(database, tmp_path)
    loop.run_until_complete(stage.open())
    try:
        run_state_machine_as_test(
            lambda: SyncMachine(stage, loop),
            settings=settings(
                max_examples=_EXAMPLES or 40,
                stateful_step_count=50 if _EXAMPLES else 12,
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
