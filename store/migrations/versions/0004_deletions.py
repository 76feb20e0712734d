"""Objects go with their rows, and users can be erased."""

import sqlalchemy as sa
from alembic import op

revision = '0004'
down_revision = '0003'
branch_labels = None
depends_on = None


def _now(name: str) -> sa.Column:
    return sa.Column(
        name, sa.TIMESTAMP(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False
    )


def upgrade() -> None:
    op.create_table('deletions',
    sa.Column('key', sa.Text(collation='C'), nullable=False, comment='of an object that is to go'),
    _now('due_at'),
    sa.Column('attempts', sa.Integer(), server_default='0', nullable=False),
    sa.PrimaryKeyConstraint('key', name=op.f('deletions_pkey'))
    )
    op.create_index('deletions_due', 'deletions', ['due_at'], unique=False)
    op.create_table('erased_users',
    sa.Column('user_id', sa.Text(collation='C'), nullable=False),
    _now('erased_at'),
    sa.Column('finished_at', sa.TIMESTAMP(timezone=True), nullable=True, comment='when the last row was gone; null: under way'),
    sa.PrimaryKeyConstraint('user_id', name=op.f('erased_users_pkey'))
    )
    op.create_index('erased_users_at', 'erased_users', ['erased_at'], unique=False)
    op.create_index(op.f('erased_users_finished_at_idx'), 'erased_users', ['finished_at'], unique=False)
    op.create_index('images_in_trash', 'images', ['trashed_at'], unique=False, postgresql_where=sa.text('trashed_at IS NOT NULL'))
