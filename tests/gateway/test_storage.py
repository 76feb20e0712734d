"""The storage quota over HTTP: never over, whoever uploads at once, and back when something fails."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from gateway.admission import LARGEST_AT_ONCE
from tests.fakes.s3_proxy import S3Proxy
from tests.gateway.asking import form, noise, picture, running
from tests.gateway.raw import connected
from tests.world import Reply, World, until

LIMIT = 100_000
DATA = noise((80, 80))


async def account(world: World, user: str = "ana") -> tuple[int, int]:
    """Bytes used and reserved; what is reserved is what the reservations say."""
    (row,) = await world.gateway.primary.fetch(
        "select storage_used_bytes as used, storage_reserved_bytes as reserved, (select coalesce(sum(size_bytes), 0) "
        "from storage_reservations r where r.owner_id = a.owner_id) as held from accounts a where owner_id = $1", user
    )  # fmt: skip
    assert row["reserved"] == row["held"]
    return row["used"], row["reserved"]


async def objects(world: World) -> list[str]:
    return [info.key async for info in world.gateway.objects.scan()]


async def rows(world: World, table: str = "images") -> int:
    count: int = (await world.gateway.primary.fetch(f"select count(*) from {table}"))[0][0]
    return count


async def post(world: World, path: str = "/api/images/upload", *, user: str = "ana", data: bytes = DATA) -> Reply:
    return await world.request("POST", path, user=user, data=form(data))


async def test_fifty_uploads_at_once_are_never_over(either: World) -> None:
    """As many as fit are kept, the others are told why, and nothing is left over. mission: 74, 77"""
    room = LIMIT // len(DATA)
    assert 2 <= room <= 8

    async def one(n: int) -> Reply:
        while (reply := await post(either)).status == 503 and reply.json["code"] == "busy":
            await asyncio.sleep(0.05)
        return reply

    replies = await asyncio.gather(*(one(n) for n in range(50)))

    statuses = [reply.status for reply in replies]
    assert sorted(set(statuses)) == [201, 413]
    kept = statuses.count(201)
    assert 1 <= kept <= room
    assert await account(either) == (kept * len(DATA), 0)
    assert (await rows(either), len(await objects(either))) == (kept, 3 * kept)
    for _ in range(room - kept):  # what was reserved for another may have been in the way
        assert (await post(either)).status == 201
    assert (await post(either)).status == 413
    assert await account(either) == (room * len(DATA), 0)


@pytest.mark.parametrize("path", ["/api/images/upload", "/api/references"])
async def test_full_storage_says_what_is_used_and_allowed(either: World, path: str) -> None:
    """mission: 52, 77"""
    used = 0
    while used + len(DATA) <= LIMIT:
        assert (await post(either)).status == 201
        used += len(DATA)
    before = await objects(either)

    reply = await post(either, path)

    assert reply.status == 413
    problem = reply.json
    assert problem["code"] == "storage_quota_exceeded"
    assert problem["success"] is False
    assert (problem["used_bytes"], problem["reserved_bytes"], problem["limit_bytes"]) == (used, 0, LIMIT)
    assert await objects(either) == before
    await either.write("ana", lambda c: c.execute("update accounts set plan = 'pro' where owner_id = 'ana'"))
    assert (await post(either, path)).status == 201


async def test_service_is_bound_by_the_users_quota(on_disk: World) -> None:
    """Whoever uploads: the user's plan counts."""
    await on_disk.upload()
    await on_disk.write("ana", lambda c: c.execute("update accounts set storage_used_bytes = 99999"))

    reply = await on_disk.request("POST", "/internal/users/ana/images", user="svc", role="service", data=form(DATA))

    assert (reply.status, reply.json["code"]) == (413, "storage_quota_exceeded")


@pytest.mark.parametrize("path", ["/api/images/upload", "/api/references"])
@pytest.mark.parametrize(
    ("deed", "more", "expected"),
    [
        ("answer", {"times": 50, "status": 503, "code": "SlowDown"}, 503),
        ("answer", {"times": 50, "status": 403, "code": "AccessDenied"}, 500),
        ("answer", {"times": 1, "status": 503, "code": "SlowDown"}, 201),
        ("lose", {"times": 1, "status": 500, "code": "InternalError"}, 201),
        ("lose", {"times": 50, "status": 500, "code": "InternalError"}, 503),
    ],
)
async def test_bucket_that_fails_leaves_nothing_half_stored(
    on_s3: World, proxy: S3Proxy, path: str, deed: Any, more: dict[str, Any], expected: int
) -> None:
    """Success by another attempt, or a problem, no row, no object, and the room back."""
    proxy.add("PUT", deed, **more)

    reply = await post(on_s3, path)

    assert reply.status == expected, reply
    proxy.forget()
    kept = 1 if expected == 201 else 0
    assert await rows(on_s3, "images" if "images" in path else "reference_images") == kept
    assert len(await objects(on_s3)) == 3 * kept
    assert await account(on_s3) == (kept * len(DATA), 0)


async def test_row_that_is_refused_takes_its_objects_back(either: World) -> None:
    """Whatever the primary has against it."""
    await either.gateway.primary.fetch(
        "create function no() returns trigger language plpgsql as $$ begin raise 'no'; end $$"
    )
    await either.gateway.primary.fetch("create trigger no before insert on images for each row execute function no()")

    reply = await post(either)

    assert reply.status == 500
    assert await objects(either) == []
    assert await account(either) == (0, 0)


async def test_bad_pictures_reserve_nothing(on_disk: World) -> None:
    """They are looked at first."""
    for data, status in ((b"text", 415), (picture("PNG")[:-9], 422)):
        assert (await post(on_disk, data=data)).status == status

    assert await on_disk.gateway.primary.fetch("select 1 from users where id = 'ana'") == []


async def test_deleted_reference_makes_room_again(either: World) -> None:
    """For good, so at once; its objects follow."""
    reply = await post(either, "/api/references")
    assert await account(either) == (len(DATA), 0)

    deleted = await either.request("DELETE", reply.headers["Location"])

    assert deleted.status == 200
    assert await account(either) == (0, 0)

    async def are_gone() -> bool:
        return await objects(either) == []

    await until(are_gone)


async def test_upload_is_one_version(on_disk: World) -> None:
    """Room that is reserved makes none: nobody is told of what is not there yet."""
    first = await on_disk.upload()
    second = await on_disk.upload()

    versions = [int(reply.headers["Peruse-Bookmark"].rpartition(".")[2]) for reply in (first, second)]
    assert versions[1] == versions[0] + 1


@pytest.mark.parametrize("path", ["/api/images/upload", "/api/references", "/internal/users/ana/images"])
async def test_uploads_beyond_the_room_for_them_are_refused_before_their_bodies_come(
    database: str, tmp_path: Path, path: str
) -> None:
    """A dozen of the largest are taken at once, however slowly they come; room that was held is back when they end, or
    their senders hang up. mission: 52"""
    world = World(tmp_path / "data", database, upload_max_bytes=20_000)
    async with running(world), AsyncExitStack() as stack:
        token = world.token("svc", "service") if path.startswith("/internal") else world.token("ana")
        head = (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
            "Content-Type: multipart/form-data; boundary=b\r\n"
        )
        begun = f"{head}Content-Length: 20000\r\n\r\n".encode()
        chunked = f"{head}Transfer-Encoding: chunked\r\n\r\n".encode()
        slow = [await stack.enter_async_context(connected(world)) for _ in range(LARGEST_AT_ONCE)]
        for number, connection in enumerate(slow):
            await connection.send(chunked if number % 2 else begun)
        await until(lambda: world.gateway.upload_room._free_bytes == 0)

        refused = await post(world)

        assert (refused.status, refused.json["code"]) == (503, "busy")
        assert "Retry-After" in refused.headers
        assert (await world.get("/api/images")).status == 200
        await slow.pop().send(b"no end of a body, and nobody there" * 600)
        await stack.aclose()
        await until(lambda: world.gateway.upload_room._free_bytes == LARGEST_AT_ONCE * 20_000)
        assert (await post(world, data=picture("PNG"))).status == 201
        assert (await world.request("POST", "/api/images/upload", data=form(b"x" * 30_000))).status == 413
        assert world.gateway.upload_room._free_bytes == LARGEST_AT_ONCE * 20_000
