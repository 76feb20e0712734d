"""Files over HTTP: whole and in parts, for whoever has the URL, as the image's state allows."""

from __future__ import annotations

from typing import Any

import pytest

from store.objects.keys import new_key
from tests.gateway.asking import form, picture
from tests.world import Reply, World, until

IMMUTABLE = "public, max-age=31536000, immutable"
DATA = picture("PNG", (300, 200))


async def uploaded(world: World, user: str, **fields: str) -> dict[str, Any]:
    reply = await world.request("POST", "/api/images/upload", user=user, data=form(DATA, **fields))
    assert reply.status == 201, reply
    return reply.json["image"]


async def turns(world: World, path: str, status: int, *, user: str | None) -> Reply:
    """The reply for `path` once it has `status`, within two seconds."""

    async def answer() -> Reply | None:
        reply = await world.get(path, user=user)
        return reply if reply.status == status else None

    return await until(answer, timeout_s=2.0)


async def test_file_is_served_whole_with_safe_headers(shared: World, user: str) -> None:
    """mission: 145, 146, 169"""
    image = await uploaded(shared, user)

    for method in ("GET", "HEAD"):
        reply = await shared.request(method, image["url"], user=None)
        assert reply.status == 200
        assert reply.body == (DATA if method == "GET" else b"")
        assert reply.headers["Content-Length"] == str(len(DATA))
        assert reply.headers["Content-Type"] == "image/png"
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert reply.headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
        assert reply.headers["Accept-Ranges"] == "bytes"
        assert "ETag" in reply.headers
        assert "Last-Modified" in reply.headers
        assert "Content-Encoding" not in reply.headers


@pytest.mark.parametrize(
    ("asked", "told", "expected"),
    [
        ("bytes=0-9", f"bytes 0-9/{len(DATA)}", DATA[:10]),
        ("bytes=5-", f"bytes 5-{len(DATA) - 1}/{len(DATA)}", DATA[5:]),
        ("bytes=-7", f"bytes {len(DATA) - 7}-{len(DATA) - 1}/{len(DATA)}", DATA[-7:]),
        ("bytes=0-999999", f"bytes 0-{len(DATA) - 1}/{len(DATA)}", DATA),
    ],
)
async def test_range_is_206(shared: World, user: str, asked: str, told: str, expected: bytes) -> None:
    """Only what was asked for, and where it lies."""
    image = await uploaded(shared, user)

    reply = await shared.get(image["url"], user=None, headers={"Range": asked})

    assert (reply.status, reply.body) == (206, expected)
    assert reply.headers["Content-Range"] == told
    assert reply.headers["Content-Type"] == "image/png"


@pytest.mark.parametrize("asked", ["bytes=999999-", "bytes=9-2", "bytes=a-b", "pages=1-2"])
async def test_range_outside_of_the_file_is_416(shared: World, user: str, asked: str) -> None:
    """The size is told."""
    image = await uploaded(shared, user)

    reply = await shared.get(image["url"], user=None, headers={"Range": asked})

    assert reply.status == 416
    assert reply.headers["Content-Range"] == f"bytes */{len(DATA)}"


async def test_known_file_is_304(shared: World, user: str) -> None:
    """mission: 146"""
    image = await uploaded(shared, user, visibility="public")
    first = await shared.get(image["url"], user=None)

    for condition in (
        {"If-None-Match": first.headers["ETag"]},
        {"If-None-Match": f'"x", W/{first.headers["ETag"]}'},
        {"If-Modified-Since": first.headers["Last-Modified"]},
    ):
        reply = await shared.get(image["url"], user=None, headers=condition)
        assert (reply.status, reply.body) == (304, b"")
        assert reply.headers["ETag"] == first.headers["ETag"]
        assert reply.headers["Cache-Control"] == IMMUTABLE
    assert (await shared.get(image["url"], user=None, headers={"If-None-Match": '"x"'})).status == 200


async def test_visibility_decides_who_may_cache(shared: World, user: str) -> None:
    """mission: 84, 168"""
    unlisted = await uploaded(shared, user)
    public = await uploaded(shared, user, visibility="public")

    for field in ("url", "thumb_url"):
        assert (await shared.get(unlisted[field], user=None)).headers["Cache-Control"] == "private, max-age=300"
        assert (await shared.get(public[field], user=None)).headers["Cache-Control"] == IMMUTABLE


async def test_image_made_public_becomes_immutable_and_back(shared: World, user: str) -> None:
    """mission: 123"""
    image = await uploaded(shared, user)
    assert (await shared.get(image["url"], user=None)).headers["Cache-Control"] == "private, max-age=300"

    for visibility, expected in (("public", IMMUTABLE), ("unlisted", "private, max-age=300")):
        await shared.request("PATCH", f"/api/images/{image['id']}", user=user, json={"visibility": visibility})

        async def is_told(expected: str = expected) -> bool:
            return (await shared.get(image["url"], user=None)).headers["Cache-Control"] == expected

        await until(is_told, timeout_s=2.0)


async def test_trashed_file_is_its_owners_only(shared: World, user: str) -> None:
    """mission: 126, 177"""
    image = await uploaded(shared, user, visibility="public")
    for path in (image["url"], image["thumb_url"]):
        assert (await shared.get(path, user=None)).status == 200

    await shared.request("DELETE", f"/api/images/{image['id']}", user=user)

    for path in (image["url"], image["thumb_url"]):
        for other in (None, "somebody"):
            reply = await turns(shared, path, 404, user=other)
            assert reply.json["error"] == "Image not found"
        own = await turns(shared, path, 200, user=user)
        assert own.headers["Cache-Control"] == "private, no-store"
    await shared.request("POST", f"/api/images/{image['id']}/restore", user=user)
    assert (await turns(shared, image["url"], 200, user=None)).headers["Cache-Control"] == IMMUTABLE


@pytest.mark.parametrize("state", ["pending", "rejected"])
async def test_file_that_is_not_approved_is_its_owners_only(shared: World, user: str, state: str) -> None:
    """mission: 177"""
    image = await uploaded(shared, user, visibility="public")
    sql = "update images set moderation = $1 where object_key = $2"
    key = image["url"].removeprefix("/files/")

    await shared.write(user, lambda connection: connection.execute(sql, state, key))

    for path in (image["url"], image["thumb_url"]):
        for other in (None, "somebody"):
            await turns(shared, path, 404, user=other)
        assert (await turns(shared, path, 200, user=user)).headers["Cache-Control"] == "private, no-store"


async def test_bad_credential_is_as_none_for_a_file(shared: World, user: str) -> None:
    """An open file needs none; a closed one is not there."""
    image = await uploaded(shared, user)
    bad = {"Authorization": "Bearer x.y.z"}
    assert (await shared.get(image["url"], user=None, headers=bad)).status == 200

    await shared.request("DELETE", f"/api/images/{image['id']}", user=user)

    await turns(shared, image["url"], 404, user=None)
    assert (await shared.get(image["url"], user=None, headers=bad)).status == 404


async def test_file_whose_object_is_gone_is_404(shared: World, user: str) -> None:
    """mission: 62"""
    image = await uploaded(shared, user)
    (shared.data / "objects" / image["url"].removeprefix("/files/")).unlink()

    reply = await shared.get(image["url"], user=user)

    assert (reply.status, reply.json["error"]) == (404, "Image not found")
    assert (await shared.get(image["thumb_url"], user=None)).status == 200


async def test_file_that_no_image_has_is_404(shared: World) -> None:
    """Neither a free key, nor an object that lost its row, is told from the other."""
    key = new_key("generated", "0" * 32, "image/png", 1)
    free = await shared.get(f"/files/{key}", user=None)
    await shared.gateway.objects.put(key, DATA)
    lost = await shared.get(f"/files/{key}", user=None)

    assert free.status == lost.status == 404
    assert free.json["detail"] == lost.json["detail"]
