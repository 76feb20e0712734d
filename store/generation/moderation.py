"""Moderation: who looks at a picture before anybody else can.

`PERUSE_MODERATION=package.module:function` names an async function

    async def judge(data: bytes, content_type: str, prompt: str, user: str) -> Verdict

which is asked about every picture before it is stored: what it refuses never gets an object, and so no URL. Without
one, everything is allowed.
"""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from store.errors import SettingError

__all__ = ["Moderation", "Verdict", "allow", "read_moderation"]


class Verdict(NamedTuple):
    """`reason` is for operators: it is written into the job's `response_data`."""

    is_allowed: bool
    reason: str = ""


Moderation = Callable[[bytes, str, str, str], Awaitable[Verdict]]


async def allow(data: bytes, content_type: str, prompt: str, user: str) -> Verdict:
    """The verdict of who has no moderation."""
    return Verdict(True)


def read_moderation(name: str) -> Moderation:
    """The function that the setting names; "" names `allow`.

    Raises:
        SettingError: there is no such function.
    """
    if not name:
        return allow
    module, _, function = name.partition(":")
    try:
        found: Moderation = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingError(f"PERUSE_MODERATION={name}: {error}") from error
    if not callable(found):
        raise SettingError(f"PERUSE_MODERATION={name} is no function")
    return found
