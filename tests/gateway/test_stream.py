"""One stream: what waits for its listener is complete, in order, and bounded."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.stream import MAX_WAITING, NOWHERE, Stream
from store.changes import Missed
from store.epoch import Bookmark

EPOCH = "1700000000000-1"


def at(version: int, epoch: str = EPOCH) -> Bookmark:
    return Bookmark(epoch, version)


def opened(version: int = 0) -> Stream:
    """A stream that begins at `version`, for a new listener."""
    stream = Stream("ana", "Bearer x", None)
    stream.begin(Missed(at(version), []), is_return=False)
    return stream


async def blocks(stream: Stream) -> list[dict[str, Any]]:
    """What is to be sent now: the fields of each block."""
    text = (await stream.next()).decode()
    assert text.endswith("\n\n")
    return [
        dict(line.split(": ", 1) for line in block.split("\n")) for block in text.removesuffix("\n\n").split("\n\n")
    ]


async def test_a_new_listener_learns_where_it_is() -> None:
    """So that it can come back from there, should nothing happen before."""
    (start,) = await blocks(opened(7))

    assert start.pop("retry").isdigit()
    assert start == {"id": f"{EPOCH}.7"}


async def test_a_stream_that_is_kept_alive_before_it_begins_is_told_where_it_is() -> None:
    """Thousands may wait for their turn to begin."""
    stream = Stream("ana", "Bearer x", None)
    stream.keep_alive()
    stream.begin(Missed(at(7), []), is_return=False)

    (start,) = await blocks(stream)

    assert start["id"] == f"{EPOCH}.7"


async def test_who_comes_back_is_given_no_position_before_what_it_missed() -> None:
    """Cut off after the first block, it comes back from where it was, and not from beyond what it was to be told."""
    for missed in (Missed(at(9), [(8, ["images"]), (9, ["jobs"])]), Missed(at(9), None)):
        stream = Stream("ana", "Bearer x", None)
        stream.begin(missed, is_return=True)

        start, *told = await blocks(stream)

        assert list(start) == ["retry"]
        assert [block["id"] for block in told][-1] == f"{EPOCH}.9"


async def test_who_missed_nothing_is_told_where_it_is() -> None:
    stream = Stream("ana", "Bearer x", None)
    stream.begin(Missed(at(9), []), is_return=True)

    (start,) = await blocks(stream)

    assert start["id"] == f"{EPOCH}.9"


async def test_what_happens_while_it_begins_follows_what_was_missed() -> None:
    """And what the head has already is not told twice."""
    stream = Stream("ana", "Bearer x", None)
    for version in (4, 5, 6):
        stream.tell(at(version), ["images"])
    stream.begin(Missed(at(5), [(5, ["jobs"])]), is_return=True)

    _, *told = await blocks(stream)

    assert [block["id"] for block in told] == [f"{EPOCH}.5", f"{EPOCH}.6"]


async def test_too_much_while_it_begins_is_a_resync() -> None:
    stream = Stream("ana", "Bearer x", None)
    for version in range(1, MAX_WAITING + 3):
        stream.tell(at(version), ["images"])
    assert len(stream._early) <= MAX_WAITING
    stream.begin(Missed(at(0), []), is_return=False)

    _, *told = await blocks(stream)

    assert [(block.get("event"), block["id"]) for block in told] == [
        ("resync", f"{EPOCH}.{MAX_WAITING + 1}"), (None, f"{EPOCH}.{MAX_WAITING + 2}"),
    ]  # fmt: skip


async def test_another_epoch_or_timeline_is_a_resync() -> None:
    """What was heard may not be in that history."""
    for epoch in ("1700000000000-2", "1700000000001-1"):
        stream = opened(5)
        stream.tell(at(6, epoch), ["images"])

        assert [block.get("event") for block in await blocks(stream)] == [None, "resync"]


async def test_a_stream_that_began_nowhere_hears_everything() -> None:
    stream = Stream("ana", "Bearer x", None)
    stream.begin(Missed(NOWHERE, None), is_return=False)
    stream.tell(at(0), None)

    assert [block.get("event") for block in await blocks(stream)] == [None, "resync"]


async def test_an_ended_stream_says_nothing_more() -> None:
    stream = opened()
    stream.end()
    stream.tell(at(1), ["images"])
    stream.keep_alive()

    assert await stream.next() == b""
    assert await stream.next() == b""


told = st.tuples(st.integers(0, 300), st.one_of(st.none(), st.lists(st.sampled_from(["images", "jobs"]), min_size=1)))


@given(st.lists(st.one_of(told, st.just("read")), max_size=200))
async def test_whatever_is_told_and_read_the_last_is_heard_and_ids_go_back_on_a_resync_only(
    happened: list[Any],
) -> None:
    """And never more waits than the bound."""
    stream, known, heard = opened(), at(0), []
    for event in [*happened, "read"]:
        if event == "read":
            if stream._messages:
                heard += [block for block in await blocks(stream) if "data" in block]
        else:
            stream.tell(at(event[0]), event[1])
            if event[1] is None or event[0] > known.version:
                known = at(event[0])
        assert len(stream._messages) <= MAX_WAITING

    versions = [0, *(json.loads(block["data"])["version"] for block in heard)]
    assert versions[-1] == known.version
    assert [block["id"] for block in heard] == [f"{EPOCH}.{version}" for version in versions[1:]]
    for before, after, block in zip(versions, versions[1:], heard, strict=False):
        assert after > before or block.get("event") == "resync"
