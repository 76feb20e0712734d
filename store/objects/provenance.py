"""Where a picture comes from, said inside of its file: the XMP property by which IPTC marks what a model made.

The packet is put into the file as it is; nothing is encoded anew, so no pixel changes. What the file's XMP said before
it goes on saying, unless that was another source.

Source: "Digital Source Type" of the IPTC NewsCodes; XMP part 3 (storage in files); the PNG, JPEG and WebP containers.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Final

from store.objects.pictures import sniff

__all__ = ["DIGITAL_SOURCE_TYPE", "tagged"]

DIGITAL_SOURCE_TYPE: Final = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"

_MARK: Final = (
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">'
    f"<Iptc4xmpExt:DigitalSourceType>{DIGITAL_SOURCE_TYPE}</Iptc4xmpExt:DigitalSourceType>"
    "</rdf:Description></rdf:RDF>"
).encode()
_PACKET: Final = (
    (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    ).encode()
    + _MARK
    + b'</x:xmpmeta><?xpacket end="r"?>'
)
_MAX_PACKET_BYTES: Final = 60_000  # a segment of a JPEG has at most 65,533

_PNG_HEAD_BYTES: Final = 8 + 25  # signature and IHDR, which comes first
_PNG_XMP: Final = b"XML:com.adobe.xmp\0"
_PNG_PLAIN: Final = _PNG_XMP + b"\0\0\0\0"  # not compressed, in no language
_JPEG_XMP: Final = b"http://ns.adobe.com/xap/1.0/\0"
_JPEG_JFIF, _JPEG_APP1, _JPEG_SCAN = 0xE0, 0xE1, 0xDA
_HAS_ALPHA, _HAS_XMP = 0x10, 0x04


def tagged(data: bytes) -> bytes:
    """The file with the mark of a picture that a model made. `data` has to be a picture that `prepare` accepted. One
    that has the mark, and every AVIF, stays as it is: its packet cannot be put in without moving all the rest.

    Raises: UnsupportedPicture when it is no picture that we keep.
    """
    content_type = sniff(data, max_bytes=len(data))
    if content_type == "image/png":
        return _in_png(data)
    if content_type == "image/jpeg":
        return _in_jpeg(data)
    return _in_webp(data) if content_type == "image/webp" else data


def _packet(before: bytes) -> bytes:
    """The packet to put in the place of the one that was there; the same one when it has the mark."""
    if DIGITAL_SOURCE_TYPE.encode() in before:
        return before
    made = before.replace(b"</rdf:RDF>", _MARK, 1)
    says_more = made != before and b"DigitalSourceType" not in before and len(made) <= _MAX_PACKET_BYTES
    return made if says_more else _PACKET


def _in_png(data: bytes) -> bytes:
    chunks = list(_png_chunks(data))
    others = [chunk for chunk in chunks if not chunk[4:].startswith(b"iTXt" + _PNG_XMP)]
    found = [chunk[8:-4] for chunk in chunks if chunk[4:].startswith(b"iTXt" + _PNG_XMP)]
    # Packed ones are not unpacked: nobody knows how large they get.
    before = found[0].removeprefix(_PNG_PLAIN) if found and found[0].startswith(_PNG_PLAIN) else b""
    packet = _packet(before)
    if packet == before:
        return data
    content = b"iTXt" + _PNG_PLAIN + packet
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    return data[:_PNG_HEAD_BYTES] + chunk + b"".join(others)


def _png_chunks(data: bytes) -> Iterator[bytes]:
    """All behind the first, each whole."""
    at = _PNG_HEAD_BYTES
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        yield data[at:end]
        at = end


def _in_jpeg(data: bytes) -> bytes:
    segments, rest = _jpeg_segments(data)
    others = [segment for segment in segments if not segment[4:].startswith(_JPEG_XMP)]
    found = [segment[4:].removeprefix(_JPEG_XMP) for segment in segments if segment[4:].startswith(_JPEG_XMP)]
    before = found[0] if found else b""
    packet = _packet(before)
    if packet == before:
        return data
    content = _JPEG_XMP + packet
    made = bytes([0xFF, _JPEG_APP1]) + struct.pack(">H", len(content) + 2) + content
    at = 1 if others and others[0][1] == _JPEG_JFIF else 0  # behind JFIF's own, which has to be the first one
    return b"".join([data[:2], *others[:at], made, *others[at:], rest])


def _jpeg_segments(data: bytes) -> tuple[list[bytes], bytes]:
    """Those before the first scan, each whole, and the rest of the file."""
    segments, at = [], 2
    while data[at : at + 1] == b"\xff" and data[at + 1] not in (_JPEG_SCAN, 0xFF):
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        segments.append(data[at:end])
        at = end
    return segments, data[at:]


def _in_webp(data: bytes) -> bytes:
    chunks = list(_webp_chunks(data))
    others = [chunk for chunk in chunks if not chunk.startswith(b"XMP ")]
    found = [chunk[8 : 8 + int.from_bytes(chunk[4:8], "little")] for chunk in chunks if chunk.startswith(b"XMP ")]
    before = found[0] if found else b""
    packet = _packet(before)
    if packet == before:
        return data
    head = others[0]
    if head.startswith(b"VP8X"):
        others[0] = head[:8] + bytes([head[8] | _HAS_XMP]) + head[9:]
    else:
        width, height, flags = _webp_size(head)
        extended = bytes([flags | _HAS_XMP, 0, 0, 0]) + struct.pack("<I", width - 1)[:3]
        others.insert(0, b"VP8X" + struct.pack("<I", 10) + extended + struct.pack("<I", height - 1)[:3])
    others.append(b"XMP " + struct.pack("<I", len(packet)) + packet + b"\0" * (len(packet) % 2))
    body = b"".join(others)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def _webp_chunks(data: bytes) -> Iterator[bytes]:
    """Each whole, with what fills it up to an even length."""
    at, last = 12, min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    while at < last:
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        yield data[at : at + 8 + size] + b"\0" * (size % 2)
        at += 8 + size + size % 2


def _webp_size(chunk: bytes) -> tuple[int, int, int]:
    """Width, height and flags of a WebP without an extended header, from its only chunk."""
    if chunk.startswith(b"VP8L"):
        bits = int.from_bytes(chunk[9:13], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, _HAS_ALPHA if bits >> 28 & 1 else 0
    return int.from_bytes(chunk[14:16], "little") & 0x3FFF, int.from_bytes(chunk[16:18], "little") & 0x3FFF, 0
