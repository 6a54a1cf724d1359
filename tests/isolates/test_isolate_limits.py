"""Limits of real isolates: the guilty attempt pays with a reason, and nobody else does."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from real_tenants import RealTenant, Tail, real_tenant, until

import dynamic_workflows as dw
from dynamic_workflows.actors.hosting import load_backoff
from dynamic_workflows.eventlog.backoff import Backoff
from dynamic_workflows.loaders.isolates.interface import Limits

ONCE = 'config={"retries": {"limit": 0, "delay": 0}}'
GUILTY = f"""
import asyncio, os, time
from dynamic_workflows import WorkerEntrypoint, WorkflowEntrypoint

def spin(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        how = event.payload.get("how")
        if how == "between":
            spin(60)
        if how == "good":
            for n in range(event.payload.get("steps", 3)):
                await step.do(f"good {{n}}", lambda: asyncio.sleep(0.02))
            return "good"
        return await step.do(how, lambda: self.do(how, event.payload), {ONCE})

    async def do(self, how, payload):
        if how == "spin":
            spin(60)
        elif how == "burn":
            spin(payload["seconds"])
        elif how == "eat":
            kept = []
            while True:
                kept.append(bytearray(os.urandom(1 << 20)))
        elif how == "block":
            time.sleep(60)
        elif how == "leave":
            os._exit(7)
        elif how == "many steps":
            pass
        return os.getpid()

class Default(WorkerEntrypoint):
    async def spin(self):
        spin(60)

    async def leave(self):
        os._exit(7)

    async def pid(self):
        await asyncio.sleep(0.2)
        return os.getpid()
"""


def guilty(**more: Any) -> dw.WorkerCode:
    return dw.WorkerCode("index.py", {"index.py": GUILTY}, **more)


async def failure(tenant: RealTenant, how: str, id: str | None = None) -> str:
    """The name and message that an instance fails with."""
    instance = await tenant.workflows.create(id=id, params={"how": how})
    with pytest.raises(dw.WorkflowFailedError) as caught:
        await instance.result(timeout=60)
    return f"{caught.value.name}: {caught.value.message}"


@pytest.mark.parametrize(
    ("how", "limits", "config", "reason"),
    [
        ("spin", {"cpu_ms": 100}, {}, 'cpu limit of 0.1 s exceeded in step "spin"'),
        ("spin", None, {"turn_cpu_seconds": 0.2}, 'cpu limit of 0.2 s exceeded in step "spin"'),
        (
            "spin",
            {"cpu_ms": 9_000},
            {"turn_cpu_seconds": 0.2},
            'cpu limit of 0.2 s exceeded in step "spin"',
        ),
        (
            "block",
            None,
            {"turn_wall_seconds": 0.2},
            'limit of 0.2 s for one turn exceeded in step "block"',
        ),
        ("leave", None, {}, 'exited with status 7 in step "leave"'),
    ],
)
async def test_the_guilty_attempt_fails_with_the_limit_and_the_step(
    how: str, limits: Any, config: dict[str, Any], reason: str
) -> None:
    tail = Tail()
    async with real_tenant(guilty(limits=limits, tails=(tail,)), **config) as tenant:
        good = await tenant.workflows.create(params={"how": "good", "steps": 10})
        assert reason in await failure(tenant, how, "bad")
        assert await good.result(timeout=60) == "good"
        bad = await tenant.workflows.get("bad")
        errors = [e.payload for e in await bad.history() if e.type == "attempt_errored"]
        assert len(errors) == 1
        assert reason in str(errors[0])
        await until(lambda: tail.texts(kind="exit"), "the record of the end")
        assert any(reason in text for text in tail.texts(kind="exit", level="error"))


@pytest.mark.behaviour(344)
async def test_memory_has_the_lower_of_two_limits() -> None:
    async with real_tenant(
        guilty(limits={"memory_mb": 32}), memory_mb=256, turn_cpu_seconds=30
    ) as tenant:
        text = await failure(tenant, "eat")
    # The watchdog's word, or the kernel's: whichever comes first.
    assert 'memory limit of 32 MB exceeded in step "eat"' in text


@pytest.mark.behaviour(344)
async def test_steps_have_the_lower_of_two_limits() -> None:
    for limits, config in (({"steps": 2}, {}), ({"steps": 9}, {"steps_max": 2})):
        async with real_tenant(guilty(limits=limits), **config) as tenant:
            assert "limit of 2 steps" in await failure(tenant, "good")


@pytest.mark.behaviour(344)
async def test_a_call_that_ends_its_isolate_fails_with_the_reason() -> None:
    async with real_tenant(guilty(), turn_cpu_seconds=0.1) as tenant:
        with pytest.raises(dw.LimitExceededError, match=r"cpu limit of 0.1 s exceeded"):
            await tenant.entrypoint().spin()
        with pytest.raises(dw.CodeError, match="exited with status 7"):
            await tenant.entrypoint().leave()
        assert await tenant.entrypoint().pid() > 0


async def test_code_that_keeps_ending_its_isolate_waits_with_a_reason_and_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(load_backoff, "BACKOFF", Backoff(0.5, 30.0))
    async with real_tenant(guilty()) as tenant:
        stub = tenant.entrypoint()
        for _ in range(load_backoff.DEATHS_FREE + 1):
            with pytest.raises(dw.CodeError, match="exited with status 7"):
                await stub.leave()
        instance = await tenant.workflows.create(params={"how": "good"})
        with pytest.raises(dw.CodeError, match="4 times in a row.*exited with status 7") as caught:
            await stub.pid()
        assert caught.value.code == "isolate.died"
        why = await instance.why()
        assert why.code == "isolate.died"
        assert "exited with status 7" in why.text
        assert await instance.result(timeout=60) == "good"
        assert (await instance.status()).reason is None
        assert await stub.pid() > 0


async def test_an_instance_that_kills_between_steps_is_parked_with_the_reason() -> None:
    async with real_tenant(guilty(), turn_cpu_seconds=0.05) as tenant:
        instance = await tenant.workflows.create(params={"how": "between"})
        good = await tenant.workflows.create(params={"how": "good"})
        await until_parked(instance)
        status = await instance.status()
        assert status.reason is not None
        assert status.reason.code == "isolate.died"
        assert "cpu limit of 0.05 s exceeded" in status.reason.message
        assert await good.result(timeout=60) == "good"


async def until_parked(instance: dw.WorkflowInstance) -> None:
    async for event in instance.subscribe():
        if event.type == "workflow_parked":
            return


# --- several isolates ----------------------------------------------------------------------------


PATIENT = {"turn_cpu_seconds": 30, "turn_wall_seconds": 200, "silent_cpu_seconds": 60}
"""However slow this machine is: these tests are about other things."""


async def pids(tenant: RealTenant, count: int) -> set[int]:
    """The processes in which instances that burn CPU ran."""
    items = [{"params": {"how": "burn", "seconds": 0.04}} for _ in range(count)]
    instances = await tenant.workflows.create_batch(items)
    return {await instance.result(timeout=200) for instance in instances}


async def test_busy_code_gets_more_isolates_up_to_its_limit() -> None:
    async with real_tenant(guilty(), isolates_max=3, **PATIENT) as tenant:
        for _ in range(30):
            await pids(tenant, 30)
            assert len(tenant.shell.isolate_pids()) <= 3
            if len(tenant.shell.isolate_pids()) == 3:
                break
        assert len(tenant.shell.isolate_pids()) == 3
        seen: set[int] = set()
        for _ in range(30):
            seen |= await pids(tenant, 30)
            if len(seen) == 3:
                break
        assert seen == set(tenant.shell.isolate_pids())


async def test_a_burst_is_spread_over_the_isolates_that_it_calls_for() -> None:
    async with real_tenant(guilty(), isolates_max=2, **PATIENT) as tenant:
        assert len(await pids(tenant, 100)) == 2


async def test_isolates_that_are_not_needed_any_more_end() -> None:
    config: dict[str, Any] = PATIENT | {"isolates_max": 2, "isolate_idle_seconds": 0.2}
    async with real_tenant(guilty(), **config) as tenant:
        await pids(tenant, 20)
        await until(lambda: not tenant.shell.isolate_pids(), "the end of idle isolates")
        assert len(await pids(tenant, 1)) == 1


async def test_one_isolate_is_enough_unless_the_platform_says_otherwise() -> None:
    async with real_tenant(guilty(), **PATIENT) as tenant:
        assert len(await pids(tenant, 20)) == 1


async def test_code_that_waits_needs_no_second_isolate() -> None:
    async with real_tenant(guilty(), isolates_max=4) as tenant:
        items = [{"params": {"how": "good", "steps": 5}} for _ in range(30)]
        instances = await tenant.workflows.create_batch(items)
        for instance in instances:
            assert await instance.result(timeout=60) == "good"
        assert len(tenant.shell.isolate_pids()) == 1


async def test_one_of_several_isolates_may_die_without_harm_to_the_others() -> None:
    async with real_tenant(guilty(), isolates_max=2, **PATIENT) as tenant:
        items = [{"params": {"how": "burn", "seconds": 0.04}} for _ in range(30)]
        instances = await tenant.workflows.create_batch(items)
        assert 'in step "leave"' in await failure(tenant, "leave")
        for instance in instances:
            await instance.result(timeout=200)


# --- packages ------------------------------------------------------------------------------------

IMPORTS = """
import importlib
from dynamic_workflows import WorkerEntrypoint

class Default(WorkerEntrypoint):
    async def find(self, name):
        try:
            return importlib.import_module(name).__name__
        except ImportError as error:
            return type(error).__name__

    async def say(self, name):
        scope = {"__builtins__": __builtins__}
        try:
            exec(f"import {name}", scope)
        except ImportError as error:
            return type(error).__name__
        return scope[name.partition(".")[0]].__name__
"""


async def test_imports_find_the_bundle_then_what_is_granted_and_nothing_else() -> None:
    modules = {"index.py": IMPORTS, "cronsim.py": "MINE = True", "json.py": "MINE = True"}
    async with real_tenant(modules) as tenant:
        stub = tenant.entrypoint()
        for name in ("duckdb", "pytz", "ray", "dynamic_workflows.actors.core.tenant_core"):
            assert await stub.say(name) == "ModuleNotFoundError", name
            assert await stub.find(name) == "ModuleNotFoundError", name
        assert await stub.say("json") == "tenant.json"
        assert await stub.say("cronsim") == "tenant.cronsim"
        assert await stub.say("decimal") == "decimal"
    async with real_tenant({"index.py": IMPORTS}, packages=("pytz",)) as tenant:
        stub = tenant.entrypoint()
        assert await stub.say("pytz") == "pytz"
        assert await stub.find("pytz") == "pytz"
        assert await stub.say("duckdb") == "ModuleNotFoundError"


# --- what operators see and set -------------------------------------------------------------------


async def test_the_walls_that_stand_are_in_the_status_and_the_answer_to_why() -> None:
    async with real_tenant(guilty()) as tenant:
        instance = await tenant.workflows.create(params={"how": "good", "steps": 50})
        await until(lambda: tenant.shell.core.life_of(("TenantWorkflow", instance.id)), "its life")
        sandbox = (await instance.status()).isolation
        assert sandbox is not None
        assert "seccomp" in sandbox
        assert sandbox in (await instance.why()).text
        await instance.result(timeout=60)
        assert (await instance.status()).isolation is None


async def test_walls_that_were_left_out_are_named_as_well(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with real_tenant(guilty(), isolation="unsafe-none") as tenant:
        instance = await tenant.workflows.create(params={"how": "good", "steps": 50})
        await until(lambda: tenant.shell.core.life_of(("TenantWorkflow", instance.id)), "its life")
        assert (await instance.status()).isolation == "unsafe-none"
    assert any("WITHOUT walls" in record.getMessage() for record in caplog.records)


async def test_modules_have_a_size() -> None:
    async with real_tenant(guilty(), modules_bytes_max=100) as tenant:
        with pytest.raises(dw.CodeError, match="more than 100") as caught:
            await tenant.workflows.create()
        assert caught.value.code == "code.invalid"


def test_every_limit_of_an_isolate_is_a_setting() -> None:
    config = dw.PlatformConfig(
        memory_mb=32, turn_cpu_seconds=0.1, turn_wall_seconds=0.2, silent_cpu_seconds=0.3,
        calls_in_flight_max=4, bytes_in_flight_max=5 << 20, files_max=60, tmp_mb=7,
        output_mb=9, messages_per_second_max=1_010,
    )  # fmt: skip
    expected = (32, 100, 200, 300, 4, 5 << 20, 60, 7, 9, 1_010)
    assert dataclasses.astuple(config.limits()) == expected
    assert dataclasses.asdict(dw.PlatformConfig().limits()) == dataclasses.asdict(Limits())
    lower = config.limits({"memory_mb": 16, "cpu_ms": 5_000})
    assert (lower.memory_mb, lower.turn_cpu_ms) == (16, 100)


STUBBORN = """
import asyncio
from dynamic_workflows import WorkflowEntrypoint

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        await step.do("begun", lambda: None)
        while True:
            try:
                await asyncio.sleep(0.01)
                print("still here")
            except BaseException:
                pass
"""


async def test_a_run_that_will_not_end_does_not_keep_its_isolate() -> None:
    code = dw.WorkerCode("index.py", {"index.py": STUBBORN})
    async with real_tenant(code, isolate_idle_seconds=1.5) as tenant:
        instance = await tenant.workflows.create()
        async for event in instance.subscribe():
            if event.type == "step_completed":
                break
        await instance.terminate()
        await until(lambda: not tenant.shell.isolate_pids(), "the end of the isolate")


LARGE = """
from dynamic_workflows import WorkflowEntrypoint

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        got = await step.do("make", lambda: {"b": b"x", "a": "x", "u": "é"}[event.payload] * SIZE)
        return got
"""


@pytest.mark.parametrize(
    ("kind", "size"), [("b", 45_000_000), ("a", 60_000_000), ("u", 30_000_000)]
)
async def test_values_up_to_the_limit_come_back_whole_from_an_isolate(kind: str, size: int) -> None:
    code = {"index.py": LARGE.replace("SIZE", str(size))}
    # Twice the default, for slow machines; one copy per part of 512 KiB would take far more.
    async with real_tenant(code, turn_cpu_seconds=1) as tenant:
        output = await (await tenant.workflows.create(params=kind)).result(timeout=120)
        letter: str | bytes = {"b": b"x", "a": "x", "u": "é"}[kind]  # type: ignore[assignment]
        assert output == letter * size


KEEPER = """
from dynamic_workflows import WorkflowEntrypoint

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        async def size():
            return len(event.payload)
        return await step.do("size", size)
"""


async def test_what_instances_were_given_goes_with_them() -> None:
    size = 12_000_000
    async with real_tenant({"index.py": KEEPER}, memory_mb=128) as tenant:
        pids = set()
        for _ in range(12):
            instance = await tenant.workflows.create(params="x" * size)
            assert await instance.result(timeout=60) == size
            pids.update(tenant.shell.isolate_pids())
        assert len(pids) == 1
