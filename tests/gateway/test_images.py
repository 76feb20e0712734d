"""The caller's gallery over HTTP: what is listed, changed, trashed, restored and uploaded, and how fresh it is."""

from __future__ import annotations

import io
import random
import uuid
from typing import Any

import pytest
from PIL import Image

from tests.gateway.asking import (
    bookmark_of,
    form,
    given_images,
    ids_of,
    object_files,
    picture,
    replica_of,
    stored,
)
from tests.gateway.raw import exchange
from tests.world import Reply, World, add_images, png

JSON = {"Content-Type": "application/json"}
FRESHNESS = ("Peruse-Bookmark", "Peruse-Age", "Peruse-Source", "ETag", "Cache-Control", "Vary")


async def patch(world: World, user: str, image: str, body: Any) -> Reply:
    return await world.request("PATCH", f"/api/images/{image}", user=user, json=body)


async def version_of(world: World, user: str) -> int:
    return bookmark_of(await world.get("/api/images", user=user)).version


# --- lists ------------------------------------------------------------------------------------------------------


async def test_list_is_newest_first_and_holds_fifty(shared: World, user: str) -> None:
    """mission: 114, 121, 137, 148"""
    ids = await given_images(shared, user, 60)

    reply = await replica_of(shared, user)

    assert ids_of(reply) == ids[:50]
    assert reply.json["success"] is True
    assert reply.json["next_page_token"] is not None


@pytest.mark.parametrize("limit", [1, 2, 49, 60, 61, 200])
async def test_list_holds_as_many_as_the_limit(shared: World, user: str, limit: int) -> None:
    """The token is there exactly when more images are."""
    ids = await given_images(shared, user, 60)

    reply = await shared.get(f"/api/images?limit={limit}", user=user)

    assert ids_of(reply) == ids[:limit]
    assert (reply.json["next_page_token"] is None) == (limit >= 60)


async def test_unknown_user_has_an_empty_list_at_version_zero(shared: World, user: str) -> None:
    """mission: 148"""
    for reply in (await shared.get("/api/images", user=user), await replica_of(shared, user)):
        assert reply.json == {"success": True, "images": [], "next_page_token": None}
        assert bookmark_of(reply).version == 0


@pytest.mark.parametrize("sort", ["newest", "oldest"])
@pytest.mark.parametrize("limit", [7, 40, 50])
async def test_pages_show_each_of_120_images_once(shared: World, user: str, sort: str, limit: int) -> None:
    """mission: 121, 155"""
    ids = await given_images(shared, user, 120)
    if sort == "oldest":
        ids.reverse()

    seen, token = [], ""
    while token is not None:
        reply = await shared.get(f"/api/images?limit={limit}&sort={sort}{token and '&page_token=' + token}", user=user)
        seen += ids_of(reply)
        token = reply.json["next_page_token"]

    assert seen == ids


async def test_pages_skip_nothing_when_images_come_and_go_between(shared: World, user: str) -> None:
    """A page token is a position and no offset."""
    ids = await given_images(shared, user, 30)
    first = await shared.get("/api/images?limit=10", user=user)

    await given_images(shared, user, 3)
    await shared.request("DELETE", f"/api/images/{ids[9]}", user=user)
    second = await shared.get(f"/api/images?limit=10&page_token={first.json['next_page_token']}", user=user)

    assert ids_of(first) + ids_of(second) == ids[:20]


async def test_images_of_the_same_moment_are_walked_by_id(shared: World, user: str) -> None:
    """Rows of one import may share their time to the microsecond."""
    ids = await given_images(shared, user, 9)
    await shared.write(
        user, lambda c: c.execute("update images set created_at = '2026-01-01Z' where owner_id = $1", user)
    )

    seen, token = [], ""
    while token is not None:
        reply = await shared.get(f"/api/images?limit=2{token and '&page_token=' + token}", user=user)
        seen += ids_of(reply)
        token = reply.json["next_page_token"]

    assert seen == sorted(ids, reverse=True)


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ("model=mine", [1, 3]),
        ("model=nobodys", []),
        ("visibility=public", [2, 3]),
        ("visibility=unlisted", [0, 1]),
        ("starred=true", [0, 3]),
        ("starred=1&model=mine", [3]),
        ("starred=false", [1, 2]),
        ("starred=0&visibility=public", [2]),
        ("trashed=true", [4]),
        ("trashed=false&sort=oldest", [0, 1, 2, 3]),
        ("trashed=true&starred=true", []),
    ],
)
async def test_filters_choose(shared: World, user: str, query: str, numbers: list[int]) -> None:
    """The same from the replica as from the primary."""
    given = [
        {"model": "other", "starred": True},
        {"model": "mine"},
        {"visibility": "public", "model": "other"},
        {"visibility": "public", "starred": True, "model": "mine"},
        {"model": "other"},
    ]
    ids = [(await given_images(shared, user, 1, **columns))[0] for columns in given]
    await shared.request("DELETE", f"/api/images/{ids[4]}", user=user)
    expected = [ids[n] for n in numbers]
    if "oldest" not in query:
        expected.reverse()

    assert ids_of(await shared.get(f"/api/images?{query}", user=user)) == expected
    assert ids_of(await replica_of(shared, user, f"/api/images?{query}")) == expected


async def test_model_filter_takes_any_text_literally(shared: World, user: str) -> None:
    """Also what would be SQL or a pattern."""
    names = ["@cf/stabilityai/sdxl-1.0", "50%", "a_c", "abc", "'; drop table images; --", "模型 🖼", "a&b=c#d"]
    ids = {name: (await given_images(shared, user, 1, model=name))[0] for name in names}

    for name in names:
        reply = await shared.get("/api/images", user=user, params={"model": name})
        assert ids_of(reply) == [ids[name]], name


async def test_versioned_url_answers_the_same(shared: World, user: str) -> None:
    """mission: 151"""
    await given_images(shared, user, 3)
    await replica_of(shared, user)

    plain = await shared.get("/api/images?limit=2", user=user)
    versioned = await shared.get("/api/v1/images?limit=2", user=user)

    assert (plain.body, plain.headers["ETag"]) == (versioned.body, versioned.headers["ETag"])


async def test_one_image_is_read_by_its_id(shared: World, user: str) -> None:
    """mission: 120"""
    ids = await given_images(shared, user, 2)
    listed = (await shared.get("/api/images", user=user)).json["images"]

    for path in (f"/api/images/{ids[1]}", f"/api/images/{ids[1].upper()}"):
        reply = await shared.get(path, user=user)
        assert reply.status == 200
        assert reply.json == {"success": True, "image": listed[1]}
    assert (await replica_of(shared, user, f"/api/images/{ids[1]}")).json["image"] == listed[1]


async def test_image_that_is_not_there_is_404(shared: World, user: str) -> None:
    """mission: 62"""
    await replica_of(shared, user)

    reply = await shared.get(f"/api/images/{uuid.uuid4()}", user=user)

    assert reply.status == 404
    assert reply.json["error"] == "Image not found"
    assert reply.json["success"] is False


# --- changes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("visibility", "public"),
        ("visibility", "unlisted"),
        ("starred", True),
        ("starred", False),
        ("title", "Ein Titel, 漢字 and 🖼"),
        ("title", ""),
        ("title", None),
    ],
)
async def test_patch_sets_a_field_and_leaves_the_others(shared: World, user: str, field: str, value: object) -> None:
    """mission: 84, 123"""
    others = {"visibility": "unlisted", "starred": True, "title": "before"}
    others[field] = {"public": "unlisted", "unlisted": "public", True: False, False: True}.get(value, "before")
    (image,) = await given_images(shared, user, 1, **others)
    before = (await shared.get(f"/api/images/{image}", user=user)).json["image"]

    reply = await patch(shared, user, image, {field: value})

    assert reply.status == 200
    assert reply.json == {"success": True, "image": {**before, field: value}}
    known = {"Peruse-Bookmark": reply.headers["Peruse-Bookmark"]}
    read = await shared.get(f"/api/images/{image}", user=user, headers=known)
    assert read.json == reply.json


async def test_patch_sets_several_fields_as_one_version(shared: World, user: str) -> None:
    """One transaction, one version."""
    (image,) = await given_images(shared, user, 1)
    before = await version_of(shared, user)

    reply = await patch(shared, user, image, {"visibility": "public", "starred": True, "title": "both"})

    assert bookmark_of(reply).version == before + 1
    document = reply.json["image"]
    assert (document["visibility"], document["starred"], document["title"]) == ("public", True, "both")


async def test_patch_to_what_is_there_makes_no_version(shared: World, user: str) -> None:
    """Nothing has to be pulled for it."""
    (image,) = await given_images(shared, user, 1, starred=True, title="x", visibility="public")
    before = await version_of(shared, user)

    reply = await patch(shared, user, image, {"starred": True, "title": "x", "visibility": "public"})

    assert reply.status == 200
    assert bookmark_of(reply).version == before == await version_of(shared, user)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ('{"prompt": "x"}', "prompt"),
        ('{"starred": true, "owner_id": "bob"}', "owner_id"),
        ('{"Starred": true}', "Starred"),
        ('{"starred": 1}', "starred"),
        ('{"starred": "true"}', "starred"),
        ('{"starred": null}', "starred"),
        ('{"visibility": "private"}', "visibility"),
        ('{"visibility": "Public"}', "visibility"),
        ('{"visibility": null}', "visibility"),
        ('{"visibility": ["public"]}', "visibility"),
        ('{"title": 5}', "title"),
        ('{"title": "a\\u0000b"}', "title"),
        (f'{{"title": "{"a" * 201}"}}', "title"),
        ("{}", None),
        ("[]", None),
        ("null", None),
        ('"title"', None),
        ("", None),
        ('{"title": "a"', None),
        ("{'title': 'a'}", None),
        ('{"title": "\\ud800"}', None),
        ('{"title": NaN}', None),
    ],
)
async def test_patch_that_makes_no_sense_is_400_and_changes_nothing(
    shared: World, user: str, body: str, field: str | None
) -> None:
    """mission: 126, 157"""
    (image,) = await given_images(shared, user, 1, title="before")
    before = await shared.get(f"/api/images/{image}", user=user)

    reply = await shared.request("PATCH", f"/api/images/{image}", user=user, data=body, headers=JSON)

    assert reply.status == 400, reply
    assert reply.json.get("field") == field
    if field is not None:
        assert field in reply.json["detail"]
    after = await shared.get(f"/api/images/{image}", user=user)
    assert (after.body, bookmark_of(after)) == (before.body, bookmark_of(before))


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/json-patch+json", ""])
async def test_patch_needs_json_by_its_content_type(shared: World, user: str, kind: str) -> None:
    """A form of another site cannot send one."""
    (image,) = await given_images(shared, user, 1)
    reply = await shared.request(
        "PATCH", f"/api/images/{image}", user=user, data='{"starred": true}', headers={"Content-Type": kind}
    )

    assert reply.status == 400
    assert "application/json" in reply.json["detail"]


async def test_title_has_200_characters_in_every_script(shared: World, user: str) -> None:
    """The limit is named in characters, so it counts characters."""
    (image,) = await given_images(shared, user, 1)

    reply = await patch(shared, user, image, {"title": "漢" * 200})

    assert reply.status == 200, reply


@pytest.mark.parametrize("method", ["PATCH", "DELETE", "POST"])
async def test_change_of_an_unknown_image_is_404(shared: World, user: str, method: str) -> None:
    """mission: 62"""
    path = f"/api/images/{uuid.uuid4()}" + ("/restore" if method == "POST" else "")
    body = {"json": {"starred": True}} if method == "PATCH" else {}

    reply = await shared.request(method, path, user=user, **body)

    assert (reply.status, reply.json["error"]) == (404, "Image not found")


# --- the trash --------------------------------------------------------------------------------------------------


async def test_trashed_image_comes_back_to_its_place(shared: World, user: str) -> None:
    """mission: 116, 138"""
    ids = await given_images(shared, user, 5)

    trashed = await shared.request("DELETE", f"/api/images/{ids[2]}", user=user)
    assert trashed.status == 200
    assert trashed.json["image"]["trashed_at"] is not None
    assert ids_of(await shared.get("/api/images", user=user)) == [*ids[:2], *ids[3:]]
    assert ids_of(await shared.get("/api/images?trashed=true", user=user)) == [ids[2]]
    assert (await shared.get(f"/api/images/{ids[2]}", user=user)).json == trashed.json

    restored = await shared.request("POST", f"/api/images/{ids[2]}/restore", user=user)
    assert restored.json["image"]["trashed_at"] is None
    assert ids_of(await shared.get("/api/images", user=user)) == ids
    assert ids_of(await shared.get("/api/images?trashed=true", user=user)) == []


async def test_trashing_twice_keeps_the_first_time(shared: World, user: str) -> None:
    """And restoring twice is restoring once; neither repetition makes a version."""
    (image,) = await given_images(shared, user, 1)

    first = await shared.request("DELETE", f"/api/images/{image}", user=user)
    second = await shared.request("DELETE", f"/api/images/{image}", user=user)
    assert second.status == 200
    assert (second.body, bookmark_of(second)) == (first.body, bookmark_of(first))

    restored = await shared.request("POST", f"/api/images/{image}/restore", user=user)
    again = await shared.request("POST", f"/api/images/{image}/restore", user=user)
    assert again.status == 200
    assert (again.body, bookmark_of(again)) == (restored.body, bookmark_of(restored))


# --- uploads ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "content_type", "extension"),
    [
        ("PNG", "image/png", "png"),
        ("JPEG", "image/jpeg", "jpg"),
        ("WEBP", "image/webp", "webp"),
        ("AVIF", "image/avif", "avif"),
    ],
)
@pytest.mark.parametrize("claimed", ["image/png", "text/html"])
async def test_upload_is_described_by_its_bytes(
    shared: World, user: str, kind: str, content_type: str, extension: str, claimed: str
) -> None:
    """mission: 81, 82, 85, 86, 87, 88, 89, 90, 117, 119, 169"""
    data = picture(kind, (500, 300))

    reply = await shared.request("POST", "/api/images/upload", user=user, data=form(data, content_type=claimed))

    assert reply.status == 201, reply
    image = reply.json["image"]
    assert (image["content_type"], image["width"], image["height"]) == (content_type, 500, 300)
    assert image["size_bytes"] == len(data)
    assert image["url"].startswith("/files/generated/")
    assert image["filename"] == image["url"].rpartition("/")[2]
    assert image["filename"].endswith(f".{extension}")
    file = await shared.get(image["url"], user=None)
    assert (file.status, file.headers["Content-Type"], file.body) == (200, content_type, data)


async def test_upload_has_a_small_webp_thumbnail(shared: World, user: str) -> None:
    """mission: 189"""
    reply = await shared.request("POST", "/api/images/upload", user=user, data=form(picture("JPEG", (1200, 900))))
    image = reply.json["image"]

    thumb = await shared.get(image["thumb_url"], user=None)

    assert (thumb.status, thumb.headers["Content-Type"]) == (200, "image/webp")
    with Image.open(io.BytesIO(thumb.body)) as opened:
        assert (opened.format, opened.size) == ("WEBP", (384, 288))
    assert image["thumbhash"]


async def test_upload_keeps_every_field(shared: World, user: str) -> None:
    """mission: 81, 83, 84, 91, 92, 93, 94, 95, 96, 117"""
    fields = {
        "prompt": "a lighthouse,\r\nat dusk — 灯台 🗼",
        "negative_prompt": "people",
        "model": "@cf/lykon/dreamshaper-8-lcm",
        "seed": "4294967295",
        "title": "Dusk",
        "visibility": "public",
    }

    reply = await shared.request("POST", "/api/images/upload", user=user, data=form(png(), **fields))

    image = reply.json["image"]
    assert {name: image[name] for name in fields} == {**fields, "seed": 4294967295}
    assert (image["starred"], image["trashed_at"], image["generation_params"]) == (False, None, {})
    assert image["created_at"].endswith("Z")
    assert ids_of(await shared.get("/api/images", user=user)) == [image["id"]]
    (row,) = await shared.gateway.primary.fetch("select owner_id from images where id = $1", uuid.UUID(image["id"]))
    assert row["owner_id"] == user


async def test_upload_without_fields_is_unlisted(shared: World, user: str) -> None:
    """Nothing gets into the public feed by being left out."""
    reply = await shared.request("POST", "/api/images/upload", user=user, data=form(png()))

    image = reply.json["image"]
    assert (image["visibility"], image["prompt"], image["model"]) == ("unlisted", "", "upload")
    assert (image["negative_prompt"], image["seed"], image["title"]) == (None, None, None)


async def test_upload_says_where_the_image_is(shared: World, user: str) -> None:
    """Location is a URL that answers with the same document."""
    reply = await shared.request("POST", "/api/images/upload", user=user, data=form(png()))

    read = await shared.get(reply.headers["Location"], user=user)

    assert read.json == reply.json


async def test_upload_of_several_megabytes_is_kept_whole(shared: World, user: str) -> None:
    """Limits of JSON bodies are none of pictures."""
    noise = Image.frombytes("RGB", (1000, 1000), random.Random(1).randbytes(3_000_000))
    out = io.BytesIO()
    noise.save(out, "PNG")

    reply = await shared.request("POST", "/api/images/upload", user=user, data=form(out.getvalue()))

    assert reply.status == 201, reply
    assert (await shared.get(reply.json["image"]["url"], user=None)).body == out.getvalue()


async def test_upload_of_the_same_bytes_twice_is_two_images(shared: World, user: str) -> None:
    """Keys are made of chance, not of content: nobody learns that somebody else has the same picture."""
    before = await stored(shared)
    first, second = [await shared.upload(user=user) for _ in range(2)]

    assert first.json["image"]["url"] != second.json["image"]["url"]
    rows, files = await stored(shared)
    assert (rows - before[0], files - before[1]) == (2, 6)
    assert not [path for path in object_files(shared) if path.parent.name == ".tmp"]


# --- freshness --------------------------------------------------------------------------------------------------


async def test_every_read_says_how_fresh_it_is(shared: World, user: str) -> None:
    """Whoever answered, and for every way to ask."""
    (image,) = await given_images(shared, user, 1)
    first = await shared.get("/api/images", user=user)
    await replica_of(shared, user)

    replies = [first]
    for path in ("/api/images", "/api/v1/images?limit=1", "/api/images?trashed=true", f"/api/images/{image}"):
        replies.append(await shared.get(path, user=user))
        tag = {"If-None-Match": replies[-1].headers["ETag"]}
        replies.append(await shared.get(path, user=user, headers=tag))

    for reply in replies:
        assert reply.headers.keys() >= set(FRESHNESS) | {"X-Request-Id"}, reply.headers
        assert all(len(reply.headers.getall(name)) == 1 for name in FRESHNESS)
        assert reply.headers["Peruse-Source"] in ("replica", "seeding", "primary")
        assert reply.headers["Peruse-Age"].isdigit()
        assert reply.headers["Cache-Control"] == "private, no-cache"
        assert reply.headers["Vary"] == "Authorization, Cookie"
        assert reply.headers["ETag"].startswith(f'"{bookmark_of(reply)}.')
        if reply.status == 200:
            assert reply.headers["Content-Type"] == "application/json; charset=utf-8"
            assert reply.headers["Content-Length"] == str(len(reply.body))


@pytest.mark.parametrize("line", ["HTTP/1.0", "HTTP/1.1"])
async def test_connection_that_ends_gets_the_same_headers(shared: World, user: str, line: str) -> None:
    """The short way of writing a head says what aiohttp's own would."""
    await given_images(shared, user, 2)
    kept = await replica_of(shared, user)

    raw = await exchange(
        shared,
        f"GET /api/images {line}\r\nHost: peruse\r\nConnection: close\r\n"
        f"Authorization: Bearer {shared.token(user)}\r\n\r\n".encode(),
    )

    assert (raw.status, raw.body) == (200, kept.body)
    ended = [tuple(header.split(": ", 1)) for header in raw.head.decode().split("\r\n")[1:]]
    varies = {"connection", "date", "peruse-age", "peruse-outcome", "x-request-id"}
    both = [
        sorted((name.lower(), value) for name, value in headers if name.lower() not in varies)
        for headers in (ended, kept.headers.items())
    ]
    assert both[0] == both[1]


@pytest.mark.parametrize(
    "given", ["{}", "W/{}", '"other", {}', '"other",W/{} , "more"', "*", '"other", *'], ids=lambda given: given
)
@pytest.mark.parametrize("path", ["/api/images?limit=3", "/api/images/{}"], ids=["list", "one"])
async def test_known_etag_is_304_without_a_body(shared: World, user: str, given: str, path: str) -> None:
    """mission: 146"""
    (image,) = await given_images(shared, user, 1)
    known = await replica_of(shared, user, path.format(image))

    reply = await shared.get(
        path.format(image), user=user, headers={"If-None-Match": given.format(known.headers["ETag"])}
    )

    assert (reply.status, reply.body) == (304, b"")
    assert reply.headers["ETag"] == known.headers["ETag"]
    assert reply.headers["Peruse-Bookmark"] == known.headers["Peruse-Bookmark"]


async def test_etag_of_before_a_change_or_of_another_query_gets_the_page(shared: World, user: str) -> None:
    """A tag names one position and one query."""
    (image,) = await given_images(shared, user, 1)
    known = (await replica_of(shared, user)).headers["ETag"]

    assert (await shared.get("/api/images?limit=9", user=user, headers={"If-None-Match": known})).status == 200
    assert (await shared.get("/api/images", user=user, headers={"If-None-Match": known[:-2] + '"'})).status == 200
    await patch(shared, user, image, {"starred": True})
    changed = await shared.get("/api/images", user=user, headers={"If-None-Match": known})
    assert (changed.status, changed.json["images"][0]["starred"]) == (200, True)


async def test_fifty_writes_are_each_read_at_once(shared: World, user: str) -> None:
    """mission: 139, 140, 199"""
    ids = await given_images(shared, user, 8)
    chance = random.Random(20)
    state = {image: {"title": None, "starred": False, "trashed": False} for image in ids}
    seen = bookmark_of(await shared.get("/api/images", user=user))

    for number in range(50):
        image = chance.choice(ids)
        was = state[image]
        if (action := chance.randrange(3)) == 0:
            was["title"] = f"title {number}"
            wrote = await patch(shared, user, image, {"title": was["title"]})
        elif action == 1:
            was["starred"] = not was["starred"]
            wrote = await patch(shared, user, image, {"starred": was["starred"]})
        else:
            was["trashed"] = not was["trashed"]
            way = ("DELETE", "") if was["trashed"] else ("POST", "/restore")
            wrote = await shared.request(way[0], f"/api/images/{image}{way[1]}", user=user)
        assert wrote.status == 200, wrote
        assert bookmark_of(wrote).version == seen.version + 1
        seen = bookmark_of(wrote)

        reads = ["/api/images", f"/api/images/{image}", "/api/images?starred=true", "/api/images?trashed=true"]
        for path in chance.sample(reads, 3):
            headers = {"Peruse-Bookmark": str(seen)} if chance.random() < 0.5 else {}
            reply = await shared.get(path, user=user, headers=headers)
            assert reply.status == 200
            assert not seen.is_after(*bookmark_of(reply))
            if path.endswith(image):
                document = reply.json["image"]
                assert (document["title"], document["starred"]) == (was["title"], was["starred"])
                assert (document["trashed_at"] is not None) == was["trashed"]
            else:
                wants = {"starred": "starred" in path, "trashed": "trashed" in path}
                expected = [
                    one for one in ids
                    if state[one]["trashed"] == wants["trashed"] and (state[one]["starred"] or not wants["starred"])
                ]  # fmt: skip
                assert ids_of(reply) == expected


async def test_write_of_another_service_is_read_with_its_bookmark(shared: World, user: str) -> None:
    """A write that no gateway made is seen by whoever brings its position."""
    await replica_of(shared, user)
    before = bookmark_of(await shared.get("/api/images", user=user))
    (image,) = [str(i) for i in await _quietly(shared, user)]

    reply = await shared.get(
        "/api/images", user=user, headers={"Peruse-Bookmark": f"{before.epoch}.{before.version + 1}"}
    )

    assert ids_of(reply) == [image]
    assert bookmark_of(reply).version == before.version + 1


async def _quietly(world: World, user: str) -> list[uuid.UUID]:
    """One image, and nobody is told."""
    async with world.gateway.primary.connection() as connection, connection.transaction():
        return await add_images(connection, user, 1)


@pytest.mark.parametrize(
    "bookmark",
    ["{epoch}.999999999999999999", "999999999999999-1.5", "999999999999999-9999999999.0", "1-1.7", "{epoch}.0"],
)
async def test_bookmark_that_nobody_gave_is_answered_at_once(shared: World, user: str, bookmark: str) -> None:
    """From the future or from another history: the head is shown, and the next reader is not harmed."""
    (image,) = await given_images(shared, user, 1)
    known = bookmark_of(await replica_of(shared, user))

    for _ in range(3):
        headers = {"Peruse-Bookmark": bookmark.format(epoch=known.epoch)}
        reply = await shared.get("/api/images", user=user, headers=headers)
        assert ids_of(reply) == [image]
        assert bookmark_of(reply) == known
    after = await shared.get("/api/images", user=user)
    assert (bookmark_of(after), after.headers["Peruse-Source"]) == (known, "replica")


@pytest.mark.parametrize(
    "bookmark",
    ["", "x", "1", "1-1", "1-1.", ".5", "1.5", "1-1.-5", "1-1.5.6", "1-1.1e3", " - . ", "1" * 400, "1-1.٣", "1-1.5;"],
)
async def test_malformed_bookmark_is_400(shared: World, user: str, bookmark: str) -> None:
    """It names the header."""
    reply = await shared.get("/api/images", user=user, headers={"Peruse-Bookmark": bookmark})

    assert reply.status == 400, reply
    assert reply.json["field"] == "Peruse-Bookmark"
    assert "Peruse-Bookmark" in reply.json["detail"]


async def test_write_is_never_kept_by_a_cache(shared: World, user: str) -> None:
    """Each write's reply says so, and where its reader has to be."""
    uploaded = await shared.upload(user=user)
    image = uploaded.json["image"]["id"]
    replies = [
        uploaded,
        await patch(shared, user, image, {"starred": True}),
        await shared.request("DELETE", f"/api/images/{image}", user=user),
        await shared.request("POST", f"/api/images/{image}/restore", user=user),
        await shared.request("POST", "/api/images/sync", user=user),
    ]

    bookmarks = [bookmark_of(reply) for reply in replies]
    assert bookmarks == sorted(bookmarks)
    assert all(reply.headers["Cache-Control"] == "no-store" for reply in replies)


async def test_sync_brings_the_replica_to_head(shared: World, user: str) -> None:
    """mission: 133, 147"""
    await replica_of(shared, user)
    await _quietly(shared, user)

    reply = await shared.request("POST", "/api/images/sync", user=user)

    assert reply.status == 200
    assert reply.json["success"] is True
    assert reply.json["version"] == bookmark_of(reply).version > 0
    read = await shared.get("/api/images", user=user)
    assert (len(ids_of(read)), read.headers["Peruse-Source"]) == (1, "replica")
    assert bookmark_of(read) == bookmark_of(reply)
    again = await shared.request("POST", "/api/images/sync", user=user)
    assert (again.json["version"], again.json["applied"]) == (reply.json["version"], 0)
