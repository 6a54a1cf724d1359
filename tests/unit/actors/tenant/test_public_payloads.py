"""What callers are shown of events: what happened, in public words, and no internals."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any

import dynamic_workflows as dw
from dynamic_workflows import testing
from dynamic_workflows.actors.instances.row_payloads import BODIES
from dynamic_workflows.actors.tenant.public_payloads import _FACTS, PUBLIC
from dynamic_workflows.eventlog.events import INSTANCE_TYPES

CODE = """
from dynamic_workflows import WorkflowEntrypoint, WorkflowTimeoutError

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        await step.do("one", lambda: b"x" * 100_000, rollback=self.undo,
                      rollback_config={"retries": {"limit": 1, "delay": 0}})
        await step.sleep("nap", "1 minute")
        got = await step.wait_for_event("ask", type="yes", timeout="1 hour")
        try:
            await step.wait_for_event("ask", type="no", timeout="1 second")
        except WorkflowTimeoutError:
            pass
        await step.do("hide", lambda: "s3cret", config={"sensitive": "output"})
        await step.do("two", self.fail, config={"retries": {"limit": 1, "delay": "1 second"}})

    def fail(self):
        raise ValueError("no")

    def undo(self, past):
        if past.ctx.attempt == 1:
            raise OSError("stuck")
"""
INTERNAL = {"token", "pin", "at", "until_us", "shift_us", "retry_at_us", "received_us", "size"}


def load(tenant_id: str) -> dw.WorkerCode:
    return dw.WorkerCode("index.py", {"index.py": CODE})


def test_every_public_type_has_a_list_of_keys_and_a_way_to_show_them() -> None:
    assert set(PUBLIC) == INSTANCE_TYPES
    assert not {key for keys in PUBLIC.values() for key in keys} & INTERNAL
    for name, keys in PUBLIC.items():
        assert not keys or BODIES[name] in _FACTS, name


async def lead_a_life(platform: Any) -> Any:
    """An instance to which nearly everything happens."""
    instance = await platform.tenant("acme").workflows.create(
        id="one", params={"token": 1}, retention={"success": "1 day"}, pin="latest"
    )
    for _ in range(2):
        await until(platform, instance, "waiting")
        await instance.pause()
        await instance.resume()
        await platform.clock.advance("2 minutes")
        await instance.send_event("yes", {"until_us": 2})
        await platform.clock.advance("10 minutes")
        await until(platform, instance, "errored")
        await instance.restart(from_={"name": "nap", "type": "sleep"})
    await instance.terminate(rollback=True)
    await until(platform, instance, "terminated")
    return instance


async def until(platform: Any, instance: Any, status: str) -> None:
    async with asyncio.timeout(60):
        while (await instance.status()).status != status:
            await platform.clock.advance("1 second")


async def test_history_and_subscribe_show_the_listed_keys_and_no_others() -> None:
    async with testing.connect(load=load) as platform:
        instance = await lead_a_life(platform)
        events = await instance.history(all_runs=True)
        followed = [event async for event in instance.subscribe()]
    seen: dict[str, set[str]] = {}
    for event in [*events, *followed]:
        seen.setdefault(event.type, set()).update(event.payload)
    for name, keys in seen.items():
        assert keys <= set(PUBLIC[name]), name
    for name in ("workflow_queued", "sleep_started", "wait_started", "wait_completed"):
        assert seen[name] >= set(PUBLIC[name]) - {"schedule", "from"}, name
    assert len(seen) > 20
    assert "s3cret" not in repr(events)


async def test_times_are_datetimes_and_values_are_as_they_were_given() -> None:
    async with testing.connect(load=load) as platform:
        instance = await lead_a_life(platform)
        first = {event.type: event for event in reversed(await instance.history(all_runs=True))}
    assert first["workflow_queued"].payload["params"] == {"token": 1}
    assert first["workflow_queued"].payload["retention"] == {"success": timedelta(days=1)}
    assert first["step_completed"].payload["output"] == b"x" * 100_000
    nap = first["sleep_started"]
    assert nap.payload["until"] == nap.ts + timedelta(minutes=1)
    assert first["event_received"].payload == {"event_type": "yes", "payload": {"until_us": 2}}
    taken = first["wait_completed"].payload
    assert isinstance(taken["received_at"], datetime)
    assert taken["payload"] == {"until_us": 2}
    failed = first["attempt_errored"].payload
    assert failed["error"] == {"name": "ValueError", "message": "no"}
    assert failed["retry_delay_ms"] == 1_000


async def test_a_parked_instance_is_told_to_its_followers_who_hear_of_its_resumption_too() -> None:
    async with testing.connect(load=load) as platform:
        instance = await platform.tenant("acme").workflows.create(id="one")
        stream = instance.subscribe(filter={"workflow_parked", "workflow_resumed", "step_errored"})
        tenant = await platform.clock._platform.tenant("acme")
        now_us = platform.clock._platform.virtual.now_us()
        key = ("TenantWorkflow", "one")
        await tenant._commits.commit(
            tenant.core.park(key, "isolate.died", "it died", now_us=now_us)
        )
        parked = await anext(stream)
        assert parked.payload == {"code": "isolate.died", "message": "it died"}
        await instance.resume()
        assert (await anext(stream)).type == "workflow_resumed"
        await instance.terminate()
        assert [event async for event in stream] == []
