"""Where a picture comes from, said inside of its file: the XMP property by which IPTC marks what a model made.

The packet is put into the file as it is; nothing is encoded anew, so no pixel changes.

Source: "Digital Source Type" of the IPTC NewsCodes; XMP part 3 (storage in files); the PNG, JPEG and WebP containers.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

from store.objects.pictures import sniff

__all__ = ["DIGITAL_SOURCE_TYPE", "tagged"]

DIGITAL_SOURCE_TYPE: Final = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"

_PACKET: Final = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">'
    f"<Iptc4xmpExt:DigitalSourceType>{DIGITAL_SOURCE_TYPE}</Iptc4xmpExt:DigitalSourceType>"
    '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
).encode()
_PNG_HEAD_BYTES: Final = 8 + 25  # signature and IHDR, which comes first
_JPEG_XMP: Final = b"http://ns.adobe.com/xap/1.0/\0"
_HAS_ALPHA, _HAS_XMP = 0x10, 0x04


def tagged(data: bytes) -> bytes:
    """The file with the mark of a picture that a model made. One that has XMP already keeps it, and an AVIF stays as
    it is: its packet cannot be put in without moving all the rest.

    Raises: UnsupportedPicture when it is no picture that we keep.
    """
    content_type = sniff(data, max_bytes=len(data))
    if content_type == "image/png":
        return data if b"iTXtXML:com.adobe.xmp\0" in data else _in_png(data)
    if content_type == "image/jpeg":
        return data if _JPEG_XMP in data else _in_jpeg(data)
    return _in_webp(data) if content_type == "image/webp" else data


def _in_png(data: bytes) -> bytes:
    content = b"iTXt" + b"XML:com.adobe.xmp\0\0\0\0\0" + _PACKET
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    return data[:_PNG_HEAD_BYTES] + chunk + data[_PNG_HEAD_BYTES:]


def _in_jpeg(data: bytes) -> bytes:
    # Behind JFIF's own segment, which has to be the first one.
    at = 4 + int.from_bytes(data[4:6], "big") if data[2:4] == b"\xff\xe0" else 2
    content = _JPEG_XMP + _PACKET
    return data[:at] + b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content + data[at:]


def _in_webp(data: bytes) -> bytes:
    kind, body = data[12:16], data[12:]
    if kind == b"VP8X":
        if data[20] & _HAS_XMP:
            return data
        body = body[:8] + bytes([body[8] | _HAS_XMP]) + body[9:]
    else:
        width, height, flags = _webp_size(data, kind)
        extended = bytes([flags | _HAS_XMP, 0, 0, 0]) + struct.pack("<I", width - 1)[:3]
        body = b"VP8X" + struct.pack("<I", 10) + extended + struct.pack("<I", height - 1)[:3] + body
    content = b"XMP " + struct.pack("<I", len(_PACKET)) + _PACKET + b"\0" * (len(_PACKET) % 2)
    body += content
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def _webp_size(data: bytes, kind: bytes) -> tuple[int, int, int]:
    """Width, height and flags of a WebP without an extended header."""
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, _HAS_ALPHA if bits >> 28 & 1 else 0
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF, 0
