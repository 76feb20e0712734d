"""kill -9 of a gateway between an object and its row: at most an object without a row is left, and it goes away."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import aiohttp
import pytest

from gateway.auth import Signer
from gateway.config import GatewaySettings
from store.config import StoreSettings
from store.deletions import delete_due
from store.objects import open_objects
from store.objects.interface import Objects
from store.objects.picture_process import PictureProcess
from store.objects.reconcile import Report, reconcile
from store.primary import Primary
from tests.fakes.s3_server import S3Server, bucket_settings
from tests.gateway.asking import form, noise
from tests.served import BIN
from tests.world import until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(180)]

_numbers = itertools.count(1)
DATA = noise((60, 60))
LIMIT = 3 * len(DATA) // 2
"""A free plan has room for one picture and a half."""
PATHS = {"/api/images/upload": "images", "/api/references": "reference_images"}
_ROUNDS = 4

#: Holds every new row of a table between its insert and its commit.
_HOLD = "create function hold() returns trigger language plpgsql as $$ begin perform pg_sleep(8); return new; end $$"
_IS_HELD = "select pid from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'"
_BACKENDS = (
    "select pg_terminate_backend(pid) from pg_stat_activity "
    "where datname = current_database() and application_name like 'peruse gateway%'"
)


class Room(NamedTuple):
    """What an account says, in bytes: of the pictures in its rows, used, reserved, and in its reservations."""

    rows: int
    used: int
    reserved: int
    held: int


class Victim:
    """`peruse gateway` on a socket of the test's, alone, with an object store; `primary` and `objects` look at both."""

    def __init__(self, data: Path, database: str, settings: StoreSettings, primary: Primary, objects: Objects) -> None:
        self.data, self.primary, self.objects = data, primary, objects
        self._environment = {
            **os.environ,
            "PERUSE_PRIMARY_URL": database,
            "PERUSE_STORAGE_FREE_BYTES": str(settings.storage_free_bytes),
        }
        if settings.objects == "s3":
            self._environment |= {
                "PERUSE_OBJECTS": "s3",
                "PERUSE_S3_ENDPOINT_URL": settings.s3_endpoint_url or "",
                "PERUSE_S3_BUCKET": settings.s3_bucket or "",
                "PERUSE_S3_ACCESS_KEY_ID": "AKIDFORTESTS",
                "PERUSE_S3_SECRET_ACCESS_KEY": "secret-for-tests",
            }
        self._token = Signer(data, GatewaySettings()).token("ana")
        self._process: subprocess.Popen[bytes] | None = None
        self._http: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Returns when it answers."""
        listening = socket.create_server(("127.0.0.1", 0))
        fd = listening.fileno()
        os.set_inheritable(fd, True)
        port = listening.getsockname()[1]
        with (self.data / "gateway.log").open("ab") as output:
            self._process = subprocess.Popen(
                [BIN, "gateway", "--data", self.data, "--fd", str(fd)],
                pass_fds=(fd,), stdout=output, stderr=output, env=self._environment,
            )  # fmt: skip
        listening.close()
        self._http = aiohttp.ClientSession(f"http://127.0.0.1:{port}")
        await until(self._answers, timeout_s=30)

    async def kill(self) -> None:
        """kill -9. Returns when the primary has forgotten it too."""
        assert self._process is not None
        assert self._http is not None
        self._process.kill()
        await asyncio.to_thread(self._process.wait)
        await self._http.close()
        self._process = self._http = None

        async def is_forgotten() -> bool:
            return not await self.primary.fetch(_BACKENDS)

        await until(is_forgotten)

    async def upload(self, path: str, data: bytes = DATA) -> int:
        """The status of the answer; 0 when there was none."""
        assert self._http is not None
        headers = {"Authorization": f"Bearer {self._token}"}
        try:
            async with self._http.post(path, data=form(data), headers=headers) as answer:
                await answer.read()
                return answer.status
        except (aiohttp.ClientError, OSError):
            return 0

    async def _answers(self) -> bool:
        assert self._http is not None
        assert self._process is not None
        assert self._process.poll() is None, (self.data / "gateway.log").read_text()[-2000:]
        with suppress(aiohttp.ClientError, OSError):
            async with self._http.get("/healthz") as answer:
                return answer.status == 200
        return False

    async def keys(self) -> list[str]:
        return [info.key async for info in self.objects.scan()]

    async def room(self) -> Room:
        (row,) = await self.primary.fetch(
            "select (select coalesce(sum(size_bytes), 0) from (select owner_id, size_bytes from images union all "
            "  select owner_id, size_bytes from reference_images) r where r.owner_id = a.owner_id)::bigint as rows, "
            "storage_used_bytes as used, storage_reserved_bytes as reserved, (select coalesce(sum(size_bytes), 0) "
            "  from storage_reservations s where s.owner_id = a.owner_id)::bigint as held from accounts a "
            "where owner_id = 'ana'"
        )
        return Room(*row)

    async def repair(self) -> Report:
        """`peruse objects check --repair` two hours later."""
        pictures = PictureProcess()
        try:
            later = datetime.now(UTC) + timedelta(hours=2)
            report = await reconcile(self.primary, self.objects, now=later, prepare=pictures.prepare)
            await delete_due(self.primary, self.objects)
            return report
        finally:
            await pictures.close()

    async def two_hours_pass(self) -> None:
        """As far as reservations know."""
        await self.primary.fetch("update storage_reservations set expires_at = expires_at - interval '2 hours'")


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.stop()


@pytest.fixture(params=["local", "s3"])
def settings(request: pytest.FixtureRequest) -> StoreSettings:
    """Of a folder or of a fresh bucket."""
    if request.param == "local":
        return StoreSettings(storage_free_bytes=LIMIT)
    server: S3Server = request.getfixturevalue("s3")
    bucket = f"kills-{next(_numbers)}"
    server.make_bucket(bucket)
    return bucket_settings(server.url, bucket, storage_free_bytes=LIMIT)


@pytest.fixture
async def make_victim(
    settings: StoreSettings, database: str, primary: Primary, tmp_path: Path
) -> AsyncIterator[Callable[[int], Victim]]:
    """A gateway, not started; the free plan has room for so many bytes."""
    objects = open_objects(tmp_path, settings)
    made: list[Victim] = []

    def make(limit_bytes: int) -> Victim:
        wanted = settings.model_copy(update={"storage_free_bytes": limit_bytes})
        made.append(Victim(tmp_path, database, wanted, primary, objects))
        return made[-1]

    yield make
    for victim in made:
        if victim._process is not None:
            await victim.kill()
    await objects.close()


@pytest.mark.parametrize("path", PATHS)
async def test_a_kill_between_objects_and_row_leaves_what_is_cleared_away(
    make_victim: Callable[[int], Victim], path: str
) -> None:
    """Objects without a row, which the check removes, and reserved room, which the next upload takes back when its time
    is over. mission: 77"""
    victim, table = make_victim(LIMIT), PATHS[path]
    await victim.primary.fetch(_HOLD)
    await victim.primary.fetch(f"create trigger hold after insert on {table} for each row execute function hold()")
    await victim.start()
    uploading = asyncio.create_task(victim.upload(path))
    await until(lambda: victim.primary.fetch(_IS_HELD))
    assert len(await victim.keys()) == 3

    await victim.kill()

    assert await uploading == 0
    assert await victim.primary.fetch(f"select 1 from {table}") == []
    assert len(await victim.keys()) == 3
    assert await victim.room() == Room(rows=0, used=0, reserved=len(DATA), held=len(DATA))
    await victim.primary.fetch(f"drop trigger hold on {table}")
    await victim.start()
    assert await victim.upload(path) == 413
    await victim.two_hours_pass()
    assert await victim.upload(path) == 201
    assert await victim.room() == Room(rows=len(DATA), used=len(DATA), reserved=0, held=0)

    report = await victim.repair()

    assert (report.orphans, report.missing, report.repaired) == (3, 0, 3)
    rows = await victim.primary.fetch(f"select k from {table} t cross join object_keys(t.object_key, t.thumb_key) k")
    assert sorted(await victim.keys()) == sorted(row["k"] for row in rows)
    assert (await victim.repair()).is_good


async def test_kills_at_any_moment_lose_no_upload_that_was_answered(make_victim: Callable[[int], Victim]) -> None:
    """Every row has its objects, every answered upload its row; what else is there is cleared away, and all room that
    no row uses is back."""
    victim = make_victim(2**30)
    moments = random.Random(11)
    answered = interrupted = 0
    for number in range(_ROUNDS):
        await victim.start()
        pictures = [noise((60 + number, 50 + n)) for n in range(6)]
        uploads = [
            asyncio.create_task(victim.upload(path, picture))
            for picture, path in zip(pictures, itertools.cycle(PATHS), strict=False)
        ]
        if number:  # the first round is for the process that reads pictures, too
            await asyncio.sleep(moments.uniform(0.0, 0.35))
        else:
            await asyncio.wait(uploads, return_when=asyncio.FIRST_COMPLETED)

        await victim.kill()

        statuses = await asyncio.gather(*uploads)
        assert set(statuses) <= {0, 201}, statuses
        answered += statuses.count(201)
        interrupted += statuses.count(0)
        (row,) = await victim.primary.fetch(
            "select (select count(*) from images) + (select count(*) from reference_images)"
        )
        assert answered <= row[0] <= answered + interrupted
        room = await victim.room()
        assert (room.used, room.reserved) == (room.rows, room.held), f"round {number}"
        report = await victim.repair()
        assert report.missing == 0, f"round {number}: {report}"
        assert report.orphans <= 3 * statuses.count(0)
        assert len(await victim.keys()) == 3 * row[0]

    await victim.two_hours_pass()
    used = (await victim.room()).used
    tight = make_victim(used + len(DATA))
    await tight.start()
    assert await tight.upload("/api/images/upload") == 201
    assert await tight.room() == Room(rows=used + len(DATA), used=used + len(DATA), reserved=0, held=0)
    assert interrupted > 0
