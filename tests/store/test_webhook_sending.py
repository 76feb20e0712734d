"""Deliveries: signed, sent until they arrive, at least once, and never to where they must not go."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import random
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
import structlog
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from store import webhooks
from store.config import StoreSettings
from store.errors import InvalidValue, SettingError
from store.logs import configure
from store.primary import Primary
from store.sealing import Sealer
from store.webhook_endpoint import Endpoint
from store.webhook_log import forget_old, ping, replay
from store.webhook_posting import Poster, checked_url, signatures
from store.webhook_sending import SCHEDULE_S
from tests.receiver import Receiver, is_signed, sending
from tests.world import until

SEALER = Sealer(bytes(range(32)))
CANARY = "canary-5f1e"


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    await made.start()
    yield made
    await made.stop()


async def hook(primary: Primary, url: str, *events: str, user: str = "ana") -> webhooks.NewSecret:
    """A webhook with any URL, wherever it leads."""

    async def work(connection: Any) -> webhooks.NewSecret:
        made = await webhooks.create(
            connection, SEALER, user, url="https://example.org", events=events, allow=(), now_ms=int(time.time() * 1000)
        )
        await connection.execute("update webhooks set url = $2 where id = $1", made.webhook.id, url)
        return made

    return (await primary.write(user, work))[0]


async def pinged(primary: Primary, made: webhooks.NewSecret, user: str = "ana") -> uuid.UUID:
    """A ping that is due; its delivery."""
    return (await primary.write(user, lambda c: ping(c, user, made.webhook.id)))[0].id


async def row_of(primary: Primary, delivery: uuid.UUID) -> Any:
    (row,) = await primary.fetch(
        "select *, extract(epoch from run_at - now())::float8 as in_s from webhook_deliveries where id = $1", delivery
    )
    return row


async def ended(primary: Primary, delivery: uuid.UUID, state: str) -> Any:
    async def look() -> Any:
        row = await row_of(primary, delivery)
        return row if row["state"] == state else None

    return await until(look, timeout_s=30)


async def tried(primary: Primary, delivery: uuid.UUID, attempts: int) -> Any:
    async def look() -> Any:
        row = await row_of(primary, delivery)
        return row if row["attempts"] == attempts else None

    return await until(look, timeout_s=30)


# --- what is sent -----------------------------------------------------------------------------------------------------


async def test_delivery_is_signed_as_the_standard_says(primary: Primary, receiver: Receiver) -> None:
    """A receiver that knows the secret, and only that one, believes it. mission: 231"""
    made = await hook(primary, f"{receiver.origin}/hook?token=a%2Fb")

    async with sending(primary, SEALER, receiver.origin):
        row = await ended(primary, await pinged(primary, made), "delivered")

    (message,) = receiver.messages
    assert message.path == "/hook?token=a%2Fb"
    assert message.body.decode() == row["payload"]
    assert message.json["data"] == {"webhook_id": str(made.webhook.id)}
    assert message.id == str(row["event_id"])
    assert message.headers["content-type"] == "application/json"
    assert not {"cookie", "authorization", "referer"} & set(message.headers)
    assert is_signed(message, made.secret)
    assert not is_signed(message, webhooks._new_secret()[1])
    assert not is_signed(message._replace(body=message.body + b" "), made.secret)
    assert (row["status"], row["response"], row["attempts"]) == (200, "said 200", 1)
    assert row["lease_until"] is None


def test_signature_is_that_of_the_standards_own_example() -> None:
    """As its documentation has it."""
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")

    signed = signatures([secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')

    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


async def test_both_secrets_sign_for_a_day_after_a_rotation(primary: Primary, receiver: Receiver) -> None:
    """A receiver may change its own when it likes; one from two rotations ago is nobody's."""
    first = await hook(primary, receiver.origin)
    row_id = first.webhook.id

    async def rotated() -> webhooks.NewSecret:
        return (await primary.write("ana", lambda c: webhooks.rotate(c, SEALER, "ana", row_id)))[0]

    second = await rotated()
    assert second.webhook.old_secret_until is not None
    async with sending(primary, SEALER, receiver.origin):
        await ended(primary, await pinged(primary, first), "delivered")
        third = await rotated()
        await ended(primary, await pinged(primary, first), "delivered")
        await primary.fetch("update webhooks set old_secret_until = old_secret_until - interval '24 hours'")
        await ended(primary, await pinged(primary, first), "delivered")

    secrets = (first.secret, second.secret, third.secret)
    assert len(receiver.messages[0].headers["webhook-signature"].split(" ")) == 2
    assert [[is_signed(message, secret) for secret in secrets] for message in receiver.messages] == [
        [True, True, False],
        [False, True, True],
        [False, False, True],
    ]


async def test_secret_is_at_rest_only_sealed_and_for_its_webhook(primary: Primary, receiver: Receiver) -> None:
    """A sealed secret that is moved to another webhook does not sign there, and no other process is stopped by it."""
    one, two = await hook(primary, receiver.origin), await hook(primary, receiver.origin)
    (text,) = (await primary.fetch("select string_agg(w::text, '') from webhooks w"))[0]
    for made in (one, two):
        assert made.secret.removeprefix("whsec_") not in text
    await primary.fetch(
        "update webhooks set secret = (select secret from webhooks where id = $1) where id = $2",
        one.webhook.id, two.webhook.id,
    )  # fmt: skip

    async with sending(primary, SEALER, receiver.origin):
        good, bad = await pinged(primary, one), await pinged(primary, two)
        await ended(primary, good, "delivered")
        row = await tried(primary, bad, 1)

    assert (row["state"], row["response"]) == ("pending", "its secret cannot be read here: rotate it")
    assert len(receiver.messages) == 1


# --- again and again --------------------------------------------------------------------------------------------------


async def test_what_fails_is_sent_again_under_the_same_id(primary: Primary, receiver: Receiver) -> None:
    """Until a 2xx, each attempt with its own time and signature."""
    answers = [500, 404, 302, 401, 204]

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=answers.pop(0), headers={"Location": f"{receiver.origin}/elsewhere"})

    receiver.answer = answer
    made = await hook(primary, f"{receiver.origin}/hook")

    async with sending(primary, SEALER, receiver.origin, schedule_s=(0.0, 0.05, 0.05, 0.05, 0.05, 0.05)):
        row = await ended(primary, await pinged(primary, made), "delivered")

    assert (row["attempts"], row["status"]) == (5, 204)
    assert len({message.id for message in receiver.messages}) == 1
    assert all(is_signed(message, made.secret) for message in receiver.messages)
    assert {message.path for message in receiver.messages} == {"/hook"}, "a redirect is not followed"


async def test_after_the_last_attempt_it_has_failed(primary: Primary, receiver: Receiver) -> None:
    receiver.answer = 503
    made = await hook(primary, receiver.origin)

    async with sending(primary, SEALER, receiver.origin, schedule_s=(0.0, 0.02, 0.02)):
        row = await ended(primary, await pinged(primary, made), "failed")

    assert (row["attempts"], row["status"], row["response"]) == (3, 503, "said 503")
    assert row["ended_at"] is not None
    assert len(receiver.messages) == 3
    assert [tuple(r) for r in await primary.fetch("select state from webhooks")] == [("active",)]


async def test_schedule_is_the_standards(primary: Primary, receiver: Receiver) -> None:
    """Attempt after attempt over three days, by moving the database's own times. mission: 231"""
    receiver.answer = 500
    made = await hook(primary, receiver.origin)
    waits = [5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400]
    assert (0, *waits) == SCHEDULE_S

    async with sending(primary, SEALER, receiver.origin):
        delivery = await pinged(primary, made)
        for attempt, wait_s in enumerate(waits, start=1):
            row = await tried(primary, delivery, attempt)
            assert row["state"] == "pending"
            assert wait_s - 5 < row["in_s"] <= wait_s * 1.1 + 1, attempt
            await primary.fetch("update webhook_deliveries set run_at = now()")
        row = await ended(primary, delivery, "failed")

    assert row["attempts"] == 10


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [("100", 99, 120), ("0", 0, 6), ("-5", 0, 6), ("soon", 0, 6), ("1e12", 86_000, 100_000), ("inf", 0, 6)],
)
async def test_retry_after_is_kept_to_within_a_day(
    primary: Primary, receiver: Receiver, value: str, least: float, most: float
) -> None:
    """More than the schedule when it is asked for; never less, and never for good."""

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=429, headers={"Retry-After": value})

    receiver.answer = answer
    made = await hook(primary, receiver.origin)

    async with sending(primary, SEALER, receiver.origin):
        row = await tried(primary, await pinged(primary, made), 1)

    assert least <= row["in_s"] <= most


async def test_endpoint_that_asks_for_a_pause_gets_nothing_else(primary: Primary, receiver: Receiver) -> None:
    """Retry-After is for all that waits for this endpoint, and for no other one."""
    other = Receiver()
    await other.start()

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=429, headers={"Retry-After": "300"})

    receiver.answer = answer
    made, well = await hook(primary, receiver.origin), await hook(primary, other.origin)

    async with sending(primary, SEALER, receiver.origin, other.origin):
        await tried(primary, await pinged(primary, made), 1)
        later = await pinged(primary, made)
        await ended(primary, await pinged(primary, well), "delivered")

        async def is_put_off() -> bool:
            return bool((await row_of(primary, later))["in_s"] > 200)

        await until(is_put_off)

    assert len(receiver.messages) == 1
    assert (await row_of(primary, later))["attempts"] == 0
    await other.stop()


async def test_gone_disables_the_webhook_at_once(primary: Primary, receiver: Receiver) -> None:
    """410: what waits has failed, what comes is not written; an answer of an old URL says nothing of the new one."""
    receiver.answer = 410
    made = await hook(primary, receiver.origin)

    async with sending(primary, SEALER, receiver.origin):
        first = await pinged(primary, made)
        row = await ended(primary, first, "failed")
        assert (row["attempts"], row["status"]) == (1, 410)

        async def disabled() -> Any:
            found = await webhooks.get(primary, "ana", made.webhook.id)
            return found if found.state == "disabled" else None

        found = await until(disabled)
        assert found.disabled_reason == "it answered 410 Gone"
        await primary.fetch(
            "insert into webhook_deliveries (webhook_id, owner_id, event_id, event, payload) "
            "values ($1, 'ana', gen_random_uuid(), 'ping', '{}')", made.webhook.id,
        )  # fmt: skip
        (late,) = await primary.fetch("select id from webhook_deliveries where event = 'ping' and id <> $1", first)
        row = await ended(primary, late["id"], "failed")

    assert (row["attempts"], row["response"]) == (0, "the webhook is disabled")
    assert len(receiver.messages) == 1
    with pytest.raises(InvalidValue, match="disabled"):
        await pinged(primary, made)


@pytest.mark.parametrize(
    ("made_days", "delivered_days", "changed_days", "is_disabled"),
    [(6, None, 6, True), (4, None, 6, False), (6, 1, 6, False), (6, 6, 6, True), (6, None, 1, False)],
)
async def test_five_days_of_failures_disable_a_webhook(
    primary: Primary,
    receiver: Receiver,
    made_days: int,
    delivered_days: int | None,
    changed_days: int,
    is_disabled: bool,
) -> None:
    """Not when something arrived, or somebody changed the webhook, since then."""
    receiver.answer = 500
    made = await hook(primary, receiver.origin)
    old = await pinged(primary, made)
    age = "update webhook_deliveries set created_at = now() - make_interval(days => $2) where id = $1"
    await primary.fetch(age, old, made_days)
    if delivered_days is not None:
        good = await pinged(primary, made)
        await primary.fetch(
            "update webhook_deliveries set state = 'delivered', ended_at = now() - make_interval(days => $2) "
            "where id = $1", good, delivered_days,
        )  # fmt: skip
    await primary.fetch("update webhooks set updated_at = now() - make_interval(days => $1)", changed_days)

    async with sending(primary, SEALER, receiver.origin, schedule_s=(0.0,)):
        await ended(primary, old, "failed")
        # The next one is sent, or not: by then it has been decided.
        probe = await pinged(primary, made) if not is_disabled else None
        if probe is not None:
            assert (await ended(primary, probe, "failed"))["attempts"] == 1

        async def state() -> bool:
            return (await webhooks.get(primary, "ana", made.webhook.id)).state == "disabled"

        if is_disabled:
            await until(state)

    found = await webhooks.get(primary, "ana", made.webhook.id)
    assert found.disabled_reason == ("nothing was delivered for 5 days" if is_disabled else None)


async def test_disabled_by_hand_while_it_waits_is_not_sent(primary: Primary, receiver: Receiver) -> None:
    """And a new URL is where what waits goes."""
    made = await hook(primary, f"{receiver.origin}/old")
    await primary.fetch("update webhooks set url = $1", f"{receiver.origin}/new")
    delivery = await pinged(primary, made)
    async with sending(primary, SEALER, receiver.origin):
        await ended(primary, delivery, "delivered")
    assert [message.path for message in receiver.messages] == ["/new"]

    delivery = await pinged(primary, made)
    await primary.write(
        "ana", lambda c: webhooks.change(c, "ana", made.webhook.id, {"state": "disabled"}, allow=(receiver.origin,))
    )
    async with sending(primary, SEALER, receiver.origin):
        await ended(primary, delivery, "failed")
    assert len(receiver.messages) == 1


# --- where it may go --------------------------------------------------------------------------------------------------

_BAD_URLS = [
    *("http://example.org/", "ftp://example.org/", "example.org", "", "https://", "https:///x", "//example.org"),
    *("https://example.org:8443/", "https://example.org:80/", "https://u@example.org/", "https://u:p@example.org/"),
    *("https://127.0.0.1/", "https://[::1]/", "https://10.0.0.1/", "https://169.254.169.254/latest", "https://[::]/"),
    *("https://[::ffff:127.0.0.1]/", "https://localhost/", "https://a.localhost/", "https://192.168.0.1/x"),
    *("https://example.org/ x", "https://exämple.org/", "https://example.org/\n", "https://example.org/\x00"),
    *("javascript:alert(1)", "file:///etc/passwd", "https://" + "a" * 2050, "https://[::1", "https://a:b:c/"),
]


@pytest.mark.parametrize("url", _BAD_URLS)
def test_url_that_cannot_be_meant_is_refused(url: str) -> None:
    """By name, before anything is kept."""
    with pytest.raises(InvalidValue, match=r"^url ") as raised:
        checked_url(url, ["http://127.0.0.1:9000"])
    assert raised.value.field == "url"


@pytest.mark.parametrize(
    ("url", "is_trusted"),
    [
        ("https://example.org/hook?x=a%2Fb", False),
        ("https://example.org:443", False),
        ("https://8.8.8.8/", False),
        ("http://127.0.0.1:9000/hook", True),
        ("http://[fd00::5]:81/", True),
    ],
)
def test_public_https_or_a_trusted_origin(url: str, is_trusted: bool) -> None:
    checked, trusted = checked_url(url, ["http://127.0.0.1:9000", "http://[fd00::5]:81"])
    assert (checked, trusted) == (URL(url, encoded=True), is_trusted)


class Leads(AbstractResolver):
    """Every name leads to one address; how often it was asked."""

    def __init__(self, address: str, port: int) -> None:
        self.address, self.port, self.asked = address, port, 0

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> Any:
        self.asked += 1
        return [
            ResolveResult(hostname=host, host=self.address, port=self.port, family=socket.AF_INET, proto=0, flags=0)
        ]

    async def close(self) -> None:
        pass


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "0.0.0.0"])
async def test_name_that_leads_to_a_private_address_is_not_connected_to(
    primary: Primary, receiver: Receiver, address: str
) -> None:
    """Whatever it stood for when the webhook was made. mission: 209"""
    made = await hook(primary, "https://example.org/hook")
    leads = Leads(address, int(receiver.origin.rpartition(":")[2]))

    async with sending(primary, SEALER, resolver=leads, timeout_s=5.0):
        row = await tried(primary, await pinged(primary, made), 1)

    assert leads.asked == 1
    assert (row["status"], row["response"]) == (None, "the host has an address that is not public")
    assert receiver.messages == []


async def test_url_that_became_forbidden_is_not_asked(primary: Primary, receiver: Receiver) -> None:
    """The setting is asked at every attempt, and plain SQL gets round nothing."""
    made = await hook(primary, receiver.origin)

    async with sending(primary, SEALER):
        row = await tried(primary, await pinged(primary, made), 1)

    assert row["response"] == "url must begin with https:// and have no port"
    assert receiver.messages == []


@pytest.mark.parametrize("value", ["example.org", "*.example.org", "http://127.0.0.1", "https://a b:1", "ftp://a:1"])
def test_setting_takes_origins_only(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("PERUSE_WEBHOOK_ALLOW", f"http://127.0.0.1:9000, {value}")
    with pytest.raises(SettingError, match="PERUSE_WEBHOOK_ALLOW"):
        StoreSettings.load()

    monkeypatch.setenv("PERUSE_WEBHOOK_ALLOW", "http://127.0.0.1:9000, https://hooks.internal:8443")
    assert StoreSettings.load().webhook_allow == ("http://127.0.0.1:9000", "https://hooks.internal:8443")


# --- answers of strangers ---------------------------------------------------------------------------------------------


async def test_endless_answer_is_read_for_4_kb(primary: Primary, receiver: Receiver) -> None:
    """It has arrived all the same; the log keeps its beginning, with nothing that a text column cannot hold."""
    sent = 0

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while sent < 500_000_000:
            await response.write(b"\x00\xff" * 32_768)
            sent += 65_536
        return response

    receiver.answer = answer
    made = await hook(primary, receiver.origin)

    async with sending(primary, SEALER, receiver.origin):
        row = await ended(primary, await pinged(primary, made), "delivered")

    assert row["status"] == 200
    assert row["response"] == "\N{REPLACEMENT CHARACTER}" * 1000
    assert sent < 50_000_000  # what sockets hold, and not what there is


async def test_packed_answer_is_not_unpacked(primary: Primary, receiver: Receiver) -> None:
    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=b"packed", headers={"Content-Encoding": "gzip"})

    receiver.answer = answer
    made = await hook(primary, receiver.origin)

    async with sending(primary, SEALER, receiver.origin):
        row = await ended(primary, await pinged(primary, made), "delivered")

    assert row["response"] == "packed"


@pytest.mark.parametrize("where", ["connect", "head", "body"])
async def test_slow_answer_is_given_up(primary: Primary, receiver: Receiver, where: str) -> None:
    """Without a status it failed; with one, that counts."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if where == "head":
            await asyncio.sleep(60)
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x")
            await asyncio.sleep(0.05)

    receiver.answer = answer
    origin = receiver.origin
    full = socket.socket()
    if where == "connect":
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        origin = f"http://127.0.0.1:{full.getsockname()[1]}"
    made = await hook(primary, origin)

    async with sending(primary, SEALER, origin, timeout_s=0.5):
        row = await tried(primary, await pinged(primary, made), 1)

    if where == "body":
        assert (row["state"], row["status"]) == ("delivered", 200)
    else:
        assert (row["state"], row["status"], row["response"]) == ("pending", None, "no answer within 0.5 s")
    full.close()


async def test_nobody_there_is_an_answer_without_the_url(primary: Primary, receiver: Receiver) -> None:
    await receiver.stop()
    made = await hook(primary, f"{receiver.origin}/{CANARY}")

    async with sending(primary, SEALER, receiver.origin):
        row = await tried(primary, await pinged(primary, made), 1)

    assert row["response"] == "no answer: ClientConnectorError"
    await receiver.start()


# --- many at once -----------------------------------------------------------------------------------------------------


async def test_slow_endpoint_blocks_nobody(primary: Primary, receiver: Receiver) -> None:
    """Two thousand deliveries wait for one that never answers: another endpoint's, which came later, are there soon."""
    quick = Receiver()
    await quick.start()

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(60)
        raise AssertionError

    receiver.answer = answer
    slow, well = await hook(primary, receiver.origin), await hook(primary, quick.origin)
    await primary.fetch(
        "insert into webhook_deliveries (webhook_id, owner_id, event_id, event, payload) "
        "select $1, 'ana', gen_random_uuid(), 'ping', '{}' from generate_series(1, 2000)", slow.webhook.id,
    )  # fmt: skip
    began = time.monotonic()

    async with sending(primary, SEALER, receiver.origin, quick.origin, timeout_s=30.0, at_once=8):
        deliveries = [await pinged(primary, well) for _ in range(20)]
        for delivery in deliveries:
            await ended(primary, delivery, "delivered")
        took_s = time.monotonic() - began
        assert receiver.most <= 4

    assert took_s < 15
    assert len(quick.messages) == 20
    await quick.stop()


async def test_many_deliveries_of_one_endpoint_all_arrive_four_at_a_time(primary: Primary, receiver: Receiver) -> None:
    """Each once."""

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(0.005)
        return web.Response()

    receiver.answer = answer
    made = await hook(primary, receiver.origin)
    await primary.fetch(
        "insert into webhook_deliveries (webhook_id, owner_id, event_id, event, payload) "
        "select $1, 'ana', gen_random_uuid(), 'ping', '{}' from generate_series(1, 600)", made.webhook.id,
    )  # fmt: skip

    async with sending(primary, SEALER, receiver.origin):

        async def all_there() -> bool:
            left = await primary.fetch("select from webhook_deliveries where state <> 'delivered' limit 1")
            return not left

        await until(all_there, timeout_s=60)

    assert len(receiver.messages) == len({message.id for message in receiver.messages}) == 600
    assert receiver.most <= 4


async def test_several_senders_send_each_delivery_once(primary: Primary, receiver: Receiver) -> None:
    """They meet on no row."""
    made = [await hook(primary, receiver.origin, user=f"u{n}") for n in range(5)]
    for one in made:
        await primary.fetch(
            "insert into webhook_deliveries (webhook_id, owner_id, event_id, event, payload) "
            "select w.id, w.owner_id, gen_random_uuid(), 'ping', '{}' from webhooks w, generate_series(1, 40) "
            "where w.id = $1", one.webhook.id,
        )  # fmt: skip

    async with (
        sending(primary, SEALER, receiver.origin),
        sending(primary, SEALER, receiver.origin),
        sending(primary, SEALER, receiver.origin),
    ):

        async def all_there() -> bool:
            return not await primary.fetch("select from webhook_deliveries where state <> 'delivered' limit 1")

        await until(all_there, timeout_s=60)

    assert len(receiver.messages) == len({message.id for message in receiver.messages}) == 200


def test_endpoint_learns_from_its_answers() -> None:
    """Slow or failing: one at a time, and back to four by answering well."""
    endpoint = Endpoint()
    assert endpoint.at_once == 4
    endpoint.answered(0.0, 0.01, is_well=False, retry_after_s=None)
    assert endpoint.at_once == 1
    for _ in range(5):
        endpoint.answered(0.0, 0.01, is_well=True, retry_after_s=None)
    assert endpoint.at_once == 4
    endpoint.answered(0.0, 3.0, is_well=True, retry_after_s=None)
    assert endpoint.at_once == 1


def test_turns_are_given_one_after_the_other() -> None:
    """What an endpoint cannot take soon is spread over the time that it takes, up to ten minutes."""
    endpoint = Endpoint()
    for _ in range(20):
        endpoint.answered(0.0, 10.0, is_well=True, retry_after_s=None)
    endpoint.running = 2
    turns = [endpoint.turn_in(0.0) for _ in range(100)]

    assert turns == sorted(turns)
    assert 20 < turns[0] < 40
    assert 9 < turns[1] - turns[0] < 11
    assert turns[-1] == 600


# --- who dies in between ----------------------------------------------------------------------------------------------

_SENDER = """
import asyncio, sys
from store.primary import Primary
from store.sealing import Sealer
from store.webhook_posting import Poster
from store.webhook_sending import WebhookSender

async def main(url, origin):
    primary = await Primary.open(url, name="victim", size=4)
    poster = Poster(allow=[origin], timeout_s=5.0)
    await WebhookSender(primary, Sealer(bytes(range(32))), poster, lease_s=6.0, poll_s=0.02).run()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("moment", ["before the answer", "after the answer"])
async def test_killed_between_sending_and_writing_it_down_is_sent_again(
    primary: Primary, database: str, receiver: Receiver, moment: str
) -> None:
    """kill -9: the receiver sees the same id again, when the lease has ended. mission: 231"""
    process: subprocess.Popen[bytes] | None = None
    blocker = await asyncpg.connect(database)

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        if len(receiver.messages) == 1:
            assert process is not None
            if moment == "before the answer":
                os.kill(process.pid, signal.SIGKILL)
            else:
                # Its row is locked: the sender has the answer and cannot write it down.
                await blocker.execute("begin")
                await blocker.execute("select from webhook_deliveries for update")
        return web.Response(status=200)

    receiver.answer = answer
    made = await hook(primary, receiver.origin)
    delivery = await pinged(primary, made)
    process = subprocess.Popen([sys.executable, "-c", _SENDER, database, receiver.origin])
    try:
        await until(lambda: receiver.messages, timeout_s=30)
        if moment == "after the answer":
            waits = "select pid from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
            ((pid,),) = await until(lambda: primary.fetch(waits), timeout_s=30)
            os.kill(process.pid, signal.SIGKILL)
            await asyncio.to_thread(process.wait)
            # What it had asked for goes with it.
            await primary.fetch("select pg_terminate_backend($1, 10000)", pid)
            await blocker.execute("rollback")
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)
        await blocker.close()

    row = await row_of(primary, delivery)
    assert (row["state"], row["attempts"]) == ("pending", 0)
    assert row["lease_until"] is not None
    async with sending(primary, SEALER, receiver.origin):
        await ended(primary, delivery, "delivered")
    assert len(receiver.messages) == 2
    assert len({message.id for message in receiver.messages}) == 1


async def test_sender_whose_lease_has_ended_writes_nothing(primary: Primary, receiver: Receiver) -> None:
    """Another one has the delivery by then, and its word counts."""
    reached, go = asyncio.Event(), asyncio.Event()

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        if len(receiver.messages) == 1:
            reached.set()
            await go.wait()
            return web.Response(status=500, text="late")
        return web.Response(status=200, text="in time")

    receiver.answer = answer
    made = await hook(primary, receiver.origin)
    delivery = await pinged(primary, made)

    async with sending(primary, SEALER, receiver.origin):
        await reached.wait()
        # As if it had been stopped for longer than its lease.
        await primary.fetch("update webhook_deliveries set run_at = now(), lease_until = now() - interval '1 second'")
        async with sending(primary, SEALER, receiver.origin):
            await ended(primary, delivery, "delivered")
        go.set()
        await until(lambda: receiver.now == 0)
        await ended(primary, await pinged(primary, made), "delivered")

    row = await row_of(primary, delivery)
    assert (row["state"], row["response"], row["attempts"]) == ("delivered", "in time", 1)


async def test_stopped_sender_gives_back_what_waits(primary: Primary, receiver: Receiver) -> None:
    """A restart need not wait for leases to end, but for what was under way."""

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(60)
        raise AssertionError

    receiver.answer = answer
    made = await hook(primary, receiver.origin)
    for _ in range(20):
        await pinged(primary, made)

    async with sending(primary, SEALER, receiver.origin, timeout_s=30.0):
        await until(lambda: len(receiver.messages) == 4)

    (count,) = await primary.fetch("select count(*) from webhook_deliveries where lease_until is null")
    assert count[0] == 16


async def test_deleted_webhook_is_not_sent_to(primary: Primary, receiver: Receiver) -> None:
    """Neither what waited, nor what was under way is an error."""
    made = await hook(primary, receiver.origin)
    await pinged(primary, made)
    await primary.write("ana", lambda c: webhooks.delete(c, "ana", made.webhook.id))
    kept = await hook(primary, receiver.origin)

    async with sending(primary, SEALER, receiver.origin):
        await ended(primary, await pinged(primary, kept), "delivered")

    assert len(receiver.messages) == 1


# --- the log ----------------------------------------------------------------------------------------------------------


async def test_replay_has_the_events_id_and_bytes(primary: Primary, receiver: Receiver) -> None:
    """So that a receiver that had it the first time knows."""
    made = await hook(primary, receiver.origin)
    async with sending(primary, SEALER, receiver.origin):
        first = await pinged(primary, made)
        await ended(primary, first, "delivered")
        again = (await primary.write("ana", lambda c: replay(c, "ana", made.webhook.id, first)))[0]
        await ended(primary, again.id, "delivered")

    one, two = receiver.messages
    assert again.id != first
    assert (one.id, one.body) == (two.id, two.body)
    assert is_signed(two, made.secret)


async def test_old_deliveries_are_forgotten(primary: Primary, receiver: Receiver) -> None:
    """After 30 days, whatever came of them; in batches."""
    made = [await hook(primary, receiver.origin, user=f"u{n}") for n in range(3)]
    await primary.fetch(
        "insert into webhook_deliveries (webhook_id, owner_id, event_id, event, payload, state, created_at) "
        "select w.id, w.owner_id, gen_random_uuid(), 'ping', '{}', 'delivered', now() - make_interval(days => n) "
        "from webhooks w, generate_series(1, 60) n"
    )

    assert await forget_old(primary, keep_s=30.5 * 86_400, batch=7) == 90

    (row,) = await primary.fetch(
        "select count(*), min(created_at) > now() - interval '31 days' from webhook_deliveries"
    )
    assert tuple(row) == (90, True)
    async with sending(primary, SEALER, receiver.origin):

        async def is_tidy() -> bool:
            return bool((await primary.fetch("select count(*) = 87 from webhook_deliveries"))[0][0])

        await until(is_tidy)
    assert len(made) == 3


async def test_no_secret_and_no_path_is_logged(
    primary: Primary, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A URL may be a secret itself: lines name its host. mission: 209"""
    out = io.StringIO()
    old = structlog.get_config()
    configure(process="test", stream=out)
    answers = [500, 410]

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=answers.pop(0), text=CANARY)

    receiver.answer = answer
    made = await hook(primary, f"{receiver.origin}/{CANARY}?token={CANARY}")
    bad = await hook(primary, f"https://user:{CANARY}@127.0.0.1/{CANARY}?x={CANARY}")
    try:
        monkeypatch.setattr("store.webhook_sending.log", structlog.get_logger())
        async with sending(primary, SEALER, receiver.origin, schedule_s=(0.0, 0.01, 0.01)):
            await ended(primary, await pinged(primary, made), "failed")
            await ended(primary, await pinged(primary, bad), "failed")
            await until(lambda: "webhook.disabled" in out.getvalue())
    finally:
        structlog.configure(**old)

    text = out.getvalue()
    assert text.count("webhook.sent") == 5
    assert '"host": "127.0.0.1"' in text
    for canary in (CANARY, made.secret.removeprefix("whsec_"), "signature"):
        assert canary not in text


async def test_names_are_looked_up_by_threads_of_the_poster(receiver: Receiver) -> None:
    """`localhost`, trusted by its origin, is found by the real resolver."""
    origin = receiver.origin.replace("127.0.0.1", "localhost")
    poster = Poster(allow=[origin], timeout_s=10.0)

    answer = await poster.post(f"{origin}/x", b"{}", {})

    assert (answer.status, answer.text) == (200, "said 200")
    await poster.close()


async def test_random_bodies_of_answers_never_stop_a_delivery(primary: Primary, receiver: Receiver) -> None:
    """Whatever bytes come, the log has a text of them."""
    dice = random.Random(7)

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=dice.randbytes(dice.randrange(3000)), status=dice.choice([200, 201, 299]))

    receiver.answer = answer
    made = await hook(primary, receiver.origin)
    async with sending(primary, SEALER, receiver.origin):
        for delivery in [await pinged(primary, made) for _ in range(30)]:
            await ended(primary, delivery, "delivered")
