"""What operators ask about replicas: one set of answers for the commands and for /admin."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

import msgspec

from actors import ReplicaClient, seed_file
from store.credits import as_json
from store.documents import Documents
from store.epoch import rotate
from store.erasure import erase
from store.errors import InvalidValue
from store.ids import is_user_id
from store.overview import overview
from store.primary import Primary

__all__ = ["Operators"]

_MAX_USERS: Final = 1000

_USERS: Final = """
select u.id, coalesce(s.version, 0), a.plan, a.balance_tenths, a.storage_used_bytes, u.created_at,
       (select count(*) from images i where i.owner_id = u.id)
from users u join accounts a on a.owner_id = u.id left join sync_user s on s.user_id = u.id
where u.id > $1 and u.id not like '~%' order by u.id limit $2
"""


class Operators:
    """Answers as plain dictionaries; their keys are what `--json` prints and /admin sends."""

    def __init__(self, primary: Primary, client: ReplicaClient, documents: Documents) -> None:
        self._primary = primary
        self._client = client
        self._documents = documents

    async def hosts(self) -> list[dict[str, Any]]:
        """Every host that is known, and what it holds if it answers."""
        stats = {stats.host: stats for stats in await self._client.stats()}
        return [
            {
                "host": row.id,
                "state": row.word,
                "generation": row.generation,
                "address": row.address,
                "build": row.build,
                "capacity": row.capacity,
                "answers": row.id in stats,
                **(_holdings(stats[row.id]) if row.id in stats else {}),
            }
            for row in self._client.hosts
        ]

    async def overview(self) -> dict[str, Any]:
        """How much there is, what waits and what it costs: see `store.overview`."""
        return await overview(self._primary)

    async def replicas(self) -> list[dict[str, Any]]:
        """The open replicas of all hosts, up to 1,000 a host."""
        found = await self._client.list_active()
        return [{"host": host, **msgspec.structs.asdict(info)} for host, infos in found.items() for info in infos]

    async def inspect(self, user: str) -> dict[str, Any]:
        """Where a user's replica is, what state it is in, and how far behind the primary.

        Raises:
            CallError: its host does not answer.
            InvalidValue: not a user's id.
        """
        row, info = await self._client.inspect(_checked(user))
        rows = await self._primary.fetch("select version from sync_user where user_id = $1", user)
        head = rows[0]["version"] if rows else 0
        lag = head - info.version if info.state == "active" else None
        return {"host": row.id, "address": row.address, **msgspec.structs.asdict(info), "head": head, "lag": lag}

    async def passivate(self, user: str) -> dict[str, Any]:
        """Close the replica; its file stays."""
        return {"user": user, "passivated": await self._client.passivate(_checked(user))}

    async def reseed(self, user: str) -> dict[str, Any]:
        """Make the replica again from the primary."""
        await self._client.reseed(_checked(user))
        return {"user": user, "reseeding": True}

    async def audit(self, user: str, *, repair: bool) -> dict[str, Any]:
        """Compare the replica with the primary at one version, row by row; `repair` what differs.

        Raises:
            CallError: its host does not answer, or cannot tell.
            InvalidValue: not a user's id.
        """
        report = await self._client.audit(_checked(user), repair=repair)
        return {**msgspec.structs.asdict(report), "kinds": [msgspec.structs.asdict(kind) for kind in report.kinds]}

    async def users_to_audit(self, sample: int | None) -> list[str]:
        """The ids of `sample` users, taken at random among those with versions; None: of all of them."""
        rows = await self._primary.fetch(
            "select user_id from sync_user where user_id not like '~%' "
            "order by case when $1::int is null then 0 else random() end, user_id limit $1",
            sample,
        )
        return [row["user_id"] for row in rows]

    async def export(self, user: str, path: Path) -> dict[str, Any]:
        """Write the user's replica, fresh from the primary at one version, to a new SQLite file.

        Raises:
            InvalidValue: the file is there already.
        """
        if path.exists() or path.with_suffix(".staging").exists():  # noqa: ASYNC240 - two names
            raise InvalidValue("path", f"{path} exists already: choose another name")
        made = await seed_file(self._primary, _checked(user), path, self._documents, synced_at=time.time())
        return {
            "user": user,
            "file": str(path),
            "rows": made.rows,
            "epoch": made.cursor.epoch,
            "version": made.cursor.version,
        }

    async def erase(self, user: str) -> dict[str, Any]:
        """Erase a user: rows at once, credentials and replica files within seconds, objects as the object store lets a
        gateway. See `store.erasure`.

        Raises:
            InvalidValue: not a user's id, or one of our own.
            NotFound: there is no such user.
            PrimaryUnavailable: it is not finished, and a gateway finishes it later.
        """
        if _checked(user).startswith("~"):
            raise InvalidValue("user", f"{user} belongs to a host")
        return (await erase(self._primary, user))._asdict()

    async def rotate_epoch(self) -> str:
        """Begin a new epoch of the primary; see `store.epoch.rotate`."""
        return await rotate(self._primary)

    async def users(self, after: str = "", limit: int = 100) -> list[dict[str, Any]]:
        """Users in the order of their ids, from behind `after`; at most 1,000."""
        rows = await self._primary.fetch(_USERS, after, min(limit, _MAX_USERS))
        names = ("user", "version", "plan", "balance_credits", "storage_used_bytes", "created_at", "images")
        listed = [dict(zip(names, row, strict=True)) for row in rows]
        return [{**row, "balance_credits": as_json(row["balance_credits"])} for row in listed]


def _holdings(stats: Any) -> dict[str, Any]:
    names = (
        "pid", "active", "seeding", "watched", "open_bytes", "kept_bytes", "disk_bytes", "resident_bytes", "in_flight",
        "lag_s", "is_stuck",
    )  # fmt: skip
    return {name: getattr(stats, name) for name in names}


def _checked(user: str) -> str:
    if not is_user_id(user):
        raise InvalidValue("user", f"{user[:40]!r} is not a user id")
    return user
