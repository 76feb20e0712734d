"""Pictures: what is accepted, what is refused, and what a picture cannot do to its reader."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import select
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
import thumbhash
from PIL import Image, ImageCms, PngImagePlugin

from store.errors import BrokenPicture, PictureError, PicturesBusy, PictureTooLarge, UnsupportedPicture
from store.objects.picture_process import PictureProcess
from store.objects.pictures import Picture, prepare
from tests.bench.process import tree

FORMATS = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP", "image/avif": "AVIF"}
RED, BLUE = (220, 20, 20), (20, 20, 220)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def photo(width: int, height: int) -> Image.Image:
    """Left half red, right half blue, with enough detail that every format has something to encode."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    detail = Image.frombytes("L", (32, 32), Random(1).randbytes(1024)).resize((width, height))
    return Image.blend(image, Image.merge("RGB", (detail, detail, detail)), 0.15)


def opened(picture: Picture) -> Image.Image:
    image = Image.open(io.BytesIO(picture.thumb))
    image.load()
    return image


def is_near(image: Image.Image, at: tuple[int, int], colour: tuple[int, int, int]) -> bool:
    seen = image.convert("RGB").getpixel(at)
    assert isinstance(seen, tuple)
    return all(abs(a - b) < 60 for a, b in zip(seen, colour, strict=True))


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


PNG_OF_50_000 = (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    + chunk(b"IDAT", zlib.compress(bytes(1000)))
    + chunk(b"IEND", b"")
)


@pytest.mark.parametrize("content_type", FORMATS)
def test_picture_is_accepted_with_its_size_thumb_and_placeholder(content_type: str) -> None:
    """mission: 88, 90"""
    data = encoded(photo(800, 500), FORMATS[content_type])

    picture = prepare(data)

    assert (picture.content_type, picture.width, picture.height) == (content_type, 800, 500)
    thumb = opened(picture)
    assert (thumb.format, thumb.size, thumb.mode) == ("WEBP", (384, 240), "RGB")
    assert is_near(thumb, (40, 120), RED)
    assert is_near(thumb, (340, 120), BLUE)
    assert 5 < len(base64.b64decode(picture.thumbhash, validate=True)) <= 25


def test_same_bytes_give_the_same_picture() -> None:
    data = encoded(photo(300, 200), "PNG")

    assert prepare(data) == prepare(data)


@pytest.mark.parametrize(
    ("size", "thumb_size"),
    [
        ((100, 60), (100, 60)),
        ((1, 1), (1, 1)),
        ((384, 384), (384, 384)),
        ((3000, 2), (384, 1)),
        ((2, 768), (1, 384)),
    ],
)
def test_thumb_fits_and_is_never_enlarged(size: tuple[int, int], thumb_size: tuple[int, int]) -> None:
    picture = prepare(encoded(Image.new("RGB", size, RED), "PNG"))

    assert (picture.width, picture.height) == size
    assert opened(picture).size == thumb_size


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_rotated_photo_stands_upright(format: str, orientation: int) -> None:
    """Width, height and thumbnail are those that a viewer sees."""
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = photo(600, 300)
    stored = upright.transpose(turns[orientation]) if orientation in turns else upright
    exif = Image.Exif()
    exif[0x0112] = orientation

    picture = prepare(encoded(stored, format, exif=exif))

    assert (picture.width, picture.height) == (600, 300)
    thumb = opened(picture)
    assert thumb.size == (384, 192)
    assert is_near(thumb, (50, 96), RED)
    assert is_near(thumb, (330, 96), BLUE)


@pytest.mark.parametrize("format", FORMATS.values())
def test_thumb_carries_no_metadata(format: str) -> None:
    exif = Image.Exif()
    exif[0x010E] = "the user's address"
    exif[0x8825] = {1: "N", 2: (52.0, 31.0, 12.0)}
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = encoded(photo(400, 400), format, exif=exif, icc_profile=profile)
    assert b"address" in data

    picture = prepare(data)

    thumb = opened(picture)
    assert not thumb.getexif()
    assert not {"exif", "icc_profile", "xmp"} & thumb.info.keys()
    assert b"address" not in picture.thumb


def test_colours_of_a_profile_are_those_of_the_thumb() -> None:
    """A profile with red and blue swapped makes red pixels look blue; the thumb has blue ones."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = profile.replace(b"rXYZ", b"xXYZ").replace(b"bXYZ", b"rXYZ").replace(b"xXYZ", b"bXYZ")

    picture = prepare(encoded(Image.new("RGB", (64, 64), RED), "PNG", icc_profile=swapped))

    assert is_near(opened(picture), (32, 32), BLUE)


@pytest.mark.parametrize("metadata", [{"icc_profile": b"nonsense"}, {"exif": b"Exif\0\0nonsense"}])
def test_metadata_that_nobody_can_read_does_not_spoil_a_picture(metadata: dict[str, bytes]) -> None:
    picture = prepare(encoded(photo(100, 50), "JPEG", **metadata))

    assert (picture.width, picture.height) == (100, 50)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "I;16", "CMYK"])
def test_every_mode_of_pixels_gives_a_thumb_with_its_colours(mode: str) -> None:
    if mode == "I;16":
        image = Image.new("I;16", (64, 64), 0x8000)
    else:
        image = Image.new("RGB", (64, 64), (128, 128, 128)).convert(mode)
    data = encoded(image, "JPEG" if mode == "CMYK" else "PNG")

    thumb = opened(prepare(data)).convert("L").resize((1, 1), Image.Resampling.BOX)

    assert abs(thumb.tobytes()[0] - 128) < 12


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "RGB"])
def test_transparency_is_kept(mode: str) -> None:
    if mode == "RGBA":
        data = encoded(Image.new("RGBA", (64, 64), (200, 0, 0, 0)), "PNG")
    else:
        data = encoded(Image.new(mode, (64, 64), 0), "PNG", transparency=(0, 0, 0) if mode == "RGB" else 0)

    thumb = opened(prepare(data))

    assert thumb.mode == "RGBA"
    assert thumb.getchannel("A").getextrema() == (0, 0)


def test_placeholder_of_a_cut_out_has_the_colours_of_what_is_seen() -> None:
    cut_out = Image.new("RGBA", (64, 64), (0, 255, 0, 0))
    cut_out.paste((*RED, 255), (16, 16, 48, 48))

    digest = base64.b64decode(prepare(encoded(cut_out, "PNG")).thumbhash)

    seen = thumbhash.thumb_hash_to_average_rgba(list(digest))
    assert all(abs(255 * a - b) < 12 for a, b in zip(seen, (*RED, 255), strict=True)), seen


def test_photo_with_further_pictures_beside_it_is_a_jpeg() -> None:
    """Phones store previews and depth maps behind the photo; the format calls that MPO."""
    data = encoded(photo(320, 200), "MPO", save_all=True, append_images=[photo(32, 20)])

    picture = prepare(data)

    assert (picture.content_type, picture.width, picture.height) == ("image/jpeg", 320, 200)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x89PNG",
        b"plain text, nothing else",
        b"<!doctype html><script>alert(1)</script>",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>",
        encoded(photo(20, 20), "GIF"),
        encoded(photo(20, 20), "BMP"),
        encoded(photo(20, 20), "TIFF"),
        b"RIFF\x24\0\0\0WAVEfmt ",
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"%PDF-1.7\n",
    ],
)
def test_what_is_none_of_the_four_formats_is_unsupported(data: bytes) -> None:
    with pytest.raises(UnsupportedPicture, match="none of PNG, JPEG, WebP, AVIF"):
        prepare(data)


@pytest.mark.parametrize("format", FORMATS.values())
@pytest.mark.parametrize("kept", [0.03, 0.3, 0.6, 0.9, 0.99])
def test_truncated_picture_is_broken(format: str, kept: float) -> None:
    data = encoded(photo(400, 300), format)

    with pytest.raises(BrokenPicture, match="could not be read"):
        prepare(data[: max(16, int(len(data) * kept))])


def test_png_without_its_end_or_with_a_wrong_checksum_is_broken() -> None:
    data = encoded(photo(100, 100), "PNG")
    end = data.index(b"IEND") - 4
    damaged = bytearray(data)
    damaged[end - 1] ^= 1

    for broken in (data[:end], bytes(damaged)):
        with pytest.raises(BrokenPicture, match="could not be read"):
            prepare(broken)


@pytest.mark.parametrize("content_type", FORMATS)
def test_no_damage_raises_anything_but_picture_errors(content_type: str) -> None:
    data = encoded(photo(64, 48), FORMATS[content_type])
    dice = Random(content_type)
    refused = 0
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(dice.randint(1, 6)):
            damaged[dice.randrange(len(damaged) if dice.random() < 0.5 else 60)] = dice.randrange(256)
        try:
            prepare(bytes(damaged))
        except PictureError:
            refused += 1

    assert refused > 30


@pytest.mark.parametrize(("format", "name"), [("WEBP", "webp"), ("PNG", "png"), ("AVIF", "avif")])
def test_animation_is_refused(format: str, name: str) -> None:
    data = encoded(photo(40, 40), format, save_all=True, append_images=[Image.new("RGB", (40, 40), BLUE)])

    with pytest.raises(BrokenPicture, match=f"the image/{name} is animated"):
        prepare(data)


def test_header_that_claims_too_many_pixels_is_too_large() -> None:
    with pytest.raises(PictureTooLarge, match="pixels"):
        prepare(PNG_OF_50_000)


def test_small_file_with_many_pixels_is_too_large() -> None:
    data = encoded(Image.new("1", (8000, 8000)), "PNG")
    assert len(data) < 20_000

    with pytest.raises(PictureTooLarge, match="pixels"):
        prepare(data)
    assert prepare(data, max_pixels=64_000_000).width == 8000


@pytest.mark.parametrize("format", FORMATS.values())
def test_limits_are_exact(format: str) -> None:
    data = encoded(photo(50, 40), format)

    assert prepare(data, max_pixels=2000, max_bytes=len(data)).width == 50
    with pytest.raises(PictureTooLarge, match="1999 pixels"):
        prepare(data, max_pixels=1999)
    with pytest.raises(PictureTooLarge, match="bytes, the limit is"):
        prepare(data, max_bytes=len(data) - 1)


def test_text_that_unpacks_to_gigabytes_is_broken() -> None:
    """A bomb in a PNG's text, not in its pixels."""
    info = PngImagePlugin.PngInfo()
    for n in range(80):
        info.add_text(f"k{n}", "x" * 1_000_000, zip=True)

    with pytest.raises(BrokenPicture, match="could not be read"):
        prepare(encoded(photo(8, 8), "PNG", pnginfo=info))


@pytest.fixture
async def process() -> AsyncIterator[PictureProcess]:
    process = PictureProcess()
    yield process
    await process.close()


SMALL = encoded(photo(64, 64), "PNG")


@pytest.fixture(autouse=True)
def elsewhere() -> Iterator[None]:
    """Other tests of the run may keep workers of their own: they do not count here."""
    _others.update(_children())
    yield
    _others.clear()


_others: set[int] = set()


def _children() -> set[int]:
    """The processes that this one has started to read pictures, and that run."""
    found = set()
    for pid in tree([os.getpid()]):
        with suppress(OSError):  # another one that ended meanwhile: a connection of Postgres, say
            if b"picture_child" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.add(pid)
    return found


def workers() -> set[int]:
    """Those of this test."""
    return _children() - _others


async def worker_of(process: PictureProcess) -> int:
    """Starts the worker by giving it a picture, and returns its pid."""
    await process.prepare(SMALL)
    (pid,) = workers()
    return pid


async def begun(coroutine: object) -> asyncio.Task[Picture]:
    """Starts a task and lets it run until it waits for the worker: that takes a few turns of the loop."""
    task = asyncio.ensure_future(coroutine)  # type: ignore[call-overload]
    for _ in range(20):
        await asyncio.sleep(0)
    return task


async def test_process_reads_as_the_function_does(process: PictureProcess) -> None:
    data = encoded(photo(500, 400), "AVIF")

    assert await process.prepare(data) == prepare(data)
    with pytest.raises(BrokenPicture, match="truncated"):
        await process.prepare(encoded(photo(100, 100), "JPEG")[:-50])
    with pytest.raises(PictureTooLarge, match="pixels"):
        await process.prepare(PNG_OF_50_000)
    with pytest.raises(UnsupportedPicture):
        await process.prepare(b"GIF89a")


async def test_what_is_no_picture_starts_no_process(process: PictureProcess) -> None:
    with pytest.raises(UnsupportedPicture):
        await process.prepare(b"text")

    assert not workers()


async def test_worker_that_dies_costs_its_picture_and_no_other(process: PictureProcess) -> None:
    pid = await worker_of(process)
    os.kill(pid, signal.SIGSTOP)
    task = await begun(process.prepare(SMALL))
    waiting = await begun(process.prepare(SMALL))

    os.kill(pid, signal.SIGKILL)

    with pytest.raises(BrokenPicture, match="ended the process that read it"):
        await task
    assert (await waiting).width == 64
    assert await worker_of(process) != pid


async def test_worker_that_dies_with_a_large_picture_half_sent_is_replaced(process: PictureProcess) -> None:
    pid = await worker_of(process)
    os.kill(pid, signal.SIGSTOP)
    large = encoded(Image.frombytes("RGB", (2000, 2000), Random(1).randbytes(12_000_000)), "PNG")
    task = await begun(process.prepare(large))

    os.kill(pid, signal.SIGKILL)

    with pytest.raises(BrokenPicture, match="ended the process that read it"):
        await task
    assert (await process.prepare(large)).width == 2000


async def test_worker_that_died_while_idle_costs_no_picture(process: PictureProcess) -> None:
    pid = await worker_of(process)
    ended = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    assert select.select([ended], [], [], 10)[0]
    os.close(ended)

    assert (await process.prepare(SMALL)).width == 64


async def test_stuck_worker_is_killed_after_the_time_limit() -> None:
    process = PictureProcess(time_limit_s=2)
    pid = await worker_of(process)
    os.kill(pid, signal.SIGSTOP)

    with pytest.raises(BrokenPicture, match=r"took longer than 2 s"):
        await process.prepare(SMALL)

    assert (await process.prepare(SMALL)).width == 64
    assert await worker_of(process) != pid
    await process.close()


async def test_picture_that_needs_too_much_memory_is_broken_and_the_next_is_read() -> None:
    process = PictureProcess(memory_limit_bytes=160 * 2**20)
    huge = encoded(Image.new("RGB", (6300, 6300), RED), "PNG")

    with pytest.raises(BrokenPicture):
        await process.prepare(huge)

    assert (await process.prepare(SMALL)).width == 64
    await process.close()


async def test_too_many_waiting_pictures_are_turned_away() -> None:
    process = PictureProcess(max_waiting=3)
    pid = await worker_of(process)
    os.kill(pid, signal.SIGSTOP)
    accepted = [await begun(process.prepare(SMALL)) for _ in range(4)]

    with pytest.raises(PicturesBusy, match="3 pictures wait already"):
        await process.prepare(SMALL)

    os.kill(pid, signal.SIGCONT)
    assert [picture.width for picture in await asyncio.gather(*accepted)] == [64] * 4
    await process.close()


async def test_two_workers_read_at_the_same_time_and_one_survives_the_other() -> None:
    process = PictureProcess(max_workers=2)
    first = await worker_of(process)
    os.kill(first, signal.SIGSTOP)
    stuck = await begun(process.prepare(SMALL))

    assert (await process.prepare(SMALL)).width == 64

    os.kill(first, signal.SIGKILL)
    with pytest.raises(BrokenPicture):
        await stuck
    assert (await process.prepare(SMALL)).width == 64
    await process.close()


async def test_cancelled_callers_leave_the_worker_usable(process: PictureProcess) -> None:
    pid = await worker_of(process)
    os.kill(pid, signal.SIGSTOP)
    running, waiting = await begun(process.prepare(SMALL)), await begun(process.prepare(SMALL))

    for task in (running, waiting):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    os.kill(pid, signal.SIGCONT)
    assert (await process.prepare(SMALL)).width == 64
    assert await worker_of(process) == pid


async def test_close_ends_the_worker_and_fails_who_waits(process: PictureProcess) -> None:
    pid = await worker_of(process)
    os.kill(pid, signal.SIGSTOP)
    running, waiting = await begun(process.prepare(SMALL)), await begun(process.prepare(SMALL))

    await process.close()
    await process.close()

    for task in (running, waiting, process.prepare(SMALL)):
        with pytest.raises(PicturesBusy, match="no pictures are read any more"):
            await task
    assert not workers()


async def test_worker_that_cannot_start_blames_no_picture() -> None:
    process = PictureProcess(memory_limit_bytes=2**20)

    with pytest.raises(PicturesBusy, match="does not start"):
        await process.prepare(SMALL)
    await process.close()


async def test_worker_goes_behind_whoever_answers_requests(process: PictureProcess) -> None:
    """Lower priority, and never ahead of its turn; so does its session, where sessions are groups."""
    pid = await worker_of(process)

    assert os.getpriority(os.PRIO_PROCESS, pid) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 10)
    assert os.getsid(pid) == pid
    if sys.platform == "linux":
        assert os.sched_getscheduler(pid) == os.SCHED_BATCH
    group = Path(f"/proc/{pid}/autogroup")
    if group.exists():
        assert group.read_text().endswith("nice 10\n")


LIAR = """#!{python}
import struct, sys, time
def say(answer, size=None):
    sys.stdout.buffer.write(struct.pack("=QQ", len(answer) if size is None else size, 0) + answer)
    sys.stdout.buffer.flush()
say({first!r})
sys.stdin.buffer.read(1)
say({second!r}, {size!r})
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("second", "size"),
    [(b"\x80\x04cos\nsystem\n", None), (b"\x81\xa7picture\xc3", None), (b"", 2**63)],
    ids=["code", "not a picture", "endless"],
)
async def test_nothing_that_a_worker_says_is_believed_unless_it_is_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: bytes, size: int | None
) -> None:
    """A picture that took its reader over gains nothing outside of it."""
    liar = tmp_path / "liar"
    liar.write_text(LIAR.format(python=sys.executable, first=b"ready", second=second, size=size))
    liar.chmod(0o700)
    process = PictureProcess()

    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", str(liar))
        with pytest.raises(BrokenPicture, match="ended the process that read it"):
            await process.prepare(SMALL)

    assert (await process.prepare(SMALL)).width == 64
    await process.close()


async def test_worker_that_does_not_speak_as_one_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    liar = tmp_path / "liar"
    liar.write_text(LIAR.format(python=sys.executable, first=b"hello", second=b"", size=0))
    liar.chmod(0o700)
    process = PictureProcess()
    monkeypatch.setattr(sys, "executable", str(liar))

    with pytest.raises(PicturesBusy, match="does not start"):
        await process.prepare(SMALL)
    await process.close()


PARENT = """
import asyncio, os, sys
from store.objects.picture_process import PictureProcess
from tests.bench.process import tree

async def main():
    process = PictureProcess()
    await process.prepare(sys.stdin.buffer.read())
    (child,) = tree([os.getpid()]) - {os.getpid()}
    print(child, flush=True)
    await asyncio.Event().wait()

if __name__ == "__main__":
    asyncio.run(main())
"""


def test_worker_ignores_ctrl_c_and_dies_with_its_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    root = Path(__file__).parents[2]
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    parent.stdin.write(SMALL)
    parent.stdin.close()
    pid = int(parent.stdout.readline())
    ended = os.pidfd_open(pid)

    os.kill(pid, signal.SIGINT)
    ignored = f"SigIgn:\t{1 << (signal.SIGINT - 1):016x}"
    mask = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "SigIgn" in line)
    assert int(mask.split()[1], 16) & int(ignored.split()[1], 16)
    assert not select.select([ended], [], [], 0)[0]
    parent.kill()
    parent.wait(10)

    assert select.select([ended], [], [], 10)[0]
    os.close(ended)
    parent.stdout.close()
