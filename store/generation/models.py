"""The models and what each can do. One table drives validation, estimates, forms and `GET /api/models`.

Numbers are the providers' own documents'. Where a provider names a size by its proportions, `aspects` lists them and
the adapter translates: the sizes here are always pixels. What would change the provider's price (a quality, four
thousand pixels a side) is not offered: the estimate is what is paid.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Final

import msgspec

from store.generation.errors import InvalidRequest
from store.generation.limits import Limits, Model, Pace, Steps
from store.generation.providers import Request

__all__ = ["DOCUMENTS_MODEL", "SQUARES", "TABLE", "Models"]

SQUARES: Final = (512, 768, 1024, 1536)
"""The sizes that a client may name by one number."""
DOCUMENTS_MODEL: Final = "@cf/stabilityai/stable-diffusion-xl-base-1.0"

_SLOW: Final = (
    Pace(512 * 512, 15, 30, 60),
    Pace(768 * 768, 25, 45, 120),
    Pace(1024 * 1024, 45, 90, 180),
    Pace(1536 * 1536, 120, 300, 360),
)
_FAST: Final = (Pace(1024 * 1024, 2, 15, 60), Pace(1536 * 1536, 4, 30, 120))
_OWN: Final = (Pace(1024 * 1024, 0.1, 2, 60), Pace(2048 * 2048, 0.3, 5, 60))


_SQUARE: Final = tuple((px, px) for px in SQUARES)
_GEMINI: Final = ("1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9")
_SDXL: Final = Limits(
    min_px=256, steps=Steps(1, 20, 20), has_seed=True, has_negative_prompt=True, max_references=1,
    options=("guidance", "strength"),
)  # fmt: skip
_FLUX_2: Final = Limits(min_px=256, max_px=1920, has_seed=True, max_references=4, options=("guidance",))
_GPT: Final = Limits(
    sizes=((1024, 1024), (1536, 1024), (1024, 1536)), max_references=16, max_n=10, per_call=10, max_prompt=32_000,
    options=("background",),
)  # fmt: skip
_REPLICATE_FLUX: Final = Limits(
    aspects=("1:1", "16:9", "21:9", "3:2", "2:3", "4:5", "5:4", "3:4", "4:3", "9:16", "9:21"), min_px=256,
    max_px=1536, has_seed=True,
)  # fmt: skip
_FAL_FLUX: Final = Limits(min_px=256, max_px=1536, multiple_of=16, has_seed=True)
_with = msgspec.structs.replace

TABLE: Final = (
    Model(
        id="builtin", provider="builtin", name="Builtin", pace=_OWN,
        limits=Limits(has_seed=True, has_watermark=True, max_n=8),
    ),
    # Workers AI. Steps above the limit are refused there, not cut.
    Model(id=DOCUMENTS_MODEL, provider="workers_ai", name="SDXL Base 1.0", pace=_FAST, limits=_SDXL),
    Model(
        id="@cf/bytedance/stable-diffusion-xl-lightning", provider="workers_ai", name="SDXL Lightning", pace=_FAST,
        limits=_SDXL,
    ),
    Model(
        id="@cf/lykon/dreamshaper-8-lcm", provider="workers_ai", name="DreamShaper 8 LCM", pace=_FAST, limits=_SDXL
    ),
    Model(
        id="@cf/leonardo/phoenix-1.0", provider="workers_ai", name="Phoenix 1.0", pace=_FAST,
        limits=Limits(steps=Steps(1, 50, 25), has_seed=True, has_negative_prompt=True, options=("guidance",)),
    ),
    Model(
        id="@cf/leonardo/lucid-origin", provider="workers_ai", name="Lucid Origin", pace=_FAST,
        limits=Limits(max_px=2500, steps=Steps(1, 40, 20), has_seed=True, options=("guidance",)),
    ),
    Model(  # Its schema has a prompt and steps, and refuses everything else.
        id="@cf/black-forest-labs/flux-1-schnell", provider="workers_ai", name="FLUX.1 schnell", pace=_FAST,
        limits=Limits(sizes=((1024, 1024),), steps=Steps(1, 8, 4), max_prompt=2048),
    ),
    Model(
        id="@cf/black-forest-labs/flux-2-dev", provider="workers_ai", name="FLUX.2 dev", pace=_SLOW,
        limits=_with(_FLUX_2, steps=Steps(1, 50, 25)),
    ),
    Model(
        id="@cf/black-forest-labs/flux-2-klein-4b", provider="workers_ai", name="FLUX.2 klein 4B", pace=_FAST,
        limits=_FLUX_2,
    ),
    # OpenAI. No model there takes a seed.
    Model(
        id="openai/gpt-image-1", provider="openai", name="GPT Image 1", pace=_SLOW, limits=_GPT
    ),
    Model(
        id="openai/gpt-image-1-mini", provider="openai", name="GPT Image 1 mini",
        pace=_SLOW, limits=_GPT,
    ),
    Model(
        id="openai/dall-e-3", provider="openai", name="DALL-E 3", pace=_SLOW,
        limits=Limits(sizes=((1024, 1024), (1792, 1024), (1024, 1792)), options=("style",)),
    ),
    Model(
        id="openai/dall-e-2", provider="openai", name="DALL-E 2", pace=_SLOW,
        limits=Limits(sizes=((256, 256), (512, 512), (1024, 1024)), max_n=10, per_call=10, max_prompt=1000),
    ),
    # OpenRouter. One picture per call: its n is only an upper bound.
    Model(
        id="google/gemini-2.5-flash-image", provider="openrouter", name="Gemini 2.5 Flash Image", pace=_SLOW,
        limits=Limits(aspects=_GEMINI, min_px=512, max_px=1536, max_references=16),
    ),
    Model(
        id="bytedance-seed/seedream-4.5", provider="openrouter", name="Seedream 4.5", pace=_SLOW,
        limits=Limits(min_px=512, has_seed=True, max_references=16),
    ),
    # Nanobanana. It draws proportions; the four sizes are squares to it. One result per task is all it documents.
    Model(
        id="nanobanana", provider="nanobanana", name="Nano Banana", pace=_SLOW,
        limits=Limits(sizes=_SQUARE, has_watermark=True, max_references=4, references_by_url=True),
    ),
    Model(
        id="nanobanana-2", provider="nanobanana", name="Nano Banana 2", pace=_SLOW,
        limits=Limits(
            aspects=_GEMINI, min_px=512, max_references=14, references_by_url=True, max_prompt=20_000,
        ),
    ),
    # Replicate: official models only, which need no version.
    Model(
        id="replicate/black-forest-labs/flux-schnell", provider="replicate", name="FLUX.1 schnell (Replicate)",
        pace=_FAST, limits=_with(_REPLICATE_FLUX, steps=Steps(1, 4, 4)),
    ),
    Model(
        id="replicate/black-forest-labs/flux-dev", provider="replicate", name="FLUX.1 dev (Replicate)", pace=_SLOW,
        limits=_with(
            _REPLICATE_FLUX, steps=Steps(1, 50, 28), max_references=1, options=("guidance", "prompt_strength")
        ),
    ),
    Model(
        id="fal-ai/flux/schnell", provider="fal", name="FLUX.1 schnell (fal)", pace=_FAST,
        limits=_with(_FAL_FLUX, steps=Steps(1, 12, 4)),
    ),
    Model(
        id="fal-ai/flux/dev", provider="fal", name="FLUX.1 dev (fal)", pace=_SLOW,
        limits=_with(_FAL_FLUX, steps=Steps(1, 50, 28), max_references=1, options=("guidance_scale", "strength")),
    ),
)  # fmt: skip


class Models(Mapping[str, Model]):
    """The models of this installation: those of the table, and more that an operator says are like one of them."""

    def __init__(self, more: Mapping[str, str] | None = None) -> None:
        """`more`: new id → id of a model whose provider and limits it has."""
        self._models = {model.id: model for model in TABLE}
        for new, like in (more or {}).items():
            self._models[new] = _with(self._models[like], id=new, name=new)

    def __getitem__(self, id: str) -> Model:
        return self._models[id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

    def of(self, id: str) -> Model:
        """Raises: InvalidRequest when there is no such model."""
        try:
            return self._models[id]
        except KeyError:
            raise InvalidRequest(f"there is no model {id!r}", field="model", model=id) from None

    def checked(self, request: Request) -> Model:
        """The model of one call that is within its limits. Raises: InvalidRequest, PromptRequired."""
        model = self.of(request.model)
        model.limits.check(request)
        return model

    def default(self, wished: str, with_keys: Container[str]) -> str:
        """The model of a request that names none: the operator's wish, else the documents' one, else `builtin`.

        `with_keys`: the providers that can be used. Raises: InvalidRequest when the wish is no model.
        """
        if wished:
            return self.of(wished).id
        return DOCUMENTS_MODEL if self[DOCUMENTS_MODEL].provider in with_keys else "builtin"
