"""Pages that have to be made: deep ones and filtered ones of a large gallery, against the first page of a small one.

A page that was read before is kept, and costs the same wherever it lies. So each read here follows a write, which makes
all kept pages of its user old: the replica makes the page anew, with its own SQL.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Final, NamedTuple

import aiohttp
import asyncpg

from tests.bench.client import Target, activate, bearer
from tests.bench.gallery import add_users
from tests.bench.instance import Instance
from tests.bench.openloop import Connection, request_of
from tests.bench.reads import PATH
from tests.bench.result import Line, at_most

__all__ = ["Timings", "large_user", "measure_pages", "page_timings"]

_SECTION: Final = "pages made anew"
_STARRED: Final = 100
_STEP: Final = 200
#: Most pages that are turned to reach a deep one.
_TURNS: Final = 450
_SMALL_ROWS: Final = 1000
_FILTER: Final = "starred=true"


class Timings(NamedTuple):
    """Milliseconds of each read, in the order taken."""

    first: list[float]
    deep: list[float]
    filtered: list[float]


async def large_user(primary_url: str, user: str, *, images: int, like: str) -> float:
    """Make a user with `images` images, of which 100 (or all) are starred, evenly; answers the seconds it took."""
    started = time.monotonic()
    await add_users(primary_url, [user], images=images, like=like)
    connection = await asyncpg.connect(primary_url)
    try:
        await connection.execute(
            "update images set starred = true where id in (select id from (select id, row_number() over"
            " (order by created_at) as n from images where owner_id = $1) numbered where n % $2 = 0)",
            user, max(1, images // _STARRED),
        )  # fmt: skip
    finally:
        await connection.close()
    return time.monotonic() - started


async def measure_pages(
    instance: Instance, primary_url: str, *, like: str, large_rows: int, samples: int
) -> list[Line]:
    """A user with `large_rows` images against one with 1,000."""
    await large_user(primary_url, "pages-small", images=_SMALL_ROWS, like=like)
    await large_user(primary_url, "pages-large", images=large_rows, like=like)
    small = await page_timings(instance.url, instance.token("pages-small"), samples=samples)
    large = await page_timings(instance.url, instance.token("pages-large"), samples=samples)
    base = median(small.first)
    note = f"{samples} reads, each after a write; the client's clock"
    ratio = f"of medians, to {base:.2f} ms"
    return [
        Line(_SECTION, f"first page of {_SMALL_ROWS:,} images", "ms", small.first, note=note, key="pages_small_ms"),
        Line(_SECTION, f"first page of {large_rows:,} images", "ms", large.first),
        Line(_SECTION, f"deep page of {large_rows:,} images", "ms", large.deep),
        Line(_SECTION, f"{_STARRED} starred of {large_rows:,} images", "ms", large.filtered),
        Line(_SECTION, "deep page to that first page", "×", [median(large.deep) / base], at_most(3), ratio,
             key="pages_deep"),
        Line(_SECTION, "filtered page to that first page", "×", [median(large.filtered) / base], at_most(3), ratio,
             key="pages_filtered"),
    ]  # fmt: skip


async def page_timings(url: str, token: str, *, samples: int) -> Timings:
    """Read the first, a deep and a filtered page in turn, `samples` times, after as many writes."""
    headers = bearer(token)
    await activate(url, [Target(PATH, headers)], timeout_s=120.0)
    connection = Connection(url)
    took_ms: dict[str, list[float]] = {"first": [], "deep": [], "filtered": []}
    try:
        async with aiohttp.ClientSession(url, headers=headers, raise_for_status=True) as http:
            pages = {"first": PATH, "deep": await _deep(http), "filtered": f"{PATH}?{_FILTER}"}
            async with http.get(PATH, params={"limit": "1"}) as answer:
                image = (await answer.json())["images"][0]["id"]
            for number in range(samples):
                for name, page in pages.items():
                    await _write(http, image, f"{name} {number}")
                    took_ms[name].append(connection.ask(request_of(page, headers)))
    finally:
        connection.socket.close()
    return Timings(**took_ms)


async def _deep(http: aiohttp.ClientSession) -> str:
    """The URL of a page far down, by turning pages as a person would."""
    token, found = "", PATH
    for _ in range(_TURNS):
        async with http.get(PATH, params={"limit": _STEP, **({"page_token": token} if token else {})}) as answer:
            token = (await answer.json())["next_page_token"]
        if not token:
            break
        found = f"{PATH}?page_token={token}"
    return found


async def _write(http: aiohttp.ClientSession, image: str, title: str) -> None:
    """Change a title; the replica has applied it when this returns."""
    async with http.patch(f"{PATH}/{image}", json={"title": title}) as answer:
        bookmark = answer.headers["Peruse-Bookmark"]
    async with http.get(PATH, params={"limit": "1"}, headers={"Peruse-Bookmark": bookmark}) as answer:
        await answer.read()
