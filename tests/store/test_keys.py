"""Keys: generated, checkable, free of what a user typed."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.errors import InvalidValue
from store.objects.keys import EXTENSIONS, Kind, content_type_of, is_key, new_key, owner_tag, thumb_key

TAG = owner_tag("user-1", b"secret")

kinds = st.sampled_from(["generated", "reference"])
content_types = st.sampled_from(sorted(EXTENSIONS))
times_ms = st.integers(0, 9_999_999_999_999)


@given(kind=kinds, user=st.text(), content_type=content_types, now_ms=times_ms)
def test_every_new_key_is_a_key_and_tells_its_content_type(
    kind: Kind, user: str, content_type: str, now_ms: int
) -> None:
    """The form is kind/owner/time-random.ext, whatever the user is called. mission: 165"""
    tag = owner_tag(user, b"secret")

    key = new_key(kind, tag, content_type, now_ms)

    assert is_key(key)
    assert content_type_of(key) == content_type
    assert key.startswith(f"{kind}/{tag}/{now_ms:013d}-")
    assert re.fullmatch(r"[a-z0-9/.\-]+", key)
    assert len(key.split("/")) == 3


@given(text=st.text())
def test_text_is_not_a_key(text: str) -> None:
    assert not is_key(text)


@given(at=st.integers(0, 90), sign=st.characters())
def test_a_key_with_a_sign_too_many_is_a_key_only_if_its_thumb_is_meant(at: int, sign: str) -> None:
    key = f"generated/{TAG}/{1:013d}-{'a' * 32}.png"

    longer = key[:at] + sign + key[at:]

    assert not is_key(longer)


@given(kind=kinds, content_type=content_types, now_ms=times_ms)
def test_thumb_keeps_the_stem_and_is_webp(kind: Kind, content_type: str, now_ms: int) -> None:
    key = new_key(kind, TAG, content_type, now_ms)

    thumb = thumb_key(key)

    assert is_key(thumb)
    assert thumb == key.rpartition(".")[0] + ".thumb.webp"
    assert content_type_of(thumb) == "image/webp"


def test_keys_are_unique_and_sort_by_time() -> None:
    """mission: 165, 222"""
    same_moment = {new_key("generated", TAG, "image/png", 5) for _ in range(10_000)}
    early, late = new_key("generated", TAG, "image/png", 999), new_key("generated", TAG, "image/png", 10_000)

    assert len(same_moment) == 10_000
    assert early < late


def test_owner_tag_depends_on_user_and_secret_only() -> None:
    assert owner_tag("user-1", b"secret") == TAG
    assert len({TAG, owner_tag("user-2", b"secret"), owner_tag("user-1", b"other")}) == 3
    assert re.fullmatch(r"[0-9a-f]{32}", TAG)


@pytest.mark.parametrize(
    "text",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "",
        f"generated/{TAG}/../{TAG}/0000000000001-{'a' * 32}.png",
        f"generated/{TAG}/0000000000001-{'a' * 32}.png\n",
        f"generated/{TAG}/0000000000001-{'a' * 32}.svg",
        f"generated/{TAG}/0000000000001-{'A' * 32}.png",
        f"generated/{TAG}/٠000000000001-{'a' * 32}.png",
        f"generated\\{TAG}\\0000000000001-{'a' * 32}.png",
        f"avatar/{TAG}/0000000000001-{'a' * 32}.png",
        f"generated/{TAG}/0000000000001-{'a' * 32}.thumb.png",
    ],
)
def test_what_is_not_exactly_a_key_is_refused(text: str) -> None:
    assert not is_key(text)
    with pytest.raises(InvalidValue, match="is not a key"):
        content_type_of(text)
    with pytest.raises(InvalidValue, match="is not the key of a picture"):
        thumb_key(text)


def test_a_thumb_has_no_thumb() -> None:
    with pytest.raises(InvalidValue, match="is not the key of a picture"):
        thumb_key(thumb_key(new_key("generated", TAG, "image/png", 1)))


@pytest.mark.parametrize(
    ("kind", "tag", "content_type", "now_ms", "field"),
    [
        ("avatar", TAG, "image/png", 1, "kind"),
        ("generated", "alice", "image/png", 1, "owner_tag"),
        ("generated", TAG, "image/svg+xml", 1, "content_type"),
        ("generated", TAG, "image/png", -1, "now_ms"),
        ("generated", TAG, "image/png", 10**13, "now_ms"),
    ],
)
def test_what_cannot_become_part_of_a_key_is_named(
    kind: Kind, tag: str, content_type: str, now_ms: int, field: str
) -> None:
    with pytest.raises(InvalidValue) as caught:
        new_key(kind, tag, content_type, now_ms)

    assert caught.value.field == field
