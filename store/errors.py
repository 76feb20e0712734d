"""Every error that the store raises.

StoreError
├── SettingError            a setting is missing or wrong
├── EmbeddedPostgresError   the embedded Postgres cannot run
│   ├── FolderUnusable      its folder cannot be used (owner, permissions)
│   ├── FolderInUse         another Postgres runs on the folder
│   └── WrongMajorVersion   the folder belongs to another major version
├── PrimaryUnavailable      the primary did not answer in time, or is away
├── InvalidQuery            a list query or page token is malformed
├── InvalidValue            a value breaks a rule of its column
├── NotFound                no such row for this owner
├── NameTaken               the owner has another row of this name
├── LimitReached            the owner has as many of something as may be
├── InsufficientCredits     the owner's balance does not cover it
├── BudgetExceeded          the owner's own budget of a day or a month does not cover it
├── NoProviderKey           nobody has a key at the provider of a model
├── AlreadyEnded            a job that is over cannot be canceled
├── KeyInFlight             a request with the same idempotency key is being answered
├── KeyReused               an idempotency key was used for another request
├── StorageQuotaExceeded    the owner's plan has no room for so many bytes
├── ReservationEnded        room that was reserved for an upload is not held any more
├── PictureError            bytes that are not a picture we keep
│   ├── UnsupportedPicture  not one of PNG, JPEG, WebP, AVIF
│   ├── BrokenPicture       truncated, corrupt, animated or unreadable
│   └── PictureTooLarge     more bytes or pixels than the limit
├── PicturesBusy            as many pictures wait to be looked at as may
├── ObjectError             an object in the store
│   ├── ObjectMissing       no object has this key
│   ├── ObjectExists        an object already has this key
│   ├── RangeOutside        a range begins behind the object's end
│   ├── ObjectsRefused      the object store refuses us: keys, permissions, bucket, clock
│   └── ObjectsUnavailable  the object store is away, too slow, or sends broken bytes; later may be better
└── FetchError              a URL that we do not fetch, or could not
    ├── FetchRefused        the URL, its host or its address is not allowed
    ├── FetchTooLarge       more bytes than the limit
    └── FetchFailed         no good answer in time
"""

from __future__ import annotations

__all__ = [
    "AlreadyEnded",
    "BrokenPicture",
    "BudgetExceeded",
    "EmbeddedPostgresError",
    "FetchError",
    "FetchFailed",
    "FetchRefused",
    "FetchTooLarge",
    "FolderInUse",
    "FolderUnusable",
    "InsufficientCredits",
    "InvalidQuery",
    "InvalidValue",
    "KeyInFlight",
    "KeyReused",
    "LimitReached",
    "NameTaken",
    "NoProviderKey",
    "NotFound",
    "ObjectError",
    "ObjectExists",
    "ObjectMissing",
    "ObjectsRefused",
    "ObjectsUnavailable",
    "PictureError",
    "PictureTooLarge",
    "PicturesBusy",
    "PrimaryUnavailable",
    "RangeOutside",
    "ReservationEnded",
    "SettingError",
    "StorageQuotaExceeded",
    "StoreError",
    "UnsupportedPicture",
    "WrongMajorVersion",
]


class StoreError(Exception):
    """Base of every error of the store."""


class SettingError(StoreError):
    """Raised when a setting is missing or has a value that cannot work; the message names it."""


class EmbeddedPostgresError(StoreError):
    """Raised when the embedded Postgres cannot be started or kept running."""


class FolderUnusable(EmbeddedPostgresError):
    """Raised when Postgres could not work in its folder; the message names the folder in the way."""


class FolderInUse(EmbeddedPostgresError):
    """Raised when another running Postgres holds the folder."""


class WrongMajorVersion(EmbeddedPostgresError):
    """Raised when the folder was made by another major version of Postgres."""


class PrimaryUnavailable(StoreError):
    """Raised when the primary is away, or did not answer within the deadline."""


class InvalidQuery(StoreError):
    """Raised when a list query is malformed.

    `field` is the query parameter at fault.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class InvalidValue(StoreError):
    """Raised when a value breaks a rule of its column; `field` is the column."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class NotFound(StoreError):
    """Raised when the owner has no such row. Whether somebody else has it is never told."""


class NameTaken(StoreError):
    """Raised when the owner has another row of the same name."""


class LimitReached(StoreError):
    """Raised when the owner has as many of something as anybody may."""


class InsufficientCredits(StoreError):
    """Raised when `needed_tenths` of a credit are more than the balance; nothing was spent."""

    def __init__(self, message: str, *, balance_tenths: int, needed_tenths: int) -> None:
        super().__init__(message)
        self.balance_tenths = balance_tenths
        self.needed_tenths = needed_tenths


class BudgetExceeded(StoreError):
    """Raised when `needed_tenths` would be over the owner's budget of a `period`, day or month; nothing was spent."""

    def __init__(self, message: str, *, period: str, budget_tenths: int, spent_tenths: int, needed_tenths: int) -> None:
        super().__init__(message)
        self.period = period
        self.budget_tenths = budget_tenths
        self.spent_tenths = spent_tenths
        self.needed_tenths = needed_tenths


class NoProviderKey(StoreError):
    """Raised when a model's provider can be used by nobody here: neither we nor the user have a key there."""

    def __init__(self, provider: str, model: str) -> None:
        super().__init__(f"{model} needs a key of {provider}: there is none here, and you have given none of your own")
        self.provider = provider
        self.model = model


class AlreadyEnded(StoreError):
    """Raised when a job has its final state."""


class KeyInFlight(StoreError):
    """Raised when a request with the same idempotency key is being answered right now."""


class KeyReused(StoreError):
    """Raised when an idempotency key comes with another request than before."""


class StorageQuotaExceeded(StoreError):
    """Raised when `size_bytes` more would be over the plan's limit; all numbers are bytes."""

    def __init__(self, size_bytes: int, *, used_bytes: int, reserved_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"{size_bytes} bytes more do not fit: {used_bytes} are used and {reserved_bytes} reserved of {limit_bytes}"
        )
        self.size_bytes = size_bytes
        self.used_bytes = used_bytes
        self.reserved_bytes = reserved_bytes
        self.limit_bytes = limit_bytes


class ReservationEnded(StoreError):
    """Raised when an upload took so long that its room was given back; it may be tried again."""


class PictureError(StoreError):
    """Base of what can be wrong with uploaded bytes."""


class UnsupportedPicture(PictureError):
    """Raised when the bytes are not PNG, JPEG, WebP or AVIF."""


class BrokenPicture(PictureError):
    """Raised when the format is right and the content is not: truncated, corrupt or animated."""


class PictureTooLarge(PictureError):
    """Raised when a picture has more bytes or pixels than the limit."""


class PicturesBusy(StoreError):
    """Raised when no more pictures can be taken now: too many wait, or the process that reads them is gone."""


class ObjectError(StoreError):
    """Base of the object store's errors."""


class ObjectMissing(ObjectError):
    """Raised when no object has this key."""


class ObjectExists(ObjectError):
    """Raised when an object already has this key: objects are written once."""


class RangeOutside(ObjectError):
    """Raised when a range begins at or behind the object's end."""


class ObjectsRefused(ObjectError):
    """Raised when the object store refuses the request itself; somebody must act, and the message says where."""


class ObjectsUnavailable(ObjectError):
    """Raised when the object store did not do it in time, after retries; trying again later may help."""


class FetchError(StoreError):
    """Base of what can go wrong with fetching a URL; messages name its host and never its path or query."""


class FetchRefused(FetchError):
    """Raised when the URL must not be fetched: scheme, port, host, or the address that its host stands for."""


class FetchTooLarge(FetchError):
    """Raised when the answer has more bytes than the limit."""


class FetchFailed(FetchError):
    """Raised when there was no good answer in time; trying again later may help."""
