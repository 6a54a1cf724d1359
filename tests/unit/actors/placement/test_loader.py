"""The loader's places and slots, with the real timer and real slots, in one process."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from local_world import RING, World, add_call, until

from dynamic_workflows.actors.placement import loader as loader_module
from dynamic_workflows.actors.placement import process_pool, tenant_assignment
from dynamic_workflows.actors.placement.connection_warmup import ConnectionWarmup
from dynamic_workflows.actors.placement.loader import STARTS_AT_ONCE_MAX
from dynamic_workflows.actors.placement.worker_process import WorkerProcess
from dynamic_workflows.actors.rpc.reconnecting import ReconnectingRef
from dynamic_workflows.actors.rpc.serving import NotServedHere
from dynamic_workflows.eventlog.clock import US
from dynamic_workflows.eventlog.errors import Corrupt, InvalidError, PlatformClosed, Unavailable
from dynamic_workflows.loaders.protocol.calls import pack_call


async def advance(world: World, seconds: float) -> None:
    """Move the clock a second at a time, and let everybody act."""
    for _ in range(round(seconds)):
        until_us = world.clock.now_us() + US
        while world.clock.fire_next(until_us=until_us):  # noqa: ASYNC110
            await asyncio.sleep(0)
        world.clock.move_to(until_us)
        for _ in range(20):
            await asyncio.sleep(0)


async def test_a_tenant_gets_a_slot_from_the_pool_which_fills_up_again() -> None:
    world = await World(pool_size=2).start()
    blank = {peer.name for peer in world.loader._pool.workers}
    peer = await world.loader.resolve("acme")
    assert peer.name in blank
    await until(lambda: world.opened == ["acme"])
    assert await peer.call("who") == ("acme", "open", 0)
    await until(lambda: len(world.loader._pool.workers) == 2)
    assert (await world.loader.stats()).from_pool == 1
    await world.stop()


async def test_without_a_pool_slots_are_started_when_they_are_needed() -> None:
    world = await World(pool_size=0).start()
    assert not world.slots
    await world.home("acme")
    assert world.opened == ["acme"]
    assert len(world.slots) == 1
    await world.stop()


async def test_everybody_who_asks_for_a_tenant_gets_the_same_place() -> None:
    world = await World().start()
    workers = await asyncio.gather(*(world.loader.resolve("acme") for _ in range(50)))
    assert len({peer.name for peer in workers}) == 1
    assert world.opened == ["acme"]
    await world.stop()


async def test_a_tenant_is_listed_as_open_before_it_serves_anybody() -> None:
    world = await World().start()
    timer_peer, world.timer_peer = world.timer_peer, None
    peer = await world.loader.resolve("acme")
    call = (1, pack_call(add_call("t", 3)))
    serving = asyncio.ensure_future(peer.call("exchange", "acme", "s", [call], [], 0.0))
    await until(lambda: world.opened == ["acme"])
    await asyncio.sleep(0.05)
    assert not serving.done(), "the tenant is open, but a crash now would forget it"
    assert not world.books.get("acme"), "nothing may be promised yet"
    world.timer_peer = timer_peer
    assert await serving == [(1, True, 3)]
    assert await world.timer.due("acme") == -1
    await world.stop()


async def test_a_driver_hears_of_every_slot_that_joins_the_pool() -> None:
    world = await World(pool_size=2).start()
    warmup = ConnectionWarmup(ReconnectingRef("the loader", world.find_loader, timeout_s=1.0))
    warmup.watch()
    known = sorted(peer.name for peer in world.loader._pool.workers)
    await until(lambda: warmup.names == known, what="the acquaintance")
    taken = await world.home("acme")
    await until(lambda: len(world.loader._pool.workers) == 2, what="the refilled pool")
    later = sorted(peer.name for peer in world.loader._pool.workers)
    await until(lambda: warmup.names == later, what="the new acquaintance")
    assert taken.name not in warmup.names
    assert set(later) - set(known)
    await warmup.close()
    await world.stop()


async def test_too_many_drivers_are_told_nothing_of_the_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process_pool, "WATCHERS_MAX", 1)
    world = await World(pool_size=1).start()
    known = [peer.name for peer in world.loader._pool.workers]
    first = asyncio.ensure_future(world.loader.pool_members(known, 60.0))
    await asyncio.sleep(0)
    assert await world.loader.pool_members(known, 60.0) is None
    await world.loader.resolve("acme")
    joined = await first
    assert joined is not None
    assert [peer.name for peer in joined] != known
    assert await world.loader.pool_members([], 0.0) is not None, "there is room again"
    await world.stop()


async def test_a_slot_never_serves_a_second_tenant() -> None:
    world = await World().start()
    peer = await world.loader.resolve("acme")
    with pytest.raises(NotServedHere):
        await peer.call("assign", "other")
    with pytest.raises(NotServedHere):
        await peer.call("exchange", "other", "s", [(1, pack_call(RING))], [], 0.0)
    assert (await world.loader.resolve("other")).name != peer.name
    await world.stop()


async def test_an_idle_tenant_sleeps_and_its_next_call_finds_it_in_a_fresh_slot() -> None:
    world = await World(idle_s=60).start()
    world.wakes["acme"] = world.clock.now_us() + 3_600 * US
    first = await world.home("acme")
    await advance(world, 59)
    assert await world.loader.residents() == ["acme"]
    await advance(world, 3)
    await until(lambda: first.name in world.killed)
    assert await world.loader.residents() == []
    assert await world.timer.due("acme") == world.wakes["acme"]
    second = await world.home("acme", first.name)
    assert second.name != first.name
    assert await world.timer.due("acme") == -1
    await world.stop()


async def test_a_sleeping_tenant_is_woken_when_it_is_due() -> None:
    world = await World(idle_s=60).start()
    world.wakes["acme"] = world.clock.now_us() + 3_600 * US
    await world.loader.resolve("acme")
    await advance(world, 65)
    await until(lambda: "acme" not in world.loader._placements)
    world.busy.add("acme")
    await advance(world, 3_536)
    await until(lambda: world.opened == ["acme", "acme"])
    assert await world.loader.residents() == ["acme"]
    await world.stop()


async def test_a_tenant_with_work_or_with_a_wake_up_just_ahead_stays() -> None:
    world = await World(idle_s=60).start()
    world.busy.add("busy")
    await world.loader.resolve("busy")
    await world.loader.resolve("soon")
    for _ in range(30):
        world.wakes["soon"] = world.clock.now_us() + 3 * US
        await advance(world, 10)
    assert sorted(await world.loader.residents()) == ["busy", "soon"]
    await world.stop()


async def test_a_tenant_does_not_sleep_for_less_than_a_process_takes_to_start() -> None:
    world = await World(idle_s=2).start()
    for name, start_s in (("slow", 9.0), ("quick", 0.1)):
        await world.home(name)
        world.slot_of(name).target._start_us = round(start_s * US)
        world.wakes[name] = world.clock.now_us() + 15 * US
    await advance(world, 5)
    await until(lambda: "quick" not in world.loader._placements)
    assert await world.loader.residents() == ["slow"]
    await world.stop()


async def test_a_wake_up_waits_for_a_slot_that_is_just_closing_and_opens_another() -> None:
    world = await World(pool_size=0).start()
    await world.home("acme")
    slot = world.slot_of("acme").target
    gate = asyncio.Event()
    close = world.tills["acme"].close

    async def slowly() -> None:
        await gate.wait()
        await close()

    world.tills["acme"].close = slowly  # type: ignore[method-assign]
    slot._end()
    waking = asyncio.ensure_future(world.loader.wake(["acme"]))
    await asyncio.sleep(0.05)
    assert not waking.done(), "it has a place, and is not awake"
    gate.set()
    assert await waking == ({}, {})
    assert world.opened == ["acme", "acme"]
    await world.stop()


async def test_a_log_that_was_put_back_from_a_copy_does_not_make_its_tenant_deaf() -> None:
    world = await World().start()
    await world.timer.slept([("acme", 7, None), ("acme", 8, world.clock.now_us() + 3_600 * US)])
    await world.home("acme")
    assert world.epochs["acme"] == 9, "above what the timer had heard"
    assert await world.timer.due("acme") == -1
    await world.stop()


async def test_a_call_that_does_not_decode_is_refused_and_its_neighbours_are_answered() -> None:
    world = await World().start()
    peer = await world.home("acme")
    calls = [(1, pack_call(add_call("t", 3))), (2, b"\x80"), (3, b"\xc1"), (4, pack_call(RING))]
    answers = await peer.call("exchange", "acme", "s", calls, [], 0.0)
    outcomes = {number: value for number, _, value in answers}
    assert (outcomes[1], outcomes[4]) == (3, None)
    assert {type(outcomes[2]), type(outcomes[3])} == {InvalidError}
    await world.stop()


async def test_a_caller_who_meets_a_closing_slot_waits_for_the_next_one() -> None:
    world = await World().start()
    first = await world.home("acme")
    assert await first.call("make_room", "acme")
    with pytest.raises(NotServedHere):
        await first.call("exchange", "acme", "s", [(1, pack_call(RING))], [], 0.0)
    second = await world.home("acme", first.name)
    assert second.name != first.name
    assert world.opened == ["acme", "acme"]
    await world.stop()


async def test_a_tenant_whose_process_died_is_opened_again_in_the_restarted_slot() -> None:
    world = await World().start()
    peer = await world.home("acme")
    slot = world.slot_of("acme")
    world.crash(slot)
    resolving = asyncio.ensure_future(world.loader.resolve("acme", peer.name))
    await asyncio.sleep(0.05)
    assert not resolving.done()
    await world.restart(slot)
    assert (await resolving).name == peer.name
    assert world.opened == ["acme", "acme"]
    await world.stop()


async def test_a_restarted_slot_gets_its_tenant_back_though_nobody_calls() -> None:
    world = await World().start()
    await world.home("acme")
    slot = world.slot_of("acme")
    world.crash(slot)
    await world.restart(slot)
    await until(lambda: world.opened == ["acme", "acme"])
    await world.stop()


async def test_a_slot_that_stays_away_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenant_assignment, "GIVE_UP_S", 0.3)
    world = await World().start()
    peer = await world.loader.resolve("acme")
    world.crash(world.slot_of("acme"))
    assert (await world.loader.resolve("acme", peer.name)).name != peer.name
    assert peer.name in world.killed
    await world.stop()


async def test_a_restarted_loader_finds_its_slots_and_opens_nothing_twice() -> None:
    world = await World().start()
    names = ["one", "two", "three"]
    before = {name: (await world.loader.resolve(name)).name for name in names}
    await until(lambda: len(world.loader._pool.workers) == 1)
    blank = world.loader._pool.workers[0].name
    assert world.loader._checking is not None
    world.loader._checking.cancel()
    await world.start_loader()
    assert {name: (await world.loader.resolve(name)).name for name in names} == before
    assert sorted(world.opened) == sorted(names)
    assert [peer.name for peer in world.loader._pool.workers] == [blank]
    await world.stop()


async def test_a_tenant_that_died_together_with_the_loader_is_opened_again() -> None:
    world = await World().start()
    await world.home("acme")
    slot = world.slot_of("acme")
    world.crash(slot)
    assert world.loader._checking is not None
    world.loader._checking.cancel()
    slot.revive(world._slot(slot.name))
    await world.start_loader()
    await advance(world, 3)
    await until(lambda: world.opened == ["acme", "acme"])
    await world.stop()


async def test_a_slot_that_nobody_knows_is_ended() -> None:
    world = await World().start()
    stray = await world.start_slot("stray")
    await world.loader.worker_restarted(stray.name)
    assert "stray" in world.killed
    await world.stop()


async def test_a_tenant_that_cannot_be_opened_says_why_and_is_tried_afresh(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loader_module, "DRAIN_S", 0.01)
    world = await World().start()
    world.corrupt.add("acme")
    for _ in range(2):
        peer = await world.loader.resolve("acme")
        with pytest.raises(Corrupt):
            await peer.call("exchange", "acme", "s", [(1, pack_call(RING))], [], 0.0)
        await until(lambda name=peer.name: name in world.killed)  # type: ignore[misc]
    answer = await world.loader.wake(["acme", "other"])
    assert (list(answer.refused), answer.not_yet) == (["acme"], {})
    assert "damaged" in answer.refused["acme"]
    assert await world.loader.residents() == ["other"]
    world.corrupt.clear()
    peer = await world.loader.resolve("acme")
    await peer.call("exchange", "acme", "s", [(1, pack_call(RING))], [], 0.0)
    await world.stop()


async def test_a_client_may_come_before_the_word_of_the_loader() -> None:
    world = await World().start()
    peer = world.loader._pool.workers[0]
    early = asyncio.ensure_future(
        peer.call("exchange", "acme", "s", [(1, pack_call(add_call("t", 3)))], [], 0.0)
    )
    await asyncio.sleep(0.01)
    await peer.call("assign", "acme")
    assert await early == [(1, True, 3)]
    await world.stop()


async def test_idle_tenants_make_room_for_new_ones_and_busy_ones_do_not() -> None:
    world = await World(residents_max=3).start()
    world.busy.update(["busy-1", "busy-2"])
    for name in ("busy-1", "idle", "busy-2"):
        await world.loader.resolve(name)
    await world.loader.resolve("new")
    assert sorted(await world.loader.residents()) == ["busy-1", "busy-2", "new"]
    world.busy.add("new")
    waiting = asyncio.ensure_future(world.loader.resolve("patient"))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    world.busy.discard("busy-1")
    await waiting
    assert sorted(await world.loader.residents()) == ["busy-2", "new", "patient"]
    await world.stop()


async def test_many_tenants_pass_through_little_room() -> None:
    world = await World(residents_max=4, pool_size=2).start()
    names = [f"tenant-{i}" for i in range(40)]
    await asyncio.gather(*(world.loader.resolve(name) for name in names))
    assert sorted(world.opened) == sorted(names)
    assert len(await world.loader.residents()) <= 4
    assert all([await world.timer.due(name) in (None, -1) for name in names])
    await world.stop()


async def test_a_crowd_of_tenants_is_opened_a_few_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = await World(pool_size=0).start()
    assign, at_once, most = WorkerProcess.assign, 0, 0

    async def counted(slot: WorkerProcess, *args: Any) -> Any:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        try:
            await asyncio.sleep(0.001)
            return await assign(slot, *args)
        finally:
            at_once -= 1

    monkeypatch.setattr(WorkerProcess, "assign", counted)
    names = [f"tenant-{i}" for i in range(80)]
    await asyncio.gather(*(world.loader.resolve(name) for name in names))
    await until(lambda: len(world.opened) == len(names), what="the opening of all")
    assert 1 < most <= STARTS_AT_ONCE_MAX
    await world.stop()


async def test_a_slot_that_cannot_be_placed_holds_up_the_others_only_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dynamic_workflows.actors.placement.loader.STARTS_AT_ONCE_MAX", 1)
    monkeypatch.setattr("dynamic_workflows.actors.placement.loader.TURN_S", 0.05)
    world = await World(pool_size=0).start()
    assign = WorkerProcess.assign

    async def hangs(slot: WorkerProcess, tenant_id: str, *args: Any) -> Any:
        if tenant_id == "nowhere":
            await asyncio.sleep(3600)
        return await assign(slot, tenant_id, *args)

    monkeypatch.setattr(WorkerProcess, "assign", hangs)
    nowhere = asyncio.ensure_future(world.loader.resolve("nowhere"))
    await asyncio.wait_for(world.loader.resolve("other"), 30)
    await until(lambda: "other" in world.opened, what="the other's opening")
    assert not nowhere.done(), "its client would count the seconds as silence"
    nowhere.cancel()


async def test_closing_puts_every_tenant_to_sleep() -> None:
    world = await World().start()
    world.busy.add("busy")
    world.wakes["later"] = world.clock.now_us() + 60 * US
    for name in ("busy", "later"):
        await world.loader.resolve(name)
    await world.loader.close()
    assert (await world.timer.stats()).open == 0
    assert await world.timer.due("later") == world.wakes["later"]
    assert not world.slots
    with pytest.raises(PlatformClosed):
        await world.loader.resolve("busy")
    await world.timer.close()


async def test_a_fenced_tenant_lets_go_and_stays_listed_as_open() -> None:
    world = await World().start()
    peer = await world.home("acme")
    world.tills["acme"].failed = Unavailable("the disk is gone")
    with pytest.raises(NotServedHere):
        await peer.call("exchange", "acme", "s", [(1, pack_call(RING))], [], 0.0)
    await until(lambda: peer.name in world.killed)
    assert await world.timer.due("acme") == -1
    await world.stop()
