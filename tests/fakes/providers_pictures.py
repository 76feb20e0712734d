"""Pictures of the fake providers: equal inputs give equal bytes, and the size is what was asked for."""

from __future__ import annotations

import hashlib
import io

from PIL import Image

__all__ = ["picture"]


def picture(prompt: str, seed: object, width: int, height: int, kind: str = "PNG") -> bytes:
    """A picture of two colours that come from prompt and seed."""
    digest = hashlib.sha256(f"{prompt}|{seed}|{width}x{height}".encode()).digest()
    image = Image.new("RGB", (width, height), tuple(digest[:3]))
    image.paste(tuple(digest[3:6]), (0, 0, width // 2, height // 2))
    out = io.BytesIO()
    image.save(out, kind, **({"compress_level": 1} if kind == "PNG" else {}))
    return out.getvalue()
