"""A bucket whose service fails: each fault ends in success by another attempt, or in a clear error and no object."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import boto3
import pytest

from store.errors import ObjectError, ObjectExists, ObjectMissing, ObjectsRefused, ObjectsUnavailable
from store.objects import s3_calls, s3_stream
from store.objects.keys import new_key, owner_tag
from store.objects.s3 import S3Objects
from tests.fakes.s3_proxy import S3Proxy
from tests.fakes.s3_server import S3Server, bucket_settings

TAG = owner_tag("user-1", b"secret")
BIG = bytes(range(256)) * 2600  # three chunks, the last one not full


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def bucket(s3: S3Server) -> str:
    s3.make_bucket("faults")
    return "faults"


@pytest.fixture(scope="module")
async def proxy(s3: S3Server) -> AsyncIterator[S3Proxy]:
    made = S3Proxy(s3.url)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture(scope="module")
async def objects(proxy: S3Proxy, bucket: str) -> AsyncIterator[S3Objects]:
    """The bucket, by way of the proxy."""
    made = S3Objects(bucket_settings(proxy.url, bucket))
    yield made
    await made.close()


@pytest.fixture(scope="module")
async def direct(s3: S3Server, bucket: str) -> AsyncIterator[S3Objects]:
    """The bucket as it is."""
    made = S3Objects(bucket_settings(s3.url, bucket))
    yield made
    await made.close()


@pytest.fixture(autouse=True)
async def clean(direct: S3Objects, proxy: S3Proxy) -> None:
    """Every test begins with an empty bucket and a way without faults."""
    proxy.forget()
    for key in await keys_of(direct):
        await direct.delete(key)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits between attempts are tested by their number, not by their length."""
    monkeypatch.setattr(s3_calls, "_FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(s3_stream, "_FIRST_WAIT_S", 0.01)


def a_key() -> str:
    return new_key("generated", TAG, "image/png", 1)


async def keys_of(objects: S3Objects) -> list[str]:
    return [info.key async for info in objects.scan()]


async def read(objects: S3Objects, key: str, *, into: list[bytes] | None = None) -> bytes:
    got = [] if into is None else into
    async with objects.open(key) as opened:
        async for chunk in opened.chunks:
            got.append(chunk)
    return b"".join(got)


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await true():
            await asyncio.sleep(0.02)


PASSING = [(503, "SlowDown"), (500, "InternalError"), (429, "TooManyRequests"), (409, "ConditionalRequestConflict")]


@pytest.mark.parametrize(
    ("status", "code"), [*PASSING, (400, "BadDigest"), (400, "RequestTimeout"), (502, ""), (504, "")]
)
async def test_passing_fault_is_tried_again(
    objects: S3Objects, direct: S3Objects, proxy: S3Proxy, status: int, code: str
) -> None:
    key = a_key()
    for method in ("PUT", "GET", "DELETE"):
        proxy.add(method, "answer", times=2, status=status, code=code)

    await objects.put(key, BIG)
    assert await direct.get(key) == BIG
    assert await objects.get(key) == BIG
    await objects.delete(key)

    assert await keys_of(direct) == []
    assert proxy.seen == ["PUT"] * 3 + ["GET"] * 3 + ["DELETE"] * 3


@pytest.mark.parametrize(("status", "code"), PASSING)
async def test_fault_that_stays_is_an_error_that_says_so(
    objects: S3Objects, direct: S3Objects, proxy: S3Proxy, status: int, code: str
) -> None:
    key = a_key()
    proxy.add("PUT", "answer", times=5, status=status, code=code)

    with pytest.raises(ObjectsUnavailable, match=f"^object {key}: failed 5 times; last answer {status} {code}$"):
        await objects.put(key, BIG)

    assert proxy.seen.count("PUT") == 5
    assert await keys_of(direct) == []


@pytest.mark.parametrize("times", [1, 4])
async def test_upload_whose_answer_was_lost_is_found_to_be_ours(
    objects: S3Objects, direct: S3Objects, proxy: S3Proxy, times: int
) -> None:
    """500 after success: the repeated upload finds the key taken, by ourselves."""
    key = a_key()
    proxy.add("PUT", "lose", times=times, status=500, code="InternalError")

    await objects.put(key, BIG)

    assert proxy.seen == ["PUT"] * (times + 1) + ["HEAD"]
    assert await direct.get(key) == BIG


async def test_key_of_another_stays_his_when_an_answer_was_lost(
    objects: S3Objects, direct: S3Objects, proxy: S3Proxy
) -> None:
    key = a_key()
    await direct.put(key, BIG)
    proxy.add("PUT", "lose", status=500, code="InternalError")

    with pytest.raises(ObjectExists, match=f"^object {key} exists$"):
        await objects.put(key, BIG)

    assert await direct.get(key) == BIG


async def test_upload_that_failed_after_it_was_written_is_taken_back(
    objects: S3Objects, direct: S3Objects, proxy: S3Proxy
) -> None:
    key = a_key()
    proxy.add("PUT", "lose", times=5, status=500, code="InternalError")

    with pytest.raises(ObjectsUnavailable, match="failed 5 times; last answer 500 InternalError"):
        await objects.put(key, BIG)

    assert proxy.seen == ["PUT"] * 5 + ["HEAD", "DELETE"]
    assert await keys_of(direct) == []


async def test_of_many_uploads_one_that_fails_takes_the_others_back(
    objects: S3Objects, direct: S3Objects, proxy: S3Proxy
) -> None:
    """mission: 113"""
    proxy.add("PUT", "answer", status=403, code="AccessDenied")

    with pytest.raises(ObjectsRefused):
        await objects.put_many([(a_key(), BIG), (a_key(), BIG), (a_key(), BIG)])

    assert await keys_of(direct) == []


async def test_upload_that_is_cancelled_leaves_nothing(direct: S3Objects, proxy: S3Proxy, bucket: str) -> None:
    """The request is on its way and will be done: it is taken back afterwards."""
    objects = S3Objects(bucket_settings(proxy.url, bucket))
    key = a_key()
    fault = proxy.add("PUT", "wait")
    running = asyncio.create_task(objects.put(key, BIG))
    await asyncio.wait_for(fault.met.wait(), 20)

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    fault.gate.set()

    async def is_over() -> bool:
        return proxy.seen == ["PUT", "HEAD", "DELETE"]

    await until(is_over)
    await objects.close()  # waits for the thread
    assert await keys_of(direct) == []


async def test_upload_that_takes_too_long_is_given_up_and_taken_back(
    s3: S3Server, proxy: S3Proxy, direct: S3Objects, bucket: str
) -> None:
    key = a_key()
    hasty = S3Objects(bucket_settings(proxy.url, bucket, s3_timeout_s=1.0))
    fault = proxy.add("PUT", "wait")
    running = asyncio.create_task(hasty.put(key, BIG))
    await asyncio.wait_for(fault.met.wait(), 20)
    asyncio.get_running_loop().call_later(2.0, fault.gate.set)

    with pytest.raises(ObjectsUnavailable, match=f"^object {key}: not done within 1 s$"):
        await running

    assert proxy.seen == ["PUT", "HEAD", "DELETE"]
    assert await keys_of(direct) == []
    await hasty.close()


async def test_service_that_never_answers_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, proxy: S3Proxy, bucket: str
) -> None:
    monkeypatch.setattr(s3_calls, "SILENT_S", 0.2)
    key = a_key()
    objects = S3Objects(bucket_settings(proxy.url, bucket))
    proxy.add("GET", "hang", times=5)

    with pytest.raises(ObjectsUnavailable, match=f"^object {key}: failed 5 times; ReadTimeoutError$"):
        await objects.get(key)

    await objects.close()


async def test_service_that_is_away_is_an_error_for_every_call(bucket: str) -> None:
    """mission: 62"""
    objects, key = S3Objects(bucket_settings("http://127.0.0.1:1", bucket)), a_key()

    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: objects.put(key, b"x"),
        lambda: objects.get(key),
        lambda: objects.head(key),
        lambda: objects.exists(key),
        lambda: objects.delete(key),
        lambda: read(objects, key),
        lambda: keys_of(objects),
        lambda: objects.check(),
    ]
    for call in calls:
        with pytest.raises(ObjectsUnavailable, match=r"failed 5 times; EndpointConnectionError$"):
            await call()
    await objects.close()


@pytest.mark.parametrize("method", ["PUT", "GET", "HEAD", "DELETE"])
async def test_refusal_is_not_tried_again(objects: S3Objects, direct: S3Objects, proxy: S3Proxy, method: str) -> None:
    """403 is neither "missing" nor worth another attempt."""
    key = a_key()
    proxy.add(method, "answer", times=2, status=403, code="AccessDenied")
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "PUT": lambda: objects.put(key, b"x"),
        "GET": lambda: objects.get(key),
        "HEAD": lambda: objects.exists(key),
        "DELETE": lambda: objects.delete(key),
    }

    with pytest.raises(ObjectsRefused, match=r"must be allowed to read, write, delete and list$"):
        await calls[method]()

    assert proxy.seen.count(method) == 1
    assert await keys_of(direct) == []


@pytest.mark.parametrize(
    ("status", "code", "hint"),
    [
        (404, "NoSuchBucket", "is PERUSE_S3_BUCKET its name"),
        (403, "InvalidAccessKeyId", "is PERUSE_S3_ACCESS_KEY_ID right"),
        (403, "SignatureDoesNotMatch", "is PERUSE_S3_SECRET_ACCESS_KEY right"),
        (400, "AuthorizationHeaderMalformed", "is PERUSE_S3_REGION the bucket's"),
        (403, "RequestTimeTooSkewed", "is this machine's clock right"),
        (501, "NotImplemented", "does the service accept PERUSE_S3_ENCRYPTION"),
    ],
)
async def test_refusal_says_where_to_look(
    objects: S3Objects, proxy: S3Proxy, bucket: str, status: int, code: str, hint: str
) -> None:
    """mission: 57, 209"""
    proxy.add("GET", "answer", status=status, code=code)

    with pytest.raises(ObjectsRefused, match=rf"^object .*: bucket {bucket}: {status} {code}; {hint}") as caught:
        await objects.get(a_key())

    assert "secret-for-tests" not in str(caught.value)
    assert "AKIDFORTESTS" not in str(caught.value)


@pytest.mark.parametrize("after", [0, 1, 300_000, len(BIG) - 1])
@pytest.mark.parametrize("way", [S3Objects.get, read])
async def test_body_that_is_cut_short_is_completed(
    objects: S3Objects, direct: S3Objects, proxy: S3Proxy, way: Callable[..., Awaitable[bytes]], after: int
) -> None:
    key = a_key()
    await direct.put(key, BIG)
    proxy.add("GET", "cut", times=2, after=after)

    assert await way(objects, key) == BIG

    assert 2 <= len(proxy.seen) <= 3


async def test_stream_goes_on_at_the_byte_where_it_broke(objects: S3Objects, direct: S3Objects, proxy: S3Proxy) -> None:
    key = a_key()
    await direct.put(key, BIG)
    proxy.add("GET", "cut", after=2 * 256 * 1024)

    assert await read(objects, key) == BIG

    assert proxy.headers[1]["Range"] == f"bytes={2 * 256 * 1024}-"
    assert proxy.headers[1]["If-Match"] == f'"{(await direct.head(key)).etag}"'


@pytest.mark.parametrize("way", [S3Objects.get, read])
async def test_body_that_is_always_cut_short_is_an_error(
    objects: S3Objects, direct: S3Objects, proxy: S3Proxy, way: Callable[..., Awaitable[bytes]]
) -> None:
    key = a_key()
    await direct.put(key, BIG)
    proxy.add("GET", "cut", times=9, after=0)

    with pytest.raises(ObjectsUnavailable, match=f"^object {key}: (failed|broke off) 5 times"):
        await way(objects, key)


async def test_damaged_bytes_are_read_again(objects: S3Objects, direct: S3Objects, proxy: S3Proxy) -> None:
    key = a_key()
    await direct.put(key, BIG)
    proxy.add("GET", "damage", times=2)

    assert await objects.get(key) == BIG

    proxy.add("GET", "damage", times=5)
    with pytest.raises(ObjectsUnavailable, match="failed 5 times; arrived damaged: its SHA-256 is not"):
        await objects.get(key)


async def test_damaged_stream_is_never_complete(objects: S3Objects, direct: S3Objects, proxy: S3Proxy) -> None:
    """Who reads a stream has passed its beginning on already; so the last chunk is kept back."""
    key = a_key()
    await direct.put(key, BIG)
    proxy.add("GET", "damage")

    got: list[bytes] = []
    with pytest.raises(ObjectsUnavailable, match=f"^object {key} arrived damaged"):
        await read(objects, key, into=got)

    assert 0 < sum(map(len, got)) < len(BIG)


@pytest.mark.parametrize("way", [S3Objects.get, read])
async def test_body_that_drips_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
    proxy: S3Proxy,
    direct: S3Objects,
    bucket: str,
    way: Callable[..., Awaitable[bytes]],
) -> None:
    """Each byte comes in time; all of them would take hours."""
    monkeypatch.setattr(s3_stream, "SILENT_S", 0.3)
    objects = S3Objects(bucket_settings(proxy.url, bucket, s3_timeout_s=3.0))
    key = a_key()
    await direct.put(key, BIG)
    proxy.add("GET", "drip", times=20)

    with pytest.raises(ObjectsUnavailable, match=f"^object {key}: "):
        async with asyncio.timeout(20):
            await way(objects, key)

    await objects.close()


async def test_stream_that_was_slow_once_goes_on(
    monkeypatch: pytest.MonkeyPatch, objects: S3Objects, direct: S3Objects, proxy: S3Proxy
) -> None:
    monkeypatch.setattr(s3_stream, "SILENT_S", 0.3)
    key = a_key()
    await direct.put(key, BIG)
    proxy.add("GET", "drip")

    assert await read(objects, key) == BIG


async def test_requests_at_once_are_bounded(proxy: S3Proxy, bucket: str) -> None:
    before = {thread.ident for thread in threading.enumerate()}
    objects = S3Objects(bucket_settings(proxy.url, bucket, s3_threads=3))
    faults = [proxy.add("HEAD", "wait") for _ in range(10)]
    running = [asyncio.create_task(objects.exists(a_key())) for _ in range(10)]
    await asyncio.wait_for(faults[2].met.wait(), 20)

    threads = [t for t in threading.enumerate() if t.name.startswith("s3_") and t.ident not in before]
    assert len(threads) == len(proxy.seen) == 3
    for fault in faults:
        fault.gate.set()
    assert await asyncio.gather(*running) == [False] * 10
    await objects.close()


async def test_object_of_another_tool_is_whole_too(
    s3: S3Server, objects: S3Objects, proxy: S3Proxy, bucket: str
) -> None:
    """Nobody kept its SHA-256: its length is what there is to compare."""
    key = a_key()
    client = boto3.client(
        "s3", endpoint_url=s3.url, region_name="auto", aws_access_key_id="id", aws_secret_access_key="secret"
    )
    client.put_object(Bucket=bucket, Key=key, Body=BIG)
    client.close()
    proxy.add("GET", "cut", times=2, after=300_000)

    assert await objects.get(key) == BIG
    assert await read(objects, key) == BIG
    assert (await objects.head(key)).content_type == "binary/octet-stream"


async def test_client_is_made_with_the_first_call(monkeypatch: pytest.MonkeyPatch, s3: S3Server, bucket: str) -> None:
    """mission: 170"""
    made: list[object] = []
    make = s3_calls._client
    monkeypatch.setattr(s3_calls, "_client", lambda settings: made.append(settings) or make(settings))

    objects = S3Objects(bucket_settings(s3.url, bucket))
    assert made == []

    assert await asyncio.gather(*(objects.exists(a_key()) for _ in range(8))) == [False] * 8
    assert len(made) == 1
    await objects.close()


@pytest.mark.parametrize(("asked", "sent"), [("auto", None), ("off", None), ("AES256", "AES256")])
async def test_upload_says_what_the_object_is(
    s3: S3Server, proxy: S3Proxy, bucket: str, asked: str, sent: str | None
) -> None:
    """mission: 162, 168, 169"""
    objects = S3Objects(bucket_settings(proxy.url, bucket, s3_encryption=asked))
    key = a_key()

    await objects.put(key, BIG)

    headers = proxy.headers[0]
    assert headers["Content-Type"] == "image/png"
    assert headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert headers["If-None-Match"] == "*"
    assert headers["Content-MD5"] == base64.b64encode(hashlib.md5(BIG).digest()).decode()
    assert headers.get("x-amz-server-side-encryption") == sent
    assert "Expect" not in headers
    assert not [name for name in headers if name.lower().startswith(("x-amz-checksum", "x-amz-sdk-checksum"))]
    await objects.close()


async def test_at_aws_encryption_is_asked_for() -> None:
    settings = bucket_settings("", "bucket", s3_region="eu-central-1")

    assert S3Objects(settings)._encryption == "AES256"


async def test_what_is_no_object_is_not_listed(s3: S3Server, direct: S3Objects, bucket: str) -> None:
    keys = sorted(a_key() for _ in range(3))
    await asyncio.gather(*(direct.put(key, b"x") for key in keys))
    client = boto3.client(
        "s3", endpoint_url=s3.url, region_name="auto", aws_access_key_id="id", aws_secret_access_key="secret"
    )
    client.put_object(Bucket=bucket, Key="generated/readme.txt", Body=b"")
    client.close()

    assert await keys_of(direct) == keys


async def test_scan_passes_over_pages(monkeypatch: pytest.MonkeyPatch, direct: S3Objects) -> None:
    from store.objects import s3

    monkeypatch.setattr(s3, "_PAGE_KEYS", 2)
    keys = sorted(a_key() for _ in range(5))
    await asyncio.gather(*(direct.put(key, b"x") for key in keys))

    assert await keys_of(direct) == keys


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({}, None),
        ({"s3_public_url": "https://pub.example.org/"}, "https://pub.example.org/{key}"),
        ({"cloudfront_domain": "d1.cloudfront.net"}, "https://d1.cloudfront.net/{key}"),
        ({"cloudfront_domain": "d1.cloudfront.net", "cloudfront_key_pair_id": "K1"}, None),
    ],
)
def test_public_url_is_that_of_a_public_place(settings: dict[str, str], url: str | None) -> None:
    """mission: 167, 174"""
    key = a_key()

    found = S3Objects(bucket_settings("http://127.0.0.1:1", "bucket", **settings)).public_url(key)

    assert found == (None if url is None else url.format(key=key))


async def test_missing_object_is_missing_and_a_missing_bucket_is_not(s3: S3Server, direct: S3Objects) -> None:
    """mission: 62"""
    with pytest.raises(ObjectMissing):
        await direct.get(a_key())
    gone = S3Objects(bucket_settings(s3.url, "no-such-bucket"))
    with pytest.raises(ObjectError, match="NoSuchBucket") as caught:
        await gone.get(a_key())
    assert not isinstance(caught.value, ObjectMissing)
    await gone.close()
