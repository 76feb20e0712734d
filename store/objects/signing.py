"""URLs that let whoever has them read one object, for a while.

A URL ends between half of its lifetime and the whole of it: expiries are rounded, so that for half a lifetime everybody
gets the same URL and a browser finds the image in its cache. CloudFront's and the gateway's URLs are the same from
every process; those of a bucket are kept per process, because their signature holds the second at which it was made.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from store.config import StoreSettings
from store.errors import ObjectMissing, SettingError
from store.keyfile import kept_secret
from store.objects.interface import Objects
from store.objects.keys import is_key
from store.objects.s3 import S3Objects

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

__all__ = ["BucketUrls", "CloudFrontUrls", "GatewayUrls", "SignedUrls", "open_signed_urls", "rounded_expiry"]

_MAX_KEPT: Final = 10_000
_EXPIRES: Final = re.compile(r"[1-9][0-9]{0,11}")


class SignedUrls(Protocol):
    """Whoever signs."""

    async def url(self, key: str, *, lifetime_s: int) -> str:
        """A URL that reads this object for at least half of `lifetime_s` and at most all of it.

        Raises:
            ObjectMissing: the text is no key. Whether an object has it is not asked.
        """


def open_signed_urls(data: Path, settings: StoreSettings, objects: Objects) -> SignedUrls:
    """The signer that goes with the settings: CloudFront if it has a key pair, else the bucket, else the gateway.

    Raises:
        SettingError: CloudFront's private key is none.
    """
    if isinstance(objects, S3Objects):
        if settings.cloudfront_key_pair_id:
            return CloudFrontUrls(
                settings.cloudfront_domain,
                settings.cloudfront_key_pair_id,
                settings.cloudfront_private_key.get_secret_value(),
            )
        return BucketUrls(objects)
    return GatewayUrls(
        kept_secret(data / "keys" / "urls.secret", lambda: secrets.token_bytes(32)), base=settings.files_base
    )


def rounded_expiry(now: float, lifetime_s: int) -> int:
    """When a URL of this lifetime that is asked for now ends; moves on every half of a lifetime. Seconds since 1970."""
    step = max(1, lifetime_s // 2)
    return int(now) // step * step + max(2, lifetime_s)


class GatewayUrls:
    """`/files/{key}?expires=…&signature=…`, which the gateway checks itself."""

    def __init__(self, secret: bytes, *, base: str = "", clock: Callable[[], float] = time.time) -> None:
        """`base` stands before /files/…; `clock` gives seconds since 1970."""
        self._secret: Final = secret
        self._base: Final = base.rstrip("/")
        self._clock: Final = clock

    async def url(self, key: str, *, lifetime_s: int) -> str:
        """Raises: ObjectMissing."""
        _check(key)
        expires = rounded_expiry(self._clock(), lifetime_s)
        return f"{self._base}/files/{key}?expires={expires}&signature={self._signature(key, expires)}"

    def is_valid(self, key: str, expires: str, signature: str) -> bool:
        """Tells whether these came from `url`, for this key, and have not ended. Any texts may be asked about."""
        if not is_key(key) or not _EXPIRES.fullmatch(expires):
            return False
        # Signature first, and in constant time: an answer tells nothing about how near a guess was.
        expected = self._signature(key, int(expires)).encode()
        is_ours = hmac.compare_digest(expected, signature.encode(errors="replace"))
        return is_ours and self._clock() < int(expires)

    def _signature(self, key: str, expires: int) -> str:
        return _base64url(hmac.digest(self._secret, f"files\n{key}\n{expires}".encode(), hashlib.sha256))


class BucketUrls:
    """Presigned GETs of the bucket itself."""

    def __init__(self, objects: S3Objects, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._calls: Final = objects.calls
        self._clock: Final = clock
        self._kept: dict[tuple[str, int], tuple[str, float]] = {}

    async def url(self, key: str, *, lifetime_s: int) -> str:
        """Raises: ObjectMissing."""
        _check(key)
        asked = (key, lifetime_s)
        url, until = self._kept.get(asked, ("", 0.0))
        if not url or self._clock() >= until:
            until = self._clock() + lifetime_s / 2
            url = await self._calls.run(f"object {key}", lambda client: self._presigned(client, key, lifetime_s))
            if len(self._kept) >= _MAX_KEPT:
                self._kept.clear()
            self._kept[asked] = (url, until)
        return url

    def _presigned(self, client: S3Client, key: str, lifetime_s: int) -> str:
        return client.generate_presigned_url(
            "get_object", Params={"Bucket": self._calls.bucket, "Key": key}, ExpiresIn=max(2, lifetime_s)
        )


class CloudFrontUrls:
    """URLs of a CloudFront distribution that asks for a signature.

    Source: "Use signed URLs" of the CloudFront developer guide: SHA-1 with RSA (PKCS #1 v1.5) over the policy without
    white space, and base64 with `-_~` for `+=/`.
    """

    def __init__(
        self, domain: str, key_pair_id: str, private_key: str, *, clock: Callable[[], float] = time.time
    ) -> None:
        """`private_key` is PEM; line ends may be written as \\n, as environment files do.

        Raises:
            SettingError: it is not the PEM of an RSA key.
        """
        self._base: Final = f"https://{domain}"
        self._key_pair_id: Final = key_pair_id
        self._clock: Final = clock
        self._key: Final = _rsa_key(private_key.replace("\\n", "\n"))

    async def url(self, key: str, *, lifetime_s: int) -> str:
        """With the canned policy: this object, until then. Raises: ObjectMissing."""
        _check(key)
        expires, resource = rounded_expiry(self._clock(), lifetime_s), f"{self._base}/{key}"
        signature = self._signature(_policy(resource, {"DateLessThan": {"AWS:EpochTime": expires}}))
        return f"{resource}?Expires={expires}&Signature={signature}&Key-Pair-Id={self._key_pair_id}"

    async def restricted_url(
        self, key: str, *, lifetime_s: int, address: str | None = None, not_before: int | None = None
    ) -> str:
        """With a custom policy: for one IPv4 address or network only, or from `not_before` on, in seconds since 1970.
        Raises: ObjectMissing."""
        _check(key)
        expires, resource = rounded_expiry(self._clock(), lifetime_s), f"{self._base}/{key}"
        condition: dict[str, dict[str, int | str]] = {"DateLessThan": {"AWS:EpochTime": expires}}
        if address is not None:
            condition["IpAddress"] = {"AWS:SourceIp": address if "/" in address else f"{address}/32"}
        if not_before is not None:
            condition["DateGreaterThan"] = {"AWS:EpochTime": not_before}
        policy = _policy(resource, condition)
        signed = f"Policy={_cloudfront_base64(policy)}&Signature={self._signature(policy)}"
        return f"{resource}?{signed}&Key-Pair-Id={self._key_pair_id}"

    def _signature(self, policy: bytes) -> str:
        return _cloudfront_base64(self._key.sign(policy, padding.PKCS1v15(), hashes.SHA1()))  # noqa: S303 # its rule


def _check(key: str) -> None:
    if not is_key(key):
        raise ObjectMissing(f"{key!r} is not a key, so no object has it")


def _rsa_key(pem: str) -> rsa.RSAPrivateKey:
    try:
        key = serialization.load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError, UnicodeEncodeError):
        key = None  # the error could quote the key
    if not isinstance(key, rsa.RSAPrivateKey):
        raise SettingError("PERUSE_CLOUDFRONT_PRIVATE_KEY is not the PEM of an RSA key without a password")
    return key


def _policy(resource: str, condition: object) -> bytes:
    statement = {"Statement": [{"Resource": resource, "Condition": condition}]}
    return json.dumps(statement, separators=(",", ":")).encode()


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _cloudfront_base64(data: bytes) -> str:
    return base64.b64encode(data).translate(bytes.maketrans(b"+=/", b"-_~")).decode()
