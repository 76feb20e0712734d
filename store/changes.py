"""Changes of one user since a cursor: the only thing that sync reads.

A pull is one statement, hence one snapshot: the head, and the document of every row that changed after the cursor.
A cursor that this history cannot extend is answered with a Reset instead, and the replica is seeded anew.
"""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple

from store.documents import projection
from store.epoch import Bookmark
from store.primary import Connection, Primary
from store.tables import REPLICATED, ZERO_NONCE

__all__ = [
    "START",
    "Change",
    "Cursor",
    "Delta",
    "Missed",
    "Reset",
    "changes_since",
    "heads_of",
    "missed_since",
    "ordered_rows",
]

#: A pull that carries more rows than this is answered with `bulk`: seeding aside is cheaper and does not block.
MAX_CHANGES: Final = 500


class Cursor(NamedTuple):
    """What a replica has applied. The nonce names the transaction that made `version`: equal versions with different
    nonces are different histories, so cursors are compared whole."""

    epoch: str
    version: int
    nonce: str


#: Before the first change of anybody, in no epoch yet: not valid for a pull, only as a seed's beginning.
START: Final = Cursor("", 0, ZERO_NONCE)

ResetReason = Literal["epoch", "ahead", "horizon", "nonce", "bulk"]


class Change(NamedTuple):
    """One row's newest state; `source` is None when the user no longer has the row."""

    kind: str
    row_id: str
    source: str | None


class Delta(NamedTuple):
    """Everything in (cursor, head], one change per row, ascending by version.

    `waited_s` holds, for each version applied, the seconds from its commit to this statement, by the primary's clock.
    """

    head: Cursor
    changes: list[Change]
    waited_s: list[float]


class Reset(NamedTuple):
    """The cursor cannot be extended. `epoch`, `ahead` and `nonce` mean that the replica may show what never
    happened: it stops serving at once. `horizon` and `bulk` replicas are old but true: they serve meanwhile."""

    head: Cursor
    reason: ResetReason

    @property
    def is_false_history(self) -> bool:
        return self.reason in ("epoch", "ahead", "nonce")


def _lookup(kind: str) -> str:
    # The owner again: a row that moved to another user is a deleted row here.
    mine = "t.owner_id = $1" if kind == "accounts" else "t.id = c.row_id::uuid and t.owner_id = $1"
    return f"when '{kind}' then (select row_to_json(d) from (select {projection(kind)} from {kind} t where {mine}) d)"


# $1 user, $2 epoch, $3 version, $4 nonce, $5 most rows. Always answers at least one row.
_PULL: Final = f"""
with head as materialized (
  select e.epoch, coalesce(s.version, 0) as version, coalesce(s.nonce, e.zero) as nonce,
         coalesce(s.horizon, 0) as horizon, coalesce(s.horizon_nonce, e.zero) as horizon_nonce
  from (select sync_epoch_now() as epoch, '{ZERO_NONCE}'::uuid as zero) e
  left join sync_user s on s.user_id = $1),
verdict as materialized (
  select h.*, case
    when split_part($2, '-', 1) <> split_part(h.epoch, '-', 1) then 'epoch'
    when $3 > h.version then 'ahead'
    when $3 < h.horizon then 'horizon'
    when $4 is distinct from case
      when $3 = h.version then h.nonce
      when $3 = h.horizon then h.horizon_nonce
      else (select l.nonce from change_log l where l.user_id = $1 and l.version = $3) end then 'nonce'
    end as reset
  from head h),
news as materialized (
  select l.version, l.nonce, l.at from change_log l
  where l.user_id = $1 and l.version > $3 and (select v.reset is null from verdict v)),
changed as materialized (
  select r.kind, r.row_id, max(n.version) as version
  from news n join change_row r on r.nonce = n.nonce and r.user_id = $1
  group by r.kind, r.row_id limit $5 + 1),
size as (select count(*) > $5 as too_many from changed)
select v.epoch, v.version, v.nonce::text, case when z.too_many then 'bulk' else v.reset end as reset,
       (select array_agg(extract(epoch from clock_timestamp() - n.at)::float8) from news n) as waited_s,
       c.kind, c.row_id,
       case c.kind {" ".join(_lookup(kind) for kind in REPLICATED)} end as source
from verdict v cross join size z left join changed c on not z.too_many
order by c.version, c.kind, c.row_id
"""

_HEADS: Final = """
with e as materialized (select sync_epoch_now() as epoch)
select e.epoch, s.user_id, s.version, s.nonce::text from e left join sync_user s on s.user_id = any($1::text[])
"""


async def changes_since(
    connection: Connection, user: str, cursor: Cursor, *, max_changes: int = MAX_CHANGES
) -> Delta | Reset:
    """What changed for `user` after `cursor`, from one snapshot."""
    rows = await connection.fetch(_PULL, user, cursor.epoch, cursor.version, cursor.nonce, max_changes)
    first = rows[0]
    head = Cursor(first["epoch"], first["version"], first["nonce"])
    if first["reset"] is not None:
        return Reset(head, first["reset"])
    # A kind that we do not know is a newer release's, on the same primary: nothing here shows it.
    changes = [Change(row["kind"], row["row_id"], row["source"]) for row in rows if row["kind"] in REPLICATED]
    return Delta(head, changes, first["waited_s"] or [])


async def heads_of(connection: Connection, users: list[str]) -> tuple[str, dict[str, Cursor]]:
    """The epoch, and the heads of those of `users` that have one; the others are at version 0."""
    rows = await connection.fetch(_HEADS, users)
    heads = {row["user_id"]: Cursor(row["epoch"], row["version"], row["nonce"]) for row in rows if row["user_id"]}
    return rows[0]["epoch"], heads


def seed_rows() -> str:
    """SQL of every replicated row of user $1, as (kind, source)."""
    parts: list[Any] = [
        f"select '{kind}' as kind, (select row_to_json(d)::text from (select {projection(kind)}) d) as source "
        f"from {kind} t where t.owner_id = $1"
        for kind in REPLICATED
    ]
    return " union all ".join(parts)


def ordered_rows(kind: str) -> str:
    """SQL of user $1's rows of `kind`, as (source), in the order of their ids: a replica has the same order."""
    return (
        f"select (select row_to_json(d)::text from (select {projection(kind)}) d) as source "
        f"from {kind} t where t.owner_id = $1 order by t.{REPLICATED[kind][0]}"
    )


class Missed(NamedTuple):
    """What a listener missed. `changes` are (version, kinds), ascending; None when that cannot be told any more."""

    head: Bookmark
    changes: list[tuple[int, list[str]]] | None


# $1 user, $2 epoch, $3 version, $4 most versions. Always answers at least one row.
_MISSED: Final = """
with head as materialized (
  select e.epoch, coalesce(s.version, 0) as version, coalesce(s.horizon, 0) as horizon
  from (select sync_epoch_now() as epoch) e left join sync_user s on s.user_id = $1),
known as materialized (
  select h.epoch, h.version,
         -- A listener has no nonce: a new timeline may have lost versions and given their numbers again.
         $2 = h.epoch and $3 between h.horizon and h.version as can_tell
  from head h),
news as (
  select l.version, l.nonce from change_log l
  where l.user_id = $1 and l.version > $3 and (select k.can_tell from known k) order by l.version limit $4 + 1)
select k.epoch, k.version, k.can_tell, n.version as at,
       array(select distinct r.kind from change_row r where r.nonce = n.nonce and r.user_id = $1 order by 1) as kinds
from known k left join news n on true order by n.version
"""


async def missed_since(primary: Primary, user: str, known: Bookmark, *, most: int = 100) -> Missed:
    """What happened to `user` after `known`, version by version, and the head.

    Raises:
        PrimaryUnavailable: it could not be asked.
    """
    rows = await primary.fetch(_MISSED, user, known.epoch, known.version, most)
    head = Bookmark(rows[0]["epoch"], rows[0]["version"])
    if not rows[0]["can_tell"] or len(rows) > most:
        return Missed(head, None)
    return Missed(head, [(row["at"], row["kinds"]) for row in rows if row["at"] is not None])
