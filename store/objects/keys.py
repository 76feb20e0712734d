"""Keys of objects: generated, checkable by one expression, free of anything a user typed.

    generated/<owner tag>/<13 digits of ms>-<32 hex>.png
    generated/<owner tag>/<13 digits of ms>-<32 hex>.thumb.webp
    generated/<owner tag>/<13 digits of ms>-<32 hex>.thumb96.webp

The time sorts an owner's objects; the 128 random bits make a key unguessable. The owner tag tells the
objects of one owner apart and, without the secret, not whose they are.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from typing import Final, Literal

from store.errors import InvalidValue

__all__ = [
    "EXTENSIONS",
    "Kind",
    "cache_control_of",
    "content_type_of",
    "is_filename",
    "is_key",
    "keys_of",
    "named_key",
    "new_key",
    "owner_tag",
    "small_thumb_key",
    "thumb_key",
]

Kind = Literal["generated", "reference"]

EXTENSIONS: Final[dict[str, str]] = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/webp": "webp",
    "image/avif": "avif",
}

_CONTENT_TYPES: Final = {extension: content_type for content_type, extension in EXTENSIONS.items()}
_KINDS: Final = ("generated", "reference")
_THUMB: Final = ".thumb.webp"
_SMALL_THUMB: Final = ".thumb96.webp"
_TAG: Final = re.compile(r"[0-9a-f]{32}")
_FILENAME: Final = re.compile(r"[0-9]{13}-[0-9a-f]{32}\.(?:thumb\.webp|thumb96\.webp|png|jpg|webp|avif)")
_KEY: Final = re.compile(rf"(?:generated|reference)/[0-9a-f]{{32}}/{_FILENAME.pattern}")
_PUBLIC: Final = "public, max-age=31536000, immutable"
_PRIVATE: Final = "private, max-age=300"
_MAX_MS: Final = 9_999_999_999_999


def owner_tag(user_id: str, secret: bytes) -> str:
    """Returns the 32 hex digits that stand for a user in keys; stable as long as the secret is."""
    return hmac.new(secret, user_id.encode(), hashlib.sha256).hexdigest()[:32]


def new_key(kind: Kind, owner_tag: str, content_type: str, now_ms: int) -> str:
    """Returns a key that no object has.

    Raises: InvalidValue, naming the argument that could not become part of a key.
    """
    if kind not in _KINDS:
        raise InvalidValue("kind", f"kind {kind!r} is none of {', '.join(_KINDS)}")
    if not _TAG.fullmatch(owner_tag):
        raise InvalidValue("owner_tag", f"owner tag {owner_tag!r} is not 32 hex digits")
    if content_type not in EXTENSIONS:
        raise InvalidValue("content_type", f"{content_type!r} is none of {', '.join(EXTENSIONS)}")
    if not 0 <= now_ms <= _MAX_MS:
        raise InvalidValue("now_ms", f"{now_ms} ms does not fit 13 digits")
    return f"{kind}/{owner_tag}/{now_ms:013d}-{secrets.token_hex(16)}.{EXTENSIONS[content_type]}"


def thumb_key(key: str) -> str:
    """Returns where the thumbnail of this picture is kept, of 384 pixels; a thumbnail has none of its own."""
    return _stem(key) + _THUMB


def small_thumb_key(key: str) -> str:
    """Returns where the thumbnail of 96 pixels is kept. `key` is the picture's, or that of its other thumbnail: so its
    URL follows from `thumb_url`."""
    stem = key.removesuffix(_THUMB) if is_key(key) and key.endswith(_THUMB) else _stem(key)
    return stem + _SMALL_THUMB


def keys_of(key: str) -> tuple[str, str, str]:
    """Returns all the keys that come and go with a picture: its own and those of its thumbnails."""
    return key, thumb_key(key), small_thumb_key(key)


def named_key(key: str) -> str:
    """Returns the key by which the row of a file is found: no column names the small thumbnail."""
    return key.removesuffix(_SMALL_THUMB) + _THUMB if key.endswith(_SMALL_THUMB) else key


def _stem(key: str) -> str:
    if not is_key(key) or key.endswith((_THUMB, _SMALL_THUMB)):
        raise InvalidValue("key", f"{key!r} is not the key of a picture")
    return key.rpartition(".")[0]


def is_key(text: str) -> bool:
    """Tells whether the whole text has the form of a key; whether an object has it is another question."""
    return _KEY.fullmatch(text) is not None


def is_filename(text: str) -> bool:
    """Tells whether the whole text has the form of a key's last part, which documents name as the file's name."""
    return _FILENAME.fullmatch(text) is not None


def content_type_of(key: str) -> str:
    """Returns the content type that the extension stands for."""
    if not is_key(key):
        raise InvalidValue("key", f"{key!r} is not a key")
    return _CONTENT_TYPES[key.rpartition(".")[2]]


def cache_control_of(key: str) -> str:
    """Returns what browsers and caches are told where no gateway of ours is asked: an object never changes, and
    references are private."""
    if not is_key(key):
        raise InvalidValue("key", f"{key!r} is not a key")
    return _PRIVATE if key.startswith("reference/") else _PUBLIC
