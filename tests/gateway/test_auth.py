"""Who is asking: tokens, keys of other issuers, API keys, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, OKPKey, RSAKey

from gateway import jwks
from gateway.auth import Authenticator, Signer
from gateway.config import GatewaySettings
from store import api_keys
from store.errors import SettingError
from store.primary import Primary
from tests.gateway.asking import replica_of, running
from tests.gateway.link import PrimaryLink
from tests.world import Reply, World, until


def claims(**changed: Any) -> dict[str, Any]:
    """Claims of a good token with some changed; None leaves one out."""
    now = int(time.time())
    made = {"iss": "peruse", "aud": "peruse", "sub": "ana", "role": "user", "iat": now, "exp": now + 600, **changed}
    return {name: value for name, value in made.items() if value is not None}


def signed(world: World, **changed: Any) -> str:
    """A token by the world's own key."""
    return jwt.encode({"alg": "Ed25519"}, claims(**changed), Signer(world.data, world.settings).key(), ["Ed25519"])


def by_hand(header: dict[str, Any], payload: dict[str, Any], sign: Callable[[bytes], bytes]) -> str:
    """A token that no library would make."""
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, payload)]
    signature = base64.urlsafe_b64encode(sign(b".".join(parts))).rstrip(b"=")
    return b".".join((*parts, signature)).decode()


async def ask(world: World, authorization: str | None) -> Reply:
    headers = {} if authorization is None else {"Authorization": authorization}
    return await world.get("/api/images", user=None, headers=headers)


def is_unauthorized(reply: Reply) -> bool:
    """A 401 as every client expects it."""
    if reply.status != 401:
        return False
    assert reply.headers["WWW-Authenticate"] == 'Bearer realm="peruse"'
    assert reply.headers["Content-Type"] == "application/problem+json"
    assert reply.json["error"] == "Unauthorized"
    assert (reply.json["success"], reply.json["code"], reply.json["status"]) == (False, "unauthorized", 401)
    return True


# --- our own tokens ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Basic YW5hOmFuYQ==",
        "Token x",
        "Bearer x",
        "Bearer x.y.z",
        "Bearer ..",
        "Bearer a.b.c.d.e",
        "Bearer " + "a" * 5000,
        "Bearer " + base64.urlsafe_b64encode(b"[" * 3000).decode() + ".e30.AA",
        "Bearer é.é.é",
        "Bearer pk_",
        "Bearer pk_" + "A" * 43,
        "Bearer pk_\t",
    ],
)
async def test_request_without_a_credential_is_401(shared: World, authorization: str | None) -> None:
    """mission: 60, 206"""
    assert is_unauthorized(await ask(shared, authorization))


async def test_good_token_names_its_user(shared: World, user: str) -> None:
    """mission: 207, 208"""
    image = (await shared.upload(user=user)).json["image"]

    reply = await ask(shared, f"Bearer {signed(shared, sub=user)}")

    assert [one["id"] for one in reply.json["images"]] == [image["id"]]
    assert (await ask(shared, f"bearer {signed(shared, sub=user)}")).status == 200


@pytest.mark.parametrize(
    "changed",
    [
        {"exp": lambda: time.time() - 60},
        {"exp": lambda: 0},
        {"exp": lambda: None},
        {"exp": lambda: str(time.time() + 600)},
        {"iss": lambda: "other"},
        {"iss": lambda: None},
        {"aud": lambda: "other"},
        {"aud": lambda: ["other"]},
        {"aud": lambda: None},
        {"nbf": lambda: time.time() + 600},
        {"role": lambda: "root"},
        {"role": lambda: "User"},
        {"role": lambda: ""},
        {"role": lambda: 1},
        {"sub": lambda: None},
        {"sub": lambda: ""},
        {"sub": lambda: 7},
        {"sub": lambda: "~peruse"},
        {"sub": lambda: "a b"},
        {"sub": lambda: "../ana"},
        {"sub": lambda: "ana\n"},
        {"sub": lambda: "änne"},
        {"sub": lambda: "a" * 129},
        {"sub": lambda: "a%00"},
    ],
    ids=lambda changed: next(iter(changed)),
)
async def test_token_with_a_wrong_claim_is_401(shared: World, changed: dict[str, Callable[[], Any]]) -> None:
    """mission: 207"""
    values = {name: value() for name, value in changed.items()}

    assert is_unauthorized(await ask(shared, f"Bearer {signed(shared, **values)}")), values


@pytest.mark.parametrize("role", [["user"], ["admin", "user"], {"name": "user"}], ids=repr)
async def test_token_whose_role_is_no_text_is_401(shared: World, role: object) -> None:
    """Other issuers put lists of roles into this claim."""
    assert is_unauthorized(await ask(shared, f"Bearer {signed(shared, role=role)}"))


async def test_token_just_expired_is_taken_for_the_clocks_sake(shared: World) -> None:
    """Half a minute of leeway, and no role means user."""
    assert (await ask(shared, f"Bearer {signed(shared, exp=time.time() - 10)}")).status == 200
    assert (await ask(shared, f"Bearer {signed(shared, role=None)}")).status == 200
    assert (await ask(shared, f"Bearer {signed(shared, aud=['x', 'peruse'])}")).status == 200


async def test_known_token_ends_when_it_expires(shared: World) -> None:
    """What is kept of a verified token does not outlive it."""
    token = signed(shared, exp=time.time() - 28.5)
    assert (await ask(shared, f"Bearer {token}")).status == 200

    async def is_over() -> bool:
        return (await ask(shared, f"Bearer {token}")).status == 401

    await until(is_over, timeout_s=4.0)


async def test_token_of_another_key_is_401(shared: World) -> None:
    """Whatever its key id and algorithm say."""
    other = OKPKey.generate_key("Ed25519")
    own = Signer(shared.data, shared.settings).key()
    public = own.as_pem(private=False)
    raw = base64.urlsafe_b64decode(own.as_dict()["x"] + "==")
    rsa = RSAKey.generate_key(2048)

    tokens = [
        jwt.encode({"alg": "Ed25519"}, claims(), other, ["Ed25519"]),
        by_hand({"alg": "EdDSA"}, claims(), own.private_key.sign),
        jwt.encode({"alg": "RS256"}, claims(), rsa, ["RS256"]),
        jwt.encode({"alg": "Ed25519", "jwk": other.as_dict(private=False)}, claims(), other, ["Ed25519"]),
        by_hand({"alg": "none"}, claims(), lambda _: b""),
        by_hand({"alg": "None", "typ": "JWT"}, claims(), lambda _: b""),
        by_hand({"typ": "JWT"}, claims(), lambda _: b""),
    ]
    for secret in (public, public.strip(), raw, b""):
        tokens.append(
            by_hand({"alg": "HS256"}, claims(), lambda text, key=secret: hmac.new(key, text, hashlib.sha256).digest())
        )

    for token in tokens:
        assert is_unauthorized(await ask(shared, f"Bearer {token}")), token


async def test_changed_token_is_401(shared: World) -> None:
    """Another user in a signed token is another token."""
    header, _, signature = signed(shared, sub="ana").split(".")
    payload = base64.urlsafe_b64encode(json.dumps(claims(sub="bob")).encode()).rstrip(b"=").decode()

    assert is_unauthorized(await ask(shared, f"Bearer {header}.{payload}.{signature}"))
    assert is_unauthorized(await ask(shared, f"Bearer {header}.{payload}."))


async def test_refusal_never_repeats_the_credential(
    shared: World, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """mission: 209"""
    tokens = [signed(shared, iss="other"), signed(shared, sub="ana"), api_keys.PREFIX + "S" * 43]

    for token in tokens:
        for path in ("/api/images", "/api/images?limit=x", "/internal/users/x/images", "/nowhere"):
            reply = await shared.get(path, user=None, headers={"Authorization": f"Bearer {token}"})
            assert token.encode() not in reply.body + repr(reply.headers).encode()

    logged = "".join(capfd.readouterr()) + caplog.text
    assert not [token for token in tokens if token in logged or token.rpartition(".")[2] in logged]


# --- API keys ---------------------------------------------------------------------------------------------------


async def test_api_key_is_its_owner(shared: World, user: str) -> None:
    """mission: 149, 158"""
    key = await api_keys.create_key(shared.gateway.primary, user, name="laptop")
    image = (await shared.upload(user=user)).json["image"]

    reply = await ask(shared, f"Bearer {key.secret}")

    assert [one["id"] for one in reply.json["images"]] == [image["id"]]
    headers = {"Authorization": f"Bearer {key.secret}"}
    change = await shared.request(
        "PATCH", f"/api/images/{image['id']}", user=None, headers=headers, json={"starred": True}
    )
    assert change.status == 200
    assert (await shared.get(f"/internal/users/{user}/images", user=None, headers=headers)).status == 403


async def test_api_key_is_kept_as_a_hash_only(shared: World, user: str) -> None:
    """Who reads the table learns no key."""
    key = await api_keys.create_key(shared.gateway.primary, user)
    await ask(shared, f"Bearer {key.secret}")

    (row,) = await shared.gateway.primary.fetch("select *, k::text as whole from api_keys k where id = $1", key.id)

    assert row["hash"] == hashlib.sha256(key.secret.encode()).digest()
    assert key.secret.startswith(row["hint"])
    assert len(row["hint"]) == 8
    assert key.secret not in row["whole"]
    assert key.secret[8:] not in row["whole"]


async def test_revoked_api_key_ends_within_two_seconds(shared: World, user: str) -> None:
    """mission: 158"""
    key, other = [await api_keys.create_key(shared.gateway.primary, user) for _ in range(2)]
    for one in (key, other):
        assert (await ask(shared, f"Bearer {one.secret}")).status == 200

    await api_keys.revoke_key(shared.gateway.primary, user, key.id)

    await _ends(shared, f"Bearer {key.secret}")
    assert (await ask(shared, f"Bearer {other.secret}")).status == 200


async def test_revoked_api_key_ends_however_it_was_written(shared: World, user: str) -> None:
    """The scheme's name is free in its case, and the key is one key."""
    key = await api_keys.create_key(shared.gateway.primary, user)
    ways = [f"{scheme} {key.secret}" for scheme in ("Bearer", "bearer", "BEARER")]
    for way in ways:
        assert (await ask(shared, way)).status == 200

    await api_keys.revoke_key(shared.gateway.primary, user, key.id)

    for way in ways:
        await _ends(shared, way)


async def test_new_api_key_works_in_every_writing_at_once(shared: World, user: str) -> None:
    """Two look-ups of one key do not end each other."""
    key = await api_keys.create_key(shared.gateway.primary, user)

    replies = await asyncio.gather(*(ask(shared, f"{scheme} {key.secret}") for scheme in ("Bearer", "bearer")))

    assert [reply.status for reply in replies] == [200, 200]


async def _ends(world: World, authorization: str) -> None:
    async def is_over() -> bool:
        return is_unauthorized(await ask(world, authorization))

    await until(is_over, timeout_s=2.0)


# --- other issuers ----------------------------------------------------------------------------------------------


def _keys(algorithm: str) -> Any:
    return RSAKey.generate_key(2048) if algorithm == "RS256" else ECKey.generate_key("P-256")


@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
async def test_configured_public_key_verifies(tmp_path: Path, database: str, algorithm: str) -> None:
    """Then the data folder's own key signs nothing that counts."""
    key = _keys(algorithm)
    pem = tmp_path / "issuer.pem"
    pem.write_bytes(key.as_pem(private=False))
    own = {"iss": "https://id.example", "aud": "a"}
    settings = {"jwt_key": str(pem), "jwt_algorithm": algorithm, "jwt_issuer": own["iss"], "jwt_audience": own["aud"]}

    async with running(World(tmp_path / "data", database, **settings)) as world:
        good = claims(**own, sub="auth0|42")
        assert (await ask(world, f"Bearer {jwt.encode({'alg': algorithm}, good, key, [algorithm])}")).status == 200
        secret = pem.read_bytes()
        for token in (
            signed(world, **own),
            jwt.encode({"alg": algorithm}, claims(), key, [algorithm]),
            jwt.encode({"alg": algorithm}, good, _keys(algorithm), [algorithm]),
            by_hand({"alg": "HS256"}, good, lambda text: hmac.new(secret, text, hashlib.sha256).digest()),
        ):
            assert is_unauthorized(await ask(world, f"Bearer {token}"))


@pytest.mark.parametrize("content", [b"", b"no key", None])
async def test_unusable_public_key_stops_the_start(tmp_path: Path, primary: Primary, content: bytes | None) -> None:
    """The error names the setting and the file."""
    pem = tmp_path / "issuer.pem"
    if content is not None:
        pem.write_bytes(content)
    settings = GatewaySettings(jwt_key=str(pem), jwt_algorithm="ES256")

    with pytest.raises(SettingError, match=f"PERUSE_JWT_KEY: {pem}"):
        Authenticator(tmp_path, settings, primary)


class KeyServer:
    """An identity provider's key set; `asked` counts, `is_up` says whether it answers."""

    def __init__(self) -> None:
        self.keys: list[ECKey] = []
        self.asked = 0
        self.is_up = True

    def add(self, kid: str) -> ECKey:
        key = ECKey.generate_key("P-256", parameters={"kid": kid})
        self.keys.append(key)
        return key

    def token(self, key: ECKey, **changed: Any) -> str:
        return jwt.encode({"alg": "ES256", "kid": key.kid}, claims(**changed), key, ["ES256"])

    async def answer(self, request: web.Request) -> web.Response:
        self.asked += 1
        if not self.is_up:
            return web.Response(status=500)
        return web.json_response(KeySet(self.keys).as_dict(private=False))


@pytest.fixture
async def provider() -> AsyncIterator[tuple[KeyServer, str]]:
    """An identity provider on a port of this machine."""
    server = KeyServer()
    app = web.Application()
    app.router.add_get("/jwks.json", server.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield server, f"http://127.0.0.1:{runner.addresses[0][1]}/jwks.json"
    await runner.cleanup()


@asynccontextmanager
async def trusting(tmp_path: Path, database: str, url: str) -> AsyncIterator[World]:
    async with running(World(tmp_path / "data", database, jwks_url=url, jwt_algorithm="ES256")) as world:
        yield world


async def test_key_set_verifies_and_is_fetched_once(
    tmp_path: Path, database: str, provider: tuple[KeyServer, str]
) -> None:
    """Also for many callers at once."""
    server, url = provider
    key, other = server.add("one"), server.add("two")

    async with trusting(tmp_path, database, url) as world:
        tokens = [server.token(which, sub=f"u{n}") for which in (key, other) for n in range(10)]
        replies = await asyncio.gather(*(ask(world, f"Bearer {token}") for token in tokens))

        assert {reply.status for reply in replies} == {200}, replies
        assert server.asked == 1
        assert is_unauthorized(await ask(world, f"Bearer {signed(world)}"))


async def test_unknown_key_id_causes_one_fetch(
    tmp_path: Path, database: str, provider: tuple[KeyServer, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rotation is noticed, and a flood of made-up key ids is not passed on."""
    server, url = provider
    old = server.add("old")
    async with trusting(tmp_path, database, url) as world:
        assert (await ask(world, f"Bearer {server.token(old)}")).status == 200
        new = server.add("new")
        made_up = ECKey.generate_key("P-256", parameters={"kid": "made up"})

        # The provider was asked a moment ago: not again.
        assert is_unauthorized(await ask(world, f"Bearer {server.token(new)}"))
        assert server.asked == 1
        with monkeypatch.context() as patched:
            patched.setattr(jwks, "_ASK_AGAIN_S", 0.0)
            assert (await ask(world, f"Bearer {server.token(new)}")).status == 200
        assert server.asked == 2
        for n in range(20):
            assert is_unauthorized(await ask(world, f"Bearer {server.token(made_up, sub=f'u{n}')}"))
        assert server.asked == 2
        assert (await ask(world, f"Bearer {server.token(old, sub='other')}")).status == 200


async def test_provider_that_is_down_ends_no_session(
    tmp_path: Path, database: str, provider: tuple[KeyServer, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old keys stay until a fetch succeeds."""
    server, url = provider
    key = server.add("one")
    async with trusting(tmp_path, database, url) as world:
        assert (await ask(world, f"Bearer {server.token(key)}")).status == 200
        server.is_up = False
        monkeypatch.setattr(jwks, "_KEPT_S", 0.0)
        monkeypatch.setattr(jwks, "_ASK_AGAIN_S", 0.0)

        assert (await ask(world, f"Bearer {server.token(key, sub='another')}")).status == 200

        assert server.asked == 2
        key, server.is_up = server.add("two"), True
        assert (await ask(world, f"Bearer {server.token(key)}")).status == 200


async def test_provider_that_never_answered_is_not_asked_for_each_request(
    tmp_path: Path, database: str, provider: tuple[KeyServer, str]
) -> None:
    """Whoever comes without a good token must not set the pace, nor wait behind everybody before."""
    server, url = provider
    key = server.add("one")
    server.is_up = False
    async with trusting(tmp_path, database, url) as world:
        replies = [await ask(world, f"Bearer {server.token(key, sub=f'u{n}')}") for n in range(10)]

        assert {reply.status for reply in replies} <= {401, 503}
        assert server.asked <= 2


# --- without the primary ----------------------------------------------------------------------------------------


async def test_known_credentials_outlive_the_primary(tmp_path: Path, link: PrimaryLink) -> None:
    """Tokens need no look-up, and a key that was looked up is kept for a minute."""
    async with running(World(tmp_path / "data", link.url)) as world:
        used, unused = [await api_keys.create_key(world.gateway.primary, "ana") for _ in range(2)]
        await replica_of(world, "ana")
        assert (await ask(world, f"Bearer {used.secret}")).status == 200

        await link.cut()

        for authorization in (world.token("ana"), signed(world, sub="ana"), used.secret):
            reply = await ask(world, f"Bearer {authorization}")
            assert (reply.status, reply.headers["Peruse-Source"]) == (200, "replica")
        unknown = await ask(world, f"Bearer {unused.secret}")
        assert (unknown.status, unknown.json["code"]) == (503, "primary_unavailable")
        assert "Retry-After" in unknown.headers
        assert is_unauthorized(await ask(world, f"Bearer {signed(world, iss='other')}"))

        await link.open()

        async def is_known() -> bool:
            return (await ask(world, f"Bearer {unused.secret}")).status == 200

        await until(is_known)
