"""Providers: whoever makes pictures, behind one protocol.

builtin.py      draws by itself: no model, no network, same inputs, same bytes
workers_ai.py   openai.py   openrouter.py     answer with pictures
nanobanana.py   replicate.py   fal.py         take a task, are polled, may call back
remote.py       what those share that are asked over HTTP
at_once.py      the task half of the protocol for those that have none; task_ids.py: ids of those that do
calls.py        one HTTP call: deadline, size cap, log line; the only file that knows the client. answers.py: its answer
outputs.py      pictures in an answer: bytes, base64 or URL
polling.py      a task until it ends
signatures.py   callbacks that are signed
opening.py      all providers of a process, from its settings

A **request** is one call of a provider: `models.calls` splits what a user asked for. An adapter checks a request
against the limits of its model again, sends it once and never repeats it: `retries.py` says when the runner may.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from decimal import Decimal
from typing import Protocol

import msgspec
from pydantic import SecretStr

__all__ = ["Capabilities", "Done", "Fetch", "Output", "Progress", "Provider", "Reference", "Request", "Task"]

Fetch = Callable[[str], Awaitable[bytes]]
"""Reads the URL of a result: allowed hosts only, size and time limited."""


class Reference(msgspec.Struct, frozen=True):
    """A picture to start from. `url` is public for some minutes; "" where only bytes are needed."""

    data: bytes
    content_type: str
    url: str = ""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One call of a provider. None means: not said, the model's own default."""

    model: str
    """Our name of the model, a key of `models.Models`."""
    prompt: str
    width: int
    height: int
    n: int = 1
    negative_prompt: str | None = None
    steps: int | None = None
    seed: int | None = None
    watermark: str | None = None
    references: tuple[Reference, ...] = ()
    options: Mapping[str, str | int | float | bool] = {}
    """What only this model knows, by the provider's names; `Limits.options` lists them."""
    callback_url: str = ""
    """Where the provider may tell that the task ended; holds a secret that nobody can guess."""


class Task(msgspec.Struct, frozen=True):
    """Work at the provider, by the provider's own id: all that is needed to go on after a crash."""

    provider: str
    model: str
    id: str


class Progress(msgspec.Struct, frozen=True):
    """A task that has not ended. `fraction` 0..1 and `queue_position` (0 is next) where the provider tells them."""

    fraction: float | None = None
    queue_position: int | None = None


class Output(msgspec.Struct, frozen=True):
    """One picture: its bytes, or the URL to fetch it from, soon (some live for ten minutes)."""

    data: bytes = b""
    url: str = ""
    seed: int | None = None
    """The seed that it was drawn with; None for models without seeds."""
    revised_prompt: str = ""
    """What the provider made of the prompt."""


class Done(msgspec.Struct, frozen=True):
    """Pictures: at least one, at most `n`."""

    outputs: tuple[Output, ...]
    cost_usd: Decimal | None = None
    """What the provider says that the call cost; None where it does not: `pricing` estimates it."""


class Capabilities(msgspec.Struct, frozen=True):
    """What a provider can do besides answering."""

    has_tasks: bool = False
    """`submit` gives a Task: after a crash it is resumed by its id, never drawn again."""
    cancels: bool = False
    calls_back: bool = False


class Provider(Protocol):
    """The one way to have a picture made.

    `key` is the user's own key at the provider; None means ours. Every method raises the errors of
    `store.generation.errors` and nothing else. Limits are the model's (`models`), prices too (`pricing`).
    """

    @property
    def name(self) -> str: ...

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def has_key(self) -> bool:
        """Whether it can be used without a key of the user."""
        ...

    async def submit(self, request: Request, *, key: SecretStr | None = None) -> Task | Done:
        """Calls the provider once. A Task is known to the provider: save its id before anything else."""
        ...

    async def poll(self, task: Task, *, key: SecretStr | None = None) -> Progress | Done:
        """Looks at a task, without effect on it. RateLimited and Unavailable say nothing about the task itself."""
        ...

    def resume(self, model: str, task_id: str) -> Task:
        """The task of an id that was saved by a process that is gone. Raises: NoSuchTask if there are no tasks here."""
        ...

    async def cancel(self, task: Task, *, key: SecretStr | None = None) -> bool:
        """Whether the provider agreed to stop; False when it is too late or cannot be done. Poll to know the end."""
        ...

    async def called_back(self, headers: Mapping[str, str], body: bytes) -> str:
        """The id of the task that a callback is about: a reason to poll now, never a result.

        So a forged, late, or doubled callback changes nothing. Raises: BadCallback.
        """
        ...
