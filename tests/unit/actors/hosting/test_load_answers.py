"""What `load` answers and is no code that can be is told in a sentence, at the create."""

from __future__ import annotations

from typing import Any

import pytest

import dynamic_workflows as dw
from dynamic_workflows import testing

CODE = """
from dynamic_workflows import WorkflowEntrypoint
class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        return 1
"""
MODULES = {"index.py": CODE}


def code(main_module: Any = "index.py", modules: Any = MODULES, **more: Any) -> dw.WorkerCode:
    return dw.WorkerCode(main_module, modules, **more)


async def answers_none(tenant_id: str) -> Any:
    return None


async def yields(tenant_id: str) -> Any:
    yield code()


ANSWERS: dict[str, tuple[Any, str]] = {
    "None": (lambda _: None, "answered None: let it return a WorkerCode"),
    "None, later": (answers_none, "answered None: let it return a WorkerCode"),
    "a generator": (yields, "an object of type async_generator"),
    "a dict": (lambda _: {"main_module": "index.py", "modules": MODULES}, "an object of type dict"),
    "source": (lambda _: CODE, "an object of type str"),
    "the class": (lambda _: dw.WorkerCode, "the class WorkerCode"),
    "a function": (lambda _: code, "an object of type function"),
    "a tuple": (lambda _: ("index.py", MODULES), "an object of type tuple"),
    "an error": (lambda _: ValueError("x"), "an object of type ValueError"),
    "another main": (lambda _: code("main.py"), "'main.py' is not one of the modules: index.py"),
    "no modules": (lambda _: code(modules={}), "there are none"),
    "modules None": (lambda _: code(modules=None), "modules should be a valid dictionary"),
    "a list of modules": (lambda _: code(modules=["index.py"]), "modules should be a valid dict"),
    "a module None": (lambda _: code(modules={"index.py": None}), "as text or bytes, not NoneType"),
    "a module 5": (lambda _: code(modules=MODULES | {"a.py": 5}), "'a.py' is Python source"),
    "an object": (lambda _: code(modules=MODULES | {"a": object()}), "'a' is neither text, bytes"),
    "a number as path": (
        lambda _: code(modules={**MODULES, 5: "x"}),
        "modules.5 should be a valid",
    ),
    "main None": (lambda _: code(None), "main_module should be a valid string"),
    "bytes that are no text": (lambda _: code(modules={"index.py": b"\xff"}), "index.py:1"),
    "no Python": (lambda _: code(modules={"index.py": "class"}), "index.py:1: invalid syntax"),
    "main JSON": (lambda _: code("a.json", {"a.json": {}}), "'a.json' is not among the modules of"),
    "env a list": (lambda _: code(env=["s3cr3t"]), "env should be a valid dictionary"),
    "env an object": (lambda _: code(env={"A": object()}), "env.A can be neither copied"),
    "limits of text": (
        lambda _: code(limits={"steps": "s3cr3t"}),
        "limits.steps should be a valid",
    ),
    "a tail that is none": (lambda _: code(tails=[5]), "tails.0 should be an instance of Service"),
    "unknown field": (lambda _: code(wishes=3), "wishes"),
    "cron": (lambda _: code(schedules={"TenantWorkflow": "soon"}), "'soon' is no cron expression"),
    "cron 5": (lambda _: code(schedules={"TenantWorkflow": 5}), "schedules.TenantWorkflow should"),
}


@pytest.mark.parametrize("kind", ANSWERS)
async def test_code_that_cannot_be_is_told_in_a_sentence_and_nothing_is_stored(kind: str) -> None:
    load, said = ANSWERS[kind]
    async with testing.connect(load=load) as platform:
        with pytest.raises(dw.CodeError) as caught:
            await platform.tenant("acme").workflows.create(id="one")
        assert caught.value.code == "code.invalid"
        assert said in caught.value.message
        assert "\n" not in caught.value.message
        assert "s3cr3t" not in caught.value.message
        assert not list(await platform.tenant("acme").workflows.list())


async def test_a_schedule_that_cannot_fire_is_refused_by_deploy_and_the_tenant_goes_on() -> None:
    async with testing.connect(load=lambda _: code(), auto_advance=True) as platform:
        acme = platform.tenant("acme")
        with pytest.raises(dw.CodeError, match="soon"):
            await acme.deploy(code(schedules={"TenantWorkflow": ["0 6 * * *", "soon"]}))
        assert await (await acme.workflows.create(id="one")).result() == 1


async def test_a_load_that_is_put_right_is_asked_again() -> None:
    wrong = [True]
    async with testing.connect(load=lambda _: None if wrong else code()) as platform:
        with pytest.raises(dw.CodeError):
            await platform.tenant("acme").workflows.create(id="one")
        wrong.clear()
        assert (await platform.tenant("acme").workflows.create(id="one")).id == "one"
