"""Generations: asked for, priced, looked at and canceled."""

from __future__ import annotations

import hashlib
import re
import time
import uuid
from collections.abc import Iterator
from typing import Final

import msgspec
from aiohttp import web

from gateway.errors import BadRequest, NotGenerated
from gateway.generating import Key, Made, estimate, look, look_at_batch, made_at, make, told_one
from gateway.middleware import WAITED_S
from gateway.payloads import batch_id, decode_json, generation_id, read_body
from gateway.routes.context import GATEWAY, caller, only_parameters, written
from store.epoch import Bookmark
from store.errors import PrimaryUnavailable
from store.generation.canceling import cancel
from store.generation.errors import GenerationError
from store.generation.states import Generation, generations
from store.generation.wanted import Name, Wanted, Whole
from store.primary import Connection

__all__ = [
    "cancel_generation",
    "create_generation",
    "estimate_generation",
    "generate_image",
    "get_batch",
    "get_generation",
]

#: Fifty long prompts.
_MAX_BODY_BYTES: Final = 2**20
#: Longest time that a request waits for its pictures, in seconds.
MAX_WAIT_S: Final = 60
#: When to look again for who polls, in seconds.
_LOOK_AGAIN_S: Final = "1"
_WAIT: Final = re.compile(r"wait\s*=\s*\"?([0-9]{1,4})\"?", re.IGNORECASE)
_KEY: Final = re.compile(r"[!-~]([ -~]{0,253}[!-~])?")


def _kinds(kind: type[GenerationError]) -> Iterator[type[GenerationError]]:
    yield kind
    for narrower in kind.__subclasses__():
        yield from _kinds(narrower)


#: Code of a job's error → what its user can do about it.
_ADVICE: Final = {kind.code: kind.advice for kind in _kinds(GenerationError)}


async def create_generation(request: web.Request) -> web.Response:
    """POST /api/generations: one job, or many. With `Prefer: wait=N` the answer comes at the end, N seconds later at
    most."""
    user = (await caller(request)).user
    only_parameters(request)
    wait_s = _wished_wait(request)
    made = await _make(request, user, Wanted)
    try:
        body, bookmark = await _told_at_the_end(request, user, made, wait_s)
    except (TimeoutError, PrimaryUnavailable):
        return _accepted(made)  # it was made: that is what the client has to know
    response = written(body, bookmark, status=201)
    response.headers["Location"] = made.reply.location or ""
    response.headers["Preference-Applied"] = f"wait={wait_s}"
    return _replayed(response, made)


async def _told_at_the_end(request: web.Request, user: str, made: Made, wait_s: float) -> tuple[bytes, Bookmark]:
    """Raises: TimeoutError when it is not over in time."""
    ids = await _ended(request, user, made, wait_s)
    gateway, location = request.app[GATEWAY], made.reply.location or ""
    if location.startswith("/api/batches/"):
        body, bookmark = await look_at_batch(gateway, user, uuid.UUID(location.rpartition("/")[2]))
        return body, bookmark or made.bookmark
    generation = await look(gateway, user, ids[0])
    return told_one(generation, **_dropped(made)), generation.at


class _Remixed(msgspec.Struct):
    dropped: list[str] | None = None


def _dropped(made: Made) -> dict[str, list[str]]:
    """What a remix said that it leaves out, when it was made."""
    dropped = msgspec.json.decode(made.reply.body, type=_Remixed).dropped
    return {} if dropped is None else {"dropped": dropped}


class ImageRequest(msgspec.Struct, forbid_unknown_fields=True):
    """What the first clients of this API send to POST /api/images."""

    prompt: str | None = None
    model: Name | None = None
    steps: Whole | None = None
    seed: Whole | None = None


async def generate_image(request: web.Request) -> web.Response:
    """POST /api/images: one picture, once it is there; 202 with the job's address when that takes too long."""
    user = (await caller(request)).user
    only_parameters(request)
    made = await _make(request, user, ImageRequest)
    try:
        ids = await _ended(request, user, made, MAX_WAIT_S)
        generation = await look(request.app[GATEWAY], user, ids[0])
    except (TimeoutError, PrimaryUnavailable):
        return _accepted(made)
    if not generation.images:
        raise _no_image(generation)
    body = b'{"success":true,"image":%s}' % generation.images[0]
    return _replayed(written(body, generation.at), made)


def _no_image(generation: Generation) -> NotGenerated:
    code = generation.error_code or GenerationError.code
    return NotGenerated(code, _ADVICE.get(code, GenerationError.advice))


async def estimate_generation(request: web.Request) -> web.Response:
    """POST /api/generations/estimate: what the same body would cost, sent to /api/generations."""
    user = (await caller(request)).user
    only_parameters(request)
    wanted = decode_json(await read_body(request, max_bytes=_MAX_BODY_BYTES), Wanted)
    body = await estimate(request.app[GATEWAY], user, wanted)
    return web.Response(body=body, content_type="application/json", headers={"Cache-Control": "no-store"})


async def get_generation(request: web.Request) -> web.Response:
    """GET /api/generations/{id}: the job with its pictures; how far it is while it has none."""
    user = (await caller(request)).user
    only_parameters(request)
    generation = await look(request.app[GATEWAY], user, generation_id(request))
    return written(told_one(generation), generation.at)


async def get_batch(request: web.Request) -> web.Response:
    """GET /api/batches/{id}: all jobs of one request, and what they cost together."""
    user = (await caller(request)).user
    only_parameters(request)
    body, bookmark = await look_at_batch(request.app[GATEWAY], user, batch_id(request))
    if bookmark is None:
        return web.Response(body=body, content_type="application/json", headers={"Cache-Control": "no-store"})
    return written(body, bookmark)


async def cancel_generation(request: web.Request) -> web.Response:
    """DELETE /api/generations/{id}: 200 when it is over, 202 when its provider is asked to stop."""
    user = (await caller(request)).user
    only_parameters(request)
    gateway, job_id = request.app[GATEWAY], generation_id(request)

    async def transaction(connection: Connection) -> tuple[str, Generation]:
        outcome = await cancel(connection, user, job_id)
        return outcome, (await generations(connection, user, [job_id], gateway.documents))[0]

    (outcome, generation), bookmark = await gateway.write(user, transaction)
    return written(told_one(generation), bookmark, status=200 if outcome == "canceled" else 202)


# --- asking, and waiting ----------------------------------------------------------------------------------------


async def _make(request: web.Request, user: str, shape: type[Wanted] | type[ImageRequest]) -> Made:
    given = request.headers.getall("Idempotency-Key", [])
    body = await read_body(request, max_bytes=_MAX_BODY_BYTES)
    decoded = decode_json(body, shape)
    wanted = decoded if isinstance(decoded, Wanted) else Wanted(**msgspec.structs.asdict(decoded))
    return await make(request.app[GATEWAY], user, wanted, _key(request, given, body) if given else None)


def _key(request: web.Request, given: list[str], body: bytes) -> Key:
    """As the header's draft writes it, in quotes, or bare."""
    text = given[0].strip()
    text = text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text
    if len(given) > 1 or _KEY.fullmatch(text) is None:
        raise BadRequest("Idempotency-Key must be 1 to 255 printable ASCII characters", field="Idempotency-Key")
    return Key(text, hashlib.sha256(f"{request.method} {request.path}\n".encode() + body).digest())


def _wished_wait(request: web.Request) -> int:
    """Seconds that the client wants to wait; a wish that is none is not heard (RFC 7240)."""
    for header in request.headers.getall("Prefer", []):
        for wish in re.split(r"[,;]", header):
            if (match := _WAIT.fullmatch(wish.strip())) is not None:
                return min(int(match[1]), MAX_WAIT_S)
    return 0


async def _ended(request: web.Request, user: str, made: Made, wait_s: float) -> list[uuid.UUID]:
    """The jobs that were made, once all are over.

    Raises:
        TimeoutError: that is not within the time.
    """
    if wait_s <= 0:
        raise TimeoutError
    gateway = request.app[GATEWAY]
    started = time.perf_counter()
    try:
        ids = await made_at(gateway, user, made.reply.location or "")
        if not await gateway.following.wait(user, ids, wait_s):
            raise TimeoutError
        return ids
    finally:
        request[WAITED_S] = time.perf_counter() - started


def _accepted(made: Made) -> web.Response:
    response = written(made.reply.body, made.bookmark, status=made.reply.status)
    response.headers["Retry-After"] = _LOOK_AGAIN_S
    if made.reply.location is not None:
        response.headers["Location"] = made.reply.location
    return _replayed(response, made)


def _replayed(response: web.Response, made: Made) -> web.Response:
    if made.is_replayed:
        response.headers["Idempotency-Replayed"] = "true"
    return response
