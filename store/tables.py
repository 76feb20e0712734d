"""The primary's tables, and which of their columns reach a replica.

`REPLICATED` is the one list of replicated columns: the triggers, the pull, the seed and the documents are
all built from it, so that a column cannot be in one of them and not in another.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP, UUID

from store import job_tables, preference_tables, webhook_tables  # noqa: F401 - their tables join the metadata
from store.columns import ZERO_NONCE, finite, id_column, metadata, one_of, time_column, user_column

__all__ = ["REPLICATED", "TIME_COLUMNS", "ZERO_NONCE", "metadata"]


def _object_columns() -> list[Any]:
    """What every stored object's row says about its bytes."""
    return [
        Column("object_key", Text, nullable=False, unique=True),
        Column("content_type", Text, nullable=False),
        Column("size_bytes", BigInteger, nullable=False),
        Column("width", Integer),
        Column("height", Integer),
        Column("thumb_key", Text, unique=True),
        Column("thumbhash", Text),
        CheckConstraint("size_bytes >= 0 and width > 0 and height > 0", name="sizes"),
    ]


users = Table(
    "users",
    metadata,
    Column("id", Text(collation="C"), primary_key=True),
    Column("external_id", Text, unique=True),
    Column("email", Text, index=True),
    Column("name", Text),
    time_column("created_at"),
    time_column("updated_at"),
    CheckConstraint("id ~ '^~?[A-Za-z0-9._@|:-]{1,127}$'", name="id"),
)

api_keys = Table(
    "api_keys",
    metadata,
    id_column(),
    user_column("user_id", index=True),
    Column("hash", LargeBinary, nullable=False, unique=True, comment="SHA-256 of the whole key"),
    Column("hint", Text, nullable=False, comment="the first characters, so that a person can tell keys apart"),
    Column("name", Text, nullable=False, server_default=""),
    time_column("created_at"),
    time_column("revoked_at", nullable=True),
)
Index("api_keys_revoked", api_keys.c.revoked_at, postgresql_where=api_keys.c.revoked_at.is_not(None))

accounts = Table(
    "accounts",
    metadata,
    user_column(primary_key=True),
    Column("plan", Text, nullable=False, server_default="free"),
    Column("balance_tenths", BigInteger, nullable=False, server_default="0"),
    Column("held_tenths", BigInteger, nullable=False, server_default="0"),
    Column("storage_used_bytes", BigInteger, nullable=False, server_default="0"),
    Column("storage_reserved_bytes", BigInteger, nullable=False, server_default="0"),
    Column("day_budget_tenths", BigInteger, comment="most credits of one day in UTC; null: no bound"),
    Column("month_budget_tenths", BigInteger, comment="the same of one month"),
    Column("queue_turn", BigInteger, nullable=False, server_default="0", comment="of the newest job, see jobs.sql"),
    time_column("updated_at"),
    one_of("plan", "free", "pro", "enterprise"),
    CheckConstraint("balance_tenths >= 0", name="balance"),
    CheckConstraint("held_tenths >= 0", name="held"),
    CheckConstraint("day_budget_tenths >= 0 and month_budget_tenths >= 0", name="budgets"),
    CheckConstraint("storage_used_bytes >= 0 and storage_reserved_bytes >= 0", name="storage"),
    *finite("updated_at"),
)

images = Table(
    "images",
    metadata,
    id_column(),
    user_column(),
    Column("visibility", Text, nullable=False, server_default="unlisted"),
    *_object_columns(),
    Column("prompt", Text, nullable=False, server_default=""),
    Column("negative_prompt", Text),
    Column("model", Text, nullable=False),
    Column("seed", BigInteger),
    Column("steps", Integer),
    Column("generation_params", JSONB, nullable=False, server_default=text("'{}'")),
    Column("job_id", UUID(as_uuid=True), ForeignKey("jobs.id", ondelete="SET NULL"), index=True),
    Column("parent_id", UUID(as_uuid=True), ForeignKey("images.id", ondelete="SET NULL"), index=True),
    Column("starred", Boolean, nullable=False, server_default=text("false")),
    Column("title", Text),
    Column("moderation", Text, nullable=False, server_default="approved"),
    time_column("trashed_at", nullable=True),
    time_column("created_at"),
    one_of("visibility", "public", "unlisted"),
    one_of("moderation", "pending", "approved", "rejected"),
    CheckConstraint("seed between 0 and 4294967295", name="seed"),
    CheckConstraint("steps > 0", name="steps"),
    CheckConstraint("octet_length(prompt) <= 32000", name="prompt_size"),
    CheckConstraint("octet_length(generation_params::text) <= 16384", name="generation_params_size"),
    *finite("trashed_at", "created_at"),
)
Index("images_by_owner", images.c.owner_id, images.c.created_at.desc(), images.c.id.desc())
Index("images_by_visibility", images.c.visibility, images.c.created_at.desc())
Index("images_in_trash", images.c.trashed_at, postgresql_where=images.c.trashed_at.is_not(None))

reference_images = Table(
    "reference_images",
    metadata,
    id_column(),
    user_column(),
    *_object_columns(),
    Column("filename", Text, nullable=False, comment="as the user's file was called"),
    Column("sha256", LargeBinary, comment="of the bytes: a user keeps the same ones once"),
    time_column("created_at"),
    *finite("created_at"),
)
_references = reference_images.c
Index("reference_images_by_owner", _references.owner_id, _references.created_at.desc(), _references.id.desc())
Index("reference_images_by_content", _references.owner_id, _references.sha256, unique=True)

storage_reservations = Table(
    "storage_reservations",
    metadata,
    id_column(),
    user_column(index=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("expires_at", TIMESTAMP(timezone=True), nullable=False),
    CheckConstraint("size_bytes >= 0", name="size"),
)

# What no row refers to any more: written by triggers, with the row's own end, and gone when the object is.
deletions = Table(
    "deletions",
    metadata,
    Column("key", Text(collation="C"), primary_key=True, comment="of an object that is to go"),
    time_column("due_at"),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Index("deletions_due", "due_at"),
)

# No foreign key: it outlives its user.
erased_users = Table(
    "erased_users",
    metadata,
    Column("user_id", Text(collation="C"), primary_key=True),
    time_column("erased_at"),
    Column("finished_at", TIMESTAMP(timezone=True), index=True, comment="when the last row was gone; null: under way"),
    Index("erased_users_at", "erased_at"),
)

hosts = Table(
    "hosts",
    metadata,
    Column("id", Text(collation="C"), primary_key=True, comment="node:slot: stable, what placement hashes"),
    Column("generation", BigInteger, nullable=False, server_default="1", comment="starts of this id"),
    Column("address", Text, nullable=False, comment="unix:PATH or tcp:HOST:PORT"),
    Column("node", Text, nullable=False),
    Column("build", Text, nullable=False),
    Column("capacity", Integer, nullable=False, comment="replicas it may hold open"),
    Column("state", Text, nullable=False),
    time_column("heartbeat"),
    time_column("started_at"),
    one_of("state", "live", "draining", "stuck", "gone"),
    postgresql_with={"fillfactor": "50"},  # every heartbeat is an update in place
)

# No foreign key and never deleted: a user who is erased and comes back must not count from 1 again.
# The log holds exactly horizon+1 … version; horizon_nonce proves a cursor that stands on the horizon itself.
sync_user = Table(
    "sync_user",
    metadata,
    Column("user_id", Text(collation="C"), primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("nonce", UUID(as_uuid=True), nullable=False),
    Column("horizon", BigInteger, nullable=False, server_default="0"),
    Column("horizon_nonce", UUID(as_uuid=True), nullable=False, server_default=ZERO_NONCE),
    # HOT updates: room on the page, and no second index, ever.
    postgresql_with={"fillfactor": "50", "autovacuum_vacuum_scale_factor": "0.02"},
)

change_log = Table(
    "change_log",
    metadata,
    Column("user_id", Text(collation="C"), primary_key=True),
    Column("version", BigInteger, primary_key=True),
    Column("nonce", UUID(as_uuid=True), nullable=False),
    time_column("at"),
    Index("change_log_at", "at"),
)

change_row = Table(
    "change_row",
    metadata,
    Column("nonce", UUID(as_uuid=True), primary_key=True),
    Column("user_id", Text(collation="C"), primary_key=True),
    Column("kind", Text(collation="C"), primary_key=True),
    Column("row_id", Text(collation="C"), primary_key=True),
    Column("first", Boolean, nullable=False, comment="first row of this user in its transaction"),
)

sync_epoch = Table(
    "sync_epoch",
    metadata,
    Column("one", Boolean, primary_key=True, server_default=text("true")),
    Column(
        "id",
        BigInteger,
        nullable=False,
        server_default=text("(extract(epoch from clock_timestamp()) * 1000)::bigint"),
        comment="time of the last rotation in ms: epochs are unique and ordered",
    ),
    CheckConstraint("one", name="one"),
)

#: kind → the columns its document is made of, in order. The first is the row's key in the replica.
REPLICATED: Final[dict[str, tuple[str, ...]]] = {
    "images": (
        "id", "object_key", "thumb_key", "thumbhash", "content_type", "size_bytes", "width", "height", "prompt",
        "negative_prompt", "model", "seed", "steps", "generation_params", "job_id", "parent_id", "visibility",
        "starred", "title", "moderation", "trashed_at", "created_at",
    ),
    "reference_images": (
        "id", "object_key", "thumb_key", "thumbhash", "content_type", "size_bytes", "width", "height", "filename",
        "created_at",
    ),
    "jobs": (
        "id", "kind", "prompt", "params", "image_size", "watermark", "n", "provider", "model", "own_key", "state",
        "price_tenths", "refunded_tenths", "cost_usd", "duration_ms", "error_code", "error_message", "image_ids",
        "batch_id", "hidden_at", "created_at", "updated_at",
    ),
    "accounts": (
        "owner_id", "plan", "balance_tenths", "held_tenths", "storage_used_bytes", "day_budget_tenths",
        "month_budget_tenths", "updated_at",
    ),
    "usage_daily": (
        "id", "day", "generations_count", "generations_success", "generations_failed", "generations_canceled",
        "images_count", "credits_used_tenths", "cost_usd", "duration_ms", "model_usage", "storage_used_bytes",
    ),
}  # fmt: skip

#: Columns that a document carries as time; the projection turns them into whole microseconds.
TIME_COLUMNS: Final = frozenset({"trashed_at", "hidden_at", "created_at", "updated_at"})
