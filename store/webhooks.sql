-- Webhooks: who is to be told of what is written down in the transaction in which it happens.
--
-- Run by every migrate after jobs.sql. {schema} is the quoted schema. Nothing here may fail for what a row holds: a
-- telling that cannot be written would undo what it tells about. A user without a webhook costs one look at an index.

-- RFC 3339 in UTC with six digits, as documents have it.
create or replace function {schema}.webhook_time(at timestamptz) returns text
language sql stable as $$ select to_char(at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') $$;

create or replace function {schema}.webhook_credits(tenths bigint) returns numeric
language sql immutable as $$ select trim_scale(tenths / 10.0) $$;

-- TELL. One delivery per active webhook of the user that wants the event. All of them carry the event's one id.
--
-- FOR KEY SHARE: a webhook that is being deleted is waited for and then not there, where the foreign key would raise.
-- A user who is being erased is told nothing; one whose row goes takes the webhooks along before other triggers run.
create or replace function {schema}.webhook_tell(who text, what text, data json) returns void
language sql security definer set search_path = {schema}, pg_temp as $$
  with told as materialized (
    select w.id from webhooks w
    where w.owner_id = who and w.state = 'active' and (w.events = '{}' or what = any (w.events))
      and not exists (select from erased_users e where e.user_id = who and e.finished_at is null)
    for key share of w),
  event as materialized (select gen_random_uuid() as id, webhook_time(clock_timestamp()) as at)
  insert into webhook_deliveries (webhook_id, owner_id, event_id, event, payload)
  select t.id, who, e.id, what, json_build_object('type', what, 'timestamp', e.at, 'data', data)::text
  from told t cross join event e;
$$;

-- generation.completed, .failed, .canceled: the job's end. Texts that others chose are cut: a payload stays under 20 KB.
create or replace function {schema}.webhook_job_ended() returns trigger
language plpgsql security definer set search_path = {schema}, pg_temp as $$
begin
  if exists (select from webhooks where owner_id = new.owner_id) then
    perform webhook_tell(new.owner_id, 'generation.' || new.state, json_build_object(
      'id', new.id, 'kind', new.kind, 'state', new.state, 'provider', left(new.provider, 200),
      'model', left(new.model, 200), 'n', new.n, 'image_ids', to_json(new.image_ids),
      'cost_credits', webhook_credits(new.price_tenths - new.refunded_tenths),
      'refunded_credits', webhook_credits(new.refunded_tenths),
      'error', case when new.error_code is not null then
        json_build_object('code', left(new.error_code, 200), 'message', left(coalesce(new.error_message, ''), 1000)) end,
      'batch_id', new.batch_id, 'created_at', webhook_time(new.created_at)));
  end if;
  return null;
end $$;

-- image.deleted: once, when an image leaves the gallery: into the trash, or for good where it was not in the trash.
create or replace function {schema}.webhook_image_trashed() returns trigger
language plpgsql security definer set search_path = {schema}, pg_temp as $$
begin
  if exists (select from webhooks where owner_id = new.owner_id) then
    perform webhook_tell(new.owner_id, 'image.deleted',
      json_build_object('id', new.id, 'state', 'trashed', 'job_id', new.job_id));
  end if;
  return null;
end $$;

create or replace function {schema}.webhook_images_removed() returns trigger
language plpgsql security definer set search_path = {schema}, pg_temp as $$
begin
  perform webhook_tell(g.owner_id, 'image.deleted',
    json_build_object('id', g.id, 'state', 'removed', 'job_id', g.job_id))
  from gone g where g.trashed_at is null and exists (select from webhooks w where w.owner_id = g.owner_id);
  return null;
end $$;

-- credits.low: a balance that was at least 10 credits and is not any more.
create or replace function {schema}.webhook_credits_low() returns trigger
language plpgsql security definer set search_path = {schema}, pg_temp as $$
begin
  if exists (select from webhooks where owner_id = new.owner_id) then
    perform webhook_tell(new.owner_id, 'credits.low', json_build_object(
      'balance_credits', webhook_credits(new.balance_tenths), 'below_credits', webhook_credits(100)));
  end if;
  return null;
end $$;

drop trigger if exists webhook_job_ended on {schema}.jobs;
create trigger webhook_job_ended after update on {schema}.jobs for each row
  when (old.state <> new.state and new.state in ('completed', 'failed', 'canceled'))
  execute function {schema}.webhook_job_ended();
drop trigger if exists webhook_image_trashed on {schema}.images;
create trigger webhook_image_trashed after update on {schema}.images for each row
  when (old.trashed_at is null and new.trashed_at is not null) execute function {schema}.webhook_image_trashed();
drop trigger if exists webhook_images_removed on {schema}.images;
create trigger webhook_images_removed after delete on {schema}.images referencing old table as gone
  for each statement execute function {schema}.webhook_images_removed();
drop trigger if exists webhook_credits_low on {schema}.accounts;
create trigger webhook_credits_low after update on {schema}.accounts for each row
  when (old.balance_tenths >= 100 and new.balance_tenths < 100) execute function {schema}.webhook_credits_low();
