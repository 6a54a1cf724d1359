"""A chosen tenth of the behaviours on real Ray: the same programs end alike there and in process.

Each program runs on both platforms, with what a driver does to it; status, output, error, rollback
and the rows of its history have to be the same. One embedded cluster for all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

import pytest
import pytest_asyncio
from ray_world import eventually

import dynamic_workflows as dw
from dynamic_workflows import testing

pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="module")]

HEAD = """
import asyncio
import datetime
import decimal
from dynamic_workflows import *

ONCE = {"retries": {"limit": 0, "delay": 0}}
SOON = {"retries": {"limit": 2, "delay": 10, "backoff": "constant"}}


class Odd(ValueError):
    pass


class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
"""

Drive = Callable[[dw.WorkflowInstance], Awaitable[None]]

# What a platform does beside a run, or how briefly an instance was in between, is not compared.
PASSING = {"workflow_running", "workflow_waiting"}


class Program(NamedTuple):
    """What a tenant wrote, and what the driver does to its instance."""

    name: str
    body: str
    drive: Drive | None = None
    is_ordered: bool = True
    """False: what runs side by side may be recorded in any order."""
    ends: str = "complete"
    """The status at the end, or the class of the error."""


async def waits(instance: dw.WorkflowInstance) -> None:
    async def is_waiting() -> bool:
        return (await instance.status()).status == "waiting"

    await eventually(is_waiting, what="the wait")


async def approve(instance: dw.WorkflowInstance) -> None:
    await waits(instance)
    await instance.send_event("approved", {"by": ("kim", 1)})


async def send_three(instance: dw.WorkflowInstance) -> None:
    for number in (1, 2, 3):
        await instance.send_event("t", number)


async def pause_and_resume(instance: dw.WorkflowInstance) -> None:
    await waits(instance)
    await instance.pause()
    assert (await instance.status()).status == "paused"
    await instance.send_event("approved", "while paused")
    assert (await instance.status()).status == "paused"
    await instance.resume()


async def restart(instance: dw.WorkflowInstance) -> None:
    await instance.result(timeout=60)
    await instance.restart()


async def restart_from_second(instance: dw.WorkflowInstance) -> None:
    await instance.result(timeout=60)
    await instance.restart(from_={"name": "second"})


async def refuse_restart(instance: dw.WorkflowInstance) -> None:
    await instance.result(timeout=60)
    with pytest.raises(dw.InstanceError, match="nothing was changed"):
        await instance.restart(from_={"name": "no such step"})


async def terminate(instance: dw.WorkflowInstance) -> None:
    await waits(instance)
    await instance.terminate()
    with pytest.raises(dw.InstanceError):
        await instance.terminate()


async def terminate_and_undo(instance: dw.WorkflowInstance) -> None:
    await waits(instance)
    await instance.terminate(rollback=True)


PROGRAMS = [
    Program("the params are the payload", "return [event.payload, event.instance_id]"),
    Program(
        "values keep type and value",
        """
        made = await step.do("make", lambda: (1, {2}, b"x", decimal.Decimal("1"), {(1, 2): None}))
        return [made, type(made).__name__, 2**100, datetime.timedelta(days=1)]
        """,
    ),
    Program(
        "one name is two steps",
        "return [await step.do('x', lambda: 1), await step.do('x', lambda ctx: ctx.step.count)]",
    ),
    Program(
        "counters of kinds are apart",
        """
        await step.sleep("x", 1)
        return await step.do("x", lambda ctx: [ctx.step.name, ctx.step.count, ctx.attempt])
        """,
    ),
    Program(
        "a step needs a callback",
        """
        try:
            await step.do("x", 5)
        except WorkflowFatalError as error:
            return str(error)
        """,
    ),
    Program(
        "bad config is fatal",
        "await step.do('x', lambda: 1, config={'bogus': 1})",
        ends="WorkflowFatalError",
    ),
    Program(
        "a long name is fatal", "await step.do('x' * 257, lambda: 1)", ends="WorkflowFatalError"
    ),
    Program(
        "limit counts retries",
        """
        async def fail(ctx):
            raise Odd(f"attempt {ctx.attempt}")
        await step.do("fail", fail, config=SOON)
        """,
        ends="Odd",
    ),
    Program(
        "success after failures",
        """
        async def flaky(ctx):
            if ctx.attempt < 3:
                raise KeyError(ctx.attempt)
            return ctx.attempt
        return await step.do("flaky", flaky, config=SOON)
        """,
    ),
    Program(
        "no retries is one attempt",
        "await step.do('once', lambda: 1 / 0, config=ONCE)",
        ends="ZeroDivisionError",
    ),
    Program(
        "a caught error keeps its class and the run goes on",
        """
        async def fail():
            raise Odd("no", 7)
        try:
            await step.do("fail", fail, config=ONCE)
        except Odd as error:
            caught = [type(error).__name__, str(error), list(error.args)]
        await step.sleep("rest", 20)
        return [caught, await step.do("after", lambda: 1)]
        """,
    ),
    Program(
        "an error of the standard library comes back as its own class",
        """
        def fail():
            raise decimal.InvalidOperation("no number")
        try:
            await step.do("fail", fail, config=ONCE)
        except ArithmeticError as error:
            return [type(error).__name__, str(error)]
        """,
    ),
    Program(
        "a non-retryable error ends the step at once",
        """
        async def stop():
            raise NonRetryableError("enough")
        await step.do("stop", stop, config=SOON)
        """,
        ends="NonRetryableError",
    ),
    Program(
        "delays may be computed",
        """
        async def delay(ctx, error):
            return ctx.attempt * 5 if isinstance(error, OSError) else "1 day"
        async def fail(ctx):
            raise OSError(ctx.attempt)
        await step.do("x", fail, config={"retries": {"limit": 2, "delay": delay}})
        """,
        ends="OSError",
    ),
    Program(
        "a broken delay ends the step",
        """
        async def fail():
            raise OSError("first")
        config = {"retries": {"limit": 5, "delay": lambda ctx, error: 1 / 0}}
        await step.do("x", fail, config=config)
        """,
        ends="NonRetryableDelayError",
    ),
    Program(
        "an attempt that takes too long is cancelled",
        """
        async def slow(ctx):
            await asyncio.sleep(3_600 if ctx.attempt == 1 else 0)
            return ctx.attempt
        return await step.do("slow", slow, config={**SOON, "timeout": 50})
        """,
    ),
    Program(
        "what cannot be stored is final",
        "await step.do('x', lambda: open, config=SOON)",
        ends="UnserialisableValueError",
    ),
    Program(
        "sensitive output is not shown",
        """
        pin = await step.do("pin", lambda: "1234", config={"sensitive": "output"})
        return len(pin)
        """,
    ),
    Program(
        "declaring runs nothing, and a diamond runs once",
        """
        @step.do()
        async def base():
            return 1
        @step.do()
        def left(base):
            return base + 1
        @step.do()
        async def right(base, ctx):
            return base + ctx.attempt
        @step.do("top", concurrent=True)
        async def both(left, right, more=5):
            return [left, right, more]
        @step.do()
        async def never():
            raise AssertionError
        return await both()
        """,
        is_ordered=False,
    ),
    Program(
        "an unknown parameter is a TypeError",
        """
        @step.do()
        async def lost(nobody):
            return 1
        await lost()
        """,
        ends="TypeError",
    ),
    Program(
        "parallel steps",
        """
        async def work(n):
            return n
        jobs = [step.do(f"n{n}", lambda n=n: work(n)) for n in range(5)]
        return await asyncio.gather(*jobs)
        """,
        is_ordered=False,
    ),
    Program(
        "sleeps end, and past ones are errors",
        """
        await step.sleep("short", 10)
        await step.sleep_until("until", event.timestamp + datetime.timedelta(minutes=-1))
        """,
        ends="ValueError",
    ),
    Program(
        "a wait takes its event",
        """
        got = await step.wait_for_event("w", type="approved", timeout="7 days")
        return [got.payload, got["type"]]
        """,
        approve,
    ),
    Program(
        "buffered events keep their order",
        """
        await step.sleep("rest", 50)
        return [(await step.wait_for_event("w", type="t")).payload for _ in range(3)]
        """,
        send_three,
        is_ordered=False,
    ),
    Program(
        "a wait times out",
        """
        try:
            await step.wait_for_event("w", type="t", timeout="1 second")
        except WorkflowTimeoutError as error:
            return str(error)
        """,
    ),
    Program(
        "a paused instance keeps its events",
        "return (await step.wait_for_event('w', type='approved')).payload",
        pause_and_resume,
    ),
    Program(
        "a restart begins anew",
        "return await step.do('one', lambda: event.payload)",
        restart,
    ),
    Program(
        "a restart from a step keeps what was before it",
        """
        first = await step.do("first", lambda ctx: ctx.attempt)
        return [first, await step.do("second", lambda: 2)]
        """,
        restart_from_second,
    ),
    Program(
        "a restart from nowhere changes nothing",
        "return await step.do('one', lambda: 1)",
        refuse_restart,
    ),
    Program(
        "a termination ends it", "await step.sleep('long', '10 days')", terminate, ends="terminated"
    ),
    Program(
        "a failed run is undone in reverse order",
        """
        async def undo(it):
            assert (it.output, it.error.args) == (it.ctx.step.count, ("boom",))
        for _ in range(3):
            await step.do("x", lambda ctx: ctx.step.count, rollback=undo)
        raise Odd("boom")
        """,
        ends="Odd",
    ),
    Program(
        "a handler that fails stops the chain",
        """
        async def undo(it):
            raise NonRetryableError("cannot")
        await step.do("a", lambda: 1, rollback=undo)
        await step.do("b", lambda: 1, rollback=undo)
        raise Odd("boom")
        """,
        ends="Odd",
    ),
    Program(
        "a termination may undo",
        """
        async def undo(it):
            return None
        await step.do("a", lambda: 1, rollback=undo)
        await step.do("b", lambda: 1)
        await step.sleep("long", "10 days")
        await step.do("never", lambda: 1, rollback=undo)
        """,
        terminate_and_undo,
        ends="terminated",
    ),
    Program(
        "an output that cannot be stored fails the run",
        "return object()",
        ends="UnserialisableValueError",
    ),
    Program("what is no exception ends the run as well", "raise SystemExit(3)", ends="SystemExit"),
]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dw.Platform]:
    log = tmp_path_factory.mktemp("log")
    async with dw.connect(log, config=dw.PlatformConfig(pool_size=1)) as platform:
        yield platform


async def ran(platform: dw.Platform, program: Program) -> dict[str, Any]:
    """How the program ended, as far as it can be seen from outside."""
    tenant = platform.tenant("acme")
    lines = program.body.strip("\n").splitlines()
    margin = len(lines[0]) - len(lines[0].lstrip())
    body = "".join(f"        {line[margin:]}\n" for line in lines)
    await tenant.deploy(dw.WorkerCode("index.py", {"index.py": HEAD + body}))
    name = program.name.replace(" ", "_").replace(",", "")
    instance = await tenant.workflows.create(id=name, params={"of": [name]})
    if program.drive is not None:
        await program.drive(instance)
    try:
        await instance.result(timeout=60)
    except (dw.WorkflowFailedError, dw.WorkflowTerminatedError):
        pass
    status = await instance.status()
    events = [e for e in await instance.history() if e.type not in PASSING]
    seqs = [event.seq for event in await instance.history(all_runs=True)]
    assert seqs == sorted(set(seqs))
    rows = [(e.type, e.step, e.count, e.attempt, e.run) for e in events]
    shown = dict(status)
    assert "1234" not in repr([e.payload for e in events])
    return {**shown, "rows": rows if program.is_ordered else sorted(rows, key=repr)}


@pytest.mark.behaviour(
    359,
    5,
    9,
    34,
    35,
    38,
    59,
    61,
    63,
    66,
    69,
    70,
    81,
    85,
    86,
    87,
    91,
    94,
    95,
    97,
    101,
    106,
    112,
    113,
)
@pytest.mark.behaviour(
    120, 121, 148, 152, 154, 160, 165, 180, 192, 196, 199, 206, 207, 212, 215, 224, 248, 355, 357
)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
async def test_a_program_ends_on_ray_as_it_does_in_process(
    cluster: dw.Platform, program: Program
) -> None:
    async with testing.connect(auto_advance=True) as local:
        here, there = await asyncio.gather(ran(local, program), ran(cluster, program))
    assert there == here
    error = here["error"]
    assert program.ends == (here["status"] if error is None else error.name)
