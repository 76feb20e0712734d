"""Promises: what clients were told, what was true, and which promises do not hold between the two.

What was true comes from the primary itself: a trigger of the test writes down, inside the transaction that makes a
version, what the user's gallery is at that version, whoever writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

import asyncpg
import msgspec

from store.epoch import Bookmark

__all__ = [
    "VIEWS",
    "Gallery",
    "Image",
    "Read",
    "Version",
    "Write",
    "gallery",
    "greatest",
    "recorded",
    "start_recording",
    "view",
    "violations",
]


class Image(NamedTuple):
    """What is compared of an image: what writers change, what it is found by, and what orders it."""

    id: str
    url: str
    title: str | None
    starred: bool
    visibility: str
    trashed_at: str | None
    created_at: str


#: All images of a user, the trashed too, the newest first.
Gallery = tuple[Image, ...]

#: Name → query parameters.
VIEWS: Final[dict[str, dict[str, str]]] = {
    "newest": {},
    "oldest": {"sort": "oldest"},
    "starred": {"starred": "true"},
    "trash": {"trashed": "true"},
}


def view(images: Gallery, name: str) -> Gallery:
    """The part of a whole gallery that a read of `name` shows, in its order."""
    shown = [image for image in images if (image.trashed_at is not None) == (name == "trash")]
    if name == "starred":
        shown = [image for image in shown if image.starred]
    return tuple(reversed(shown) if name == "oldest" else shown)


class Version(NamedTuple):
    """What a user had at one version, and when it was made: Unix time, shortly before its commit."""

    made_at: float
    gallery: Gallery


class Read(NamedTuple):
    """A reply to a read: what was asked for, and everything that it said. `asked`: the bookmark sent, if any."""

    sent_at: float
    view: str
    asked: Bookmark | None
    on_timeout: str
    max_age_s: int | None
    at: Bookmark
    outcome: str
    source: str
    age_s: int
    images: Gallery


class Write(NamedTuple):
    """An acknowledged write: its bookmark, and the image as the reply shows it."""

    at: Bookmark
    image: Image


#: A version is made a moment before others can see it.
_COMMIT_S: Final = 2.0


def violations(user: str, events: Iterable[Read | Write], versions: Mapping[tuple[str, int], Version]) -> list[str]:
    """What is wrong with one session of `user`, in its order: one line each, beginning with the promise broken."""
    found: list[str] = []
    read_at: Bookmark | None = None  # the greatest read so far
    wrote_at: Bookmark | None = None  # and the greatest written
    for event in events:
        made = versions.get((user, event.at.version))
        if made is None:
            found.append(f"I6: {user} never was at the version that {event} names")
        if isinstance(event, Write):
            if made is not None and event.image not in made.gallery:
                found.append(f"I1: {user}'s acknowledged write {event} is not in version {event.at.version}")
            wrote_at = greatest(wrote_at, event.at)
            continue
        # Whoever says that a stale answer will do is given one that says that it is.
        may_be_old = event.on_timeout == "stale" and event.outcome == "stale"
        for promise, floor in (("I4", read_at), ("I5", wrote_at), ("I5", event.asked)):
            if floor is not None and floor.is_after(*event.at) and not may_be_old:
                found.append(f"{promise}: {user} was at {floor}, then reads {_said(event)}")
        read_at = greatest(read_at, event.at)
        if event.max_age_s is not None and event.age_s > event.max_age_s:
            found.append(f"age: {user} asked for {event.max_age_s} s at most, and got {_said(event)}")
        if made is None:
            continue
        if event.images != view(made.gallery, event.view):
            found.append(f"I6: {user} reads {_said(event)}, and it differs: {_difference(event, made)}")
        after = versions.get((user, event.at.version + 1))
        if after is not None and after.made_at + _COMMIT_S < event.sent_at - event.age_s:
            old_s = event.sent_at - after.made_at
            found.append(f"age: {user} reads {_said(event)}, which was not the head for {old_s:.1f} s already")
    return found


def greatest(known: Bookmark | None, at: Bookmark) -> Bookmark:
    """The newer of two positions."""
    return at if known is None or at.is_after(*known) else known


def _said(event: Read) -> str:
    return f"{event.view} at {event.at}, {event.outcome} from {event.source}, age {event.age_s} s"


def _difference(event: Read, made: Version) -> str:
    shown, expected = set(event.images), set(view(made.gallery, event.view))
    if shown == expected:
        return "the order"
    return f"shown and wrong {list(shown - expected)[:2]}, missing {list(expected - shown)[:2]}"


# --- what is written down in the primary --------------------------------------------------------------------------

_TIME: Final = "to_char({} at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"
# A function that may change things sees everything committed so far in each of its statements, and the user's counter
# is locked when it runs: so what it reads is the user's gallery at the version being made.
_RECORDER: Final = f"""
create table session_versions (user_id text, version bigint, made_at timestamptz, images text,
    primary key (user_id, version));
create function session_record() returns trigger language plpgsql volatile as $$
begin
    insert into session_versions select new.user_id, new.version, clock_timestamp(), coalesce(json_agg(json_build_array(
        id, '/files/' || object_key, title, starred, visibility, {_TIME.format("trashed_at")},
        {_TIME.format("created_at")}) order by created_at desc, id desc), '[]')
    from images where owner_id = new.user_id;
    return null;
end $$;
create trigger session_record after insert on change_log for each row execute function session_record();
"""


async def start_recording(connection: asyncpg.Connection) -> None:
    """From now on every version's gallery is written down by whoever makes it."""
    await connection.execute(_RECORDER)


async def recorded(connection: asyncpg.Connection) -> dict[tuple[str, int], Version]:
    """(user, version) → what was written down."""
    rows = await connection.fetch(
        "select user_id, version, extract(epoch from made_at)::float8, images from session_versions"
    )
    return {
        (user, version): Version(made_at, gallery(msgspec.json.decode(text, type=list[Image])))
        for user, version, made_at, text in rows
    }


_known: dict[Image, Image] = {}


def gallery(images: Iterable[Image]) -> Gallery:
    """Equal images are kept once: a version differs from the one before it by one or two."""
    return tuple(_known.setdefault(image, image) for image in images)
