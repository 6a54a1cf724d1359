"""Kept events have a number and a size, for each instance and each tenant, and lie in the log."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from core_world import S, StepApi, World
from hypothesis import given, settings
from hypothesis import strategies as st

import dynamic_workflows as dw
from dynamic_workflows.actors.in_process.local_platform import LocalPlatform
from dynamic_workflows.actors.instances import kept_events
from dynamic_workflows.actors.instances.kept_events import Kept
from dynamic_workflows.actors.instances.row_payloads import SIZED_ABOVE
from dynamic_workflows.eventlog.errors import LimitExceededError
from dynamic_workflows.eventlog.log.lean_rows import SMALL_BYTES_MAX, lean
from dynamic_workflows.eventlog.store.open_store import open_store
from dynamic_workflows.loaders.sdk.binding import WorkflowBinding

KEY = ("Job", "i")
OTHER = ("Job", "other")


async def sleeper(step: StepApi, params: Any) -> Any:
    await step.sleep("long", 3_600_000)
    taken = []
    for _ in range(params or 0):
        taken.append((await step.wait("one", "news"))["payload"])
    return taken


def world_of(**limits: int) -> World:
    world = World(sleeper, **limits)
    for key in (KEY, OTHER):
        world.create(key[1], 2)
    world.pump()
    return world


@pytest.mark.parametrize(
    ("limits", "fits", "limit"),
    [
        ({"events_kept_max": 3}, 3, "events_kept_max"),
        ({"events_kept_bytes_max": 10}, 3, "events_kept_bytes_max"),
        ({"events_kept_tenant_max": 5}, 3, "events_kept_tenant_max"),
        ({"events_kept_tenant_bytes_max": 16}, 3, "events_kept_tenant_bytes_max"),
    ],
)
def test_one_event_too_many_is_refused_and_leaves_no_row(
    limits: dict[str, int], fits: int, limit: str
) -> None:
    world = world_of(**limits)
    for _ in range(2):
        world.send_event(OTHER, "news", "x")  # 3 bytes each
    for _ in range(fits):
        world.send_event(KEY, "news", "x")
    rows = len(world.rows)
    for _ in range(2):
        with pytest.raises(LimitExceededError, match=limit) as caught:
            world.send_event(KEY, "news", "x")
        assert caught.value.code == "limit.exceeded"
        assert caught.value.retry_after > 0
        assert caught.value.limit == limit
    assert len(world.rows) == rows
    world.crash()
    with pytest.raises(LimitExceededError, match=limit):
        world.send_event(KEY, "news", "x")


def test_an_event_for_which_a_wait_is_open_is_not_kept() -> None:
    world = world_of(events_kept_max=0, events_kept_tenant_bytes_max=0)
    world.advance(3_600)
    world.send_event(KEY, "news", "x" * 1_000)
    world.pump()
    world.send_event(KEY, "news", "y")
    world.pump()
    assert world.output(KEY) == ["x" * 1_000, "y"]
    with pytest.raises(LimitExceededError):
        world.send_event(OTHER, "gossip", 1)


def test_taking_one_makes_room_for_one() -> None:
    world = world_of(events_kept_max=2)
    for n in range(2):
        world.send_event(KEY, "news", n)
    world.advance(3_600)
    assert world.output(KEY) == [0, 1]
    assert world.core.state.kept.total == Kept(0, 0)


@pytest.mark.parametrize("end", ["terminate", "delete", "restart", "restart from", "complete"])
def test_the_end_of_a_run_lets_go_of_its_events(end: str) -> None:
    world = world_of()
    for _ in range(5):
        world.send_event(KEY, "gossip", "x")
    world.send_event(OTHER, "gossip", "x")
    assert world.core.state.kept.total == Kept(6, 18)
    if end == "terminate":
        world.command("terminate", KEY, rollback=False)
    elif end == "delete":
        world.take(world.core.delete(KEY, now_us=world.now))
    elif end == "complete":
        for n in range(2):
            world.send_event(KEY, "news", n)
        world.advance(3_600)
        assert world.status(KEY) == "complete"
    else:
        target = {"name": "long", "type": "sleep"} if end == "restart from" else None
        world.command("restart", KEY, from_=target)
    assert world.core.state.kept.total == Kept(1, 3)
    world.crash()
    assert world.core.state.kept.total == Kept(1, 3)


def test_a_command_that_comes_again_is_no_second_event() -> None:
    world = world_of(events_kept_max=1)
    for _ in range(3):
        world.command("send_event", KEY, "news", b"1", token="t")
    assert world.core.state.kept.total.number == 1


def test_events_whose_payloads_are_not_in_memory_are_read_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kept_events, "HELD_BYTES_MAX", 0)
    world = world_of()
    for n in range(2):
        world.send_event(KEY, "news", n)
    assert world.core.state.kept.held_bytes == 0
    world.crash()
    world.advance(3_600)
    assert world.output(KEY) == [0, 1]


def test_a_wait_does_not_time_out_while_its_event_is_being_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kept_events, "HELD_BYTES_MAX", 0)

    async def program(step: StepApi, params: Any) -> Any:
        await step.sleep("nap", 1_000)
        return (await step.wait("one", "news", 2_000))["payload"]

    world = World(program)
    world.create()
    world.pump()
    world.send_event(KEY, "news", "here")
    world.now += S
    while world.start_runnable() or world.deliver() or world.advance_to_next():
        if world.now > world.rows[0].ts + 60 * S:
            break
    assert world.reads, "nobody has read it in a minute"
    assert world.core.audit() == []
    world.pump()
    assert world.output(KEY) == "here"


def test_a_crash_while_an_event_is_being_read_wakes_its_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kept_events, "HELD_BYTES_MAX", 0)
    world = world_of()
    world.send_event(KEY, "news", 1)
    world.now += 3_600 * S
    world.take(world.core.due(world.now))
    while world.start_runnable() or world.deliver():
        pass
    assert world.reads
    world.crash()
    world.pump()
    assert [row.type for row in world.history(KEY)][-1] != "wait_started"
    world.send_event(KEY, "news", 2)
    world.pump()
    assert world.output(KEY) == [1, 2]


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from(["send", "other", "take", "crash", "pause", "read", "restart"])),
    st.integers(0, 400),
)
def test_counts_are_a_fold_and_nothing_is_lost_or_given_twice(ops: list[str], held: int) -> None:
    most, kept_events.HELD_BYTES_MAX = kept_events.HELD_BYTES_MAX, held
    try:
        check_story(ops)
    finally:
        kept_events.HELD_BYTES_MAX = most


def check_story(ops: list[str]) -> None:
    async def program(step: StepApi, params: Any) -> Any:
        taken = []
        while True:
            await step.sleep("nap", 1_000)
            taken.append((await step.wait("w", "news"))["payload"])
            if taken[-1] == "end":
                return taken

    world = World(program)
    world.create()
    sent: list[Any] = []
    for n, op in enumerate(ops):
        if op == "send":
            world.send_event(KEY, "news", n)
            sent.append(n)
        elif op == "other":
            world.send_event(KEY, "gossip", n)
        elif op == "take":
            world.now += 2 * S
            world.take(world.core.due(world.now))
            world.start_runnable()
            world.deliver()
        elif op == "read":
            world.read()
        elif op == "crash":
            world.crash()
        elif op == "pause":
            world.command("pause", KEY)
            world.pump()
            world.command("resume", KEY)
        elif op == "restart":
            world.command("restart", KEY, from_=None)
            sent = []
        replayed = world.replayed()
        assert replayed.state.kept.total == world.core.state.kept.total
        summary = world.core.state.index.get(KEY)
        assert summary is not None
        world.load(KEY)
        assert summary.instance is not None
        events = [one for kept in summary.instance.events.values() for one in kept]
        assert summary.kept == Kept(len(events), sum(one.size for one in events))
    world.send_event(KEY, "news", "end")
    world.advance(3 * (len(sent) + 2))
    assert world.output(KEY) == [*sent, "end"]


def test_a_lean_row_keeps_the_size_and_nothing_else_of_a_large_event() -> None:
    world = world_of()
    for size in (10, SMALL_BYTES_MAX, SIZED_ABOVE, SIZED_ABOVE * 2):
        world.send_event(KEY, "news", "x" * size)
    rows = [row for row in world.history(KEY) if row.type == "event_received"]
    thin = [lean(row) for row in rows]
    assert thin[0] is rows[0]
    for row, one in zip(rows[1:], thin[1:], strict=True):
        payload = json.loads(row.payload or b"")["payload"]
        body = json.loads(one.payload or b"")
        assert body == {"event_type": "news", "payload": None, "size": len(payload) + 2}
        assert msgspec.structs.replace(one, payload=row.payload) == row
    kept = world.core.state.index.get(KEY)
    world.core.state.resting[KEY] = kept  # type: ignore[assignment]
    world.core.evict(KEY)
    lean_rows = [lean(row) for row in world.history(KEY)]
    assert world.core.load(KEY, lean_rows)
    assert world.core.facts()[KEY] == world.replayed().facts()[KEY]


# --- with a log on disk ---------------------------------------------------------------------------

CODE = """
from dynamic_workflows import LimitExceededError, WorkflowEntrypoint

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        if isinstance(event.payload, dict):
            return await step.do("flood", lambda: self.flood(**event.payload))
        await step.sleep("nap", "1 hour")
        taken = []
        for _ in range(event.payload):
            got = await step.wait_for_event("one", type="news")
            taken.append([got.payload[:3], len(got.payload)])
        return taken

    async def flood(self, to, size):
        other = await self.env.WORKFLOWS.get(to)
        sent = 0
        try:
            while True:
                await other.send_event("news", "x" * size)
                sent += 1
        except LimitExceededError as error:
            return [sent, error.code, error.limit, error.retry_after > 0]
"""


def load(tenant_id: str) -> dw.WorkerCode:
    return dw.WorkerCode("index.py", {"index.py": CODE})


async def crashed(platform: LocalPlatform) -> None:
    await platform.crash("acme")
    await platform.clock.settle()


@pytest.mark.parametrize("sealed", [False, True])
async def test_kept_events_of_every_size_come_back_from_the_log(
    tmp_path: Path, sealed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_events, "HELD_BYTES_MAX", 1_000)
    store = open_store(tmp_path)
    platform = LocalPlatform(load=load, store=store)
    binding = WorkflowBinding(platform.calls("acme"))
    sizes = [10, 5_000, 40_000, 70_000, 300_000, 1, 3_000_000, 66_000]
    instance = await binding.create(params=len(sizes))
    await platform.clock.settle()
    for n, size in enumerate(sizes):
        await instance.send_event("news", str(n).ljust(size, "x"))
    tenant = await platform.tenant("acme")
    assert tenant.core.state.kept.total == Kept(len(sizes), sum(max(size, 1) + 2 for size in sizes))
    if sealed:
        await tenant._log.seal()
    await crashed(platform)
    tenant = await platform.tenant("acme")
    assert tenant.core.state.kept.held_bytes <= 1_000
    await platform.clock.advance("1 hour")
    async with asyncio.timeout(60):
        got = await instance.result()
    assert got == [[str(n).ljust(size, "x")[:3], size] for n, size in enumerate(sizes)]
    assert tenant.core.state.kept.total == Kept(0, 0)
    await platform.close()
    await store.close()


async def test_a_tenants_own_code_gets_the_limit_as_its_own_class() -> None:
    platform = LocalPlatform(load=load, config=dw.PlatformConfig(events_kept_bytes_max=50_000))
    binding = WorkflowBinding(platform.calls("acme"))
    waiting = await binding.create(params=1)
    flooder = await binding.create(params={"to": waiting.id, "size": 4_998})
    assert await flooder.result() == [10, "limit.exceeded", "events_kept_bytes_max", True]
    await waiting.terminate()
    tenant = await platform.tenant("acme")
    assert tenant.core.state.kept.total == Kept(0, 0)
    await platform.close()


async def test_a_driver_gets_the_limit_as_its_own_class() -> None:
    config = dw.PlatformConfig(tenants={"acme": {"events_kept_max": 2}})  # type: ignore[dict-item]
    platform = LocalPlatform(load=load, config=config)
    for tenant_id, fits in (("other", 5), ("acme", 2)):
        binding = WorkflowBinding(platform.calls(tenant_id))
        instance = await binding.create(params=1)
        for _ in range(fits):
            await instance.send_event("news", "x")
    with pytest.raises(dw.LimitExceededError) as caught:
        await instance.send_event("news", "x")
    assert (caught.value.code, caught.value.limit) == ("limit.exceeded", "events_kept_max")
    assert caught.value.retry_after > 0
    await platform.close()
