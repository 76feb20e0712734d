"""What makes no sense is refused by name, harms nobody, and stores nothing."""

from __future__ import annotations

import base64
import io
import json
import random
import uuid
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from gateway.routes import generations
from tests.gateway.asking import form, given_images, ids_of, picture, png_claiming, running, stored
from tests.gateway.raw import exchange
from tests.world import Reply, World, png

UPLOAD: Final = "/api/images/upload"
ID: Final = "01900000-0000-7000-8000-000000000000"
TITLES: Final = {400: "Bad request", 404: "Not found", 405: "Method not allowed", 413: "Too large",
                 415: "Unsupported media type", 422: "Unprocessable"}  # fmt: skip


def is_problem(reply: Reply, status: int, field: str | None = None) -> bool:
    """Whether this is a problem as RFC 9457 says, with what our clients read."""
    assert reply.status == status, reply
    body = reply.json
    assert reply.headers["Content-Type"] == "application/problem+json"
    assert reply.headers["Cache-Control"] == "no-store"
    assert set(body) == {"type", "title", "status", "detail", "code", "request_id", "success", "error"} | (
        {"field"} if field else set()
    )
    assert (body["type"], body["status"], body["success"]) == ("about:blank", status, False)
    assert body["title"] == TITLES[status]
    assert body["error"] == body["detail"]
    assert body["request_id"] == reply.headers["X-Request-Id"]
    if field is not None:
        assert body["field"] == field
        assert field in body["detail"]
    return True


def token_of(*parts: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")


# --- URLs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "field"),
    [
        *((f"limit={value}", "limit") for value in ("0", "201", "-1", "1.5", "x", "", "1e2", "٣", "00050", "%00")),
        *((f"sort={value}", "sort") for value in ("", "Newest", "created_at", "newest,oldest", "random()")),
        *((f"visibility={value}", "visibility") for value in ("", "private", "PUBLIC")),
        *((f"starred={value}", "starred") for value in ("", "yes", "True", "2")),
        *((f"trashed={value}", "trashed") for value in ("", "no", "TRUE")),
        *((f"model={value}", "model") for value in ("", "a" * 201, "a%00b")),
        *((f"page_token={value}", "page_token") for value in ("", "x", "e30", "bnVsbA", "W10", "a" * 400, "%F0%9F")),
        ("limit=5&limit=5", "limit"),
        ("trashed=true&trashed=false", "trashed"),
        ("q=cat", "q"),
        ("Limit=5", "Limit"),
        ("limit=5&owner_id=bob", "owner_id"),
        ("offset=5", "offset"),
        ("limit[]=5", "limit[]"),
    ],
)  # fmt: skip
async def test_bad_parameter_of_a_list_is_named(shared: World, user: str, query: str, field: str) -> None:
    """mission: 157"""
    for path in ("/api/images", "/api/v1/images"):
        assert is_problem(await shared.get(f"{path}?{query}", user=user), 400, field)
    service = await shared.get(f"/internal/users/{user}/images?{query}", user="mailer", role="service")
    assert is_problem(service, 400, field)


@pytest.mark.parametrize(
    "token",
    [
        token_of("newest", "0" * 12, 1, ID),
        token_of("oldest", "0" * 12, 1, ID),
        token_of("newest"),
        token_of("newest", None, 1, ID, 5),
        token_of({}, [], None, 5),
        token_of("newest", "0" * 12, "1", ID),
        token_of("newest", "0" * 12, -1, ID),
        token_of("newest", "0" * 12, 10**30, ID),
        token_of("newest", "0" * 12, True, ID),
        token_of("newest", "0" * 12, 1, "x"),
        token_of("newest", "0" * 12, 1, None),
        base64.urlsafe_b64encode(b"[" * 180).decode(),
        base64.urlsafe_b64encode(b"\xff\xfe").decode(),
    ],
)
async def test_made_up_page_token_is_400(shared: World, user: str, token: str) -> None:
    """From the replica as from the primary."""
    for _ in range(2):
        assert is_problem(await shared.get(f"/api/images?page_token={token}", user=user), 400, "page_token")
        await shared.request("POST", "/api/images/sync", user=user)


async def test_page_token_of_another_list_is_400(shared: World, user: str) -> None:
    """A token belongs to its sort and filters, not to its limit."""
    ids = await given_images(shared, user, 4, model="m")
    token = (await shared.get("/api/images?limit=2&model=m", user=user)).json["next_page_token"]

    for query in ("", "&model=n", "&model=m&sort=oldest", "&model=m&starred=false", "&model=m&trashed=true"):
        assert is_problem(await shared.get(f"/api/images?page_token={token}{query}", user=user), 400, "page_token")
    assert ids_of(await shared.get(f"/api/images?limit=1&model=m&page_token={token}", user=user)) == [ids[2]]


@pytest.mark.parametrize("text", ["x", "1", "0" * 36, ID[:-1], ID + "0", ID.replace("-", ""), "%00" * 36, "upload"])
async def test_malformed_id_is_400(shared: World, user: str, text: str) -> None:
    """mission: 157"""
    path = f"/api/images/{text}"
    replies = [
        await shared.get(path, user=user),
        await shared.request("PATCH", path, user=user, json={"starred": True}),
        await shared.request("DELETE", path, user=user),
        await shared.request("POST", f"{path}/restore", user=user),
    ]

    for reply in replies:
        assert is_problem(reply, 400, "id")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"/api/images/{ID}"),
        ("PATCH", f"/api/images/{ID}"),
        ("DELETE", f"/api/images/{ID}"),
        ("POST", f"/api/images/{ID}/restore"),
        ("POST", UPLOAD),
        ("POST", "/api/images/sync"),
    ],
)
async def test_parameter_where_there_are_none_is_named(shared: World, user: str, method: str, path: str) -> None:
    """Also one without a value, twice, or in a script of its own."""
    options: dict[str, Any] = {"json": {"starred": True}} if method == "PATCH" else {}
    for query, field in (("limit=5", "limit"), ("x", "x"), ("a=1&a=2", "a"), ("%C3%A4=1", "ä")):
        reply = await shared.request(method, f"{path}?{query}", user=user, **options)
        assert is_problem(reply, 400, field)


@pytest.mark.parametrize("query", ["&", "&&", "&&&="])
async def test_query_without_parameters_is_none(shared: World, user: str, query: str) -> None:
    """Separators alone name nothing: the request is as without them, or refused."""
    for path in (f"/api/images/{ID}", "/api/images"):
        reply = await shared.get(f"{path}?{query}", user=user)
        assert reply.status < 500, reply


@pytest.mark.parametrize(
    "path", ["/", "/nowhere", "/api", "/api/images/", f"/api/images/{ID}/stars", "/internal/users", "/files/", "/API"]
)  # fmt: skip
async def test_unknown_path_is_404(shared: World, user: str, path: str) -> None:
    """mission: 63"""
    for method in ("GET", "POST"):
        assert is_problem(await shared.request(method, path, user=user), 404)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/api/images", "GET, POST"),
        ("HEAD", "/api/v1/images", "GET"),
        ("PUT", f"/api/images/{ID}", "DELETE, GET, PATCH"),
        ("POST", f"/api/images/{ID}", "DELETE, GET, PATCH"),
        ("GET", f"/api/images/{ID}/restore", "POST"),
        ("DELETE", "/internal/users/x/images", "GET, POST"),
        ("POST", "/files/x", "GET, HEAD"),
        ("POST", "/healthz", "GET, HEAD"),
        ("OPTIONS", "/metrics", "GET, HEAD"),
    ],
)
async def test_wrong_method_is_405_and_names_the_right_ones(
    shared: World, user: str, method: str, path: str, allowed: str
) -> None:
    """mission: 63"""
    reply = await shared.request(method, path, user=user)

    assert reply.headers["Allow"] == allowed
    assert method == "HEAD" or is_problem(reply, 405)


@pytest.mark.parametrize(
    "key",
    [
        "..%2f..%2fetc/passwd",
        "../../etc/passwd",
        "%2e%2e/%2e%2e/etc/passwd",
        "..%5c..%5cetc%5cpasswd",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "generated/../../keys/jwt.pem",
        "generated%2f..%2f..%2fkeys%2fjwt.pem",
        "keys/jwt.pem",
        ".tmp/x",
        "generated/" + "a" * 32,
        "generated/" + "a" * 32 + "/0000000000001-" + "b" * 32,
        "generated/" + "a" * 32 + "/0000000000001-" + "b" * 32 + ".png%00",
        "generated/" + "a" * 32 + "/0000000000001-" + "b" * 32 + ".png%0a",
        "generated/" + "A" * 32 + "/0000000000001-" + "b" * 32 + ".png",
        "generated//" + "b" * 32 + ".png",
        "a" * 4000,
        "%ff%fe",
    ],
)
async def test_key_that_is_none_is_404(shared: World, user: str, key: str) -> None:
    """mission: 62, 177"""
    raw = await exchange(
        shared,
        f"GET /files/{key} HTTP/1.1\r\nHost: peruse\r\nConnection: close\r\n"
        f"Authorization: Bearer {shared.token(user)}\r\n\r\n".encode(),
    )

    assert raw.status == 404
    assert json.loads(raw.body)["error"] in ("Image not found", "there is nothing at this address")
    assert b"root:" not in raw.body
    assert b"PRIVATE" not in raw.body


# --- headers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given_id",
    ["a b", "a\tb", "é", "<script>alert(1)</script>", "a" * 65, "", "a;b", 'a"b', "%0d%0aSet-Cookie:x=1", "${jndi:x}"],
)  # fmt: skip
async def test_strange_request_id_is_not_repeated(shared: World, user: str, given_id: str) -> None:
    """The gateway's own takes its place."""
    for path in ("/api/images", "/nowhere"):
        reply = await shared.get(path, user=user, headers={"X-Request-Id": given_id})
        assert reply.headers.getall("X-Request-Id") != [given_id]
        assert not given_id or given_id.encode() not in reply.body
        assert "Set-Cookie" not in reply.headers


async def test_plain_request_id_comes_back(shared: World, user: str) -> None:
    """So that a client finds its request in the log."""
    for path in ("/api/images", "/healthz", "/nowhere"):
        reply = await shared.get(path, user=user, headers={"X-Request-Id": "Client-1.2_3"})
        assert reply.headers.getall("X-Request-Id") == ["Client-1.2_3"]
    ids = {(await shared.get("/healthz", user=None)).headers["X-Request-Id"] for _ in range(20)}
    assert len(ids) == 20


@pytest.mark.parametrize("line", [b"X-Request-Id: a\r\nSet-Cookie: x=1", b"X-Request-Id: a\nSet-Cookie: x=1"])
async def test_header_after_a_request_id_is_not_answered(shared: World, line: bytes) -> None:
    """A line break ends a header for us as for everybody before us."""
    raw = await exchange(shared, b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + line + b"\r\n\r\n")

    assert raw.status in (200, 400)
    assert b"set-cookie" not in raw.head.lower()


# --- JSON bodies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [False, True])
async def test_json_body_over_64_kib_is_413(shared: World, user: str, chunked: bool) -> None:
    """With its length told or not."""
    (image,) = await given_images(shared, user, 1)
    body = b'{"title": "' + b"a" * 65_536 + b'"}'

    async def chunks() -> Any:
        for start in range(0, len(body), 1000):
            yield body[start : start + 1000]

    reply = await shared.request(
        "PATCH",
        f"/api/images/{image}",
        user=user,
        data=chunks() if chunked else body,
        headers={"Content-Type": "application/json"},
    )

    assert is_problem(reply, 413)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_body_that_is_not_compressed_as_it_says_is_400(shared: World, user: str, encoding: str) -> None:
    """Of JSON and of uploads."""
    boundary = "multipart/form-data; boundary=B"
    for method, path, kind in (("PATCH", f"/api/images/{ID}", "application/json"), ("POST", UPLOAD, boundary)):
        raw = await exchange(
            shared,
            f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: {kind}\r\n"
            f"Authorization: Bearer {shared.token(user)}\r\nContent-Encoding: {encoding}\r\n"
            "Content-Length: 12\r\n\r\nnot deflated".encode(),
        )
        assert raw.status == 400, (kind, raw)


# --- uploads ----------------------------------------------------------------------------------------------------


def animated() -> bytes:
    out = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(out, "PNG", save_all=True, append_images=frames[1:])
    return out.getvalue()


def gif() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "GIF")
    return out.getvalue()


NOT_PICTURES: Final = {
    "empty": (b"", 415),
    "text": (b"hello", 415),
    "noise": (random.Random(3).randbytes(5000), 415),
    "html": (b"<!doctype html><script>alert(1)</script>", 415),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', 415),
    "gif": (gif(), 415),
    "pdf": (b"%PDF-1.7\n", 415),
    "zip": (b"PK\x03\x04" + bytes(100), 415),
    "html behind a png signature": (b"\x89PNG\r\n\x1a\n<script>alert(1)</script>", 422),
    "truncated png": (picture("PNG", (300, 200))[:-40], 422),
    "half a png": (picture("PNG", (300, 200))[:200], 422),
    "truncated jpeg": (picture("JPEG", (300, 200))[:-400], 422),
    "truncated webp": (picture("WEBP", (300, 200))[:-40], 422),
    "truncated avif": (picture("AVIF", (300, 200))[:-40], 422),
    "animated png": (animated(), 422),
    "bomb": (png_claiming(50_000, 50_000), 413),
    "bomb of one line": (png_claiming(2_000_000_000, 1), 413),
    "header that claims more": (png_claiming(400, 300), 422),
    "no pixels": (png_claiming(0, 10), 422),
}


@pytest.mark.parametrize("name", NOT_PICTURES)
async def test_what_is_no_picture_is_refused_and_not_stored(shared: World, user: str, name: str) -> None:
    """mission: 126, 157"""
    data, status = NOT_PICTURES[name]
    before = await stored(shared)

    reply = await shared.request("POST", UPLOAD, user=user, data=form(data, prompt="x", visibility="public"))

    assert is_problem(reply, status)
    assert await stored(shared) == before
    assert (await shared.gateway.primary.fetch("select 1 from users where id = $1", user)) == []


BAD_FIELDS: Final = [
    ("seed", ""),
    ("seed", "-1"),
    ("seed", "1.5"),
    ("seed", "x"),
    ("seed", "4294967296"),
    ("seed", "99999999999"),
    ("seed", "٣"),
    ("seed", " 5"),
    ("prompt", "a\0b"),
    ("prompt", b"\xed\xa0\x80"),
    ("prompt", b"\xff"),
    ("prompt", "a" * 32_001),
    ("prompt", "漢" * 10_667),
    ("negative_prompt", "a\0"),
    ("negative_prompt", "a" * 32_001),
    ("model", ""),
    ("model", "a" * 201),
    ("model", "a\0"),
    ("title", "a" * 201),
    ("title", "\0"),
    ("visibility", ""),
    ("visibility", "private"),
    ("visibility", "PUBLIC"),
    ("owner_id", "bob"),
    ("starred", "true"),
    ("generation_params", "{}"),
    ("Prompt", "x"),
]


@pytest.mark.parametrize(("field", "value"), BAD_FIELDS, ids=lambda value: repr(value)[:20])
async def test_bad_field_of_an_upload_is_named_and_nothing_stored(
    shared: World, user: str, field: str, value: str | bytes
) -> None:
    """mission: 157"""
    before = await stored(shared)

    reply = await shared.request("POST", UPLOAD, user=user, data=form(png(), **{field: value}))

    assert is_problem(reply, 400, field)
    assert await stored(shared) == before


async def test_upload_at_the_edge_of_its_limits_is_kept(shared: World, user: str) -> None:
    """The greatest of each field."""
    fields = {
        "prompt": "a" * 32_000,
        "negative_prompt": "b" * 32_000,
        "model": "c" * 200,
        "title": "d" * 200,
        "seed": "0",
    }

    reply = await shared.request("POST", UPLOAD, user=user, data=form(png(), **fields))

    assert reply.status == 201, reply
    assert {name: str(reply.json["image"][name]) for name in fields} == fields


async def test_field_given_twice_is_named(shared: World, user: str) -> None:
    """Nobody guesses which one was meant."""
    before = await stored(shared)
    two_files = form(png())
    two_files.add_field("file", io.BytesIO(png()), filename="b.png")
    two_prompts = form(png(), prompt="a")
    two_prompts.add_field("prompt", "b")

    assert is_problem(await shared.request("POST", UPLOAD, user=user, data=two_files), 400, "file")
    assert is_problem(await shared.request("POST", UPLOAD, user=user, data=two_prompts), 400, "prompt")
    assert await stored(shared) == before


async def test_upload_without_a_file_is_named(shared: World, user: str) -> None:
    """mission: 157"""
    assert is_problem(await shared.request("POST", UPLOAD, user=user, data=form(None, prompt="x")), 400, "file")
    assert is_problem(await shared.request("POST", UPLOAD, user=user), 400)
    assert is_problem(await shared.request("POST", UPLOAD, user=user, json={"file": "x"}), 400)
    assert is_problem(await shared.request("POST", UPLOAD, user=user, data={"prompt": "x"}), 400)


def multipart(head: bytes, *, end: bytes = b"\r\n--B--\r\n") -> bytes:
    return b"--B\r\n" + head + b"\r\n\r\nx" + end


MALFORMED: Final = {
    "nothing": b"",
    "no boundary": b"hello",
    "only the end": b"--B--\r\n",
    "no end": multipart(b'Content-Disposition: form-data; name="prompt"', end=b""),
    "no name": multipart(b"Content-Disposition: form-data"),
    "no headers": b"--B\r\n\r\n\r\n--B--\r\n",
    "header without a colon": multipart(b"no colon here"),
    "header too long": multipart(b'Content-Disposition: form-data; name="prompt"\r\nX: ' + b"a" * 20_000),
    "too many headers": multipart(b"X: a\r\n" * 500),
    "name that is not UTF-8": multipart(b'Content-Disposition: form-data; name="\xff"'),
    "nested": multipart(b"Content-Type: multipart/mixed; boundary=C"),
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_malformed_multipart_is_400(shared: World, user: str, name: str) -> None:
    """Whatever is wrong with it."""
    before = await stored(shared)

    reply = await shared.request(
        "POST", UPLOAD, user=user, data=MALFORMED[name], headers={"Content-Type": "multipart/form-data; boundary=B"}
    )

    assert reply.status == 400, reply
    assert reply.json["code"] == "invalid_request"
    assert await stored(shared) == before


async def test_file_over_the_limit_is_413(tmp_path: Path, database: str) -> None:
    """The limit is on the file, and is told; at the limit it is kept."""
    noise = Image.frombytes("RGB", (60, 60), random.Random(2).randbytes(10_800))
    out = io.BytesIO()
    noise.save(out, "PNG")
    data = out.getvalue()
    async with running(World(tmp_path / "data", database, upload_max_bytes=len(data), upload_max_pixels=3600)) as world:
        assert is_problem(await world.request("POST", UPLOAD, data=form(data + b"\0")), 413, "file")
        assert is_problem(await world.request("POST", UPLOAD, data=form(bytes(3_000_000))), 413)
        assert is_problem(await world.request("POST", UPLOAD, data=form(picture("PNG", (61, 60)))), 413)
        assert await stored(world) == (0, 0)

        kept = await world.request("POST", UPLOAD, data=form(data))
        assert kept.status == 201, kept


# --- anything at all --------------------------------------------------------------------------------------------

ANYTHING: Final = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
_names = st.sampled_from(["limit", "page_token", "sort", "model", "visibility", "starred", "trashed", "x", ""])
_values = st.one_of(st.text(max_size=30), st.integers().map(str), st.sampled_from(["true", "newest", "public", ID]))


@ANYTHING
@given(pairs=st.lists(st.tuples(_names, _values), max_size=4))
async def test_no_query_is_a_500(shared: World, pairs: list[tuple[str, str]]) -> None:
    """A page or a problem that names a parameter."""
    reply = await shared.get("/api/images", user="fuzz", params=pairs)

    assert reply.status in (200, 400), reply
    assert reply.status == 200 or "field" in reply.json


@ANYTHING
@given(text=st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="#"), max_size=60))
async def test_no_raw_query_is_a_500(shared: World, text: str) -> None:
    """Also one that no client library would write."""
    raw = await exchange(
        shared,
        f"GET /api/images?{text} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Authorization: Bearer {shared.token('fuzz')}\r\n\r\n".encode(),
    )

    assert raw.status in (200, 400), raw


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["starred", "title", "visibility", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@ANYTHING
@given(body=st.one_of(st.binary(max_size=200), _json.map(lambda value: json.dumps(value).encode())))
async def test_no_json_body_is_a_500(shared: World, body: bytes) -> None:
    """404 when it would change something: there is no such image."""
    reply = await shared.request(
        "PATCH", f"/api/images/{uuid.uuid4()}", user="fuzz", data=body, headers={"Content-Type": "application/json"}
    )

    assert reply.status in (400, 404), reply


_SIZES: Final = ["512x512", "1024x1024", "9x9"]
_wants = st.fixed_dictionaries(
    {},
    optional={
        "prompt": st.text(max_size=30) | st.none(),
        "prompts": st.lists(st.text(max_size=10), max_size=3),
        "model": st.sampled_from(["builtin", "openai/dall-e-3", "nothing", "nanobanana", ""]) | st.text(max_size=10),
        "models": st.lists(st.sampled_from(["builtin", "openai/dall-e-2", "x"]), max_size=3),
        "image_size": st.sampled_from(_SIZES),
        **{name: st.integers() | st.floats() | st.none() for name in ("n", "width", "height", "steps", "seed")},
        **{name: st.text(max_size=10) for name in ("negative_prompt", "watermark", "template", "visibility")},
        **{name: st.lists(st.uuids().map(str) | st.just(ID), max_size=2) for name in ("references", "images")},
        **{name: st.uuids().map(str) | st.text(max_size=5) for name in ("remix_of", "variation_of", "parent")},
        "variables": st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2),
        "options": st.dictionaries(st.text(max_size=8), _json, max_size=2),
    },
)


@ANYTHING
@given(
    path=st.sampled_from(["/api/generations", "/api/generations/estimate", "/api/images"]),
    body=st.one_of(
        st.binary(max_size=100), (_json | _wants).map(lambda value: json.dumps(value).encode()),
        _wants.map(lambda value: json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass")),
    ),
    key=st.none() | st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=9),
)  # fmt: skip
async def test_no_wish_for_a_picture_is_a_500(
    studio: World, monkeypatch: pytest.MonkeyPatch, path: str, body: bytes, key: str | None
) -> None:
    """A job, its price, or a problem: nobody has credits here."""
    monkeypatch.setattr(generations, "MAX_WAIT_S", 0)
    headers = {"Content-Type": "application/json"} | ({} if key is None else {"Idempotency-Key": key})
    reply = await studio.request("POST", path, user="fuzz", data=body, headers=headers)

    assert reply.status in (200, 202, 400, 402, 404, 409, 422), reply
    assert reply.json["success"] is (reply.status < 300)


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt": "x", "n": ' + b"9" * 5000 + b"}",
        b'{"prompt": "x", "seed": 1e999}',
        b'{"prompt": "x", "model": "@cf/leonardo/phoenix-1.0", "options": {"guidance": 1e308}}',
        b'{"prompt": "x", "model": "@cf/leonardo/phoenix-1.0", "options": {"guidance": ' + b"9" * 5000 + b"}}",
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "x", "options": {"\\ud800": 1}}',
        b'{"prompt": "x", "variables": {"' + b"a" * 100_000 + b'": ""}}',
        b'{"prompt": ' + b"[" * 100_000,
        b'{"prompts": [' + b",".join([b'"%s"' % (b"\xc3\xa4" * 3000)] * 50) + b"]}",
        b'{"prompt": "' + b"x" * 2**20 + b'"}',
    ],
    ids=range(10),
)
async def test_huge_wish_is_a_problem_or_a_job(studio: World, user: str, body: bytes) -> None:
    for path in ("/api/generations/estimate", "/api/generations"):
        reply = await studio.request(
            "POST", path, user=user, data=io.BytesIO(body), headers={"Content-Type": "application/json"}
        )
        assert reply.status in (200, 202, 400, 402, 413), reply


_part_names = st.sampled_from(["file", "prompt", "seed", "visibility", "x", ""])
_parts = st.lists(st.tuples(_part_names, st.binary(max_size=60)), max_size=4)


@ANYTHING
@given(
    body=st.one_of(
        st.binary(max_size=100),
        st.binary(max_size=100).map(lambda rest: b"--B\r\nContent-Disposition: form-data; name=prompt\r\n\r\n" + rest),
        _parts.map(
            lambda parts: (
                b"".join(
                    b'--B\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), content)
                    for name, content in parts
                )
                + b"--B--\r\n"
            )
        ),
    )
)
async def test_no_upload_is_a_500(shared: World, body: bytes) -> None:
    """Nothing of it is a picture."""
    reply = await shared.request(
        "POST", UPLOAD, user="fuzz", data=body, headers={"Content-Type": "multipart/form-data; boundary=B"}
    )

    assert reply.status in (400, 415, 422), reply


@ANYTHING
@given(
    headers=st.dictionaries(
        st.sampled_from(["If-None-Match", "Peruse-Bookmark", "X-Request-Id", "Accept", "Origin", "Range", "Cookie"]),
        st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=40),
        max_size=3,
    )
)
async def test_no_header_is_a_500(shared: World, headers: dict[str, str]) -> None:
    """Only a bookmark can be wrong."""
    reply = await shared.get("/api/images", user="fuzz", headers=headers)

    assert reply.status in ((200, 304, 400) if "Peruse-Bookmark" in headers else (200, 304)), reply


async def test_client_that_hangs_up_in_an_upload_leaves_nothing(shared: World, user: str) -> None:
    """And the gateway goes on."""
    before = await stored(shared)

    async def half() -> Any:
        yield b"--B\r\nContent-Disposition: form-data; name=file\r\n\r\n" + png()
        raise ConnectionAbortedError("the client changed its mind")

    with pytest.raises((aiohttp.ClientError, ConnectionAbortedError)):
        await shared.request(
            "POST", UPLOAD, user=user, data=half(), headers={"Content-Type": "multipart/form-data; boundary=B"}
        )

    assert (await shared.get("/api/images", user=user)).status == 200
    assert await stored(shared) == before
