"""`peruse objects` and `peruse users delete`, as a person runs them."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.objects_commands import open_place
from store.errors import SettingError
from store.objects.keys import new_key
from store.objects.local import LocalObjects
from store.objects.s3 import S3Objects
from tests.fakes.s3_server import S3Server
from tests.gateway.test_cli import peruse
from tests.world import World, until

TAG = "0123456789abcdef" * 2
KEYS = {"PERUSE_S3_ACCESS_KEY_ID": "AKIDFORTESTS", "PERUSE_S3_SECRET_ACCESS_KEY": "secret-for-tests"}


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.stop()


def an_orphan(data: Path) -> tuple[str, Path]:
    """An object of two hours ago that no row refers to."""
    key = new_key("generated", TAG, "image/png", 1)
    path = data / "objects" / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"12345")
    os.utime(path, (time.time() - 7200, time.time() - 7200))
    return key, path


async def test_check_tells_repairs_and_answers_with_its_exit_code(world: World) -> None:
    """mission: 124"""
    image = (await world.upload()).json["image"]
    where = {"PERUSE_PRIMARY_URL": world.database}

    async def check(*words: str) -> tuple[int, str, str]:
        done = await asyncio.to_thread(lambda: peruse("objects", "check", *words, data=world.data, **where))
        return done.returncode, done.stdout, done.stderr

    code, said, shown = await check()
    assert (code, "0 orphans (0 bytes), 0 missing" in said) == (0, True), (said, shown)
    assert "checking" in shown

    key, path = an_orphan(world.data)
    code, said, _ = await check("--json")
    told = json.loads(said)
    assert (code, told["good"], told["orphans"], told["orphan_bytes"], told["missing"]) == (1, False, 1, 5, 0)
    assert told["findings"] == [{"kind": "orphan", "key": key, "size_bytes": 5, "repaired": ""}]
    assert path.exists()

    code, said, _ = await check("--repair")
    assert (code, f"orphan   {key}  to be deleted" in said) == (0, True), said
    await until(lambda: not path.exists())

    picture = world.data / "objects" / image["url"].removeprefix("/files/")
    picture.unlink()
    code, said, _ = await check("--repair")
    assert (code, "1 missing, 0 repaired" in said) == (1, True), said


def test_copy_moves_a_folder_to_a_bucket_and_back(tmp_path: Path, s3: S3Server) -> None:
    """With the settings' keys: none is on the command line, and none is told."""
    s3.make_bucket("copy-commands")
    made = {new_key("generated", TAG, "image/png", n): b"%d" % n * 1000 for n in range(15)}
    source = LocalObjects(tmp_path / "one")
    asyncio.run(source.put_many(list(made.items())))
    data = tmp_path / "data"
    data.mkdir()

    def copy(origin: str, target: str, *words: str) -> dict:
        done = peruse("objects", "copy", "--from", origin, "--to", target, "--json", *words, data=data, **KEYS)
        assert done.returncode == 0, done.stderr
        assert "secret-for-tests" not in done.stdout + done.stderr
        assert "copying" in done.stderr
        return json.loads(done.stdout)

    bucket = f"s3:copy-commands@{s3.url}"
    assert copy(f"local:{tmp_path / 'one'}", bucket)["copied"] == 15
    assert copy(f"local:{tmp_path / 'one'}", bucket)["present"] == 15
    assert copy(bucket, f"local:{tmp_path / 'two'}")["copied"] == 15
    assert copy(bucket, f"local:{tmp_path / 'two'}", "--verify")["present"] == 15

    back = LocalObjects(tmp_path / "two")
    assert {key: back.path(key).read_bytes() for key in made} == made

    some = next(iter(made))
    back.path(some).write_bytes(b"?" * len(made[some]))
    done = peruse(
        "objects", "copy", "--from", bucket, "--to", f"local:{tmp_path / 'two'}", "--verify", data=data, **KEYS
    )
    assert (done.returncode, f"differs  {some}" in done.stdout, "1 differ" in done.stdout) == (1, True, True)


@pytest.mark.parametrize(
    ("origin", "target", "said"),
    [
        ("ftp:there", "local:{}", "'ftp:there' is neither local:PATH nor s3:BUCKET[@ENDPOINT]"),
        ("local:{}/nowhere", "local:{}", "there is no folder"),
        ("local:{}", "local:{}", "are the same place"),
        ("local:{}", "s3:BUCKET", "'s3:BUCKET' is neither"),
        ("local:{}", "s3:a-bucket@http://id:secret@x", "PERUSE_S3_ENDPOINT_URL: String should match pattern"),
        ("local:{}", "s3:a-bucket@http://127.0.0.1:1", "PERUSE_S3_ACCESS_KEY_ID is missing"),
    ],
)
def test_places_that_cannot_be_are_refused_in_one_line(tmp_path: Path, origin: str, target: str, said: str) -> None:
    """Nothing is read or written."""
    words = ["--from", origin.format(tmp_path), "--to", target.format(tmp_path)]

    done = peruse("objects", "copy", *words, data=tmp_path)

    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "id:secret" not in done.stderr


def test_a_place_takes_what_it_does_not_say_from_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under Peruse's own names or those of the services' tools, whatever store the instance uses now."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKID")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with pytest.raises(SettingError, match="PERUSE_S3_REGION is missing"):
        open_place("s3:a-bucket", tmp_path)
    monkeypatch.setenv("AWS_REGION", "eu-west-1")

    opened = open_place("s3:a-bucket", tmp_path)

    assert isinstance(opened, S3Objects)
    assert opened.calls.bucket == "a-bucket"
    assert opened.calls._settings.s3_access_key_id == "AKID"
    assert opened.calls._settings.s3_region == "eu-west-1"
    monkeypatch.setenv("PERUSE_S3_ENDPOINT_URL", "http://127.0.0.1:9")
    settings = open_place("s3:b-bucket", tmp_path)
    assert isinstance(settings, S3Objects)
    assert settings.calls._settings.s3_endpoint_url == "http://127.0.0.1:9"
    elsewhere = open_place("s3:b-bucket@http://127.0.0.1:8", tmp_path)
    assert isinstance(elsewhere, S3Objects)
    assert elsewhere.calls._settings.s3_endpoint_url == "http://127.0.0.1:8"


async def test_a_user_is_erased_from_the_shell(world: World) -> None:
    """After a question, or --yes; the list of users is as it was."""
    await world.upload(user="ana")
    await world.upload(user="bob")
    where = {"PERUSE_PRIMARY_URL": world.database}

    async def users(*words: str, stdin: str = "") -> tuple[int, str, str]:
        done = await asyncio.to_thread(lambda: peruse("users", *words, data=world.data, stdin=stdin, **where))
        return done.returncode, done.stdout, done.stderr

    assert (await users("delete", "ana", stdin="n\n"))[0] == 1
    assert [row["user"] for row in json.loads((await users("--json"))[1])] == ["ana", "bob"]

    code, said, _ = await users("delete", "ana", "--yes", "--json")

    assert (code, json.loads(said)["images"]) == (0, 1)
    assert [row["user"] for row in json.loads((await users("--json"))[1])] == ["bob"]
    code, _, said = await users("delete", "ana", "--yes")
    assert (code, "there is no user ana" in said) == (2, True)
    await until(lambda: len([path for path in (world.data / "objects").rglob("*.png")]) == 1)
