"""What a provider sent becomes what is kept: signed, marked as made by a model, and never decoded in this process."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageFile, PngImagePlugin

from store.errors import BrokenPicture, InvalidValue, PictureTooLarge, UnsupportedPicture
from store.objects.finishing import finish
from store.objects.picture_process import PictureProcess
from store.objects.pictures import prepare
from store.objects.provenance import DIGITAL_SOURCE_TYPE, tagged

FORMATS = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP"}
IPTC = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
OTHER_XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:source>studio</dc:source>'
    b"</rdf:Description></rdf:RDF></x:xmpmeta>"
)


def encoded(format_name: str, size: tuple[int, int] = (600, 400), **options: Any) -> bytes:
    """A picture with detail everywhere."""
    noise = Image.frombytes("L", (48, 32), Random(7).randbytes(48 * 32)).resize(size, Image.Resampling.BICUBIC)
    out = io.BytesIO()
    Image.merge("RGB", (noise, noise.transpose(Image.Transpose.ROTATE_180), noise)).save(out, format_name, **options)
    return out.getvalue()


def pixels(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def xmp_of(data: bytes) -> bytes:
    """The XMP of a file as Pillow's own readers find it; empty when there is none."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        found = image.info.get("xmp", image.info.get("XML:com.adobe.xmp", b""))
    return found.encode() if isinstance(found, str) else found


def sources(data: bytes) -> list[str | None]:
    """The digital source types that the XMP of a file says."""
    packet = xmp_of(data)
    root = ET.fromstring(packet[packet.index(b"<x:xmpmeta") : packet.rindex(b"</x:xmpmeta>") + 12])
    return [element.text for element in root.iter(IPTC)]


@pytest.fixture
async def process() -> AsyncIterator[PictureProcess]:
    process = PictureProcess()
    yield process
    await process.close()


@pytest.mark.parametrize("content_type", FORMATS)
async def test_picture_is_marked_and_no_pixel_changes(process: PictureProcess, content_type: str) -> None:
    """Its size and thumbnails are those of the bytes that came. mission: 38"""
    data = encoded(FORMATS[content_type])

    made, picture = await process.finish(data)

    assert sources(made) == [DIGITAL_SOURCE_TYPE]
    assert ImageChops.difference(pixels(made), pixels(data)).getbbox() is None
    assert picture == prepare(data)
    assert (picture.content_type, picture.width, picture.height) == (content_type, 600, 400)
    assert prepare(made) == picture


@pytest.mark.parametrize("content_type", FORMATS)
async def test_watermark_is_in_the_bytes_and_in_the_thumbnail(process: PictureProcess, content_type: str) -> None:
    """And the mark beside it. mission: 16"""
    data = encoded(FORMATS[content_type])

    made, picture = await process.finish(data, watermark="© Aurelia Studio")

    assert sources(made) == [DIGITAL_SOURCE_TYPE]
    changed = ImageChops.difference(pixels(made), pixels(data)).convert("L").point(lambda v: 255 if v > 60 else 0)
    box = changed.getbbox()
    assert box is not None
    assert box[0] > 300
    assert box[1] > 360
    assert picture == prepare(made)
    assert picture.content_type == content_type
    assert picture.thumb != prepare(data).thumb


async def test_without_mark_and_watermark_the_bytes_stay(process: PictureProcess) -> None:
    """An empty text is no watermark."""
    data = encoded("JPEG")

    assert (await process.finish(data, tag=False)).data == data
    assert (await process.finish(data, watermark="", tag=False)).data == data


async def test_avif_is_kept_without_a_mark(process: PictureProcess) -> None:
    """Rather than with a broken file; a watermark it takes."""
    data = encoded("AVIF")

    made, picture = await process.finish(data)
    signed, _ = await process.finish(data, watermark="Aurelia")

    assert made == data
    assert picture.content_type == "image/avif"
    assert prepare(signed).width == 600
    assert signed != data


def with_xmp(content_type: str, packet: bytes) -> bytes:
    if content_type == "image/png":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", packet.decode())
        return encoded("PNG", pnginfo=info)
    return encoded(FORMATS[content_type], xmp=packet)


@pytest.mark.parametrize("content_type", FORMATS)
def test_what_the_file_said_before_it_says_still(content_type: str) -> None:
    """A provider's own XMP gets the mark put in, once; another source is not left beside it."""
    data = with_xmp(content_type, OTHER_XMP)
    claims = OTHER_XMP.replace(b"dc:source>", b"q:DigitalSourceType>").replace(b"xmlns:dc", b"xmlns:q")

    made = tagged(data)
    corrected = tagged(with_xmp(content_type, claims))

    assert sources(made) == [DIGITAL_SOURCE_TYPE]
    assert b"<dc:source>studio</dc:source>" in xmp_of(made)
    assert tagged(made) == made
    assert ImageChops.difference(pixels(made), pixels(data)).getbbox() is None
    assert sources(corrected) == [DIGITAL_SOURCE_TYPE]
    assert b"studio" not in xmp_of(corrected)


@pytest.mark.parametrize("content_type", FORMATS)
def test_words_that_look_like_the_mark_are_no_mark(content_type: str) -> None:
    """A comment of the picture, or a prompt that the provider put into it, cannot keep the mark away."""
    words = "XML:com.adobe.xmp\0http://ns.adobe.com/xap/1.0/\0" + DIGITAL_SOURCE_TYPE
    if content_type == "image/png":
        info = PngImagePlugin.PngInfo()
        info.add_text("prompt", words)
        data = encoded("PNG", pnginfo=info)
    elif content_type == "image/jpeg":
        data = encoded("JPEG", comment=words.encode())
    else:
        exif = Image.Exif()
        exif[0x010E] = words
        data = encoded("WEBP", exif=exif)

    assert sources(tagged(data)) == [DIGITAL_SOURCE_TYPE]


def test_packed_xmp_of_a_png_is_replaced_and_never_unpacked() -> None:
    """It may be a bomb."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", "x" * 900_000, zip=True)
    data = encoded("PNG", pnginfo=info)

    made = tagged(data)

    assert sources(made) == [DIGITAL_SOURCE_TYPE]
    assert len(made) < len(encoded("PNG")) + 1000


@pytest.mark.parametrize("watermark", [None, "Aurelia"])
async def test_hostile_bytes_are_refused_and_never_decoded_here(
    process: PictureProcess, monkeypatch: pytest.MonkeyPatch, watermark: str | None
) -> None:
    """Whatever the provider sent: no picture, half of one, a bomb, damage; this process opens none of it."""
    damaged = bytearray(encoded("PNG"))
    damaged[len(damaged) // 2] ^= 0xFF
    bomb = encoded("PNG", (64, 64)).replace(b"\0\0\0\x40\0\0\0\x40", b"\0\0\xc3\x50\0\0\xc3\x50")
    good = encoded("WEBP")

    def fail(*_: object) -> None:
        raise AssertionError("decoded in this process")

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    monkeypatch.setattr(Image, "open", fail)

    for data, error in [
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", UnsupportedPicture),
        (encoded("JPEG")[:-400], BrokenPicture),
        (good[: len(good) // 2], BrokenPicture),
        (bytes(damaged), BrokenPicture),
        (bomb, (PictureTooLarge, BrokenPicture)),
    ]:
        with pytest.raises(error):
            await process.finish(data, watermark=watermark)

    made, picture = await process.finish(good, watermark=watermark)
    assert picture.width == 600
    assert DIGITAL_SOURCE_TYPE.encode() in made


@pytest.mark.parametrize("format_name", FORMATS.values())
def test_no_damage_raises_anything_but_picture_errors(format_name: str) -> None:
    """Not even where the file is taken apart to put the mark in: what is made of it can be read."""
    dice = Random(format_name)
    data = encoded(format_name, (64, 48))
    made = 0
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(dice.randint(1, 5)):
            damaged[dice.randrange(len(damaged) if dice.random() < 0.5 else 60)] = dice.randrange(256)
        try:
            done = finish(bytes(damaged), watermark=dice.choice([None, "Aurelia"]))
        except (BrokenPicture, PictureTooLarge, UnsupportedPicture):
            continue
        made += 1
        assert sources(done.data) == [DIGITAL_SOURCE_TYPE]
        assert prepare(done.data).width == done.picture.width

    # What is damaged in a PNG, its checksums tell.
    assert made > 5 or format_name == "PNG"


@pytest.mark.parametrize("text", ["画", "two\nlines", "x" * 65])
async def test_watermark_that_cannot_be_written_starts_no_process(process: PictureProcess, text: str) -> None:
    """It names the field."""
    with pytest.raises(InvalidValue, match=r"watermark|signs of") as refused:
        await process.finish(encoded("PNG"), watermark=text)

    assert refused.value.field == "watermark"


async def test_limits_are_those_of_the_process() -> None:
    """Bytes and pixels, also of what the watermark made of it."""
    process = PictureProcess(max_bytes=60_000, max_pixels=600 * 400)

    with pytest.raises(PictureTooLarge, match="pixels"):
        await process.finish(encoded("JPEG", (601, 400)), watermark="x")
    with pytest.raises(PictureTooLarge, match="bytes"):
        await process.finish(encoded("PNG"))
    small = encoded("JPEG", quality=20, subsampling=2)
    assert len(small) < 20_000
    assert (await process.finish(small)).picture.width == 600
    await process.close()
    tight = PictureProcess(max_bytes=len(small) + 10)
    with pytest.raises(PictureTooLarge, match="bytes"):
        await tight.finish(small, watermark="Aurelia")
    await tight.close()
