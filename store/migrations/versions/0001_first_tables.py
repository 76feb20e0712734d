"""first tables"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = '0001'
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('change_log',
    sa.Column('user_id', sa.Text(collation='C'), nullable=False),
    sa.Column('version', sa.BigInteger(), nullable=False),
    sa.Column('nonce', sa.UUID(), nullable=False),
    sa.Column('at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.PrimaryKeyConstraint('user_id', 'version', name=op.f('change_log_pkey'))
    )
    op.create_index('change_log_at', 'change_log', ['at'], unique=False)
    op.create_table('change_row',
    sa.Column('nonce', sa.UUID(), nullable=False),
    sa.Column('user_id', sa.Text(collation='C'), nullable=False),
    sa.Column('kind', sa.Text(collation='C'), nullable=False),
    sa.Column('row_id', sa.Text(collation='C'), nullable=False),
    sa.Column('first', sa.Boolean(), nullable=False, comment='first row of this user in its transaction'),
    sa.PrimaryKeyConstraint('nonce', 'user_id', 'kind', 'row_id', name=op.f('change_row_pkey'))
    )
    op.create_table('hosts',
    sa.Column('id', sa.Text(collation='C'), nullable=False, comment='node/slot: stable, what placement hashes'),
    sa.Column('generation', sa.BigInteger(), server_default='1', nullable=False, comment='starts of this id'),
    sa.Column('address', sa.Text(), nullable=False, comment='unix:PATH or tcp:HOST:PORT'),
    sa.Column('node', sa.Text(), nullable=False),
    sa.Column('build', sa.Text(), nullable=False),
    sa.Column('capacity', sa.Integer(), nullable=False, comment='replicas it may hold open'),
    sa.Column('state', sa.Text(), nullable=False),
    sa.Column('heartbeat', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.Column('started_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.CheckConstraint("state in ('live', 'draining', 'stuck', 'gone')", name=op.f('hosts_state_known_check')),
    sa.PrimaryKeyConstraint('id', name=op.f('hosts_pkey')),
    postgresql_with={'fillfactor': '50'}
    )
    op.create_table('sync_epoch',
    sa.Column('one', sa.Boolean(), server_default=sa.text('true'), nullable=False),
    sa.Column('id', sa.BigInteger(), server_default=sa.text('(extract(epoch from clock_timestamp()) * 1000)::bigint'), nullable=False, comment='time of the last rotation in ms: epochs are unique and ordered'),
    sa.CheckConstraint('one', name=op.f('sync_epoch_one_check')),
    sa.PrimaryKeyConstraint('one', name=op.f('sync_epoch_pkey'))
    )
    op.create_table('sync_user',
    sa.Column('user_id', sa.Text(collation='C'), nullable=False),
    sa.Column('version', sa.BigInteger(), nullable=False),
    sa.Column('nonce', sa.UUID(), nullable=False),
    sa.Column('horizon', sa.BigInteger(), server_default='0', nullable=False),
    sa.Column('horizon_nonce', sa.UUID(), server_default='00000000-0000-0000-0000-000000000000', nullable=False),
    sa.PrimaryKeyConstraint('user_id', name=op.f('sync_user_pkey')),
    postgresql_with={'fillfactor': '50', 'autovacuum_vacuum_scale_factor': '0.02'}
    )
    op.create_table('users',
    sa.Column('id', sa.Text(collation='C'), nullable=False),
    sa.Column('external_id', sa.Text(), nullable=True),
    sa.Column('email', sa.Text(), nullable=True),
    sa.Column('name', sa.Text(), nullable=True),
    sa.Column('created_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.Column('updated_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.CheckConstraint("id ~ '^~?[A-Za-z0-9._@|:-]{1,127}$'", name=op.f('users_id_check')),
    sa.PrimaryKeyConstraint('id', name=op.f('users_pkey')),
    sa.UniqueConstraint('external_id', name=op.f('users_external_id_key'))
    )
    op.create_index(op.f('users_email_idx'), 'users', ['email'], unique=False)
    op.create_table('accounts',
    sa.Column('owner_id', sa.Text(collation='C'), nullable=False),
    sa.Column('plan', sa.Text(), server_default='free', nullable=False),
    sa.Column('balance_tenths', sa.BigInteger(), server_default='0', nullable=False),
    sa.Column('held_tenths', sa.BigInteger(), server_default='0', nullable=False),
    sa.Column('storage_used_bytes', sa.BigInteger(), server_default='0', nullable=False),
    sa.Column('storage_reserved_bytes', sa.BigInteger(), server_default='0', nullable=False),
    sa.Column('updated_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.CheckConstraint("plan in ('free', 'pro', 'enterprise')", name=op.f('accounts_plan_known_check')),
    sa.CheckConstraint("updated_at >= '1970-01-01Z' and updated_at < '9999-12-31Z'", name=op.f('accounts_updated_at_in_range_check')),
    sa.CheckConstraint('balance_tenths >= 0', name=op.f('accounts_balance_check')),
    sa.CheckConstraint('held_tenths >= 0', name=op.f('accounts_held_check')),
    sa.CheckConstraint('storage_used_bytes >= 0 and storage_reserved_bytes >= 0', name=op.f('accounts_storage_check')),
    sa.ForeignKeyConstraint(['owner_id'], ['users.id'], name=op.f('accounts_owner_id_fkey'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('owner_id', name=op.f('accounts_pkey'))
    )
    op.create_table('api_keys',
    sa.Column('id', sa.UUID(), server_default=sa.text('gen_random_uuid()'), nullable=False),
    sa.Column('user_id', sa.Text(collation='C'), nullable=False),
    sa.Column('hash', sa.LargeBinary(), nullable=False, comment='SHA-256 of the whole key'),
    sa.Column('hint', sa.Text(), nullable=False, comment='the first characters, so that a person can tell keys apart'),
    sa.Column('name', sa.Text(), server_default='', nullable=False),
    sa.Column('created_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.Column('revoked_at', postgresql.TIMESTAMP(timezone=True), nullable=True),
    sa.ForeignKeyConstraint(['user_id'], ['users.id'], name=op.f('api_keys_user_id_fkey'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('api_keys_pkey')),
    sa.UniqueConstraint('hash', name=op.f('api_keys_hash_key'))
    )
    op.create_index('api_keys_revoked', 'api_keys', ['revoked_at'], unique=False, postgresql_where=sa.text('revoked_at IS NOT NULL'))
    op.create_index(op.f('api_keys_user_id_idx'), 'api_keys', ['user_id'], unique=False)
    op.create_table('jobs',
    sa.Column('id', sa.UUID(), server_default=sa.text('gen_random_uuid()'), nullable=False),
    sa.Column('owner_id', sa.Text(collation='C'), nullable=False),
    sa.Column('kind', sa.Text(), server_default='TEXT_TO_IMAGE', nullable=False),
    sa.Column('prompt', sa.Text(), nullable=False),
    sa.Column('params', postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
    sa.Column('image_size', sa.Text(), server_default='1024x1024', nullable=False),
    sa.Column('watermark', sa.Text(), nullable=True),
    sa.Column('n', sa.Integer(), server_default='1', nullable=False),
    sa.Column('provider', sa.Text(), nullable=False),
    sa.Column('model', sa.Text(), nullable=False),
    sa.Column('state', sa.Text(), server_default='pending', nullable=False),
    sa.Column('price_tenths', sa.BigInteger(), server_default='0', nullable=False),
    sa.Column('cost_usd', sa.Numeric(precision=12, scale=4), server_default='0', nullable=False),
    sa.Column('duration_ms', sa.BigInteger(), nullable=True),
    sa.Column('error_code', sa.Text(), nullable=True),
    sa.Column('error_message', sa.Text(), nullable=True),
    sa.Column('response_data', postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
    sa.Column('batch_id', sa.UUID(), nullable=True),
    sa.Column('hidden_at', postgresql.TIMESTAMP(timezone=True), nullable=True),
    sa.Column('created_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.Column('updated_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.CheckConstraint("cost_usd >= 0 and cost_usd <> 'NaN'", name=op.f('jobs_cost_check')),
    sa.CheckConstraint("created_at >= '1970-01-01Z' and created_at < '9999-12-31Z'", name=op.f('jobs_created_at_in_range_check')),
    sa.CheckConstraint("hidden_at >= '1970-01-01Z' and hidden_at < '9999-12-31Z'", name=op.f('jobs_hidden_at_in_range_check')),
    sa.CheckConstraint("kind in ('TEXT_TO_IMAGE', 'IMAGE_TO_IMAGE')", name=op.f('jobs_kind_known_check')),
    sa.CheckConstraint("state in ('pending', 'processing', 'uploading', 'completed', 'failed', 'canceled')", name=op.f('jobs_state_known_check')),
    sa.CheckConstraint("updated_at >= '1970-01-01Z' and updated_at < '9999-12-31Z'", name=op.f('jobs_updated_at_in_range_check')),
    sa.CheckConstraint('n between 1 and 64', name=op.f('jobs_n_check')),
    sa.CheckConstraint('octet_length(params::text) <= 16384', name=op.f('jobs_params_size_check')),
    sa.CheckConstraint('price_tenths >= 0', name=op.f('jobs_price_check')),
    sa.ForeignKeyConstraint(['owner_id'], ['users.id'], name=op.f('jobs_owner_id_fkey'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('jobs_pkey'))
    )
    op.create_index('jobs_by_owner', 'jobs', ['owner_id', sa.literal_column('created_at DESC'), sa.literal_column('id DESC')], unique=False)
    op.create_index('jobs_by_state', 'jobs', ['state'], unique=False)
    op.create_index('jobs_by_time', 'jobs', [sa.literal_column('created_at DESC')], unique=False)
    op.create_table('reference_images',
    sa.Column('id', sa.UUID(), server_default=sa.text('gen_random_uuid()'), nullable=False),
    sa.Column('owner_id', sa.Text(collation='C'), nullable=False),
    sa.Column('object_key', sa.Text(), nullable=False),
    sa.Column('content_type', sa.Text(), nullable=False),
    sa.Column('size_bytes', sa.BigInteger(), nullable=False),
    sa.Column('width', sa.Integer(), nullable=True),
    sa.Column('height', sa.Integer(), nullable=True),
    sa.Column('thumb_key', sa.Text(), nullable=True),
    sa.Column('thumbhash', sa.Text(), nullable=True),
    sa.Column('filename', sa.Text(), nullable=False, comment="as the user's file was called"),
    sa.Column('created_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.CheckConstraint("created_at >= '1970-01-01Z' and created_at < '9999-12-31Z'", name=op.f('reference_images_created_at_in_range_check')),
    sa.CheckConstraint('size_bytes >= 0 and width > 0 and height > 0', name=op.f('reference_images_sizes_check')),
    sa.ForeignKeyConstraint(['owner_id'], ['users.id'], name=op.f('reference_images_owner_id_fkey'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('reference_images_pkey')),
    sa.UniqueConstraint('object_key', name=op.f('reference_images_object_key_key')),
    sa.UniqueConstraint('thumb_key', name=op.f('reference_images_thumb_key_key'))
    )
    op.create_index('reference_images_by_owner', 'reference_images', ['owner_id', sa.literal_column('created_at DESC'), sa.literal_column('id DESC')], unique=False)
    op.create_table('images',
    sa.Column('id', sa.UUID(), server_default=sa.text('gen_random_uuid()'), nullable=False),
    sa.Column('owner_id', sa.Text(collation='C'), nullable=False),
    sa.Column('visibility', sa.Text(), server_default='unlisted', nullable=False),
    sa.Column('object_key', sa.Text(), nullable=False),
    sa.Column('content_type', sa.Text(), nullable=False),
    sa.Column('size_bytes', sa.BigInteger(), nullable=False),
    sa.Column('width', sa.Integer(), nullable=True),
    sa.Column('height', sa.Integer(), nullable=True),
    sa.Column('thumb_key', sa.Text(), nullable=True),
    sa.Column('thumbhash', sa.Text(), nullable=True),
    sa.Column('prompt', sa.Text(), server_default='', nullable=False),
    sa.Column('negative_prompt', sa.Text(), nullable=True),
    sa.Column('model', sa.Text(), nullable=False),
    sa.Column('seed', sa.BigInteger(), nullable=True),
    sa.Column('steps', sa.Integer(), nullable=True),
    sa.Column('generation_params', postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
    sa.Column('job_id', sa.UUID(), nullable=True),
    sa.Column('parent_id', sa.UUID(), nullable=True),
    sa.Column('starred', sa.Boolean(), server_default=sa.text('false'), nullable=False),
    sa.Column('title', sa.Text(), nullable=True),
    sa.Column('moderation', sa.Text(), server_default='approved', nullable=False),
    sa.Column('trashed_at', postgresql.TIMESTAMP(timezone=True), nullable=True),
    sa.Column('created_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.CheckConstraint("created_at >= '1970-01-01Z' and created_at < '9999-12-31Z'", name=op.f('images_created_at_in_range_check')),
    sa.CheckConstraint("moderation in ('pending', 'approved', 'rejected')", name=op.f('images_moderation_known_check')),
    sa.CheckConstraint("trashed_at >= '1970-01-01Z' and trashed_at < '9999-12-31Z'", name=op.f('images_trashed_at_in_range_check')),
    sa.CheckConstraint("visibility in ('public', 'unlisted')", name=op.f('images_visibility_known_check')),
    sa.CheckConstraint('octet_length(generation_params::text) <= 16384', name=op.f('images_generation_params_size_check')),
    sa.CheckConstraint('octet_length(prompt) <= 32000', name=op.f('images_prompt_size_check')),
    sa.CheckConstraint('seed between 0 and 4294967295', name=op.f('images_seed_check')),
    sa.CheckConstraint('size_bytes >= 0 and width > 0 and height > 0', name=op.f('images_sizes_check')),
    sa.CheckConstraint('steps > 0', name=op.f('images_steps_check')),
    sa.ForeignKeyConstraint(['job_id'], ['jobs.id'], name=op.f('images_job_id_fkey'), ondelete='SET NULL'),
    sa.ForeignKeyConstraint(['owner_id'], ['users.id'], name=op.f('images_owner_id_fkey'), ondelete='CASCADE'),
    sa.ForeignKeyConstraint(['parent_id'], ['images.id'], name=op.f('images_parent_id_fkey'), ondelete='SET NULL'),
    sa.PrimaryKeyConstraint('id', name=op.f('images_pkey')),
    sa.UniqueConstraint('object_key', name=op.f('images_object_key_key')),
    sa.UniqueConstraint('thumb_key', name=op.f('images_thumb_key_key'))
    )
    op.create_index('images_by_owner', 'images', ['owner_id', sa.literal_column('created_at DESC'), sa.literal_column('id DESC')], unique=False)
    op.create_index('images_by_visibility', 'images', ['visibility', sa.literal_column('created_at DESC')], unique=False)
    op.create_index(op.f('images_job_id_idx'), 'images', ['job_id'], unique=False)
    op.create_index(op.f('images_parent_id_idx'), 'images', ['parent_id'], unique=False)
    op.execute("insert into sync_epoch default values")
