"""Who follows events is served from the log in pages, and holds little of the tenant's memory."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import dynamic_workflows as dw
from dynamic_workflows.actors.in_process.local_platform import LocalPlatform
from dynamic_workflows.actors.tenant import history_paging, subscriptions
from dynamic_workflows.actors.tenant.subscriptions import Feeds
from dynamic_workflows.eventlog.clock import US
from dynamic_workflows.eventlog.events import Row
from dynamic_workflows.eventlog.store.open_store import open_store
from dynamic_workflows.loaders.protocol.calls import AwaitResult, GetEvents
from dynamic_workflows.loaders.sdk.binding import WorkflowBinding, WorkflowInstance

CODE = """
import asyncio
from dynamic_workflows import LimitExceededError, WorkflowEntrypoint

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        plan = event.payload
        for n in range(plan.get("steps", 0)):
            await step.do("a step", lambda: "x" * plan["size"])
        if "follow" in plan:
            return await step.do("follow", lambda: self.follow(**plan["follow"]))
        if plan.get("waits"):
            await step.wait_for_event("end", type="end")

    async def follow(self, id, times):
        other = await self.env.WORKFLOWS.get(id)
        streams = [other.subscribe() for _ in range(times)]
        seen = [await stream.__anext__() for stream in streams]

        async def wait(stream):
            try:
                async for event in stream:
                    pass
            except LimitExceededError as error:
                return error.limit
        tasks = [asyncio.ensure_future(wait(stream)) for stream in streams]
        done, waiting = await asyncio.wait(tasks, timeout=2, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(0.5)
        limits = [task.result() for task in tasks if task.done()]
        for task in tasks:
            task.cancel()
        return [len(seen), len(limits), sorted(set(limits))]
"""


def load(tenant_id: str) -> dw.WorkerCode:
    return dw.WorkerCode("index.py", {"index.py": CODE})


async def begun(platform: LocalPlatform, **params: Any) -> WorkflowInstance:
    instance = await WorkflowBinding(platform.calls("acme")).create(params=params)
    await platform.settle(until_us=platform.virtual.now_us())
    return instance


async def types_of(instance: WorkflowInstance, cursor: int = 0) -> list[tuple[int, str]]:
    return [(event.seq, event.type) async for event in instance.subscribe(cursor)]


@pytest.mark.parametrize("page", [1, 500, 3_000, 10**9])
@pytest.mark.parametrize("sealed", ["never", "half", "all"])
async def test_pages_of_any_size_give_every_event_once(
    tmp_path: Path, page: int, sealed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_paging, "PAGE_BYTES_MAX", page)
    monkeypatch.setattr(history_paging, "_PAGE_BYTES_MIN", 0)
    monkeypatch.setattr(subscriptions, "FEED_BYTES_MAX", min(page, 2_000))
    store = open_store(tmp_path)
    platform = LocalPlatform(load=load, store=store)
    instance = await begun(platform, steps=6, size=100, waits=True)
    large = await begun(platform, steps=2, size=80_000, waits=True)
    tenant = await platform.tenant("acme")
    if sealed != "never":
        await tenant._log.seal()
    for one in (instance, large):
        await one.send_event("end")
        await one.result()
    if sealed == "all":
        await tenant._log.seal()
    for one in (instance, large):
        expected = [(event.seq, event.type) for event in await one.history()]
        assert await types_of(one) == expected
        assert await types_of(one, expected[3][0]) == expected[4:]
        await one.restart(from_={"name": "a step", "count": 2})
        await one.send_event("end")
        await one.result()
        again = [(event.seq, event.type) for event in await one.history()]
        assert await types_of(one) == again
        whole = [(event.seq, event.type) for event in await one.history(all_runs=True)]
        assert await types_of(one, expected[-1][0]) == [e for e in whole if e[0] > expected[-1][0]]
    await platform.close()
    await store.close()


async def test_a_follower_that_the_feed_has_left_behind_catches_up_from_the_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subscriptions, "FEED_BYTES_MAX", 0)
    platform = LocalPlatform(load=load)
    instance = await begun(platform, waits=True)
    following = asyncio.ensure_future(types_of(instance))
    await platform.settle(until_us=platform.virtual.now_us())
    for n in range(30):
        await instance.send_event("news", "x" * 1_000)
        if n % 7 == 0:
            await platform.settle(until_us=platform.virtual.now_us())
    await instance.send_event("end")
    async with asyncio.timeout(30):
        seen = await following
    assert seen == [(event.seq, event.type) for event in await instance.history()]
    await platform.close()


async def test_a_deletion_reaches_followers_however_little_is_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subscriptions, "FEED_BYTES_MAX", 0)
    platform = LocalPlatform(load=load)
    instance = await begun(platform, waits=True)
    following = asyncio.ensure_future(types_of(instance))
    await platform.settle(until_us=platform.virtual.now_us())
    await instance.delete()
    async with asyncio.timeout(30):
        assert (await following)[-1][1] == "workflow_deleted"
    await platform.close()


def test_feeds_hold_so_many_bytes_and_so_many_instances() -> None:
    feeds = Feeds()
    for n in range(subscriptions.FEEDS_MAX + 50):
        feeds.release(feeds.open(("W", str(n)), last_seq=0, now_us=0))
    assert len(feeds) == subscriptions.FEEDS_MAX
    keys = [("W", str(subscriptions.FEEDS_MAX - n)) for n in range(500)]
    for seq in range(2_000):
        row = Row(type="event_received", workflow="W", instance_id=keys[seq % 500][1], seq=seq + 1)
        row.payload = b"x" * 60_000
        feeds.publish([row])
        assert feeds.bytes <= subscriptions.FEEDS_BYTES_MAX
    feed = feeds.of(keys[0])
    assert feed is not None
    assert feed.bytes <= subscriptions.FEED_BYTES_MAX
    feeds.sweep(10_000 * US)
    assert (len(feeds), feeds.bytes) == (0, 0)


@pytest.mark.parametrize("limit", ["subscriptions_max", "results_waiting_max"])
async def test_calls_that_wait_have_a_number_and_make_room_when_they_end(limit: str) -> None:
    config = dw.PlatformConfig(tenants={"acme": {limit: 3}})  # type: ignore[dict-item]
    platform = LocalPlatform(load=load, config=config)
    instance = await begun(platform, waits=True)
    tenant = await platform.tenant("acme")
    last = (await instance.history())[-1].seq
    which: dict[str, Any] = {"workflow": "TenantWorkflow", "id": instance.id}
    call: Any = AwaitResult(**which)
    if limit == "subscriptions_max":
        call = GetEvents(**which, cursor=last)
    waiting = [asyncio.ensure_future(tenant.call(call)) for _ in range(3)]
    await asyncio.sleep(0.01)
    with pytest.raises(dw.LimitExceededError) as caught:
        await tenant.call(call)
    assert (caught.value.limit, caught.value.retry_after > 0) == (limit, True)
    waiting[0].cancel()
    await asyncio.sleep(0.01)
    waiting[0] = asyncio.ensure_future(tenant.call(call))
    await instance.send_event("end")
    async with asyncio.timeout(30):
        await asyncio.gather(*waiting)
    await platform.close()


async def test_a_tenants_own_subscriptions_are_counted() -> None:
    platform = LocalPlatform(load=load, config=dw.PlatformConfig(subscriptions_max=5))
    followed = await begun(platform, waits=True)
    binding = WorkflowBinding(platform.calls("acme"))
    follower = await binding.create(params={"follow": {"id": followed.id, "times": 8}})
    async with asyncio.timeout(60):
        assert await follower.result() == [8, 3, ["subscriptions_max"]]
    await platform.close()


async def test_a_history_that_is_too_large_for_one_answer_says_how_to_read_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(history_paging, "HISTORY_BYTES_MAX", 300_000)
    platform = LocalPlatform(load=load)
    small = await begun(platform, steps=2, size=100_000)
    large = await begun(platform, steps=4, size=100_000)
    rows = await begun(platform, steps=300, size=1_000)
    assert len(await small.history()) > 4
    for instance in (large, rows):
        with pytest.raises(dw.LimitExceededError, match="subscribe"):
            await instance.history()
        assert (await types_of(instance))[-1][1] == "workflow_completed"
    await platform.close()
