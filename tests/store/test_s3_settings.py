"""Settings of a bucket: under our names, R2's and AWS's; what is missing or contradicts itself stops the start."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from store.config import StoreSettings, save
from store.errors import SettingError

R2 = {
    "R2_ACCOUNT_ID": "abc123",
    "R2_ACCESS_KEY_ID": "r2-id",
    "R2_SECRET_ACCESS_KEY": "r2-secret",
    "R2_BUCKET_NAME": "r2-bucket",
    "R2_PUBLIC_URL": "https://pub.example.org",
}
AWS = {
    "AWS_REGION": "eu-central-1",
    "AWS_ACCESS_KEY_ID": "aws-id",
    "AWS_SECRET_ACCESS_KEY": "aws-secret",
    "AWS_S3_BUCKET": "aws-bucket",
    "AWS_CLOUDFRONT_DOMAIN": "d1.cloudfront.net",
    "AWS_CLOUDFRONT_KEY_PAIR_ID": "K1",
    "AWS_CLOUDFRONT_PRIVATE_KEY": "pem",
}
S3 = {"PERUSE_OBJECTS": "s3"}
OURS = {
    "PERUSE_S3_ENDPOINT_URL": "https://minio.example.org:9000",
    "PERUSE_S3_BUCKET": "our-bucket",
    "PERUSE_S3_ACCESS_KEY_ID": "our-id",
    "PERUSE_S3_SECRET_ACCESS_KEY": "our-secret",
}


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("PERUSE_", "R2_", "AWS_")):
            monkeypatch.delenv(name)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    def load(*environments: dict[str, str], data: Path | None = None) -> StoreSettings:
        for environment in environments:
            for name, value in environment.items():
                monkeypatch.setenv(name, value)
        return StoreSettings.load(data)

    return load


def without(environment: dict[str, str], *names: str) -> dict[str, str]:
    assert set(names) <= environment.keys()
    return {name: value for name, value in environment.items() if name not in names}


def keys(settings: StoreSettings) -> tuple[str, str, str]:
    secret, token = settings.s3_secret_access_key, settings.s3_session_token
    return settings.s3_access_key_id, secret.get_secret_value(), token.get_secret_value()


def test_objects_are_local_until_told_otherwise(load: Any) -> None:
    """The names of other tools may be set for other reasons, so they alone move no images."""
    settings = load(R2, AWS)

    assert (settings.objects, settings.s3_bucket, settings.s3_endpoint_url) == ("local", "", "")
    assert keys(settings) == ("", "", "")


def test_r2s_own_names_are_enough(load: Any) -> None:
    """mission: 160, 171"""
    settings = load(S3, R2)

    assert settings.s3_endpoint_url == "https://abc123.r2.cloudflarestorage.com"
    assert (settings.s3_bucket, settings.s3_region) == ("r2-bucket", "")
    assert keys(settings) == ("r2-id", "r2-secret", "")
    assert settings.s3_public_url == "https://pub.example.org"


def test_awss_own_names_are_enough(load: Any) -> None:
    """mission: 172"""
    settings = load(S3, AWS, {"AWS_SESSION_TOKEN": "aws-token"})

    assert (settings.s3_endpoint_url, settings.s3_bucket, settings.s3_region) == ("", "aws-bucket", "eu-central-1")
    assert keys(settings) == ("aws-id", "aws-secret", "aws-token")
    assert (settings.cloudfront_domain, settings.cloudfront_key_pair_id) == ("d1.cloudfront.net", "K1")
    assert settings.cloudfront_private_key.get_secret_value() == "pem"


def test_our_names_come_first(load: Any) -> None:
    settings = load(S3, R2, AWS, OURS, {"PERUSE_CLOUDFRONT_DOMAIN": "cdn.example.org"})

    assert settings.s3_endpoint_url == "https://minio.example.org:9000"
    assert settings.s3_bucket == "our-bucket"
    assert keys(settings) == ("our-id", "our-secret", "")
    assert settings.cloudfront_domain == "cdn.example.org"
    assert settings.cloudfront_key_pair_id == ""  # AWS's pair belongs to AWS's domain


def test_what_was_saved_comes_before_the_names_of_others(load: Any, tmp_path: Path) -> None:
    save(tmp_path, {name.removeprefix("PERUSE_").lower(): value for name, value in (S3 | OURS).items()})

    settings = load(R2, data=tmp_path)

    assert settings.s3_bucket == "our-bucket"
    assert keys(settings) == ("our-id", "our-secret", "")


def test_awss_region_is_not_r2s(load: Any) -> None:
    settings = load(S3, R2, {"AWS_REGION": "us-west-2", "AWS_ACCESS_KEY_ID": "aws-id", "AWS_SECRET_ACCESS_KEY": "x"})

    assert settings.s3_region == ""
    assert keys(settings) == ("r2-id", "r2-secret", "")


def test_machines_role_needs_no_key(load: Any) -> None:
    settings = load(S3, {"AWS_S3_BUCKET": "aws-bucket", "AWS_REGION": "eu-central-1"})

    assert keys(settings) == ("", "", "")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, r"^PERUSE_S3_BUCKET is missing: .*\(R2_BUCKET_NAME or AWS_S3_BUCKET would do as well\)$"),
        (without(R2, "R2_BUCKET_NAME"), "^PERUSE_S3_BUCKET is missing"),
        (without(AWS, "AWS_S3_BUCKET"), "^PERUSE_S3_BUCKET is missing"),
        (without(AWS, "AWS_REGION"), r"^PERUSE_S3_REGION is missing: .*\(AWS_REGION, or PERUSE_S3_ENDPOINT_URL or"),
        (without(R2, "R2_ACCESS_KEY_ID"), "^PERUSE_S3_ACCESS_KEY_ID is missing: .*both its id and its secret"),
        (without(R2, "R2_SECRET_ACCESS_KEY"), "^PERUSE_S3_SECRET_ACCESS_KEY is missing"),
        (
            without(R2, "R2_SECRET_ACCESS_KEY") | {"AWS_SECRET_ACCESS_KEY": "x"},
            "^PERUSE_S3_SECRET_ACCESS_KEY is missing",
        ),
        (
            without(R2, "R2_ACCESS_KEY_ID", "R2_SECRET_ACCESS_KEY"),
            "^PERUSE_S3_ACCESS_KEY_ID is missing: .*ENDPOINT_URL",
        ),
        (without(AWS, "AWS_SECRET_ACCESS_KEY"), "^PERUSE_S3_SECRET_ACCESS_KEY is missing"),
        (without(AWS, "AWS_CLOUDFRONT_DOMAIN"), r"^PERUSE_CLOUDFRONT_DOMAIN is missing: .*\(AWS_CLOUDFRONT_DOMAIN"),
        (without(AWS, "AWS_CLOUDFRONT_KEY_PAIR_ID"), "^PERUSE_CLOUDFRONT_KEY_PAIR_ID is missing"),
        (without(AWS, "AWS_CLOUDFRONT_PRIVATE_KEY"), "^PERUSE_CLOUDFRONT_PRIVATE_KEY is missing"),
        (without(OURS, "PERUSE_S3_SECRET_ACCESS_KEY") | AWS, "^PERUSE_S3_SECRET_ACCESS_KEY is missing"),
        (R2 | AWS, "^R2_BUCKET_NAME and AWS_S3_BUCKET are both set"),
        (OURS | {"PERUSE_S3_BUCKET": "Not/A/Bucket"}, "^PERUSE_S3_BUCKET: "),
        (OURS | {"PERUSE_S3_ENDPOINT_URL": "minio:9000"}, "^PERUSE_S3_ENDPOINT_URL: "),
        (OURS | {"PERUSE_S3_ENDPOINT_URL": "https://id:secret@minio.example.org"}, "^PERUSE_S3_ENDPOINT_URL: "),
        (OURS | {"PERUSE_S3_THREADS": "0"}, "^PERUSE_S3_THREADS: "),
        (OURS | {"PERUSE_S3_ENCRYPTION": "rot13"}, "^PERUSE_S3_ENCRYPTION: "),
        (OURS | {"PERUSE_OBJECTS": "gcs"}, "^PERUSE_OBJECTS: "),
    ],
)
def test_what_is_missing_or_contradicts_itself_stops_the_start(
    load: Any, environment: dict[str, str], message: str
) -> None:
    """mission: 66, 209"""
    with pytest.raises(SettingError, match=message) as caught:
        load(S3, environment)

    for secret in ("r2-secret", "aws-secret", "our-secret", "id:secret"):
        assert secret not in str(caught.value)


def test_settings_may_be_saved_one_after_the_other() -> None:
    """Each is checked for itself; the whole is checked at the start."""
    for name, value in {"objects": "s3", "s3_bucket": "our-bucket", "s3_access_key_id": "our-id"}.items():
        StoreSettings.check({name: value}, name)
    with pytest.raises(SettingError, match=r"^PERUSE_S3_BUCKET: "):
        StoreSettings.check({"s3_bucket": "UPPER"}, "s3_bucket")


def test_secrets_are_not_shown(load: Any) -> None:
    """mission: 209"""
    shown = repr(load(S3, AWS, {"AWS_SESSION_TOKEN": "aws-token"}))

    assert "aws-secret" not in shown
    assert "aws-token" not in shown
    assert "'pem'" not in shown
