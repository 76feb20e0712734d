"""One user's file: what is applied is applied whole, what is kept is true, and what is broken says so."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from actors import replica as replica_module
from actors.errors import DiskFull, QueryTooCostly, ReplicaBroken
from actors.replica import KEPT_BYTES, KEPT_PAGES, Applied, Replica
from actors.replica_file import delete_files
from actors.schema import APPLICATION_ID, SCHEMA, user_version
from store.changes import Cursor
from store.documents import Documents
from store.gallery import GalleryQuery, ImageQuery, ReferencesQuery, encode_query
from store.tables import ZERO_NONCE
from tests.actors.fleet import ALL

DOCUMENTS = Documents()
VERSION = user_version(DOCUMENTS)
EPOCH = "1700000000000-1"


def cursor_at(version: int) -> Cursor:
    return Cursor(EPOCH, version, ZERO_NONCE)


def make(path: Path, *, user: str = "ana", version: int = VERSION, application_id: int = APPLICATION_ID) -> Path:
    """An empty replica's file, closed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript(
        f"pragma application_id = {application_id}; pragma user_version = {version}; begin; {SCHEMA}"
    )
    connection.execute("insert into meta values (1, ?, ?, 0, ?, 0.0)", (user, EPOCH, ZERO_NONCE))
    connection.execute("commit")
    connection.close()
    return path


def an_id(n: int) -> str:
    return f"00000000-0000-7000-8000-{n:012x}"


def image(n: int, prompt: str = "", **columns: object) -> Applied:
    """The change that gives image number `n` these columns."""
    source = {
        "id": an_id(n), "object_key": f"generated/{n}.png", "thumb_key": None, "thumbhash": None,
        "content_type": "image/png", "size_bytes": 7, "width": None, "height": None, "prompt": prompt,
        "negative_prompt": None, "model": "builtin", "seed": None, "steps": None, "generation_params": {},
        "job_id": None, "parent_id": None, "visibility": "unlisted", "starred": False, "title": None,
        "moderation": "approved", "trashed_at": None, "created_at": 1_700_000_000_000_000 + n, **columns,
    }  # fmt: skip
    return Applied("images", an_id(n), DOCUMENTS.row("images", json.dumps(source)))


def account(balance_tenths: int) -> Applied:
    source = {
        "owner_id": "ana", "plan": "free", "balance_tenths": balance_tenths, "held_tenths": 0,
        "storage_used_bytes": 0, "day_budget_tenths": None, "month_budget_tenths": None,
        "updated_at": 1_700_000_000_000_000,
    }  # fmt: skip
    return Applied("accounts", "ana", DOCUMENTS.row("accounts", json.dumps(source)))


def prompts(replica: Replica, query: bytes = ALL) -> list[str]:
    body = replica.read(query).body
    assert body is not None
    return [document["prompt"] for document in json.loads(body)["images"]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make(tmp_path / "ana.1.db")


@pytest.fixture
def replica(path: Path) -> Iterator[Replica]:
    opened = Replica.open(path, "ana", VERSION)
    yield opened
    opened.close()


# --- open, apply, read ------------------------------------------------------------------------------------------


def test_what_was_applied_is_read_and_survives_closing(path: Path) -> None:
    """mission: 130, 135, 136, 137"""
    replica = Replica.open(path, "ana", VERSION)
    replica.synced_at = 1234.5
    assert replica.cursor == cursor_at(0)
    assert prompts(replica) == []

    replica.apply(cursor_at(3), [image(1, "a lighthouse"), image(2, "a harbour")])
    assert prompts(replica) == ["a harbour", "a lighthouse"]
    replica.close()

    again = Replica.open(path, "ana", VERSION)
    assert (again.cursor, again.synced_at, again.user) == (cursor_at(3), 1234.5, "ana")
    assert prompts(again) == ["a harbour", "a lighthouse"]
    again.close()


def test_apply_replaces_a_row_and_deletes_one(replica: Replica) -> None:
    """mission: 135"""
    replica.apply(cursor_at(1), [image(1, "old"), image(2, "goes"), image(3, "stays")])

    replica.apply(cursor_at(2), [image(1, "new"), Applied("images", an_id(2), None), image(4, "comes")])

    assert prompts(replica) == ["comes", "stays", "new"]
    assert replica.cursor == cursor_at(2)


def test_applying_the_same_changes_twice_changes_nothing(replica: Replica) -> None:
    """A crash may repeat a batch."""
    changes = [image(1, "one"), Applied("images", an_id(9), None), account(10)]
    replica.apply(cursor_at(5), changes)
    before = replica.read(ALL).body

    replica.apply(cursor_at(5), changes)

    assert replica.read(ALL).body == before
    assert replica.cursor == cursor_at(5)


def test_one_image_is_found_by_its_id_and_a_missing_one_is_none(replica: Replica) -> None:
    """mission: 137"""
    replica.apply(cursor_at(1), [image(1, "here")])

    here = replica.read(encode_query(ImageQuery(an_id(1)))).body
    missing = replica.read(encode_query(ImageQuery(an_id(2))))

    assert here is not None
    assert json.loads(here)["image"]["prompt"] == "here"
    assert missing.body is None


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (GalleryQuery(sort="oldest"), ["a", "b", "c"]),
        (GalleryQuery(limit=2), ["c", "b"]),
        (GalleryQuery(model="other"), ["b"]),
        (GalleryQuery(visibility="public"), ["c"]),
        (GalleryQuery(starred=True), ["a"]),
        (GalleryQuery(trashed=True), ["d"]),
    ],
)
def test_filters_choose_rows(replica: Replica, query: GalleryQuery, expected: list[str]) -> None:
    """mission: 131, 137"""
    replica.apply(
        cursor_at(1),
        [
            image(1, "a", starred=True),
            image(2, "b", model="other"),
            image(3, "c", visibility="public"),
            image(4, "d", trashed_at=1_700_000_000_000_000),
        ],
    )

    assert prompts(replica, encode_query(query)) == expected


# --- one transaction --------------------------------------------------------------------------------------------


def test_an_apply_is_one_transaction_wherever_its_log_ends(path: Path) -> None:
    """Whatever part of an apply was written when the process ended, the file is the version before or the one after,
    rows and cursor alike."""
    replica = Replica.open(path, "ana", VERSION)
    log = path.with_name(path.name + "-wal")
    replica.apply(cursor_at(1), [image(n, f"v1 {'x' * 500}") for n in range(25)])
    file, start = path.read_bytes(), log.stat().st_size

    replica.apply(cursor_at(2), [image(n, f"v2 {'x' * 500}") for n in range(25)])

    assert path.read_bytes() == file, "a checkpoint came between: only the log may have grown"
    whole = log.read_bytes()
    replica.close()
    seen = set()
    for end in (*range(start, len(whole), 1000), len(whole)):
        delete_files(path)
        path.write_bytes(file)
        log.write_bytes(whole[:end])
        left = Replica.open(path, "ana", VERSION)
        found = {prompt[:2] for prompt in prompts(left)}
        assert found == {f"v{left.cursor.version}"}, f"{end - start} bytes of {len(whole) - start} written"
        seen |= found
        left.close()
    assert seen == {"v1", "v2"}


def test_a_change_that_cannot_be_made_leaves_nothing_applied(replica: Replica) -> None:
    """Whatever is raised while changes are read, the rows before it are not shown under the old version."""
    replica.apply(cursor_at(1), [image(1, "one")])

    def changes() -> Iterator[Applied]:
        yield image(2, "half")
        raise ValueError("no document can be made of this")

    with pytest.raises(ValueError, match="no document"):
        replica.apply(cursor_at(2), changes())

    assert (replica.cursor, prompts(replica, encode_query(GalleryQuery(limit=99)))) == (cursor_at(1), ["one"])
    replica.apply(cursor_at(2), [image(2, "whole")])
    assert prompts(replica) == ["whole", "one"]


def test_a_full_disk_applies_nothing_and_the_next_apply_works(replica: Replica) -> None:
    """mission: 130"""
    replica.apply(cursor_at(1), [image(1, "one")])
    pages = replica._connection.execute("pragma page_count").fetchone()[0]
    replica._connection.execute(f"pragma max_page_count = {pages}")
    many = [image(n, "x" * 500) for n in range(2, 200)]

    with pytest.raises(DiskFull, match="no room to apply changes of ana"):
        replica.apply(cursor_at(2), many)
    assert replica.cursor == cursor_at(1)
    assert prompts(replica, encode_query(GalleryQuery(limit=199))) == ["one"]
    assert replica._connection.execute("select version from meta").fetchone() == (1,)

    replica._connection.execute(f"pragma max_page_count = {pages * 100}")
    replica.apply(cursor_at(2), many)
    assert len(prompts(replica)) == 199
    assert replica.cursor == cursor_at(2)


# --- files that cannot be used ----------------------------------------------------------------------------------


def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    """mission: 141"""
    path = make(tmp_path / "x.1.db", user="bob")

    with pytest.raises(ReplicaBroken, match="replica file of ana cannot be used: it belongs to another user"):
        Replica.open(path, "ana", VERSION)


@pytest.mark.parametrize("wrong", [{"version": VERSION ^ 1}, {"version": 0}, {"application_id": 1}])
def test_a_file_of_another_schema_is_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    """mission: 132"""
    path = make(tmp_path / "x.1.db", **wrong)

    with pytest.raises(ReplicaBroken, match="made by another version of the schema"):
        Replica.open(path, "ana", VERSION)


def test_a_missing_file_is_refused_and_not_made(tmp_path: Path) -> None:
    path = tmp_path / "none.1.db"

    with pytest.raises(ReplicaBroken, match="cannot be used"):
        Replica.open(path, "ana", VERSION)

    assert not path.exists()


@pytest.mark.parametrize("name", ["100%41", "what?mode=memory", "a#b", "a b"])
def test_a_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    """The path is a path, whatever it would mean in a URL."""
    path = make(tmp_path / name / "ana.1.db")

    replica = Replica.open(path, "ana", VERSION)
    replica.apply(cursor_at(1), [image(1, "one")])
    replica.close()

    with sqlite3.connect(path) as connection:
        assert connection.execute("select version from meta").fetchone() == (1,)
    connection.close()


def filled(path: Path, rows: int = 60) -> bytes:
    """The bytes of a closed replica with `rows` images."""
    replica = Replica.open(path, "ana", VERSION)
    replica.apply(cursor_at(1), [image(n, f"picture {n}") for n in range(rows)])
    replica.close()
    return path.read_bytes()


def test_a_truncated_file_is_refused_or_reads_as_broken(path: Path) -> None:
    whole = filled(path)
    for size in (0, 1, 99, 100, 4095, 4096, 4097, len(whole) // 2, len(whole) - 4096):
        path.write_bytes(whole[:size])

        with pytest.raises(ReplicaBroken):
            use(path)


def use(path: Path) -> None:
    """Open, read and write as a host does."""
    replica = Replica.open(path, "ana", VERSION)
    try:
        for query in (GalleryQuery(limit=200), GalleryQuery(limit=3), GalleryQuery(sort="oldest", limit=7)):
            replica.read(encode_query(query))
        for n in (0, 30, 59):
            replica.read(encode_query(ImageQuery(an_id(n))))
        replica.apply(cursor_at(2), [image(n, f"again {n}") for n in range(60)])
    finally:
        replica.close()


def test_flipped_bytes_never_raise_anything_but_broken(path: Path) -> None:
    """Four hundred damaged files: each can be used, or says that it is broken, so that it is made anew."""
    whole, random = filled(path), Random(11)
    others: dict[str, str] = {}
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(random.choice((1, 1, 8))):
            damaged[random.randrange(len(damaged))] ^= 1 << random.randrange(8)
        delete_files(path)
        path.write_bytes(damaged)
        try:
            use(path)
        except (ReplicaBroken, QueryTooCostly):
            pass
        except Exception as error:
            others.setdefault(type(error).__name__, str(error))

    assert others == {}


def test_text_that_is_not_text_reads_as_broken(path: Path) -> None:
    """Errors of sqlite3's own, which carry no SQLite code, are the file's fault too."""
    whole = filled(path)
    path.write_bytes(whole.replace(an_id(59).encode(), b"\xff" + an_id(59).encode()[1:]))
    replica = Replica.open(path, "ana", VERSION)

    with pytest.raises(ReplicaBroken, match="replica of ana cannot be read"):
        replica.read(ALL)

    replica.close()


def test_the_log_of_another_file_is_refused(tmp_path: Path, path: Path) -> None:
    """mission: 141"""
    other = make(tmp_path / "bob.1.db", user="bob")
    live = Replica.open(other, "bob", VERSION)
    live.apply(cursor_at(1), [image(n, "of bob") for n in range(60)])
    log = other.with_name("bob.1.db-wal").read_bytes()
    live.close()
    filled(path)
    path.with_name("ana.1.db-wal").write_bytes(log)

    with pytest.raises(ReplicaBroken):
        use(path)


def test_a_live_file_cannot_be_opened_twice(replica: Replica, path: Path) -> None:
    """Neither by another process nor by this one: a second connection could corrupt it."""
    replica.apply(cursor_at(1), [image(1, "one")])
    script = f"import sqlite3; print(*sqlite3.connect({str(path)!r}, timeout=0).execute('select 1 from images'))"

    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    started = time.monotonic()
    with pytest.raises(ReplicaBroken, match="locked"):
        Replica.open(path, "ana", VERSION)

    assert time.monotonic() - started < 1, "opening waited for the lock, and every user of the host with it"
    assert "database is locked" in other.stderr
    assert other.stdout == ""
    replica.apply(cursor_at(2), [image(2, "two")])
    assert prompts(replica) == ["two", "one"]


# --- kept pages -------------------------------------------------------------------------------------------------


def test_a_page_is_kept_until_an_image_changes(replica: Replica) -> None:
    """mission: 142"""
    replica.apply(cursor_at(1), [image(1, "one")])
    first = replica.read(ALL)

    assert replica.kept(ALL) is first
    assert replica.read(ALL) is first
    replica.apply(cursor_at(2), [image(2, "two")])
    assert replica.kept(ALL) is None
    assert replica.kept_bytes == 0

    second = replica.read(ALL)
    assert second.stamp != first.stamp
    assert second.query_hash == first.query_hash
    replica.apply(cursor_at(3), [Applied("images", an_id(1), None)])
    assert prompts(replica) == ["two"]


def test_a_page_is_kept_when_only_other_kinds_change(replica: Replica) -> None:
    """Its stamp stays, so that gateways need not be sent the bytes again."""
    replica.apply(cursor_at(1), [image(1, "one")])
    first = replica.read(ALL)

    replica.apply(cursor_at(2), [account(70), Applied("jobs", an_id(5), None), Applied("reference_images", "x", None)])

    assert replica.cursor == cursor_at(2)
    assert replica.read(ALL) is first
    references = replica.read(encode_query(ReferencesQuery()))
    replica.apply(cursor_at(3), [Applied("reference_images", "x", None)])
    assert replica.read(ALL) is first
    assert replica.read(encode_query(ReferencesQuery())) is not references


def test_kept_pages_have_a_bound_of_count_and_of_bytes(replica: Replica) -> None:
    """The oldest goes first; a page of half the budget is not kept at all."""
    replica.apply(cursor_at(1), [image(n, "x" * 1000) for n in range(200)])

    pages = [encode_query(GalleryQuery(model=f"no such model {n}")) for n in range(KEPT_PAGES + 3)]
    for page in pages:
        replica.read(page)
    assert [replica.kept(page) is not None for page in pages] == [False] * 3 + [True] * KEPT_PAGES

    for limit in (60, 61, 62, 63, 64, 65):
        page = replica.read(encode_query(GalleryQuery(limit=limit)))
        assert page.body is not None
        assert len(page.body) > KEPT_BYTES // 4
        assert replica.kept_bytes <= KEPT_BYTES
    asked = [*pages, *(encode_query(GalleryQuery(limit=limit)) for limit in range(1, 201))]
    kept = [page for page in map(replica.kept, asked) if page is not None]
    assert replica.kept_bytes == sum(len(page.body or b"") for page in kept)

    replica.read(ALL)
    assert replica.kept(ALL) is None


def test_stamps_never_repeat(path: Path, replica: Replica) -> None:
    """Equal stamps mean equal bytes, on whichever host and after however many openings."""
    stamps = set()
    for version in range(1, 30):
        replica.apply(cursor_at(version), [image(version, "x")])
        for limit in (1, 2, 3):
            stamps.add(replica.read(encode_query(GalleryQuery(limit=limit))).stamp)

    assert len(stamps) == 29 * 3
    assert 0 not in stamps


def test_a_query_that_takes_too_long_is_stopped(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would hold up every user of the host; the replica is as good as before."""
    states = ({"starred": True}, {"visibility": "public"})
    replica.apply(cursor_at(1), [image(n, "x", **states[n % 2]) for n in range(12_000)])
    # Each filter has its index, and each matches half of them: what matches both is looked for row by row.
    everything = encode_query(GalleryQuery(starred=True, visibility="public"))
    monkeypatch.setattr(replica_module, "MAX_STEPS", 10_000)

    with pytest.raises(QueryTooCostly, match="a query of ana was stopped after 10,000 steps"):
        replica.read(everything)

    assert len(prompts(replica, encode_query(GalleryQuery(limit=5)))) == 5
    monkeypatch.setattr(replica_module, "MAX_STEPS", 2_000_000)
    assert prompts(replica, everything) == []


def test_deleting_a_replica_deletes_what_sqlite_left_beside_it(path: Path) -> None:
    for suffix in ("-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).touch()

    delete_files(path)
    delete_files(path)

    assert list(path.parent.iterdir()) == []
