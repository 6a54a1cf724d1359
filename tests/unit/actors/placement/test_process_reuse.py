"""A process that has put its tenant to sleep takes another: loader, timer and processes."""

from __future__ import annotations

import asyncio

import pytest
from local_world import RING, World, add_call, until

from dynamic_workflows.actors.placement import process_pool
from dynamic_workflows.actors.rpc.serving import NotServedHere
from dynamic_workflows.eventlog.errors import Fenced
from dynamic_workflows.loaders.protocol.calls import pack_call


async def reusing(**more: int) -> World:
    return await World(tenants_max=1_000, **more).start()


async def put_to_sleep(world: World, tenant_id: str) -> None:
    peer = world.slot_of(tenant_id)
    assert await peer.call("make_room", tenant_id)
    await until(lambda: tenant_id not in world.loader._placements, what="its sleep")


async def test_many_tenants_live_in_one_process_one_after_the_other() -> None:
    world = await reusing(pool_size=0)
    for number in range(20):
        peer = await world.home(f"t{number}")
        assert await peer.call("who") == (f"t{number}", "open", number)
        await put_to_sleep(world, f"t{number}")
        assert await peer.call("who") == (None, "blank", number + 1)
    assert (len(world.slots), world.killed) == (1, [])
    await world.stop()


async def test_an_evicted_tenants_process_is_the_next_ones() -> None:
    world = await reusing(pool_size=0, residents_max=1)
    first = await world.home("acme")
    second = await world.home("other")
    assert second.name == first.name
    assert await world.home("acme", first.name) is not None
    assert len(world.slots) == 1
    await world.stop()


async def test_what_was_sent_to_an_earlier_tenancy_is_refused() -> None:
    world = await reusing(pool_size=0)
    peer = await world.home("acme")
    call = (1, pack_call(add_call("t", 3)))
    assert await peer.call("exchange", "acme", "s", [call], [], 0.0) == [(1, True, 3)]
    await put_to_sleep(world, "acme")
    with pytest.raises(NotServedHere):
        await peer.call("assign", "acme", True, 0)
    assert await peer.call("who") == (None, "blank", 1)
    assert (await world.home("acme")).name == peer.name
    for session, calls in (("s", []), ("s", [(2, pack_call(RING))]), ("unheard", [])):
        with pytest.raises(NotServedHere):
            await peer.call("exchange", "acme", session, calls, [], 0.0)
    assert await peer.call("exchange", "acme", "new", [call], [], 0.0) == [(1, True, 3)]
    await put_to_sleep(world, "acme")
    assert (await world.home("other")).name == peer.name
    answers = await peer.call("exchange", "other", "s", [call], [], 0.0)
    assert answers == [(1, True, 3)], "another tenant's session may have the same name"
    assert not await peer.call("make_room", "acme"), "it was meant for another tenant"
    await world.stop()


async def test_code_that_was_sent_for_an_earlier_tenancy_is_no_later_ones() -> None:
    world = await reusing(pool_size=0)
    peer = await world.home("acme")
    slot = world.slot_of("acme").target
    taken: list[str] = []
    slot._on_code = taken.append
    await put_to_sleep(world, "acme")
    await peer.call("take_code", "acme", "of acme", 0)
    assert (await world.home("other")).name == peer.name
    await peer.call("take_code", "acme", "of acme", 1)
    await peer.call("take_code", "other", "old", 0)
    assert taken == []
    await peer.call("take_code", "other", "of other", 1)
    assert taken == ["of other"]
    await world.stop()


async def test_a_release_that_comes_twice_or_late_gives_no_process_away() -> None:
    world = await reusing(pool_size=0)
    peer = await world.home("acme")
    await put_to_sleep(world, "acme")
    await world.loader.released(peer.name, "acme", 1)
    assert [worker.name for worker in world.loader._pool.workers] == [peer.name]
    await world.home("other")
    await world.loader.released(peer.name, "acme", 1)
    await world.loader.released(peer.name, "other", 1)
    assert not world.loader._pool.workers
    assert await world.loader.residents() == ["other"]
    assert world.killed == []
    await world.stop()


async def test_a_process_that_lost_its_log_or_cannot_close_serves_nobody_else() -> None:
    world = await reusing(pool_size=0)
    for name, failed in (("fenced", Fenced("another owner")), ("stubborn", None)):
        peer = await world.home(name)
        till = world.tills[name]
        till.failed = failed

        async def close() -> None:
            raise OSError("it does not end")

        if failed is None:
            till.close = close  # type: ignore[method-assign]
        assert await peer.call("make_room", name)
        name = peer.name
        await until(lambda: name in world.killed, what="its end")  # noqa: B023
    await world.stop()


async def test_what_cannot_be_cleared_ends() -> None:
    world = await reusing(pool_size=0)
    peer = await world.home("acme")

    async def clears_not() -> bool:
        return False

    world.slot_of("acme").target._on_released = clears_not
    assert await peer.call("make_room", "acme")
    await until(lambda: peer.name in world.killed, what="its end")
    await world.stop()


async def test_a_process_ends_after_as_many_tenants_as_it_may_serve() -> None:
    world = await World(tenants_max=2, pool_size=0).start()
    first = await world.home("acme")
    await put_to_sleep(world, "acme")
    assert (await world.home("acme")).name == first.name
    assert await first.call("make_room", "acme")
    await until(lambda: first.name in world.killed, what="its end")
    await world.stop()


async def test_processes_beyond_the_pools_size_end_when_nobody_takes_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process_pool, "SPARE_KEPT_S", 0.0)
    world = await reusing(pool_size=1)
    await asyncio.gather(*(world.home(f"t{number}") for number in range(4)))
    await asyncio.gather(*(put_to_sleep(world, f"t{number}") for number in range(4)))
    spare = world.loader._pool.surplus()
    assert len(spare) >= 3
    assert len(world.loader._pool.workers) == 1
    await world.stop()


async def test_a_new_loader_finds_a_blank_process_in_its_generation() -> None:
    world = await reusing(pool_size=0)
    first = await world.home("acme")
    await put_to_sleep(world, "acme")
    assert world.loader._checking is not None
    world.loader._checking.cancel()
    await world.start_loader()
    peer = await world.home("other")
    assert peer.name == first.name
    assert await peer.call("who") == ("other", "open", 1)
    await world.stop()
