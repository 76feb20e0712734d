"""Moving a store: every object of one into another, byte for byte.

Both are listed in the order of their keys, so what is there already is passed over and a run that was killed goes on
where it stopped, without a file that remembers. Objects are written whole or not at all, under keys that never change
their bytes; so the same key with the same size is the same object, unless a disk lied: `verify` reads those as well.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from typing import Final

import msgspec

from store.errors import ObjectError, ObjectExists, ObjectMissing
from store.objects.interface import ObjectInfo, Objects

__all__ = ["Copied", "copy", "measure"]

#: Objects in memory at once, twice each while they are compared.
_AT_ONCE: Final = 8


class Copied(msgspec.Struct):
    """What a run did. `differ` are keys whose objects at the two places are not the same: they are left as they are."""

    copied: int = 0
    copied_bytes: int = 0
    present: int = 0
    gone: int = 0  # deleted at the source while it was copied
    extra: int = 0  # objects that only the destination has: they stay
    differ: list[str] = msgspec.field(default_factory=list)


async def measure(source: Objects) -> tuple[int, int]:
    """How many objects there are, and their bytes."""
    count = size = 0
    async for info in source.scan():
        count += 1
        size += info.size_bytes
    return count, size


async def copy(
    source: Objects,
    destination: Objects,
    *,
    verify: bool = False,
    progress: Callable[[ObjectInfo], None] = lambda info: None,
) -> Copied:
    """Copy every object that the destination does not have, and read each back. `progress` hears of every object of the
    source that is done with.

    Raises:
        ObjectError: one of the stores failed for good; what was copied is.
    """
    done = Copied()
    turns = asyncio.Semaphore(_AT_ONCE)
    failed: list[ObjectError] = []

    async def one(info: ObjectInfo, *, is_there: bool) -> None:
        try:
            await _one(source, destination, info, done, is_there=is_there)
            progress(info)
        except ObjectError as error:
            failed.append(error)  # the others that are under way come to their end
        finally:
            turns.release()

    try:
        async with asyncio.TaskGroup() as group:
            async for info, there in _pairs(source, destination, done):
                if failed:
                    break
                if there is not None and there.size_bytes != info.size_bytes:
                    done.differ.append(info.key)
                elif there is not None and not verify:
                    done.present += 1
                else:
                    await turns.acquire()
                    group.create_task(one(info, is_there=there is not None))
                    continue
                progress(info)
    except BaseExceptionGroup as group_failed:  # of the lists: what a task raises is in `failed`
        raise group_failed.exceptions[0] from group_failed
    if failed:
        raise failed[0]
    return done


async def _pairs(
    source: Objects, destination: Objects, done: Copied
) -> AsyncIterator[tuple[ObjectInfo, ObjectInfo | None]]:
    """Each object of the source, and what has its key at the destination."""
    others = destination.scan()
    other = await anext(others, None)
    async for info in source.scan():
        while other is not None and other.key < info.key:
            done.extra += 1
            other = await anext(others, None)
        if other is not None and other.key == info.key:
            yield info, other
            other = await anext(others, None)
        else:
            yield info, None
    while other is not None:
        done.extra += 1
        other = await anext(others, None)


async def _one(source: Objects, destination: Objects, info: ObjectInfo, done: Copied, *, is_there: bool) -> None:
    try:
        data = await source.get(info.key)
    except ObjectMissing:
        done.gone += 1
        return
    if not is_there:
        try:
            await destination.put(info.key, data)
        except ObjectExists:
            is_there = True  # another run came first
    if await _digest(destination, info.key) != hashlib.sha256(data).digest():
        done.differ.append(info.key)
    elif is_there:
        done.present += 1
    else:
        done.copied += 1
        done.copied_bytes += len(data)


async def _digest(objects: Objects, key: str) -> bytes | None:
    """SHA-256 of an object's bytes, as they come; None when it is gone."""
    digest = hashlib.sha256()
    try:
        async with objects.open(key) as opened:
            async for chunk in opened.chunks:
                digest.update(chunk)
    except ObjectMissing:
        return None
    return digest.digest()
