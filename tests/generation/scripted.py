"""A provider that does what a script says, keeps book of what it was asked, and waits at gates.

ok        draws                          fewer    draws one picture less than was asked for, if it can
policy    refuses the prompt             account  refuses the key
busy      asks for patience              away     cannot be reached
failed    says that it failed            broken   draws, and sends what is no picture
lost      takes the call, draws, and its answer never arrives
"""

from __future__ import annotations

import io
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from PIL import Image
from pydantic import SecretStr

from store.generation.errors import (
    BadCallback,
    Canceled,
    ContentPolicy,
    GenerationError,
    NoSuchTask,
    ProviderAccount,
    ProviderFailed,
    RateLimited,
    TimedOut,
    Unavailable,
)
from store.generation.providers import Capabilities, Done, Output, Progress, Request, Task
from tests.generation.gates import JOB, Gates

__all__ = ["FREE", "SEED", "Asked", "Book", "Play", "Scripted", "Word"]

Word = Literal["ok", "fewer", "policy", "account", "busy", "away", "failed", "broken", "lost"]
FREE: Final = "builtin"
#: Of the first call of every job.
SEED: Final = 7

_ERRORS: Final[dict[Word, GenerationError]] = {
    "policy": ContentPolicy("the prompt is refused"),
    "account": ProviderAccount("the key is refused"),
    "busy": RateLimited("later"),
    "away": Unavailable("not here"),
    "failed": ProviderFailed("it failed"),
}
#: Nothing came of them, and the provider said so.
_FOR_NOTHING: Final = ("policy", "account", "busy", "away", "failed")


def _png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 80, 160)).save(file, "png")
    return file.getvalue()


_PNGS: Final = [_png(shade) for shade in (0, 60, 120, 180)]


@dataclass
class Play:
    """What is to happen to the calls of one job: `words` in the order in which it asks, then "ok"; a task is looked at
    `looks` times before it has ended."""

    words: list[Word]
    looks: int = 0


@dataclass
class Asked:
    """One time that the provider was asked."""

    job: uuid.UUID
    call: int
    word: Word
    task: str | None = None
    looks: int = 0
    is_canceled: bool = False
    has_ended: bool = False

    @property
    def is_for_nothing(self) -> bool:
        """Whether the provider has said that there is nothing, so that asking again is no second picture."""
        if self.task is None:
            return self.word in _FOR_NOTHING
        return self.is_canceled or (self.has_ended and self.word in _FOR_NOTHING)


@dataclass
class Book:
    """What all providers of a play were asked, whoever asked."""

    plays: dict[uuid.UUID, Play] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    #: job → how often a call was asked again of which a picture may have been there, and been paid.
    twice: dict[uuid.UUID, int] = field(default_factory=dict)
    #: (job, call) whose objects were all there when the one who had the job had stored them.
    stored: set[tuple[uuid.UUID, int]] = field(default_factory=set)
    #: Objects that were stored by somebody who had lost the job meanwhile.
    late: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)

    def of(self, job: uuid.UUID) -> list[Asked]:
        return [asked for asked in self.asked if asked.job == job]

    def note(self, provider: str, job: uuid.UUID, call: int, word: Word, task: str | None, *, by_owner: bool) -> Asked:
        """`by_owner`: whoever asks has the job. One that was away for too long may ask for what is there by now."""
        before = [asked for asked in self.of(job) if asked.call == call]
        if by_owner and (job, call) in self.stored:
            self.wrong.append(f"job {job} asks for call {call} again, whose pictures are stored")
        if before and provider != FREE:
            self.twice[job] = self.twice.get(job, 0) + sum(not asked.is_for_nothing for asked in before[-1:])
            if self.twice[job] > 1:
                self.wrong.append(f"job {job} has drawn twice more than once: {self.of(job)}")
            if len(before) > 3:
                self.wrong.append(f"call {call} of job {job} was asked {len(before) + 1} times")
        asked = Asked(job, call, word, task)
        self.asked.append(asked)
        return asked


class Scripted:
    """One provider of one runner, with gates before it hears (`ask`), before its answer is heard (`told`), and before
    it is looked at (`look`) or asked to stop (`stop`)."""

    def __init__(
        self,
        name: str,
        book: Book,
        gates: Gates,
        has: Callable[[uuid.UUID], Awaitable[bool]],
        *,
        has_tasks: bool,
    ) -> None:
        self.name, self._book, self._gates, self._has = name, book, gates, has
        self.capabilities = Capabilities(has_tasks=has_tasks, cancels=has_tasks, calls_back=has_tasks)
        self.has_key = True

    async def submit(self, request: Request, *, key: SecretStr | None = None) -> Task | Done:
        await self._gates.wait("ask")
        job = JOB.get()
        assert job is not None
        with self._gates.busy("who asks"):
            by_owner = await self._has(job)
        play = self._book.plays[job]
        word = play.words.pop(0) if play.words else "ok"
        call = 0 if request.seed is None else request.seed - SEED  # of a model with seeds, they count up
        has_task = self.capabilities.has_tasks and word not in ("busy", "away", "account")
        task = f"task-{len(self._book.asked)}" if has_task else None
        asked = self._book.note(self.name, job, call, word, task, by_owner=by_owner)
        await self._gates.wait("told")
        if word == "lost":
            raise TimedOut("nothing came")
        if task is not None:
            return Task(self.name, request.model, task)
        return self._end(asked, request.n)

    async def poll(self, task: Task, *, key: SecretStr | None = None) -> Progress | Done:
        await self._gates.wait("look")
        asked = self._task(task.id)
        if asked.is_canceled:
            raise Canceled("as you wished")
        if not asked.has_ended and asked.looks < self._book.plays[asked.job].looks:
            asked.looks += 1
            return Progress(fraction=0.5, queue_position=0)
        asked.has_ended = True
        return self._end(asked, 1)

    def resume(self, model: str, task_id: str) -> Task:
        return Task(self.name, model, task_id)

    async def cancel(self, task: Task, *, key: SecretStr | None = None) -> bool:
        await self._gates.wait("stop")
        asked = self._task(task.id)
        if asked.has_ended:
            return False
        asked.is_canceled = True
        return True

    async def called_back(self, headers: Mapping[str, str], body: bytes) -> str:
        raise BadCallback("nobody calls back here")

    def _task(self, id: str) -> Asked:
        for asked in self._book.asked:
            if asked.task == id:
                return asked
        raise NoSuchTask(f"there is no task {id}")

    def _end(self, asked: Asked, n: int) -> Done:
        if asked.word in _ERRORS:
            raise type(_ERRORS[asked.word])(str(_ERRORS[asked.word]))
        made = max(1, n - 1) if asked.word == "fewer" else n
        return Done(tuple(Output(b"no picture" if asked.word == "broken" else _PNGS[i % 4]) for i in range(made)))
