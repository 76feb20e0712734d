"""Keeps a host's folder within its bytes: files of replicas that nobody used for long go, the oldest first. Files of
users who were erased go at once, also from the folders of hosts that are gone.

A file's time is that of its last close. Losing one costs a seed, so nothing is asked and nothing is moved.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import structlog

from actors.folder import ReplicaFolder
from actors.replica_file import delete_files, file_bytes
from store.clock import Clock
from store.erasure import finished_since
from store.primary import Primary

__all__ = ["Janitor"]

log = structlog.get_logger()

#: Files removed in one turn of the loop.
_BATCH = 50


class _File(NamedTuple):
    used_at: float
    size: int
    path: Path


class Janitor:
    """Tidies one folder. `bytes` is what it held when it was last looked through."""

    def __init__(self, folder: ReplicaFolder, *, max_bytes: int, max_age_s: float, clock: Clock) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._clock = clock
        self.bytes = 0
        self._erased_since: datetime | None = None

    async def tidy(self, in_use: Container[Path]) -> int:
        """Delete what is too old, and the oldest while there is too much, but nothing that is open. Answers how many
        files went.

        `in_use` are the paths of open replicas, as they are at any moment: it is asked before every deletion.
        """
        files = await asyncio.to_thread(self._folder_files)
        self.bytes = sum(file.size for file in files)
        oldest_allowed = self._clock.wall() - self._max_age_s
        removed = 0
        for file in sorted(files):
            if file.used_at >= oldest_allowed and self.bytes <= self._max_bytes:
                break
            if file.path in in_use:
                continue
            delete_files(file.path)
            self.bytes -= file.size
            removed += 1
            if removed % _BATCH == 0:
                await asyncio.sleep(0)
        if removed:
            log.info("folder.tidied", removed=removed, bytes=self.bytes)
        return removed

    async def forget_erased(self, primary: Primary, forget: Callable[[str], bool]) -> int:
        """Delete the files of users who were erased since the last look, and once more those of the minute before it:
        a seed that was under way, or a read in the last second of a token, may have made one since. Answers how many
        users had some here, and how many files there were in folders that no host has any more.

        `forget` closes a user's replica and deletes its files; it answers whether there were any. Files older than what
        is looked back for at the start are deleted for their age.

        Raises:
            PrimaryUnavailable: nothing was looked at.
        """
        removed = 0
        marks = await finished_since(primary, self._erased_since, within_s=self._max_age_s)
        for number, mark in enumerate(marks):
            removed += forget(mark.user)
            if number % _BATCH == _BATCH - 1:
                await asyncio.sleep(0)
        removed += await asyncio.to_thread(self._folder.delete_in_abandoned, [mark.user for mark in marks])
        if marks:
            self._erased_since = marks[-1].at
        if removed:
            log.info("folder.erased", removed=removed)
        return removed

    def _folder_files(self) -> list[_File]:
        found = []
        for path in self._folder.path.glob("??/??/*.db"):
            try:
                used_at = path.stat().st_mtime
            except FileNotFoundError:
                continue
            # The log of an open replica may be larger than its file.
            found.append(_File(used_at, file_bytes(path), path))
        return found
