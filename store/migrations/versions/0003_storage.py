"""Storage is reserved before it is used, and references are kept once per content."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = '0003'
down_revision = '0002'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('storage_reservations',
    sa.Column('id', sa.UUID(), server_default=sa.text('gen_random_uuid()'), nullable=False),
    sa.Column('owner_id', sa.Text(collation='C'), nullable=False),
    sa.Column('size_bytes', sa.BigInteger(), nullable=False),
    sa.Column('expires_at', postgresql.TIMESTAMP(timezone=True), nullable=False),
    sa.CheckConstraint('size_bytes >= 0', name=op.f('storage_reservations_size_check')),
    sa.ForeignKeyConstraint(['owner_id'], ['users.id'], name=op.f('storage_reservations_owner_id_fkey'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('storage_reservations_pkey'))
    )
    op.create_index(op.f('storage_reservations_owner_id_idx'), 'storage_reservations', ['owner_id'], unique=False)
    op.add_column('reference_images', sa.Column('sha256', sa.LargeBinary(), nullable=True, comment='of the bytes: a user keeps the same ones once'))
    op.create_index('reference_images_by_content', 'reference_images', ['owner_id', 'sha256'], unique=True)
