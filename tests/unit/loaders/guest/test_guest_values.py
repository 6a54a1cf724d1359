"""Values of annotated steps come back as themselves, live and replayed."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from guest_world import World, flow

from dynamic_workflows.eventlog.errors import UnserialisableValueError
from dynamic_workflows.loaders.protocol import messages

TYPES = """
import dataclasses, enum, typing, datetime, decimal
from typing import Optional, NamedTuple
import pydantic

class Colour(enum.Enum):
    RED = "r"
    BOTH = (1, 2)

class Line(pydantic.BaseModel):
    sku: str = pydantic.Field(alias="SKU")
    colour: Colour
    when: datetime.datetime
    @pydantic.computed_field
    @property
    def label(self) -> str: return self.sku + "!"

@dataclasses.dataclass
class Order:
    lines: list[Line]
    parent: "Optional[Order]" = None

class Point(NamedTuple):
    x: int
    y: Colour

class Name(str): pass
class Bag(list): pass

moment = datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc)
line = Line(SKU="tea", colour=Colour.BOTH, when=moment)
order = Order([line], Order([]))

if typing.TYPE_CHECKING:
    from nowhere import Elsewhere

@dataclasses.dataclass
class Cat:
    name: str
    seen: "Elsewhere" = None

@dataclasses.dataclass
class Dog:
    name: str
    def __post_init__(self): self.tricks = {Colour.RED}

class Login(pydantic.BaseModel):
    word: pydantic.SecretStr
    url: pydantic.HttpUrl
    _tries: int = 3
    def __eq__(self, other):
        return repr(self.word.get_secret_value()) == repr(other.word.get_secret_value())

login = Login(word="s3cret", url="https://example.com")
"""

CASES = {
    "a model": ("Line", "line"),
    "a dataclass with models inside": ("Order", "order"),
    "a text annotation": ('"Order"', "order"),
    "an optional one": ("Optional[Order]", "order"),
    "an optional one that is not there": ("Order | None", "None"),
    "a list": ("list[Line]", "[line, line]"),
    "a dict": ("dict[str, Colour]", '{"a": Colour.RED}'),
    "a tuple": ("tuple[Line, int]", "(line, 5)"),
    "an enum": ("Colour", "Colour.BOTH"),
    "a named tuple": ("Point", "Point(1, Colour.RED)"),
    "a subclass of text": ("Name", 'Name("x")'),
    "a list of a subclass": ("list[Name]", '[Name("x")]'),
    "a subclass of list": ("Bag", "Bag([1])"),
    "a bytearray": ("bytearray", 'bytearray(b"\\xff")'),
    "a union": ("typing.Union[Line, Order]", "order"),
    "a union of look-alikes": ("Cat | Dog", 'Dog("rex")'),
    "a list of look-alikes": ("list[Cat | Dog]", '[Dog("rex"), Cat("tom")]'),
    "another class than it says": ("Cat", 'Dog("rex")'),
    "a type for checkers only": ("Cat", 'Cat("tom")'),
    "a return type for checkers only": ('"Elsewhere"', 'Cat("tom")'),
    "a secret": ("Login", "login"),
    "decimals and dates": ("dict[str, decimal.Decimal]", '{"a": decimal.Decimal("1.50")}'),
}


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    made.close()


@pytest.mark.parametrize(("annotation", "value"), CASES.values(), ids=CASES.keys())
async def test_an_annotated_value_comes_back_as_itself(
    world: World, annotation: str, value: str
) -> None:
    code = flow(
        f"""
    async def work() -> {annotation}:
        return {value}
    got = await step.do("s", work)
    @step.do("declared")
    def declared() -> {annotation}:
        return {value}
    again = await declared()
    @step.do("user")
    def user(declared): return declared == {value} and type(declared) is type({value})
    return [got == {value}, type(got) is type({value}), again == got, await user()]
    """,
        before=TYPES,
    )
    assert await world.run(code) == [True] * 4
    assert await world.again() == [True] * 4
    assert world.of(messages.StepRequest) == []


async def test_the_output_of_run_is_stored_by_its_annotation(world: World) -> None:
    code = flow("return Order([line], order)", before=TYPES).replace(
        "def run(self, event, step):", "def run(self, event, step) -> Order:"
    )
    (line,) = (await world.run(code))["lines"]
    assert line["colour"] == (1, 2)
    assert line["when"].isoformat() == "2026-01-02T00:00:00+00:00"
    assert "label" not in line


async def test_the_output_of_run_that_cannot_be_stored_says_what_to_do(world: World) -> None:
    with pytest.raises(UnserialisableValueError, match="output of run.*Colour.*annotate"):
        await world.run(flow("return {'colour': Colour.RED}", before=TYPES))


async def test_classes_defined_inside_run_are_found(world: World) -> None:
    code = "from __future__ import annotations\n" + flow(
        """
    @dataclasses.dataclass
    class Local:
        n: int
    async def work() -> Local:
        return Local(3)
    got = await step.do("s", work)
    return [type(got) is Local, got.n]
    """,
        before="import dataclasses",
    )
    assert await world.run(code) == [True, 3]
    assert await world.again() == [True, 3]


async def test_what_does_not_fit_its_annotation_stays_plain(world: World) -> None:
    code = flow(
        """
    async def work() -> Line:
        return {"not": "a line"}
    return await step.do("s", work)
    """,
        before=TYPES,
    )
    assert await world.run(code) == {"not": "a line"}
    assert await world.again() == {"not": "a line"}


async def test_an_annotation_that_names_nothing_does_no_harm(world: World) -> None:
    code = flow("""
    def work() -> "Nowhere.To[be, found": return 1
    return await step.do("s", work)
    """)
    assert await world.run(code) == 1


async def test_a_rollback_gets_the_annotated_output(world: World) -> None:
    code = flow(
        """
    async def work() -> Order: return order
    def undo(args): print(type(args.output).__name__, args.output == order)
    await step.do("s", work, rollback=undo)
    """,
        before=TYPES,
    )
    await world.run(code)
    output = world.history["do", "s", 1].value
    world.tokens[-1] = ("do", "s", 1)
    error = messages.Error("ValueError", "why")
    world.send(messages.Undo(-1, "s", 1, 1, 1, error, output), world.life)
    await world.until(lambda: bool(world.printed))
    assert world.printed == ["Order True"]
