"""What can be asked of a user's jobs: the prompt history, the list of generations, and one of them."""

from __future__ import annotations

from typing import ClassVar, Final, Literal

from store import parameters as read
from store.errors import InvalidQuery
from store.lists import Condition, ListQuery, OneQuery, with_page_token
from store.parameters import Parameters

__all__ = ["JobQuery", "JobsQuery", "parse_jobs_query"]

_STATES: Final = ("pending", "processing", "uploading", "completed", "failed", "canceled")
_KINDS: Final = ("TEXT_TO_IMAGE", "IMAGE_TO_IMAGE")
_PARAMETERS: Final = ("limit", "page_token", "sort", "state", "model", "kind", "batch", "from", "to")


class JobsQuery(ListQuery, frozen=True, array_like=True, tag=5):
    """One page of a user's jobs. `since` and `until` are microseconds, and half open: since <= created_at < until.

    `hidden` lists those that their user hid instead of the others, as `trashed` does with images. `called` is what
    replies name them: two lists of the same rows.
    """

    kind: ClassVar[str] = "jobs"
    state: str | None = None
    model: str | None = None
    job_kind: str | None = None
    batch: str | None = None
    since: int | None = None
    until: int | None = None
    hidden: bool = False
    called: Literal["prompts", "generations"] = "prompts"

    @property
    def name(self) -> str:
        return self.called

    def conditions(self) -> list[Condition]:
        given = (
            Condition("state", "=", self.state),
            Condition("model", "=", self.model),
            Condition("kind", "=", self.job_kind),
            Condition("batch_id", "=", self.batch),
            Condition("created_at", ">=", self.since),
            Condition("created_at", "<", self.until),
        )
        hidden = Condition("hidden_at", "<>" if self.hidden else "=", None)
        return [hidden, *(condition for condition in given if condition.value is not None)]


class JobQuery(OneQuery, frozen=True, array_like=True, tag=6):
    """One job by its id, hidden or not."""

    kind: ClassVar[str] = "jobs"
    noun: ClassVar[str] = "Prompt"


def parse_jobs_query(parameters: Parameters, called: Literal["prompts", "generations"]) -> JobsQuery:
    """The query that a URL's parameters ask for. Only generations know `hidden`: a history leaves out what was hidden.

    Raises:
        InvalidQuery: an unknown or repeated parameter, or a value out of its range; names the parameter.
    """
    names = (*_PARAMETERS, "hidden") if called == "generations" else _PARAMETERS
    values = read.known(parameters, names)
    query = JobsQuery(
        **read.page(values),
        state=read.choice(values, "state", _STATES),
        model=read.text(values, "model"),
        job_kind=read.choice(values, "kind", _KINDS),
        batch=read.uuid_text(values, "batch"),
        since=read.day_or_time(values, "from"),
        until=read.day_or_time(values, "to"),
        hidden=read.flag(values, "hidden") or False,
        called=called,
    )
    if query.since is not None and query.until is not None and query.since > query.until:
        raise InvalidQuery("from", "from must not be after to")
    return with_page_token(query, values.get("page_token"))
