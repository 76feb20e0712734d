-- Jobs, credits and the queue: what holds for every writer, plain SQL too.
--
-- Run by every migrate after triggers.sql. {schema} is the quoted schema. Errors have a SQLSTATE of our own:
--   PE001 the balance does not cover it    PE002 a budget does not    PE003 a rule of this file is broken

-- LEDGER. Under the lock of the account's row a line goes on from the last one: Σ lines = balance ≥ 0. The balance
-- moves after the line is in: one that `on conflict do nothing` leaves out moves nothing. Its time is that of the lock,
-- so that lines stand in the order of their balances.
create or replace function {schema}.ledger_line() returns trigger
language plpgsql security definer set search_path = {schema}, pg_temp as $$
declare
  had bigint;
  last_at timestamptz;
begin
  if new.kind <> 'grant' and pg_trigger_depth() < 2 then
    raise exception 'a % follows from a job: change that one', new.kind using errcode = 'PE003';
  end if;
  perform from accounts where owner_id = new.owner_id for update;
  if not found then
    raise exception 'user % has no account', new.owner_id using errcode = 'PE003';
  end if;
  select balance_tenths, at into had, last_at
  from credit_ledger where owner_id = new.owner_id order by at desc, id desc limit 1;
  had := coalesce(had, 0);
  if had + new.amount_tenths < 0 then
    raise exception 'the balance of % tenths of a credit does not cover %', had, -new.amount_tenths
      using errcode = 'PE001', detail = json_build_object('balance', had, 'needed', -new.amount_tenths);
  end if;
  new.balance_tenths := had + new.amount_tenths;
  new.at := greatest(clock_timestamp(), last_at + interval '1 microsecond');
  return new;
end $$;

create or replace function {schema}.ledger_applied() returns trigger
language plpgsql security definer set search_path = {schema}, pg_temp as $$
begin
  update accounts set balance_tenths = new.balance_tenths, updated_at = clock_timestamp() where owner_id = new.owner_id;
  return null;
end $$;

-- Lines are for good: only their user's end, or their job's, touches them.
create or replace function {schema}.ledger_refuse() returns trigger language plpgsql as $$
begin
  raise exception 'a line of the credit ledger is never changed: add another one' using errcode = 'PE003';
end $$;

create or replace function {schema}.account_refuse() returns trigger language plpgsql as $$
begin
  raise exception 'balance and holds follow the credit ledger, and stay with their user: insert a line there' using errcode = 'PE003';
end $$;

-- BIRTH. An unfinished job that appears takes its price as a hold and a place in the queue, in the same statement.
--
-- The turn makes claims fair: a user's jobs are spaced by what their plan weighs, from the furthest turn that was
-- claimed on. So a user with a thousand jobs waiting takes turns with one who has a single one, Pro goes four times
-- as often, and first in the same turn. Whoever waits is passed at most once per user who comes later: nobody starves.
create or replace function {schema}.job_created() returns trigger
language plpgsql security definer set search_path = {schema}, pg_temp as $$
declare
  a accounts;
  spent bigint;
  today timestamptz := date_trunc('day', clock_timestamp(), 'UTC');
  month timestamptz := date_trunc('month', clock_timestamp(), 'UTC');
  is_paid bool;
begin
  select * into a from accounts where owner_id = new.owner_id for update;
  if a.owner_id is null then
    raise exception 'user % has no account', new.owner_id using errcode = 'PE003';
  end if;
  is_paid := a.plan <> 'free';
  if new.refunded_tenths <> 0 then
    raise exception 'the refund of job % follows from its end', new.id using errcode = 'PE003';
  end if;
  if new.price_tenths > 0 then
    if a.day_budget_tenths is not null or a.month_budget_tenths is not null then
      select coalesce(sum(price_tenths - refunded_tenths) filter (where created_at >= today), 0) into spent
      from jobs where owner_id = new.owner_id and created_at >= today and id <> new.id;
      if spent + new.price_tenths > a.day_budget_tenths then
        raise exception 'the budget of the day does not cover it' using errcode = 'PE002', detail =
          json_build_object('period', 'day', 'budget', a.day_budget_tenths, 'spent', spent, 'needed', new.price_tenths);
      end if;
      select coalesce(sum(price_tenths - refunded_tenths), 0) into spent
      from jobs where owner_id = new.owner_id and created_at >= month and id <> new.id;
      if spent + new.price_tenths > a.month_budget_tenths then
        raise exception 'the budget of the month does not cover it' using errcode = 'PE002', detail =
          json_build_object('period', 'month', 'budget', a.month_budget_tenths, 'spent', spent, 'needed', new.price_tenths);
      end if;
    end if;
    insert into credit_ledger (owner_id, kind, amount_tenths, job_id, reason)
    values (new.owner_id, 'hold', -new.price_tenths, new.id, new.model);
  end if;
  a.queue_turn := greatest(
    a.queue_turn + case when is_paid then 25 else 100 end, coalesce((select turn from queue_clock), 0));
  update accounts set held_tenths = held_tenths + new.price_tenths, queue_turn = a.queue_turn
  where owner_id = new.owner_id;
  insert into queue (job_id, owner_id, provider, turn, rank)
  values (new.id, new.owner_id, new.provider, a.queue_turn, case when is_paid then 0 else 1 end);
  return null;
end $$;

-- CHANGE. A final state is final; what was agreed stays; what is given back follows from what was delivered.
create or replace function {schema}.job_changing() returns trigger
language plpgsql security definer set search_path = {schema}, pg_temp as $$
begin
  if old.state in ('completed', 'failed', 'canceled') and new.state <> old.state then
    raise exception 'job % is % and stays it', old.id, old.state using errcode = 'PE003';
  end if;
  if (new.price_tenths, new.n, new.owner_id) is distinct from (old.price_tenths, old.n, old.owner_id) then
    raise exception 'price, n and owner of job % are what was agreed', old.id using errcode = 'PE003';
  end if;
  if new.state = 'completed' and old.state <> 'completed' then
    if cardinality(new.image_ids) = 0 then
      raise exception 'job % cannot be completed without an image', old.id using errcode = 'PE003';
    end if;
    if cardinality(new.image_ids) <> (select count(distinct i) from unnest(new.image_ids) i) then
      raise exception 'job % names an image twice, or none', old.id using errcode = 'PE003';
    end if;
    new.refunded_tenths := old.price_tenths / old.n * (old.n - cardinality(new.image_ids));
  elsif new.state in ('failed', 'canceled') and new.state <> old.state then
    if cardinality(new.image_ids) > 0 then
      raise exception 'job % has images: it is completed', old.id using errcode = 'PE003';
    end if;
    new.refunded_tenths := old.price_tenths;
  elsif new.refunded_tenths <> old.refunded_tenths then
    raise exception 'the refund of job % follows from its end', old.id using errcode = 'PE003';
  end if;
  return new;
end $$;

-- END. The hold is settled or given back, the place in the queue is free, the day's usage counts it: one transaction.
create or replace function {schema}.job_ended() returns trigger
language plpgsql security definer set search_path = {schema}, pg_temp as $$
declare
  delivered int := cardinality(new.image_ids);
  used bigint;
begin
  update accounts set held_tenths = held_tenths - new.price_tenths, updated_at = clock_timestamp()
  where owner_id = new.owner_id returning storage_used_bytes into used;
  if new.refunded_tenths > 0 then
    insert into credit_ledger (owner_id, kind, amount_tenths, job_id, reason)
    values (new.owner_id, 'refund', new.refunded_tenths, new.id,
      case when new.state = 'completed' then (new.n - delivered) || ' of ' || new.n || ' pictures were not delivered' ||
        coalesce(': ' || new.error_message, '') else coalesce(new.error_message, new.error_code, new.state) end);
  end if;
  delete from queue where job_id = new.id;
  insert into usage_daily as u (owner_id, day, generations_count, generations_success, generations_failed,
    generations_canceled, images_count, credits_used_tenths, cost_usd, duration_ms, model_usage, storage_used_bytes)
  values (new.owner_id, (clock_timestamp() at time zone 'UTC')::date, 1, (new.state = 'completed')::int,
    (new.state = 'failed')::int, (new.state = 'canceled')::int, delivered, new.price_tenths - new.refunded_tenths,
    new.cost_usd, coalesce(new.duration_ms, 0), jsonb_build_object(new.model, 1), coalesce(used, 0))
  on conflict (owner_id, day) do update set
    generations_count = u.generations_count + 1,
    generations_success = u.generations_success + excluded.generations_success,
    generations_failed = u.generations_failed + excluded.generations_failed,
    generations_canceled = u.generations_canceled + excluded.generations_canceled,
    images_count = u.images_count + excluded.images_count,
    credits_used_tenths = u.credits_used_tenths + excluded.credits_used_tenths,
    cost_usd = u.cost_usd + excluded.cost_usd,
    duration_ms = u.duration_ms + excluded.duration_ms,
    model_usage = u.model_usage || jsonb_build_object(new.model, coalesce((u.model_usage ->> new.model)::int, 0) + 1),
    storage_used_bytes = excluded.storage_used_bytes;
  return null;
end $$;

-- A row that is deleted before its end gives back what it holds. With its user, everything goes.
create or replace function {schema}.job_deleting() returns trigger
language plpgsql security definer set search_path = {schema}, pg_temp as $$
begin
  if exists (select from users where id = old.owner_id) then
    update accounts set held_tenths = held_tenths - old.price_tenths where owner_id = old.owner_id;
    if old.price_tenths > 0 then
      insert into credit_ledger (owner_id, kind, amount_tenths, job_id, reason)
      values (old.owner_id, 'refund', old.price_tenths, old.id, 'its job was deleted');
    end if;
  end if;
  return old;
end $$;

-- What an attempt had named goes with it, unless an image has it: nobody else knows of those objects.
create or replace function {schema}.attempts_gone() returns trigger
language plpgsql security definer set search_path = {schema}, pg_temp as $$
begin
  insert into deletions (key)
  select k from gone cross join unnest(gone.object_keys) o
  cross join object_keys(o, regexp_replace(o, '[.][^.]*$', '.thumb.webp')) k
  where not exists (select from images where object_key = o)
  on conflict do nothing;
  return null;
end $$;

-- A job names the pictures that are left of it.
create or replace function {schema}.job_images_gone() returns trigger
language plpgsql security definer set search_path = {schema}, pg_temp as $$
begin
  update jobs j set image_ids = (
    select coalesce(array_agg(i order by at), '{}') from unnest(j.image_ids) with ordinality as kept(i, at)
    where i not in (select id from gone))
  where j.id in (select job_id from gone where job_id is not null) and j.image_ids && (select array_agg(id) from gone);
  return null;
end $$;

drop trigger if exists ledger_line on {schema}.credit_ledger;
create trigger ledger_line before insert on {schema}.credit_ledger for each row execute function {schema}.ledger_line();
drop trigger if exists ledger_applied on {schema}.credit_ledger;
create trigger ledger_applied after insert on {schema}.credit_ledger
  for each row execute function {schema}.ledger_applied();
drop trigger if exists ledger_truncate on {schema}.credit_ledger;
create trigger ledger_truncate before truncate on {schema}.credit_ledger
  for each statement execute function {schema}.ledger_refuse();
drop trigger if exists ledger_refuse on {schema}.credit_ledger;
create trigger ledger_refuse before update or delete on {schema}.credit_ledger
  for each row when (pg_trigger_depth() < 1) execute function {schema}.ledger_refuse();
drop trigger if exists account_refuse on {schema}.accounts;
create trigger account_refuse before update on {schema}.accounts for each row
  when ((old.balance_tenths <> new.balance_tenths or old.held_tenths <> new.held_tenths
    or old.owner_id <> new.owner_id and (old.balance_tenths <> 0 or old.held_tenths <> 0)) and pg_trigger_depth() < 1)
  execute function {schema}.account_refuse();
drop trigger if exists account_born on {schema}.accounts;
create trigger account_born before insert on {schema}.accounts for each row
  when (new.balance_tenths <> 0 or new.held_tenths <> 0) execute function {schema}.account_refuse();
drop trigger if exists account_gone on {schema}.accounts;
create trigger account_gone before delete on {schema}.accounts for each row
  when ((old.balance_tenths <> 0 or old.held_tenths <> 0) and pg_trigger_depth() < 1)
  execute function {schema}.account_refuse();
drop trigger if exists job_created on {schema}.jobs;
create trigger job_created after insert on {schema}.jobs for each row
  when (new.state not in ('completed', 'failed', 'canceled')) execute function {schema}.job_created();
drop trigger if exists job_changing on {schema}.jobs;
create trigger job_changing before update on {schema}.jobs for each row execute function {schema}.job_changing();
drop trigger if exists job_ended on {schema}.jobs;
create trigger job_ended after update on {schema}.jobs for each row
  when (old.state <> new.state and new.state in ('completed', 'failed', 'canceled'))
  execute function {schema}.job_ended();
drop trigger if exists job_deleting on {schema}.jobs;
create trigger job_deleting before delete on {schema}.jobs for each row
  when (old.state not in ('completed', 'failed', 'canceled')) execute function {schema}.job_deleting();
drop trigger if exists attempts_gone on {schema}.attempts;
create trigger attempts_gone after delete on {schema}.attempts referencing old table as gone
  for each statement execute function {schema}.attempts_gone();
drop trigger if exists job_images_gone on {schema}.images;
create trigger job_images_gone after delete on {schema}.images referencing old table as gone
  for each statement execute function {schema}.job_images_gone();
insert into {schema}.queue_clock (turn) values (0) on conflict do nothing;
