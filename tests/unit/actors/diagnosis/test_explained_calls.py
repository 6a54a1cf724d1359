"""`why` through a living platform: what the timer knows of a late tenant goes with the answer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from local_world import LocalPeer
from timer_bench import Bench

from dynamic_workflows.actors.diagnosis import lateness
from dynamic_workflows.actors.diagnosis.explained_calls import ExplainedCalls
from dynamic_workflows.actors.rpc.actor_ref import ActorRef, ActorUnreachable
from dynamic_workflows.eventlog.errors import (
    Corrupt,
    InstanceError,
    PlatformClosed,
    Unavailable,
    WorkflowsError,
)
from dynamic_workflows.loaders.protocol.calls import (
    ExplainInstance,
    GetStatus,
    TenantCall,
    WhyData,
)

ANSWER = WhyData("running", "its code runs between steps")
WHY, STATUS = ExplainInstance(id="i"), GetStatus(id="i")


class Tenant:
    """The calls of a tenant that answers, or cannot be opened."""

    def __init__(self, error: WorkflowsError | None = None) -> None:
        self.error = error

    async def call(self, call: TenantCall[Any]) -> Any:
        if self.error is not None:
            raise self.error
        return ANSWER if call == WHY else call


class Explained(Bench):
    """A timer, and somebody who asks why."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, int]] = []

    async def find_timer(self) -> ActorRef:
        peer: ActorRef = LocalPeer("timer", self.timer, self.asked)
        return peer

    async def why(self, error: WorkflowsError | None = None, call: TenantCall[Any] = WHY) -> Any:
        calls = ExplainedCalls(Tenant(error), "acme", find_timer=self.find_timer, clock=self.clock)
        return await calls.call(call)


async def late(seconds: float = 120) -> Explained:
    """A tenant that is damaged, was due a minute after the start, and has been late since."""
    bench = Explained()
    await bench.start()
    bench.waker.failing.add("acme")
    await bench.waker.slept([("acme", bench.at(60))])
    await bench.advance(60 + seconds)
    return bench


async def test_an_answer_says_that_the_tenant_was_late_until_it_was_asked() -> None:
    found = await (await late()).why()
    assert found.code == "running"
    assert found.text.startswith(ANSWER.text + "; before this call: ")
    assert "its tenant was due at 2026-01-01 00:01:00+00:00, 120 s ago; " in found.text
    assert "the platform tries again every 60 s: try 6: damaged" in found.text


@pytest.mark.parametrize("kind", [Corrupt, Unavailable])
async def test_an_error_of_a_tenant_that_cannot_be_opened_says_so_too(
    kind: type[WorkflowsError],
) -> None:
    error = kind("page 7 is damaged", code="log.page", path="x")
    with pytest.raises(kind) as caught:
        await (await late()).why(error)
    assert (caught.value.code, caught.value.details) == ("log.page", {"path": "x"})
    assert str(caught.value) == caught.value.message
    assert caught.value.message.startswith("page 7 is damaged; its tenant was due at 2026")
    assert str(error) == error.message == "page 7 is damaged", "others may hold it"


async def test_a_tenant_whose_process_has_ended_is_named_while_no_other_opens_it() -> None:
    bench = Explained()
    await bench.start()
    await bench.waker.opened(["acme"])
    bench.waker.alive.add("acme")
    await bench.advance(3)
    assert await bench.why() == ANSWER
    bench.waker.alive.clear()
    bench.waker.failing.add("acme")
    await bench.advance(30)
    text = (await bench.why()).text
    assert "its process has ended, and another has not opened it so far; the platform" in text
    assert ": damaged" in text


@pytest.mark.parametrize("error", [InstanceError("no such"), PlatformClosed("closed")])
async def test_what_is_no_fault_of_the_tenant_is_raised_as_it_is(error: WorkflowsError) -> None:
    with pytest.raises(type(error)) as caught:
        await (await late()).why(error)
    assert caught.value is error


async def test_who_is_in_time_and_who_asks_something_else_hear_nothing_of_it() -> None:
    bench = await late(seconds=20)
    assert await bench.why() == ANSWER
    bench = await late()
    bench.asked.clear()
    assert await bench.why(call=STATUS) == STATUS
    assert not bench.asked, "other calls cost the timer nothing"


async def test_a_timer_that_does_not_answer_is_named_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = await late()
    monkeypatch.setattr(lateness, "TIMER_S", 0.01)

    async def lost() -> ActorRef:
        raise ActorUnreachable("no timer")

    async def hanging() -> ActorRef:
        never: asyncio.Future[ActorRef] = asyncio.get_running_loop().create_future()
        return await never

    for find in (lost, hanging):
        monkeypatch.setattr(bench, "find_timer", find)
        assert "the timer actor, which wakes tenants, did not answer" in (await bench.why()).text
