"""Write → sync → read, as a person and as a service would."""

from __future__ import annotations

from tests.world import World, until


async def test_what_is_written_is_read_from_the_replica(world: World) -> None:
    """mission: 139, 140, 148, 219"""
    first = await world.upload(prompt="a lighthouse", model="mine")
    assert first.status == 201, first

    reply = await world.get("/api/images")
    assert reply.status == 200, reply
    assert [image["prompt"] for image in reply.json["images"]] == ["a lighthouse"]

    async def from_replica() -> bool:
        return (await world.get("/api/images")).headers["Peruse-Source"] == "replica"

    await until(from_replica)
    second = await world.upload(prompt="a harbour")
    reply = await world.get("/api/images")
    assert reply.headers["Peruse-Source"] == "replica"
    assert reply.headers["Peruse-Bookmark"] == second.headers["Peruse-Bookmark"]
    assert [image["prompt"] for image in reply.json["images"]] == ["a harbour", "a lighthouse"]
