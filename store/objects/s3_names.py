"""Settings of objects under the names that S3's, R2's and CloudFront's own tools use.

A set is taken as a whole: an id of one account with the secret of another would be refused by both, with an error that
points nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from store.errors import SettingError

__all__ = ["from_s3_names"]

_R2: Final = {
    "s3_access_key_id": "R2_ACCESS_KEY_ID",
    "s3_secret_access_key": "R2_SECRET_ACCESS_KEY",
}
_AWS: Final = {
    "s3_access_key_id": "AWS_ACCESS_KEY_ID",
    "s3_secret_access_key": "AWS_SECRET_ACCESS_KEY",
    "s3_session_token": "AWS_SESSION_TOKEN",
}
_CLOUDFRONT: Final = {
    "cloudfront_domain": "AWS_CLOUDFRONT_DOMAIN",
    "cloudfront_key_pair_id": "AWS_CLOUDFRONT_KEY_PAIR_ID",
    "cloudfront_private_key": "AWS_CLOUDFRONT_PRIVATE_KEY",
}


def from_s3_names(environ: Mapping[str, str], known: Mapping[str, Any]) -> dict[str, str]:
    """Return values by our names, for settings that have none in `known`, which are those with our own names.

    Raises:
        SettingError: R2's and AWS's names give two buckets.
    """
    if known.get("objects") != "s3":
        return {}
    is_r2 = any(environ.get(name) for name in ("R2_ACCOUNT_ID", "R2_BUCKET_NAME", *_R2.values()))
    found: dict[str, str | None] = {}
    if "s3_endpoint_url" not in known and (account := environ.get("R2_ACCOUNT_ID")):
        found["s3_endpoint_url"] = f"https://{account}.r2.cloudflarestorage.com"
    if "s3_bucket" not in known:
        r2, aws = environ.get("R2_BUCKET_NAME"), environ.get("AWS_S3_BUCKET")
        if r2 and aws:
            raise SettingError("R2_BUCKET_NAME and AWS_S3_BUCKET are both set: unset one, or set PERUSE_S3_BUCKET")
        found["s3_bucket"] = r2 or aws
    if not known.keys() & _AWS.keys():
        found |= {field: environ.get(name) for field, name in (_R2 if is_r2 else _AWS).items()}
    if not is_r2 and not known.get("s3_endpoint_url"):
        found["s3_region"] = environ.get("AWS_REGION")
    found["s3_public_url"] = environ.get("R2_PUBLIC_URL")
    if not known.keys() & _CLOUDFRONT.keys():
        found |= {field: environ.get(name) for field, name in _CLOUDFRONT.items()}
    return {field: value for field, value in found.items() if value and field not in known}
