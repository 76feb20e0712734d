"""Ids of hosts are node:slot, so that each can have a user of its own."""

import sqlalchemy as sa
from alembic import op

revision = '0002'
down_revision = '0001'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.alter_column('hosts', 'id', existing_type=sa.Text(collation='C'), existing_nullable=False,
                    comment='node:slot: stable, what placement hashes',
                    existing_comment='node/slot: stable, what placement hashes')
    op.execute("delete from hosts where id like '%/%'")
