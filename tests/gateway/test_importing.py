"""Files of prompts: all of a file is right, or nothing of it is imported; and an import goes on where it stopped."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from pydantic import SecretStr

from gateway.importing import Line, import_lines, read_lines
from store.config import StoreSettings
from store.errors import SettingError
from store.objects.provenance import DIGITAL_SOURCE_TYPE
from tests.gateway.asking import stored
from tests.world import World

REAL = Path(__file__).parent.parent / "data" / "parti_prompts.tsv"


def written(folder: Path, text: str | bytes) -> Path:
    """A file with this content."""
    path = folder / "prompts.tsv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_real_prompts_are_read_with_their_lines() -> None:
    """Quotes and all: 1,632 of them, the second line of the file the first."""
    lines = read_lines(REAL, "ana", limit=None)

    assert len(lines) == 1632
    assert (lines[0].number, lines[0].prompt) == (2, "bond")
    assert [line.prompt for line in lines] == [row.split("\t")[0].strip() for row in REAL.read_text().splitlines()[1:]]
    assert len(read_lines(REAL, "ana", limit=7)) == 7


def test_an_id_is_the_users_and_the_files_and_the_lines(tmp_path: Path) -> None:
    """The same import has the same ids; another user, file or line has others."""
    path = written(tmp_path, "Prompt\none\ntwo\n")
    first = [line.id for line in read_lines(path, "ana", limit=None)]

    assert [line.id for line in read_lines(path, "ana", limit=None)] == first
    assert set(first).isdisjoint(line.id for line in read_lines(path, "bob", limit=None))
    written(tmp_path, "Prompt\none\ntwo\nthree\n")
    assert set(first).isdisjoint(line.id for line in read_lines(path, "ana", limit=None))
    assert len(set(first)) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1: there is no column named Prompt (found: nothing)"),
        ("Words\tCategory\na\tb\n", "line 1: there is no column named Prompt (found: words, category)"),
        ("Prompt\tCategory\na\tb\nc\n", "line 3: 1 columns where the header has 2"),
        ("Prompt\tCategory\na\tb\tc\n", "line 2: 3 columns where the header has 2"),
        ("Prompt\na\n   \nb\n", "line 3: the prompt is empty"),
        (b"Prompt\na\n\xff\xfe\n", "line 3: not UTF-8"),
        ("Prompt\na\0b\n", "line 2: the prompt has a NUL"),
        ("Prompt\n" + "x" * 32_001 + "\n", "line 2: the prompt has a NUL or over 32000 bytes"),
        ("Prompt\n", "holds no prompts"),
    ],
)
def test_a_line_that_is_wrong_is_named(tmp_path: Path, text: str | bytes, said: str) -> None:
    """mission: 157"""
    with pytest.raises(SettingError) as refused:
        read_lines(written(tmp_path, text), "ana", limit=None)

    assert said in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """With the system's reason."""
    with pytest.raises(SettingError, match=r"none\.tsv cannot be read: No such file or directory"):
        read_lines(tmp_path / "none.tsv", "ana", limit=None)


async def test_an_import_goes_on_where_it_was_interrupted(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches are whole; what is there is not made again; afterwards everything is there once."""
    monkeypatch.setenv("PERUSE_PRIMARY_URL", world.database)
    lines = read_lines(written(tmp_path, "Prompt\n" + "".join(f"picture {n}\n" for n in range(70))), "ana", limit=None)
    progress: list[int] = []

    async def run(wanted: list[Line]) -> object:
        settings = StoreSettings()
        return await import_lines(world.data, "ana", wanted, size=64, settings=settings, progress=progress.append)

    interrupted = asyncio.create_task(run(lines))
    while not sum(progress):
        await asyncio.sleep(0.01)
    interrupted.cancel()
    with pytest.raises(asyncio.CancelledError):
        await interrupted
    kept, _ = await stored(world)
    assert kept % 25 == 0
    assert 0 < kept < 70

    done = await run(lines)

    assert (done.made, done.present) == (70 - kept, kept)  # type: ignore[attr-defined]
    images, files = await stored(world)
    assert images == 70
    assert files >= 140
    prompts = await world.gateway.primary.fetch("select prompt from images where owner_id = 'ana'")
    assert sorted(row["prompt"] for row in prompts) == sorted(line.prompt for line in lines)


async def test_imported_pictures_are_counted_and_say_what_they_are(either: World, tmp_path: Path) -> None:
    """In a folder or a bucket; an operator's import is not held up by the plan of the user. mission: 38"""
    settings = either.store.model_copy(update={"primary_url": SecretStr(either.database), "storage_free_bytes": 0})
    lines = read_lines(written(tmp_path, "Prompt\none\ntwo\nthree\n"), "ana", limit=None)

    for _ in range(2):
        await import_lines(either.data, "ana", lines, size=64, settings=settings, progress=lambda n: None)

    listed = (await either.get("/api/images")).json["images"]
    assert len(listed) == 3
    for image in listed:
        file = (await either.get(image["url"], user=None)).body
        assert DIGITAL_SOURCE_TYPE.encode() in file
        assert len(file) == image["size_bytes"]
        assert (await either.get(image["thumb_url"].replace(".thumb.", ".thumb96."), user=None)).status == 200
    (row,) = await either.gateway.primary.fetch("select storage_used_bytes from accounts where owner_id = 'ana'")
    assert row["storage_used_bytes"] == sum(image["size_bytes"] for image in listed)
