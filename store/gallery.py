"""What can be asked of a user's data: images and references here, jobs in `job_lists`, accounts and usage in `usage`.

Every question has canonical bytes, by which hosts and gateways keep its answer.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import ClassVar, Literal

import msgspec

from store import parameters as read
from store.job_lists import JobQuery, JobsQuery
from store.lists import Condition, ListQuery, OneQuery, with_page_token
from store.parameters import Parameters
from store.usage import AccountQuery, StatsQuery

__all__ = [
    "GalleryQuery",
    "ImageQuery",
    "Query",
    "ReferenceQuery",
    "ReferencesQuery",
    "decode_query",
    "encode_query",
    "parse_gallery_query",
    "parse_references_query",
    "query_hash",
]


class GalleryQuery(ListQuery, frozen=True, array_like=True, tag=1):
    """One page of a user's images."""

    kind: ClassVar[str] = "images"
    model: str | None = None
    visibility: Literal["public", "unlisted"] | None = None
    starred: bool | None = None
    trashed: bool = False

    @property
    def name(self) -> str:
        return "images"

    def conditions(self) -> list[Condition]:
        given = (
            Condition("model", "=", self.model),
            Condition("visibility", "=", self.visibility),
            Condition("starred", "=", self.starred),
        )
        trashed = Condition("trashed_at", "<>" if self.trashed else "=", None)
        return [trashed, *(condition for condition in given if condition.value is not None)]


class ImageQuery(OneQuery, frozen=True, array_like=True, tag=2):
    """One image by its id, in the trash or not."""

    kind: ClassVar[str] = "images"
    noun: ClassVar[str] = "Image"


class ReferencesQuery(ListQuery, frozen=True, array_like=True, tag=3):
    """One page of a user's reference images."""

    kind: ClassVar[str] = "reference_images"

    @property
    def name(self) -> str:
        return "references"

    def conditions(self) -> list[Condition]:
        return []


class ReferenceQuery(OneQuery, frozen=True, array_like=True, tag=4):
    """One reference image by its id."""

    kind: ClassVar[str] = "reference_images"
    noun: ClassVar[str] = "Reference image"


Query = GalleryQuery | ImageQuery | ReferencesQuery | ReferenceQuery | JobsQuery | JobQuery | StatsQuery | AccountQuery

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Query] = msgspec.msgpack.Decoder(Query)


def encode_query(query: Query) -> bytes:
    """The query's canonical bytes: equal queries have equal bytes, on every host."""
    return _encoder.encode(query)


@lru_cache(maxsize=4096)
def decode_query(encoded: bytes) -> Query:
    """The query that `encode_query` made bytes of.

    Raises:
        msgspec.ValidationError: not such bytes.
    """
    return _decoder.decode(encoded)


def query_hash(encoded: bytes, fingerprint: int) -> str:
    """12 hex digits for ETags: the query, and what its documents look like."""
    return hashlib.blake2b(encoded, digest_size=6, salt=fingerprint.to_bytes(8, "big")).hexdigest()


_PARAMETERS = ("limit", "page_token", "sort", "model", "visibility", "starred", "trashed")


def parse_gallery_query(parameters: Parameters) -> GalleryQuery:
    """The query that a URL's parameters ask for.

    Raises:
        InvalidQuery: an unknown or repeated parameter, or a value out of its range; names the parameter.
    """
    values = read.known(parameters, _PARAMETERS)
    query = GalleryQuery(
        **read.page(values),
        model=read.text(values, "model"),
        visibility=read.choice(values, "visibility", ("public", "unlisted")),  # type: ignore[arg-type]
        starred=read.flag(values, "starred"),
        trashed=read.flag(values, "trashed") or False,
    )
    return with_page_token(query, values.get("page_token"))


def parse_references_query(parameters: Parameters) -> ReferencesQuery:
    """As `parse_gallery_query`, of references.

    Raises:
        InvalidQuery: names the parameter.
    """
    values = read.known(parameters, ("limit", "page_token", "sort"))
    return with_page_token(ReferencesQuery(**read.page(values)), values.get("page_token"))
