"""Jobs are queued and paid for; webhooks, templates, and users' own keys and settings."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = '0005'
down_revision = '0004'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('queue_clock',
    sa.Column('one', sa.Boolean(), server_default=sa.text('true'), nullable=False),
    sa.Column('turn', sa.BigInteger(), server_default='0', nullable=False, comment='the furthest turn that was claimed'),
    sa.CheckConstraint('one', name=op.f('queue_clock_one_check')),
    sa.PrimaryKeyConstraint('one', name=op.f('queue_clock_pkey')),
    postgresql_with={'fillfactor': '10'}
    )
    op.create_table('batches',
    sa.Column('id', sa.UUID(), server_default=sa.text('gen_random_uuid()'), nullable=False),
    sa.Column('owner_id', sa.Text(collation='C'), nullable=False),
    sa.Column('kind', sa.Text(), nullable=False, comment='why its jobs belong together'),
    sa.Column('created_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.CheckConstraint("kind in ('batch', 'comparison')", name=op.f('batches_kind_known_check')),
    sa.ForeignKeyConstraint(['owner_id'], ['users.id'], name=op.f('batches_owner_id_fkey'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('batches_pkey'))
    )
    op.create_index(op.f('batches_owner_id_idx'), 'batches', ['owner_id'], unique=False)
    op.create_table('idempotency_keys',
    sa.Column('owner_id', sa.Text(collation='C'), nullable=False),
    sa.Column('key', sa.Text(collation='C'), nullable=False),
    sa.Column('request_hash', sa.LargeBinary(), nullable=False, comment='SHA-256 of method, path and body'),
    sa.Column('status', sa.SmallInteger(), nullable=False),
    sa.Column('reply', sa.LargeBinary(), nullable=False, comment='the body as it was sent'),
    sa.Column('location', sa.Text(), nullable=True),
    sa.Column('created_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.CheckConstraint('octet_length(key) between 1 and 255', name=op.f('idempotency_keys_key_check')),
    sa.ForeignKeyConstraint(['owner_id'], ['users.id'], name=op.f('idempotency_keys_owner_id_fkey'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('owner_id', 'key', name=op.f('idempotency_keys_pkey'))
    )
    op.create_index('idempotency_keys_by_time', 'idempotency_keys', ['created_at'], unique=False)
    op.create_table('model_settings',
    sa.Column('owner_id', sa.Text(collation='C'), nullable=False),
    sa.Column('model', sa.Text(), nullable=False),
    sa.Column('params', postgresql.JSONB(astext_type=sa.Text()), nullable=False, comment='what a request does not say is taken from here'),
    sa.Column('updated_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.CheckConstraint('octet_length(params::text) <= 16384', name=op.f('model_settings_params_size_check')),
    sa.ForeignKeyConstraint(['owner_id'], ['users.id'], name=op.f('model_settings_owner_id_fkey'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('owner_id', 'model', name=op.f('model_settings_pkey'))
    )
    op.create_table('provider_keys',
    sa.Column('owner_id', sa.Text(collation='C'), nullable=False),
    sa.Column('provider', sa.Text(), nullable=False),
    sa.Column('sealed', sa.LargeBinary(), nullable=False, comment='the key, encrypted'),
    sa.Column('hint', sa.Text(), nullable=False, comment='its last characters, so that a person can tell keys apart'),
    sa.Column('created_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.ForeignKeyConstraint(['owner_id'], ['users.id'], name=op.f('provider_keys_owner_id_fkey'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('owner_id', 'provider', name=op.f('provider_keys_pkey'))
    )
    op.create_table('templates',
    sa.Column('id', sa.UUID(), server_default=sa.text('gen_random_uuid()'), nullable=False),
    sa.Column('owner_id', sa.Text(collation='C'), nullable=False),
    sa.Column('name', sa.Text(), nullable=False),
    sa.Column('prompt', sa.Text(), nullable=False, comment='{{variable}} stands for what a request gives'),
    sa.Column('params', postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False, comment='as in a request for a generation'),
    sa.Column('created_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.Column('updated_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.CheckConstraint('char_length(name) between 1 and 200', name=op.f('templates_name_check')),
    sa.CheckConstraint('octet_length(params::text) <= 16384', name=op.f('templates_params_size_check')),
    sa.CheckConstraint('octet_length(prompt) <= 32000', name=op.f('templates_prompt_size_check')),
    sa.ForeignKeyConstraint(['owner_id'], ['users.id'], name=op.f('templates_owner_id_fkey'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('templates_pkey')),
    sa.UniqueConstraint('owner_id', 'name', name='templates_name_key')
    )
    op.create_table('usage_daily',
    sa.Column('id', sa.UUID(), server_default=sa.text('gen_random_uuid()'), nullable=False),
    sa.Column('owner_id', sa.Text(collation='C'), nullable=False),
    sa.Column('day', sa.Date(), nullable=False, comment="in UTC, of the job's end"),
    sa.Column('generations_count', sa.Integer(), server_default='0', nullable=False),
    sa.Column('generations_success', sa.Integer(), server_default='0', nullable=False),
    sa.Column('generations_failed', sa.Integer(), server_default='0', nullable=False),
    sa.Column('generations_canceled', sa.Integer(), server_default='0', nullable=False),
    sa.Column('images_count', sa.Integer(), server_default='0', nullable=False, comment='pictures that were delivered'),
    sa.Column('credits_used_tenths', sa.BigInteger(), server_default='0', nullable=False),
    sa.Column('cost_usd', sa.Numeric(precision=14, scale=4), server_default='0', nullable=False),
    sa.Column('duration_ms', sa.BigInteger(), server_default='0', nullable=False, comment='of all of them together'),
    sa.Column('model_usage', postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False, comment='model → generations'),
    sa.Column('storage_used_bytes', sa.BigInteger(), server_default='0', nullable=False, comment='after the last one'),
    sa.ForeignKeyConstraint(['owner_id'], ['users.id'], name=op.f('usage_daily_owner_id_fkey'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('usage_daily_pkey')),
    sa.UniqueConstraint('owner_id', 'day', name='usage_daily_by_owner'),
    postgresql_with={'fillfactor': '70'}
    )
    op.create_table('webhooks',
    sa.Column('id', sa.UUID(), server_default=sa.text('gen_random_uuid()'), nullable=False),
    sa.Column('owner_id', sa.Text(collation='C'), nullable=False),
    sa.Column('url', sa.Text(), nullable=False),
    sa.Column('events', postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False, comment='empty: all'),
    sa.Column('secret', sa.LargeBinary(), nullable=False, comment='encrypted'),
    sa.Column('old_secret', sa.LargeBinary(), nullable=True, comment='encrypted; signs too until old_secret_until'),
    sa.Column('old_secret_until', postgresql.TIMESTAMP(timezone=True), nullable=True),
    sa.Column('state', sa.Text(), server_default='active', nullable=False),
    sa.Column('disabled_reason', sa.Text(), nullable=True),
    sa.Column('created_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.Column('updated_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.CheckConstraint("state in ('active', 'disabled')", name=op.f('webhooks_state_known_check')),
    sa.CheckConstraint('octet_length(url) <= 2048', name=op.f('webhooks_url_check')),
    sa.ForeignKeyConstraint(['owner_id'], ['users.id'], name=op.f('webhooks_owner_id_fkey'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('webhooks_pkey'))
    )
    op.create_index(op.f('webhooks_owner_id_idx'), 'webhooks', ['owner_id'], unique=False)
    op.create_table('webhook_deliveries',
    sa.Column('id', sa.UUID(), server_default=sa.text('gen_random_uuid()'), nullable=False),
    sa.Column('webhook_id', sa.UUID(), nullable=False),
    sa.Column('owner_id', sa.Text(collation='C'), nullable=False),
    sa.Column('event_id', sa.UUID(), nullable=False, comment='the same in every repetition'),
    sa.Column('event', sa.Text(), nullable=False),
    sa.Column('payload', sa.Text(), nullable=False, comment='JSON, sent byte for byte'),
    sa.Column('state', sa.Text(), server_default='pending', nullable=False),
    sa.Column('attempts', sa.Integer(), server_default='0', nullable=False),
    sa.Column('run_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.Column('lease_until', postgresql.TIMESTAMP(timezone=True), nullable=True),
    sa.Column('status', sa.SmallInteger(), nullable=True, comment='of the last answer'),
    sa.Column('response', sa.Text(), nullable=True, comment='the beginning of the last answer, or why there was none'),
    sa.Column('took_ms', sa.Integer(), nullable=True),
    sa.Column('created_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.Column('ended_at', postgresql.TIMESTAMP(timezone=True), nullable=True),
    sa.CheckConstraint("state in ('pending', 'delivered', 'failed')", name=op.f('webhook_deliveries_state_known_check')),
    sa.CheckConstraint('octet_length(payload) <= 65536', name=op.f('webhook_deliveries_payload_check')),
    sa.ForeignKeyConstraint(['owner_id'], ['users.id'], name=op.f('webhook_deliveries_owner_id_fkey'), ondelete='CASCADE'),
    sa.ForeignKeyConstraint(['webhook_id'], ['webhooks.id'], name=op.f('webhook_deliveries_webhook_id_fkey'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('webhook_deliveries_pkey'))
    )
    op.create_index('webhook_deliveries_by_webhook', 'webhook_deliveries', ['webhook_id', sa.literal_column('created_at DESC'), sa.literal_column('id DESC')], unique=False)
    op.create_index('webhook_deliveries_due', 'webhook_deliveries', ['run_at'], unique=False, postgresql_where=sa.text("state = 'pending'"))
    op.create_index(op.f('webhook_deliveries_owner_id_idx'), 'webhook_deliveries', ['owner_id'], unique=False)
    op.create_table('attempts',
    sa.Column('id', sa.UUID(), server_default=sa.text('gen_random_uuid()'), nullable=False),
    sa.Column('job_id', sa.UUID(), nullable=False),
    sa.Column('owner_id', sa.Text(collation='C'), nullable=False),
    sa.Column('call', sa.Integer(), nullable=False, comment="which of the job's calls, from 0"),
    sa.Column('number', sa.Integer(), nullable=False, comment='which try of this call, from 1'),
    sa.Column('provider', sa.Text(), nullable=False),
    sa.Column('model', sa.Text(), nullable=False),
    sa.Column('fence', sa.BigInteger(), nullable=False),
    sa.Column('state', sa.Text(), server_default='started', nullable=False),
    sa.Column('task_id', sa.Text(), nullable=True, comment="the provider's own id, saved the moment it is known"),
    sa.Column('object_keys', postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False, comment='named before the upload'),
    sa.Column('pictures', postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'[]'"), nullable=False, comment='what was stored, one per picture'),
    sa.Column('cost_usd', sa.Numeric(precision=12, scale=4), server_default='0', nullable=False),
    sa.Column('error_code', sa.Text(), nullable=True),
    sa.Column('error_message', sa.Text(), nullable=True),
    sa.Column('started_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.Column('submitted_at', postgresql.TIMESTAMP(timezone=True), nullable=True),
    sa.Column('ended_at', postgresql.TIMESTAMP(timezone=True), nullable=True),
    sa.CheckConstraint("(state in ('started', 'submitted')) = (ended_at is null)", name=op.f('attempts_ended_check')),
    sa.CheckConstraint("cost_usd >= 0 and cost_usd <> 'NaN'", name=op.f('attempts_cost_check')),
    sa.CheckConstraint("state <> 'submitted' or task_id is not null", name=op.f('attempts_task_check')),
    sa.CheckConstraint("state in ('started', 'submitted', 'done', 'failed', 'unknown', 'canceled')", name=op.f('attempts_state_known_check')),
    sa.ForeignKeyConstraint(['job_id'], ['jobs.id'], name=op.f('attempts_job_id_fkey'), ondelete='CASCADE'),
    sa.ForeignKeyConstraint(['owner_id'], ['users.id'], name=op.f('attempts_owner_id_fkey'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('attempts_pkey')),
    sa.UniqueConstraint('job_id', 'call', 'number', name='attempts_number_key')
    )
    op.create_index('attempts_by_task', 'attempts', ['provider', 'task_id'], unique=False, postgresql_where=sa.text('task_id IS NOT NULL'))
    op.create_index('attempts_one', 'attempts', ['job_id', 'call'], unique=True, postgresql_where=sa.text("state IN ('started', 'submitted', 'done')"))
    op.create_index(op.f('attempts_owner_id_idx'), 'attempts', ['owner_id'], unique=False)
    op.create_table('credit_ledger',
    sa.Column('id', sa.UUID(), server_default=sa.text('gen_random_uuid()'), nullable=False),
    sa.Column('owner_id', sa.Text(collation='C'), nullable=False),
    sa.Column('kind', sa.Text(), nullable=False),
    sa.Column('amount_tenths', sa.BigInteger(), nullable=False, comment='what is added to the balance'),
    sa.Column('balance_tenths', sa.BigInteger(), nullable=False, comment='after this line'),
    sa.Column('job_id', sa.UUID(), nullable=True),
    sa.Column('reason', sa.Text(), server_default='', nullable=False),
    sa.Column('at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.CheckConstraint("case kind when 'hold' then amount_tenths < 0 when 'refund' then amount_tenths > 0 else amount_tenths <> 0 end", name=op.f('credit_ledger_amount_check')),
    sa.CheckConstraint("kind <> 'grant' or job_id is null", name=op.f('credit_ledger_job_check')),
    sa.CheckConstraint("kind in ('grant', 'hold', 'refund')", name=op.f('credit_ledger_kind_known_check')),
    sa.CheckConstraint('balance_tenths >= 0', name=op.f('credit_ledger_balance_check')),
    sa.ForeignKeyConstraint(['job_id'], ['jobs.id'], name=op.f('credit_ledger_job_id_fkey'), ondelete='SET NULL'),
    sa.ForeignKeyConstraint(['owner_id'], ['users.id'], name=op.f('credit_ledger_owner_id_fkey'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('credit_ledger_pkey'))
    )
    op.create_index('credit_ledger_by_owner', 'credit_ledger', ['owner_id', sa.literal_column('at DESC'), sa.literal_column('id DESC')], unique=False)
    op.create_index('credit_ledger_one', 'credit_ledger', ['job_id', 'kind'], unique=True)
    op.create_table('queue',
    sa.Column('job_id', sa.UUID(), nullable=False),
    sa.Column('owner_id', sa.Text(collation='C'), nullable=False),
    sa.Column('provider', sa.Text(), nullable=False),
    sa.Column('turn', sa.BigInteger(), nullable=False, comment='the order of claims: fair between users, see jobs.sql'),
    sa.Column('rank', sa.SmallInteger(), nullable=False, comment='of the plan; the lower one goes first in the same turn'),
    sa.Column('created_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.Column('run_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.Column('worker', sa.Text(), nullable=True, comment='who has it; null: it waits'),
    sa.Column('lease_until', postgresql.TIMESTAMP(timezone=True), nullable=True),
    sa.Column('fence', sa.BigInteger(), server_default='0', nullable=False, comment='counts claims: older ones write nothing'),
    sa.Column('cancel_requested', sa.Boolean(), server_default=sa.text('false'), nullable=False),
    sa.Column('progress', sa.REAL(), nullable=True, comment='0 to 1, where the provider tells it'),
    sa.Column('provider_position', sa.Integer(), nullable=True, comment="in the provider's own queue; 0 is next"),
    sa.CheckConstraint('(worker is null) = (lease_until is null)', name=op.f('queue_lease_check')),
    sa.CheckConstraint('progress between 0 and 1', name=op.f('queue_progress_check')),
    sa.ForeignKeyConstraint(['job_id'], ['jobs.id'], name=op.f('queue_job_id_fkey'), ondelete='CASCADE'),
    sa.ForeignKeyConstraint(['owner_id'], ['users.id'], name=op.f('queue_owner_id_fkey'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('job_id', name=op.f('queue_pkey')),
    postgresql_with={'fillfactor': '70'}
    )
    op.create_index('queue_by_owner', 'queue', ['owner_id'], unique=False)
    op.create_index('queue_next', 'queue', ['provider', 'turn', 'rank', 'created_at'], unique=False, postgresql_where=sa.text('worker IS NULL'))
    op.create_index('queue_running', 'queue', ['provider', 'lease_until'], unique=False, postgresql_where=sa.text('worker IS NOT NULL'))
    op.add_column('accounts', sa.Column('day_budget_tenths', sa.BigInteger(), nullable=True, comment='most credits of one day in UTC; null: no bound'))
    op.add_column('accounts', sa.Column('month_budget_tenths', sa.BigInteger(), nullable=True, comment='the same of one month'))
    op.add_column('accounts', sa.Column('queue_turn', sa.BigInteger(), server_default='0', nullable=False, comment='of the newest job, see jobs.sql'))
    op.add_column('jobs', sa.Column('own_key', sa.Boolean(), server_default=sa.text('false'), nullable=False, comment="the user's own provider key"))
    op.add_column('jobs', sa.Column('refunded_tenths', sa.BigInteger(), server_default='0', nullable=False))
    op.add_column('jobs', sa.Column('image_ids', postgresql.ARRAY(sa.UUID()), server_default=sa.text("'{}'"), nullable=False))
    op.alter_column('jobs', 'price_tenths',
               existing_type=sa.BIGINT(),
               comment='n times the price of one',
               existing_nullable=False,
               existing_server_default=sa.text("'0'::bigint"))
    op.create_index(op.f('jobs_batch_id_idx'), 'jobs', ['batch_id'], unique=False)
    op.create_foreign_key(op.f('jobs_batch_id_fkey'), 'jobs', 'batches', ['batch_id'], ['id'], ondelete='SET NULL')
    op.drop_constraint(op.f('jobs_price_check'), 'jobs')
    op.create_check_constraint(op.f('jobs_price_check'), 'jobs', 'price_tenths >= 0 and price_tenths % n = 0')
    op.create_check_constraint(op.f('jobs_refunded_check'), 'jobs', 'refunded_tenths between 0 and price_tenths')
    op.create_check_constraint(op.f('jobs_image_ids_check'), 'jobs', 'cardinality(image_ids) <= n')
    op.create_check_constraint(
        op.f('accounts_budgets_check'), 'accounts', 'day_budget_tenths >= 0 and month_budget_tenths >= 0'
    )
    # The sum of the lines is the balance, also for what was there before there were lines.
    op.execute(
        "insert into credit_ledger (owner_id, kind, amount_tenths, balance_tenths, reason) "
        "select owner_id, 'grant', balance_tenths, balance_tenths, 'balance before the ledger' "
        "from accounts where balance_tenths > 0"
    )
    op.execute("update accounts set held_tenths = 0 where held_tenths <> 0")
