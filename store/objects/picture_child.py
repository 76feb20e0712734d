"""The process that reads pictures: `python -m store.objects.picture_child MEMORY_LIMIT_BYTES PARENT_PID`.

It reads one task after the other from its standard input and answers each on its standard output: see `picture_worker`,
which starts it. What it answers is data of known types and never code: were a picture to take this process over, it
could still only lie about pictures.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
import sys
from contextlib import suppress
from typing import BinaryIO, Final

import msgspec
from PIL import AvifImagePlugin

from store.errors import BrokenPicture, PictureError, PictureTooLarge, UnsupportedPicture
from store.objects.finishing import Finished, finish
from store.objects.pictures import Picture, prepare, warm_up
from store.priority import run_last

__all__ = ["ANSWER", "READY", "SIZES", "Answer", "Finish", "Prepare", "encode_task"]

_PR_SET_PDEATHSIG: Final = 1
#: Before a task: the bytes of it, and of its picture. Before an answer: the bytes of it, and none.
SIZES: Final = struct.Struct("=QQ")
#: The first answer: imports are done, and tasks are taken.
READY: Final = b"ready"


class Prepare(msgspec.Struct, frozen=True, tag=True):
    """A task: `prepare` with these limits."""

    max_bytes: int
    max_pixels: int


class Finish(msgspec.Struct, frozen=True, tag=True):
    """A task: `finish` with these."""

    max_bytes: int
    max_pixels: int
    watermark: str | None
    tag: bool


class Answer(msgspec.Struct, frozen=True):
    """What became of a picture, or which PictureError, with its message; `data` is what `finish` wants kept."""

    picture: Picture | None = None
    data: bytes = b""
    error: str = ""
    message: str = ""

    def result(self) -> Finished:
        """Raises: PictureError, as the task did."""
        if self.picture is None:
            raise _ERRORS.get(self.error, BrokenPicture)(self.message)
        return Finished(self.data, self.picture)


_ERRORS: Final[dict[str, type[PictureError]]] = {
    kind.__name__: kind for kind in (UnsupportedPicture, BrokenPicture, PictureTooLarge)
}
_TASK: Final = msgspec.msgpack.Decoder(Prepare | Finish)
ANSWER: Final = msgspec.msgpack.Decoder(Answer)


def encode_task(task: Prepare | Finish, data: bytes) -> bytes:
    """What has to be sent before the bytes of the picture."""
    encoded = msgspec.msgpack.encode(task)
    return SIZES.pack(len(encoded), len(data)) + encoded


def _answer(task: Prepare | Finish, data: bytes) -> Answer:
    try:
        if isinstance(task, Prepare):
            return Answer(prepare(data, max_bytes=task.max_bytes, max_pixels=task.max_pixels))
        kept, picture = finish(
            data, watermark=task.watermark, tag=task.tag, max_bytes=task.max_bytes, max_pixels=task.max_pixels
        )
        return Answer(picture, kept)
    except PictureError as error:
        return Answer(error=type(error).__name__, message=str(error))


def _serve(tasks: BinaryIO, answers: BinaryIO) -> None:
    """Until the parent closes its end."""
    _send(answers, READY)
    while sizes := tasks.read(SIZES.size):
        task_bytes, picture_bytes = SIZES.unpack(sizes)
        task = _TASK.decode(tasks.read(task_bytes))
        _send(answers, msgspec.msgpack.encode(_answer(task, tasks.read(picture_bytes))))


def _send(answers: BinaryIO, answer: bytes) -> None:
    answers.write(SIZES.pack(len(answer), 0))
    answers.write(answer)
    answers.flush()


def _confine(memory_limit_bytes: int, parent_pid: int) -> None:
    """The process dies with its parent, leaves Ctrl-C to it, lets whoever answers requests run first, and cannot take
    all memory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        # Counts from the parent *thread* that started the process: the one that runs the event loop.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:  # It died before the line above could tell.
            os._exit(1)
    run_last()
    # No file with a user's picture in it when Pillow crashes.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(ValueError, OSError):  # macOS has no such limit.
        resource.setrlimit(resource.RLIMIT_AS, (memory_limit_bytes, memory_limit_bytes))
    # One thread per processor would need address space for each of their stacks and heaps.
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1


def main(memory_limit_bytes: int, parent_pid: int) -> None:
    """Standard output is for answers alone: what a library prints goes to standard error."""
    _confine(memory_limit_bytes, parent_pid)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    warm_up()
    _serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
