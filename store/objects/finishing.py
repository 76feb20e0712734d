"""What a provider sent becomes what is kept: looked at, signed with a watermark, marked as made by a model."""

from __future__ import annotations

from typing import NamedTuple

from store.objects.pictures import MAX_BYTES, MAX_PIXELS, Picture, prepare, reading
from store.objects.provenance import tagged
from store.objects.watermark import watermarked

__all__ = ["Finished", "finish"]


class Finished(NamedTuple):
    """The bytes to keep, and what is kept about them."""

    data: bytes
    picture: Picture


def finish(
    data: bytes,
    *,
    watermark: str | None = None,
    tag: bool = True,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
) -> Finished:
    """Decodes a picture completely, writes the text on it, if there is one, and with `tag` the mark of its source into
    its file. Without a watermark no pixel changes. The thumbnails show what the bytes show.

    Raises: UnsupportedPicture, BrokenPicture, PictureTooLarge, nothing else, whatever the bytes. The text has to be
    one that `check_watermark` let pass.
    """
    picture = prepare(data, max_bytes=max_bytes, max_pixels=max_pixels)
    with reading(picture.content_type, max_pixels):
        if watermark is not None:
            data = watermarked(data, watermark)
            picture = prepare(data, max_bytes=max_bytes, max_pixels=max_pixels)
        return Finished(tagged(data) if tag else data, picture)
