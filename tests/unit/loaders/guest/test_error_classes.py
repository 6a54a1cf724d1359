"""Errors of steps reach run as the class that was raised, with its attributes, replayed or not."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from guest_world import World, flow

from dynamic_workflows.eventlog.codec import values
from dynamic_workflows.loaders.guest import exception_codec
from dynamic_workflows.loaders.guest.sanitize import plain_error
from dynamic_workflows.loaders.protocol import messages

BEFORE = """
import pydantic
import binascii, dataclasses, decimal, enum, http.client, json, socket, sqlite3, struct
import subprocess, sys, urllib.error, xml.etree.ElementTree, zlib
import helper

class Colour(enum.Enum):
    RED = "r"

@dataclasses.dataclass
class Order:
    id: int

class Model(pydantic.BaseModel):
    n: int
    t: tuple[int, str] = (1, "")
    @pydantic.field_validator("n")
    @classmethod
    def small(cls, value):
        if value > 9: raise ValueError("too large")
        assert value > 0, "too small"
        return value

class Keyword(Exception):
    def __init__(self, *, code):
        super().__init__(f"code {code}")
        self.code = code

class Changed(ValueError):
    def __init__(self, number):
        print("constructed")
        super().__init__("text", number * 2)
        self.number = number

class Slots(Exception):
    __slots__ = ("detail",)
    def __init__(self, detail):
        self.detail = detail

@dataclasses.dataclass
class Data(Exception):
    code: int
    order: Order

class Outer:
    class Inner(KeyError): pass

class Group(ExceptionGroup):
    def derive(self, inner): return Group(self.message, inner)

class Guarded(Exception):
    def __init__(self):
        object.__setattr__(self, "x", 1)
    def __setattr__(self, name, value): raise RuntimeError("frozen")

def noted():
    error = ValueError("v")
    error.add_note("look here")
    error.colour = Colour.RED
    error.order = Order(5)
    error.lock = object()
    return error

def caused():
    error = Keyword(code=5)
    error.__cause__ = json.JSONDecodeError("m", "doc", 1)
    return error

def caught(function, *args):
    try:
        function(*args)
    except Exception as error:
        return error
"""

SAME = {
    "JSONDecodeError": 'caught(json.loads, "{")',
    "decimal": "decimal.DivisionByZero('x')",
    "CalledProcessError": "subprocess.CalledProcessError(3, ['ls'], 'out', b'err')",
    "TimeoutExpired": "subprocess.TimeoutExpired(cmd='ls', timeout=2.5)",
    "UnicodeDecodeError": "caught(b'\\xff'.decode)",
    "a missing file": "caught(open, '/no/such')",
    "two files": "FileExistsError(17, 'there', 'a', None, 'b')",
    "gaierror": "socket.gaierror(-2, 'no name')",
    "struct.error": "caught(struct.pack, 'i', 'x')",
    "zlib.error": "caught(zlib.decompress, b'x')",
    "binascii.Error": "caught(binascii.unhexlify, b'x')",
    "sqlite3": "caught(sqlite3.connect(':memory:').execute, 'no sql')",
    "ParseError": "caught(xml.etree.ElementTree.fromstring, '<a>')",
    "URLError": "urllib.error.URLError('no route')",
    "IncompleteRead": "http.client.IncompleteRead(b'x', 5)",
    "AttributeError": "caught(lambda: Order(1).nothing)",
    "NameError": "caught(eval, 'nowhere')",
    "ModuleNotFoundError": "caught(__import__, 'nowhere')",
    "SyntaxError": "caught(compile, 'a b', 'x.py', 'exec')",
    "RecursionError": "RecursionError('deep')",
    "asyncio": "asyncio.IncompleteReadError(b'x', 9)",
    "QueueEmpty": "asyncio.QueueEmpty()",
    "TimeoutError": "asyncio.TimeoutError()",
    "keywords only": "Keyword(code=5)",
    "args changed by its constructor": "Changed(4)",
    "slots": "Slots([1, Colour.RED])",
    "a dataclass": "Data(5, Order(1))",
    "nested": "Outer.Inner('k')",
    "another module of the bundle": "helper.Far('x', 2)",
    "objects among the args": "ValueError(Colour.RED, Order(1))",
    "frozen": "Guarded()",
    "no message": "Exception()",
    "a message that is no text": "Exception({'a': (1, 2)})",
    "ValidationError": "caught(Model.model_validate, {'n': 'x', 't': [1, 2, 3]})",
    "ValidationError by a validator": "caught(Model.model_validate, {'n': 10})",
    "ValidationError by an assertion": "caught(Model.model_validate, {'n': -1})",
    "ValidationError of JSON": "caught(Model.model_validate_json, '{')",
    "a subclass of OSError": "helper.Disk(28, 'full', '/data')",
}


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    made.close()


BODY = """
def seen(error):
    held = {{**getattr(error, "__dict__", {{}})}}
    for name in ("detail", "code", "name", "path", "errno", "filename", "reason", "doc", "pos"):
        held[name] = getattr(error, name, None)
    held.pop("lock", None)
    return repr([type(error), str(error), error.args, sorted(held.items())])
async def fail():
    raise {error}
try:
    await step.do("s", fail, config={{"retries": {{"limit": 0}}}})
except Exception as error:
    return [seen(error), seen({error}), isinstance(error, type({error}))]
"""

FILES = {
    "helper.py": "class Far(Exception):\n    def __init__(self, a, b): self.a, self.b = a, b\n"
    "class Disk(OSError):\n    def __init__(self, *args):\n"
    "        super().__init__(*args)\n        self.hint = 'buy one'\n"
}


@pytest.mark.parametrize("error", SAME.values(), ids=SAME.keys())
async def test_it_is_the_class_that_was_raised_with_its_attributes(
    world: World, error: str
) -> None:
    loaded = await world.load({"index.py": flow(BODY.format(error=error), BEFORE), **FILES})
    assert loaded.error is None, loaded.error
    world.start()
    got, wanted, is_instance = await world.until_ended()
    assert (got, is_instance) == (wanted, True)
    assert await world.again() == [got, wanted, True]


@pytest.mark.parametrize(
    "error",
    [
        "caught((b'a' * 300_000 + b'\\xff').decode)",
        "caught('\\ud800'.encode)",
        "UnicodeTranslateError('\\ud800', 0, 1, 'no such character')",
    ],
)
async def test_an_error_of_unicode_whose_text_did_not_travel_says_its_message(
    world: World, error: str
) -> None:
    body = f"""
    async def fail(): raise {error}
    try:
        await step.do("s", fail, config={{"retries": {{"limit": 0}}}})
    except UnicodeError as seen:
        wanted = str({error}).encode("utf-8", "replace").decode()
        return [type(seen) is type({error}), wanted in str(seen), seen.args == (wanted,)]
    """
    await world.load({"index.py": flow(body, BEFORE), **FILES})
    world.start()
    assert await world.until_ended() == [True, True, True]
    assert await world.again() == [True, True, True]


async def test_notes_and_attributes_that_encode_come_along_and_others_stay_behind(
    world: World,
) -> None:
    body = """
    async def fail(): raise noted()
    try:
        await step.do("s", fail, config={"retries": {"limit": 0}})
    except ValueError as error:
        return [error.__notes__, error.colour is Colour.RED, error.order == Order(5),
                hasattr(error, "lock")]
    """
    await world.load({"index.py": flow(body, BEFORE), **FILES})
    world.start()
    assert await world.until_ended() == [["look here"], True, True, False]
    assert await world.again() == [["look here"], True, True, False]


async def test_causes_and_groups_keep_their_classes(world: World) -> None:
    body = """
    async def fail(): raise caused()
    async def many(): raise Group("g", [caused(), ExceptionGroup("h", [Slots(1)])])
    seen = []
    for work in (fail, many):
        try:
            await step.do("s", work, config={"retries": {"limit": 0}})
        except Keyword as error:
            seen.append([error.code, error.__cause__.doc, type(error.__cause__).__name__])
        except Group as group:
            first, second = group.exceptions
            seen.append([first.__cause__.pos, second.exceptions[0].detail])
    return seen
    """
    await world.load({"index.py": flow(body, BEFORE), **FILES})
    world.start()
    wanted = [[5, "doc", "JSONDecodeError"], [1, 1]]
    assert await world.until_ended() == wanted
    assert await world.again() == wanted


async def test_no_constructor_runs_when_an_error_is_revived(world: World) -> None:
    body = """
    async def fail(): raise Changed(4)
    try:
        await step.do("s", fail, config={"retries": {"limit": 0}})
    except Changed as error:
        return [error.args, error.number]
    """
    await world.load({"index.py": flow(body, BEFORE), **FILES})
    world.start()
    assert await world.until_ended() == [("text", 8), 4]
    assert world.printed.count("constructed") == 1
    assert await world.again() == [("text", 8), 4]
    assert world.printed.count("constructed") == 1


@pytest.mark.parametrize(
    ("error", "name", "message"),
    [
        ("local()", "Local", "here"),
        (
            "caught(pydantic.TypeAdapter(int).validate_python, object())",
            "ValidationError",
            "valid integer",
        ),
        ("BaseExceptionGroup('g', [KeyboardInterrupt()])", "BaseExceptionGroup", "g"),
        ("renamed()", "Elsewhere", "lost"),
    ],
)
async def test_what_cannot_be_had_is_a_step_error_that_names_it(
    world: World, error: str, name: str, message: str
) -> None:
    before = """
def local():
    class Local(Exception): pass
    return Local("here")
class Elsewhere(Exception): pass
kept = Elsewhere
def renamed():
    global Elsewhere
    Elsewhere = None
    return kept("lost")
"""
    body = f"""
    async def fail(): raise {error}
    try:
        await step.do("s", fail, config={{"retries": {{"limit": 0}}}})
    except StepError as error:
        return [error.name, error.message]
    """
    await world.load({"index.py": flow(body, BEFORE + before), **FILES})
    world.start()
    seen = await world.until_ended()
    assert seen[0] == name
    assert message in seen[1]
    assert await world.again() == seen


def test_outside_of_isolates_no_class_is_looked_for_and_no_attribute_is_set() -> None:
    held = {"args": ["x"], "fields": {"name": "n", "__class__": 1, "other": 2}, "cause": ["a", "b"]}
    error = messages.Error("ImportError", "x", "builtins", values.encode(held))
    raised = exception_codec.from_wire(plain_error(error, 100))
    assert (type(raised), raised.args, vars(raised)) == (ImportError, ("x",), {})
    foreign = messages.Error("JSONDecodeError", "x", "json.decoder", values.encode(held))
    assert type(exception_codec.from_wire(foreign)).__name__ == "StepError"


def test_what_the_platforms_own_errors_hold_is_not_told() -> None:
    class Own(Exception):
        pass

    error = Own("text")
    error.secret = "token"  # type: ignore[attr-defined]
    assert b"token" not in (exception_codec.to_wire(error).args or b"")


def test_attributes_take_no_more_than_their_room() -> None:
    error = OSError("x")
    error.large = "y" * 100_000  # type: ignore[attr-defined]
    error.small = 1  # type: ignore[attr-defined]
    wired = exception_codec.to_wire(error)
    assert wired.args is not None
    assert len(wired.args) < 1_000
    assert values.decode(wired.args)["fields"] == {"small": 1}
