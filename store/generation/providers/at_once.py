"""What the providers share that answer with pictures: they have no tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NoReturn

from pydantic import SecretStr

from store.generation.errors import BadCallback, NoSuchTask
from store.generation.providers import Capabilities, Task

__all__ = ["AnswersAtOnce"]


class AnswersAtOnce:
    """The task half of the protocol, for a provider without tasks: a call that is lost cannot be found again."""

    name: str
    capabilities: ClassVar[Capabilities] = Capabilities()

    async def poll(self, task: Task, *, key: SecretStr | None = None) -> NoReturn:
        self.resume(task.model, task.id)

    def resume(self, model: str, task_id: str) -> NoReturn:
        raise NoSuchTask(f"{self.name} has no tasks", provider=self.name, model=model)

    async def cancel(self, task: Task, *, key: SecretStr | None = None) -> bool:
        return False

    async def called_back(self, headers: Mapping[str, str], body: bytes) -> NoReturn:
        raise BadCallback(f"{self.name} calls nobody back", provider=self.name)
