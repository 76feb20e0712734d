"""The tables of what users set for their generations: templates, settings of models, and their own provider keys."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Column, LargeBinary, Table, Text, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import JSONB

from store.columns import id_column, metadata, time_column, user_column

__all__ = ["model_settings", "provider_keys", "templates"]

templates = Table(
    "templates",
    metadata,
    id_column(),
    user_column(),
    Column("name", Text, nullable=False),
    Column("prompt", Text, nullable=False, comment="{{variable}} stands for what a request gives"),
    Column("params", JSONB, nullable=False, server_default=text("'{}'"), comment="as in a request for a generation"),
    time_column("created_at"),
    time_column("updated_at"),
    UniqueConstraint("owner_id", "name", name="templates_name_key"),
    CheckConstraint("char_length(name) between 1 and 200", name="name"),
    CheckConstraint("octet_length(prompt) <= 32000", name="prompt_size"),
    CheckConstraint("octet_length(params::text) <= 16384", name="params_size"),
)

model_settings = Table(
    "model_settings",
    metadata,
    user_column(primary_key=True),
    Column("model", Text, primary_key=True),
    Column("params", JSONB, nullable=False, comment="what a request does not say is taken from here"),
    time_column("updated_at"),
    CheckConstraint("octet_length(params::text) <= 16384", name="params_size"),
)

provider_keys = Table(
    "provider_keys",
    metadata,
    user_column(primary_key=True),
    Column("provider", Text, primary_key=True),
    Column("sealed", LargeBinary, nullable=False, comment="the key, encrypted"),
    Column("hint", Text, nullable=False, comment="its last characters, so that a person can tell keys apart"),
    time_column("created_at"),
)
