"""Calls of entrypoints have a deadline, and attempts that timed out end, or cost their isolate."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from real_tenants import Tail, real_tenant, until

import dynamic_workflows as dw

CODE = """
import asyncio, os, time
from dynamic_workflows import WorkerEntrypoint, WorkflowEntrypoint

ended = []

class Default(WorkerEntrypoint):
    async def never(self):
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("never")

    async def stubborn(self):
        while True:
            try:
                await asyncio.sleep(0.01)
            except BaseException:
                pass

    async def deaf(self):
        asyncio.get_running_loop().remove_reader(3)
        await asyncio.Event().wait()

    async def leave(self):
        async def go_on():
            try:
                while True:
                    await self.env.SVC.ping()
                    await asyncio.sleep(0.01)
            finally:
                ended.append("leave")
        asyncio.create_task(go_on())
        return os.getpid()

    async def slow(self):
        await asyncio.sleep(0.3)
        return os.getpid()

    async def ended(self):
        return ended

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        if event.payload == "wait":
            await step.do("begun", lambda: None)
            return (await step.wait_for_event("go", "go")).payload
        config = {"timeout": 2000, "retries": {"limit": 1, "delay": 0}}
        async def again():
            while True:
                try:
                    await asyncio.sleep(0.01)
                except BaseException:
                    pass
        await step.do("again and again", again, config=config)
"""
QUICK: dict[str, Any] = {"drop_grace_seconds": 0.2, "turn_wall_seconds": 1.0}


class Pings(dw.Service):
    """Counts its calls."""

    counts: Counter[str] = Counter()

    async def ping(self) -> None:
        self.counts["ping"] += 1


def code(**more: Any) -> dw.WorkerCode:
    return dw.WorkerCode("index.py", {"index.py": CODE}, env={"SVC": Pings()}, **more)


async def test_a_call_without_an_answer_fails_at_its_deadline_and_is_cancelled() -> None:
    async with real_tenant(code(), call_timeout_seconds=3) as tenant:
        stub = tenant.entrypoint()
        with pytest.raises(dw.LimitExceededError, match=r"Default.never had no answer after 3 s"):
            await stub.never()
        while await stub.ended() != ["never"]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert not tenant.isolates.counts["ended_stubborn"]


async def test_a_call_that_nobody_waits_for_any_more_is_cancelled() -> None:
    async with real_tenant(code()) as tenant:
        stub = tenant.entrypoint()
        await stub.ended()
        call = asyncio.ensure_future(stub.never())
        (host,) = tenant.shell._hosts
        await until(lambda: host.entrypoint_calls.waiting, "the call to begin")
        call.cancel()
        while await stub.ended() != ["never"]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("method", ["stubborn", "deaf"])
async def test_a_call_that_will_not_end_costs_its_isolate_and_no_instance(method: str) -> None:
    tail = Tail()
    async with real_tenant(code(tails=(tail,)), call_timeout_seconds=3, **QUICK) as tenant:
        instance = await tenant.workflows.create(params="wait")
        async for event in instance.subscribe():
            if event.type == "step_completed":
                break
        with pytest.raises(dw.LimitExceededError, match="had no answer after 3 s"):
            await getattr(tenant.entrypoint(), method)()
        await until(lambda: tail.texts(kind="exit"), "the end of the isolate")
        (text,) = tail.texts(kind="exit")
        assert f"the code of the call of Default.{method} goes on" in text
        assert tenant.isolates.counts["ended_stubborn"] == 1
        await instance.send_event("go", "on")
        assert await instance.result(timeout=60) == "on"


async def test_what_a_call_leaves_behind_may_call_until_its_deadline() -> None:
    Pings.counts.clear()
    async with real_tenant(code(), call_timeout_seconds=3) as tenant:
        stub = tenant.entrypoint()
        pid = await stub.leave()
        await until(lambda: Pings.counts["ping"] > 3, "calls after the answer")
        while await stub.ended() != ["leave"]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        pings = Pings.counts["ping"]
        assert await stub.slow() == pid
        assert Pings.counts["ping"] == pings


async def test_an_attempt_that_timed_out_and_goes_on_costs_its_isolate_and_a_retry() -> None:
    tail = Tail()
    async with real_tenant(code(tails=(tail,)), **QUICK) as tenant:
        waiting = await tenant.workflows.create(params="wait")
        async for event in waiting.subscribe():
            if event.type == "step_completed":
                break
        instance = await tenant.workflows.create(id="slow", params="time out")
        with pytest.raises(dw.WorkflowFailedError) as caught:
            await instance.result(timeout=60)
        reason = "the code of attempt 1 of a step goes on 0.2 s after it timed out (at index.py:"
        assert reason in caught.value.message
        assert 'in step "again and again"' in caught.value.message
        assert reason in tail.texts(kind="exit", instance_id="slow")[0]
        await waiting.send_event("go", "on")
        assert await waiting.result(timeout=60) == "on"


UNLOADED = """
import sys
sys.modules["dynamic_workflows.loaders.guest.quiescence"].Pulse._beat = lambda self: None
"""


async def test_code_that_is_never_loaded_is_given_up_with_the_reason() -> None:
    async with real_tenant({"index.py": UNLOADED}, call_timeout_seconds=0.5) as tenant:
        with pytest.raises(dw.CodeError, match=r"the code was not loaded after 0.5 s"):
            await tenant.workflows.create()
        await until(lambda: tenant.isolates.counts["ended_unanswered"], "the end of the isolate")
