"""The timer's index and its wake-ups, over a real log, in virtual time."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from timer_bench import Bench

from dynamic_workflows.actors.timers import timer_index
from dynamic_workflows.actors.timers.wake_service import (
    BATCH_MAX,
    BATCHES_IN_FLIGHT_MAX,
)
from dynamic_workflows.eventlog.errors import Fenced


async def test_a_sleeping_tenant_is_woken_when_it_is_due_and_not_before() -> None:
    bench = Bench()
    timer = await bench.start()
    await bench.waker.slept([("acme", bench.at(60)), ("later", bench.at(3600)), ("never", None)])
    await bench.advance(59.9)
    assert bench.waker.woken == []
    await bench.advance(0.1)
    assert bench.waker.woken == ["acme"]
    await bench.advance(3_600)
    assert bench.waker.woken == ["acme", "later"]
    assert (await timer.stats()).late_ms_max == 0


async def test_the_newest_due_time_of_a_tenant_counts() -> None:
    bench = Bench()
    await bench.start()
    await bench.waker.slept([("acme", bench.at(10))])
    await bench.waker.opened(["acme"])
    bench.waker.alive.add("acme")
    await bench.waker.slept([("acme", bench.at(100))])
    bench.waker.alive.discard("acme")
    await bench.advance(99)
    assert bench.waker.woken == []
    await bench.advance(1)
    assert bench.waker.woken == ["acme"]


async def test_due_times_survive_the_death_of_the_timer() -> None:
    bench = Bench()
    timer = await bench.start()
    await bench.waker.slept([("acme", bench.at(60)), ("past", bench.at(5))])
    await timer.close()
    bench.clock.move_to(bench.at(30))
    await bench.start()
    await bench.advance(0)
    assert bench.waker.woken == ["past"], "what came due meanwhile is woken at once"
    await bench.advance(30)
    assert bench.waker.woken == ["past", "acme"]


async def test_tenants_that_stopped_without_going_to_sleep_are_opened_again() -> None:
    bench = Bench()
    await bench.start()
    await bench.waker.opened(["one", "two", "three"])
    await bench.waker.slept([("two", None)])
    await bench.restart()
    await bench.settle()
    assert sorted(bench.waker.woken) == ["one", "three"]


async def test_a_tenant_whose_actor_vanishes_is_opened_again() -> None:
    bench = Bench()
    await bench.start()
    await bench.waker.opened(["acme", "other"])
    bench.waker.alive.update(["acme", "other"])
    await bench.advance(10)
    assert bench.waker.woken == []
    bench.waker.alive.discard("acme")
    await bench.advance(3)
    assert bench.waker.woken == ["acme"]


async def test_a_tenant_that_cannot_be_opened_is_tried_again_and_not_forgotten() -> None:
    bench = Bench()
    await bench.start()
    bench.waker.failing.add("acme")
    await bench.waker.slept([("acme", bench.at(1)), ("other", bench.at(1))])
    await bench.advance(600)
    assert bench.waker.woken == ["other"]
    tries = len(bench.waker.batches)
    assert 5 < tries < 25, "with growing rests"
    bench.waker.failing.clear()
    await bench.advance(61)
    assert bench.waker.woken == ["other", "acme"]


async def test_wake_ups_wait_for_a_loader_that_is_away() -> None:
    bench = Bench()
    await bench.start()
    bench.waker.is_lost = True
    await bench.waker.slept([("acme", bench.at(1))])
    await bench.waker.opened(["open"])
    await bench.advance(30)
    assert bench.waker.woken == []
    bench.waker.is_lost = False
    await bench.advance(61)
    assert sorted(bench.waker.woken) == ["acme", "open"]


async def test_a_storm_of_wake_ups_goes_out_in_a_few_batches_at_a_time() -> None:
    bench = Bench()
    await bench.start()
    names = [f"tenant-{i}" for i in range(3_000)]
    await bench.waker.slept([(name, bench.at(60)) for name in names])
    await bench.advance(60)
    assert sorted(bench.waker.woken) == sorted(names)
    assert max(bench.waker.batches) <= BATCH_MAX
    assert len(bench.waker.batches) == len(names) / BATCH_MAX
    assert bench.waker.in_flight_max <= BATCHES_IN_FLIGHT_MAX


async def test_a_timer_whose_log_was_taken_over_wakes_nobody() -> None:
    old, new = Bench(), Bench()
    timer = await old.start()
    await old.waker.slept([("acme", old.at(60))])
    new.store, new.clock, new.waker.epochs = old.store, old.clock, old.waker.epochs
    await new.start()
    with pytest.raises(Fenced):
        await timer.opened([("other", 1)])
    await old.advance(0)
    await new.advance(61)
    assert new.waker.woken == ["acme"]
    assert old.waker.woken == []
    await timer.close()
    await new.timer.close()


ACTION = st.tuples(
    st.sampled_from(["opened", "slept", "slept", "never", "restart"]),
    st.sampled_from(["a", "b", "c"]),
    st.integers(1, 1_000),
)


async def test_opening_reads_a_checkpoint_and_the_rows_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(timer_index, "CHECKPOINT_ROWS", 100)
    bench = Bench()
    timer = await bench.start()
    bench.waker.is_lost = True
    for number in range(260):
        await bench.waker.slept([(f"tenant-{number % 20}", number)])
    await bench.waker.opened(["open"])
    expected = {f"tenant-{number % 20}": number for number in range(240, 260)}
    keys = [entry.key for entry in await bench.store.list("timers/0/index/")]
    assert len(keys) == 2

    timer = await bench.restart()
    assert timer._index.due == expected
    assert timer._index.open == {"open"}
    await timer.close()

    await bench.store.put(keys[-1], b"damaged")
    assert (await bench.start())._index.due == expected, "the one before, and more rows"
    await bench.timer.close()
    for key in keys:
        await bench.store.delete(key)
    assert (await bench.start())._index.due == expected, "the rows alone"
    await bench.timer.close()


async def test_due_times_beyond_the_horizon_are_met_too() -> None:
    bench = Bench()
    timer = await bench.start()
    await bench.waker.slept([("far", bench.at(7_200)), ("near", bench.at(700))])
    assert timer._schedule._heap == [], "nothing of it is near"
    await bench.advance(699)
    assert bench.waker.woken == []
    await bench.advance(2)
    assert bench.waker.woken == ["near"]
    bench.waker.alive.clear()
    await bench.waker.slept([("near", None)])
    await bench.advance(7_200 - 701 - 1)
    assert bench.waker.woken == ["near"]
    await bench.advance(1)
    assert bench.waker.woken == ["near", "far"]


@given(st.lists(ACTION, max_size=30))
@settings(max_examples=60)
def test_the_index_is_what_was_acknowledged_whatever_restarts(
    actions: list[tuple[str, str, int]],
) -> None:
    async def run() -> None:
        bench = Bench()
        timer = await bench.start()
        timer_index.CHECKPOINT_ROWS = 5
        bench.waker.is_lost = True  # this is about the index: nobody is woken
        expected: dict[str, int] = {}
        for action, name, due_us in actions:
            if action == "opened":
                await bench.waker.opened([name])
                expected[name] = -1
            elif action == "slept":
                await bench.waker.slept([(name, due_us)])
                expected[name] = due_us
            elif action == "never":
                await bench.waker.slept([(name, None)])
                expected.pop(name, None)
            else:
                timer = await bench.restart()
            assert {n: await timer.due(n) for n in "abc"} == {n: expected.get(n) for n in "abc"}
        await timer.close()

    kept = timer_index.CHECKPOINT_ROWS
    try:
        asyncio.run(run())
    finally:
        timer_index.CHECKPOINT_ROWS = kept
