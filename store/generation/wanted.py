"""What a client may say when it wants pictures, and how what it does not say is filled in.

From the weakest to the strongest: the model's own values, the user's settings of the model, what a template or an
earlier generation says, the request itself.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec

from store.errors import InvalidValue
from store.generation.errors import InvalidRequest

__all__ = ["MAX_JOBS", "Name", "Parameters", "Wanted", "Whole", "layered", "said", "size_of"]

MAX_JOBS: Final = 50
"""Most jobs of one request."""
_MAX_PICTURES: Final = 64

Whole = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Name = Annotated[str, msgspec.Meta(max_length=200)]
_Prompts = Annotated[list[str], msgspec.Meta(min_length=1, max_length=MAX_JOBS)]
_Ids = Annotated[list[uuid.UUID], msgspec.Meta(max_length=_MAX_PICTURES)]
_Models = Annotated[list[Name], msgspec.Meta(min_length=1, max_length=MAX_JOBS)]
_Option = str | Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)] | float | bool
_Options = Annotated[dict[str, _Option], msgspec.Meta(max_length=20)]


class Parameters(msgspec.Struct, kw_only=True):
    """How a prompt is to be drawn; None: not said."""

    n: Whole | None = None
    image_size: Literal["512x512", "768x768", "1024x1024", "1536x1536"] | None = None
    width: Whole | None = None
    height: Whole | None = None
    steps: Whole | None = None
    seed: Whole | None = None
    negative_prompt: str | None = None
    watermark: str | None = None
    references: _Ids | None = None
    """The user's reference images to start from."""
    images: _Ids | None = None
    """The user's own pictures to start from."""
    options: _Options | None = None
    visibility: Literal["public", "unlisted"] | None = None
    parent: uuid.UUID | None = None
    """The user's own picture that the new ones descend from."""


class Wanted(Parameters, kw_only=True, forbid_unknown_fields=True):
    """One request: a prompt, many of them, a filled template, or something that was drawn before."""

    prompt: str | None = None
    prompts: _Prompts | None = None
    template: Name | None = None
    variables: dict[str, str] | None = None
    remix_of: uuid.UUID | None = None
    """A job or a picture, drawn again with all its parameters but the seed."""
    variation_of: uuid.UUID | None = None
    """A picture to start from, which the new ones descend from."""
    model: Name | None = None
    models: _Models | None = None

    def check(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            InvalidRequest: names the field.
        """
        ways = [name for name in ("prompt", "prompts", "template") if getattr(self, name) is not None]
        if len(ways) > 1:
            raise InvalidRequest(f"{ways[0]} and {ways[1]} are two ways to say what to draw: give one", field=ways[1])
        if self.models is not None and (self.model is not None or self.prompts is not None):
            raise InvalidRequest("models compares one prompt: give no model and no prompts beside it", field="models")
        if self.variables is not None and self.template is None:
            raise InvalidRequest("variables are a template's, and no template is given", field="variables")
        if self.remix_of is not None:
            for name in ("prompts", "template", "models", "variation_of"):
                if getattr(self, name) is not None:
                    raise InvalidRequest(f"remix_of draws one thing again: give no {name} beside it", field=name)
        if self.variation_of is not None and self.parent is not None:
            raise InvalidRequest("a variation descends from what it varies: give no parent beside it", field="parent")


_SIZE: Final = frozenset({"image_size", "width", "height"})


def said(parameters: Parameters) -> dict[str, Any]:
    """The parameters that were given."""
    values = ((name, getattr(parameters, name)) for name in Parameters.__struct_fields__)
    return {name: value for name, value in values if value is not None}


def layered(*layers: Mapping[str, Any]) -> Parameters:
    """Parameters of several layers, the strongest last. A size replaces a size, in whichever way each is said, and
    options are put together; what is no parameter of a picture is left out.

    Raises:
        InvalidValue: a layer that was kept has what is no parameter's value.
    """
    whole: dict[str, Any] = {}
    for layer in layers:
        if _SIZE & layer.keys():
            whole = {name: value for name, value in whole.items() if name not in _SIZE}
        options = {**(whole.get("options") or {}), **(layer.get("options") or {})}
        whole |= {name: layer[name] for name in Parameters.__struct_fields__ if layer.get(name) is not None}
        whole |= {"options": options} if options else {}
    try:
        return msgspec.convert(whole, Parameters)
    except msgspec.ValidationError as error:
        raise InvalidValue("params", f"what you keep as parameters cannot be used: {error}") from None


def size_of(parameters: Parameters, default: tuple[int, int]) -> tuple[int, int]:
    """Width and height in pixels.

    Raises:
        InvalidRequest: said twice, or by half.
    """
    size, width, height = parameters.image_size, parameters.width, parameters.height
    if size is not None:
        if width is not None or height is not None:
            raise InvalidRequest("image_size and width with height say the same: give one of them", field="image_size")
        across, _, down = size.partition("x")
        return int(across), int(down)
    if width is None and height is None:
        return default
    if width is None or height is None:
        raise InvalidRequest("width and height come together", field="height" if height is None else "width")
    return width, height
