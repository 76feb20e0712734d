"""The parameters of a job: all that is needed to draw it again, as they stand in `jobs.params`.

Written when the job is made, after every check, with the seed that will be used; read by the runner and by a remix.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Literal

import msgspec

__all__ = ["JobParams", "decode_params", "encode_params"]


class JobParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What `jobs` has no column for. Defaults are left out of the JSON."""

    width: int
    height: int
    steps: int | None = None
    seed: int | None = None
    """Of the first picture, the others count up; None for models without seeds."""
    negative_prompt: str | None = None
    options: Mapping[str, str | int | float | bool] = {}
    """What only the model knows; `Limits.options` lists them."""
    references: tuple[uuid.UUID, ...] = ()
    """Rows of `reference_images` to start from."""
    images: tuple[uuid.UUID, ...] = ()
    """Own rows of `images` to start from, behind the references."""
    visibility: Literal["public", "unlisted"] = "unlisted"
    template_id: uuid.UUID | None = None
    parent_id: uuid.UUID | None = None
    """The picture that the new ones descend from: their `images.parent_id`, if it is still there."""


def encode_params(params: JobParams) -> str:
    return msgspec.json.encode(params).decode()


def decode_params(source: str | bytes) -> JobParams:
    """Raises: msgspec.ValidationError when plain SQL wrote something else."""
    return msgspec.json.decode(source, type=JobParams)
