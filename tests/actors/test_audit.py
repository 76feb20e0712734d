"""Audits: a replica against the primary at one version; what differs is found, named, and made right."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from actors import audit as audit_module
from actors.errors import Overloaded, Seeding
from actors.host import ReplicaHost
from actors.messages import AuditReport
from store.errors import PrimaryUnavailable
from store.primary import Primary
from tests.actors.fleet import ALL, Fleet, History, add_image, held, position, shown
from tests.world import add_images, until

Damage = Callable[[sqlite3.Connection], Any]


async def given_gallery(history: History, user: str, images: int) -> None:
    """A user with rows of every kind."""

    async def work(connection: Any) -> None:
        await add_images(connection, user, images)
        await connection.execute(
            "insert into reference_images (owner_id, object_key, content_type, size_bytes, filename) "
            "select $1, gen_random_uuid()::text, 'image/png', 7, 'a.png' from generate_series(1, 3)",
            user,
        )
        await connection.execute(
            "insert into jobs (owner_id, kind, prompt, image_size, n, provider, model, cost_usd) "
            "select $1, 'TEXT_TO_IMAGE', 'a job', '1:1', 1, 'builtin', 'builtin', 0 from generate_series(1, 3)",
            user,
        )

    await history.write([user], work)


def damage(fleet: Fleet, user: str, how: Damage) -> None:
    """Change the file of a replica behind its host's back; the host has it closed."""
    fleet.replicas.passivate(user)
    connection = sqlite3.connect(fleet.file(user))
    with connection:
        how(connection)
    connection.close()


def found(report: AuditReport) -> dict[str, tuple[int, int, int]]:
    """kind → (missing, extra, different) where anything is."""
    return {
        k.kind: (len(k.missing), len(k.extra), len(k.different))
        for k in report.kinds
        if k.missing + k.extra + k.different
    }


ONE = "where rowid = (select max(rowid) from {0})"


def run(*statements: str) -> Damage:
    return lambda connection: [connection.execute(statement) for statement in statements]


def of_one(kind: str, change: str) -> Damage:
    return run(f"update {kind} set {change} " + ONE.format(kind))


def flip(kind: str) -> Damage:
    """One bit of one document."""

    def work(connection: sqlite3.Connection) -> None:
        row_id, doc = connection.execute(f"select id, doc from {kind} {ONE.format(kind)}").fetchone()
        wrong = bytearray(doc)
        wrong[len(wrong) // 2] ^= 1
        connection.execute(f"update {kind} set doc = ? where id = ?", (bytes(wrong), row_id))

    return work


def copy(kind: str, row_id: str) -> Damage:
    """A row that is not the user's: as another one's."""

    def work(connection: sqlite3.Connection) -> None:
        (columns,) = connection.execute(
            f"select group_concat(name, ', ') from pragma_table_info('{kind}') where name <> 'id'"
        ).fetchone()
        connection.execute(f"insert into {kind} select ?, {columns} from {kind} limit 1", (row_id,))

    return work


#: What was done to a file, how, and what an audit has to find.
DAMAGES: dict[str, tuple[Damage, dict[str, tuple[int, int, int]]]] = {
    "a bit of a document": (flip("images"), {"images": (0, 0, 1)}),
    "a bit of a job": (flip("jobs"), {"jobs": (0, 0, 1)}),
    "a bit of a reference": (flip("reference_images"), {"reference_images": (0, 0, 1)}),
    "a bit of the account": (flip("accounts"), {"accounts": (0, 0, 1)}),
    "a document as text": (of_one("images", "doc = cast(doc as text)"), {"images": (0, 0, 1)}),
    "a row missing": (run(f"delete from images {ONE.format('images')}"), {"images": (1, 0, 0)}),
    "the account missing": (run("delete from accounts"), {"accounts": (1, 0, 0)}),
    "all jobs missing": (run("delete from jobs"), {"jobs": (3, 0, 0)}),
    "an extra row before all": (copy("images", "00000000-0000-4000-8000-000000000000"), {"images": (0, 1, 0)}),
    "an extra row behind all": (copy("images", "ffffffff-ffff-4fff-bfff-ffffffffffff"), {"images": (0, 1, 0)}),
    "an extra row without a sane id": (copy("jobs", "zzz"), {"jobs": (0, 1, 0)}),
    "another one's account": (copy("accounts", "bob"), {"accounts": (0, 1, 0)}),
    "another visibility": (of_one("images", "visibility = 'public'"), {"images": (0, 0, 1)}),
    "another star": (of_one("images", "starred = 1 - starred"), {"images": (0, 0, 1)}),
    "another time": (of_one("images", "created_at = created_at + 1"), {"images": (0, 0, 1)}),
    "in the trash": (of_one("images", "trashed_at = 1"), {"images": (0, 0, 1)}),
    "another state": (of_one("jobs", "state = 'x'"), {"jobs": (0, 0, 1)}),
    "another id": (of_one("images", "id = '00000000-0000-4000-8000-000000000000'"), {"images": (1, 1, 0)}),
    "an id that is no text": (of_one("images", "id = x'00ff'"), {"images": (1, 1, 0)}),
    "several kinds": (run("delete from jobs", "delete from images"), {"jobs": (3, 0, 0), "images": (20, 0, 0)}),
}  # fmt: skip


async def test_whatever_differs_is_found_named_and_mended(fleet: Fleet, history: History) -> None:
    """Looking changes nothing; a repair bumps the version, so that nobody is told that nothing changed."""
    for n, (name, (how, expected)) in enumerate(DAMAGES.items()):
        user = f"user-{n}"
        await given_gallery(history, user, 20)
        before = await fleet.read(user)
        assert (await fleet.replicas.audit(user, repair=True)).outcome == "equal", name
        assert fleet.metrics.divergences == 3 * n, name
        damage(fleet, user, how)

        seen = [await fleet.replicas.audit(user, repair=False) for _ in range(2)]
        with capture_logs() as logs:
            mended = await fleet.replicas.audit(user, repair=True)
        after = await fleet.replicas.audit(user, repair=False)

        assert [report.outcome for report in (*seen, mended, after)] == ["differs", "differs", "repaired", "equal"], (
            name
        )
        assert found(seen[0]) == found(seen[1]) == found(mended) == expected, name
        assert {k.kind: k.differences for k in mended.kinds if k.differences} == {
            k: sum(v) for k, v in expected.items()
        }
        assert {k.kind for k in mended.kinds if k.replica_hash != k.primary_hash} == expected.keys(), name
        named = [entry for entry in logs if entry["event"] == "replica.diverged"]
        assert {entry["kind"] for entry in named} == expected.keys(), name
        assert all(entry["user"] == user and entry.keys() & {"missing", "extra", "different"} for entry in named)
        assert fleet.metrics.divergences == 3 * n + 3, name
        answer = await fleet.read(user)
        assert position(answer.cursor) == await history.head(user), name
        assert answer.cursor.version == before.cursor.version + 1, name
        assert shown(answer) == shown(before), name
    assert fleet.metrics.seeds == len(DAMAGES)


async def test_a_row_of_another_user_is_taken_out(fleet: Fleet, history: History) -> None:
    """However it got there. mission: 141"""
    for user in ("ana", "bob"):
        await given_gallery(history, user, 3)
        await fleet.read(user)
    fleet.replicas.passivate("bob")
    damage(
        fleet, "ana",
        lambda c: [
            c.execute("attach ? as other", (str(fleet.file("bob")),)),
            c.execute("insert into main.images select * from other.images"),
        ],
    )  # fmt: skip

    report = await fleet.replicas.audit("ana", repair=True)

    assert (report.outcome, found(report)) == ("repaired", {"images": (0, 3, 0)})
    assert {image["prompt"].rpartition(" ")[2] for image in shown(await fleet.read("ana"))} == {"ana"}


@pytest.mark.parametrize(("rows", "outcome"), [(500, "repaired"), (501, "reseeding"), (600, "reseeding")])
async def test_damage_of_more_than_500_rows_is_not_mended_one_by_one(
    fleet: Fleet, history: History, rows: int, outcome: str
) -> None:
    """The replica is made anew, and its version is a new one all the same."""
    await history.write(["ana"], lambda c: add_images(c, "ana", 600))
    before = await fleet.read("ana")
    damage(fleet, "ana", run(f"update images set doc = doc || x'20' where rowid <= {rows}"))

    report = await fleet.replicas.audit("ana", repair=True)
    await until(lambda: fleet.replicas.seeding_count == 0)

    assert (report.outcome, report.kinds[0].differences, len(report.kinds[0].different)) == (outcome, rows, 20)
    assert (await fleet.replicas.audit("ana", repair=False)).outcome == "equal"
    answer = await fleet.read("ana")
    assert shown(answer) == shown(before)
    assert answer.cursor.version == before.cursor.version + 1
    assert fleet.metrics.seeds == 1 + (outcome == "reseeding")


async def test_a_file_that_cannot_be_mended_is_made_anew(fleet: Fleet, history: History) -> None:
    """The index over its ids is out of order: to delete a row that it names finds none."""
    await given_gallery(history, "ana", 20)
    before = await fleet.read("ana")
    fleet.replicas.passivate("ana")
    path = fleet.file("ana")
    connection = sqlite3.connect(path)
    (size,) = connection.execute("pragma page_size").fetchone()
    (root,) = connection.execute("select rootpage from sqlite_schema where name = 'images_id'").fetchone()
    (first,) = connection.execute("select min(id) from images").fetchone()
    connection.close()
    content = bytearray(path.read_bytes())
    content[content.index(first.encode(), (root - 1) * size, root * size)] = ord("g")
    path.write_bytes(content)
    assert found(await fleet.replicas.audit("ana", repair=False)) == {"images": (1, 1, 0)}

    report = await fleet.replicas.audit("ana", repair=True)
    await until(lambda: fleet.replicas.seeding_count == 0)

    assert report.outcome == "reseeding"
    assert (await fleet.replicas.audit("ana", repair=False)).outcome == "equal"
    assert shown(await fleet.read("ana")) == shown(before)


async def test_a_damaged_position_is_found_at_the_opening(fleet: Fleet, history: History) -> None:
    """The primary would not even take it as a cursor: no pull could ever put it right. mission: 133, 136"""
    await history.write(["ana"], lambda c: add_image(c, "ana", "one"))
    await fleet.read("ana")
    wrong = (
        "nonce = 'x' || nonce",
        "epoch = 'never'",
        "version = -1",
        "version = 'x'",
        "nonce = x'00'",
        "synced_at = 'x'",
    )
    for n, change in enumerate(wrong, start=1):
        damage(fleet, "ana", run(f"update meta set {change}"))

        history.check("ana", await fleet.read("ana"))

        assert (fleet.metrics.broken, fleet.metrics.seeds) == (n, n + 1), change


async def test_a_repair_that_was_not_announced_was_not_made(
    fleet: Fleet, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new version comes first: should the primary go away, the next audit finds the same and bumps it."""
    await given_gallery(history, "ana", 5)
    before = await fleet.read("ana")
    damage(fleet, "ana", flip("images"))

    async def away(connection: Any, user: str) -> None:
        raise PrimaryUnavailable("the primary is not answering")

    with monkeypatch.context() as patch:
        patch.setattr(audit_module, "touch", away)
        with pytest.raises(PrimaryUnavailable):
            await fleet.replicas.audit("ana", repair=True)
    assert (await fleet.replicas.audit("ana", repair=True)).outcome == "repaired"

    assert (await fleet.replicas.audit("ana", repair=False)).version == before.cursor.version + 1


# --- what is not damage -----------------------------------------------------------------------------------------


async def test_writers_are_never_taken_for_damage(fleet: Fleet, history: History) -> None:
    """An audit that meets the two at one version says equal, and else that they move."""
    await given_gallery(history, "ana", 2_000)
    await fleet.replicas.sync("ana")
    is_over = False
    primary = history.primary

    async def write() -> None:
        """At all times between two audits and in the middle of one."""
        n = 0
        while not is_over:
            n += 1
            if n % 3 == 0:
                sql = "delete from images where id in (select id from images where owner_id = 'ana' limit 2)"
                _, bookmark = await primary.write("ana", lambda c, sql=sql: c.execute(sql))
            else:
                _, bookmark = await primary.write("ana", lambda c, n=n: add_image(c, "ana", f"{n}"))
            fleet.replicas.poke("ana", bookmark)
            await asyncio.sleep(0.02 * (n % 10))

    async def sweep() -> None:
        while not is_over:
            await fleet.replicas.sweep()
            await asyncio.sleep(0.01)

    others = [asyncio.create_task(write()), asyncio.create_task(sweep())]
    deadline = time.monotonic() + 2.5
    outcomes = []
    while time.monotonic() < deadline or len(outcomes) < 5:
        outcomes.append((await fleet.replicas.audit("ana", repair=len(outcomes) % 2 == 0)).outcome)
    is_over = True
    await asyncio.gather(*others)

    assert {*outcomes} <= {"equal", "moving"}
    assert fleet.metrics.divergences == 0
    assert (await fleet.replicas.audit("ana", repair=False)).outcome == "equal"


async def test_what_is_not_there_is_not_made_for_an_audit(fleet: Fleet, history: History) -> None:
    """Cold stays cold; a file is opened; what is being made says so, also while the old one serves."""
    await given_gallery(history, "ana", 3)

    assert (await fleet.replicas.audit("ana", repair=True)).outcome == "cold"
    assert (fleet.replicas.seeding_count, fleet.files()) == (0, [])
    async with held(history.primary, "images") as hold:
        with pytest.raises(Seeding):
            await fleet.replicas.read("ana", ALL, None)
        await until(hold.waiting)
        assert (await fleet.replicas.audit("ana", repair=True)).outcome == "seeding"
    await fleet.read("ana")
    fleet.replicas.passivate("ana")
    assert (await fleet.replicas.audit("ana", repair=True)).outcome == "equal"
    assert fleet.replicas.active_count == 1

    await history.write(["ana"], lambda c: add_images(c, "ana", 501))
    assert (await fleet.replicas.audit("ana", repair=True)).outcome == "seeding"
    await until(lambda: fleet.replicas.seeding_count == 0)
    assert (await fleet.replicas.audit("ana", repair=True)).outcome == "equal"
    assert fleet.metrics.divergences == 0


async def test_an_audited_replica_is_not_closed_meanwhile(database: str, history: History, tmp_path: Any) -> None:
    """Neither for being idle nor for want of room."""
    fleet = await Fleet(tmp_path / "replicas", database, max_active=1).open()
    await given_gallery(history, "ana", 3)
    await fleet.read("bob")
    await fleet.read("ana")
    active = fleet.replicas.life.active["ana"]
    async with fleet.seeds.connection(), fleet.seeds.connection():  # it has pulled, and waits for what it compares with
        auditing = asyncio.create_task(fleet.replicas.audit("ana", repair=False))
        await until(lambda: active.readers and not active.lock.locked() and active.waiting is None)
        await asyncio.sleep(0.05)
        assert active.readers == 1
        fleet.clock.move(100)
        assert fleet.replicas.life.close_idle() == 0
        other = asyncio.create_task(fleet.read("bob"))
        await until(lambda: fleet.replicas.active_count == 2)

    assert (await auditing).outcome == "equal"
    await other
    await fleet.close()


# --- by itself --------------------------------------------------------------------------------------------------


async def test_a_host_audits_who_was_not_audited_for_longest_of_those_that_nobody_reads(
    fleet: Fleet, history: History
) -> None:
    """One at a time, and slower the more rows it has compared."""
    for user in ("ana", "bob", "cyd"):
        await given_gallery(history, user, 50)
        await fleet.read(user)
    actives = fleet.replicas.life.active
    await fleet.replicas.audit_idle()
    assert fleet.metrics.audits == 0

    fleet.clock.move(2)
    await fleet.read("cyd")
    audited = []
    for _ in range(4):
        before = {user: active.audited_at for user, active in actives.items()}
        await fleet.replicas.audit_idle()
        audited += [user for user, active in actives.items() if active.audited_at != before[user]]
        fleet.clock.move(0.1)

    assert audited == ["ana", "bob", "ana", "bob"]
    assert fleet.metrics.audits == 4
    rows = 50 + 3 + 3 + 1
    await fleet.replicas.audit_idle()
    fleet.clock.move(rows / 2_000 - 0.001)
    await fleet.replicas.audit_idle()
    assert fleet.metrics.audits == 5


async def test_a_host_finds_and_mends_damage_by_itself(
    start_host: Callable[..., Awaitable[ReplicaHost]], primary: Primary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has to ask."""
    monkeypatch.setattr(audit_module, "_IDLE_S", 0.0)
    async with primary.connection() as connection:
        await add_images(connection, "ana", 5)
    host = await start_host(0, host_audit_s=0.05)
    replicas = host._replicas
    before = (await replicas.sync("ana"))[0].version
    path = replicas.life.active["ana"].replica.path
    replicas.passivate("ana")
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("delete from images where rowid = 2")
    connection.close()
    await replicas.sync("ana")

    await until(lambda: host.stats().metrics.divergences == 1)

    await until(lambda: _is_equal(host))
    assert replicas.life.active["ana"].replica.cursor.version == before + 1


async def _is_equal(host: ReplicaHost) -> bool:
    try:
        return (await host._replicas.audit("ana", repair=False)).outcome == "equal"
    except Overloaded:
        return False


async def test_the_audit_of_a_large_gallery_leaves_the_loop_to_others(fleet: Fleet, primary: Primary) -> None:
    """20,000 rows; no turn of the loop computes for longer than 50 ms."""
    async with primary.connection() as connection:
        await connection.execute("insert into users (id) values ('ana')")
        await connection.execute(
            "insert into images (owner_id, object_key, content_type, size_bytes, prompt, model) "
            "select 'ana', gen_random_uuid()::text, 'image/png', 7, 'a castle at dawn ' || n, 'builtin' "
            "from generate_series(1, 20000) n"
        )
    await fleet.replicas.sync("ana")
    damage(fleet, "ana", run("delete from images where rowid % 50 = 0"))
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            # Of this thread's own time: what other processes take is not ours.
            before = time.thread_time()
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - before)

    await fleet.replicas.sync("ana")
    gc.collect()
    gc.disable()  # a test run holds far more objects than a host does
    watching = asyncio.create_task(watch())
    report = await fleet.replicas.audit("ana", repair=False)
    lag_s, longest = longest, 0.0
    repaired = await fleet.replicas.audit("ana", repair=True)
    repair_s = longest
    watching.cancel()
    gc.enable()

    assert (report.outcome, repaired.outcome) == ("differs", "repaired")
    assert found(report) == {"images": (20, 0, 0)}
    assert report.kinds[0].differences == 400
    assert sum(kind.primary_rows for kind in report.kinds) == 20_001
    assert max(lag_s, repair_s) <= 0.05


def test_ids_that_are_named_are_bounded() -> None:
    """A log line stays a line."""
    difference = audit_module._Difference("images")
    rows = [audit_module.Row(str(uuid.uuid4()), ("public", "m", 0, None, 1), b"{}") for _ in range(100)]
    difference.compare([], rows)
    assert (len(difference.report().missing), difference.report().differences) == (audit_module.MAX_NAMED, 100)
