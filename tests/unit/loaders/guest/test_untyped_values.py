"""Values under annotations that say nothing: the same class with the same fields, or refused."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from guest_world import World, flow

from dynamic_workflows.loaders.protocol import messages

TYPES = """
import collections, dataclasses, datetime, decimal, enum, fractions, ipaddress, pathlib, typing
import pydantic
from typing import Any, NamedTuple

class Colour(enum.Enum):
    RED = "r"

class Level(enum.IntEnum):
    LOW = 1

@dataclasses.dataclass
class Order:
    id: str
    lines: list = dataclasses.field(default_factory=list)

@dataclasses.dataclass(frozen=True, slots=True)
class Key:
    id: int

class Model(pydantic.BaseModel):
    word: pydantic.SecretStr
    home: pathlib.Path

class Point(NamedTuple):
    x: int
    y: Colour

class Name(str): pass
class Day(datetime.datetime): pass
class Money(decimal.Decimal): pass
class Odd:
    def __init__(self): self.x = 1
class Box:
    @dataclasses.dataclass
    class Inner:
        x: int

class Cold(Order):
    def __eq__(self, other): raise AssertionError("nothing of a class runs")
"""
OBJECTS = """
Order("1", [Colour.RED, Key(2)])
Model(word="s", home="/x")
Point(1, Colour.RED)
Colour.RED
Level.LOW
Name("x")
Box.Inner(3)
{"a": [Order("1")], "b": {Key(1), Key(2)}, "c": (Point(1, Colour.RED), None)}
{Key(1): Colour.RED, Colour.RED: {"$object": "Order", "$value": 1}}
[{"deep": {Level.LOW: collections.OrderedDict(a=Order("2"))}}]
collections.deque([Order("1")], 3)
collections.Counter("aab")
pathlib.PurePosixPath("/x")
ipaddress.ip_address("10.0.0.1")
fractions.Fraction(1, 3)
bytearray(b"x")
1j
""".strip().splitlines()
ANNOTATIONS = [
    "None", "Any", "object", "dict[str, Any]", "list", "dict", "tuple", "set", "int", "list[Any]",
    "int | Any", "typing.Union[Any, str]", "typing.Iterable[Any]", "collections.abc.Sequence",
    "'Nowhere'",
]  # fmt: skip


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    made.close()


def step_of(value: str, annotation: str = "Any") -> str:
    return flow(
        f"""
    def make(): return {value}
    make.__annotations__["return"] = {annotation}
    live = await step.do("s", make)
    return [type(live).__name__, repr(live), repr(make())]
    """,
        before=TYPES,
    )


@pytest.mark.parametrize("value", OBJECTS)
async def test_an_object_comes_back_as_its_class_with_its_fields(world: World, value: str) -> None:
    def code(annotated: str) -> str:
        return flow(
            f"""
    {annotated}
    got = await step.do("s", make)
    wanted = make()
    return [type(got) is type(wanted), repr(got) == repr(wanted) or got == wanted]
    """,
            before=TYPES,
        )

    assert await world.run(code(f"def make(): return {value}")) == [True, True]
    assert await world.run(code(f"async def make() -> Any: return {value}")) == [True, True]


@pytest.mark.parametrize("annotation", ANNOTATIONS)
async def test_every_annotation_that_names_no_class_is_as_none(
    world: World, annotation: str
) -> None:
    name, live, wanted = await world.run(step_of("Order('1', [Key(2), Colour.RED])", annotation))
    assert name == "Order"
    assert live == wanted


async def test_what_is_live_is_what_a_replay_gives(world: World) -> None:
    code = flow(
        """
    got = await step.do("s", lambda: {"a": Order("1", [Point(1, Colour.RED)])})
    await step.sleep("z", 1000)
    return repr(got)
    """,
        before=TYPES,
    )
    await world.load(code)
    world.start()
    await world.until(lambda: bool(world.open))
    world.drop()
    world.start()
    await world.until(lambda: bool(world.open))
    world.finish("z")
    assert await world.until_ended() == (
        "{'a': Order(id='1', lines=[Point(x=1, y=<Colour.RED: 'r'>)])}"
    )


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("Odd()", "Odd"),
        ("Day(2026, 1, 1)", "Day"),
        ("Money('1')", "Money"),
        ("[open]", "builtin_function"),
        ("(x for x in ())", "generator"),
        ("{'a': {'b': Odd()}}", "value.a.b"),
    ],
)
async def test_what_has_no_parts_is_refused_in_a_sentence(
    world: World, value: str, said: str
) -> None:
    code = flow(
        f"""
    try:
        return await step.do("pick", lambda: {value})
    except UnserialisableValueError as error:
        return str(error)
    """,
        before=TYPES,
    )
    text = await world.run(code)
    assert 'step "pick"' in text
    assert said in text


@pytest.mark.parametrize(
    "kind",
    [
        "@dataclasses.dataclass\n    class Own:\n        x: int",
        "class Own(NamedTuple):\n        x: int",
    ],
)
async def test_a_class_that_no_name_finds_is_refused_with_what_to_do(
    world: World, kind: str
) -> None:
    code = flow(
        f"""
    {kind}
    def annotated() -> Own: return Own(1)
    seen = [type(await step.do("annotated", annotated)) is Own]
    try:
        seen.append(await step.do("s", lambda: [Own(1)]))
    except UnserialisableValueError as error:
        seen.append(str(error))
    return seen
    """,
        before=TYPES,
    )
    found, text = await world.run(code)
    assert found is True
    assert "top of a module, or annotate" in text
    assert "return a dict" in text


async def test_rows_of_before_are_read_as_the_dicts_that_they_are(world: World) -> None:
    code = flow("return (await step.do('s', lambda: Order('1')))['id']", before=TYPES)
    text = b'{"id":"old","lines":[]}'
    world.history["do", "s", 1] = messages.RecordedStep("do", "s", 1, 1, text)
    assert await world.run(code) == "old"
