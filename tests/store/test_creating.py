"""From a request to jobs: what is filled in from where, and what is written."""

from __future__ import annotations

import uuid
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from store import model_settings, templates
from store.errors import BudgetExceeded, InsufficientCredits, InvalidValue, NoProviderKey, SettingError
from store.generation.catalog import Catalog, draws, open_catalog
from store.generation.config import ProviderSettings
from store.generation.creating import create
from store.generation.defaults import Defaults
from store.generation.errors import InvalidRequest
from store.generation.models import SQUARES, TABLE
from store.generation.params import decode_params
from store.generation.planning import DEFAULT_SIZE, Plan, plan
from store.generation.pricing import read_prices
from store.generation.wanted import Wanted, layered, said
from store.primary import Connection, Primary

SDXL = "@cf/stabilityai/stable-diffusion-xl-base-1.0"
MODELS, PRICES = read_prices()
CATALOG = Catalog(MODELS, PRICES, with_keys={model.provider for model in TABLE})


async def planned(primary: Primary, user: str = "ana", catalog: Catalog = CATALOG, **wanted: Any) -> Plan:
    async with primary.connection() as connection:
        return await plan(connection, user, Wanted(**wanted), catalog)


async def catalog_of(**given: str) -> Catalog:
    async with open_catalog(ProviderSettings(**given)) as (catalog, _):
        return catalog


async def created(primary: Primary, user: str = "ana", **wanted: Any) -> list[Any]:
    """The rows that were made."""

    async def work(connection: Connection) -> Any:
        return await create(connection, user, await plan(connection, user, Wanted(**wanted), CATALOG))

    made, _ = await primary.write(user, work)
    return await primary.fetch("select * from jobs where id = any($1) order by created_at", list(made.jobs))


async def with_credits(primary: Primary, tenths: int, user: str = "ana") -> None:
    async def work(connection: Connection) -> None:
        await connection.execute("insert into users (id) values ($1) on conflict do nothing", user)
        sql = "insert into credit_ledger (owner_id, kind, amount_tenths) values ($1, 'grant', $2)"
        await connection.execute(sql, user, tenths)

    await primary.write(user, work)


# --- what is filled in ------------------------------------------------------------------------------------------


def test_every_model_draws_the_default_size() -> None:
    assert all(draws(model.limits, *DEFAULT_SIZE) for model in TABLE)


async def test_what_is_not_said_is_the_models_own(primary: Primary) -> None:
    """A seed is drawn where there are seeds, steps are written down where there are steps.

    mission: 10, 11, 15
    """
    (sdxl,) = (await planned(primary, prompt="a fox", model=SDXL)).drafts
    (dalle,) = (await planned(primary, prompt="a fox", model="openai/dall-e-3")).drafts
    (again,) = (await planned(primary, prompt="a fox", model=SDXL)).drafts

    assert (sdxl.image_size, sdxl.n, sdxl.params.steps, sdxl.params.visibility) == ("1024x1024", 1, 20, "unlisted")
    assert sdxl.params.seed is not None
    assert sdxl.params.seed != again.params.seed
    assert (dalle.params.seed, dalle.params.steps) == (None, None)


async def test_settings_of_the_model_come_before_its_own_values_and_after_the_request(primary: Primary) -> None:
    """mission: 228"""

    async def keep(connection: Connection) -> None:
        kept = Defaults(steps=7, image_size="512x512", negative_prompt="blur", options={"guidance": 5})
        await model_settings.keep(connection, "ana", MODELS[SDXL], kept)

    await primary.write("ana", keep)
    (plain,) = (await planned(primary, prompt="a fox", model=SDXL)).drafts
    wish = {"width": 640, "height": 512, "steps": 9, "options": {"strength": 0.5}}
    (wished,) = (await planned(primary, prompt="a fox", model=SDXL, **wish)).drafts
    (other,) = (await planned(primary, prompt="a fox", model="@cf/lykon/dreamshaper-8-lcm")).drafts

    assert (plain.image_size, plain.params.steps, plain.params.negative_prompt) == ("512x512", 7, "blur")
    assert (wished.image_size, wished.params.steps, wished.params.negative_prompt) == ("640x512", 9, "blur")
    assert wished.params.options == {"guidance": 5, "strength": 0.5}
    assert (other.image_size, other.params.steps) == ("1024x1024", 20)


async def test_template_is_filled_and_comes_before_the_settings(primary: Primary) -> None:
    """mission: 229"""

    async def keep(connection: Connection) -> uuid.UUID:
        await model_settings.keep(connection, "ana", MODELS[SDXL], Defaults(steps=7, negative_prompt="blur"))
        made = await templates.create(
            connection, "ana", MODELS, name="animals", prompt="a {{animal}} in {{place}}",
            params={"model": SDXL, "steps": 11, "n": 2},
        )  # fmt: skip
        return made.id

    template_id, _ = await primary.write("ana", keep)
    variables = {"animal": "fox", "place": "snow"}
    (draft,) = (await planned(primary, template="animals", variables=variables)).drafts
    (changed,) = (await planned(primary, template=str(template_id), variables=variables, steps=4, n=1)).drafts

    assert (draft.prompt, draft.model.id, draft.n) == ("a fox in snow", SDXL, 2)
    assert (draft.params.steps, draft.params.negative_prompt) == (11, "blur")
    assert (changed.params.template_id, changed.params.steps, changed.n) == (template_id, 4, 1)
    with pytest.raises(InvalidValue, match="'place' has no value"):
        await planned(primary, template="animals", variables={"animal": "fox"})
    with pytest.raises(InvalidRequest, match="no steps to choose"):
        await planned(primary, template="animals", variables=variables, model="builtin")


def test_layers_replace_sizes_as_a_whole() -> None:
    below, above = {"image_size": "512x512", "steps": 3}, {"width": 640, "height": 480}

    assert said(layered(below, above)) == {"width": 640, "height": 480, "steps": 3}
    assert said(layered(above, below)) == below
    with pytest.raises(InvalidValue, match="cannot be used"):
        layered({"steps": "many"})


async def test_default_model_is_the_operators(tmp_path: Any) -> None:
    """mission: 5"""
    workers_ai = {"workers_ai_key": "k", "workers_ai_account": "a"}
    assert (await catalog_of()).default == "builtin"
    assert (await catalog_of(**workers_ai)).default == SDXL
    assert (await catalog_of(**workers_ai, default_model="openai/dall-e-3")).default == "openai/dall-e-3"
    with pytest.raises(SettingError, match="PERUSE_DEFAULT_MODEL: there is no model 'nothing'"):
        await catalog_of(default_model="nothing")
    prices = tmp_path / "prices.toml"
    prices.write_text('["mine"]\nlike = "openai/dall-e-3"\ncredits = "0.5"\n')
    catalog = await catalog_of(prices_file=str(prices), default_model="mine")
    told = {model["id"]: bytes(model["prices"]["credits"]) for model in catalog.told(())}
    assert (catalog.default, told["mine"]) == ("mine", b"0.5")


async def test_provider_without_a_key_draws_for_those_who_bring_one(primary: Primary) -> None:
    """mission: 4"""
    bare = Catalog(MODELS, PRICES, with_keys={"builtin"})
    with pytest.raises(NoProviderKey, match="dall-e-3 needs a key of openai"):
        await planned(primary, prompt="a fox", model="openai/dall-e-3", catalog=bare)
    await with_credits(primary, 10)
    sql = "insert into provider_keys (owner_id, provider, sealed, hint) values ('ana', 'openai', 'x', 'x') returning 1"
    await primary.fetch(sql)

    (draft,) = (await planned(primary, prompt="a fox", model="openai/dall-e-3", catalog=bare)).drafts

    assert (draft.own_key, draft.price_tenths, draft.usd) == (True, 0, Decimal("0.04"))


# --- what is written --------------------------------------------------------------------------------------------


async def test_row_says_all_that_it_takes_to_draw_it(primary: Primary) -> None:
    """mission: 12, 14, 16, 19"""
    await with_credits(primary, 100)
    wanted = {"prompt": "a fox", "model": "builtin", "n": 3, "seed": 9, "watermark": "(c) ana", "visibility": "public"}
    (row,) = await created(primary, **wanted, width=512, height=640)
    (paid,) = await created(primary, prompt="an owl", model=SDXL, negative_prompt="blur", image_size="1536x1536")

    params = decode_params(row["params"])
    assert (row["state"], row["provider"], row["model"], row["n"]) == ("pending", "builtin", "builtin", 3)
    assert (row["image_size"], row["watermark"], row["kind"]) == ("512x640", "(c) ana", "TEXT_TO_IMAGE")
    assert (params.width, params.height, params.seed, params.visibility) == (512, 640, 9, "public")
    assert (paid["price_tenths"], paid["cost_usd"]) == (45, 0)
    assert decode_params(paid["params"]).negative_prompt == "blur"
    assert len(await primary.fetch("select 1 from queue")) == 2


async def test_watermark_goes_with_every_model(primary: Primary) -> None:
    """Whoever writes it. mission: 16"""
    for model in TABLE:
        (draft,) = (await planned(primary, prompt="a fox", model=model.id, watermark="(c) ana")).drafts
        assert draft.watermark == "(c) ana"


async def test_all_of_a_batch_is_covered_or_nothing_is_made(primary: Primary) -> None:
    """mission: 30"""
    await with_credits(primary, 59)
    with pytest.raises(InsufficientCredits, match=r"takes 6 credits, and the balance is 5\.9") as refused:
        await created(primary, prompts=["a", "b"], model=SDXL)
    assert (refused.value.balance_tenths, refused.value.needed_tenths) == (59, 60)
    await primary.fetch("update accounts set month_budget_tenths = 40, day_budget_tenths = 30 returning 1")
    with pytest.raises(BudgetExceeded, match="of the day's budget of 3 0 are spent"):
        await created(primary, prompt="a", model="openai/dall-e-3")
    with pytest.raises(BudgetExceeded):
        await created(primary, prompts=["a", "b"], model="openai/dall-e-2")

    rows = await primary.fetch("select (select count(*) from jobs) + (select count(*) from batches)")
    assert rows[0][0] == 0
    assert len(await created(primary, prompts=["a"], model=SDXL)) == 1


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    model=st.sampled_from(sorted(MODELS)),
    side=st.sampled_from([None, *SQUARES]),
    n=st.integers(1, 10),
    others=st.lists(st.sampled_from(sorted(MODELS)), max_size=2),
)
async def test_what_is_planned_is_what_is_held(
    primary: Primary, model: str, side: int | None, n: int, others: list[str]
) -> None:
    """For every model, size and number that it draws. mission: 31, 68, 69, 70"""
    wanted = {"prompt": "a fox", "models": [model, *others], "n": n}
    wanted |= {} if side is None else {"image_size": f"{side}x{side}"}
    try:
        drawn = await planned(primary, **wanted)
    except InvalidRequest:
        return
    await with_credits(primary, drawn.price_tenths + 1)
    (before,) = await primary.fetch("select balance_tenths, held_tenths from accounts where owner_id = 'ana'")
    rows = await created(primary, **wanted)
    (after,) = await primary.fetch("select balance_tenths, held_tenths from accounts where owner_id = 'ana'")

    held = drawn.price_tenths
    assert (after[0], after[1]) == (before[0] - held, before[1] + held)
    assert sum(row["price_tenths"] for row in rows) == held
    for row in rows:
        px = side or 1024
        unit = PRICES[row["model"]].credits_tenths
        assert row["price_tenths"] == (unit * 3 // 2 if px * px > 1_048_576 else unit) * n


def test_a_request_takes_no_field_that_nobody_knows() -> None:
    with pytest.raises(msgspec.ValidationError, match="unknown field `price`"):
        msgspec.json.decode(b'{"prompt": "x", "price": 0}', type=Wanted)
