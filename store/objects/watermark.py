"""Watermarks: a line of text in the lower right corner of a picture."""

from __future__ import annotations

import io
import unicodedata
from functools import lru_cache
from typing import Any, Final

from PIL import Image, ImageDraw, ImageFont, ImageOps

from store.errors import InvalidValue
from store.objects.pictures import sniff
from store.objects.thumbs import eight_bits

__all__ = ["MAX_WATERMARK_CHARS", "check_watermark", "sign", "watermarked", "writable"]

MAX_WATERMARK_CHARS: Final = 64

# Near enough to what came that only the text can be seen of it.
_ENCODINGS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "image/png": ("PNG", {}),
    "image/jpeg": ("JPEG", {"quality": 93, "subsampling": 0}),
    "image/webp": ("WEBP", {"quality": 93, "method": 2}),
    "image/avif": ("AVIF", {"quality": 85}),
}


def watermarked(data: bytes, text: str) -> bytes:
    """Returns the picture with the text on it, upright, in its own format, without metadata but with its colours'
    profile. `data` has to be a picture that `prepare` accepted.

    Raises: InvalidValue as `check_watermark`.
    """
    check_watermark(text)
    format_name, options = _ENCODINGS[sniff(data, max_bytes=len(data))]
    with Image.open(io.BytesIO(data), formats=[format_name]) as opened:
        profile = opened.info.get("icc_profile")
        image = eight_bits(ImageOps.exif_transpose(opened))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            layer = Image.new("RGBA", image.size)
            sign(layer, text)
            image = Image.alpha_composite(image, layer)
        else:
            if image.mode != "RGB":
                profile = None  # it speaks of grey or of inks
                image = image.convert("RGB")
            sign(image, text)
    image.info = {}
    out = io.BytesIO()
    image.save(out, format_name, icc_profile=profile, **options)
    return out.getvalue()


def check_watermark(text: str) -> None:
    """Raises: InvalidValue unless the text is one line that is not too long and has signs which the font has."""
    if len(text) > MAX_WATERMARK_CHARS or not text.isprintable():
        raise InvalidValue("watermark", f"the watermark is not one line of at most {MAX_WATERMARK_CHARS} signs")
    if not writable(text):
        raise InvalidValue("watermark", f"the font has none of the signs of {text!r}")


def sign(image: Image.Image, text: str) -> None:
    """Writes the text on an image in RGB or RGBA: small; smaller when it is long; and no more of it than fits."""
    text = writable(text)[:MAX_WATERMARK_CHARS]
    unit = min(image.size)
    margin, size = unit * 0.03, max(9, round(unit * 0.032))
    room = image.width - 2 * margin - 2
    size = max(7, int(size * min(1.0, room / max(1.0, _font(size).getlength(text)))))
    font = _font(size)
    while len(text) > 1 and font.getlength(text) > room:
        text = text[:-2] + "…"
    ImageDraw.Draw(image, "RGBA").text(
        (image.width - margin, image.height - margin),
        text,
        font=font,
        anchor="rs",
        fill=(255, 255, 255, 225),
        stroke_width=max(1, round(size / 14)),
        stroke_fill=(0, 0, 0, 110),
    )


def writable(text: str) -> str:
    """Returns what the font can write of it: accents dropped, other signs left out, boxes never drawn."""
    signs = unicodedata.normalize("NFKD", text)
    return "".join(sign for sign in signs if not unicodedata.combining(sign) and _has(sign)).strip()


@lru_cache(maxsize=1024)
def _has(sign: str) -> bool:
    font = _font(16)
    return sign == " " or bytes(font.getmask(sign)) != bytes(font.getmask("\U0010fffd"))


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow carries the font: no file of ours, the same on every machine."""
    return ImageFont.load_default(size)
