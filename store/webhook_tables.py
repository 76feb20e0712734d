"""The tables of webhooks: who is told of what, and how each telling went."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Column, ForeignKey, Index, Integer, LargeBinary, SmallInteger, Table, Text, text
from sqlalchemy.dialects.postgresql import ARRAY, TIMESTAMP, UUID

from store.columns import id_column, metadata, one_of, time_column, user_column

__all__ = ["webhook_deliveries", "webhooks"]

webhooks = Table(
    "webhooks",
    metadata,
    id_column(),
    user_column(index=True),
    Column("url", Text, nullable=False),
    Column("events", ARRAY(Text), nullable=False, server_default=text("'{}'"), comment="empty: all"),
    Column("secret", LargeBinary, nullable=False, comment="encrypted"),
    Column("old_secret", LargeBinary, comment="encrypted; signs too until old_secret_until"),
    Column("old_secret_until", TIMESTAMP(timezone=True)),
    Column("state", Text, nullable=False, server_default="active"),
    Column("disabled_reason", Text),
    time_column("created_at"),
    time_column("updated_at"),
    one_of("state", "active", "disabled"),
    CheckConstraint("octet_length(url) <= 2048", name="url"),
)

# Written in the transaction of what they tell about, so that none is lost; sent until they arrive or are given up.
webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    id_column(),
    Column("webhook_id", UUID(as_uuid=True), ForeignKey("webhooks.id", ondelete="CASCADE"), nullable=False),
    user_column(index=True),
    Column("event_id", UUID(as_uuid=True), nullable=False, comment="the same in every repetition"),
    Column("event", Text, nullable=False),
    Column("payload", Text, nullable=False, comment="JSON, sent byte for byte"),
    Column("state", Text, nullable=False, server_default="pending"),
    Column("attempts", Integer, nullable=False, server_default="0"),
    time_column("run_at"),
    Column("lease_until", TIMESTAMP(timezone=True)),
    Column("status", SmallInteger, comment="of the last answer"),
    Column("response", Text, comment="the beginning of the last answer, or why there was none"),
    Column("took_ms", Integer),
    time_column("created_at"),
    time_column("ended_at", nullable=True),
    one_of("state", "pending", "delivered", "failed"),
    CheckConstraint("octet_length(payload) <= 65536", name="payload"),
)
_d = webhook_deliveries.c
Index("webhook_deliveries_due", _d.run_at, postgresql_where=_d.state == "pending")
Index("webhook_deliveries_by_webhook", _d.webhook_id, _d.created_at.desc(), _d.id.desc())
