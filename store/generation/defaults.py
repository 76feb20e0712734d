"""Parameters that a user keeps for later requests: in a template, or as the settings of a model.

They are the fields of a request for a generation, by the same names. A request that says one itself overrides it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

from store.errors import InvalidValue
from store.generation.errors import InvalidRequest
from store.generation.limits import MAX_SEED, Model
from store.generation.models import SQUARES
from store.generation.providers import Request
from store.text import check_text

__all__ = ["Defaults", "check_for", "encode_defaults", "read_defaults"]

#: Together well below what the column takes: Postgres writes a number such as 1e-300 with all its digits.
_MAX_BYTES: Final = 8_000
_MAX_OPTIONS: Final = 20
#: What every reader of JSON gives back exactly. Postgres writes a larger one as a whole number that few can read.
_MAX_NUMBER: Final = 2**53
_MAX_PX: Final = 8_192


class Defaults(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What may be kept; None: not said."""

    model: str | None = None
    """Of a template; the settings of a model are for that one."""
    image_size: Literal["512x512", "768x768", "1024x1024", "1536x1536"] | None = None
    width: int | None = None
    height: int | None = None
    n: int | None = None
    steps: int | None = None
    seed: int | None = None
    negative_prompt: str | None = None
    watermark: str | None = None
    visibility: Literal["public", "unlisted"] | None = None
    options: Mapping[str, str | int | float | bool] | None = None
    """What only the model knows, by the provider's names."""


def read_defaults(raw: Mapping[str, Any]) -> Defaults:
    """`raw` with every rule checked that no model is needed for.

    Raises:
        InvalidValue: names the field.
    """
    try:
        defaults = msgspec.convert(raw, Defaults)
    except msgspec.ValidationError as error:
        raise InvalidValue("params", f"params are not valid: {error}") from None
    if defaults.image_size is not None and (defaults.width, defaults.height) != (None, None):
        raise InvalidValue("image_size", "image_size and width with height say the same: give one of them")
    if (defaults.width is None) != (defaults.height is None):
        raise InvalidValue("width", "width and height come together")
    for name, most in (("width", _MAX_PX), ("height", _MAX_PX), ("n", 64), ("steps", 1000)):
        value = getattr(defaults, name)
        if value is not None and not 1 <= value <= most:
            raise InvalidValue(name, f"{name} must be 1 to {most}, got {value}")
    if defaults.seed is not None and not 0 <= defaults.seed <= MAX_SEED:
        raise InvalidValue("seed", f"seed must be 0 to {MAX_SEED}, got {defaults.seed}")
    for name in ("model", "negative_prompt", "watermark"):
        check_text(name, getattr(defaults, name) or "")
    for option, given in (defaults.options or {}).items():
        check_text("options", f"{option}{given}")
        if not isinstance(given, str) and abs(given) > _MAX_NUMBER:
            raise InvalidValue("options", f"{option[:40]!r} of options is a number beyond {_MAX_NUMBER}")
    if len(defaults.options or {}) > _MAX_OPTIONS:
        raise InvalidValue("options", f"options are more than {_MAX_OPTIONS}")
    check_text("params", encode_defaults(defaults), max_bytes=_MAX_BYTES)
    return defaults


def encode_defaults(defaults: Defaults) -> str:
    """JSON with what was said."""
    return msgspec.json.encode(defaults).decode()


def check_for(model: Model, defaults: Defaults) -> None:
    """Refuse what `model` could not draw.

    Raises:
        InvalidValue: names the field, in words that name the limit.
    """
    width, height = _size(model, defaults)
    # Without the watermark: where the model writes none, it is written when the picture is finished.
    request = Request(
        model=model.id, prompt="a picture", width=width, height=height, n=defaults.n or 1,
        negative_prompt=defaults.negative_prompt, steps=defaults.steps, seed=defaults.seed,
        options=defaults.options or {},
    )  # fmt: skip
    try:
        model.limits.check(request, most=model.limits.max_n)
    except InvalidRequest as error:
        raise InvalidValue(error.field, str(error)) from None


def _size(model: Model, defaults: Defaults) -> tuple[int, int]:
    if defaults.width is not None and defaults.height is not None:
        return defaults.width, defaults.height
    if defaults.image_size is not None:
        side = int(defaults.image_size.partition("x")[0])
        return side, side
    if model.limits.sizes:  # none was said, and one that the model draws breaks no rule of it
        return model.limits.sizes[0]
    side = next(px for px in SQUARES if px >= model.limits.min_px)
    return side, side
