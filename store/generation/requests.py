"""Requests: what a job's row asks for, as calls of its provider."""

from __future__ import annotations

import uuid
from typing import Any, Final

import msgspec

from store.errors import ObjectMissing
from store.generation.errors import InvalidRequest
from store.generation.jobs import Claimed
from store.generation.limits import Model, calls
from store.generation.params import JobParams, decode_params
from store.generation.providers import Reference, Request
from store.objects.interface import Objects
from store.objects.signing import SignedUrls
from store.primary import Primary

__all__ = ["Requests"]

#: A provider fetches them when the task's turn comes.
_URL_LIFETIME_S: Final = 3600
_REFERENCES: Final = """
select id, object_key, content_type from reference_images where owner_id = $1 and id = any($2::uuid[])
"""
_IMAGES: Final = "select id, object_key, content_type from images where owner_id = $1 and id = any($2::uuid[])"


class Requests:
    """Reads jobs, and the pictures that they start from."""

    def __init__(self, primary: Primary, objects: Objects, urls: SignedUrls) -> None:
        self._primary, self._objects, self._urls = primary, objects, urls

    async def of(self, job: Claimed, model: Model, *, callback_url: str = "") -> tuple[JobParams, list[Request]]:
        """The job's parameters and its calls: the same ones whoever asks, and whenever.

        Raises:
            InvalidRequest: plain SQL wrote something that is no job, or a picture that it starts from is gone.
            PrimaryUnavailable, ObjectError: not now.
        """
        try:
            params = decode_params(job.params)
        except msgspec.MsgspecError as error:
            raise InvalidRequest(f"the job's parameters make no sense: {error}", model=model.id) from error
        request = Request(
            model=model.id,
            prompt=job.prompt,
            width=params.width,
            height=params.height,
            n=job.n,
            negative_prompt=params.negative_prompt,
            steps=params.steps,
            seed=params.seed,
            watermark=job.watermark if model.limits.has_watermark else None,
            references=await self._references(job, params, by_url=model.limits.references_by_url),
            options=params.options,
            callback_url=callback_url,
        )
        return params, calls(request, model.limits)

    async def _references(self, job: Claimed, params: JobParams, *, by_url: bool) -> tuple[Reference, ...]:
        wanted = ((_REFERENCES, params.references), (_IMAGES, params.images))
        return tuple(
            [await self._read(job, row, by_url) for sql, ids in wanted for row in await self._rows(job, sql, ids)]
        )

    async def _rows(self, job: Claimed, sql: str, ids: tuple[uuid.UUID, ...]) -> list[Any]:
        """In the order of `ids`."""
        if not ids:
            return []
        found = {row["id"]: row for row in await self._primary.fetch(sql, job.owner_id, list(ids))}
        if missing := [id for id in ids if id not in found]:
            raise InvalidRequest(f"the picture {missing[0]} to start from is gone", field="references", model=job.model)
        return [found[id] for id in ids]

    async def _read(self, job: Claimed, row: Any, by_url: bool) -> Reference:
        if not by_url:
            try:
                return Reference(await self._objects.get(row["object_key"]), row["content_type"])
            except ObjectMissing as error:
                raise InvalidRequest(
                    f"the picture {row['id']} to start from has no object", field="references", model=job.model
                ) from error
        url = await self._urls.url(row["object_key"], lifetime_s=_URL_LIFETIME_S)
        if not url.startswith("http"):
            raise InvalidRequest(
                f"{job.model} fetches references from us: set PERUSE_FILES_BASE to an address that it can reach",
                field="references", model=job.model,
            )  # fmt: skip
        return Reference(b"", row["content_type"], url)
