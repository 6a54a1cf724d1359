"""What tenant code prints, logs and dies of reaches the platform: whole or counted, harmless."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from real_tenants import Tail, real_tenant, until

import dynamic_workflows as dw
from dynamic_workflows import testing
from dynamic_workflows.actors.tenant import tenant_logs
from dynamic_workflows.loaders.guest import logs
from dynamic_workflows.loaders.guest.sanitize import TEXT_CHARACTERS_MAX, plain
from dynamic_workflows.loaders.protocol.messages import Log

CHATTY = """
import logging, os, sys
from dynamic_workflows import NonRetryableError, WorkerEntrypoint, WorkflowEntrypoint

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        print("outside")
        await step.do("talk", lambda ctx: self.talk(ctx))
        await step.do("warn", lambda: logging.getLogger("mine").warning("careful"))
        try:
            await step.do("fail", self.fail)
        except Exception:
            pass
        print("\\x1b]0;owned\\x07\\u202edne")
        raise ValueError("the end")

    def talk(self, ctx):
        print("inside", ctx.attempt)
        print("to stderr", file=sys.stderr)

    def fail(self):
        raise NonRetryableError("no use")

class Default(WorkerEntrypoint):
    async def flood(self, lines):
        for n in range(lines):
            print("line", n)

    async def raw(self):
        os.write(2, b"past python\\n")
"""


def chatty(tail: Tail) -> dw.WorkerCode:
    return dw.WorkerCode("index.py", {"index.py": CHATTY}, tails=(tail,))


def check_story(tail: Tail) -> None:
    facts = {"instance_id": "i", "workflow": "TenantWorkflow", "tenant_id": "acme"}
    assert tail.texts(**facts, step=None, level="info")[0] == "outside"
    assert tail.texts(**facts, step="talk", attempt=1, level="info") == ["inside 1"]
    assert tail.texts(**facts, step="talk", level="error") == ["to stderr"]
    assert tail.texts(**facts, step="warn", level="warning") == ["careful"]
    [failure] = tail.texts(**facts, step="fail", attempt=1, level="error")
    assert "no use" in failure
    assert "index.py" in failure
    [end] = tail.texts(**facts, step=None, level="error")
    assert end.endswith("ValueError: the end")
    assert "\\x1b]0;owned\\x07\\u202edne" in tail.texts(**facts, step=None)
    assert all(len(record["code_hash"]) == 64 for record in tail.records)
    assert all(record["ts"].utcoffset() is not None for record in tail.records)


async def test_records_say_where_they_come_from() -> None:
    tail = Tail()
    async with testing.connect(load=lambda tenant_id: chatty(tail)) as platform:
        instance = await platform.tenant("acme").workflows.create(id="i")
        with pytest.raises(dw.WorkflowFailedError):
            await instance.result()
        await platform.clock.settle()
    # There is no stderr of its own in a shared process, and logging is the driver's.
    facts = {"instance_id": "i", "workflow": "TenantWorkflow", "tenant_id": "acme"}
    assert tail.texts(**facts, step="talk", attempt=1, level="info") == ["inside 1"]


@pytest.mark.behaviour(343)
async def test_records_of_a_real_isolate_say_where_they_come_from() -> None:
    tail = Tail()
    async with real_tenant(chatty(tail)) as tenant:
        instance = await tenant.workflows.create(id="i")
        with pytest.raises(dw.WorkflowFailedError):
            await instance.result(timeout=60)
        await tenant.entrypoint().raw()
        await until(lambda: tail.texts(text="past python"), "the raw line")
    check_story(tail)


async def test_a_flood_is_cut_and_counted() -> None:
    tail = Tail()
    lines = 20_000

    def told() -> int:
        return sum(record["dropped"] + (record["kind"] == "log") for record in tail.records)

    async with real_tenant(chatty(tail), turn_cpu_seconds=60, turn_wall_seconds=60) as tenant:
        await tenant.entrypoint().flood(lines)
        # Though no other line comes that could tell of them.
        await until(lambda: told() == lines, "every line, passed or counted")
    assert len(tail.records) < lines


async def test_a_line_that_is_never_ended_is_told_with_where_it_was_begun() -> None:
    tail = Tail()
    source = """
import sys
from dynamic_workflows import WorkflowEntrypoint

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        await step.do("begin", lambda: sys.stdout.write("begun"))
        await step.wait_for_event("never", type="never")
"""
    async with real_tenant(
        dw.WorkerCode("index.py", {"index.py": source}, tails=(tail,))
    ) as tenant:
        await tenant.workflows.create(id="i")
        await until(lambda: tail.texts(step="begin", instance_id="i") == ["begun"], "the line")


@pytest.mark.parametrize("end", ["os._exit(1)", "spin()", "ctypes.string_at(1)"])
async def test_what_is_printed_last_outlives_the_isolate(end: str) -> None:
    tail = Tail()
    source = f"""
import ctypes, os
from dynamic_workflows import WorkerEntrypoint

def spin():
    while True:
        pass

class Default(WorkerEntrypoint):
    async def leave(self):
        print("farewell")
        {end}
"""
    async with real_tenant(
        dw.WorkerCode("index.py", {"index.py": source}, tails=(tail,))
    ) as tenant:
        with pytest.raises(dw.WorkflowsError):
            await tenant.entrypoint().leave()
        await until(lambda: tail.texts(kind="exit"), "the end")
    assert tail.texts(kind="log")[0] == "farewell"


async def test_the_end_of_an_isolate_is_told_with_step_and_reason() -> None:
    tail = Tail()
    source = """
import os
from dynamic_workflows import WorkflowEntrypoint

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        await step.do("leave", lambda: os._exit(3), config={"retries": {"limit": 0, "delay": 0}})
"""
    code = dw.WorkerCode("index.py", {"index.py": source}, tails=(tail,))
    async with real_tenant(code) as tenant:
        instance = await tenant.workflows.create(id="i")
        with pytest.raises(dw.WorkflowFailedError, match='exited with status 3 in step "leave"'):
            await instance.result(timeout=60)
        await until(lambda: tail.texts(kind="exit"), "the record")
    [record] = [record for record in tail.records if record["kind"] == "exit"]
    assert (record["instance_id"], record["step"], record["attempt"]) == ("i", "leave", 1)
    assert record["level"] == "error"
    assert record["text"] == 'the isolate ended: exited with status 3 in step "leave"'


class SlowTail(Tail):
    """Takes a batch only when it is told to, and fails on the first."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.batches = 0

    async def tail(self, records: list[dict[str, Any]]) -> None:
        await self.gate.wait()
        self.batches += 1
        if self.batches == 1:
            raise RuntimeError("not now")
        await super().tail(records)

    def __reduce__(self) -> Any:
        return Tail, ()


async def test_a_tail_that_is_slow_or_fails_holds_up_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tenant_logs, "_WAITING_MAX", 10)
    tail = SlowTail()
    async with testing.connect(load=lambda tenant_id: chatty(tail)) as platform:
        stub = platform.tenant("acme").entrypoint()
        await stub.flood(1)
        await platform.clock.settle()
        await stub.flood(100)
        tail.gate.set()
        await platform.clock.settle()
        await stub.flood(1)
        await platform.clock.settle()
        assert tail.texts()[:10] == [f"line {n}" for n in range(10)]
        assert tail.records[-1]["dropped"] == 90


async def test_the_log_of_the_actor_has_it_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "dynamic_workflows.tenant_code")
    code = dw.WorkerCode("index.py", {"index.py": CHATTY})
    async with testing.connect(load=lambda tenant_id: code) as platform:
        instance = await platform.tenant("acme").workflows.create(id="i")
        with pytest.raises(dw.WorkflowFailedError):
            await instance.result()
    lines = [record.getMessage() for record in caplog.records]
    assert "tenant 'acme' TenantWorkflow/i/talk: inside 1" in lines
    assert not any("\x1b" in line for line in lines)


def test_what_would_steer_a_terminal_is_written_out() -> None:
    assert plain("plain ünïcode 🙂\n\tok") == "plain ünïcode 🙂\n\tok"
    assert plain("\x1b[2J\r\x07\x9b1m\x00") == r"\x1b[2J\r\x07\x9b1m\x00"
    assert plain("x" * 100_000).endswith("…")
    assert len(plain("x" * 100_000)) == TEXT_CHARACTERS_MAX


async def test_what_a_tampered_guest_says_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (logs, tenant_logs):
        monkeypatch.setattr(module, "monotonic_ns", lambda: 7_000_000_000)
    tail = Tail()
    async with testing.connect(load=lambda tenant_id: chatty(tail)) as platform:
        await platform.tenant("acme").entrypoint().flood(1)
        shell = await platform._local.tenant("acme")
        host = next(iter(shell._hosts))
        for _ in range(tenant_logs.LINES_PER_S * 3):
            shell._isolate_events.on_log(
                host, 99, Log("\x1bodd", "x" * 20_000, "\x1b" * 1_000, 1, -5)
            )
        await platform.clock.settle()
        await platform.clock.settle()
    *_, last, told = tail.records
    assert len(tail.records) == tenant_logs.LINES_PER_S + 1
    assert (told["kind"], told["dropped"]) == ("dropped", 2 * tenant_logs.LINES_PER_S + 1)
    assert (last["level"], last["instance_id"]) == ("info", None)
    assert len(last["text"]) == TEXT_CHARACTERS_MAX
    assert "\x1b" not in last["step"]
