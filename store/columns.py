"""What all tables are made of: one metadata, and the columns and constraints that many of them have."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import CheckConstraint, Column, ForeignKey, MetaData, Text, func
from sqlalchemy.dialects.postgresql import TIMESTAMP, UUID

__all__ = ["ZERO_NONCE", "finite", "id_column", "metadata", "one_of", "time_column", "user_column"]

metadata = MetaData(
    naming_convention={
        "ix": "%(table_name)s_%(column_0_name)s_idx",
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "uq": "%(table_name)s_%(column_0_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s_check",
    }
)

ZERO_NONCE: Final = "00000000-0000-0000-0000-000000000000"


def id_column() -> Column[Any]:
    return Column("id", UUID(as_uuid=True), primary_key=True, server_default=func.gen_random_uuid())


def user_column(name: str = "owner_id", **options: Any) -> Column[Any]:
    # COLLATE "C": ids are compared byte by byte, the same on every server.
    reference = ForeignKey("users.id", ondelete="CASCADE")
    return Column(name, Text(collation="C"), reference, nullable=False, **options)


def time_column(name: str, *, nullable: bool = False) -> Column[Any]:
    default = None if nullable else func.clock_timestamp()
    return Column(name, TIMESTAMP(timezone=True), nullable=nullable, server_default=default)


def finite(*columns: str) -> list[CheckConstraint]:
    # Outside these years a time has no RFC 3339 form: one such row would stop its owner's sync for good.
    return [CheckConstraint(f"{c} >= '1970-01-01Z' and {c} < '9999-12-31Z'", name=f"{c}_in_range") for c in columns]


def one_of(column: str, *values: str) -> CheckConstraint:
    listed = ", ".join(f"'{v}'" for v in values)
    return CheckConstraint(f"{column} in ({listed})", name=f"{column}_known")
