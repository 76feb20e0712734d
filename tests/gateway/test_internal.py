"""Internal services, which act for any user."""

from __future__ import annotations

import pytest

from tests.gateway.asking import bookmark_of, form, given_images, ids_of, picture, replica_of, stored
from tests.world import World


async def test_service_lists_a_users_images(shared: World, user: str) -> None:
    """The same bytes as the user gets."""
    ids = await given_images(shared, user, 3)
    own = await replica_of(shared, user)

    for role in ("service", "admin"):
        reply = await shared.get(f"/internal/users/{user}/images", user="mailer", role=role)
        assert ids_of(reply) == ids
        assert (reply.body, reply.headers["ETag"]) == (own.body, own.headers["ETag"])
    page = await shared.get(f"/internal/users/{user}/images?limit=2&sort=oldest", user="mailer", role="service")
    assert ids_of(page) == ids[:0:-1]


async def test_unknown_user_has_an_empty_list(shared: World, user: str) -> None:
    """Reading makes nobody a user."""
    reply = await shared.get(f"/internal/users/{user}/images", user="mailer", role="service")

    assert reply.json == {"success": True, "images": [], "next_page_token": None}
    assert reply.headers["Peruse-Bookmark"].endswith(".0")
    assert await shared.gateway.primary.fetch("select 1 from users where id = $1", user) == []


async def test_service_saves_an_image_for_a_user(shared: World, user: str) -> None:
    """mission: 117, 140"""
    body = form(picture("PNG"), prompt="from a service", model="m")
    saved = await shared.request("POST", f"/internal/users/{user}/images", user="mailer", role="service", data=body)

    assert saved.status == 201
    reply = await shared.get("/api/images", user=user, headers={"Peruse-Bookmark": saved.headers["Peruse-Bookmark"]})
    assert [image["prompt"] for image in reply.json["images"]] == ["from a service"]
    assert (await shared.get(saved.headers["Location"], user=user)).json == saved.json
    assert ids_of(await shared.get("/internal/users/mailer/images", user="mailer", role="service")) == []


async def test_service_syncs_a_user(shared: World, user: str) -> None:
    """mission: 133, 140, 147"""
    await given_images(shared, user, 2)

    reply = await shared.request("POST", f"/internal/users/{user}/sync", user="mailer", role="service")

    assert reply.status == 200
    assert reply.json.keys() == {"success", "version", "applied"}
    assert reply.json["success"] is True
    assert reply.json["version"] == bookmark_of(reply).version == 1
    read = await shared.get("/api/images", user=user)
    assert (read.headers["Peruse-Source"], len(ids_of(read))) == ("replica", 2)


async def test_sync_of_an_unknown_user_is_at_zero(shared: World, user: str) -> None:
    """There is nothing to bring, which is no error."""
    reply = await shared.request("POST", f"/internal/users/{user}/sync", user="mailer", role="service")

    assert reply.json == {"success": True, "version": 0, "applied": 0}


@pytest.mark.parametrize(
    "name", ["~peruse", "a%20b", "a%2Fb", "%C3%A4", "a" * 129, "a%00", "a'b", "*", "a%0A", "..%2f..", "%F0%9F%96%BC"]
)
async def test_bad_user_id_is_400_and_stores_nothing(shared: World, name: str) -> None:
    """It names the part of the path."""
    before = await stored(shared)

    for method, end, data in (
        ("GET", "images", None),
        ("POST", "images", form(picture("PNG"))),
        ("POST", "sync", None),
    ):
        reply = await shared.request(method, f"/internal/users/{name}/{end}", user="mailer", role="service", data=data)
        assert reply.status == 400, (name, reply)
        assert reply.json["field"] == "user"
        assert "user id" in reply.json["detail"]
    assert await stored(shared) == before


async def test_bad_query_of_a_service_is_named(shared: World, user: str) -> None:
    """The same rules as for the user."""
    for query, field in (("limit=0", "limit"), ("user=x", "user"), ("page_token=x", "page_token")):
        reply = await shared.get(f"/internal/users/{user}/images?{query}", user="mailer", role="service")
        assert (reply.status, reply.json["field"]) == (400, field)
    reply = await shared.request("POST", f"/internal/users/{user}/sync?force=1", user="mailer", role="service")
    assert (reply.status, reply.json["field"]) == (400, "force")
