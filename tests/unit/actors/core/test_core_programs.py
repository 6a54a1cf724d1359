"""Random programs as real tenant code on the real guest: a crash at every step changes nothing.

The tenant's code interprets a program that it gets as params: steps that fail a few times, sleeps,
waits that are answered and waits that time out, and branches in parallel.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dynamic_workflows as dw
from dynamic_workflows import testing

Op = list[Any]

SOURCE = """
import asyncio
from dynamic_workflows import NonRetryableError, WorkflowEntrypoint, WorkflowTimeoutError


class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        return await block(step, event.payload, "x")


async def block(step, ops, path):
    results = []
    for index, op in enumerate(ops):
        try:
            results.append(await perform(step, op, f"{path}{index}"))
        except (ValueError, NonRetryableError, WorkflowTimeoutError) as error:
            results.append([type(error).__name__, str(error)])
    return results


async def perform(step, op, path):
    kind, *args = op
    if kind == "do":
        failures, fatal = args

        def callback(ctx):
            if fatal:
                raise NonRetryableError(path)
            if ctx.attempt <= failures:
                raise ValueError(ctx.attempt)
            return {"at": path, "n": ctx.step.count}

        retries = {"limit": 3, "delay": 1000, "backoff": "linear"}
        # One name for all steps of a branch: they are told apart by occurrence.
        return await step.do(path.rstrip("0123456789"), callback, config={"retries": retries})
    if kind == "sleep":
        return await step.sleep(path, args[0])
    if kind == "wait":
        name = path.rstrip("0123456789")
        return (await step.wait_for_event(name, type=name, timeout="300 days")).payload
    if kind == "late":
        return await step.wait_for_event(path, type="never", timeout=args[0])
    branches = [block(step, ops, f"{path}b{n}_") for n, ops in enumerate(args[0])]
    return await asyncio.gather(*branches)
"""

_leaf = st.one_of(
    st.tuples(st.just("do"), st.integers(0, 3), st.booleans()).map(list),
    st.tuples(st.just("sleep"), st.sampled_from([0, 50, 3_600_000])).map(list),
    st.tuples(st.just("wait")).map(list),
    st.tuples(st.just("late"), st.sampled_from([1_000, 60_000])).map(list),
)
_programs = st.recursive(
    st.lists(_leaf, max_size=4),
    lambda inner: st.lists(
        st.one_of(
            _leaf, st.tuples(st.just("par"), st.lists(inner, min_size=2, max_size=3)).map(list)
        ),
        max_size=4,
    ),
    max_leaves=8,
)


def awaited(ops: list[Op], path: str = "x") -> list[str]:
    """The event types that the program waits for, in the order of each branch."""
    found = []
    for index, op in enumerate(ops):
        if op[0] == "wait":
            found.append(path)
        elif op[0] == "par":
            for n, inner in enumerate(op[1]):
                found += awaited(inner, f"{path}{index}b{n}_")
    return found


async def load(tenant_id: str) -> dw.WorkerCode:
    return dw.WorkerCode(main_module="index.py", modules={"index.py": SOURCE})


async def outcome(ops: list[Op], *, crash: bool) -> Any:
    async with testing.connect(load=load, auto_advance=True, crash_at_every_step=crash) as platform:
        workflows = platform.tenant("acme").workflows
        instance = await workflows.create(id="i", params=ops)
        for n, name in enumerate(awaited(ops)):
            await instance.send_event(type=name, payload=[name, n])
        result = await instance.result()
        check(await instance.history())
        return result


def check(events: list[Any]) -> None:
    attempts: dict[tuple[str, int], int] = {}
    ended: set[tuple[str, str, int]] = set()
    for event in events:
        step = (event.step, event.count)
        if event.type == "attempt_started":
            attempts[step] = attempts.get(step, 0) + 1
            assert event.attempt == attempts[step]
        elif event.type in ("step_completed", "step_errored", "sleep_completed"):
            outcome = (event.type.split("_")[0], *step)
            assert outcome not in ended
            ended.add(outcome)
    assert [event.seq for event in events] == sorted(event.seq for event in events)
    assert events[-1].type == "workflow_completed"


@pytest.mark.behaviour(69, 71, 160, 248, 249)
@settings(
    max_examples=int(os.environ.get("PROGRAM_EXAMPLES", "25")),
    suppress_health_check=list(HealthCheck),
)
@given(_programs)
def test_real_tenant_code_ends_alike_with_and_without_a_crash_after_every_step(
    ops: list[Op],
) -> None:
    assert asyncio.run(outcome(ops, crash=True)) == asyncio.run(outcome(ops, crash=False))
