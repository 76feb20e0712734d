"""Steps at which a runner ends as with kill -9, inside of this process."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

__all__ = ["Killed", "Steps"]


class Killed(BaseException):
    """The process is gone: nobody catches this, so nothing is written after it."""


class Steps:
    """Ends the runner at a step, once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch, self.killed = monkeypatch, 0

    def at(self, module: Any, name: str, *, before: bool) -> None:
        """Before or behind a call of `module.name`, in the first runner that gets there."""
        real: Callable[..., Awaitable[Any]] = getattr(module, name)

        async def killing(*args: Any, **options: Any) -> Any:
            if self.killed:
                return await real(*args, **options)
            if not before:
                await real(*args, **options)
            self.killed += 1
            raise Killed(name)

        self.monkeypatch.setattr(module, name, killing)
