"""The replica's tables, made from the same constants as the primary's change capture and the documents.

A replica is never migrated: its `user_version` is a hash of all that decides its content, and a file with another
one is deleted and seeded again.
"""

from __future__ import annotations

import hashlib
from typing import Final

from store.documents import FILTERS, Documents

__all__ = ["APPLICATION_ID", "DELETE", "INDEXES", "ROWS", "SCHEMA", "TABLES", "UPSERT", "user_version"]

#: "PRSE": `file` and sqlite3 show whose file this is.
APPLICATION_ID: Final = 0x50525345

_INTEGERS: Final = frozenset({"starred", "trashed_at", "created_at", "hidden_at"})


def _table(kind: str) -> str:
    columns = "".join(f", {c} {'integer' if c in _INTEGERS else 'text'}" for c in FILTERS[kind])
    return f"create table {kind} (id text not null{columns}, doc blob not null);"


def _upsert(kind: str) -> str:
    names = ("id", *FILTERS[kind], "doc")
    return f"insert or replace into {kind} ({', '.join(names)}) values ({', '.join('?' * len(names))})"


#: `synced_at` is wall time in seconds when the cursor was last known to be the head.
TABLES: Final = "\n".join(
    (
        "create table meta (one integer primary key check (one = 1), user_id text not null, epoch text not null,"
        " version integer not null, nonce text not null, synced_at real not null);",
        *(_table(kind) for kind in FILTERS),
    )
)
#: Apart from the tables: a seed makes them from all rows at once, sorted. Kept up row by row, the indexes of a large
#: gallery would be written at random places, and be far larger than SQLite's cache.
INDEXES: Final = "\n".join(
    (
        # Not a primary key, which could not be made later.
        *(f"create unique index {kind}_id on {kind} (id);" for kind in FILTERS),
        # Partial, as the gallery and the trash are two lists that are never read together.
        "create index images_gallery on images (created_at, id) where trashed_at is null;",
        # One per filter, in the order of the page: without them a rare match is looked for in the whole gallery.
        *(
            f"create index images_{name} on images ({name}, created_at, id) where trashed_at is null;"
            for name in ("starred", "visibility", "model")
        ),
        "create index images_trash on images (created_at, id) where trashed_at is not null;",
        # One for all filters: they are tested in the index, at 45 µs per thousand jobs that do not match. One per
        # filter would make every step of a job half as dear again.
        "create index jobs_history on jobs (created_at, id, state, model, kind, batch_id) where hidden_at is null;",
        "create index jobs_hidden on jobs (created_at, id) where hidden_at is not null;",
        "create index references_list on reference_images (created_at, id);",
    )
)
SCHEMA: Final = f"{TABLES}\n{INDEXES}"

#: kind → statement that writes one row: id, filters in the order of `FILTERS`, document.
UPSERT: Final = {kind: _upsert(kind) for kind in FILTERS}
#: kind → statement that deletes one row by id.
DELETE: Final = {kind: f"delete from {kind} where id = ?" for kind in FILTERS}
#: kind → statement that selects rows as `UPSERT` writes them, from behind one id up to another one, if given.
ROWS: Final = {
    kind: f"select {', '.join(('id', *FILTERS[kind], 'doc'))} from {kind} "
    "where id > ? and (? is null or id <= ?) order by id"
    for kind in FILTERS
}


def user_version(documents: Documents) -> int:
    """31 bits that change with the schema, the projection, and every setting that documents read."""
    text = f"{SCHEMA}\n{documents.fingerprint}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
