"""Sending what webhooks.sql wrote down: signed, again and again for three days, at least once.

Taking a delivery is a lease, not a lock: no transaction is open while an endpoint is asked, and what a killed process
had taken is due again when its lease ends, with the same `webhook-id`. A lease that has ended writes nothing. Any
number of processes may send; how many deliveries one endpoint gets at once is counted in each of them.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import structlog

from store.clock import Clock, SystemClock
from store.errors import PrimaryUnavailable, SettingError
from store.primary import Primary
from store.sealing import Sealer
from store.webhook_endpoint import Endpoint, Held
from store.webhook_log import forget_old
from store.webhook_posting import Answer, Poster, signatures
from store.webhooks import context_of

__all__ = ["SCHEDULE_S", "WebhookSender"]

log = structlog.get_logger()

#: Before the first attempt, and after each that failed; the last one is in the fourth day.
SCHEDULE_S: Final = (0.0, 5.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)
_JITTER: Final = 0.1
_LONGEST_RETRY_AFTER_S: Final = 86_400.0
_GONE: Final = 410
_BATCH: Final = 500
_MOST_HELD: Final = 10_000
_KEEP_S: Final = 30 * 86_400.0
_DISABLE_S: Final = 5 * 86_400.0
_TIDY_EVERY_S: Final = 600.0
_IDLE_S: Final = 600.0

# $1 rows, $2 lease in seconds. Several senders meet on no row. now(): a volatile clock could not use the index.
_CLAIM: Final = """
with due as materialized (
  select id, run_at from webhook_deliveries where state = 'pending' and run_at <= now() order by run_at limit $1
  for update skip locked)
update webhook_deliveries d
set run_at = now() + make_interval(secs => $2), lease_until = now() + make_interval(secs => $2)
from due where d.id = due.id
returning d.id, d.webhook_id, d.lease_until, due.run_at as due_at
"""
# $1 ids, $2 seconds for each, $3 their leases: they wait as if they had not been taken.
_PUT_OFF: Final = """
update webhook_deliveries d set run_at = now() + make_interval(secs => p.wait_s), lease_until = null
from unnest($1::uuid[], $2::float8[], $3::timestamptz[]) as p(id, wait_s, lease_until)
where d.id = p.id and d.lease_until = p.lease_until and d.state = 'pending'
"""
# $1 delivery, $2 its lease, $3 seconds that have to be left of it.
_LOAD: Final = """
select d.event_id, d.event, d.payload, d.attempts, w.url, w.state, w.secret,
  case when w.old_secret_until > now() then w.old_secret end as old_secret
from webhook_deliveries d join webhooks w on w.id = d.webhook_id
where d.id = $1 and d.state = 'pending' and d.lease_until = $2 and d.lease_until > now() + make_interval(secs => $3)
"""
# $1 delivery, $2 its lease, $3 state, $4 seconds until the next attempt, $5 status, $6 response, $7 took_ms,
# $8 attempts to add.
_FINISH: Final = """
update webhook_deliveries set state = $3, attempts = attempts + $8, lease_until = null, status = $5, response = $6,
  took_ms = $7, run_at = now() + make_interval(secs => $4), ended_at = case when $3 <> 'pending' then now() end
where id = $1 and lease_until = $2 and state = 'pending'
"""
# $1 webhook, $2 the URL that answered so, $3 reason.
_DISABLE: Final = """
update webhooks set state = 'disabled', disabled_reason = $3, updated_at = now()
where id = $1 and url = $2 and state = 'active' returning true
"""
# The same; $4 seconds in which nothing was delivered, and in which nobody changed the webhook.
_DISABLE_FAILING: Final = """
update webhooks w set state = 'disabled', disabled_reason = $3, updated_at = now()
where w.id = $1 and w.url = $2 and w.state = 'active' and w.updated_at < now() - make_interval(secs => $4)
  and exists (select from webhook_deliveries d where d.webhook_id = w.id and d.state <> 'delivered'
    and d.created_at < now() - make_interval(secs => $4))
  and not exists (select from webhook_deliveries d where d.webhook_id = w.id and d.state = 'delivered'
    and d.ended_at > now() - make_interval(secs => $4))
returning true
"""


class WebhookSender:
    """`run` until cancelled."""

    def __init__(
        self,
        primary: Primary,
        sealer: Sealer,
        poster: Poster,
        *,
        clock: Clock | None = None,
        schedule_s: Sequence[float] = SCHEDULE_S,
        lease_s: float = 60.0,
        poll_s: float = 0.5,
        at_once: int = 256,
    ) -> None:
        """`poster` is closed when `run` ends. `schedule_s` are the seconds before each attempt, `lease_s` is longer
        than the poster's timeout, `at_once` bounds the attempts of this process."""
        self._primary = primary
        self._sealer = sealer
        self._poster = poster
        self._clock = clock or SystemClock()
        self._schedule_s = tuple(schedule_s)
        self._lease_s = lease_s
        self._poll_s = poll_s
        self._turns = asyncio.Semaphore(at_once)
        self._endpoints: dict[uuid.UUID, Endpoint] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Send what is due until this is cancelled. What is under way then is sent again when its lease ends."""
        tidy_due = self._clock.monotonic()
        try:
            while True:
                taken = 0
                try:
                    taken = await self._take()
                    if self._clock.monotonic() >= tidy_due:
                        tidy_due = self._clock.monotonic() + _TIDY_EVERY_S
                        await self._tidy()
                except PrimaryUnavailable:
                    pass
                except Exception:
                    log.exception("webhooks.not_sent")
                if taken < _BATCH:
                    await asyncio.sleep(self._poll_s)
        finally:
            await self._end()

    async def _take(self) -> int:
        """Take what is due and begin with it; answers how many there were."""
        held = sum(e.running + len(e.waiting) for e in self._endpoints.values())
        if held >= _MOST_HELD:
            return 0
        rows = await self._primary.fetch(_CLAIM, _BATCH, self._lease_s)
        put_off: list[tuple[Held, float]] = []
        for row in sorted(rows, key=lambda r: (r["due_at"], r["id"])):
            one = Held(row["id"], row["webhook_id"], row["lease_until"])
            endpoint = self._endpoints.setdefault(one.webhook_id, Endpoint())
            wait_s = endpoint.turn_in(self._clock.monotonic())
            if wait_s > 0:
                put_off.append((one, wait_s))
            else:
                endpoint.waiting.append(one)
                self._start(endpoint)
        await self._put_off(put_off)
        return len(rows)

    async def _put_off(self, held: Sequence[tuple[Held, float]]) -> None:
        if held:
            await self._primary.fetch(
                _PUT_OFF, [one.id for one, _ in held], [wait_s for _, wait_s in held], [o.lease_until for o, _ in held]
            )

    def _start(self, endpoint: Endpoint) -> None:
        """Begin as many of those that wait as may run. Each ends by itself, within its timeout, or with `run`."""
        while endpoint.waiting and endpoint.running < endpoint.at_once:
            endpoint.running += 1
            task = asyncio.create_task(self._run_one(endpoint, endpoint.waiting.popleft()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run_one(self, endpoint: Endpoint, held: Held) -> None:
        try:
            async with self._turns:
                pause_s = endpoint.pause_s(self._clock.monotonic())
                if pause_s > 0:
                    await self._put_off([(held, pause_s)])
                else:
                    await self._attempt(endpoint, held)
        except PrimaryUnavailable:
            pass  # due again when the lease ends
        except Exception:
            log.exception("webhook.not_sent", webhook=str(held.webhook_id), delivery=str(held.id))
        finally:
            endpoint.running -= 1
            self._start(endpoint)

    async def _attempt(self, endpoint: Endpoint, held: Held) -> None:
        rows = await self._primary.fetch(_LOAD, held.id, held.lease_until, self._poster.timeout_s)
        if not rows:
            return  # its webhook is gone, or it waited here for too long
        (row,) = rows
        if row["state"] != "active":
            await self._finish(held, "failed", Answer(None, "the webhook is disabled", 0.0), tries=0)
            return
        answer = await self._post(held, row)
        is_well = answer.status is not None and 200 <= answer.status < 300
        endpoint.answered(self._clock.monotonic(), answer.took_s, is_well=is_well, retry_after_s=answer.retry_after_s)
        attempt = row["attempts"] + 1
        if is_well:
            state = "delivered"
        else:
            state = "failed" if answer.status == _GONE or attempt >= len(self._schedule_s) else "pending"
        wait_s = self._wait_s(attempt, answer) if state == "pending" else 0.0
        await self._finish(held, state, answer, wait_s=wait_s)
        log.info(
            "webhook.sent", webhook=str(held.webhook_id), delivery=str(held.id), told=row["event"],
            host=urlsplit(row["url"]).hostname, attempt=attempt, state=state, status=answer.status,
            reason=answer.text if answer.status is None else None, took_ms=round(answer.took_s * 1000),
        )  # fmt: skip
        if answer.status == _GONE:
            await self._disable(held, _DISABLE, row["url"], "it answered 410 Gone")
        elif state == "failed":
            reason = f"nothing was delivered for {_DISABLE_S / 86_400:.0f} days"
            await self._disable(held, _DISABLE_FAILING, row["url"], reason, _DISABLE_S)

    async def _post(self, held: Held, row: Any) -> Answer:
        sealed = [secret for secret in (row["secret"], row["old_secret"]) if secret is not None]
        try:
            secrets = [self._sealer.open(secret, context_of(held.webhook_id)) for secret in sealed]
        except SettingError as error:
            log.error("webhook.secret_unreadable", webhook=str(held.webhook_id), error=str(error))
            return Answer(None, "its secret cannot be read here: rotate it", 0.0)
        body = row["payload"].encode()
        message_id, at_s = str(row["event_id"]), int(self._clock.wall())
        headers = {
            "webhook-id": message_id,
            "webhook-timestamp": str(at_s),
            "webhook-signature": signatures(secrets, message_id, at_s, body),
        }
        return await self._poster.post(row["url"], body, headers)

    def _wait_s(self, attempt: int, answer: Answer) -> float:
        """Seconds until the attempt after this one: the schedule's, or more when the endpoint asks for it."""
        asked_s = min(answer.retry_after_s or 0.0, _LONGEST_RETRY_AFTER_S)
        return max(self._schedule_s[attempt], asked_s) * (1 + _JITTER * random.random())

    async def _finish(self, held: Held, state: str, answer: Answer, *, wait_s: float = 0.0, tries: int = 1) -> None:
        """Write down how it went. Tried again while the primary is away: what is not written is sent again."""
        parameters = (state, wait_s, answer.status, answer.text, round(answer.took_s * 1000), tries)
        for pause_s in (0.5, 2.0, 5.0):
            try:
                await self._primary.fetch(_FINISH, held.id, held.lease_until, *parameters)
                return
            except PrimaryUnavailable:
                await asyncio.sleep(pause_s)
        await self._primary.fetch(_FINISH, held.id, held.lease_until, *parameters)

    async def _disable(self, held: Held, sql: str, url: str, reason: str, *more: float) -> None:
        if await self._primary.fetch(sql, held.webhook_id, url, reason, *more):
            log.warning("webhook.disabled", webhook=str(held.webhook_id), reason=reason)

    async def _tidy(self) -> None:
        now = self._clock.monotonic()
        for webhook_id in [key for key, endpoint in self._endpoints.items() if endpoint.is_idle(now, _IDLE_S)]:
            del self._endpoints[webhook_id]
        gone = await forget_old(self._primary, keep_s=_KEEP_S)
        if gone:
            log.info("webhooks.forgotten", deliveries=gone)

    async def _end(self) -> None:
        waiting = [(one, 0.0) for endpoint in self._endpoints.values() for one in endpoint.waiting]
        for endpoint in self._endpoints.values():
            endpoint.waiting.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            await self._put_off(waiting)
        except PrimaryUnavailable:
            pass
        await self._poster.close()
