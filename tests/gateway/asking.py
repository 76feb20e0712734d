"""What most tests of the gateway ask, and what they ask it with."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
from PIL import Image

from store.epoch import Bookmark
from tests.world import Reply, World, add_images, until

__all__ = [
    "bookmark_of",
    "form",
    "given_images",
    "ids_of",
    "noise",
    "object_files",
    "picture",
    "png_claiming",
    "replica_of",
    "running",
    "stored",
]


@asynccontextmanager
async def running(world: World) -> AsyncIterator[World]:
    """`world` from its start to its stop."""
    await world.start()
    try:
        yield world
    finally:
        await world.stop()


async def given_images(world: World, user: str, count: int, **columns: Any) -> list[str]:
    """Ids of new images, the newest first, as a list shows them."""
    ids = await world.write(user, lambda connection: add_images(connection, user, count, **columns))
    return [str(row_id) for row_id in reversed(ids)]


async def replica_of(world: World, user: str, path: str = "/api/images") -> Reply:
    """A read that the user's replica answered."""

    async def answer() -> Reply | None:
        reply = await world.get(path, user=user)
        return reply if reply.headers.get("Peruse-Source") == "replica" else None

    return await until(answer)


def ids_of(reply: Reply) -> list[str]:
    assert reply.status == 200, reply
    return [image["id"] for image in reply.json["images"]]


def bookmark_of(reply: Reply) -> Bookmark:
    bookmark = Bookmark.parse(reply.headers["Peruse-Bookmark"])
    assert bookmark is not None
    return bookmark


async def stored(world: World) -> tuple[int, int]:
    """How many images the primary has, and how many object files there are."""
    rows = await world.gateway.primary.fetch("select count(*) from images")
    return rows[0][0], len(object_files(world))


def object_files(world: World) -> list[Path]:
    return [path for path in (world.data / "objects").rglob("*") if path.is_file()]


def form(data: bytes | None, *, content_type: str = "image/png", **fields: str | bytes) -> aiohttp.FormData:
    """The body of an upload; no file when `data` is None."""
    made = aiohttp.FormData(default_to_multipart=True)
    if data is not None:
        made.add_field("file", io.BytesIO(data), filename="a.png", content_type=content_type)
    for name, value in fields.items():
        made.add_field(name, value if isinstance(value, str) else io.BytesIO(value), filename=None)
    return made


def picture(kind: str, size: tuple[int, int] = (40, 30)) -> bytes:
    """A real picture; `kind` is Pillow's name of the format."""
    out = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(out, kind)
    return out.getvalue()


def noise(size: tuple[int, int]) -> bytes:
    """A PNG of three bytes and a bit per pixel: nothing in it can be packed."""
    out = io.BytesIO()
    Image.frombytes("RGB", size, Random(7).randbytes(3 * size[0] * size[1])).save(out, "PNG")
    return out.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header, with a right checksum, claims a size that its data does not have."""
    real = picture("PNG")
    header = b"IHDR" + struct.pack("!II", width, height) + real[24:29]
    return real[:12] + header + struct.pack("!I", zlib.crc32(header)) + real[33:]
