"""A remix: the parameters of another generation, less what the chosen model does not take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from store.generation.catalog import draws
from store.generation.limits import Model
from store.generation.providers import Request

__all__ = ["fitted"]


def fitted(
    model: Model, prompt: str, layer: Mapping[str, Any], given: Mapping[str, Any], default_size: tuple[int, int]
) -> tuple[dict[str, Any], list[str]]:
    """`layer` as `model` can draw it, and the names of what was left out. What the request itself says is not judged
    here: it is refused later, if it has to be."""
    limits, kept = model.limits, {name: value for name, value in layer.items() if name not in given}
    options = {
        name: value for name, value in (layer.get("options") or {}).items() if name not in given.get("options", ())
    }
    if {"image_size", "width", "height"} & given.keys():
        kept.pop("width", None), kept.pop("height", None)
    request = Request(
        model=model.id, prompt=prompt, width=1, height=1, negative_prompt=kept.get("negative_prompt"),
        options=options,
    )  # fmt: skip
    dropped = list(limits.dropped(request))
    steps = kept.get("steps")
    if steps is not None and not (limits.steps and limits.steps.least <= steps <= limits.steps.most):
        dropped.append("steps")
    width, height = kept.get("width", default_size[0]), kept.get("height", default_size[1])
    if "width" in kept and not draws(limits, width, height):
        dropped += ["width", "height"]
    if kept.get("n", 1) > limits.max_n:
        dropped.append("n")
    shown = [*(given.get("references") or kept.get("references") or ()), *(kept.get("images") or ())]
    if len(shown) > limits.max_references:
        dropped += [name for name in ("references", "images") if kept.get(name)]
    kept["options"] = {name: value for name, value in options.items() if name not in dropped}
    return {name: value for name, value in kept.items() if name not in dropped}, dropped
