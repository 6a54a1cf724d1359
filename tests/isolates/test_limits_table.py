"""Every limit of an isolate: its setting, its reason with figure and step, its count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from real_tenants import real_tenant

import dynamic_workflows as dw

CODE = """
import asyncio, os, sys, tempfile, time
from dynamic_workflows import WorkflowEntrypoint

ONCE = {"retries": {"limit": 0, "delay": 0}}

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        self.life = step._life
        how = event.payload
        if how == "steps":
            for n in range(3):
                await step.do(f"step {n}", lambda: None)
        return await step.do(how, getattr(self, how), config=ONCE)

    def cpu(self):
        while True:
            pass

    def wall(self):
        time.sleep(60)

    def memory(self):
        kept = []
        while True:
            kept.append(bytearray(os.urandom(1 << 20)))

    async def silence(self):
        while True:
            await asyncio.sleep(0)

    async def output(self):
        while True:
            os.write(2, b"x" * 60_000)
            await asyncio.sleep(0)

    def frame(self):
        return "x" * 3_000_000

    def files(self):
        kept = [os.dup(0) for _ in range(1_000)]

    def tmp(self):
        for n in range(40):
            with open(f"{tempfile.gettempdir()}/{n}", "wb") as file:
                file.write(b"x" * 100_000)

    # What follows needs a guest that was tampered with: an honest one keeps to less by itself.

    def send(self, messages, skips_gate=False):
        wire = sys.modules[type(self.life.run).__module__]
        send = self.life.guest._send
        send = send.__self__._send if skips_gate else send
        send([wire.pack(message(wire), life=self.life.number) for message in messages])

    async def messages(self):
        while True:
            self.send([lambda wire: wire.Log("info", "x")] * 500)
            await asyncio.sleep(0)

    async def calls(self):
        numbers = range(90, 95)
        calls = [lambda wire, n=n: wire.CallRequest(n, "X", "y", b"[]", b"{}") for n in numbers]
        self.send(calls, skips_gate=True)
        await asyncio.sleep(60)
"""


@dataclass(frozen=True)
class Case:
    """One limit."""

    how: str
    config: dict[str, Any]
    reason: str
    kind: str | None = None
    """By which the metric counts the isolates that ended; None: an error inside, nothing ends."""
    or_kinds: tuple[str, ...] = ()
    """Others that are right as well: the watchdog may look before an allocation fails."""


CASES = [
    Case("cpu", {"turn_cpu_seconds": 0.1}, "cpu limit of 0.1 s exceeded", "cpu"),
    Case("wall", {"turn_wall_seconds": 0.2}, "limit of 0.2 s for one turn exceeded", "wall"),
    Case(
        "silence",
        {"silent_cpu_seconds": 0.2},
        "cpu limit of 0.2 s without a message exceeded",
        "silent",
    ),
    Case(
        "memory",
        {"memory_mb": 32, "turn_cpu_seconds": 30},
        "memory limit of 32 MB exceeded",
        or_kinds=("memory",),
    ),
    Case("output", {"output_mb": 1}, "output limit of 1 MB exceeded", "output"),
    Case("frame", {"bytes_in_flight_max": 1 << 20}, "a message above 1048576 bytes", "protocol"),
    Case("files", {"files_max": 40}, "limit of 40 open files exceeded"),
    Case("tmp", {"tmp_mb": 1, "jail": "require"}, "limit of 1 MB in /tmp exceeded"),
    Case(
        "messages",
        {"messages_per_second_max": 1_000, "turn_cpu_seconds": 30},
        "message limit of 1,000 a second exceeded",
        "messages",
    ),
    Case("calls", {"calls_in_flight_max": 4}, "more than 4 calls in flight", "protocol"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.how)
async def test_what_exceeds_a_limit_is_told_its_figure_and_its_step(case: Case) -> None:
    async with real_tenant({"index.py": CODE}, **case.config) as tenant:
        isolates: Any = tenant.shell._hosts._isolates
        try:
            await isolates.ready()
        except dw.SandboxUnavailable as error:
            pytest.skip(str(error))
        instance = await tenant.workflows.create(params=case.how)
        with pytest.raises(dw.WorkflowFailedError) as caught:
            await instance.result(timeout=60)
        reason = f'{case.reason} in step "{case.how}"'
        assert reason in caught.value.message
        errors = [e.payload for e in await instance.history() if e.type == "attempt_errored"]
        assert [reason in str(error) for error in errors] == [True]
        ended = {name: count for name, count in isolates.counts.items() if "ended_" in name}
        kinds = [case.kind, *case.or_kinds]
        assert ended in [{f"ended_{kind}": 1} if kind else {} for kind in kinds]


async def test_steps_of_a_lifetime_have_an_end() -> None:
    async with real_tenant({"index.py": CODE}, steps_max=2) as tenant:
        instance = await tenant.workflows.create(params="steps")
        with pytest.raises(dw.WorkflowFailedError, match="the limit of 2 steps is reached"):
            await instance.result(timeout=60)


SLEEPY = """
from dynamic_workflows import WorkflowEntrypoint

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        while True:
            await step.sleep("a nap", 0)
"""


async def test_sleeps_without_end_have_an_end() -> None:
    async with real_tenant({"index.py": SLEEPY}, waits_max=20) as tenant:
        instance = await tenant.workflows.create()
        with pytest.raises(dw.WorkflowFailedError, match="the limit of 20 sleeps and waits"):
            await instance.result(timeout=60)
        types = [event.type for event in await instance.history()]
        assert types.count("sleep_started") == 20


async def test_modules_have_a_size_and_the_refusal_names_it() -> None:
    async with real_tenant({"index.py": SLEEPY}, modules_bytes_max=100) as tenant:
        with pytest.raises(dw.CodeError, match="more than 100") as caught:
            await tenant.workflows.create()
        assert caught.value.code == "code.invalid"
