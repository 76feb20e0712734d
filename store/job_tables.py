"""The tables of generation: jobs, what is queued, what was tried, and the credits that move around it.

What must hold between them is in jobs.sql: it holds for every writer, plain SQL too.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Numeric,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, REAL, TIMESTAMP, UUID

from store.columns import finite, id_column, metadata, one_of, time_column, user_column

__all__ = ["attempts", "batches", "credit_ledger", "idempotency_keys", "jobs", "queue", "queue_clock", "usage_daily"]


def _job(*, is_key: bool = False) -> Column[Any]:
    reference = ForeignKey("jobs.id", ondelete="CASCADE")
    return Column("job_id", UUID(as_uuid=True), reference, nullable=False, primary_key=is_key)


batches = Table(
    "batches",
    metadata,
    id_column(),
    user_column(index=True),
    Column("kind", Text, nullable=False, comment="why its jobs belong together"),
    time_column("created_at"),
    one_of("kind", "batch", "comparison"),
)

jobs = Table(
    "jobs",
    metadata,
    id_column(),
    user_column(),
    Column("kind", Text, nullable=False, server_default="TEXT_TO_IMAGE"),
    Column("prompt", Text, nullable=False),
    Column("params", JSONB, nullable=False, server_default=text("'{}'")),
    Column("image_size", Text, nullable=False, server_default="1024x1024"),
    Column("watermark", Text),
    Column("n", Integer, nullable=False, server_default="1"),
    Column("provider", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("own_key", Boolean, nullable=False, server_default=text("false"), comment="the user's own provider key"),
    Column("state", Text, nullable=False, server_default="pending"),
    Column("price_tenths", BigInteger, nullable=False, server_default="0", comment="n times the price of one"),
    Column("refunded_tenths", BigInteger, nullable=False, server_default="0"),
    Column("cost_usd", Numeric(12, 4), nullable=False, server_default="0"),
    Column("duration_ms", BigInteger),
    Column("error_code", Text),
    Column("error_message", Text),
    Column("response_data", JSONB, nullable=False, server_default=text("'{}'")),
    Column("image_ids", ARRAY(UUID(as_uuid=True)), nullable=False, server_default=text("'{}'")),
    Column("batch_id", UUID(as_uuid=True), ForeignKey("batches.id", ondelete="SET NULL"), index=True),
    time_column("hidden_at", nullable=True),
    time_column("created_at"),
    time_column("updated_at"),
    one_of("kind", "TEXT_TO_IMAGE", "IMAGE_TO_IMAGE"),
    one_of("state", "pending", "processing", "uploading", "completed", "failed", "canceled"),
    CheckConstraint("n between 1 and 64", name="n"),
    CheckConstraint("price_tenths >= 0 and price_tenths % n = 0", name="price"),
    CheckConstraint("refunded_tenths between 0 and price_tenths", name="refunded"),
    CheckConstraint("cost_usd >= 0 and cost_usd <> 'NaN'", name="cost"),
    CheckConstraint("cardinality(image_ids) <= n", name="image_ids"),
    CheckConstraint("octet_length(params::text) <= 16384", name="params_size"),
    *finite("hidden_at", "created_at", "updated_at"),
)
Index("jobs_by_owner", jobs.c.owner_id, jobs.c.created_at.desc(), jobs.c.id.desc())
Index("jobs_by_state", jobs.c.state)
Index("jobs_by_time", jobs.c.created_at.desc())

# One row per unfinished job: made with it, gone with its end. What a worker writes often is here: it is no version.
queue = Table(
    "queue",
    metadata,
    _job(is_key=True),
    user_column(),
    Column("provider", Text, nullable=False),
    Column("turn", BigInteger, nullable=False, comment="the order of claims: fair between users, see jobs.sql"),
    Column("rank", SmallInteger, nullable=False, comment="of the plan; the lower one goes first in the same turn"),
    time_column("created_at"),
    Column("run_at", TIMESTAMP(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("worker", Text, comment="who has it; null: it waits"),
    Column("lease_until", TIMESTAMP(timezone=True)),
    Column("fence", BigInteger, nullable=False, server_default="0", comment="counts claims: older ones write nothing"),
    Column("cancel_requested", Boolean, nullable=False, server_default=text("false")),
    Column("progress", REAL, comment="0 to 1, where the provider tells it"),
    Column("provider_position", Integer, comment="in the provider's own queue; 0 is next"),
    CheckConstraint("(worker is null) = (lease_until is null)", name="lease"),
    CheckConstraint("progress between 0 and 1", name="progress"),
    postgresql_with={"fillfactor": "70"},
)
_q = queue.c
Index("queue_next", _q.provider, _q.turn, _q.rank, _q.created_at, postgresql_where=_q.worker.is_(None))
Index("queue_running", _q.provider, _q.lease_until, postgresql_where=_q.worker.is_not(None))
Index("queue_by_owner", _q.owner_id)

queue_clock = Table(
    "queue_clock",
    metadata,
    Column("one", Boolean, primary_key=True, server_default=text("true")),
    Column("turn", BigInteger, nullable=False, server_default="0", comment="the furthest turn that was claimed"),
    CheckConstraint("one", name="one"),
    postgresql_with={"fillfactor": "10"},
)

# A row before every call of a provider. Never two at once for a call, and none after one that gave pictures.
attempts = Table(
    "attempts",
    metadata,
    id_column(),
    _job(),
    user_column(index=True),
    Column("call", Integer, nullable=False, comment="which of the job's calls, from 0"),
    Column("number", Integer, nullable=False, comment="which try of this call, from 1"),
    Column("provider", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("fence", BigInteger, nullable=False),
    Column("state", Text, nullable=False, server_default="started"),
    Column("task_id", Text, comment="the provider's own id, saved the moment it is known"),
    Column("object_keys", ARRAY(Text), nullable=False, server_default=text("'{}'"), comment="named before the upload"),
    Column("pictures", JSONB, nullable=False, server_default=text("'[]'"), comment="what was stored, one per picture"),
    Column("cost_usd", Numeric(12, 4), nullable=False, server_default="0"),
    Column("error_code", Text),
    Column("error_message", Text),
    time_column("started_at"),
    time_column("submitted_at", nullable=True),
    time_column("ended_at", nullable=True),
    one_of("state", "started", "submitted", "done", "failed", "unknown", "canceled"),
    CheckConstraint("(state in ('started', 'submitted')) = (ended_at is null)", name="ended"),
    CheckConstraint("state <> 'submitted' or task_id is not null", name="task"),
    CheckConstraint("cost_usd >= 0 and cost_usd <> 'NaN'", name="cost"),
    UniqueConstraint("job_id", "call", "number", name="attempts_number_key"),
)
_a = attempts.c
Index("attempts_one", _a.job_id, _a.call, unique=True, postgresql_where=_a.state.in_(("started", "submitted", "done")))
Index("attempts_by_task", _a.provider, _a.task_id, postgresql_where=_a.task_id.is_not(None))

# Append-only. Each line moves the account's balance in the same statement: the sum of the lines is the balance.
credit_ledger = Table(
    "credit_ledger",
    metadata,
    id_column(),
    user_column(),
    Column("kind", Text, nullable=False),
    Column("amount_tenths", BigInteger, nullable=False, comment="what is added to the balance"),
    Column("balance_tenths", BigInteger, nullable=False, comment="after this line"),
    Column("job_id", UUID(as_uuid=True), ForeignKey("jobs.id", ondelete="SET NULL")),
    Column("reason", Text, nullable=False, server_default=""),
    time_column("at"),
    one_of("kind", "grant", "hold", "refund"),
    CheckConstraint(
        "case kind when 'hold' then amount_tenths < 0 when 'refund' then amount_tenths > 0 else amount_tenths <> 0 end",
        name="amount",
    ),
    CheckConstraint("balance_tenths >= 0", name="balance"),
    CheckConstraint("kind <> 'grant' or job_id is null", name="job"),
)
_l = credit_ledger.c
Index("credit_ledger_by_owner", _l.owner_id, _l.at.desc(), _l.id.desc())
Index("credit_ledger_one", _l.job_id, _l.kind, unique=True)

usage_daily = Table(
    "usage_daily",
    metadata,
    id_column(),
    user_column(),
    Column("day", Date, nullable=False, comment="in UTC, of the job's end"),
    Column("generations_count", Integer, nullable=False, server_default="0"),
    Column("generations_success", Integer, nullable=False, server_default="0"),
    Column("generations_failed", Integer, nullable=False, server_default="0"),
    Column("generations_canceled", Integer, nullable=False, server_default="0"),
    Column("images_count", Integer, nullable=False, server_default="0", comment="pictures that were delivered"),
    Column("credits_used_tenths", BigInteger, nullable=False, server_default="0"),
    Column("cost_usd", Numeric(14, 4), nullable=False, server_default="0"),
    Column("duration_ms", BigInteger, nullable=False, server_default="0", comment="of all of them together"),
    Column("model_usage", JSONB, nullable=False, server_default=text("'{}'"), comment="model → generations"),
    Column("storage_used_bytes", BigInteger, nullable=False, server_default="0", comment="after the last one"),
    UniqueConstraint("owner_id", "day", name="usage_daily_by_owner"),
    postgresql_with={"fillfactor": "70"},
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    user_column(primary_key=True),
    Column("key", Text(collation="C"), primary_key=True),
    Column("request_hash", LargeBinary, nullable=False, comment="SHA-256 of method, path and body"),
    Column("status", SmallInteger, nullable=False),
    Column("reply", LargeBinary, nullable=False, comment="the body as it was sent"),
    Column("location", Text),
    time_column("created_at"),
    CheckConstraint("octet_length(key) between 1 and 255", name="key"),
)
Index("idempotency_keys_by_time", idempotency_keys.c.created_at)
