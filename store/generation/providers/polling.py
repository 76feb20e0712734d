"""A task until it ends: looked at every second, given up at its deadline, whatever the network does in between."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from pydantic import SecretStr

from store.clock import Clock, SystemClock
from store.generation.errors import Canceled, GenerationError, NoSuchTask, RateLimited, TimedOut, Unavailable
from store.generation.providers import Done, Progress, Provider, Task

__all__ = ["EVERY_S", "finish"]

EVERY_S: Final = 1.0
_MOST_WAIT_S: Final = 10.0
_SETTLES_S: Final = 5.0


async def finish(
    provider: Provider,
    task: Task,
    *,
    deadline_s: float,
    key: SecretStr | None = None,
    progress: Callable[[Progress], Awaitable[None]] | None = None,
    every_s: float = EVERY_S,
    clock: Clock | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Done:
    """The pictures of a task. `progress` is told what changed; it may raise to stop looking.

    A look that fails says nothing about the task: it is repeated, less often while it goes on failing.
    At the deadline the provider is asked to cancel, and the task is looked at a last time: it may have just ended.

    Raises: TimedOut, and what the task ended in. Canceling the caller leaves the task to whoever resumes it.
    """
    clock = clock or SystemClock()
    began, wait_s, known = clock.monotonic(), every_s, Progress()
    while True:
        try:
            found = await provider.poll(task, key=key)
            wait_s = every_s
            if isinstance(found, Done):
                return found
            if progress is not None and found != known:
                await progress(found)
            known = found
        except NoSuchTask:
            # A task may be known a moment later than its id.
            if clock.monotonic() - began > _SETTLES_S:
                raise
        except (RateLimited, Unavailable) as error:
            wait_s = min(_MOST_WAIT_S, max(wait_s * 2, error.retry_after_s or 0.0))
        left_s = began + deadline_s - clock.monotonic()
        if left_s <= 0:
            break
        await sleep(min(wait_s, left_s))
    return await _last_look(provider, task, deadline_s, key)


async def _last_look(provider: Provider, task: Task, deadline_s: float, key: SecretStr | None) -> Done:
    try:
        await provider.cancel(task, key=key)
    except GenerationError:
        # Asked in vain; the last look tells how it stands.
        pass
    try:
        found = await provider.poll(task, key=key)
        if isinstance(found, Done):
            return found
    except (Canceled, NoSuchTask, RateLimited, Unavailable):
        pass
    raise TimedOut(
        f"{task.provider}: {task.model}: task {task.id} did not end within {deadline_s:g} s",
        provider=task.provider,
        model=task.model,
    )
