"""Code that will not end, and messages that no guest sends, hurt nobody but who wrote them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from real_tenants import RealTenant, Tail, real_tenant, until

import dynamic_workflows as dw
from dynamic_workflows.actors.core import isolate_losses
from dynamic_workflows.actors.hosting import load_backoff
from dynamic_workflows.eventlog.backoff import Backoff

from .stubborn import CALLS_AFTER_THE_END, FADES, GOES_ON, LIES, SWALLOW, code

QUICK: dict[str, Any] = {"drop_grace_seconds": 0.2, "turn_wall_seconds": 1.0}


class Pings(dw.Service):
    """Counts its calls, in this process."""

    count = 0

    async def ping(self) -> None:
        type(self).count += 1


def tenant_code(body: str, tail: Tail) -> dw.WorkerCode:
    return dw.WorkerCode("index.py", {"index.py": code(body)}, env={"SVC": Pings()}, tails=(tail,))


async def reaches(instance: dw.WorkflowInstance, *types: str) -> None:
    """Until something of one of these types has happened to it."""
    async with asyncio.timeout(60):
        async for event in instance.subscribe():
            if event.type in types:
                return


async def begin(tenant: RealTenant) -> tuple[dw.WorkflowInstance, dw.WorkflowInstance]:
    """An honest instance and the attack, both under way in one isolate."""
    honest = await tenant.workflows.create(id="honest", params="honest")
    attack = await tenant.workflows.create(id="attack", params="attack")
    await reaches(honest, "step_completed")
    await reaches(attack, "step_completed")
    return honest, attack


async def finish(honest: dw.WorkflowInstance) -> int:
    await honest.send_event("go")
    pid: int = await honest.result(timeout=60)
    return pid


@pytest.mark.parametrize("name", GOES_ON)
async def test_code_that_goes_on_after_its_instance_costs_its_isolate(name: str) -> None:
    tail = Tail()
    async with real_tenant(tenant_code(SWALLOW + GOES_ON[name], tail), **QUICK) as tenant:
        honest, attack = await begin(tenant)
        (first,) = tenant.shell.isolate_pids()
        await attack.terminate()
        await until(lambda: tail.texts(kind="exit"), "the end of the isolate")
        (text,) = tail.texts(kind="exit", instance_id="attack", level="error")
        assert "the code of instance 'attack' goes on" in text
        assert "after it was dropped" in text
        assert tenant.isolates.counts["ended_stubborn"] == 1
        assert await finish(honest) != first
        assert (await attack.status()).status == "terminated"


@pytest.mark.parametrize("name", FADES)
async def test_callbacks_of_an_instance_fade_after_its_end(name: str) -> None:
    tail = Tail()
    async with real_tenant(tenant_code(FADES[name], tail), drop_grace_seconds=0.2) as tenant:
        honest, attack = await begin(tenant)
        stub = tenant.entrypoint()
        await attack.terminate()
        quiet, before = 0, -1
        async with asyncio.timeout(60):
            while quiet < 20:
                await asyncio.sleep(0.01)
                now: int = await stub.beats()
                quiet, before = (quiet + 1 if now == before else 0), now
        assert before > 0, "it had begun"
        (pid,) = tenant.shell.isolate_pids()
        assert await finish(honest) == pid
        assert not tail.texts(kind="exit")


async def test_what_was_told_to_end_calls_no_binding_even_past_the_guest() -> None:
    tail = Tail()
    Pings.count = 0
    async with real_tenant(tenant_code(CALLS_AFTER_THE_END, tail), **QUICK) as tenant:
        honest, attack = await begin(tenant)
        await attack.terminate()
        await until(lambda: tail.texts(kind="exit"), "the end of the isolate")
        assert "goes on" in tail.texts(kind="exit")[0]
        await finish(honest)
    assert Pings.count == 0


@pytest.mark.parametrize("name", LIES)
async def test_a_message_that_no_guest_sends_ends_the_isolate_and_stops_its_sender(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolate_losses, "BACKOFF", Backoff(0.001, 0.001))
    monkeypatch.setattr(load_backoff, "BACKOFF", Backoff(0.001, 30.0))
    tail = Tail()
    lie = f"{LIES[name]}\nawait asyncio.Event().wait()"
    async with real_tenant(tenant_code(lie, tail), **QUICK) as tenant:
        honest = await tenant.workflows.create(id="honest", params="honest")
        await reaches(honest, "step_completed")
        attack = await tenant.workflows.create(id="attack", params="attack")
        await reaches(attack, "workflow_parked", "workflow_errored")
        status = await attack.status()
        if status.status == "paused":
            assert status.reason is not None
            assert status.reason.code == "isolate.died"
            assert "protocol: " in status.reason.message
        assert all("protocol: " in text for text in tail.texts(kind="exit"))
        await finish(honest)
        assert (await (await tenant.workflows.create(params="short")).result(timeout=60)) > 0


async def test_code_that_keeps_going_on_has_to_wait_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(load_backoff, "BACKOFF", Backoff(30.0, 30.0))
    monkeypatch.setattr(load_backoff, "PROGRESS_REST_US_MAX", 30_000_000)
    tail = Tail()
    body = SWALLOW + GOES_ON["swallow every cancellation"]
    async with real_tenant(tenant_code(body, tail), **QUICK) as tenant:
        for number in range(load_backoff.DEATHS_FREE + 1):
            attack = await tenant.workflows.create(params="attack")
            await reaches(attack, "step_completed")
            await attack.terminate()
            await until(lambda: len(tail.texts(kind="exit")) > number, "the end of an isolate")  # noqa: B023
        short = await tenant.workflows.create(params="short")
        why = await short.why()
        assert why.code == "isolate.died"
        assert "4 times in a row, the last time by: the code of instance" in why.text
