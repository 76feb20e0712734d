"""What a user wants of a model whenever a request does not say otherwise."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, NamedTuple

import msgspec

from store.errors import InvalidValue, NotFound
from store.generation.defaults import Defaults, check_for, encode_defaults
from store.generation.limits import Model
from store.primary import Connection
from store.users import ensure_user

__all__ = ["ModelSettings", "all_settings", "forget", "keep", "settings_of"]

_KEEP: Final = """
insert into model_settings (owner_id, model, params) values ($1, $2, $3)
on conflict (owner_id, model) do update set params = excluded.params, updated_at = clock_timestamp()
returning model, params, updated_at
"""


class ModelSettings(NamedTuple):
    """The settings of one model: fields of a request."""

    model: str
    params: dict[str, Any]
    updated_at: datetime


async def settings_of(connection: Connection, user: str, model: str) -> dict[str, Any]:
    """The user's settings of a model, {} if there are none: fields of a request that the request may override."""
    sql = "select params from model_settings where owner_id = $1 and model = $2"
    params = await connection.fetchval(sql, user, model)
    return {} if params is None else msgspec.json.decode(params, type=dict[str, Any])


async def all_settings(connection: Connection, user: str) -> list[ModelSettings]:
    """Those of all models that the user has settings of, by the model's id."""
    sql = "select model, params, updated_at from model_settings where owner_id = $1 order by model"
    return [_read(row) for row in await connection.fetch(sql, user)]


async def keep(connection: Connection, user: str, model: Model, defaults: Defaults) -> ModelSettings:
    """Keep settings of `model`, in place of older ones.

    Raises:
        InvalidValue: the model could not draw them; names the field.
    """
    if defaults.model is not None:
        raise InvalidValue("model", f"the settings of {model.id} cannot name a model")
    check_for(model, defaults)
    await ensure_user(connection, user)
    return _read(await connection.fetchrow(_KEEP, user, model.id, encode_defaults(defaults)))


async def forget(connection: Connection, user: str, model: str) -> None:
    """Raises: NotFound when the user has no settings of the model. The model itself may be gone."""
    sql = "delete from model_settings where owner_id = $1 and model = $2 returning true"
    if "\0" in model or await connection.fetchval(sql, user, model) is None:
        raise NotFound("Model settings not found")


def _read(row: Any) -> ModelSettings:
    return ModelSettings(row["model"], msgspec.json.decode(row["params"], type=dict[str, Any]), row["updated_at"])
