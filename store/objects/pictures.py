"""What bytes are: their format, size, thumbnail and placeholder, or why they are no picture we keep.

`prepare` trusts nothing that it is given, and Pillow is C code that reads files made to break it. So it
runs in `PictureProcess`: a process with a memory limit and a time limit that may die without harm.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import msgspec
from PIL import (
    AvifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from store.errors import BrokenPicture, PictureError, PictureTooLarge, UnsupportedPicture
from store.objects.keys import keys_of
from store.objects.thumbs import (
    SMALL_THUMB_PX,
    THUMB_PX,
    fit,
    orientation_of,
    placeholder,
    smaller,
    thumb_of,
    webp,
)

__all__ = ["MAX_BYTES", "MAX_PIXELS", "Picture", "prepare", "reading", "sniff", "warm_up"]

MAX_BYTES: Final = 20 * 2**20
MAX_PIXELS: Final = 40_000_000

# Named by their modules: Pillow would otherwise import its forty others in search of them.
_FORMATS: Final = {
    "image/png": PngImagePlugin.PngImageFile.format,
    "image/jpeg": JpegImagePlugin.JpegImageFile.format,
    "image/webp": WebPImagePlugin.WebPImageFile.format,
    "image/avif": AvifImagePlugin.AvifImageFile.format,
}


class Picture(msgspec.Struct, frozen=True):
    """What is kept about a picture. Width and height are as seen, after its orientation was applied."""

    content_type: str
    width: int
    height: int
    thumb: bytes
    """WebP, longest side at most 384, without metadata, in sRGB."""
    small_thumb: bytes
    """The same with at most 96."""
    thumbhash: str
    """Base64 of some 25 bytes: a blur to show while the thumbnail loads."""

    def objects(self, key: str, data: bytes) -> list[tuple[str, bytes]]:
        """What is stored of the picture `data`: all objects that come and go with `key`."""
        return list(zip(keys_of(key), (data, self.thumb, self.small_thumb), strict=True))


def prepare(data: bytes, *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decodes a picture completely and returns what is kept about it.

    Raises: UnsupportedPicture, BrokenPicture, PictureTooLarge; nothing else, whatever the bytes.
    """
    content_type = sniff(data, max_bytes=max_bytes)
    with reading(content_type, max_pixels):
        return _read(data, content_type, max_pixels)


@contextmanager
def reading(content_type: str, max_pixels: int) -> Iterator[None]:
    """Whatever goes wrong inside, with a picture that nobody trusts, is a PictureError."""
    try:
        with _limits(max_pixels):
            yield
    except PictureError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureTooLarge(f"the picture has more than {max_pixels} pixels") from error
    except UnidentifiedImageError as error:
        raise BrokenPicture(f"the {content_type} could not be read: its header makes no sense") from error
    # Which exception a corrupt file ends in depends on the place of the damage: any may come.
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise BrokenPicture(f"the {content_type} could not be read: {reason}") from error


def sniff(data: bytes, *, max_bytes: int = MAX_BYTES) -> str:
    """Returns the content type that the first bytes tell. Raises: UnsupportedPicture, PictureTooLarge."""
    if len(data) > max_bytes:
        raise PictureTooLarge(f"the picture has {len(data)} bytes, the limit is {max_bytes}")
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "image/webp"
    if data[4:8] == b"ftyp" and (b"avif" in data[8:64] or data[8:12] == b"avis"):
        return "image/avif"
    raise UnsupportedPicture("the bytes are none of PNG, JPEG, WebP, AVIF")


@contextmanager
def _limits(max_pixels: int) -> Iterator[None]:
    """Makes Pillow refuse large pictures while it opens them. Global: one picture per process at a time."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _read(data: bytes, content_type: str, max_pixels: int) -> Picture:
    formats = [_FORMATS[content_type]]
    if content_type == "image/png":
        # Decoding stops at the last pixel; this also finds a missing end and wrong checksums.
        Image.open(io.BytesIO(data), formats=formats).verify()
    with Image.open(io.BytesIO(data), formats=formats) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise PictureTooLarge(f"{width}x{height} is more than {max_pixels} pixels")
        # A JPEG with several pictures is a photo with previews or depth beside it: its first one counts.
        if content_type != "image/jpeg" and getattr(image, "n_frames", 1) > 1:
            raise BrokenPicture(f"the {content_type} is animated")
        box = fit(width, height, THUMB_PX)
        # A JPEG decoder can leave out detail that the thumbnail would lose anyway; it still reads every byte.
        image.draft(None, (2 * box[0], 2 * box[1]))
        image.load()
        orientation = orientation_of(image)
        thumb = thumb_of(image, box, orientation)
    return Picture(
        content_type=content_type,
        width=height if orientation >= 5 else width,
        height=width if orientation >= 5 else height,
        thumb=webp(thumb),
        small_thumb=webp(smaller(thumb, SMALL_THUMB_PX)),
        thumbhash=placeholder(thumb),
    )


def warm_up() -> None:
    """Loads what the first picture would have to wait for, and shows that there is memory for a thumbnail."""
    webp(Image.new("RGB", (THUMB_PX, THUMB_PX)))
