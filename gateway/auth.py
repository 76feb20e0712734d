"""Who is asking. A user's id comes from a verified credential and from nowhere else.

Tokens (JWT) are verified once and kept until they expire. API keys are looked up once and kept for a minute; a
revoked one is dropped within two seconds, and so is every credential of a user who was erased. So reads go on while the
primary is away.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, cast

import structlog
from joserfc import jwk, jwt
from joserfc.errors import JoseError
from joserfc.jwk import OKPKey

from gateway.config import GatewaySettings
from gateway.erased import ErasedUsers
from gateway.errors import Forbidden, Unauthorized
from gateway.jwks import RemoteKeys
from store import api_keys
from store.errors import PrimaryUnavailable, SettingError
from store.ids import is_user_id
from store.keyfile import kept_secret
from store.primary import Primary

__all__ = ["Authenticator", "Identity", "Signer"]

log = structlog.get_logger()

Role = Literal["user", "service", "admin"]
_ROLES: Final = frozenset({"user", "service", "admin"})
MAX_TTL_S: Final = 86_400
_LEEWAY_S: Final = 30
_KEY_KEPT_S: Final = 60.0
_REVOKED_EVERY_S: Final = 1.0
_MAX_KEPT: Final = 100_000
_MAX_TOKEN_CHARS: Final = 4096


class Identity(NamedTuple):
    """A verified caller. `until`: monotonic time up to which this may be believed without asking again."""

    user: str
    role: Role
    until: float


class Signer:
    """Signs tokens with the data folder's own key, which is made on first use (0600)."""

    def __init__(self, data: Path, settings: GatewaySettings) -> None:
        self._path = data / "keys" / "jwt.pem"
        self._settings = settings

    def key(self) -> OKPKey:
        """The private key."""
        return OKPKey.import_key(kept_secret(self._path, lambda: OKPKey.generate_key("Ed25519").as_pem(private=True)))

    def token(self, user: str, *, role: Role = "user", ttl_s: int = MAX_TTL_S) -> str:
        """A token for `user`, good for `ttl_s` seconds (a day at most: tokens cannot be revoked)."""
        if not is_user_id(user):
            raise SettingError(f"user id {user[:40]!r} is not 1 to 128 of A-Z a-z 0-9 . _ @ | : -")
        if not 1 <= ttl_s <= MAX_TTL_S:
            raise SettingError(f"a token lives 1 s to {MAX_TTL_S} s (one day), not {ttl_s} s")
        now = int(time.time())
        claims = {
            "iss": self._settings.jwt_issuer, "aud": self._settings.jwt_audience, "sub": user, "role": role,
            "iat": now, "exp": now + ttl_s,
        }  # fmt: skip
        return jwt.encode({"alg": "Ed25519"}, claims, self.key(), algorithms=["Ed25519"])


class Authenticator:
    """Turns an Authorization header into an Identity."""

    def __init__(self, data: Path, settings: GatewaySettings, primary: Primary) -> None:
        self._settings = settings
        self._primary = primary
        self._remote = RemoteKeys(settings.jwks_url) if settings.jwks_url else None
        self._key = None if self._remote else _verification_key(data, settings)
        self._claims = jwt.JWTClaimsRegistry(
            leeway=_LEEWAY_S,
            iss={"essential": True, "value": settings.jwt_issuer},
            aud={"essential": True, "value": settings.jwt_audience},
            exp={"essential": True},
            sub={"essential": True},
        )
        #: Authorization header → identity. Bounded: emptied when full, and filled again by the next requests.
        self._kept: dict[str, Identity] = {}
        #: Hash of an API key → the headers that it is kept under. One object per watch: a revocation replaces it.
        self._key_headers: dict[bytes, set[str]] = {}
        self._erased = ErasedUsers(primary)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._watch_revocations())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._remote is not None:
            await self._remote.close()

    def known(self, header: str | None) -> Identity | None:
        """The identity when it is at hand: the hot path."""
        identity = self._kept.get(header) if header is not None else None
        return identity if identity is not None and identity.until > time.monotonic() else None

    async def identify(self, header: str | None) -> Identity:
        """The caller behind an Authorization header.

        Raises:
            Unauthorized: none, or not valid (any more). The reason is general on purpose.
            PrimaryUnavailable: an API key that is not kept cannot be looked up now.
        """
        identity = self.known(header)
        if identity is not None:
            return identity
        if header is None:
            raise Unauthorized("Unauthorized: send `Authorization: Bearer <token or API key>`")
        scheme, _, secret = header.partition(" ")
        if scheme.lower() != "bearer" or not secret or len(secret) > _MAX_TOKEN_CHARS or not secret.isascii():
            raise Unauthorized("Unauthorized: the Authorization header must be `Bearer <token or API key>`")
        if secret.startswith(api_keys.PREFIX):
            identity = await self._by_key(header, secret)
        else:
            identity = await self._by_token(secret)
        if identity.role == "user" and identity.user in self._erased:
            raise Unauthorized("Unauthorized: this user was erased")
        if len(self._kept) >= _MAX_KEPT:
            self._kept.clear()
            self._key_headers.clear()
        self._kept[header] = identity
        return identity

    async def _by_key(self, header: str, secret: str) -> Identity:
        # Watched before it is looked up: a revocation that comes in between is not missed.
        digest = api_keys.key_hash(secret)
        headers = self._key_headers.setdefault(digest, set())
        owner = await api_keys.owner_of_key(self._primary, secret)
        if owner is None or self._key_headers.get(digest) is not headers:
            if not headers:
                self._key_headers.pop(digest, None)
            raise Unauthorized("Unauthorized: this API key is not known or was revoked")
        headers.add(header)
        return Identity(owner, "user", time.monotonic() + _KEY_KEPT_S)

    async def _by_token(self, secret: str) -> Identity:
        wrong = Unauthorized("Unauthorized: the token is not valid or has expired")
        key = self._key if self._remote is None else await self._remote.key_for(secret)
        if key is None:
            raise wrong
        try:
            claims = jwt.decode(secret, key, algorithms=[self._settings.jwt_algorithm]).claims
            self._claims.validate(claims)
        except (JoseError, ValueError, TypeError) as error:
            log.debug("token.refused", reason=type(error).__name__)
            raise wrong from None
        return _identity(claims, wrong)

    async def _watch_revocations(self) -> None:
        """Ended by `close`. Looks back further than its period: a look that failed is made up for."""
        while True:
            try:
                await self._drop_erased()
                await self._drop_revoked()
            except PrimaryUnavailable:
                pass
            except Exception:
                log.exception("revocations.failed")
            await asyncio.sleep(_REVOKED_EVERY_S)

    async def _drop_erased(self) -> None:
        erased = await self._erased.look()
        if erased:
            for header in [header for header, identity in self._kept.items() if identity.user in erased]:
                if self._kept[header].role == "user":
                    del self._kept[header]

    async def _drop_revoked(self) -> None:
        if not self._key_headers:
            return
        revoked = await api_keys.revoked_since(self._primary, _KEY_KEPT_S + 10)
        for digest in revoked & self._key_headers.keys():
            for header in self._key_headers.pop(digest):
                self._kept.pop(header, None)


def _identity(claims: dict[str, Any], wrong: Unauthorized) -> Identity:
    user, role, expires = claims["sub"], claims.get("role", "user"), claims["exp"]
    if not (isinstance(user, str) and is_user_id(user) and not user.startswith("~")):
        raise wrong
    if not (isinstance(role, str) and role in _ROLES):
        raise wrong
    left_s = float(expires) - time.time()
    if left_s > MAX_TTL_S + _LEEWAY_S:
        raise wrong  # nothing can end a token but its own end
    return Identity(user, cast(Role, role), time.monotonic() + left_s)


def _verification_key(data: Path, settings: GatewaySettings) -> Any:
    if not settings.jwt_key:
        if settings.jwt_algorithm != "Ed25519":
            raise SettingError("PERUSE_JWT_ALGORITHM is set, but neither PERUSE_JWT_KEY nor PERUSE_JWKS_URL")
        return Signer(data, settings).key()
    kinds: dict[str, Any] = {"Ed": "OKP", "ES": "EC", "RS": "RSA", "PS": "RSA"}
    try:
        return jwk.import_key(Path(settings.jwt_key).read_bytes(), kinds[settings.jwt_algorithm[:2]])
    except (OSError, ValueError, JoseError) as error:
        raise SettingError(
            f"PERUSE_JWT_KEY: {settings.jwt_key} is not a PEM key for {settings.jwt_algorithm}: {error}"
        ) from None


def need(identity: Identity, *roles: Role) -> Identity:
    """`identity` if it has one of the roles.

    Raises:
        Forbidden: it has not; says which it would take.
    """
    if identity.role not in roles:
        raise Forbidden(f"this address is for {' and '.join(roles)} tokens, and yours is a {identity.role} token")
    return identity
