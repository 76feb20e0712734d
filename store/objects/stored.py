"""What a row says about its picture: where it is stored, and what it is."""

from __future__ import annotations

from typing import TypedDict

from store.objects.keys import Kind, new_key, thumb_key
from store.objects.pictures import Picture

__all__ = ["Stored", "stored_as"]


class Stored(TypedDict):
    """The columns that images and reference images share, by their names."""

    object_key: str
    content_type: str
    size_bytes: int
    width: int
    height: int
    thumb_key: str
    thumbhash: str


def stored_as(kind: Kind, owner_tag: str, data: bytes, picture: Picture, now_ms: int) -> Stored:
    """The columns of the picture `data`, under a key that no object has; `picture.objects` is what to put there.

    Raises: InvalidValue, as `new_key` does.
    """
    key = new_key(kind, owner_tag, picture.content_type, now_ms)
    return Stored(
        object_key=key,
        content_type=picture.content_type,
        size_bytes=len(data),
        width=picture.width,
        height=picture.height,
        thumb_key=thumb_key(key),
        thumbhash=picture.thumbhash,
    )
