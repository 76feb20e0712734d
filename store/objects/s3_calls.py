"""Calls of boto3 from asyncio: a bounded number of threads, one client, a deadline, and retries that wait.

boto3's own retries are off: they would hold a thread while they wait, and they end where a body begins.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, TypeVar

from store.config import StoreSettings
from store.errors import ObjectExists, ObjectMissing, ObjectsRefused, ObjectsUnavailable, RangeOutside

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

__all__ = ["SILENT_S", "Damaged", "S3Calls"]

_ATTEMPTS: Final = 5
_FIRST_WAIT_S: Final = 0.2  # at most; doubled from retry to retry, with full jitter
_CONNECT_S: Final = 5.0
SILENT_S: Final = 15.0  # how long a socket may say nothing

_PASSING: Final = {
    *("SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "RequestLimitExceeded", "RequestTimeout"),
    *("InternalError", "ServiceUnavailable", "ConditionalRequestConflict", "OperationAborted"),
    *("BadDigest", "IncompleteBody"),  # damaged on the way
}
_HINTS: Final = {
    "NoSuchBucket": "is PERUSE_S3_BUCKET its name, and PERUSE_S3_ENDPOINT_URL its place?",
    "InvalidAccessKeyId": "is PERUSE_S3_ACCESS_KEY_ID right?",
    "SignatureDoesNotMatch": "is PERUSE_S3_SECRET_ACCESS_KEY right?",
    "AuthorizationHeaderMalformed": "is PERUSE_S3_REGION the bucket's?",
    "PermanentRedirect": "is PERUSE_S3_REGION the bucket's?",
    "ExpiredToken": "the session token of the access key has ended",
    "RequestTimeTooSkewed": "is this machine's clock right?",
    "NotImplemented": "does the service accept PERUSE_S3_ENCRYPTION?",
    "NoCredentials": "set PERUSE_S3_ACCESS_KEY_ID and PERUSE_S3_SECRET_ACCESS_KEY, or give the machine a role",
}
_PERMISSION: Final = "PERUSE_S3_ACCESS_KEY_ID must be allowed to read, write, delete and list"

_Result = TypeVar("_Result")


class Damaged(Exception):
    """Raised by a call when bytes arrived that are not the object's; worth another attempt."""


class S3Calls:
    """One bucket's client and threads."""

    def __init__(self, settings: StoreSettings) -> None:
        """Makes no connection, and imports boto3 only with the first call."""
        self.bucket: Final = settings.s3_bucket
        self._settings: Final = settings
        self._threads: Final = ThreadPoolExecutor(settings.s3_threads, thread_name_prefix="s3")
        self._client: S3Client | None = None
        self._making: Final = threading.Lock()

    async def run(self, what: str, call: Callable[[S3Client], _Result]) -> _Result:
        """What the call returns, from a thread and within the time limit, retried while the service is to blame.

        The call must be one that may be repeated. `what` begins the messages: it names the object.

        Raises:
            ObjectMissing, ObjectExists, RangeOutside: 404, 412 and 416 of the service.
            ObjectsRefused: it will refuse every time.
            ObjectsUnavailable: no attempt got through in time.
        """
        cause: Exception | None = None
        attempt = 0
        try:
            async with asyncio.timeout(self._settings.s3_timeout_s):
                for attempt in range(1, _ATTEMPTS + 1):
                    if cause is not None:
                        await asyncio.sleep(random.uniform(0, _FIRST_WAIT_S * 2 ** (attempt - 2)))
                    try:
                        return await asyncio.wrap_future(self.submit(call))
                    except Exception as error:
                        cause = error
                        self.raise_unless_passing(what, error)
        except TimeoutError:
            limit = f"within {self._settings.s3_timeout_s:g} s"
            raise ObjectsUnavailable(f"{what}: not done {limit}{_because(cause)}") from cause
        raise ObjectsUnavailable(f"{what}: failed {attempt} times{_because(cause)}") from cause

    def submit(self, call: Callable[[S3Client], _Result]) -> Future[_Result]:
        """One attempt, on a thread."""
        return self._threads.submit(lambda: call(self._made()))

    @property
    def timeout_s(self) -> float:
        """How long a thread should go on with one call."""
        return self._settings.s3_timeout_s

    async def close(self) -> None:
        await asyncio.to_thread(self._threads.shutdown)
        if self._client is not None:
            self._client.close()

    def _made(self) -> S3Client:
        with self._making:
            if self._client is None:
                self._client = _client(self._settings)
            return self._client

    def raise_unless_passing(self, what: str, error: Exception) -> None:
        """Returns when another attempt may help, and raises what `run` would when it will not."""
        from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError, NoCredentialsError
        from urllib3.exceptions import HTTPError

        if isinstance(error, Damaged | ConnectionError | HTTPClientError | HTTPError):
            return
        if isinstance(error, NoCredentialsError):
            raise ObjectsRefused(f"{what}: no access key; {_HINTS['NoCredentials']}") from error
        if isinstance(error, BotoCoreError):  # its own checks: parameters, endpoint, profile
            raise ObjectsRefused(f"{what}: {error}") from error
        if not isinstance(error, ClientError):
            raise error
        code, status = _code(error), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code in _PASSING or status in (408, 429, 500, 502, 503, 504):
            return
        if code == "NoSuchKey" or (status == 404 and code != "NoSuchBucket"):
            raise ObjectMissing(f"{what} does not exist") from error
        if status == 412:
            raise ObjectExists(f"{what} exists") from error
        if status == 416:
            raise RangeOutside(f"{what} has no bytes there") from error
        hint = _HINTS.get(code) or (_PERMISSION if status == 403 else "the service does not take this request")
        raise ObjectsRefused(f"{what}: bucket {self.bucket}: {status} {code}; {hint}") from error


def _because(cause: Exception | None) -> str:
    """The last failure, without what a message must not have: URLs of requests carry signatures."""
    from botocore.exceptions import ClientError

    if cause is None:
        return ""
    if isinstance(cause, ClientError):
        return f"; last answer {cause.response.get('ResponseMetadata', {}).get('HTTPStatusCode', 0)} {_code(cause)}"
    return f"; {cause}" if isinstance(cause, Damaged) else f"; {type(cause).__name__}"


def _code(error: Exception) -> str:
    return str(getattr(error, "response", {}).get("Error", {}).get("Code", ""))


def _client(settings: StoreSettings) -> S3Client:
    import boto3
    from botocore.config import Config
    from botocore.handlers import add_expect_header

    endpoint = settings.s3_endpoint_url or None
    client = boto3.Session().client(
        "s3",
        endpoint_url=endpoint,
        region_name=settings.s3_region or "auto",
        aws_access_key_id=settings.s3_access_key_id or None,
        aws_secret_access_key=settings.s3_secret_access_key.get_secret_value() or None,
        aws_session_token=settings.s3_session_token.get_secret_value() or None,
        config=Config(
            signature_version="s3v4",
            # R2 and others refuse the checksums that boto3 adds by itself; Content-MD5 is known to all.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            # At an address of its own a service may not answer to names below it.
            s3={"addressing_style": "path" if endpoint else "auto"},
            retries={"total_max_attempts": 1, "mode": "standard"},
            connect_timeout=_CONNECT_S,
            read_timeout=SILENT_S,
            max_pool_connections=settings.s3_threads,
            tcp_keepalive=True,
            ignore_configured_endpoint_urls=True,  # type: ignore[call-arg] # the stubs do not know it
        ),
    )
    # "Expect: 100-continue" costs a round trip, and a second where the service does not know it, as R2.
    client.meta.events.unregister("before-call.s3", add_expect_header)
    return client
