"""Zero-hop reads: words of shared memory by which a gateway on the same node sees that a page it kept is still true.

A host has one aligned 8-byte word, a slot, per open replica. It holds a stamp while the replica is known to have been
at head when `verified_at` was written, or later; 0 otherwise. Stamps come from a counter: one that was replaced never
comes back, whoever has the slot next. In one turn of its loop, without an await, a host commits changes, writes a new
stamp, and only then answers anybody: so a gateway that finds the stamp that it was given may serve what it kept, and
is as fresh as if it had asked. A reader takes `verified_at` first and the stamp second, the host writes them the other
way round: the age that goes out is never younger than the page.

Source of the idea: the version word of a seqlock, with the copy kept by the reader.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Final

from actors.active import Active

__all__ = ["FIRST", "VERIFIED_AT", "Slots", "open_slots"]

_MAGIC: Final = 0x50525345_0001
#: Words of the header: magic, monotonic time of the last good sweep in ns (the machine's clock), number of slots.
_MAGIC_WORD: Final = 0
VERIFIED_AT: Final = 1
_COUNT: Final = 2
FIRST: Final = 8


class Slots:
    """The host's side. `clear` before anything that makes an answer untrue, `stamp` when it is true again."""

    def __init__(self, shared: mmap.mmap | bytearray) -> None:
        self._shared = shared
        self._words = words = memoryview(shared).cast("Q")
        self._free = list(range(len(words) - 1, FIRST - 1, -1))
        self._last = 0
        words[_COUNT] = len(self._free)
        words[_MAGIC_WORD] = _MAGIC  # last: a reader that finds it finds the rest

    @classmethod
    def create(cls, path: Path | None, count: int) -> Slots:
        """`count` slots in a new file at `path`, readable by us only; None: in this process, for nobody else."""
        size = 8 * (FIRST + count)
        if path is None:
            return cls(bytearray(size))
        path.unlink(missing_ok=True)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.posix_fallocate(fd, 0, size)  # a hole that the disk has no room for would be a SIGBUS
                return cls(mmap.mmap(fd, size))
            finally:
                os.close(fd)
        except OSError:
            path.unlink(missing_ok=True)
            return cls.create(None, count)  # no room: readers come over the wire

    def close(self) -> None:
        """Give the memory back. Readers that still have it find what they had, until it is too old for them."""
        shared, self._shared = self._shared, bytearray(8 * len(self._words))
        self._words.release()
        self._words = memoryview(self._shared).cast("Q")
        if isinstance(shared, mmap.mmap):
            shared.close()

    def of(self, active: Active) -> tuple[int, int]:
        """The slot of a replica and its stamp; (0, 0) when it has none now."""
        if not active.slot:
            if not self._free:
                return 0, 0
            active.slot = self._free.pop()
            if not active.must_pull:
                self.stamp(active)
        stamp = self._words[active.slot]
        return (active.slot, stamp) if stamp else (0, 0)

    def stamp(self, active: Active) -> None:
        """The replica has changed, and was at head at its `verified_at`."""
        if active.slot:
            self._last += 1
            # A pull may come back after a sweep that was sent later: it does not know what the sweep's time promises.
            is_known = active.verified_at * 1e9 >= self._words[VERIFIED_AT]
            self._words[active.slot] = self._last if is_known else 0

    def verify(self, active: Active) -> None:
        """The replica was at head at its `verified_at`, as before."""
        if active.slot and not self._words[active.slot]:
            self.stamp(active)

    def clear(self, active: Active) -> None:
        """Nothing that was kept may be served without asking."""
        if active.slot:
            self._words[active.slot] = 0

    def release(self, active: Active) -> None:
        """The replica closes."""
        if active.slot:
            self._words[active.slot] = 0
            self._free.append(active.slot)
            active.slot = 0

    def swept(self, sent_at: float) -> None:
        """Every replica with a stamp was at head at `sent_at` (monotonic seconds), or later."""
        self._words[VERIFIED_AT] = max(self._words[VERIFIED_AT], int(sent_at * 1e9))


def open_slots(path: Path) -> memoryview | None:
    """The words of a host on this node, read-only; None when it has none, or they are not what we know."""
    try:
        with path.open("rb") as file:
            words = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)).cast("Q")
    except (OSError, ValueError, TypeError):
        return None
    return words if len(words) > FIRST and words[_MAGIC_WORD] == _MAGIC else None
