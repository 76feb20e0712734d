"""From a request to jobs that can be drawn and paid: everything is checked here, and nothing is written.

An estimate and a creation both begin with a plan, so what one says is what the other takes.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final, Literal, NamedTuple

from msgspec import structs

from store import model_settings, own_keys, templates
from store.errors import InvalidValue, NoProviderKey
from store.generation.catalog import Catalog
from store.generation.errors import InvalidRequest, PromptRequired
from store.generation.limits import Model, new_seed
from store.generation.originals import image_original, own_pictures, own_references, remix_original
from store.generation.params import JobParams, encode_params
from store.generation.providers import Reference, Request
from store.generation.remixing import fitted
from store.generation.wanted import Parameters, Wanted, layered, said, size_of
from store.objects.watermark import MAX_WATERMARK_CHARS, writable
from store.primary import Connection
from store.text import check_text

__all__ = ["DEFAULT_SIZE", "BatchKind", "Draft", "Plan", "plan"]

DEFAULT_SIZE: Final = (1024, 1024)
#: As the column of an image takes it.
_MAX_PROMPT_BYTES: Final = 32_000
#: Of the parameters as JSON: less than their column takes, for Postgres writes some numbers longer.
_MAX_PARAMS_BYTES: Final = 15_000

BatchKind = Literal["batch", "comparison"]


class Draft(NamedTuple):
    """One job to be made. `price_tenths` of all its pictures, in tenths of a credit; `usd` is what the provider is
    expected to take; `low_s` to `high_s` how long it is expected to take."""

    model: Model
    kind: Literal["TEXT_TO_IMAGE", "IMAGE_TO_IMAGE"]
    prompt: str
    params: JobParams
    watermark: str | None
    n: int
    own_key: bool
    price_tenths: int
    usd: Decimal
    low_s: float
    high_s: float

    @property
    def image_size(self) -> str:
        return f"{self.params.width}x{self.params.height}"


class Plan(NamedTuple):
    """All jobs of a request. `kind` is None for a request of a single job; `dropped` names what a remix leaves out
    because its model does not take it."""

    drafts: tuple[Draft, ...]
    kind: BatchKind | None
    dropped: tuple[str, ...]

    @property
    def price_tenths(self) -> int:
        return sum(draft.price_tenths for draft in self.drafts)


class _Source(NamedTuple):
    """What is to be drawn, before its model is known."""

    prompts: tuple[str, ...]
    layer: Mapping[str, Any]
    model: str | None = None
    template_id: uuid.UUID | None = None
    is_remix: bool = False
    gone: tuple[str, ...] = ()


async def plan(connection: Connection, user: str, wanted: Wanted, catalog: Catalog) -> Plan:
    """The jobs that `wanted` asks for.

    Raises:
        InvalidRequest, InvalidValue: something cannot be drawn; names the field.
        NotFound: the user has no such picture, reference, template or job.
        NoProviderKey: nobody has a key at the model's provider.
    """
    wanted.check()
    source = await _source(connection, user, wanted, catalog)
    given = said(wanted)
    ids = wanted.models or [wanted.model or source.model or catalog.default]
    seed = new_seed() if wanted.models else None  # models are compared on the same dice
    drafts: list[Draft] = []
    dropped = dict.fromkeys(source.gone)
    for id in ids:
        model = catalog.models.of(id)
        own_key = await _has_own_key(connection, user, model, catalog)
        layer = source.layer
        if source.is_remix:
            layer, left_out = fitted(model, source.prompts[0], layer, given, DEFAULT_SIZE)
            dropped |= dict.fromkeys(left_out)
        settings = {} if source.is_remix else await model_settings.settings_of(connection, user, model.id)
        parameters = layered(settings, layer, given)
        drafts += [_draft(catalog, model, prompt, parameters, own_key, seed, source) for prompt in source.prompts]
    await own_references(connection, user, {row_id for draft in drafts for row_id in draft.params.references})
    shown = {row_id for draft in drafts for row_id in draft.params.images}
    parents = {draft.params.parent_id for draft in drafts if draft.params.parent_id is not None}
    await own_pictures(connection, user, shown, parents)
    kind: BatchKind | None = "comparison" if wanted.models else "batch" if wanted.prompts else None
    return Plan(tuple(drafts), kind, tuple(dropped))


async def _source(connection: Connection, user: str, wanted: Wanted, catalog: Catalog) -> _Source:
    if wanted.remix_of is not None:
        original = await remix_original(connection, user, wanted.remix_of)
        model = original.model if original.model in catalog.models else None
        prompt = original.prompt if wanted.prompt is None else wanted.prompt
        return _Source((prompt,), original.layer, model, is_remix=True, gone=original.gone)
    layer: dict[str, Any] = {}
    prompts = wanted.prompts or ([] if wanted.prompt is None else [wanted.prompt])
    model, template_id = None, None
    if wanted.template is not None:
        filled = await templates.filled(connection, user, wanted.template, wanted.variables or {})
        layer, prompts, template_id = dict(filled.params), [filled.prompt], filled.id
        model = layer.pop("model", None)
    if wanted.variation_of is not None:
        varied = await image_original(connection, user, wanted.variation_of)
        prompts = prompts or [varied.prompt]
        layer["parent"] = wanted.variation_of
        layer["images"] = [wanted.variation_of]
    if not prompts:
        raise PromptRequired("there is no prompt")
    return _Source(tuple(prompts), layer, model, template_id)


async def _has_own_key(connection: Connection, user: str, model: Model, catalog: Catalog) -> bool:
    """Whether the user's own key is used: it goes before ours.

    Raises:
        NoProviderKey: there is neither.
    """
    if await own_keys.has_own_key(connection, user, model.provider):
        return True
    if model.provider not in catalog.with_keys:
        raise NoProviderKey(model.provider, model.id)
    return False


def _draft(
    catalog: Catalog, model: Model, prompt: str, parameters: Parameters, own_key: bool, seed: int | None,
    source: _Source,
) -> Draft:  # fmt: skip
    limits, n = model.limits, 1 if parameters.n is None else parameters.n
    width, height = size_of(parameters, DEFAULT_SIZE)
    images, references = parameters.images or [], parameters.references or []
    if source.layer.get("images") and not source.is_remix:  # what is varied comes first, whatever else is given
        varied = source.layer["images"]
        images = [*varied, *(row_id for row_id in images if row_id not in varied)]
    # They are there for the count: whoever draws reads them.
    shown = tuple(Reference(b"", "image/png", "https://") for _ in (*references, *images))
    request = Request(
        model=model.id, prompt=prompt, width=width, height=height, n=n, negative_prompt=parameters.negative_prompt,
        steps=parameters.steps, seed=parameters.seed, watermark=parameters.watermark, references=shown,
        options=parameters.options or {},
    )  # fmt: skip
    # Where the model writes no watermark, it is written on the picture.
    limits.check(request if limits.has_watermark else structs.replace(request, watermark=None), most=limits.max_n)
    _check_texts(request)
    drawn_with = parameters.seed
    if drawn_with is None and limits.has_seed:
        drawn_with = new_seed() if seed is None else seed
    steps = parameters.steps
    if steps is None and limits.steps is not None:
        steps = limits.steps.default
    params = JobParams(
        width=width, height=height, steps=steps, seed=drawn_with, negative_prompt=parameters.negative_prompt or None,
        options=parameters.options or {}, references=tuple(references), images=tuple(images),
        visibility=parameters.visibility or "unlisted", template_id=source.template_id, parent_id=parameters.parent,
    )  # fmt: skip
    if len(encode_params(params).encode()) > _MAX_PARAMS_BYTES:
        raise InvalidValue("options", f"options and negative_prompt are together over {_MAX_PARAMS_BYTES} bytes")
    calls, pace = -(-n // limits.per_call), model.pace_of(width, height)
    return Draft(
        model=model,
        kind="IMAGE_TO_IMAGE" if shown else "TEXT_TO_IMAGE",
        prompt=prompt,
        params=params,
        watermark=parameters.watermark or None,
        n=n,
        own_key=own_key,
        price_tenths=0 if own_key else catalog.prices.credits_tenths(model.id, width, height, n),
        usd=catalog.prices.usd(model.id, width, height, n),
        low_s=pace.low_s,
        high_s=pace.high_s * calls,
    )


def _check_texts(request: Request) -> None:
    """Refuse what Postgres, or an image's row, does not take."""
    check_text("prompt", request.prompt, max_bytes=_MAX_PROMPT_BYTES)
    check_text("negative_prompt", request.negative_prompt or "", max_bytes=_MAX_PROMPT_BYTES)
    for option, value in request.options.items():
        check_text("options", f"{option}{value}")
    watermark = request.watermark
    if not watermark:
        return
    if len(watermark) > MAX_WATERMARK_CHARS or not watermark.isprintable():
        raise InvalidRequest(f"the watermark is not one line of at most {MAX_WATERMARK_CHARS} signs", field="watermark")
    if not writable(watermark):
        raise InvalidRequest(f"the watermark's font has none of the signs of {watermark!r}", field="watermark")
