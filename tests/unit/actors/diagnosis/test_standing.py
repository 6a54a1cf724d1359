"""Why an instance is where it is: the files say what the platform says, and nothing is changed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import dynamic_workflows as dw
from dynamic_workflows.actors.claims import new_claim
from dynamic_workflows.actors.diagnosis.stored_explanation import explain_stored
from dynamic_workflows.actors.in_process.local_platform import LocalPlatform
from dynamic_workflows.actors.timers.tenant_entry import TenantEntry
from dynamic_workflows.actors.timers.timer_index import TIMER_STREAM, TimerIndex
from dynamic_workflows.actors.timers.wake_schedule import WakeSchedule
from dynamic_workflows.eventlog.clock import US, VirtualClock
from dynamic_workflows.eventlog.ids import SeededIds
from dynamic_workflows.eventlog.log.event_log import EventLog
from dynamic_workflows.eventlog.store.base import Store
from dynamic_workflows.eventlog.store.open_store import open_store
from dynamic_workflows.loaders.sdk.binding import WorkflowBinding

CODE = """
import asyncio
from dynamic_workflows import WorkflowEntrypoint, NonRetryableError

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        match event.payload["do"]:
            case "wait":
                await step.wait_for_event("approval", type="approved")
            case "sleep":
                await step.sleep("nap", "2 days")
            case "retry":
                await step.do("call", self.fail, config={"retries": {"delay": "1 hour"}})
            case "fail":
                await step.do("call", self.die)
            case "large":
                await step.do("text", lambda: "x" * 100_000)
                await step.sleep("nap", "2 days")
        return event.payload["do"]

    def fail(self):
        raise ValueError("not yet")

    def die(self):
        raise NonRetryableError("never")
"""
KINDS = ("wait", "sleep", "retry", "fail", "large", "return")


def load(tenant_id: str) -> dw.WorkerCode:
    return dw.WorkerCode("index.py", {"index.py": CODE})


def files(root: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in root.rglob("*")}


async def asked(platform: LocalPlatform, store: Store, name: str) -> tuple[Any, Any]:
    """What the platform says, and what the files say."""
    live = await (await WorkflowBinding(platform.calls("acme")).get(name)).why()
    claim = new_claim("ns", is_embedded=True, address=None, now_us=0)
    read = await explain_stored(
        store, "acme", name, "TenantWorkflow", clock=platform.virtual, at_work=claim
    )
    return live, read


@pytest.mark.parametrize("is_sealed", [False, True])
async def test_the_files_say_what_the_platform_says_and_stay_as_they_are(
    tmp_path: Path, is_sealed: bool
) -> None:
    store = open_store(tmp_path)
    platform = LocalPlatform(load=load, store=store)
    flows = WorkflowBinding(platform.calls("acme"))
    for kind in KINDS:
        await flows.create(id=kind, params={"do": kind})
    await (await flows.create(id="paused", params={"do": "wait"})).pause()
    await platform.clock.settle()
    if is_sealed:
        await (await platform.tenant("acme"))._log.seal()
    for name in (*KINDS, "paused"):
        live, _ = await asked(platform, store, name)
        before = files(tmp_path)
        _, read = await asked(platform, store, name)
        assert files(tmp_path) == before
        assert (read.code, read.text) == (live.code, live.text.partition(" (in an isolate")[0])
    await platform.close()


async def test_what_nobody_works_on_and_what_is_overdue_is_said(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    platform = LocalPlatform(load=load, store=store)
    await WorkflowBinding(platform.calls("acme")).create(id="one", params={"do": "sleep"})
    await platform.clock.settle()
    await platform.close()
    platform.virtual.move_to(platform.virtual.now_us() + 3 * 86_400_000_000)
    found = await explain_stored(
        store, "acme", "one", "TenantWorkflow", clock=platform.virtual, at_work=None
    )
    assert found.code == "waiting"
    assert "its sleep in 'nap' was due at" in found.text, "it does not sleep until a past time"
    assert "no platform is at work" in found.text
    assert "overdue: it was due at" in found.text


async def test_what_the_timer_tried_for_a_tenant_that_is_overdue_is_said(tmp_path: Path) -> None:
    store, clock = open_store(tmp_path), VirtualClock()
    platform = LocalPlatform(load=load, store=store)
    await WorkflowBinding(platform.calls("acme")).create(id="one", params={"do": "sleep"})
    await platform.clock.settle()
    await platform.close()
    clock.move_to(platform.virtual.now_us() + 3 * 86_400_000_000)
    claim = new_claim("ns", is_embedded=True, address=None, now_us=0)
    where = (store, "acme", "one", "TenantWorkflow")
    said = (await explain_stored(*where, clock=clock, at_work=claim)).text
    assert "86400 s ago; the platform tries again every 5 s" in said
    log = await EventLog.open(
        store, TIMER_STREAM, tenant_id="", clock=clock, ids=SeededIds(1), config=None
    )
    schedule = WakeSchedule(index := TimerIndex(log))
    slept = TenantEntry(1, clock.now_us() - 86_400_000_000)
    await index.record([("acme", slept)], now_us=clock.now_us())
    for _ in range(2):
        schedule.advance(clock.now_us())
        assert schedule.next_batch(clock.now_us(), 10) == ["acme"]
        schedule.refused("acme", clock.now_us(), "page 7 is damaged")
        clock.move_to(clock.now_us() + 60 * US)
    await log.append([])
    said = (await explain_stored(*where, clock=clock, at_work=claim)).text
    assert "try 2: page 7 is damaged" in said
    await log.close()


async def test_the_log_is_read_while_its_owner_appends(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    platform = LocalPlatform(load=load, store=store)
    flows = WorkflowBinding(platform.calls("acme"))
    await flows.create(id="one", params={"do": "wait"})
    await platform.clock.settle()

    async def append() -> None:
        for number in range(100):
            await flows.create(id=f"n-{number}", params={"do": "return"})

    appending = asyncio.ensure_future(append())
    while not appending.done():
        _, read = await asked(platform, store, "one")
        assert "approved" in read.text
    await appending
    await (await flows.get("one")).send_event("approved")
    await platform.close()


async def test_an_instance_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    clock = LocalPlatform(store=store).virtual
    with pytest.raises(dw.InstanceError) as missing:
        await explain_stored(store, "acme", "one", "TenantWorkflow", clock=clock, at_work=None)
    assert missing.value.code == "instance.not_found"
    assert not files(tmp_path)
