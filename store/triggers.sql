-- Change capture: a note per changed row, a stamp per transaction and user.
--
-- Run by every migrate, inside its transaction, after the tables exist. {schema} is the quoted schema.
-- Why it has this shape is in ARCHITECTURE.md, "Change capture".

-- NOTE. After each row, at once: write down whose row changed. Takes no lock that another transaction could wait for.
create or replace function {schema}.sync_note() returns trigger
language plpgsql security definer set search_path = {schema}, pg_temp as $$
declare
  tag text := current_setting('peruse.tx', true);
  tx  text := pg_current_xact_id()::text;              -- the top-level id, also inside savepoints
  n   uuid;
  o0  text; k0 text; o1 text; k1 text;                 -- owner and key, before and after
begin
  if split_part(tag, '/', 1) = tx then
    n := split_part(tag, '/', 2)::uuid;
  else
    n := gen_random_uuid();                            -- random(): repeats in a cloned machine; this does not
    perform set_config('peruse.tx', tx || '/' || n, true);           -- undone with its savepoint, gone at commit
    if current_setting('synchronous_commit') = 'off' then            -- what a replica has seen must survive a crash
      perform set_config('synchronous_commit', 'on', true);
    end if;
  end if;

  if tg_argv[0] = 'accounts' then                      -- keyed by its owner
    if tg_op <> 'INSERT' then o0 := old.owner_id; k0 := o0; end if;
    if tg_op <> 'DELETE' then o1 := new.owner_id; k1 := o1; end if;
  else
    if tg_op <> 'INSERT' then o0 := old.owner_id; k0 := old.id::text; end if;
    if tg_op <> 'DELETE' then o1 := new.owner_id; k1 := new.id::text; end if;
  end if;

  -- Old owner and key too: a row that moves away is a deletion for the one who had it.
  if tg_op <> 'INSERT' and (tg_op = 'DELETE' or o0 <> o1 or k0 <> k1) then
    insert into change_row (nonce, user_id, kind, row_id, first)
    values (n, o0, tg_argv[0], k0, not exists (select from change_row r where r.nonce = n and r.user_id = o0))
    on conflict do nothing;
  end if;
  if tg_op <> 'DELETE' then
    insert into change_row (nonce, user_id, kind, row_id, first)
    values (n, o1, tg_argv[0], k1, not exists (select from change_row r where r.nonce = n and r.user_id = o1))
    on conflict do nothing;
  end if;
  return null;
end $$;

-- STAMP. All users of one transaction, sorted, in one statement: the counter is the last lock that a transaction
-- takes and is held for one commit. Stamping row by row deadlocks as soon as two transactions touch two users.
create or replace function {schema}.sync_stamp_all(n uuid) returns void
language sql security definer set search_path = {schema}, pg_temp as $$
  with bumped as (
    insert into sync_user as s (user_id, version, nonce)
    select u.user_id, 1, n from (select distinct r.user_id from change_row r where r.nonce = n) u order by u.user_id
    on conflict (user_id) do update set version = s.version + 1, nonce = excluded.nonce where s.nonce <> excluded.nonce
    returning s.user_id, s.version)
  insert into change_log (user_id, version, nonce) select b.user_id, b.version, n from bumped b;
$$;

create or replace function {schema}.sync_stamp() returns trigger
language plpgsql security definer set search_path = {schema}, pg_temp as $$
begin
  if not exists (select from sync_user s where s.user_id = new.user_id and s.nonce = new.nonce) then
    if current_setting('lock_timeout') = '0' then      -- statement_timeout does not run during COMMIT; this does
      perform set_config('lock_timeout', '5s', true);
    end if;
    perform sync_stamp_all(new.nonce);
  end if;
  return null;
end $$;

drop trigger if exists sync_stamp on {schema}.change_row;
create constraint trigger sync_stamp after insert on {schema}.change_row
  deferrable initially deferred for each row when (new.first) execute function {schema}.sync_stamp();
alter table {schema}.change_row enable always trigger sync_stamp;

create or replace function {schema}.sync_refuse() returns trigger language plpgsql as $$
begin
  raise exception 'TRUNCATE of % would not be seen by replicas: use DELETE', tg_table_name;
end $$;

-- Attach both to one table. An update counts only when a column of the document changed, so that bookkeeping
-- makes no versions. ENABLE ALWAYS: also under session_replication_role = replica and in logical replication.
create or replace function {schema}.sync_attach(tbl regclass, kind text, cols text[]) returns void language plpgsql as $$
declare
  o text; n text;
begin
  select string_agg('old.' || quote_ident(c), ', '), string_agg('new.' || quote_ident(c), ', ') into o, n from unnest(cols) c;
  -- *<> compares what is stored: 1.0 and 1.00 are equal to jsonb and numeric, and print differently in a document.
  execute format('drop trigger if exists sync_insert_delete on %s', tbl);
  execute format('drop trigger if exists sync_update on %s', tbl);
  execute format('drop trigger if exists sync_truncate on %s', tbl);
  execute format('create trigger sync_insert_delete after insert or delete on %s for each row execute function sync_note(%L)', tbl, kind);
  execute format('create trigger sync_update after update on %s for each row when (row(%s)::record *<> row(%s)::record) execute function sync_note(%L)', tbl, o, n, kind);
  execute format('create trigger sync_truncate before truncate on %s for each statement execute function sync_refuse()', tbl);
  execute format('alter table %s enable always trigger sync_insert_delete, enable always trigger sync_update, enable always trigger sync_truncate', tbl);
end $$;

-- The epoch: time of the last rotation, and the timeline, which a promotion changes in the very instant in which the
-- new primary takes its first write. On a standby this raises: only a primary is ever pulled from.
create or replace function {schema}.sync_epoch_now() returns text
language sql stable set search_path = {schema}, pg_temp as $$
  select e.id || '-' || ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int from sync_epoch e
$$;

-- What our own writers call last before COMMIT: stamps now, and answers the head, which is the bookmark of the write.
create or replace function {schema}.sync_flush(who text) returns table (epoch text, version bigint)
language plpgsql security definer set search_path = {schema}, pg_temp as $$
declare
  tag text := current_setting('peruse.tx', true);
begin
  if split_part(tag, '/', 1) = pg_current_xact_id_if_assigned()::text then
    perform sync_stamp_all(split_part(tag, '/', 2)::uuid);
  end if;
  return query select sync_epoch_now(), coalesce((select s.version from sync_user s where s.user_id = who), 0);
end $$;

-- An object goes with its row, whoever deletes the row: its keys are written down in the same transaction, and what is
-- written down is deleted until it is gone. The small thumbnail has the name of the other one, and no column.
create or replace function {schema}.object_keys(object_key text, thumb_key text) returns setof text
language sql immutable as $$
  select k from unnest(array[object_key, thumb_key,
    case when thumb_key like '%.thumb.webp' then regexp_replace(thumb_key, '\.thumb\.webp$', '.thumb96.webp') end]) k
  where k is not null
$$;

create or replace function {schema}.object_gone() returns trigger
language plpgsql security definer set search_path = {schema}, pg_temp as $$
begin
  insert into deletions (key) select k from gone g cross join object_keys(g.object_key, g.thumb_key) k
  on conflict do nothing;
  return null;
end $$;

create or replace function {schema}.object_changed() returns trigger
language plpgsql security definer set search_path = {schema}, pg_temp as $$
begin
  insert into deletions (key) select object_keys(old.object_key, old.thumb_key)
  except select object_keys(new.object_key, new.thumb_key) on conflict do nothing;
  return null;
end $$;

create or replace function {schema}.object_attach(tbl regclass) returns void language plpgsql as $$
begin
  execute format('drop trigger if exists object_gone on %s', tbl);
  execute format('drop trigger if exists object_changed on %s', tbl);
  execute format('create trigger object_gone after delete on %s referencing old table as gone for each statement execute function object_gone()', tbl);
  execute format('create trigger object_changed after update on %s for each row when (old.object_key is distinct from new.object_key or old.thumb_key is distinct from new.thumb_key) execute function object_changed()', tbl);
  execute format('alter table %s enable always trigger object_gone, enable always trigger object_changed', tbl);
end $$;

-- Every user has an account from the start, whoever creates the user.
create or replace function {schema}.account_open() returns trigger
language plpgsql security definer set search_path = {schema}, pg_temp as $$
begin
  insert into accounts (owner_id) values (new.id) on conflict do nothing;
  return null;
end $$;
drop trigger if exists account_open on {schema}.users;
create trigger account_open after insert on {schema}.users for each row execute function {schema}.account_open();
alter table {schema}.users enable always trigger account_open;
