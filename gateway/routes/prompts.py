"""The caller's jobs as they are read: the prompt history, what is hidden from it, and the list of generations."""

from __future__ import annotations

import uuid

from aiohttp import web

from gateway.payloads import PromptChanges, prompt_id, read_json
from gateway.routes.context import (
    GATEWAY,
    caller,
    generations_query,
    only_parameters,
    prompts_query,
    read_response,
    written,
)
from store import prompts
from store.gallery import encode_query
from store.job_lists import JobQuery
from store.lists import one_body
from store.primary import Connection

__all__ = ["change_prompt", "get_prompt", "hide_prompt", "list_generations", "list_prompts"]


async def list_prompts(request: web.Request) -> web.StreamResponse:
    """GET /api/prompts: one page of the caller's prompt history, from their replica. Hidden ones are left out."""
    user = (await caller(request)).user
    return await read_response(request, user, prompts_query(request))


async def list_generations(request: web.Request) -> web.StreamResponse:
    """GET /api/generations: the same jobs under their other name; with hidden=true, those that were hidden."""
    user = (await caller(request)).user
    return await read_response(request, user, generations_query(request))


async def get_prompt(request: web.Request) -> web.StreamResponse:
    """GET /api/prompts/{id}, hidden or not."""
    user = (await caller(request)).user
    only_parameters(request)
    return await read_response(request, user, encode_query(JobQuery(str(prompt_id(request)))))


async def change_prompt(request: web.Request) -> web.Response:
    """PATCH /api/prompts/{id}: hide it, or show it again where it was."""
    user = (await caller(request)).user
    only_parameters(request)
    job_id = prompt_id(request)
    changes = await read_json(request, PromptChanges)
    return await _hide(request, user, job_id, hidden=changes.hidden)


async def hide_prompt(request: web.Request) -> web.Response:
    """DELETE /api/prompts/{id}: hide it from the history. What it cost stays in the ledger, its images stay too."""
    user = (await caller(request)).user
    only_parameters(request)
    return await _hide(request, user, prompt_id(request), hidden=True)


async def _hide(request: web.Request, user: str, job_id: uuid.UUID, *, hidden: bool) -> web.Response:
    gateway = request.app[GATEWAY]

    async def transaction(connection: Connection) -> bytes:
        await prompts.hide(connection, user, job_id, hidden=hidden)
        return await prompts.document(connection, user, job_id, gateway.documents)

    document, bookmark = await gateway.write(user, transaction)
    return written(one_body("jobs", document), bookmark)
