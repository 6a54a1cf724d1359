"""Instances with large values do not fill the memory of their tenant when they are at rest."""

from __future__ import annotations

from pathlib import Path

from dynamic_workflows.actors.core.memory_budget import MemoryBudget
from dynamic_workflows.actors.in_process.local_platform import LocalPlatform
from dynamic_workflows.actors.instances.decisions import Key
from dynamic_workflows.eventlog.store.open_store import open_store
from dynamic_workflows.loaders.bundles.bundle import WorkerCode
from dynamic_workflows.loaders.sdk.binding import WorkflowBinding

CODE = """
from dynamic_workflows import WorkflowEntrypoint

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        made = await step.do("make", lambda: "y" * event.payload["made"])
        return [len(event.payload["given"]), len(made)]
"""
MIB = 1024 * 1024


def load(tenant_id: str) -> WorkerCode:
    return WorkerCode("index.py", {"index.py": CODE})


class Held:
    """Instances by what they take: those that run, rest, and wait for a slot."""

    def __init__(self, running: int, resting: dict[str, int], queued: dict[str, int]) -> None:
        self.running = running
        self.resting = resting
        self.queued = queued

    @property
    def loaded_bytes(self) -> int:
        return self.running + sum(self.resting.values()) + sum(self.queued.values())

    def evictable(self) -> list[Key]:
        return [("W", name) for name in self.resting]

    def queued_last(self) -> list[Key]:
        return [("W", name) for name in reversed(self.queued)]

    def evict(self, key: Key) -> None:
        del self.resting[key[1]]

    def put_away(self, key: Key) -> None:
        del self.queued[key[1]]


def test_those_that_rest_longest_are_forgotten_until_half_is_left() -> None:
    budget = MemoryBudget(bytes_max=100)
    held = Held(20, {"old": 60, "small": 0, "new": 20}, {"first": 10, "last": 0})
    assert budget.is_too_much(held)
    budget.relieve(held)
    assert (held.resting, held.queued) == (
        {"small": 0, "new": 20},
        {"first": 10, "last": 0},
    )
    assert not budget.is_too_much(held)


def test_those_that_would_start_last_are_put_away_when_nothing_rests_any_more() -> None:
    budget = MemoryBudget(bytes_max=100)
    held = Held(30, {"one": 10}, {"first": 10, "second": 40, "last": 40})
    budget.relieve(held, but=("W", "last"))
    assert (held.resting, held.queued) == ({}, {"last": 40})


async def test_ended_instances_with_large_values_do_not_pile_up_and_can_still_be_asked(
    tmp_path: Path,
) -> None:
    store = open_store(tmp_path)
    platform = LocalPlatform(load=load, store=store)
    tenant = await platform.tenant("acme")
    tenant._loader.memory_budget = MemoryBudget(bytes_max=4 * MIB)
    binding = WorkflowBinding(platform.calls("acme"))
    made = []
    for _ in range(12):
        params = {"given": "x" * MIB, "made": MIB}
        made.append(await binding.create(params=params))
        await made[-1].result()
    loaded = [one for one in made if tenant.core.is_loaded(("TenantWorkflow", one.id))]
    assert 1 <= len(loaded) <= 2, "of 2 MiB each"
    assert loaded[-1] is made[-1], "the newest stay"
    assert await made[0].result() == [MIB, MIB]
    assert (await made[0].history())[-1].type == "workflow_completed"
    for one in made:
        await one.restart(from_={"name": "make"})  # reads each again
        await one.result()
    loaded = [one for one in made if tenant.core.is_loaded(("TenantWorkflow", one.id))]
    assert 1 <= len(loaded) <= 2
    await platform.close()
    await store.close()
