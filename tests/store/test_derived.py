"""What is made of a picture: thumbnails, watermarks, and the mark of where it comes from."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image, ImageChops

from store.errors import InvalidValue, UnsupportedPicture
from store.objects.keys import is_key, keys_of, named_key, new_key, small_thumb_key, thumb_key
from store.objects.pictures import prepare
from store.objects.provenance import DIGITAL_SOURCE_TYPE, tagged
from store.objects.watermark import watermarked

FORMATS = ["PNG", "JPEG", "WEBP", "AVIF"]
KEY = new_key("generated", "0" * 32, "image/jpeg", 1)


def encoded(format_name: str, size: tuple[int, int] = (400, 300), mode: str = "RGB", **options: Any) -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert(mode).save(out, format_name, **options)
    return out.getvalue()


def pixels(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image.convert("RGBA")


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    made[0x010E] = "secret place"
    return made


@pytest.mark.parametrize(("size", "small"), [((400, 300), (96, 72)), ((300, 900), (32, 96)), ((40, 30), (40, 30))])
def test_picture_has_two_thumbnails(size: tuple[int, int], small: tuple[int, int]) -> None:
    """The small one is as upright and as bare as the other."""
    picture = prepare(encoded("JPEG", size, exif=exif(1)))

    thumb = Image.open(io.BytesIO(picture.small_thumb))

    assert (thumb.format, thumb.size) == ("WEBP", small)
    assert b"secret place" not in picture.thumb + picture.small_thumb
    turned = prepare(encoded("JPEG", size, exif=exif(6)))
    assert Image.open(io.BytesIO(turned.small_thumb)).size == small[::-1]


def test_all_keys_of_a_picture_follow_from_its_own() -> None:
    """And the row of each of them is found."""
    key, thumb, small = keys_of(KEY)

    assert (key, thumb, small) == (KEY, thumb_key(KEY), small_thumb_key(KEY))
    assert small == small_thumb_key(thumb) == KEY.removesuffix(".jpg") + ".thumb96.webp"
    assert all(is_key(text) for text in (key, thumb, small))
    assert [named_key(text) for text in (key, thumb, small)] == [key, thumb, thumb]
    for text in (small, KEY[1:]):
        with pytest.raises(InvalidValue, match="is not the key of a picture"):
            small_thumb_key(text)
    with pytest.raises(InvalidValue, match="is not the key of a picture"):
        thumb_key(small)


@pytest.mark.parametrize(
    "data",
    [
        encoded("PNG"),
        encoded("PNG", mode="RGBA"),
        encoded("JPEG"),
        encoded("JPEG", exif=exif(6)),
        encoded("WEBP"),
        encoded("WEBP", (401, 33)),
        encoded("WEBP", lossless=True),
        encoded("WEBP", mode="RGBA", lossless=True),
        encoded("WEBP", mode="RGBA"),
        encoded("WEBP", exif=exif(1)),
    ],
)
def test_tag_is_read_as_xmp_and_changes_no_pixel(data: bytes) -> None:
    """Whatever the container holds besides, every reader finds what it found before."""
    made = tagged(data)

    image = Image.open(io.BytesIO(made))
    assert DIGITAL_SOURCE_TYPE.encode() in (image.info["xmp"] if image.format != "PNG" else made)
    if image.format == "PNG":
        assert DIGITAL_SOURCE_TYPE in image.info["XML:com.adobe.xmp"]
    before = Image.open(io.BytesIO(data))
    assert (image.size, image.mode, dict(image.getexif())) == (before.size, before.mode, dict(before.getexif()))
    assert ImageChops.difference(pixels(made), pixels(data)).getbbox() is None
    if image.format == "PNG":
        image = Image.open(io.BytesIO(made))
        image.verify()
    assert prepare(made).width == prepare(data).width
    assert tagged(made) == made


def test_avif_stays_as_it_is_and_text_is_refused() -> None:
    """The mark is left out rather than a file broken."""
    data = encoded("AVIF")

    assert tagged(data) == data
    with pytest.raises(UnsupportedPicture):
        tagged(b"text")


@pytest.mark.parametrize("format_name", FORMATS)
def test_watermark_is_written_into_the_corner_in_the_same_format(format_name: str) -> None:
    """The rest looks as before. mission: 16"""
    data = encoded(format_name)

    made = watermarked(data, "© Aurelia")

    assert Image.open(io.BytesIO(made)).format == format_name
    difference = ImageChops.difference(pixels(made).convert("L"), pixels(data).convert("L"))
    seen = difference.point(lambda value: 255 if value > 40 else 0).getbbox()
    assert seen is not None
    left, top, right, bottom = seen
    assert left > 200
    assert top > 250
    assert right <= 400
    assert bottom <= 300


def test_watermarked_picture_is_upright_and_bare() -> None:
    """Its metadata said how to turn it, and perhaps where it was taken."""
    made = watermarked(encoded("JPEG", exif=exif(6)), "Aurelia")

    image = Image.open(io.BytesIO(made))
    assert image.size == (300, 400)
    assert not dict(image.getexif())
    assert b"secret place" not in made


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1", "I;16", "LA"])
def test_any_mode_takes_a_watermark(mode: str) -> None:
    """Grey, inks and palettes too."""
    made = watermarked(encoded("JPEG" if mode == "CMYK" else "PNG", mode=mode), "Aurelia")

    assert prepare(made).width == 400
    if mode == "I;16":
        assert pixels(made).convert("L").getpixel((10, 10)) < 60  # type: ignore[operator]


def test_transparent_picture_stays_transparent() -> None:
    """Around the text."""
    out = io.BytesIO()
    Image.new("RGBA", (200, 200), (0, 0, 0, 0)).save(out, "PNG")

    alpha = pixels(watermarked(out.getvalue(), "Aurelia")).getchannel("A")

    assert alpha.getpixel((0, 0)) == 0
    assert alpha.getextrema()[1] > 200


def test_watermark_that_cannot_be_written_is_refused() -> None:
    """It names the field."""
    with pytest.raises(InvalidValue, match="the font has none of the signs") as refused:
        watermarked(encoded("PNG"), "画")

    assert refused.value.field == "watermark"
