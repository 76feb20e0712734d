"""Files of every object store: the same answers from a folder and from a bucket, and clear ones when it fails."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from gateway.app import Gateway
from gateway.config import GatewaySettings
from store.errors import SettingError
from store.generation.config import ProviderSettings
from tests.fakes.s3_proxy import S3Proxy
from tests.fakes.s3_server import S3Server, bucket_settings
from tests.gateway.asking import form, noise, picture
from tests.world import World, until

DATA = picture("PNG", (300, 200))
BIG = noise((520, 400))


async def uploaded(world: World, user: str = "ana", data: bytes = DATA, **fields: str) -> dict[str, Any]:
    reply = await world.request("POST", "/api/images/upload", user=user, data=form(data, **fields))
    assert reply.status == 201, reply
    image: dict[str, Any] = reply.json["image"]
    return image


async def test_file_is_whole_and_in_parts(either: World) -> None:
    """mission: 145, 146, 169, 178"""
    url = (await uploaded(either))["url"]
    size = len(DATA)

    whole = await either.get(url, user=None)
    head = await either.request("HEAD", url, user=None)

    assert (whole.status, whole.body) == (200, DATA)
    assert (head.status, head.body) == (200, b"")
    for name in ("Content-Length", "Content-Type", "ETag", "Last-Modified", "Accept-Ranges", "Cache-Control"):
        assert head.headers[name] == whole.headers[name]
    assert whole.headers["Content-Length"] == str(size)
    assert "X-Request-Id" in whole.headers
    for asked, start, end in (("0-9", 0, 10), ("5-", 5, size), ("-7", size - 7, size), ("0-", 0, size)):
        part = await either.get(url, user=None, headers={"Range": f"bytes={asked}"})
        assert (part.status, part.body) == (206, DATA[start:end]), asked
        assert part.headers["Content-Range"] == f"bytes {start}-{end - 1}/{size}"
    for asked in (f"bytes={size}-", "bytes=9-2", "bytes=a-b"):
        outside = await either.get(url, user=None, headers={"Range": asked})
        assert (outside.status, outside.headers["Content-Range"]) == (416, f"bytes */{size}")


async def test_part_of_another_object_is_the_whole_of_this_one(either: World) -> None:
    """If-Range: a download goes on only with the same bytes."""
    url = (await uploaded(either))["url"]
    first = await either.get(url, user=None)

    for condition, status in ((first.headers["ETag"], 206), (first.headers["Last-Modified"], 206), ('"x"', 200)):
        reply = await either.get(url, user=None, headers={"Range": "bytes=4-", "If-Range": condition})
        assert (reply.status, reply.body) == (status, DATA[4:] if status == 206 else DATA)


async def test_known_file_costs_no_call_of_the_bucket(on_s3: World, proxy: S3Proxy) -> None:
    """An object never changes, so its key says enough. mission: 146"""
    url = (await uploaded(on_s3))["url"]
    etag = (await on_s3.get(url, user=None)).headers["ETag"]
    proxy.forget()

    reply = await on_s3.get(url, user=None, headers={"If-None-Match": etag})

    assert (reply.status, reply.headers["ETag"], proxy.seen) == (304, etag, [])


async def test_thumbnails_are_files_too(either: World) -> None:
    """Of both sizes, and no better kept than the picture. mission: 177"""
    image = await uploaded(either)

    for path in (image["thumb_url"], image["thumb_url"].replace(".thumb.", ".thumb96.")):
        reply = await either.get(path, user=None)
        assert (reply.status, reply.headers["Content-Type"]) == (200, "image/webp")
    await either.request("DELETE", f"/api/images/{image['id']}")

    async def is_closed(path: str) -> bool:
        return (await either.get(path, user=None)).status == 404

    for path in (image["url"], image["thumb_url"], image["thumb_url"].replace(".thumb.", ".thumb96.")):
        await until(lambda path=path: is_closed(path), timeout_s=3.0)
        assert (await either.get(path)).status == 200


async def test_own_file_by_its_name(either: World) -> None:
    """With a credential, as the first clients of the API ask for it. mission: 145"""
    image = await uploaded(either)
    path = f"/api/images/{image['filename']}"

    own = await either.get(path)

    assert (own.status, own.body, own.headers["Content-Type"]) == (200, DATA, "image/png")
    assert own.headers["Cache-Control"] == "private, max-age=300"
    part = await either.get(path, headers={"Range": "bytes=1-2"})
    assert (part.status, part.body) == (206, DATA[1:3])
    assert (await either.get(f"/api/images/{image['thumb_url'].rpartition('/')[2]}")).status == 200
    assert (await either.get(path, user=None)).status == 401
    other = await either.get(path, user="bob")
    assert (other.status, other.json["error"]) == (404, "Image not found")
    assert (await either.get(f"/api/images/{image['id']}")).json["image"]["id"] == image["id"]
    assert (await either.get(f"{path}?x=1")).status == 400
    assert (await either.get("/api/images/nothing.png")).status == 400


async def test_reference_in_a_bucket_is_read_by_a_presigned_url(on_s3: World, proxy: S3Proxy) -> None:
    """From the bucket itself, for five minutes at most. mission: 175, 177"""
    reply = await on_s3.request("POST", "/api/references", data=form(DATA))
    url = reply.json["reference"]["url"]

    sent = await on_s3.get(url, allow_redirects=False)

    location = sent.headers["Location"]
    assert sent.status == 302
    assert location.startswith(proxy.url)
    assert "X-Amz-Expires=300" in location or "Expires=" in location
    async with aiohttp.ClientSession() as client, client.get(location) as answer:
        assert (answer.status, await answer.read()) == (200, DATA)
    for stranger in (None, "bob"):
        assert (await on_s3.get(url, user=stranger)).status == 404
    assert (await on_s3.get(f"{url}?{urlsplit(location).query}", user=None)).status == 404
    assert (await on_s3.get(f"{url}?expires=99999999999&signature=x", user=None)).status == 404


async def test_gone_object_is_404(either: World) -> None:
    """mission: 62"""
    image = await uploaded(either)
    await either.gateway.objects.delete(image["url"].removeprefix("/files/"))

    for method in ("GET", "HEAD"):
        assert (await either.request(method, image["url"])).status == 404
    for headers in ({"Range": "bytes=-5"}, {"Range": "bytes=99999999-"}):
        assert (await either.get(image["url"], headers=headers)).status == 404


@pytest.mark.parametrize(
    ("status", "code", "expected"), [(503, "SlowDown", 503), (500, "InternalError", 503), (403, "AccessDenied", 500)]
)
async def test_bucket_that_fails_is_a_clear_answer(
    on_s3: World, proxy: S3Proxy, status: int, code: str, expected: int
) -> None:
    """Come back later, or: it is our own fault, and says nothing of it. mission: 62"""
    url = (await uploaded(on_s3))["url"]
    proxy.add("GET", "answer", times=50, status=status, code=code)

    reply = await on_s3.get(url, user=None)

    assert reply.status == expected, reply
    if expected == 503:
        assert (reply.json["code"], reply.headers["Retry-After"]) == ("objects_unavailable", "1")
    else:
        assert reply.json["detail"] == "something went wrong on our side"
    proxy.forget()
    assert (await on_s3.get(url, user=None)).status == 200


async def test_stream_that_breaks_goes_on_or_ends_early(on_s3: World, proxy: S3Proxy) -> None:
    """A client never takes a part for the whole."""
    await on_s3.upload()
    await on_s3.write("ana", lambda c: c.execute("update accounts set plan = 'pro' where owner_id = 'ana'"))
    url = (await uploaded(on_s3, data=BIG))["url"]

    proxy.add("GET", "cut", after=300_000)
    assert (await on_s3.get(url, user=None)).body == BIG

    proxy.add("GET", "damage")  # which only the last byte can tell
    with pytest.raises(aiohttp.ClientPayloadError):
        await asyncio.wait_for(on_s3.get(url, user=None), 10)
    assert (await on_s3.get(url, user=None)).body == BIG


async def test_client_that_goes_away_leaves_nothing_open(either: World) -> None:
    """Neither a file nor a thread."""
    image = await uploaded(either, data=noise((170, 150)))
    before = len(list(Path("/proc/self/fd").iterdir()))

    for _ in range(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(either.url).port)
        writer.write(f"GET {image['url']} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await writer.drain()
        await reader.read(10)
        writer.transport.abort()

    await until(lambda: len(list(Path("/proc/self/fd").iterdir())) <= before + 12)
    assert (await either.get(image["url"], user=None)).status == 200


async def test_gateway_starts_without_the_bucket_and_not_with_a_wrong_one(
    s3: S3Server, database: str, tmp_path: Path
) -> None:
    """Reads need none; a wrong name is told at once."""
    away = World(tmp_path / "away", database)
    away.store = bucket_settings("http://127.0.0.1:9", "nowhere", s3_timeout_s=1.0)
    await away.start()
    try:
        assert (await away.get("/api/images")).status == 200
        reply = await away.upload()
        assert (reply.status, reply.json["code"]) == (503, "objects_unavailable")
    finally:
        await away.stop()
    store = bucket_settings(s3.url, "no-such-bucket")
    wrong = Gateway(
        tmp_path, primary_url=database, store=store, settings=GatewaySettings(), providers=ProviderSettings()
    )
    with pytest.raises(SettingError, match="no-such-bucket"):
        await wrong.start()
