"""What a file may tell, as what it may be taken, and of whose words its name is made: nobody's."""

from __future__ import annotations

import io
import re
from typing import Any

import aiohttp
import pytest

from store.objects.keys import is_key
from tests.gateway.asking import picture, replica_of
from tests.world import Reply, World, until

FORMATS = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP", "image/avif": "AVIF"}
LIES = ["text/html", "image/svg+xml", "application/javascript", "image/gif"]


async def keep(
    world: World, user: str, path: str, data: bytes, *, filename: str = "a.png", claimed: str = "image/png",
    headers: dict[str, str] | None = None, **options: Any,
) -> dict[str, Any]:  # fmt: skip
    body = aiohttp.FormData(quote_fields=False)
    body.add_field("file", io.BytesIO(data), filename=filename, content_type=claimed)
    reply = await world.request("POST", path, user=user, data=body, headers=headers or {}, **options)
    assert reply.status == 201, reply
    found: dict[str, Any] = reply.json["reference" if "references" in path else "image"]
    return found


def assert_harmless(reply: Reply, content_type: str) -> None:
    """No browser takes it for anything but this, or runs what is in it."""
    assert reply.headers["Content-Type"] == content_type
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert reply.headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
    assert reply.headers["Referrer-Policy"] == "no-referrer"
    assert "Content-Disposition" not in reply.headers
    assert len(reply.headers.getall("Content-Type")) == 1


@pytest.mark.parametrize(("content_type", "claimed"), list(zip(FORMATS, LIES, strict=True)))
async def test_a_file_has_the_type_of_its_bytes_in_every_answer(either: World, content_type: str, claimed: str) -> None:
    """Whatever its sender called it; whole, in part, unchanged, only asked about; by either of its addresses, and its
    thumbnails. mission: 169"""
    data = picture(FORMATS[content_type], (30, 20))
    image = await keep(either, "ana", "/api/images/upload", data, filename="x.html", claimed=claimed)
    assert image["content_type"] == content_type

    by_name = f"/api/images/{image['filename']}"
    etag = (await either.get(image["url"])).headers["ETag"]
    for path, kind in (
        (image["url"], content_type),
        (by_name, content_type),
        (image["thumb_url"], "image/webp"),
        (image["thumb_url"].replace(".thumb.", ".thumb96."), "image/webp"),
    ):
        assert_harmless(await either.get(path), kind)
        assert_harmless(await either.get(path, headers={"Range": "bytes=1-5"}), kind)
    assert_harmless(await either.request("HEAD", image["url"]), content_type)
    unchanged = await either.get(image["url"], headers={"If-None-Match": etag})
    assert unchanged.status == 304
    assert unchanged.headers["Content-Security-Policy"] == "default-src 'none'; sandbox"


async def test_a_signed_reference_is_as_harmless(shared: World, user: str) -> None:
    """Where no credential is asked for any more. mission: 169"""
    data = picture("JPEG", (31, 20))
    reference = await keep(shared, user, "/api/references", data, filename="x.svg", claimed="image/svg+xml")

    for field, kind in (("url", "image/jpeg"), ("thumb_url", "image/webp")):
        sent = await shared.get(reference[field], user=user, allow_redirects=False)
        assert_harmless(await shared.get(sent.headers["Location"], user=None), kind)


ASKED = [
    {},
    {"Range": "bytes=0-3"},
    {"If-None-Match": "*"},
    {"If-Modified-Since": "Fri, 01 Jan 2100 00:00:00 GMT"},
    {"If-Match": "*"},
    {"X-Forwarded-User": "ana", "X-Original-URL": "/healthz", "X-HTTP-Method-Override": "GET"},
]


@pytest.mark.parametrize("kind", ["trashed", "rejected", "reference"])
async def test_another_users_private_file_is_404_however_it_is_asked_for(either: World, kind: str) -> None:
    """As one that never was: no size, no type, no age, no validator, by no method and no condition."""
    path = "/api/references" if kind == "reference" else "/api/images/upload"
    kept = await keep(either, "ana", path, picture("PNG"))
    etag = f'"{kept["url"].rpartition("/")[2]}"'
    if kind == "trashed":
        await either.request("DELETE", f"/api/images/{kept['id']}")
    elif kind == "rejected":
        await either.write("ana", lambda c: c.execute("update images set moderation = 'rejected'"))
    never = kept["url"][:-5] + ("0" if kept["url"][-5] != "0" else "1") + ".png"

    async def is_closed() -> bool:
        return (await either.get(kept["url"], user=None)).status == 404

    await until(is_closed)
    for url in (kept["url"], kept["thumb_url"], kept["thumb_url"].replace(".thumb.", ".thumb96.")):
        for stranger in (None, "bob"):
            for method in ("GET", "HEAD"):
                for more in [*ASKED, {"If-None-Match": etag}]:
                    headers = {**more, "X-Request-Id": "the-same"}
                    reply = await either.request(method, url, user=stranger, headers=headers)
                    unknown = await either.request(method, never, user=stranger, headers=headers)
                    assert reply.status == unknown.status == 404, (method, url, headers)
                    assert shape(reply) == shape(unknown)
        name = url.rpartition("/")[2]
        assert (await either.get(f"/api/images/{name}", user="bob")).status == 404
    assert (await either.get(kept["url"], user="ana")).status == 200


def shape(reply: Reply) -> tuple[Any, bytes]:
    """All of an answer but when it was given."""
    return {name: value for name, value in reply.headers.items() if name != "Date"}, reply.body


USERS = ["..", ".", "evil|evil", "evil:evil@evil", "a.evil"]
NAMES = ["../../../evil", "/etc/cron.d/evil", "..\\evil.png", "evil%00.png", "evil.png%0D%0AX-Evil: 1", "%2e%2e%2fevil"]
HEADERS = {"X-Request-Id": "evil", "X-File-Name": "../evil", "Slug": "evil", "Content-Location": "/evil"}


@pytest.mark.parametrize("path", ["/api/images/upload", "/api/references"])
async def test_nothing_a_user_says_becomes_part_of_a_name(either: World, path: str) -> None:
    """Neither their id, nor a file's name, nor a header: of files, of keys in a bucket, of replicas."""
    folder = either.data.parent

    def named() -> set[str]:
        return {str(entry.relative_to(folder)) for entry in folder.rglob("*")}

    before = named()
    for user in USERS:
        for number, name in enumerate(NAMES):
            await keep(either, user, path, picture("PNG", (20 + number, 20)), filename=name, headers=HEADERS)
        await replica_of(either, user, "/api/references" if "references" in path else "/api/images")

    keys = [info.key async for info in either.gateway.objects.scan()]
    assert len(keys) == 3 * len(NAMES) * len(USERS)
    assert all(is_key(key) for key in keys)
    grown = named() - before
    assert len([name for name in grown if re.search(r"/[0-9a-f]{64}\.[0-9]+\.db$", name)]) >= len(USERS)
    assert [name for name in grown if "evil" in name or ".." in name] == []
    files = {name for name in grown if "/objects/" in name and (folder / name).is_file()}
    assert {name.partition("/objects/")[2] for name in files} in (set(), set(keys))
