"""Retention: the change log is trimmed from its old end, and the horizon says how far, in the same transaction.

A replica below the horizon cannot be brought up to date by changes any more; it is seeded, which costs milliseconds.
A replica that stands on the horizon itself can: the horizon keeps its nonce.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from store.primary import Primary

__all__ = ["Trimmed", "trim"]

#: Users per transaction: their counters are locked for as long as it takes, and the next writer of one waits.
_USERS: Final = 100

# Sorted and SKIP LOCKED: never in the way of a writer, and never in a cycle with one. A prefix by version, whatever
# the clocks did. $1 age in seconds, $2 users.
_TRIM: Final = """
with old as materialized (
  select distinct l.user_id from (
    select user_id from change_log where at < clock_timestamp() - make_interval(secs => $1) order by at limit $2) l),
busy as materialized (
  select s.user_id from sync_user s where s.user_id in (select user_id from old) order by s.user_id
  for update skip locked),
cut as (
  select b.user_id, t.version, t.nonce from busy b cross join lateral (
    select l.version, l.nonce from change_log l
    where l.user_id = b.user_id and l.at < clock_timestamp() - make_interval(secs => $1)
    order by l.version desc limit 1) t),
moved as (
  update sync_user s set horizon = c.version, horizon_nonce = c.nonce from cut c
  where s.user_id = c.user_id and s.horizon < c.version returning s.user_id, s.horizon),
gone as (
  delete from change_log l using moved m where l.user_id = m.user_id and l.version <= m.horizon
  returning l.user_id, l.nonce),
rows_gone as (
  delete from change_row r using gone g where r.nonce = g.nonce and r.user_id = g.user_id returning 1)
select (select count(*) from gone), (select count(*) from rows_gone)
"""


class Trimmed(NamedTuple):
    """How much went."""

    versions: int
    rows: int


async def trim(primary: Primary, *, keep_s: float, batches: int = 1000) -> Trimmed:
    """Forget versions older than `keep_s` seconds, in small transactions; at most `batches` of them.

    Several may run at once; a batch that meets nothing but locked users ends the run, and the next one goes on.
    """
    versions = rows = 0
    for _ in range(batches):
        (counts,) = await primary.fetch(_TRIM, float(keep_s), _USERS)
        versions += counts[0]
        rows += counts[1]
        if counts[0] == 0:
            break
    return Trimmed(versions, rows)
