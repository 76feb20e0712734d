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
├── LimitReached            the owner has as many of something as anybody may
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
    "BrokenPicture",
    "EmbeddedPostgresError",
    "FetchError",
    "FetchFailed",
    "FetchRefused",
    "FetchTooLarge",
    "FolderInUse",
    "FolderUnusable",
    "InvalidQuery",
    "InvalidValue",
    "LimitReached",
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


class LimitReached(StoreError):
    """Raised when the owner has as many of something as anybody may."""


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
