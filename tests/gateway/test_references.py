"""Reference images: kept once per content, seen by their owner only, gone when they are deleted."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from store.gallery import ReferenceQuery, ReferencesQuery, encode_query
from store.objects.keys import keys_of
from store.references import tidy_filename
from tests.gateway.asking import bookmark_of, form, object_files, picture, replica_of
from tests.world import Reply, World, until


async def given(world: World, user: str, data: bytes, filename: str = "a.png") -> Reply:
    """POST /api/references."""
    body = aiohttp.FormData(quote_fields=False)
    body.add_field("file", data, filename=filename, content_type="image/png")
    return await world.request("POST", "/api/references", user=user, data=body)


def key_of(reference: dict[str, Any]) -> str:
    return str(reference["url"]).removeprefix("/files/")


async def account(world: World, user: str) -> tuple[int, int]:
    (row,) = await world.gateway.primary.fetch(
        "select storage_used_bytes, storage_reserved_bytes from accounts where owner_id = $1", user
    )
    return row[0], row[1]


async def test_reference_is_kept_and_described(shared: World, user: str) -> None:
    """What the bytes say, and what their owner called them. mission: 18, 100, 101, 125"""
    data = picture("PNG", (400, 300))

    reply = await given(shared, user, data, "C:\\Fotos\\Mein Hund.png")

    assert reply.status == 201, reply
    reference = reply.json["reference"]
    assert reference["filename"] == "Mein Hund.png"
    assert (reference["width"], reference["height"], reference["size_bytes"]) == (400, 300, len(data))
    assert reference["content_type"] == "image/png"
    assert reference["url"].startswith("/files/reference/")
    assert "visibility" not in reference
    assert reply.headers["Location"] == f"/api/references/{reference['id']}"
    assert (await shared.get(reply.headers["Location"], user=user)).json == reply.json
    assert await account(shared, user) == (len(data), 0)
    for key in keys_of(key_of(reference)):
        assert (shared.data / "objects" / key).is_file()


async def test_list_is_the_same_from_replica_and_primary(shared: World, user: str) -> None:
    """In pages, the newest first or last. mission: 102, 125"""
    ids = []
    for n in range(5):
        ids.insert(0, (await given(shared, user, picture("PNG", (10 + n, 10)))).json["reference"]["id"])
    first = await shared.get("/api/references?limit=2", user=user)

    own = await replica_of(shared, user, "/api/references?limit=2")

    assert own.body == first.body
    assert [r["id"] for r in own.json["references"]] == ids[:2]
    seen, token = [], ""
    for _ in range(3):
        page = await shared.get(f"/api/references?limit=2{token}", user=user)
        seen += [r["id"] for r in page.json["references"]]
        token = f"&page_token={page.json['next_page_token']}"
    assert (seen, page.json["next_page_token"]) == (ids, None)
    oldest = await shared.get("/api/references?sort=oldest", user=user)
    assert [r["id"] for r in oldest.json["references"]] == ids[::-1]
    assert (await shared.get("/api/images", user=user)).json["images"] == []


async def test_fallback_lists_references_too(shared: World, user: str) -> None:
    """The primary's answer has the replica's bytes."""
    for n in range(3):
        reply = await given(shared, user, picture("PNG", (10 + n, 10)))
    paths = ("/api/references", "/api/references?limit=1&sort=oldest", reply.headers["Location"])
    own = [await replica_of(shared, user, path) for path in paths]
    reads = shared.gateway.reads

    row_id = reply.json["reference"]["id"]
    queries = (ReferencesQuery(), ReferencesQuery(limit=1, sort="oldest"), ReferenceQuery(row_id))
    pages = [await reads._primary.read(user, encode_query(query)) for query in queries]

    assert [page.body for page in pages] == [reply.body for reply in own]


async def test_change_of_references_is_seen_by_who_read_them(shared: World, user: str) -> None:
    """A kept page ends with the change, also when no image has changed."""
    first = (await given(shared, user, picture("PNG", (10, 10)))).json["reference"]["id"]
    await replica_of(shared, user, "/api/references")
    await shared.get("/api/references", user=user)

    second = (await given(shared, user, picture("PNG", (11, 10)))).json["reference"]["id"]

    async def ids() -> list[str]:
        return [r["id"] for r in (await shared.get("/api/references", user=user)).json["references"]]

    assert await ids() == [second, first]
    reply = await shared.request("DELETE", f"/api/references/{first}", user=user)
    assert (reply.status, reply.json) == (200, {"success": True})
    assert await ids() == [second]
    assert bookmark_of(reply).version > 0


async def test_same_bytes_are_kept_once_per_user(shared: World, user: str) -> None:
    """The second upload is told the first; its own object and quota are not there."""
    data = picture("PNG", (123, 45))
    first = await given(shared, user, data, "one.png")
    files = len(object_files(shared))

    second = await given(shared, user, data, "two.png")

    assert (first.status, second.status) == (201, 200)
    assert second.json == first.json
    assert len(object_files(shared)) == files
    assert await account(shared, user) == (len(data), 0)
    other = await given(shared, f"{user}-other", data)
    assert other.status == 201
    assert other.json["reference"]["id"] != first.json["reference"]["id"]


async def test_same_bytes_at_once_are_kept_once(shared: World, user: str) -> None:
    """Whoever is slower takes its objects back."""
    data = picture("PNG", (200, 55))
    before = len(object_files(shared))

    replies = await asyncio.gather(*(given(shared, user, data) for _ in range(8)))

    assert sorted(reply.status for reply in replies) == [200] * 7 + [201]
    assert len({reply.json["reference"]["id"] for reply in replies}) == 1
    assert len(object_files(shared)) == before + 3
    assert await account(shared, user) == (len(data), 0)


async def test_file_is_its_owners_by_a_url_that_ends(shared: World, user: str) -> None:
    """The owner is sent on, to a place that needs no credential and is for one file only. mission: 101, 175, 177"""
    data = picture("PNG", (60, 50))
    reference = (await given(shared, user, data)).json["reference"]
    other = (await given(shared, user, picture("PNG", (61, 50)))).json["reference"]

    for path in (reference["url"], reference["thumb_url"], reference["thumb_url"].replace("thumb.", "thumb96.")):
        for stranger in (None, "somebody"):
            reply = await shared.get(path, user=stranger)
            assert (reply.status, reply.json["error"]) == (404, "Image not found")
        for method in ("GET", "HEAD"):
            sent = await shared.request(method, path, user=user, allow_redirects=False)
            assert sent.status == 302
            assert sent.headers["Cache-Control"] == "private, no-store"
        signed = sent.headers["Location"]
        shown = await shared.get(signed, user=None)
        assert shown.status == 200
        assert shown.headers["Cache-Control"] == "private, max-age=300"
        assert shown.headers["X-Content-Type-Options"] == "nosniff"
        assert shown.headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
        query = signed.partition("?")[2]
        for bad in (f"{other['url']}?{query}", signed[:-2], f"{path}?expires=9999999999&{query.partition('&')[2]}"):
            assert (await shared.get(bad, user=None)).status == 404
    part = await shared.get(
        (await shared.get(reference["url"], user=user, allow_redirects=False)).headers["Location"],
        user=None,
        headers={"Range": "bytes=1-3"},
    )
    assert (part.status, part.body) == (206, data[1:4])


async def test_signed_url_ends_with_its_reference(shared: World, user: str) -> None:
    """Deleted is deleted, whoever was given what URL."""
    reference = (await given(shared, user, picture("PNG", (62, 50)))).json["reference"]
    signed = (await shared.get(reference["url"], user=user, allow_redirects=False)).headers["Location"]

    await shared.request("DELETE", f"/api/references/{reference['id']}", user=user)

    async def is_gone() -> bool:
        return (await shared.get(signed, user=None)).status == 404

    await until(is_gone, timeout_s=2.0)
    for key in keys_of(key_of(reference)):
        assert not (shared.data / "objects" / key).exists()
    assert await account(shared, user) == (0, 0)
    again = await shared.request("DELETE", f"/api/references/{reference['id']}", user=user)
    assert (again.status, again.json["error"]) == (404, "Reference image not found")


@pytest.mark.parametrize(
    ("method", "path", "field"),
    [
        ("GET", "?model=x", "model"),
        ("GET", "?limit=0", "limit"),
        ("GET", "?limit=1&limit=2", "limit"),
        ("GET", "?sort=best", "sort"),
        ("GET", "?page_token=x", "page_token"),
        ("GET", "/xyz", "id"),
        ("DELETE", "/xyz", "id"),
        ("GET", "/00000000-0000-0000-0000-000000000000?x=1", "x"),
        ("POST", "?x=1", "x"),
    ],
)
async def test_what_makes_no_sense_is_named(shared: World, user: str, method: str, path: str, field: str) -> None:
    """mission: 157"""
    reply = await shared.request(method, f"/api/references{path}", user=user)

    assert (reply.status, reply.json["field"]) == (400, field)


async def test_text_fields_and_text_files_are_refused(shared: World, user: str) -> None:
    """Nothing is kept of them, not even a user."""
    files = len(object_files(shared))
    for body, status in (
        (form(picture("PNG"), prompt="x"), 400),
        (form(None), 400),
        (form(b"text"), 415),
        (form(picture("PNG")[:-20]), 422),
    ):
        assert (await shared.request("POST", "/api/references", user=user, data=body)).status == status
    assert len(object_files(shared)) == files
    assert await shared.gateway.primary.fetch("select 1 from users where id = $1", user) == []


@pytest.mark.parametrize(
    ("given_name", "kept"),
    [("", "reference"), ("../../etc/passwd", "passwd"), ("a\u202eb\x07c.png", "abc.png"), ("x" * 300, "x" * 200)],
)
def test_name_of_a_file_is_only_shown(given_name: str, kept: str) -> None:
    """Without folders, and without what turns a line around."""
    assert tidy_filename(given_name) == kept
    assert tidy_filename(None) == "reference"
