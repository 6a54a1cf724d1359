"""Params and event payloads are what their annotations say, or an error names the field."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from guest_world import World

CODE = """
import dataclasses, datetime, decimal, enum, pathlib, uuid
from typing import Any, Literal, NamedTuple, Optional, TypedDict
import pydantic
from dynamic_workflows import WorkflowEntrypoint, WorkflowEvent

class Colour(enum.Enum):
    RED = "r"

@dataclasses.dataclass
class Line:
    sku: str
    qty: int = 1
    def __post_init__(self):
        if self.qty < 0: raise ValueError("qty is below 0")

@dataclasses.dataclass
class Order:
    id: str
    lines: list[Line] = dataclasses.field(default_factory=list)
    colour: Optional[Colour] = None
    when: "datetime.datetime | None" = None
    price: decimal.Decimal | None = None
    weight: float = 0.0
    tags: set[str] = dataclasses.field(default_factory=set)
    home: pathlib.Path | None = None
    more: Any = None
    twice: str = dataclasses.field(init=False, default="")
    def __post_init__(self): self.twice = self.id * 2

class Model(pydantic.BaseModel):
    id: int
    lines: list[Line] = []

class Point(NamedTuple):
    x: int
    y: int = 0

class Options(TypedDict, total=False):
    x: int

class Flow(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[ANNOTATION], step):
        return repr(event.payload)
"""
GOOD: list[tuple[str, Any, str]] = [
    ("Order", {"id": "1", "lines": [{"sku": "a"}], "colour": "r", "weight": 1, "tags": ["x"],
               "home": "/x", "more": (1, {"a": 2})},
     "Order(id='1', lines=[Line(sku='a', qty=1)], colour=<Colour.RED: 'r'>, when=None, price=None,"
     " weight=1, tags={'x'}, home=PosixPath('/x'), more=(1, {'a': 2}), twice='11')"),
    ("Optional[Line]", {"sku": "a"}, "Line(sku='a', qty=1)"),
    ("Optional[Line]", None, "None"),
    ("dict[str, Line]", {"a": {"sku": "b"}}, "{'a': Line(sku='b', qty=1)}"),
    ("list[Point]", [[1, 2], (3,)], "[Point(x=1, y=2), Point(x=3, y=0)]"),
    ("Point", {"x": 4}, "Point(x=4, y=0)"),
    ("Options", {"x": 1, "other": 2}, "{'x': 1, 'other': 2}"),
    ("Model", {"id": 1, "lines": [{"sku": "a"}]}, "Model(id=1, lines=[Line(sku='a', qty=1)])"),
    ("Model | Point", {"id": 3}, "Model(id=3, lines=[])"),
    ("uuid.UUID", "12345678123456781234567812345678",
     "UUID('12345678-1234-5678-1234-567812345678')"),
    ("Literal[Colour.RED, 1]", "r", "<Colour.RED: 'r'>"),
    ("Any", {"a": (1,)}, "{'a': (1,)}"),
    ("dict", {"a": 2**70}, f"{{'a': {2**70}}}"),
    ("'Nowhere'", {"a": 1}, "{'a': 1}"),
]  # fmt: skip
BAD: list[tuple[str, Any, str]] = [
    ("Order", {"id": 1}, "payload.id is of type int, wanted str"),
    ("Order", {"lines": []}, "missing 1 required positional argument: 'id'"),
    ("Order", {"id": "1", "lines": [{"sku": "a"}, {"sku": "b", "qty": "2"}]},
     "payload.lines[1].qty is of type str, wanted int"),
    ("Order", {"id": "1", "lines": [{"sku": "a", "qty": -1}]}, "lines[0] makes no Line: qty"),
    ("Order", {"id": "1", "zzz": 1}, "Order has no field for payload.zzz"),
    ("Order", {"id": "1", "colour": "blue"}, "payload.colour is no Colour"),
    ("Order", {"id": "1", "when": "soon"}, "payload.when is a text that is no datetime"),
    ("Order", {"id": "1", "price": 1.5}, "payload.price is of type float, wanted Decimal"),
    ("Order", {"id": "1", "weight": True}, "payload.weight is of type bool, wanted float"),
    ("Order", {"id": "1", "tags": ["x", "x"]}, "payload.tags holds an item twice"),
    ("Order", None, "payload is of type NoneType, wanted Order"),
    ("Model", {"id": "x"}, "payload.id: Input should be a valid integer"),
    ("Model", {"id": 1, "lines": [{"sku": 1}]}, "payload.lines[0].sku: Input should be a valid"),
    ("Line | Point", 5, "fits none of Line, Point"),
    ("dict[str, int]", {"a": 1, "b": "x"}, "payload['b'] is of type str, wanted int"),
    ("list[int]", (1, 2), "payload is of type tuple, wanted list"),
    ("int", True, "payload is of type bool, wanted int"),
    ("tuple[int, str]", [1], "payload has 1 items, wanted 2"),
]  # fmt: skip


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    made.close()


@pytest.mark.parametrize(("annotation", "params", "wanted"), GOOD)
async def test_params_are_what_the_annotation_says(
    world: World, annotation: str, params: Any, wanted: str
) -> None:
    assert await world.run(CODE.replace("ANNOTATION", annotation), params=params) == wanted


@pytest.mark.parametrize(("annotation", "params", "wanted"), BAD)
async def test_params_that_do_not_fit_are_an_error_that_names_instance_and_field(
    world: World, annotation: str, params: Any, wanted: str
) -> None:
    with pytest.raises(ValueError, match="the params of instance 'one' cannot be read as") as told:
        await world.run(CODE.replace("ANNOTATION", annotation), params=params)
    assert wanted in str(told.value)


@pytest.mark.parametrize("head", ["", "from __future__ import annotations\n"])
@pytest.mark.parametrize("event", ["event", "event: WorkflowEvent", "event: Any", "event: dict"])
async def test_without_such_an_annotation_the_payload_is_as_it_was_sent(
    world: World, head: str, event: str
) -> None:
    code = head + CODE.replace("event: WorkflowEvent[ANNOTATION]", event)
    assert await world.run(code, params={"id": 1}) == "{'id': 1}"


async def test_annotations_that_are_texts_are_looked_up_in_the_module(world: World) -> None:
    code = "from __future__ import annotations\n" + CODE.replace("ANNOTATION", "Line")
    assert await world.run(code, params={"sku": "x"}) == "Line(sku='x', qty=1)"


WAITS = CODE.replace("ANNOTATION", "Any").replace(
    "return repr(event.payload)",
    """
        try:
            got = await step.wait_for_event("w", type="t", payload_type=Line)
        except ValueError as error:
            return str(error)
        return [repr(got.payload), got.type]
""",
)


@pytest.mark.parametrize(
    ("payload", "wanted"),
    [
        ({"sku": "x", "qty": 2}, ["Line(sku='x', qty=2)", "t"]),
        ({"sku": "x", "qty": 2.5}, "the event that wait 'w' of instance 'one' got cannot be read"
         " as Line: payload.qty is of type float, wanted int"),
    ],
)  # fmt: skip
async def test_a_wait_reads_its_event_by_a_type_live_and_replayed(
    world: World, payload: Any, wanted: Any
) -> None:
    await world.load(WAITS)
    world.start()
    await world.until(lambda: bool(world.open))
    world.deliver("w", payload)
    assert await world.until_ended() == wanted
    assert await world.again() == wanted
