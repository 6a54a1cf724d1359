"""The life of a tenant: no order of messages, loss or death makes a wake-up disappear."""

from __future__ import annotations

import random
from typing import Any

import life_explorer
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wake_accidents import wrong_of

from dynamic_workflows.actors.placement import loader, worker_process, worker_state
from dynamic_workflows.actors.placement.worker_state import WorkerState
from dynamic_workflows.actors.timers import wake_schedule, wake_service
from dynamic_workflows.actors.timers.tenant_entry import OPEN, TenantEntry
from dynamic_workflows.eventlog.clock import US

ENTRIES = st.builds(TenantEntry, st.integers(1, 4), st.sampled_from([OPEN, None, 5, 9]))


def newest(said: list[TenantEntry]) -> TenantEntry | None:
    entry = None
    for one in said:
        entry = one if one.is_newer_than(entry) else entry
    return entry


@given(st.lists(ENTRIES, max_size=6), st.randoms())
def test_an_entry_is_the_same_in_whatever_order_it_was_told_and_however_often(
    said: list[TenantEntry], rng: random.Random
) -> None:
    # An owner says one due time, and no other later.
    said = list({(e.epoch, e.is_open): e for e in said}.values())
    shuffled = said + rng.choices(said, k=3) if said else []
    rng.shuffle(shuffled)
    assert newest(shuffled) == newest(said)


def test_what_an_older_owner_said_late_changes_nothing() -> None:
    assert not TenantEntry(3, 1_000).is_newer_than(TenantEntry(4, OPEN))
    assert not TenantEntry(4, OPEN).is_newer_than(TenantEntry(4, None)), "said twice"
    assert TenantEntry(4, 1_000).is_newer_than(TenantEntry(4, OPEN))
    assert TenantEntry(5, OPEN).is_newer_than(TenantEntry(4, None))


def test_a_tenant_that_closes_longer_than_it_may_sleep_is_woken() -> None:
    story = life_explorer.run(())
    assert not story.wrong
    assert life_explorer.CLOSING_S > life_explorer.NAP_S - life_explorer.IDLE_S


def test_one_accident_at_any_moment_loses_no_wake_up() -> None:
    assert wrong_of(1) == []


@pytest.mark.parametrize("more", [{"naps": 1}, {"naps": 1, "has_other": True, "pool_size": 1}])
def test_one_accident_neither_loses_a_wake_up_nor_mixes_tenants_where_slots_are_used_again(
    more: dict[str, Any],
) -> None:
    assert wrong_of(1, tenants_max=9, **more) == []


def test_a_slot_that_is_used_again_takes_all_naps_without_another() -> None:
    started: list[str] = []

    def starts(options: list[str]) -> list[str]:
        return [what for what in options if what.startswith("kill worker")]

    for options in life_explorer.run((), tenants_max=9).options:
        started += starts(options)
    assert len(set(started)) == 1


def test_a_slot_that_forgets_its_generation_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: what comes late or twice counts, and a slot gets into two places."""
    released = loader.Loader.released

    async def trusting(
        self: loader.Loader, name: str, tenant_id: str | None, generation: int | None = None
    ) -> None:
        worker = await self._launcher.find(name)
        if generation is not None and worker is not None:
            self._pool.give_back(worker, generation)
        await released(self, name, tenant_id, generation)

    monkeypatch.setattr(loader.Loader, "released", trusting)
    assert wrong_of(1, naps=1, tenants_max=9)


def test_some_accidents_together_lose_no_wake_up() -> None:
    rng = random.Random(80)
    plain = life_explorer.run(())
    for _ in range(40):
        exceptions: list[tuple[int, str]] = []
        story = plain
        for _ in range(rng.randint(2, 5)):
            first = exceptions[-1][0] + 1 if exceptions else 0
            if first >= len(story.options):
                break
            step = rng.randrange(first, len(story.options))
            exceptions.append((step, rng.choice(story.options[step])))
            story = life_explorer.run(exceptions)
            assert not story.wrong, exceptions


def test_a_call_that_is_answered_before_an_older_one_is_answered_all_the_same() -> None:
    """A slot dies under the first caller; a second one calls just then, and is quicker."""
    plain = life_explorer.run((), naps=1)
    for step, before in enumerate(plain.options[:-1]):
        for kill in (what for what in before if what.startswith("kill worker")):
            story = life_explorer.run([(step, "client"), (step + 1, kill)], naps=1)
            assert not story.wrong, (step, kill)


def test_a_call_that_is_never_answered_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: slots serve the first call, and forget every other."""
    asked: list[str] = []
    exchange = worker_process.WorkerProcess.exchange

    async def forgetful(self: worker_process.WorkerProcess, *args: Any) -> Any:
        asked.append("a call")
        return await exchange(self, *args) if len(asked) == 1 else []

    monkeypatch.setattr(worker_process.WorkerProcess, "exchange", forgetful)
    assert not life_explorer.run((), naps=1).wrong
    asked.clear()
    assert "1 calls without an answer" in life_explorer.run([(16, "client")], naps=1).wrong[0]


def test_a_wake_up_that_is_over_when_somebody_was_told_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The fault that the protocol was mended for: planted again, and found at once."""

    def forget(schedule: wake_schedule.WakeSchedule, name: str, now_us: int) -> None:
        schedule._tries.pop(name, None)
        schedule._heap = [item for item in schedule._heap if item[1] != name]

    async def trusting(self: loader.Loader, tenant_id: str) -> None:
        if tenant_id not in self._placements:
            self._new_placement(tenant_id, is_wanted=False)

    monkeypatch.setattr(wake_schedule.WakeSchedule, "reported_open", forget)
    monkeypatch.setattr(wake_schedule, "HORIZON_US", 600 * US)
    monkeypatch.setattr(loader.Loader, "_wake", trusting)
    assert "naps are left" in life_explorer.run(()).wrong[0]


def test_an_owner_that_is_not_listed_when_it_serves_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Planted: whatever comes last counts, whoever said it."""
    monkeypatch.setattr(TenantEntry, "is_newer_than", lambda self, other: True)
    assert wrong_of(1)


def test_every_state_of_a_slot_has_a_way_to_its_end() -> None:
    for state in WorkerState:
        ahead = {state}
        for _ in WorkerState:
            ahead |= {to for (before, _), to in worker_state.MOVES.items() if before in ahead}
        assert WorkerState.ENDED in ahead
    with pytest.raises(KeyError):
        worker_state.after(WorkerState.ENDED, "assign")


def test_the_loader_answers_well_before_the_timer_gives_it_up() -> None:
    assert loader.WAKE_S * 2 <= wake_service.ANSWER_S < wake_schedule.IN_FLIGHT_S
