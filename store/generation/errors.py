"""Every error that making a picture can end in.

StoreError
└── GenerationError           code, what the documents answer, and what a user can do about it
    ├── InvalidRequest        the request breaks a rule of the model or of the provider
    │   └── PromptRequired    there is no prompt
    ├── ContentPolicy         the provider refuses the prompt, a reference or its own picture
    │   └── Moderated         our own moderation refuses the picture
    ├── NoImage               an answer without a picture that gives no reason
    ├── ProviderAccount       our (or the user's own) key or funds at the provider
    ├── RateLimited           too many calls; `retry_after_s` when the provider says it
    ├── Unavailable           the provider could not be reached, or says that it is away
    ├── ProviderFailed        the provider says that it failed
    ├── UnknownOutcome        the call was sent and nobody knows what became of it
    │   ├── TimedOut          nothing came within the deadline
    │   └── BadAnswer         an answer that cannot be read: what it cost is spent
    ├── Undeliverable         there is a picture, and it cannot be kept: fetched, judged or stored
    │   └── NoRoom            the user's plan has no room for it
    ├── WorkerFailed          whoever takes the job up does not come to its end
    ├── Canceled              the provider's task was canceled
    ├── NoSuchTask            the provider does not know the task (any more), or has none at all
    └── BadCallback           a callback that is not signed by the provider, or not readable

`retries.py` says which are tried again. Nobody pays for a job that ends in one of them.
"""

from __future__ import annotations

from typing import ClassVar

from store.errors import StoreError

__all__ = [
    "BadAnswer",
    "BadCallback",
    "Canceled",
    "ContentPolicy",
    "GenerationError",
    "InvalidRequest",
    "Moderated",
    "NoImage",
    "NoRoom",
    "NoSuchTask",
    "PromptRequired",
    "ProviderAccount",
    "ProviderFailed",
    "RateLimited",
    "TimedOut",
    "Unavailable",
    "Undeliverable",
    "UnknownOutcome",
    "WorkerFailed",
    "error_named",
]


class GenerationError(StoreError):
    """Base of what can go wrong while a picture is made.

    The message is for operators and the job's row: it may hold the provider's words, never a key.
    `status` is the provider's HTTP status, None when there was no answer.
    """

    code: ClassVar[str] = "generation_failed"
    error: ClassVar[str] = "Failed to generate image"
    """The documents' sentence: the member `error` of a reply."""
    advice: ClassVar[str] = "Nothing was charged. Please try again."
    """What a user may be told, and what to do."""

    def __init__(
        self,
        message: str,
        *,
        provider: str = "",
        model: str = "",
        status: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.provider, self.model = provider, model
        self.status, self.retry_after_s = status, retry_after_s


class InvalidRequest(GenerationError):
    """Raised when a request cannot be drawn as it is; `field` is the parameter at fault, "" if only the provider knows.

    Nothing was produced.
    """

    code = "invalid_request"
    advice = "The model cannot draw this request as it is. Nothing was charged. Change what is named and try again."

    def __init__(
        self, message: str, *, field: str = "", provider: str = "", model: str = "", status: int | None = None
    ) -> None:
        super().__init__(message, provider=provider, model=model, status=status)
        self.field = field


class PromptRequired(InvalidRequest):
    """Raised when there is no prompt."""

    error = "Prompt is required"
    advice = "Say what to draw."

    def __init__(self, message: str = "the prompt is empty") -> None:
        super().__init__(message, field="prompt")


class ContentPolicy(GenerationError):
    """Raised when the provider refuses by its content policy. The same prompt would be refused again."""

    code = "content_policy"
    advice = "The provider refuses this prompt by its content policy. Nothing was charged. Try other words."


class Moderated(ContentPolicy):
    """Raised when our own moderation refuses a picture: it was stored nowhere."""

    advice = "The picture was refused by this service's content policy. Nothing was charged. Try other words."


class NoImage(GenerationError):
    """Raised when an answer has no picture and no reason. Trying again blindly would pay again."""

    code = "no_image"
    advice = "The provider answered without a picture. Nothing was charged. Other words may help."


class ProviderAccount(GenerationError):
    """Raised when the provider refuses the key, or its account has no funds or no free share left."""

    code = "provider_account"
    advice = "The provider does not accept our account. Nothing was charged. Please choose another model."


class RateLimited(GenerationError):
    """Raised when the provider asks for fewer calls."""

    code = "rate_limited"
    advice = "The provider is busy. Nothing was charged. Please try again in a minute."


class Unavailable(GenerationError):
    """Raised when the call did not reach the provider, or the provider says that it is away: nothing was produced."""

    code = "provider_unavailable"
    advice = "The provider is away. Nothing was charged. Please try again later, or with another model."


class ProviderFailed(GenerationError):
    """Raised when the provider says that it failed: status 500, or a task that ended as failed."""

    code = "provider_failed"
    advice = "The provider failed. Nothing was charged. Please try again."


class UnknownOutcome(GenerationError):
    """Raised when a call was sent and the answer was lost: a picture may exist, and may have been paid for."""

    code = "unknown_outcome"
    advice = "The provider did not answer. Nothing was charged. Please try again."


class TimedOut(UnknownOutcome):
    """Raised when the deadline of model and size passed."""

    code = "timeout"
    advice = "The picture took too long. Nothing was charged. A smaller size is faster."


class BadAnswer(UnknownOutcome):
    """Raised when an answer is cut, too large, of a wrong type, or no picture."""

    code = "bad_answer"
    advice = "The provider's answer could not be read. Nothing was charged. Please try again."


class Undeliverable(GenerationError):
    """Raised when a picture was made and cannot be kept, however often it would be made again."""

    code = "undeliverable"
    advice = "The picture was made and could not be kept. Nothing was charged. Please try again later."


class NoRoom(Undeliverable):
    """Raised when the user's plan has no room for the picture."""

    code = "storage_quota_exceeded"
    advice = "There is no room for the picture. Nothing was charged. Delete images, or change the plan."


class WorkerFailed(GenerationError):
    """Raised when every worker that took the job up came to an end before the job did."""

    code = "worker_failed"
    advice = "The generation could not be brought to its end. Nothing was charged. Please try again."


class Canceled(GenerationError):
    """Raised when the provider's task was canceled, by us or by the provider."""

    code = "canceled"
    advice = "The generation was canceled."


class NoSuchTask(GenerationError):
    """Raised when a task is asked for that the provider does not know."""

    code = "no_such_task"


class BadCallback(GenerationError):
    """Raised when a callback is not signed as its provider signs, too old, or not readable."""

    code = "bad_callback"


def error_named(code: str, message: str) -> GenerationError:
    """The error that an attempt's row tells about."""
    waiting: list[type[GenerationError]] = [GenerationError]
    while waiting:
        kind = waiting.pop()
        if kind.code == code:
            return kind(message)
        waiting += kind.__subclasses__()
    return GenerationError(message)
