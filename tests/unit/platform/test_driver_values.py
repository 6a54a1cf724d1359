"""Models and dataclasses as params, payloads and outputs: their fields, or a sentence."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import pathlib
from typing import Any

import pydantic
import pytest

import dynamic_workflows as dw
from dynamic_workflows import testing

CODE = """
import dataclasses, datetime, enum, pathlib
import pydantic
from dynamic_workflows import WorkflowEntrypoint

class Kind(enum.Enum):
    A = "a"

class Report(pydantic.BaseModel):
    message: str
    kind: Kind
    when: datetime.date
    word: pydantic.SecretStr
    parts: list["Cat | Dog"] = []
    note: str = "n"

@dataclasses.dataclass
class Cat:
    name: str

@dataclasses.dataclass
class Dog:
    name: str

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step) -> Report | Kind | None:
        answer = await step.wait_for_event("who", type="who")
        if event.payload["name"] == "kind":
            return Kind.A
        return Report(message=event.payload["name"] + answer.payload["name"], kind=Kind.A,
                      when=datetime.date(2026, 1, 1), word="s3cret", parts=[Dog("rex")])
"""


class Colour(enum.Enum):
    RED = "r"


class Who(pydantic.BaseModel):
    name: str
    hidden: str = pydantic.Field(default="h", exclude=True)


@dataclasses.dataclass
class Holder:
    name: Any


async def test_models_travel_as_their_fields() -> None:
    code = dw.WorkerCode("index.py", {"index.py": CODE})
    async with testing.connect(load=lambda _: code) as platform:
        flows = platform.tenant("acme").workflows
        one = await flows.create(params=Who(name="a"))
        await one.send_event("who", Holder("b"))
        assert await one.result() == {
            "message": "ab", "kind": "a", "when": datetime.date(2026, 1, 1), "word": "s3cret",
            "parts": [{"name": "rex"}], "note": "n",
        }  # fmt: skip
        two = await flows.create(params=Holder("kind"))
        await two.send_event("who", Who(name="b"))
        assert await two.result() == "a"


@pytest.mark.parametrize(
    "value", [Colour.RED, Holder(Colour.RED), Holder(pathlib.Path("/x")), Holder({1: bytearray()})]
)
async def test_what_params_and_payloads_cannot_hold_is_refused_in_a_sentence(value: Any) -> None:
    code = dw.WorkerCode("index.py", {"index.py": CODE})
    async with testing.connect(load=lambda _: code) as platform:
        flows = platform.tenant("acme").workflows
        with pytest.raises(dw.UnserialisableValueError, match="the params: .*plain data") as told:
            await flows.create(params=value)
        assert "annotat" not in str(told.value)
        one = await flows.create(params={})
        with pytest.raises(dw.UnserialisableValueError, match="the payload: .*plain data"):
            await one.send_event("who", value)
