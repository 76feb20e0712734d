"""Pictures in an answer: base64, data URLs or addresses, made into outputs; and outputs made into bytes."""

from __future__ import annotations

import base64
import binascii

from store.errors import PictureError
from store.generation.errors import BadAnswer
from store.generation.providers import Fetch, Output, Reference
from store.generation.providers.calls import Call
from store.objects.pictures import sniff

__all__ = ["bytes_of", "data_url", "from_base64", "from_bytes", "from_url", "seed_in"]


def from_bytes(call: Call, data: bytes, *, seed: int | None = None, revised_prompt: str = "") -> Output:
    """Raises: BadAnswer unless the bytes begin as a picture does. Whether they are whole is for `pictures.prepare`."""
    try:
        sniff(data)
    except PictureError as error:
        raise call.error(BadAnswer, f"sent no picture: {error}") from error
    return Output(data=data, seed=seed, revised_prompt=revised_prompt)


def from_base64(call: Call, text: str, *, seed: int | None = None, revised_prompt: str = "") -> Output:
    """A picture in base64, or in a data URL. Raises: BadAnswer."""
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise call.error(BadAnswer, f"sent broken base64: {error}") from error
    return from_bytes(call, data, seed=seed, revised_prompt=revised_prompt)


def from_url(call: Call, url: str, *, seed: int | None = None, revised_prompt: str = "") -> Output:
    """A picture to be fetched from its address. Raises: BadAnswer unless it is one."""
    if url.startswith("data:"):
        return from_base64(call, url, seed=seed, revised_prompt=revised_prompt)
    if not url.startswith(("https://", "http://")):
        raise call.error(BadAnswer, "sent an address that is none of the web")
    return Output(url=url, seed=seed, revised_prompt=revised_prompt)


def seed_in(value: object) -> int | None:
    """The seed that an answer tells, None for anything that is none: no picture is lost for it."""
    return value if type(value) is int and value >= 0 else None


def data_url(reference: Reference) -> str:
    """A reference as text."""
    return f"data:{reference.content_type};base64,{base64.b64encode(reference.data).decode()}"


async def bytes_of(output: Output, fetch: Fetch) -> bytes:
    """The picture's bytes, fetched if they must be; may be called again, nothing is drawn twice.

    Raises: BadAnswer unless they begin as a picture does; and whatever `fetch` raises.
    """
    if output.data:
        return output.data
    data = await fetch(output.url)
    try:
        sniff(data)
    except PictureError as error:
        raise BadAnswer(f"the result's address gave no picture: {error}") from error
    return data
