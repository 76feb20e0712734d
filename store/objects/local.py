"""Objects as files below one folder: written once, durable when the call returns, whole or absent.

A writer fills a file in `.tmp` (same file system), syncs it, and links it to its final name. The link
either takes the name or fails because it is taken, so that a key never changes its bytes and a reader
never sees half an object. A killed writer leaves at most a file in `.tmp`: see `sweep_temporary`.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Final

from store.errors import ObjectError, ObjectExists, ObjectMissing, RangeOutside
from store.objects.interface import ObjectInfo, OpenObject, check_range
from store.objects.keys import cache_control_of, content_type_of, is_key

__all__ = ["LocalObjects"]

_TEMPORARY: Final = ".tmp"
_CHUNK_BYTES: Final = 256 * 1024
_MAX_KEPT_FOLDERS: Final = 10_000


class LocalObjects:
    """Objects of one folder. Any number of processes may share the folder."""

    def __init__(self, folder: Path, *, files_base: str = "", clock: Callable[[], float] = time.time) -> None:
        """Makes the folder when it is missing. `files_base` stands before /files/… in public URLs; `clock` is compared
        with the file system's times, in s."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder: Final = folder.resolve()
        self._temporary: Final = self.folder / _TEMPORARY
        self._temporary.mkdir(mode=0o700, exist_ok=True)
        self._files_base: Final = files_base.rstrip("/")
        self._clock: Final = clock
        #: Folders that survive a power cut, with all above them, since this process saw to it.
        self._kept_folders: Final[set[Path]] = set()

    def path(self, key: str) -> Path:
        """Returns the file of this key, whether it exists or not.

        Raises: ObjectMissing when the text is no key: such an object cannot exist.
        """
        if not is_key(key):
            raise ObjectMissing(f"{key!r} is not a key, so no object has it")
        path = self.folder.joinpath(*key.split("/"))
        # Cannot fail as long as the form of a key has three parts and no dots in the first two.
        assert path.parent.parent.parent == self.folder, path
        return path

    async def put(self, key: str, data: bytes) -> None:
        """Writes an object that must not exist yet. It survives a power cut once this returns.

        Raises: ObjectExists when the key is taken; the bytes that have it stay as they are.
        """
        await self.put_many([(key, data)])

    async def put_many(self, items: Sequence[tuple[str, bytes]]) -> None:
        """Writes all of the objects or, on an error, none; a kill in between may leave some, each whole.

        Raises: ObjectExists when one of the keys is taken.
        """
        paths = [self.path(key) for key, _ in items]
        await asyncio.to_thread(self._put, items, paths)

    async def get(self, key: str) -> bytes:
        """Returns the bytes. Raises: ObjectMissing."""
        path = self.path(key)
        with _reading(key):
            return await asyncio.to_thread(path.read_bytes)

    @asynccontextmanager
    async def open(self, key: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[OpenObject]:
        """Reads an object in chunks. Raises: ObjectMissing, RangeOutside."""
        path = self.path(key)
        check_range(key, start, end)
        with _reading(key):
            file = await asyncio.to_thread(path.open, "rb")
        try:
            info = _info(key, os.fstat(file.fileno()))
            if start >= info.size_bytes and (start, end) != (0, None):
                raise RangeOutside(f"object {key} has {info.size_bytes} bytes and none at {start}")
            end = info.size_bytes if end is None else min(end, info.size_bytes)
            yield OpenObject(info, start, end, _chunks(key, file, start, end))
        finally:
            file.close()

    async def head(self, key: str) -> ObjectInfo:
        """Returns what is known of the object. Raises: ObjectMissing."""
        path = self.path(key)
        with _reading(key):
            return _info(key, await asyncio.to_thread(path.stat))

    async def exists(self, key: str) -> bool:
        """Tells whether an object has this key; no object has a malformed one."""
        try:
            await self.head(key)
        except ObjectMissing:
            return False
        return True

    async def delete(self, key: str) -> None:
        """Removes an object for good; it is no error when there is none."""
        with suppress(ObjectMissing), _reading(key):
            await asyncio.to_thread(_remove, self.path(key))

    async def scan(self, prefix: str = "", *, after: str = "") -> AsyncIterator[ObjectInfo]:
        """Every object whose key begins with `prefix` and sorts behind `after`, ascending by key."""
        for kind in await asyncio.to_thread(self._names):
            for tag in await asyncio.to_thread(self._names, kind):
                folder = f"{kind}/{tag}/"
                # All keys of a folder have its name as prefix, so one look tells whether any of them can match.
                if not (folder.startswith(prefix) or prefix.startswith(folder)) or after > f"{folder}\x7f":
                    continue
                for info in await asyncio.to_thread(self._infos, folder):
                    if info.key.startswith(prefix) and info.key > after:
                        yield info

    def public_url(self, key: str) -> str | None:
        """The gateway's own URL of the object, which lets the image's state decide."""
        return f"{self._files_base}/files/{key}"

    async def check(self) -> None:
        """Raises: ObjectError when the folder is gone or closed to us."""
        if not await asyncio.to_thread(os.access, self._temporary, os.W_OK | os.X_OK):
            raise ObjectError(f"the folder {self.folder} of the objects cannot be written to")

    async def close(self) -> None:
        """Nothing is held between calls."""

    async def sweep_temporary(self, older_than_s: float) -> int:
        """Removes what killed writers left and returns how many files that were.

        A writer holds its file for as long as a write and a sync take: an hour is a safe age.
        """
        return await asyncio.to_thread(self._sweep, self._clock() - older_than_s)

    def _names(self, folder: str = "") -> list[str]:
        """What is in a folder, sorted; nothing when it is gone or a file."""
        with _reading(folder), suppress(FileNotFoundError, NotADirectoryError):
            return sorted(name for name in os.listdir(self.folder / folder) if name != _TEMPORARY)
        return []

    def _infos(self, folder: str) -> list[ObjectInfo]:
        found = []
        for key in (folder + name for name in self._names(folder)):
            # What is no object is not ours to list; what was deleted meanwhile is gone.
            if is_key(key):
                with suppress(FileNotFoundError):
                    found.append(_info(key, os.stat(self.folder / key)))
        return found

    def _put(self, items: Sequence[tuple[str, bytes]], paths: Sequence[Path]) -> None:
        """Syncs every content before the first name appears, and the names before it returns."""
        written: list[Path] = []
        linked: list[Path] = []
        try:
            for key, data in items:
                temporary = self._temporary / f"{os.getpid()}-{secrets.token_hex(16)}"
                written.append(temporary)
                with _writing(key):
                    _write(temporary, data)
            for (key, _), temporary, path in zip(items, written, paths, strict=True):
                with _writing(key):
                    for folder in (path.parent.parent, path.parent):
                        # If it is a file that has this name, the link tells so.
                        with suppress(FileExistsError):
                            folder.mkdir(mode=0o700)
                            self._kept_folders.discard(path.parent)
                    os.link(temporary, path)
                linked.append(path)
            with _writing(", ".join(key for key, _ in items)):
                self._sync_names(paths)
        except BaseException:
            _unlink(linked)
            raise
        finally:
            _unlink(written)

    def _sync_names(self, paths: Sequence[Path]) -> None:
        """Syncs the folders of these files, and those above up to the root.

        The upper ones even if they were there: another writer may have made them a moment ago and not synced them
        yet. But once is enough: an unchanged folder, too, is a round trip to the disk, and all who wait for it wait.
        """
        folders = {path.parent for path in paths}
        new = folders - self._kept_folders
        for folder in folders | {folder.parent for folder in new}:
            _sync_folder(folder)
        if new:
            _sync_folder(self.folder)
            if len(self._kept_folders) >= _MAX_KEPT_FOLDERS:
                self._kept_folders.clear()
            self._kept_folders.update(new)

    def _sweep(self, before_s: float) -> int:
        removed = 0
        with os.scandir(self._temporary) as entries:
            for entry in entries:
                # Another sweep, or the writer itself, may have been faster.
                with suppress(FileNotFoundError):
                    if entry.stat(follow_symlinks=False).st_mtime < before_s:
                        os.unlink(entry.path)
                        removed += 1
        return removed


def _info(key: str, stat: os.stat_result) -> ObjectInfo:
    return ObjectInfo(
        key,
        stat.st_size,
        f"{stat.st_mtime_ns:x}-{stat.st_size:x}",
        datetime.fromtimestamp(stat.st_mtime, UTC),
        content_type_of(key),
        cache_control_of(key),
    )


async def _chunks(key: str, file: BinaryIO, start: int, end: int) -> AsyncIterator[bytes]:
    with _reading(key):
        file.seek(start)
        while start < end:
            chunk = await asyncio.to_thread(file.read, min(_CHUNK_BYTES, end - start))
            if not chunk:
                raise ObjectError(f"object {key} ended at {start} bytes, expected {end}")
            start += len(chunk)
            yield chunk


@contextmanager
def _reading(key: str) -> Iterator[None]:
    """Turns the operating system's errors into the store's, with the key in the message."""
    try:
        yield
    except FileNotFoundError as error:
        raise ObjectMissing(f"object {key} does not exist") from error
    except OSError as error:
        raise ObjectError(f"object {key}: {error.strerror or error}") from error


@contextmanager
def _writing(key: str) -> Iterator[None]:
    """As `_reading`; here it is a taken name that has an error of its own."""
    try:
        yield
    except FileExistsError as error:
        raise ObjectExists(f"object {key} exists") from error
    except OSError as error:
        raise ObjectError(f"object {key}: {error.strerror or error}") from error


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    path.unlink()
    # Without this a power cut could bring back what its owner saw deleted.
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unlink(paths: Iterable[Path]) -> None:
    for path in paths:
        with suppress(FileNotFoundError):
            path.unlink()
