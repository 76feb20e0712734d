"""Signed URLs: they read one object until they end, and nothing else."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest
from botocore.signers import CloudFrontSigner
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from store.config import StoreSettings
from store.errors import ObjectMissing, SettingError
from store.objects import open_objects
from store.objects.keys import new_key, owner_tag
from store.objects.s3 import S3Objects
from store.objects.signing import (
    BucketUrls,
    CloudFrontUrls,
    GatewayUrls,
    SignedUrls,
    open_signed_urls,
    rounded_expiry,
)
from tests.fakes.s3_server import S3Server, bucket_settings

KEY = f"reference/{'ab' * 16}/0000000000001-{'cd' * 16}.png"
NOW = 1_800_000_123.9
PEM = (
    rsa.generate_private_key(public_exponent=65537, key_size=2048)
    .private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    .decode()
)


def parts(url: str) -> tuple[str, dict[str, str]]:
    split = urlsplit(url)
    return f"{split.scheme}://{split.netloc}{split.path}", {k: v[0] for k, v in parse_qs(split.query).items()}


def cloudfront_bytes(text: str) -> bytes:
    return base64.b64decode(text.replace("-", "+").replace("_", "=").replace("~", "/"))


def cloudfront(clock: float = NOW, pem: str = PEM) -> CloudFrontUrls:
    return CloudFrontUrls("d1.cloudfront.net", "K2JCJMDEHXQW5F", pem, clock=lambda: clock)


@pytest.mark.parametrize("lifetime_s", [2, 3, 10, 60, 300, 3600])
def test_expiry_stays_for_half_a_lifetime_and_never_lasts_longer_than_one(lifetime_s: int) -> None:
    asked = [NOW + tenth / 10 for tenth in range(40 * lifetime_s if lifetime_s < 100 else 20_000)]

    for now in asked:
        assert lifetime_s / 2 - 1 <= rounded_expiry(now, lifetime_s) - now <= lifetime_s
    different = {rounded_expiry(now, lifetime_s) for now in asked}
    assert len(different) <= (asked[-1] - asked[0]) / (lifetime_s // 2) + 2


async def test_gateways_url_is_what_openssl_computes() -> None:
    """The vector: HMAC-SHA256 of "files", key and expiry, by another implementation."""
    urls = GatewayUrls(b"0123456789abcdef0123456789abcdef", base="https://img.example.org/", clock=lambda: NOW)

    place, query = parts(await urls.url(KEY, lifetime_s=300))

    expires = str(rounded_expiry(NOW, 300))
    digest = subprocess.run(
        ["openssl", "dgst", "-sha256", "-hmac", "0123456789abcdef0123456789abcdef", "-binary"],
        input=f"files\n{KEY}\n{expires}".encode(),
        capture_output=True,
        check=True,
    ).stdout
    assert place == f"https://img.example.org/files/{KEY}"
    assert query == {"expires": expires, "signature": base64.urlsafe_b64encode(digest).decode().rstrip("=")}


def test_gateways_known_url_is_valid_until_it_ends() -> None:
    """A vector that is written down: another way to sign would lock out who has a URL."""
    secret, expires = b"k" * 32, "1800000300"
    signature = "bcY__z_6byMgpcfoO0_0oeme_TneJhDHz_MXuQQtJzo"

    for now, valid in ((1_800_000_000.0, True), (1_800_000_299.9, True), (1_800_000_300.0, False)):
        assert GatewayUrls(secret, clock=lambda now=now: now).is_valid(KEY, expires, signature) is valid
    assert not GatewayUrls(b"l" * 32, clock=lambda: 1_800_000_000.0).is_valid(KEY, expires, signature)


async def test_nothing_of_a_gateways_url_can_be_changed() -> None:
    """mission: 177"""
    urls = GatewayUrls(b"k" * 32, clock=lambda: NOW)
    _, query = parts(await urls.url(KEY, lifetime_s=300))
    expires, signature = query["expires"], query["signature"]
    assert urls.is_valid(KEY, expires, signature)

    other = new_key("reference", owner_tag("user-2", b"s"), "image/png", 1)
    for key in (other, KEY.replace(".png", ".webp"), KEY.upper(), f"/{KEY}", f"{KEY}\n", f"x/../{KEY}", ""):
        assert not urls.is_valid(key, expires, signature), key
    for text in (
        str(int(expires) + 1),
        f"0{expires}",
        f"+{expires}",
        f" {expires}",
        f"{expires}.0",
        "",
        "-1",
        "9" * 400,
    ):
        assert not urls.is_valid(KEY, text, signature), text
    for text in ("", signature[:-1], f"{signature}=", f"{signature}A", signature.swapcase(), "\udcff", "é" * 43):
        assert not urls.is_valid(KEY, expires, text), text
    for place, sign in enumerate(signature):
        changed = signature[:place] + ("A" if sign != "A" else "B") + signature[place + 1 :]
        assert not urls.is_valid(KEY, expires, changed), place


async def test_cloudfronts_canned_url_is_what_aws_sdk_makes() -> None:
    """mission: 175, 178"""
    url = await cloudfront().url(KEY, lifetime_s=300)

    key = serialization.load_pem_private_key(PEM.encode(), password=None)
    assert isinstance(key, rsa.RSAPrivateKey)
    theirs = CloudFrontSigner("K2JCJMDEHXQW5F", lambda message: key.sign(message, padding.PKCS1v15(), hashes.SHA1()))
    expires = datetime.fromtimestamp(rounded_expiry(NOW, 300), UTC)
    assert url == theirs.generate_presigned_url(f"https://d1.cloudfront.net/{KEY}", date_less_than=expires)


@pytest.mark.parametrize(("address", "sent"), [("203.0.113.7", "203.0.113.7/32"), ("203.0.113.0/24", "203.0.113.0/24")])
async def test_cloudfronts_custom_policy_restricts_more(address: str, sent: str, tmp_path: Path) -> None:
    """Signature and policy are checked by openssl, as CloudFront would. mission: 175"""
    url = await cloudfront().restricted_url(KEY, lifetime_s=300, address=address, not_before=1_800_000_000)

    place, query = parts(url)
    assert place == f"https://d1.cloudfront.net/{KEY}"
    assert query.keys() == {"Policy", "Signature", "Key-Pair-Id"}
    policy = cloudfront_bytes(query["Policy"])
    assert b" " not in policy
    assert json.loads(policy) == {
        "Statement": [
            {
                "Resource": place,
                "Condition": {
                    "DateLessThan": {"AWS:EpochTime": rounded_expiry(NOW, 300)},
                    "IpAddress": {"AWS:SourceIp": sent},
                    "DateGreaterThan": {"AWS:EpochTime": 1_800_000_000},
                },
            }
        ]
    }
    assert openssl_accepts(policy, cloudfront_bytes(query["Signature"]), tmp_path)
    assert not openssl_accepts(policy.replace(b"300", b"301"), cloudfront_bytes(query["Signature"]), tmp_path)
    assert not openssl_accepts(policy.replace(b"203.", b"204."), cloudfront_bytes(query["Signature"]), tmp_path)


def openssl_accepts(message: bytes, signature: bytes, folder: Path) -> bool:
    key = serialization.load_pem_private_key(PEM.encode(), password=None)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / "public.pem").write_bytes(public)
    (folder / "signature").write_bytes(signature)
    return (
        subprocess.run(
            ["openssl", "dgst", "-sha1", "-verify", folder / "public.pem", "-signature", folder / "signature"],
            input=message,
            capture_output=True,
        ).returncode
        == 0
    )


async def test_cloudfronts_key_may_be_one_line() -> None:
    assert await cloudfront(pem=PEM.replace("\n", "\\n")).url(KEY, lifetime_s=60) == await cloudfront().url(
        KEY, lifetime_s=60
    )


ELLIPTIC = ec.generate_private_key(ec.SECP256R1()).private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
)


@pytest.mark.parametrize("pem", ["", "no key at all", PEM[:200], ELLIPTIC.decode(), "\udcff"])
def test_what_is_no_rsa_key_is_named_and_not_shown(pem: str) -> None:
    """mission: 66, 209"""
    with pytest.raises(SettingError, match=r"^PERUSE_CLOUDFRONT_PRIVATE_KEY is not the PEM of an RSA key") as caught:
        cloudfront(pem=pem)

    assert caught.value.__cause__ is None
    assert "BEGIN" not in str(caught.value)


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    server = S3Server()
    server.make_bucket("private")
    yield server
    server.stop()


async def test_buckets_url_reads_the_object_and_is_kept_for_half_its_lifetime(s3: S3Server) -> None:
    """mission: 175"""
    now = 100.0
    objects = S3Objects(bucket_settings(s3.url, "private"))
    urls = BucketUrls(objects, clock=lambda: now)
    await objects.put(KEY, b"bytes")

    url = await urls.url(KEY, lifetime_s=300)

    place, query = parts(url)
    assert place == f"{s3.url}/private/{KEY}"
    assert query["X-Amz-Algorithm"] == "AWS4-HMAC-SHA256"
    assert query["X-Amz-Expires"] == "300"
    assert query["X-Amz-Credential"].startswith("AKIDFORTESTS/")
    assert "/auto/s3/aws4_request" in query["X-Amz-Credential"]
    assert "secret-for-tests" not in url
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        assert (answer.status, await answer.read()) == (200, b"bytes")
        assert answer.headers["Cache-Control"] == "private, max-age=300"
    now += 149.9
    assert await urls.url(KEY, lifetime_s=300) is url
    now += 0.2
    assert await urls.url(KEY, lifetime_s=300) is not url
    await objects.close()


async def test_settings_choose_who_signs(tmp_path: Path) -> None:
    """mission: 172, 175, 177"""
    local = StoreSettings(files_base="https://img.example.org")
    s3 = bucket_settings("http://127.0.0.1:1", "private")
    signed = {
        "cloudfront_domain": "d1.cloudfront.net",
        "cloudfront_key_pair_id": "K1",
        "cloudfront_private_key": PEM,
    }
    front = bucket_settings("http://127.0.0.1:1", "private", **signed)

    made = [open_signed_urls(tmp_path, one, open_objects(tmp_path, one)) for one in (local, s3, front)]

    assert [type(one) for one in made] == [GatewayUrls, BucketUrls, CloudFrontUrls]
    url = await made[0].url(KEY, lifetime_s=300)
    again = open_signed_urls(tmp_path, local, open_objects(tmp_path, local))
    assert isinstance(again, GatewayUrls)
    _, query = parts(url)
    assert again.is_valid(KEY, query["expires"], query["signature"])
    assert (tmp_path / "keys" / "urls.secret").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("key", ["", "../secret", f"{KEY}?x=", f"{KEY}\n", "reference/*"])
async def test_only_a_key_is_signed(key: str, tmp_path: Path) -> None:
    bucket = BucketUrls(S3Objects(bucket_settings("http://127.0.0.1:1", "private")))
    signers: list[SignedUrls] = [GatewayUrls(b"k"), cloudfront(), bucket]

    for signer in signers:
        with pytest.raises(ObjectMissing, match="is not a key"):
            await signer.url(key, lifetime_s=300)
    with pytest.raises(ObjectMissing, match="is not a key"):
        await cloudfront().restricted_url(key, lifetime_s=300)
