"""Limits: what may be asked of a model, and how a request is split into calls that respect it."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from store.generation.errors import InvalidRequest, PromptRequired
from store.generation.providers import Request

__all__ = ["MAX_SEED", "Limits", "Model", "Pace", "Steps", "aspect", "calls", "new_seed"]

MAX_SEED: Final = 2**32 - 1
_NEAR: Final = math.log(1.03)


class Steps(msgspec.Struct, frozen=True):
    """How many steps a model takes."""

    least: int
    most: int
    default: int


class Pace(msgspec.Struct, frozen=True):
    """How long a picture of up to `max_pixels` takes: expected from, to, and when it is given up. Seconds."""

    max_pixels: int
    low_s: float
    high_s: float
    deadline_s: float


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What may be asked of a model."""

    sizes: tuple[tuple[int, int], ...] = ()
    """Exactly these; empty: whatever min_px, max_px, multiple_of, max_pixels and aspects allow."""
    min_px: int = 64
    max_px: int = 2048
    multiple_of: int = 1
    max_pixels: int = 2048 * 2048
    aspects: tuple[str, ...] = ()
    """Proportions such as "16:9"; empty: any."""
    steps: Steps | None = None
    has_seed: bool = False
    has_negative_prompt: bool = False
    has_watermark: bool = False
    max_references: int = 0
    references_by_url: bool = False
    max_n: int = 4
    """Most pictures of one job."""
    per_call: int = 1
    """Most pictures of one call. A model with seeds draws one per call, so that every picture has its own seed."""
    max_prompt: int = 4000
    """Characters, of the negative prompt too."""
    options: tuple[str, ...] = ()

    def check(self, request: Request, *, most: int | None = None) -> None:
        """Checks one request of up to `most` pictures (None: of one call).

        Raises: InvalidRequest with the field, in words that name the limit; PromptRequired.
        """
        if not request.prompt.strip():
            raise PromptRequired
        for field, text in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt or "")):
            if not _is_text(text):
                raise _refused(request, field, "is no text: it has half a character")
            if len(text) > self.max_prompt:
                raise _refused(request, field, f"has {len(text)} characters, {request.model} takes {self.max_prompt}")
        self._check_size(request)
        if request.steps is not None and not (self.steps and self.steps.least <= request.steps <= self.steps.most):
            rule = f"takes {self.steps.least} to {self.steps.most}" if self.steps else "has no steps to choose"
            raise _refused(request, "steps", f"is {request.steps}, {request.model} {rule}")
        if request.seed is not None and not 0 <= request.seed <= MAX_SEED:
            raise _refused(request, "seed", f"{request.seed} is not within 0 to {MAX_SEED}")
        most = self.per_call if most is None else most
        if not 1 <= request.n <= most:
            raise _refused(request, "n", f"is {request.n}, {request.model} draws 1 to {most}")
        if len(request.references) > self.max_references:
            rule = f"takes at most {self.max_references}" if self.max_references else "takes none"
            raise _refused(request, "references", f"are {len(request.references)}, {request.model} {rule}")
        if self.references_by_url and not all(reference.url for reference in request.references):
            raise _refused(request, "references", f"of {request.model} need a public address")
        for field in self.dropped(request):
            raise _refused(request, field, f"is not taken by {request.model}")

    def dropped(self, request: Request) -> Iterator[str]:
        """What this model would not listen to: fields, and options by their names."""
        asked = {
            "seed": request.seed is not None and not self.has_seed,
            "negative_prompt": bool(request.negative_prompt) and not self.has_negative_prompt,
            "watermark": bool(request.watermark) and not self.has_watermark,
        }
        yield from (field for field, is_dropped in asked.items() if is_dropped)
        yield from (option for option in request.options if option not in self.options)

    def _check_size(self, request: Request) -> None:
        width, height = request.width, request.height
        size = f"{width}x{height}"
        if self.sizes and (width, height) not in self.sizes:
            listed = ", ".join(f"{w}x{h}" for w, h in self.sizes)
            raise _refused(request, "width", f"{size} is none of {listed}, which {request.model} draws")
        for field, pixels in (("width", width), ("height", height)):
            if not self.min_px <= pixels <= self.max_px or pixels % self.multiple_of:
                rule = f"{self.min_px} to {self.max_px}"
                rule += f" in steps of {self.multiple_of}" if self.multiple_of > 1 else ""
                raise _refused(request, field, f"is {pixels}, {request.model} draws {rule}")
        if width * height > self.max_pixels:
            raise _refused(request, "width", f"{size} is more than the {self.max_pixels} pixels of {request.model}")
        if self.aspects and aspect(width, height, self.aspects) is None:
            raise _refused(
                request, "width", f"{size} is none of {', '.join(self.aspects)}, which {request.model} draws"
            )


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """One model."""

    id: str
    provider: str
    name: str
    limits: Limits
    pace: tuple[Pace, ...]

    @property
    def remote(self) -> str:
        """The provider's own name of it: ours says the provider where that name would not."""
        return self.id.removeprefix(f"{self.provider}/")

    def pace_of(self, width: int, height: int) -> Pace:
        """Expected times and the deadline for one picture of this size."""
        return next((pace for pace in self.pace if width * height <= pace.max_pixels), self.pace[-1])


def aspect(width: int, height: int, aspects: Iterable[str]) -> str | None:
    """The nearest of `aspects` within 3 %, None if none is: 1344x768 is 16:9 for those who draw it."""

    def distance(text: str) -> float:
        across, down = (float(part) for part in text.split(":"))
        return abs(math.log(width / height * down / across))

    nearest = min(aspects, key=distance)
    return nearest if distance(nearest) <= _NEAR else None


def new_seed() -> int:
    """A seed for a request that names none."""
    return secrets.randbelow(MAX_SEED + 1)


def calls(request: Request, limits: Limits) -> list[Request]:
    """The calls that a request of `n` pictures takes: each within `per_call`, seeds counted up from the first.

    A model with seeds gets one even when none was asked for, so that every picture can be drawn again.
    """
    seed = request.seed if request.seed is not None or not limits.has_seed else new_seed()
    made: list[Request] = []
    for first in range(0, request.n, limits.per_call):
        n = min(limits.per_call, request.n - first)
        own = None if seed is None else (seed + first) % (MAX_SEED + 1)
        made.append(msgspec.structs.replace(request, n=n, seed=own))
    return made


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refused(request: Request, field: str, rule: str) -> InvalidRequest:
    name = {"n": "the number of pictures"}.get(field, f"the {field.replace('_', ' ')}")
    return InvalidRequest(f"{name} {rule}", field=field, model=request.model)
