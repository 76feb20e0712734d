"""Generations: asked for, priced, followed and canceled."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
import uuid
from typing import Final

import msgspec
from aiohttp import web

from gateway.errors import BadRequest, NotGenerated, Unauthorized
from gateway.generating import Key, Made, estimate, look, look_at_batch, made_at, make, told_one
from gateway.middleware import WAITED_S, allow_origin
from gateway.payloads import batch_id, decode_json, generation_id, read_body
from gateway.routes.context import GATEWAY, caller, no_parameters, written
from store.errors import PrimaryUnavailable
from store.generation.canceling import cancel
from store.generation.errors import GenerationError
from store.generation.states import Generation, State, generations
from store.generation.wanted import Name, Wanted, Whole
from store.primary import Connection

__all__ = [
    "cancel_generation",
    "create_generation",
    "estimate_generation",
    "follow_generation",
    "generate_image",
    "get_batch",
    "get_generation",
]

#: Fifty long prompts.
_MAX_BODY_BYTES: Final = 2**20
#: Longest time that a request waits for its pictures, in seconds.
MAX_WAIT_S: Final = 60
_WAIT: Final = re.compile(r"wait\s*=\s*\"?([0-9]{1,4})\"?", re.IGNORECASE)
_KEY: Final = re.compile(r"[!-~]([ -~]{0,253}[!-~])?")
_HEARTBEAT_S: Final = 15.0
_CHECK_S: Final = 1.0
#: A listener who takes nothing for so long is gone.
_WRITE_S: Final = 30.0
#: The last event's id: who comes back with it has heard everything.
_END: Final = "end"


async def create_generation(request: web.Request) -> web.Response:
    """POST /api/generations: one job, or many. With `Prefer: wait=N` the answer comes at the end, N seconds later at
    most."""
    user = (await caller(request)).user
    no_parameters(request)
    wait_s = _wished_wait(request)
    made = await _make(request, user, Wanted)
    ids = await _ended(request, user, made, wait_s)
    if ids is None:
        return _accepted(made)
    gateway = request.app[GATEWAY]
    location = made.reply.location or ""
    if location.startswith("/api/batches/"):
        body, bookmark = await look_at_batch(gateway, user, uuid.UUID(location.rpartition("/")[2]))
    else:
        generation = await look(gateway, user, ids[0])
        body, bookmark = told_one(generation, **_dropped(made)), generation.at
    response = written(body, bookmark or made.bookmark, status=201)
    response.headers["Location"] = location
    response.headers["Preference-Applied"] = f"wait={wait_s}"
    return _replayed(response, made)


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
    no_parameters(request)
    made = await _make(request, user, ImageRequest)
    ids = await _ended(request, user, made, MAX_WAIT_S)
    if ids is None:
        return _accepted(made)
    generation = await look(request.app[GATEWAY], user, ids[0])
    if not generation.images:
        raise _no_image(generation)
    body = b'{"success":true,"image":%s}' % generation.images[0]
    return _replayed(written(body, generation.at), made)


class _Error(msgspec.Struct):
    code: str
    message: str


class _Ended(msgspec.Struct):
    error: _Error | None


def _no_image(generation: Generation) -> NotGenerated:
    error = msgspec.json.decode(generation.document, type=_Ended).error
    code = GenerationError.code if error is None else error.code
    kinds = {kind.code: kind for kind in _all_kinds(GenerationError)}
    return NotGenerated(code, kinds.get(code, GenerationError).advice)


def _all_kinds(kind: type[GenerationError]) -> list[type[GenerationError]]:
    return [kind, *(found for sub in kind.__subclasses__() for found in _all_kinds(sub))]


async def estimate_generation(request: web.Request) -> web.Response:
    """POST /api/generations/estimate: what the same body would cost, sent to /api/generations."""
    user = (await caller(request)).user
    no_parameters(request)
    wanted = decode_json(await read_body(request, max_bytes=_MAX_BODY_BYTES), Wanted)
    body = await estimate(request.app[GATEWAY], user, wanted)
    return web.Response(body=body, content_type="application/json", headers={"Cache-Control": "no-store"})


async def get_generation(request: web.Request) -> web.Response:
    """GET /api/generations/{id}: the job with its pictures; how far it is while it has none."""
    user = (await caller(request)).user
    no_parameters(request)
    generation = await look(request.app[GATEWAY], user, generation_id(request))
    return written(told_one(generation), generation.at)


async def get_batch(request: web.Request) -> web.Response:
    """GET /api/batches/{id}: all jobs of one request, and what they cost together."""
    user = (await caller(request)).user
    no_parameters(request)
    body, bookmark = await look_at_batch(request.app[GATEWAY], user, batch_id(request))
    if bookmark is None:
        return web.Response(body=body, content_type="application/json", headers={"Cache-Control": "no-store"})
    return written(body, bookmark)


async def cancel_generation(request: web.Request) -> web.Response:
    """DELETE /api/generations/{id}: 200 when it is over, 202 when its provider is asked to stop."""
    user = (await caller(request)).user
    no_parameters(request)
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


async def _ended(request: web.Request, user: str, made: Made, wait_s: float) -> list[uuid.UUID] | None:
    """The jobs that were made, once all are over; None when that is not within the time."""
    if wait_s <= 0:
        return None
    gateway = request.app[GATEWAY]
    started = time.perf_counter()
    try:
        ids = await made_at(gateway, user, made.reply.location or "")
        return ids if await gateway.following.wait(user, ids, wait_s) else None
    except PrimaryUnavailable:
        return None  # it was made, and that is what the client has to know
    finally:
        request[WAITED_S] = time.perf_counter() - started


def _accepted(made: Made) -> web.Response:
    response = written(made.reply.body, made.bookmark, status=made.reply.status)
    if made.reply.location is not None:
        response.headers["Location"] = made.reply.location
    return _replayed(response, made)


def _replayed(response: web.Response, made: Made) -> web.Response:
    if made.is_replayed:
        response.headers["Idempotency-Replayed"] = "true"
    return response


# --- listening --------------------------------------------------------------------------------------------------


async def follow_generation(request: web.Request) -> web.StreamResponse:
    """GET /api/generations/{id}/events: how far it is, until its end (SSE)."""
    user = (await caller(request)).user
    no_parameters(request)
    gateway, job_id = request.app[GATEWAY], generation_id(request)
    generation = await look(gateway, user, job_id)
    if generation.is_over and request.headers.get("Last-Event-ID") == _END:
        return web.Response(status=204)  # a browser does not come back after this
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )
    if gateway.settings.cors_origins:
        allow_origin(request, response, gateway.settings.cors_origins)
    with gateway.following.listen(user, job_id) as follower:
        try:
            await response.prepare(request)
            last_sent, shown = time.monotonic(), None
            while not (follower.is_over or follower.is_ended or generation.is_over):
                is_news = await follower.change(_CHECK_S)
                state = follower.latest.get(job_id)
                if is_news and state is not None and not state.is_over and state != shown:
                    await _send(response, b"data: " + msgspec.json.encode(_told_state(state)) + b"\n\n")
                    last_sent, shown = time.monotonic(), state
                elif time.monotonic() - last_sent >= _HEARTBEAT_S:
                    await _send(response, b":\n\n")
                    last_sent = time.monotonic()
                if request.transport is None or request.transport.is_closing() or not await _is_allowed(request):
                    return response
            if not follower.is_ended or generation.is_over:
                generation = await look(gateway, user, job_id)
                await _send(response, b"id: end\nevent: end\ndata: " + told_one(generation) + b"\n\n")
        except (ConnectionError, TimeoutError):
            if request.transport is not None:
                request.transport.abort()
        except Exception:
            if not response.prepared:
                raise
    return response


def _told_state(state: State) -> dict[str, object]:
    return {"state": state.state, "progress": state.progress, "queue_position": state.queue_position}


async def _send(response: web.StreamResponse, data: bytes) -> None:
    async with asyncio.timeout(_WRITE_S):
        await response.write(data)


async def _is_allowed(request: web.Request) -> bool:
    """Whether the listener's credential is still good, as far as anybody can tell now."""
    auth, header = request.app[GATEWAY].auth, request.headers.get("Authorization")
    if auth.known(header) is not None:
        return True
    try:
        await auth.identify(header)
    except Unauthorized:
        return False
    except PrimaryUnavailable:
        pass
    return True
