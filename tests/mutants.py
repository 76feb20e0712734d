"""Breaks the product on purpose, one promise at a time, and expects its tests to see it: `python -m tests.mutants`.

Everything happens in copies; the checkout is only read. Names on the command line choose mutants; exit 1 when one
survives.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Final, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

__all__ = ["MUTANTS", "Mutant", "NotThere", "mutate", "run"]

ROOT: Final = Path(__file__).parent.parent
_COPIED: Final = ("gateway", "actors", "store", "tests", "pyproject.toml")
_TIMEOUT_S: Final = 240.0


class Mutant(NamedTuple):
    """One change that breaks a promise: in `file`, `old` (which is there exactly once) becomes `new`. Each of `tests`
    must fail then."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


class NotThere(Exception):
    """Raised when the text to replace is not in the file exactly once: the mutant has to be written anew."""


_CAPTURE: Final = "tests/store/test_capture.py::"
_CHANGES: Final = "tests/store/test_changes.py::"
_SYNC: Final = "tests/actors/test_sync.py::"
_ACTIVATION: Final = "tests/actors/test_activation.py::"
_REPLICA: Final = "tests/actors/test_replica.py::"
_FRESHNESS: Final = "tests/gateway/test_freshness.py::"
_RESTING: Final = "tests/actors/test_resting.py::"
_SLOTS: Final = "tests/actors/test_slots.py::"
_PAGES: Final = "tests/actors/test_pages.py::"
_REPEATS: Final = "tests/gateway/test_repeats.py::"
_TRACED: Final = "tests/gateway/test_traced_repeats.py::"
_INTERRUPTIONS: Final = "tests/generation/test_interruptions.py::"
_RACES: Final = "tests/generation/test_money_races.py::"
_ONCE: Final = "tests/store/test_idempotency.py::"
_GENERATIONS: Final = "tests/gateway/test_generations.py::"
_WEBHOOK_EVENTS: Final = "tests/store/test_webhook_events.py::"
_WEBHOOK_SENDING: Final = "tests/store/test_webhook_sending.py::"

MUTANTS: Final = (
    Mutant(
        "version computed without the counter's lock",
        "store/triggers.sql",
        "select u.user_id, 1, n from (select distinct r.user_id from change_row r where r.nonce = n) u "
        "order by u.user_id\n"
        "    on conflict (user_id) do update set version = s.version + 1,",
        "select u.user_id, 1 + coalesce((select c.version from sync_user c where c.user_id = u.user_id), 0), n "
        "from (select distinct r.user_id from change_row r where r.nonce = n) u order by u.user_id\n"
        "    on conflict (user_id) do update set version = excluded.version,",
        (_CAPTURE + "test_concurrent_writers_make_gapless_versions_in_commit_order[one user]",),
    ),
    Mutant(
        "versions in the order of statements, not of commits",
        "store/triggers.sql",
        "deferrable initially deferred for each row",
        "deferrable initially immediate for each row",
        (_CAPTURE + "test_hold_and_settle_claims_and_bulk_updates_never_deadlock",),
    ),
    Mutant(
        "notes by ORIGIN triggers instead of ALWAYS",
        "store/triggers.sql",
        "enable always trigger sync_insert_delete, enable always trigger sync_update, "
        "enable always trigger sync_truncate'",
        "enable trigger sync_insert_delete, enable trigger sync_update, enable trigger sync_truncate'",
        (_CAPTURE + "test_replica_role_does_not_switch_capture_off",),
    ),
    Mutant(
        "stamps by an ORIGIN trigger instead of ALWAYS",
        "store/triggers.sql",
        "alter table {schema}.change_row enable always trigger sync_stamp;",
        "alter table {schema}.change_row enable trigger sync_stamp;",
        (_CAPTURE + "test_replica_role_does_not_switch_capture_off",),
    ),
    Mutant(
        "a deletion is not noted",
        "store/triggers.sql",
        "if tg_op <> 'INSERT' and (tg_op = 'DELETE' or o0 <> o1 or k0 <> k1) then",
        "if tg_op = 'UPDATE' and (o0 <> o1 or k0 <> k1) then",
        (
            _CAPTURE + "test_insert_update_and_delete_by_plain_sql_are_a_version_each",
            _SYNC + "test_a_pull_brings_only_what_changed_since_the_cursor",
        ),
    ),
    Mutant(
        "the old owner of a row that moves is not noted",
        "store/triggers.sql",
        "(tg_op = 'DELETE' or o0 <> o1 or k0 <> k1)",
        "(tg_op = 'DELETE' or k0 <> k1)",
        (_SYNC + "test_an_image_that_changes_its_owner_disappears_for_one_and_appears_for_the_other",),
    ),
    Mutant(
        "a pull does not look the owner up again",
        "store/changes.py",
        '"t.id = c.row_id::uuid and t.owner_id = $1"',
        '"t.id = c.row_id::uuid"',
        (
            _CHANGES + "test_moved_row_is_a_deletion_for_the_one_who_had_it",
            _SYNC + "test_an_image_that_changes_its_owner_disappears_for_one_and_appears_for_the_other",
        ),
    ),
    Mutant(
        "a pull in two READ COMMITTED statements",
        "store/changes.py",
        "    first = rows[0]\n    head = Cursor(",
        "    first = rows[0]\n"
        "    rows = await connection.fetch(_PULL, user, cursor.epoch, cursor.version, cursor.nonce, max_changes)\n"
        "    head = Cursor(",
        (_CHANGES + "test_pull_beside_writers_is_the_state_at_exactly_its_version",),
    ),
    Mutant(
        "the nonce of a cursor is ignored",
        "store/changes.py",
        "l.version = $3) end then 'nonce'",
        "l.version = $3) end and false then 'nonce'",
        (
            _CHANGES + "test_equal_version_of_another_history_is_reset[0]",
            _CHANGES + "test_equal_version_of_another_history_is_reset[1]",
            _SYNC + "test_a_replica_of_a_history_that_is_no_more_stops_serving_at_once[poke-nonce]",
        ),
    ),
    Mutant(
        "the horizon is ignored",
        "store/changes.py",
        "when $3 < h.horizon then 'horizon'",
        "when $3 < h.horizon then null",
        (
            _CHANGES + "test_cursor_below_the_horizon_is_reset_and_one_on_it_is_not",
            "tests/store/test_retention.py::test_the_log_holds_exactly_what_is_above_the_horizon",
            _SYNC + "test_an_old_but_true_replica_serves_while_another_is_made[horizon]",
        ),
    ),
    Mutant(
        "the epoch of a cursor is ignored",
        "store/changes.py",
        "when split_part($2, '-', 1) <> split_part(h.epoch, '-', 1) then 'epoch'",
        "when $2::text is null then 'epoch'",
        (_CHANGES + "test_rotated_epoch_resets_every_cursor",),
    ),
    Mutant(
        "the cursor is written after the transaction of the rows",
        "actors/replica.py",
        '            execute("update meta set epoch = ?, version = ?, nonce = ?", head)\n            execute("commit")',
        '            execute("commit")\n            execute("update meta set epoch = ?, version = ?, nonce = ?", head)',
        (_REPLICA + "test_an_apply_is_one_transaction_wherever_its_log_ends",),
    ),
    Mutant(
        "the cursor is written before the transaction of the rows",
        "actors/replica.py",
        '            execute("begin immediate")\n',
        '            execute("update meta set epoch = ?, version = ?, nonce = ?", head)\n'
        '            execute("begin immediate")\n',
        (_REPLICA + "test_an_apply_is_one_transaction_wherever_its_log_ends",),
    ),
    Mutant(
        "a caller joins a pull that is under way",
        "actors/sync.py",
        "                active.waiting = None  # from here on it is sent: later callers need another\n",
        "",
        (_SYNC + "test_callers_join_only_a_pull_that_is_not_sent_yet",),
    ),
    Mutant(
        "a caller joins a look that is under way",
        "actors/sync.py",
        "                self._looking = None  # from here on it is sent: later callers need another\n"
        "                actives, self._unseen = self._unseen, set()\n",
        "                actives = self._unseen\n",
        (_RESTING + "test_callers_join_only_a_look_that_is_not_sent_yet",),
    ),
    Mutant(
        "a replica at rest does not look whether its file is still what it was",
        "actors/replica.py",
        "            if cursor != self.cursor:\n",
        "            if False:\n",
        (_RESTING + "test_a_file_that_another_hand_changed_meanwhile_is_not_used",),
    ),
    Mutant(
        "a replica does not look at the floor",
        "actors/replicas.py",
        "active.must_pull or active.is_full or (floor is not None and active.is_behind(floor)):",
        "active.must_pull or active.is_full:",
        (_ACTIVATION + "test_a_read_with_a_floor_is_never_older",),
    ),
    Mutant(
        "a gateway forgets what it has shown",
        "gateway/freshness.py",
        "        floor = self.floors.get(user)\n",
        "        floor = None\n",
        (_FRESHNESS + "test_writer_without_a_bookmark_reads_his_write_though_every_poke_is_lost",),
    ),
    Mutant(
        "a replica that lags keeps its stamp",
        "actors/sync.py",
        "                    if active.verified_at < asked_at:  # a pull may have found out more since\n"
        "                        self._slots.clear(active)\n"
        "                    self.pull_soon(active)\n"
        "        for active in actives.values():\n"
        "            if active.verified_at < sent_at:",
        "                    self.pull_soon(active)\n"
        "        for active in actives.values():\n"
        "            if active.verified_at < sent_at and active.replica.user not in users:",
        (
            _SLOTS + "test_a_kept_page_is_served_for_exactly_as_long_as_it_is_true[a sweep finds it behind]",
            _SLOTS + "test_what_a_stamp_allows_is_the_newest_applied_and_was_the_head",
        ),
    ),
    Mutant(
        "a replica that was opened while a sweep was under way keeps its stamp",
        "actors/sync.py",
        "            if active.verified_at < sent_at:",
        "            if active.verified_at < sent_at and active.replica.user in users:",
        (
            _SLOTS + "test_a_kept_page_is_served_for_exactly_as_long_as_it_is_true"
            "[another is opened, behind, while a sweep is under way]",
        ),
    ),
    Mutant(
        "changes are applied under the old stamp",
        "actors/sync.py",
        "            self._slots.stamp(active)  # after",
        "            self._slots.verify(active)  # after",
        (
            _SLOTS + "test_a_kept_page_is_served_for_exactly_as_long_as_it_is_true[a pull brings a change]",
            _SLOTS + "test_what_a_stamp_allows_is_the_newest_applied_and_was_the_head",
        ),
    ),
    Mutant(
        "a pull from before the sweep stamps under the sweep's time",
        "actors/slots.py",
        "self._last if is_known else 0",
        "self._last",
        (
            _SLOTS + "test_an_answer_from_before_the_sweep_gives_no_stamp",
            _SLOTS + "test_what_a_stamp_allows_is_the_newest_applied_and_was_the_head",
        ),
    ),
    Mutant(
        "a replica that closes keeps its stamp",
        "actors/slots.py",
        "            self._words[active.slot] = 0\n            self._free.append(active.slot)",
        "            self._free.append(active.slot)",
        (
            _SLOTS + "test_a_kept_page_is_served_for_exactly_as_long_as_it_is_true[it closes]",
            _SLOTS + "test_a_slot_of_a_replica_that_closed_is_empty",
        ),
    ),
    Mutant(
        "the slot is not given back when a replica closes",
        "actors/activation.py",
        "            self._slots.release(active)  # first: nobody may be served from what we give up\n",
        "",
        (_PAGES + "test_a_page_of_a_replica_that_its_host_closed_is_asked_for",),
    ),
    Mutant(
        "a kept page is served below the floor",
        "actors/pages.py",
        "        if floor is not at and floor is not None and floor != at and floor.is_after(*at):\n"
        "            return None\n",
        "",
        (
            _PAGES + "test_a_page_is_never_older_than_the_floor[floor3-False]",
            _REPEATS + "test_the_first_read_after_a_write_shows_it",
        ),
    ),
    Mutant(
        "a request that is known is answered whatever became of its credential",
        "gateway/repeats.py",
        "return (repeat, request_id) if identity is repeat.identity or identity == repeat.identity else None",
        "return repeat, request_id",
        (
            _REPEATS + "test_a_credential_that_is_not_good_any_more_is_not_looked_up_in_what_is_known",
            _REPEATS + "test_a_revoked_key_ends_what_was_known_with_it_within_two_seconds",
        ),
    ),
    Mutant(
        "known bytes are a request wherever they come",
        "gateway/repeats.py",
        "        self._is_between = is_whole\n",
        "",
        (
            _REPEATS + "test_known_bytes_that_are_a_body_are_a_body",
            _REPEATS + "test_known_bytes_that_continue_a_head_are_part_of_it",
        ),
    ),
    Mutant(
        "what follows a head is cut out of it",
        "gateway/repeats.py",
        "            if not _is_one_head(data):  # what follows a head is not cut out of it\n"
        "                return None\n",
        "",
        (
            _TRACED + "test_what_follows_a_head_is_not_cut_out_of_it",
            _TRACED + "test_whatever_bytes_come_they_are_answered_as_if_nothing_was_known",
        ),
    ),
    Mutant(
        "whatever a trace's name is, it is cut out",
        "gateway/repeats.py",
        "([ -~]*)(?=",
        "([^\\r]*)(?=",
        (_TRACED + "test_whatever_bytes_come_they_are_answered_as_if_nothing_was_known",),
    ),
    Mutant(
        "a request is learned whose id is not seen",
        "gateway/repeats.py",
        'if self._requests.given_id(traced_id) != self._requests.given_id(request.headers.get("X-Request-Id")):',
        "if False:",
        (_TRACED + "test_a_request_has_its_own_id_either_way[lines3-mine-4]",),
    ),
    Mutant(
        "what is learned is what came last",
        "gateway/repeats.py",
        "self.whole = data if is_whole and is_idle and",
        "self.whole = data if is_whole and",
        (_REPEATS + "test_what_is_learned_is_the_request_that_was_answered",),
    ),
    Mutant(
        "whoever once had a job writes about it",
        "store/generation/jobs.py",
        "where job_id = $1 and fence = $2 for update",
        "where job_id = $1 and $2::bigint is not null for update",
        (
            _RACES + "test_two_workers_and_one_lease_that_has_ended",
            _INTERRUPTIONS + "test_comes_back_in_the_middle[after the attempt's row, before the call]",
        ),
    ),
    Mutant(
        "a task is handed over again though its id is known",
        "store/generation/calling.py",
        "        if row.task_id is None:\n            raise UnknownOutcome",
        "        if row.state:\n            raise UnknownOutcome",
        (
            _INTERRUPTIONS + "test_killed[after a task's id was saved]",
            _INTERRUPTIONS + "test_killed[while a task runs]",
        ),
    ),
    Mutant(
        "pictures that are stored are drawn again",
        "store/generation/calling.py",
        "if await self._caller._delivery.is_stored(row.pictures):",
        "if not row.id:",
        (_INTERRUPTIONS + "test_killed[after the upload]",),
    ),
    Mutant(
        "unknown outcomes are not counted",
        "store/generation/calling.py",
        "        work.unknown += isinstance(error, UnknownOutcome)\n",
        "",
        (_INTERRUPTIONS + "test_the_answer_is_lost[replicate/black-forest-labs/flux-schnell]",),
    ),
    Mutant(
        "what a late worker uploads stays",
        "store/generation/attempts.py",
        'where id = $1 and object_keys && $2::text[]", id, keys)',
        'where id = $1", id)',
        (_INTERRUPTIONS + "test_what_came_late_is_deleted[replicate/black-forest-labs/flux-schnell-half]",),
    ),
    Mutant(
        "what was named before keeps its room and its objects",
        "store/generation/attempts.py",
        "    assert row is not None\n    await _give_up(connection, row)\n",
        "    assert row is not None\n",
        (_INTERRUPTIONS + "test_killed[in the middle of the upload of a task's picture]",),
    ),
    Mutant(
        "a cancel throws away pictures that are stored",
        "store/generation/canceling.py",
        " or await connection.fetchval(_IS_TOUCHED, job_id)",
        "",
        (_INTERRUPTIONS + "test_canceled_while_nobody_has_it[@cf/stabilityai/stable-diffusion-xl-base-1.0]",),
    ),
    Mutant(
        "what a job held is not given free at its end",
        "store/jobs.sql",
        "update accounts set held_tenths = held_tenths - new.price_tenths, updated_at",
        "update accounts set updated_at",
        (_RACES + "test_a_cancel_and_an_end_at_once[True]", _INTERRUPTIONS + "test_killed[before the attempt's row]"),
    ),
    Mutant(
        "two requests with one idempotency key at once",
        "store/idempotency.py",
        "if not await connection.fetchval(_LOCK, user, key):",
        "if False:",
        (_ONCE + "test_who_comes_meanwhile_does_not_wait", _ONCE + "test_fifty_at_once_do_it_once"),
    ),
    Mutant(
        "an idempotency key answers any request",
        "store/idempotency.py",
        'if row["request_hash"] != request_hash:',
        "if False:",
        (_ONCE + "test_key_of_another_request_is_refused", _GENERATIONS + "test_key_for_another_request_is_422"),
    ),
    Mutant(
        "who has seen the end of a generation may not see its pictures",
        "gateway/generating.py",
        "    gateway.reads.wrote(user, generation.at)\n",
        "",
        (_GENERATIONS + "test_job_is_followed_to_its_pictures",),
    ),
    Mutant(
        "a webhook that is being deleted undoes the end of a job",
        "store/webhooks.sql",
        "    for key share of w),",
        "    ),",
        (_WEBHOOK_EVENTS + "test_job_that_ends_while_its_webhook_is_deleted_ends",),
    ),
    Mutant(
        "a webhook leads wherever its name does",
        "store/webhook_posting.py",
        "None if is_trusted_origin else public_socket",
        "None",
        (_WEBHOOK_SENDING + "test_name_that_leads_to_a_private_address_is_not_connected_to[127.0.0.1]",),
    ),
    Mutant(
        "a delivery is marked before it is sent",
        "store/webhook_sending.py",
        "        answer = await self._post(held, row)\n",
        '        await self._finish(held, "delivered", Answer(200, "", 0.0))\n'
        "        answer = await self._post(held, row)\n",
        (_WEBHOOK_SENDING + "test_killed_between_sending_and_writing_it_down_is_sent_again[before the answer]",),
    ),
    Mutant(
        "a sender whose lease has ended writes all the same",
        "store/webhook_sending.py",
        "where id = $1 and lease_until = $2 and state = 'pending'\n",
        "where id = $1 and $2::timestamptz is not null\n",
        (_WEBHOOK_SENDING + "test_sender_whose_lease_has_ended_writes_nothing",),
    ),
    Mutant(
        "an endpoint may have every place",
        "store/webhook_endpoint.py",
        "MOST_AT_ONCE: Final = 4",
        "MOST_AT_ONCE: Final = 40",
        (_WEBHOOK_SENDING + "test_slow_endpoint_blocks_nobody",),
    ),
    Mutant(
        "a request whose meaning moves with the clock is known by its bytes",
        "gateway/page.py",
        "if learn is not None and self.asked.is_lasting:",
        "if learn is not None:",
        ("tests/gateway/test_stats.py::test_same_request_tomorrow_is_another_question",),
    ),
    Mutant(
        "a page of several kinds is kept when the second changes",
        "actors/replica.py",
        "not kinds.isdisjoint(decode_query(e).kinds)",
        "decode_query(e).kinds[0] in kinds",
        ("tests/store/test_usage.py::test_summary_is_kept_until_a_kind_of_its_own_changes",),
    ),
)


def mutate(tree: Path, mutant: Mutant) -> None:
    """Change the copy at `tree`.

    Raises:
        NotThere: the text to replace is not in the file exactly once.
    """
    path = tree / mutant.file
    text = path.read_text(encoding="utf-8")
    if (times := text.count(mutant.old)) != 1:
        raise NotThere(f"mutant {mutant.name!r}: its text is {times} times in {mutant.file}, expected once")
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")


def run(tree: Path, tests: tuple[str, ...]) -> dict[str, str]:
    """Run `tests` on the sources at `tree`; answers outcome by test: passed, failed, or what went wrong before it."""
    report = tree / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *tests]
    # From the copy, so that its packages come before those of the checkout, in subprocesses of tests too.
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    report.unlink(missing_ok=True)
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return dict.fromkeys(tests, f"no end within {_TIMEOUT_S:.0f} s")
    if not report.exists():
        return dict.fromkeys(tests, done.stdout.strip().rpartition("\n")[2] or "pytest did not start")
    outcomes: dict[str, str] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        # A test that failed and then left something behind is told twice: it has failed.
        if outcomes.get(_test_of(case)) != "failed":
            outcomes[_test_of(case)] = _outcome_of(case)
    return {test: outcomes.get(test, "not run") for test in tests}


def _test_of(case: ElementTree.Element) -> str:
    return f"{case.attrib['classname'].replace('.', '/')}.py::{case.attrib['name']}"


def _outcome_of(case: ElementTree.Element) -> str:
    """An error is no failure: a product that cannot even start shows nothing about a test."""
    for outcome in ("error", "failure", "skipped"):
        if case.find(outcome) is not None:
            return "failed" if outcome == "failure" else outcome
    return "passed"


def _copy(to: Path) -> Path:
    for name in _COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, to / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, to / name)
    return to


def _try(mutant: Mutant | None, tests: tuple[str, ...]) -> dict[str, str]:
    with tempfile.TemporaryDirectory(prefix="peruse-mutant-", dir="/tmp") as folder:
        tree = Path(folder)
        tree.chmod(0o755)  # Postgres runs as somebody else, and reads nothing here but may pass
        _copy(tree)
        if mutant is not None:
            mutate(tree, mutant)
        return run(tree, tests)


def main(chosen: list[str]) -> int:
    """Try the mutants whose name holds one of `chosen`, or all; answers the exit code."""
    mutants = [mutant for mutant in MUTANTS if not chosen or any(text in mutant.name for text in chosen)]
    console = Console()
    table = Table("mutant", "", "seconds")
    table.add_column("tests that must fail", overflow="fold")
    survivors = 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("the product as it is", total=len(mutants) + 1)
        every = tuple(dict.fromkeys(test for mutant in mutants for test in mutant.tests))
        broken = {test: outcome for test, outcome in _try(None, every).items() if outcome != "passed"}
        if broken:  # then a red test would prove nothing
            for test, outcome in broken.items():
                console.print(f"without a mutant: {test}: {outcome}", markup=False)
            return 1
        progress.advance(task)
        for mutant in mutants:
            progress.update(task, description=mutant.name)
            started = time.monotonic()
            outcomes = _try(mutant, mutant.tests)
            is_killed = all(outcome == "failed" for outcome in outcomes.values())
            survivors += not is_killed
            told = "\n".join(f"{test.rpartition('::')[2]}: {outcome}" for test, outcome in outcomes.items())
            verdict = "[green]killed" if is_killed else "[red]SURVIVED"
            table.add_row(mutant.name, verdict, f"{time.monotonic() - started:.1f}", told.replace("[", r"\["))
            progress.advance(task)
    console.print(table)
    console.print(f"{len(mutants) - survivors} of {len(mutants)} mutants killed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
