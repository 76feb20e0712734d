"""kill -9 of whoever sends webhooks, at any moment: what was committed arrives, what was rolled back never does."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
from aiohttp import web

from store import webhooks
from store.primary import Primary
from store.sealing import Sealer
from tests.receiver import Receiver, is_signed
from tests.world import until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]
SEALER = Sealer(bytes(range(32)))
_KILLS = 15

_SENDER = """
import asyncio, sys
from store.primary import Primary
from store.sealing import Sealer
from store.webhook_posting import Poster
from store.webhook_sending import WebhookSender

async def main(url, origin):
    primary = await Primary.open(url, name="victim", size=4)
    poster = Poster(allow=[origin], timeout_s=0.5)
    sender = WebhookSender(
        primary, Sealer(bytes(range(32))), poster, lease_s=1.5, poll_s=0.02, schedule_s=(0.0, *[0.05] * 200)
    )
    print("begun", flush=True)
    await sender.run()

asyncio.run(main(*sys.argv[1:]))
"""


def start(database: str, origin: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", _SENDER, database, origin], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.stdout.close()
    return process


async def test_every_committed_event_arrives_and_no_other(primary: Primary, database: str) -> None:
    """Senders are killed fifteen times, the receiver fails half of the time, and a third of all jobs is rolled back."""
    dice = random.Random(4)
    receiver = Receiver()
    well: set[str] = set()

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        match dice.randrange(8):
            case 0:
                return web.Response(status=500)
            case 1:
                await asyncio.sleep(1.0)  # longer than the sender waits
                return web.Response(status=503)
            case 2:
                assert request.transport is not None
                request.transport.close()
                return web.Response()
        await asyncio.sleep(dice.random() * 0.05)
        well.add(request.headers["webhook-id"])
        return web.Response(status=204)

    receiver.answer = answer
    await receiver.start()

    async def make(connection: Any, user: str) -> webhooks.NewSecret:
        return await webhooks.create(
            connection, SEALER, user, url=f"{receiver.origin}/{user}", events=(), allow=(receiver.origin,),
            now_ms=int(time.time() * 1000),
        )  # fmt: skip

    users = [f"u{n}" for n in range(6)]
    secrets = {user: (await primary.write(user, lambda c, user=user: make(c, user)))[0].secret for user in users}
    committed: set[str] = set()

    async def work() -> None:
        """One job after another ends, in transactions of which some are taken back."""
        while True:
            user = dice.choice(users)
            async with primary.connection() as connection:
                transaction = connection.transaction()
                await transaction.start()
                job = await connection.fetchval(
                    "insert into jobs (owner_id, prompt, provider, model) values ($1, '', 'b', 'm') returning id", user
                )
                await connection.execute("update jobs set state = 'failed' where id = $1", job)
                if dice.randrange(3) == 0:
                    await transaction.rollback()
                else:
                    await transaction.commit()
                    committed.add(str(job))
            await asyncio.sleep(0.08)

    working = asyncio.create_task(work())
    for _ in range(_KILLS):
        process = await asyncio.to_thread(start, database, receiver.origin)
        await asyncio.sleep(dice.random() * 1.5)
        os.kill(process.pid, signal.SIGKILL)
        await asyncio.to_thread(process.wait)
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    last = await asyncio.to_thread(start, database, receiver.origin)
    try:

        async def all_there() -> bool:
            return not await primary.fetch("select from webhook_deliveries where state <> 'delivered' limit 1")

        await until(all_there, timeout_s=120)
    finally:
        last.kill()
        await asyncio.to_thread(last.wait)
    await receiver.stop()

    rows = await primary.fetch("select event_id::text as id, payload, owner_id from webhook_deliveries")
    assert {json.loads(row["payload"])["data"]["id"] for row in rows} >= committed
    assert {message.json["data"]["id"] for message in receiver.messages} == {
        json.loads(row["payload"])["data"]["id"] for row in rows
    }
    assert {row["id"] for row in rows} == well, "delivered is what the receiver said yes to"
    assert len(rows) > 50
    for message in receiver.messages:
        assert is_signed(message, secrets[message.path.removeprefix("/")])
    bodies: dict[str, set[bytes]] = {}
    for message in receiver.messages:
        bodies.setdefault(message.id, set()).add(message.body)
    assert {len(sent) for sent in bodies.values()} == {1}, "an id has one body, whoever sends it"
