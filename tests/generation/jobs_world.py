"""Jobs on a real primary, real adapters on fake providers, real objects, and as many runners as a test wants."""

from __future__ import annotations

import asyncio
import itertools
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from store.config import StoreSettings
from store.epoch import Bookmark
from store.generation.pricing import Prices, read_prices
from store.generation.providers import Provider
from store.generation.retries import Policy
from store.generation.runner import Rhythm, Runner
from store.objects.interface import Objects
from store.objects.keys import keys_of
from store.objects.local import LocalObjects
from store.objects.picture_process import PictureProcess
from store.objects.signing import GatewayUrls
from store.primary import Primary
from store.storage import Limits
from tests.fakes.providers_world import MODEL_OF, ProvidersWorld, fetch, opened
from tests.generation.money import assert_money

__all__ = ["FINAL", "JobsWorld", "jobs_world"]

FINAL = ("completed", "failed", "canceled")
HASTY = Policy(waits_s=(0.02, 0.02, 0.02), most_retry_after_s=0.05)
QUICK = Rhythm(lease_s=2.0, beat_s=0.5, look_s=0.03, claim_s=0.01, batch_s=0.005, poll_s=0.02)
_names = itertools.count(1)


@dataclass
class JobsWorld:
    """`add` jobs, `start` runners, `ended` waits for them."""

    primary: Primary
    world: ProvidersWorld
    objects: Objects
    pictures: PictureProcess
    prices: Prices = field(default_factory=lambda: read_prices()[1])
    limits: Limits = field(default_factory=lambda: Limits(10**9, 10**9, 10**9))
    runners: list[tuple[Runner, asyncio.Task[None]]] = field(default_factory=list)
    changes: list[tuple[str, Bookmark]] = field(default_factory=list)

    async def user(self, user: str = "ana", *, credits_tenths: int = 10_000, plan: str = "free") -> None:
        await self.primary.fetch("insert into users (id) values ($1) on conflict do nothing", user)
        await self.primary.fetch("update accounts set plan = $2 where owner_id = $1", user, plan)
        await self.primary.fetch(
            "insert into credit_ledger (owner_id, kind, amount_tenths, reason) values ($1, 'grant', $2, 'test')",
            user, credits_tenths,
        )  # fmt: skip

    async def add(
        self, provider: str = "builtin", prompt: str = "a red panda", *, user: str = "ana", n: int = 1, **given: Any
    ) -> uuid.UUID:
        """A job as the API makes it; `given` are columns of its row and fields of its parameters."""
        columns = {name: given.pop(name) for name in ("watermark", "own_key", "kind", "price_tenths") if name in given}
        model = given.pop("model", MODEL_OF.get(provider, provider))
        limits = self.world.models.of(model).limits
        params: dict[str, Any] = {"width": 512, "height": 512, **given}
        if limits.has_seed:
            params.setdefault("seed", 7)
        columns.setdefault("price_tenths", 15 * n)
        names = ["owner_id", "prompt", "n", "provider", "model", *columns]
        values = [user, prompt, n, provider, model, *columns.values()]
        marks = ", ".join(f"${i}" for i in range(1, len(values) + 1))
        rows = await self.primary.fetch(
            f"insert into jobs ({', '.join(names)}, params) values ({marks}, ${len(values) + 1}::text::jsonb) "
            "returning id",
            *values, json.dumps(params, default=str),
        )  # fmt: skip
        return rows[0]["id"]

    def runner(self, *, rhythm: Rhythm = QUICK, policy: Policy = HASTY, **given: Any) -> Runner:
        providers: dict[str, Provider] = {**self.world.providers, **given.pop("providers", {})}
        options: dict[str, Any] = {
            "name": f"runner-{next(_names)}",
            "fetch": fetch,
            "urls": GatewayUrls(b"secret", base="http://files.example"),
            "owner_secret": b"owner",
            "limits": self.limits,
            "on_change": lambda user, bookmark: self.changes.append((user, bookmark)),
            **given,
        }
        objects = options.pop("objects", self.objects)
        return Runner(
            self.primary, objects, self.pictures, providers, self.world.models, self.prices,
            rhythm=rhythm, policy=policy, **options,
        )  # fmt: skip

    def start(self, runner: Runner | None = None, **given: Any) -> Runner:
        runner = runner or self.runner(**given)
        self.runners.append((runner, asyncio.create_task(runner.run())))
        return runner

    async def crash(self, runner: Runner) -> None:
        """End a runner as kill -9 does: nothing is written any more."""
        for other, task in self.runners:
            if other is runner:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def job(self, id: uuid.UUID) -> dict[str, Any]:
        return dict((await self.primary.fetch("select * from jobs where id = $1", id))[0])

    async def attempts(self, id: uuid.UUID) -> list[dict[str, Any]]:
        rows = await self.primary.fetch("select * from attempts where job_id = $1 order by call, number", id)
        return [dict(row) for row in rows]

    async def ended(self, *ids: uuid.UUID, timeout_s: float = 30.0) -> list[dict[str, Any]]:
        """The rows of jobs, once all of them are over; money and room are right then."""
        sql = "select count(*) from jobs where id = any($1) and state = any($2)"
        await self.until(lambda: self._count(sql, list(ids), list(FINAL)), len(ids), timeout_s=timeout_s)
        await assert_money(self.primary)
        return [await self.job(id) for id in ids]

    async def _count(self, sql: str, *parameters: Any) -> int:
        return (await self.primary.fetch(sql, *parameters))[0][0]

    async def until(self, ask: Callable[[], Awaitable[Any]], wanted: Any = True, *, timeout_s: float = 20.0) -> None:
        deadline = asyncio.get_running_loop().time() + timeout_s
        while (found := await ask()) != wanted:
            if asyncio.get_running_loop().time() > deadline:
                rows = await self.primary.fetch("select id, state, error_code, prompt from jobs order by id limit 5")
                raise AssertionError(f"{found!r} is not {wanted!r} after {timeout_s} s; jobs: {[*map(dict, rows)]}")
            await asyncio.sleep(0.01)

    async def assert_objects(self) -> None:
        """Every image has its objects, and no object is without a row that names it or waits to be deleted."""
        rows = await self.primary.fetch("select object_key from images union select unnest(object_keys) from attempts")
        named = {key for row in rows for key in keys_of(row[0])}
        for row in await self.primary.fetch("select object_key from images"):
            for key in keys_of(row[0]):
                assert await self.objects.exists(key), f"{key} is gone"
        going = {row[0] for row in await self.primary.fetch("select key from deletions")}
        left = [info.key async for info in self.objects.scan() if info.key not in named | going]
        assert not left, f"objects without a row: {left}"

    async def close(self) -> None:
        for runner, _ in self.runners:
            await self.crash(runner)


@asynccontextmanager
async def jobs_world(
    primary: Primary, folder: Path, pictures: PictureProcess, **given: Any
) -> AsyncIterator[JobsWorld]:
    objects = LocalObjects(folder / "objects", files_base=StoreSettings().files_base)
    async with opened(**given) as world:
        made = JobsWorld(primary, world, objects, pictures)
        await made.user()
        try:
            yield made
        finally:
            await made.close()
            await objects.close()
