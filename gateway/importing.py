"""`peruse import`: a file of prompts becomes a gallery of real images.

The whole file is checked before anything is made. Ids come from the file's content and the line, so that the same
command, run again after Ctrl-C or a crash, goes on where it stopped and doubles nothing.
"""

from __future__ import annotations

import asyncio
import csv
import hashlib
import json
import multiprocessing
import os
import resource
import time
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

from actors import ReplicaClient
from store import hosts, images, storage
from store.config import StoreSettings
from store.errors import ObjectError, SettingError
from store.generation.providers import builtin
from store.instance import primary_url
from store.objects import keys, open_objects
from store.objects.interface import Objects
from store.objects.pictures import Picture, prepare
from store.objects.prefix import owner_secret
from store.objects.provenance import tagged
from store.objects.stored import stored_as
from store.primary import Connection, Primary
from store.users import ensure_user

__all__ = ["Imported", "Line", "import_lines", "read_lines"]

_COLUMN: Final = "prompt"
_BATCH: Final = 25
_MAX_FILE_BYTES: Final = 64 * 2**20
_MAX_LINES: Final = 100_000


class Line(NamedTuple):
    """One prompt of a file, with the id that its image will have."""

    number: int
    prompt: str
    id: uuid.UUID


class Imported(NamedTuple):
    """What an import did. `cpu_s` is the processor time of all its processes."""

    made: int
    present: int
    took_s: float
    cpu_s: float


def read_lines(path: Path, user: str, *, limit: int | None) -> list[Line]:
    """The prompts of a tab-separated file with a column named Prompt.

    Raises:
        SettingError: the file or a line of it cannot be used; names the line.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise SettingError(f"{path} cannot be read: {error.strerror}") from None
    if len(raw) > _MAX_FILE_BYTES:
        raise SettingError(f"{path} has {len(raw)} bytes, the most is {_MAX_FILE_BYTES}")
    source = hashlib.sha256(user.encode() + b"\0" + raw).digest()
    rows = csv.reader(_decoded(path, raw), delimiter="\t", quoting=csv.QUOTE_NONE)
    header = [name.strip().lower() for name in next(rows, [])]
    if _COLUMN not in header:
        raise SettingError(
            f"{path}, line 1: there is no column named Prompt (found: {', '.join(header)[:200] or 'nothing'})"
        )
    column = header.index(_COLUMN)
    lines: list[Line] = []
    for number, row in enumerate(rows, start=2):
        if limit is not None and len(lines) >= limit:
            break
        lines.append(Line(number, _prompt(path, number, row, len(header), column), _line_id(source, number)))
    if not lines:
        raise SettingError(f"{path} holds no prompts")
    if len(lines) > _MAX_LINES:
        raise SettingError(f"{path} has {len(lines)} prompts, the most is {_MAX_LINES}")
    return lines


def _decoded(path: Path, raw: bytes) -> list[str]:
    lines = []
    for number, line in enumerate(raw.split(b"\n"), start=1):
        try:
            lines.append(line.removesuffix(b"\r").decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            raise SettingError(f"{path}, line {number}: not UTF-8 ({error.reason})") from None
    if lines and not lines[-1]:
        lines.pop()
    return lines


def _prompt(path: Path, number: int, row: list[str], width: int, column: int) -> str:
    if len(row) != width:
        raise SettingError(f"{path}, line {number}: {len(row)} columns where the header has {width}")
    prompt = row[column].strip()
    if not prompt:
        raise SettingError(f"{path}, line {number}: the prompt is empty")
    if "\0" in prompt or len(prompt.encode()) > images.MAX_PROMPT_BYTES:
        raise SettingError(f"{path}, line {number}: the prompt has a NUL or over {images.MAX_PROMPT_BYTES} bytes")
    return prompt


def _line_id(source: bytes, number: int) -> uuid.UUID:
    """A UUIDv8 made of what the file is and which line of it."""
    digest = bytearray(hashlib.sha256(source + number.to_bytes(8, "big")).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x80
    digest[8] = digest[8] & 0x3F | 0x80
    return uuid.UUID(bytes=bytes(digest))


class _Made(NamedTuple):
    line: Line
    seed: int
    data: bytes
    picture: Picture


def _make(line: Line, size: int) -> _Made:
    """In a worker process: render, then look at the bytes as at anybody's."""
    seed = int.from_bytes(hashlib.sha256(line.prompt.encode()).digest()[:4], "big")
    data = tagged(builtin.render(line.prompt, seed=seed, width=size, height=size))
    return _Made(line, seed, data, prepare(data))


async def import_lines(
    data: Path,
    user: str,
    lines: list[Line],
    *,
    size: int,
    settings: StoreSettings,
    progress: Callable[[int], None],
) -> Imported:
    """Make an image of each line and put it into `user`'s gallery, in batches that each are whole.

    `progress` is told how many more are there. On cancellation, the batches so far stay.
    """
    started, cpu_before = time.monotonic(), _cpu_s()
    primary = await Primary.open(primary_url(data, settings), name="import", size=2)
    client = ReplicaClient(lambda: hosts.list_hosts(primary))
    objects = open_objects(data, settings)
    workers = os.cpu_count() or 1
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_ignore_interrupt)
    try:
        await _check(objects)
        await client.start()
        missing = await _missing(primary, user, lines)
        present = len(lines) - len(missing)
        progress(present)
        batch: list[_Made] = []
        made = 0
        async for item in _rendered(pool, missing, size, ahead=workers * 4):
            batch.append(item)
            if len(batch) == _BATCH or made + len(batch) == len(missing):
                await _store(data, objects, primary, client, user, batch, size)
                made += len(batch)
                progress(len(batch))
                batch = []
        pool.shutdown()  # before the clocks are read: a worker's time counts when it has ended
        return Imported(made, present, time.monotonic() - started, _cpu_s() - cpu_before)
    finally:
        pool.shutdown(cancel_futures=True)
        await client.close()
        await primary.close()
        await objects.close()


async def _check(objects: Objects) -> None:
    try:
        await objects.check()
    except ObjectError as error:
        raise SettingError(str(error)) from error


async def _missing(primary: Primary, user: str, lines: list[Line]) -> list[Line]:
    rows = await primary.fetch(
        "select id from images where owner_id = $1 and id = any($2::uuid[])", user, [line.id for line in lines]
    )
    there = {row["id"] for row in rows}
    return [line for line in lines if line.id not in there]


async def _rendered(pool: ProcessPoolExecutor, lines: list[Line], size: int, *, ahead: int) -> AsyncIterator[_Made]:
    """Renders in the order of the lines, at most `ahead` of who takes them: memory stays bounded."""
    waiting: list[asyncio.Future[_Made]] = []
    upcoming = iter(lines)
    while True:
        for line in upcoming:
            waiting.append(asyncio.wrap_future(pool.submit(_make, line, size)))
            if len(waiting) >= ahead:
                break
        if not waiting:
            return
        yield await waiting.pop(0)


async def _store(
    data: Path,
    objects: Objects,
    primary: Primary,
    client: ReplicaClient,
    user: str,
    batch: list[_Made],
    size: int,
) -> None:
    tag = keys.owner_tag(user, owner_secret(data))
    now = datetime.now(UTC)
    now_ms = int(now.timestamp() * 1000)
    rows = [_row(made, tag, now_ms, now + timedelta(microseconds=n), size) for n, made in enumerate(batch)]
    puts: list[tuple[str, bytes]] = []
    for made, row in zip(batch, rows, strict=True):
        puts += made.picture.objects(row.object_key, made.data)
    await objects.put_many(puts)

    async def transaction(connection: Connection) -> None:
        await ensure_user(connection, user)
        inserted = [row.size_bytes for row in rows if await images.insert(connection, user, row)]
        # Counted, not asked: whoever runs this command runs the instance, and decides about plans too.
        await storage.add(connection, user, sum(inserted))

    _, bookmark = await primary.write(user, transaction)
    client.poke(user, bookmark)


def _row(made: _Made, tag: str, now_ms: int, created_at: datetime, size: int) -> images.NewImage:
    return images.NewImage(
        id=made.line.id,
        **stored_as("generated", tag, made.data, made.picture, now_ms),
        model="builtin",
        prompt=made.line.prompt,
        seed=made.seed,
        generation_params=json.dumps({"width": size, "height": size, "seed": made.seed}),
        created_at=created_at,
    )


def _ignore_interrupt() -> None:
    """Ctrl-C is for the process that writes: workers end when it ends them."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _cpu_s() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
