"""Event streams: what a listener is told, and what it may miss without harm."""

from __future__ import annotations

from tests.gateway.asking import bookmark_of, replica_of
from tests.gateway.listening import listening
from tests.world import World, add_images


async def test_a_listener_hears_of_every_new_version(shared: World, user: str) -> None:
    """One message per applied pull: where the user is now, and what kinds of rows changed. mission: 150"""
    await replica_of(shared, user)
    async with listening(shared, user) as listener:
        start = await listener.begun()
        assert start.endswith(".0")

        first = await shared.upload(user=user, prompt="one")
        message = await listener.next()
        assert (message.id, message.event) == (first.headers["Peruse-Bookmark"], "message")
        assert message.data == {"version": bookmark_of(first).version, "kinds": ["accounts", "images"]}

        async with shared.gateway.primary.connection() as connection:
            await add_images(connection, user, 1)  # nobody pokes: the sweep finds it
        assert (await listener.next()).data["kinds"] == ["images"]


async def test_a_listener_that_comes_back_is_told_what_it_missed(shared: World, user: str) -> None:
    """Version by version, from the change log."""
    await shared.upload(user=user)
    async with listening(shared, user) as listener:
        seen = await listener.begun()
    missed = [await shared.upload(user=user) for _ in range(3)]

    async with listening(shared, user, last_id=seen) as listener:
        heard = [await listener.next() for _ in missed]

    assert [message.id for message in heard] == [reply.headers["Peruse-Bookmark"] for reply in missed]


async def test_a_sleeping_users_changes_are_heard_too(world: World) -> None:
    """A stream does not keep its user's replica open: the sweep wakes it."""
    await replica_of(world, "ana")
    async with listening(world, "ana") as listener:
        await listener.begun()
        await world.gateway.client.passivate("ana")
        reply = await world.upload(user="ana")
        assert (await listener.next()).id == reply.headers["Peruse-Bookmark"]
