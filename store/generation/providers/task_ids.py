"""A provider's own ids: they become parts of addresses, so what may be in one is checked."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

import msgspec

from store.generation.errors import BadAnswer, BadCallback
from store.generation.providers import Task
from store.generation.providers.calls import Call

__all__ = ["called_about", "named"]

_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.~-]{0,127}")


def named(call: Call, provider: str, task_id: str) -> Task:
    """The task that a submit made. Raises: BadAnswer when it has no id: it may run, and nobody can find it."""
    if not _ID.fullmatch(task_id):
        raise call.error(BadAnswer, "took the task and gave it no usable id")
    return Task(provider, call.model, task_id)


def called_about(provider: str, body: bytes, read: Callable[[bytes], str]) -> str:
    """The task that a callback names; `read` finds it in the body. Raises: BadCallback."""
    try:
        task_id = read(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadCallback(f"{provider}: the callback is not readable", provider=provider) from error
    if not _ID.fullmatch(task_id):
        raise BadCallback(f"{provider}: the callback names no task", provider=provider)
    return task_id
