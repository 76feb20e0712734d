"""Users with images by plain SQL: copies of an imported gallery, so that documents are as long as real ones."""

from __future__ import annotations

from typing import Final

import asyncpg

__all__ = ["add_history", "add_users", "server_version", "user_names"]

#: Users per transaction: the change log is written per transaction and user.
_BATCH: Final = 50
_IMAGES: Final = """
with source as (
    select *, row_number() over (order by created_at desc, id desc) as n, count(*) over () as total
    from images where owner_id = $1
)
insert into images (
    owner_id, object_key, thumb_key, created_at, content_type, size_bytes, width, height, thumbhash, prompt,
    negative_prompt, model, seed, steps, generation_params, visibility
)
select u, k.key || '.png', k.key || '.thumb.webp', now() - make_interval(secs => copy), s.content_type, s.size_bytes,
       s.width, s.height, s.thumbhash, s.prompt, s.negative_prompt, s.model, s.seed, s.steps, s.generation_params,
       s.visibility
from unnest($2::text[]) as u
cross join generate_series(1, $3::int) as copy
join source s on s.n = (copy - 1) % s.total + 1
cross join lateral (
    select 'generated/' || md5(u) || '/' || lpad((1700000000000 + copy)::text, 13, '0') || '-' || md5(u || copy) as key
) k
"""


def user_names(prefix: str, count: int) -> list[str]:
    """The names that `add_users` gives."""
    return [f"{prefix}-{n:05d}" for n in range(count)]


async def add_users(primary_url: str, names: list[str], *, images: int, like: str) -> None:
    """Make users who each have `images` images, copied in turn from those of the user `like`."""
    connection = await asyncpg.connect(primary_url)
    try:
        for start in range(0, len(names), _BATCH):
            batch = names[start : start + _BATCH]
            async with connection.transaction():
                await connection.execute("insert into users (id) select unnest($1::text[])", batch)
                await connection.execute(_IMAGES, like, batch, images)
        # So that nobody's plans, and no vacuum or checkpoint that starts by itself, depend on when the rows came.
        await connection.execute("vacuum analyze")
        await connection.execute("checkpoint")
    finally:
        await connection.close()


_HISTORY: Final = """
insert into jobs (owner_id, prompt, params, provider, model, state, duration_ms, image_ids, created_at)
select owner_id, prompt, generation_params, 'builtin', model, 'completed', 1500, array[id], created_at
from images where owner_id = $1
"""


async def add_history(primary_url: str, user: str) -> None:
    """A completed job for every image of `user`."""
    connection = await asyncpg.connect(primary_url)
    try:
        await connection.execute(_HISTORY, user)
    finally:
        await connection.close()


async def server_version(primary_url: str) -> str:
    connection = await asyncpg.connect(primary_url)
    try:
        return str(await connection.fetchval("show server_version"))
    finally:
        await connection.close()
