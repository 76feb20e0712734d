"""The provider `builtin`: draws by itself, without a model and without a network.

It understands no prompt. The prompt and the seed are the dice of a picture worth looking at, and some
words of the prompt load them: "night" makes dark colours likelier, "forest" makes firs likelier.
The same inputs give the same bytes as long as the version of Pillow is the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import re
import time
from decimal import Decimal
from random import Random
from typing import Final

import structlog
from pydantic import SecretStr

from store.errors import InvalidValue
from store.generation.errors import InvalidRequest
from store.generation.limits import new_seed
from store.generation.models import Models
from store.generation.providers import Done, Output, Request
from store.generation.providers.at_once import AnswersAtOnce
from store.generation.scenes import compose
from store.objects.watermark import MAX_WATERMARK_CHARS, sign, writable

__all__ = ["MAX_PX", "MAX_SEED", "MIN_PX", "Builtin", "render"]

MIN_PX: Final = 64
MAX_PX: Final = 2048
MAX_SEED: Final = 2**32 - 1

_Z_RLE: Final = 3

_log = structlog.get_logger()


class Builtin(AnswersAtOnce):
    """`render` behind the protocol: no key, no network, no cost, and a lost call may simply be made again."""

    name = "builtin"
    has_key = True

    def __init__(self, models: Models) -> None:
        self._models = models

    async def submit(self, request: Request, *, key: SecretStr | None = None) -> Done:
        model = self._models.checked(request)
        seed = new_seed() if request.seed is None else request.seed
        started = time.monotonic()
        try:
            # In a thread: most of it is Pillow at work, which lets the loop go on.
            data = await asyncio.to_thread(
                render,
                request.prompt,
                seed=seed,
                width=request.width,
                height=request.height,
                watermark=request.watermark,
            )
        except InvalidValue as error:
            raise InvalidRequest(str(error), field=error.field, provider=self.name, model=model.id) from error
        took_ms = round((time.monotonic() - started) * 1000)
        _log.info(
            "provider.called", provider=self.name, model=model.id, call="submit", status=None, code="ok",
            took_ms=took_ms, cost_usd="0",
        )  # fmt: skip
        return Done((Output(data=data, seed=seed),), Decimal(0))


def render(prompt: str, *, seed: int, width: int, height: int, watermark: str | None = None) -> bytes:
    """Returns a PNG. Prompt, seed and proportions decide the composition; the size only its detail.

    `watermark` is written in the lower right corner, in letters without accents: its font has no others.

    Raises: InvalidValue, naming the argument.
    """
    _check(prompt, seed, width, height, watermark)
    digest = hashlib.sha256(f"{seed}:{prompt}".encode(errors="surrogatepass")).digest()
    dice = Random(int.from_bytes(digest))
    image = compose(_words(prompt), dice, width, height)
    if watermark:
        sign(image, watermark)
    out = io.BytesIO()
    # Run lengths find all that there is to find in gradients with grain: 10 ms and 200 KB at 512 px, where
    # level 6 takes 39 ms to get to 181 KB.
    image.save(out, "PNG", compress_level=1, compress_type=_Z_RLE)
    return out.getvalue()


def _check(prompt: str, seed: int, width: int, height: int, watermark: str | None) -> None:
    if not prompt.strip():
        raise InvalidValue("prompt", "the prompt is empty")
    if not 0 <= seed <= MAX_SEED:
        raise InvalidValue("seed", f"seed {seed} is not within 0..{MAX_SEED}")
    for field, size in (("width", width), ("height", height)):
        if not MIN_PX <= size <= MAX_PX:
            raise InvalidValue(field, f"{field} {size} is not within {MIN_PX}..{MAX_PX}")
    if watermark is not None and (len(watermark) > MAX_WATERMARK_CHARS or not watermark.isprintable()):
        raise InvalidValue("watermark", f"the watermark is not one line of at most {MAX_WATERMARK_CHARS} signs")
    if watermark and not writable(watermark):
        raise InvalidValue("watermark", f"the font has none of the signs of {watermark!r}")


def _words(prompt: str) -> frozenset[str]:
    """Returns the words of a prompt in small letters, each also without its plural s."""
    words = re.findall(r"[a-z]+", prompt.lower())
    return frozenset(words) | {word.removesuffix("s") for word in words}
