"""What a function returns comes back as the same class with the same fields, or is refused."""

from __future__ import annotations

import array
import collections
import dataclasses
import datetime
import fractions
import ipaddress
import math
import pathlib
import re
import threading
import typing
import zoneinfo
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

import pytest
import value_types
from hypothesis import given
from hypothesis import strategies as st

from dynamic_workflows.eventlog.codec import values
from dynamic_workflows.eventlog.errors import UnserialisableValueError, ValueTooLargeError
from dynamic_workflows.loaders.values.typed_values import Revivers, TypedCodec

MIB = 1 << 20
v: Any = value_types
moment = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)


def reviver(annotation: Any) -> TypedCodec:
    def function() -> None: ...

    function.__annotations__["return"] = annotation
    made = Revivers().of(function)
    assert made is not None, f"{annotation} names no class"
    return made


def there_and_back(annotation: Any, value: Any) -> Any:
    made = reviver(annotation)
    text = made.encode(value, bytes_max=64 * MIB)
    values.check(text)
    assert made.encode(made.decode(text), bytes_max=64 * MIB) == text
    # Each lifetime has revivers of its own.
    return reviver(annotation).decode(text)


def inside(value: Any) -> Any:
    """All that can be seen of a value, with the class of every part."""
    kind = type(value)
    if kind in (list, tuple, collections.deque) or isinstance(value, (list, tuple)):
        parts: Any = [inside(item) for item in value]
    elif isinstance(value, (set, frozenset)):
        parts = sorted((inside(item) for item in value), key=repr)
    elif isinstance(value, dict):
        parts = [(inside(key), inside(item)) for key, item in dict.items(value)]
    elif kind.__module__ in ("builtins", "datetime", "decimal", "uuid"):
        parts = repr(value)
    elif hasattr(value, "get_secret_value"):
        parts = value.get_secret_value()
    else:
        parts = None if hasattr(value, "__dict__") or hasattr(kind, "__slots__") else repr(value)
    attributes = {}
    if kind.__module__ == "value_types":
        attributes = {name: inside(_attribute(value, name)) for name in _names(value)}
    return kind, parts, attributes


def _attribute(value: Any, name: str) -> Any:
    held = getattr(value, "__dict__", {})
    return held[name] if name in held else getattr(value, name, "(unset)")


def _names(value: Any) -> list[str]:
    kind = type(value)
    slots = [name for one in kind.__mro__ for name in getattr(one, "__slots__", ())]
    if hasattr(kind, "__struct_fields__"):
        slots = list(kind.__struct_fields__)
    names = {*slots, *getattr(value, "__dict__", {})} - {"__weakref__", "__dict__", "_value_"}
    hidden = {"_abc_impl", "_name_", "_sort_order_", "__objclass__", "double", "_attrs_cached_hash"}
    return sorted(names - hidden)


SAME: dict[str, tuple[Any, Any]] = {
    # dataclasses
    "None where text was promised": (v.Plain, v.Plain("o-1")),
    "values that bend their annotations": (v.Plain, v.Plain(5, ["x"], {"a": (1,)})),
    "frozen": (v.Frozen, v.Frozen(1, datetime.date(2026, 1, 1))),
    "slots": (v.Slotted, v.Slotted(1, {"a": v.Colour.RED})),
    "frozen, slots, keywords only": (v.Strict, v.Strict(id=1)),
    "init=False and attributes of its own": (v.Late, v.late()),
    "a field that was deleted": (v.Late, v.unset()),
    "what __post_init__ would refuse": (v.Judging, v.judging()),
    "recursive": (v.Tree, v.Tree("a", v.Tree("b"), [v.Tree("c")])),
    "a type that is there for checkers only": (v.Unresolved, v.Unresolved(5)),
    "a field whose type cannot be had": (v.Unresolved, v.Unresolved(5, v.Plain("x"))),
    "a generic one": (v.Box[v.Plain], v.Box(v.Plain("x"))),
    "a generic one without its argument": (v.Box, v.Box(v.Colour.RED)),
    "Any that holds objects": (v.Anything, v.Anything([v.Cat("c"), v.Colour.RED, v.Pair((1,))])),
    "a mapping by enum of lists of objects": (
        v.Anything, v.Anything(1, {v.Colour.BOTH: [v.Plain("x")]}),
    ),
    "a subclass of what was promised": (v.Dog, v.Puppy("rex", 3)),
    "an abstract base": (v.Animal, v.Dog("rex")),
    "a list of an abstract base": (list[v.Animal], [v.Dog("rex"), v.Cat("tom"), v.Puppy("p", 1)]),
    "a cached property": (v.Lazy, v.lazy()),
    "nested in a class": (v.Outer.Inner, v.Outer.Inner(1)),
    # unions
    "a union of look-alikes": (v.Cat | v.Dog, v.Dog("rex")),
    "a union of model look-alikes": (list[v.Card | v.Bank], [v.Bank(ref="b"), v.Card(ref="c")]),
    "a union with dict": (v.Cat | dict[str, str], {"name": "tom"}),
    "a union with text": (v.Colour | str, "r"),
    "an enum in a union with text": (v.Colour | str, v.Colour.RED),
    "optional and absent": (typing.Optional[v.Cat], None),  # noqa: UP045
    "an optional list": (list[v.Cat] | None, [v.Cat("tom")]),
    "a union of an object and a list": (v.Cat | list[v.Cat], [v.Cat("tom")]),
    "a dict where an object was promised": (v.Plain, {"id": "x", "note": None, "tags": None}),
    "text where an enum was promised": (v.Colour, "r"),
    "a list where a subclass was promised": (v.Bag, [1]),
    "another class altogether": (v.Plain, v.Card(ref="c")),
    "a dict with a mark in it": (v.Plain, {"$object": "value_types:Cat", "name": "x"}),
    # models
    "aliases": (v.Aliased, v.Aliased.model_validate({"SKU": "tea", "cost": "1.50"})),
    "excluded and private fields": (v.Shy, v.shy()),
    "validators and serializers": (v.Doubling, v.Doubling(n=2)),
    "a serializer of the whole": (v.Whole, v.Whole.model_validate({"a": 1, "b": 2})),
    "a strict one": (
        v.StrictModel,
        v.StrictModel(phase=v.Colour.BOTH, raw=bytearray(b"x"), pair=(1, v.Colour.RED),
                      names={v.Level.LOW}),
    ),
    "extra fields": (v.Open, v.Open(a=2, z=v.Colour.RED)),
    "an extra field with a strange name": (v.Open, v.Open(**{"$ref": 1, "a b": 2})),
    "an extra field that is a mark": (v.Open, v.Open(**{"$object": "x", "$value": 2})),
    "made without validation": (v.Card, v.Card.model_construct(ref=5)),
    "made without what it needs": (v.Card, v.Card.model_construct()),
    "addresses, paths, secrets": (v.Wide, v.wide()),
    "a root model": (v.Ids, v.Ids([v.Colour.RED])),
    "a root model in a list": (list[v.Ids], [v.Ids([v.Colour.RED])]),
    "models in themselves": (v.Node, v.Node(name="a", children=[v.Node(name="b")])),
    "a generic model": (v.Generically[int], v.Generically[int](item=1)),
    "a model of unions": (
        v.Tagged, v.Tagged(pet=v.Bank(ref="b"), many=[v.Dog("d"), v.Cat("c")]),
    ),
    "a dataclass of pydantic": (v.Checked, v.Checked(3)),
    # attrs and msgspec
    "attrs": (v.Attrs, v.Attrs(1, [v.Colour.RED], "q")),
    "attrs, frozen, with a cached hash": (v.AttrsFrozen, v.AttrsFrozen(1)),
    "attrs without slots": (v.AttrsDict, v.AttrsDict(v.Attrs(1))),
    "a struct": (v.Struct, v.Struct(1)),
    "a struct, frozen and tagged": (v.StructFrozen, v.StructFrozen(a=1, b=[v.Struct(2)])),
    # enums
    "an enum": (v.Colour, v.Colour.BOTH),
    "an enum of text": (v.Level, v.Level.LOW),
    "an enum of numbers": (v.Size, v.Size.BIG),
    "flags together": (v.Perm, v.Perm.R | v.Perm.W),
    "no flag": (v.Bits, v.Bits(0)),
    "an enum whose value is None": (v.Odd, v.Odd.NOTHING),
    "an optional enum whose value is None": (v.Odd | None, v.Odd.NOTHING),
    "enums as keys": (dict[v.Level, int], {v.Level.LOW: 1}),
    "a literal of an enum": (typing.Literal[v.Colour.RED], v.Colour.RED),
    # subclasses of builtins
    "a subclass of str": (v.Name, v.Name("x")),
    "a subclass of str with a note": (v.Noted, v.noted()),
    "a subclass of int": (v.Count, v.Count(2**70)),
    "a subclass of float": (v.Ratio, v.Ratio("nan")),
    "a subclass of bytes": (v.Blob, v.Blob(b"\xff")),
    "a subclass of list": (v.Bag, v.Bag([1, v.Name("x")])),
    "a subclass of dict": (v.Lookup, v.Lookup(a=v.Colour.RED)),
    "a subclass of set": (v.Tags, v.Tags({"a", "b"})),
    "a subclass of tuple": (v.Pair, v.Pair((1, 2))),
    "a named tuple": (v.Point, v.Point(1, v.Colour.RED)),
    "an old named tuple": (v.Old, v.Old(1, {2})),
    "bytearray": (bytearray, bytearray(b"x")),
    # the standard library
    "a path": (pathlib.Path, pathlib.Path("/srv/x")),
    "a pure path": (pathlib.PureWindowsPath, pathlib.PureWindowsPath("c:\\x")),
    "an address": (ipaddress.IPv6Address, ipaddress.IPv6Address("fe80::1%eth0")),
    "a network": (ipaddress.IPv4Network, ipaddress.IPv4Network("10.0.0.0/8")),
    "deque": (collections.deque[int], collections.deque([1, 2], 5)),
    "defaultdict": (collections.defaultdict[str, int], collections.defaultdict(int, a=1)),
    "Counter": (collections.Counter[str], collections.Counter("aab")),
    "OrderedDict": (collections.OrderedDict[str, int], collections.OrderedDict(b=1, a=2)),
    "Fraction": (fractions.Fraction, fractions.Fraction(1, 3)),
    "complex": (complex, complex(-0.0, math.inf)),
    "range": (range, range(1, 9, 2)),
    "a pattern": (re.Pattern[str], re.compile("a+", re.IGNORECASE)),
    "a zone": (zoneinfo.ZoneInfo, zoneinfo.ZoneInfo("Europe/Zurich")),
    "a fixed zone": (datetime.timezone, datetime.timezone(datetime.timedelta(hours=1), "x")),
    "array": (array.array, array.array("d", [1.5])),
    # annotations
    "TypedDict": (v.Info, {"colour": v.Colour.RED, "orders": [v.Plain("x")]}),
    "a recursive TypedDict": (v.Recursive, {"next": {"colour": v.Colour.RED}}),
    "Iterable": (Iterable[v.Plain], [v.Plain("x")]),
    "Sequence": (Sequence[v.Plain], (v.Plain("x"),)),
    "Mapping": (Mapping[str, v.Plain], {"a": v.Plain("x")}),
    "a tuple of any length": (tuple[v.Colour, ...], (v.Colour.RED, v.Colour.BOTH)),
    "a tuple of objects": (tuple[v.Plain, int, v.Colour], (v.Plain("x"), 1, v.Colour.RED)),
    "a set of objects": (set[v.Frozen], {v.Frozen(i, datetime.date(2026, 1, 1)) for i in (1, 2)}),
    "annotated": (typing.Annotated[v.Plain, "note"], v.Plain("x")),
    "a text annotation in a list": (list["v.Plain"], [v.Plain("x")]),
    "a new type of a class": (typing.NewType("Mine", v.Plain), v.Plain("x")),
    "plain values inside": (v.Box[Any], v.Box([moment, Decimal("1.50"), -0.0, math.nan, 2**80])),
    "moments by pydantic": (v.Box[Any], v.Box(v.wide().when)),
}  # fmt: skip


@pytest.mark.parametrize(("annotation", "value"), SAME.values(), ids=SAME.keys())
def test_it_comes_back_as_the_same_class_with_the_same_fields(annotation: Any, value: Any) -> None:
    again = there_and_back(annotation, value)
    assert inside(again) == inside(value)
    assert again is not value or isinstance(value, (v.Colour, type(None), str)) or again is value


@pytest.mark.parametrize(("annotation", "value"), SAME.values(), ids=SAME.keys())
def test_in_a_field_that_may_hold_anything_it_comes_back_as_well(
    annotation: Any, value: Any
) -> None:
    if "[" in type(value).__qualname__:
        pytest.skip("its class has no name of its own")
    again = there_and_back(v.Box, v.Box([value]))
    assert inside(again.item[0]) == inside(value)


class Loose:
    def __init__(self) -> None:
        self.x = 1


class Lying(dict[str, Any]):
    __slots__ = ("items",)


def local() -> Any:
    @dataclasses.dataclass
    class Local:
        n: int

    return Local(1)


def generator() -> Iterator[int]:
    yield 1


def cycle() -> Any:
    tree = v.Tree("a")
    tree.left = tree
    return tree


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "an object of no kind": (Loose, Loose(), "Loose"),
    "a lock in a field": (v.Locked, v.Locked(threading.Lock()), "lock.*value.lock"),
    "a class that has no name at the top of a module": (v.Box, v.Box(local()), "Local"),
    "an iterator": (Iterable[v.Plain], generator(), "generator"),
    "a cycle": (v.Tree, cycle(), "cycle"),
    "a lambda": (v.Box, v.Box(lambda: 1), "function"),
    "a default factory of one's own": (
        collections.defaultdict, collections.defaultdict(lambda: 5), "default_factory",
    ),
    "a lone surrogate": (v.Box, v.Box("\ud800"), "surrogate"),
    "a class": (v.Box, v.Box(v.Plain), "type"),
    "an exception": (v.Box, v.Box(ValueError("x")), "ValueError"),
}  # fmt: skip


@pytest.mark.parametrize(("annotation", "value", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_would_come_back_changed_is_refused_in_a_sentence(
    annotation: Any, value: Any, reason: str
) -> None:
    made = reviver(annotation)
    with pytest.raises(UnserialisableValueError, match=f"(?s){reason}"):
        made.encode(value, bytes_max=MIB)


def test_a_large_object_is_too_large() -> None:
    with pytest.raises(ValueTooLargeError):
        reviver(v.Plain).encode(v.Plain("x" * 2000), bytes_max=1000)


def test_sql_and_drivers_see_the_fields() -> None:
    text = reviver(v.Slotted).encode(v.Slotted(1, {"a": v.Colour.RED}), bytes_max=MIB)
    assert text == b'{"id":1,"more":{"a":"r"}}'
    text = reviver(v.Cat | v.Dog).encode(v.Dog("rex"), bytes_max=MIB)
    assert text == b'{"name":"rex","$object":"value_types:Dog"}'
    assert values.decode(text) == {"name": "rex"}
    text = reviver(v.Box).encode(
        v.Box([pathlib.PurePosixPath("/x"), v.Puppy("p", 1)]), bytes_max=MIB
    )
    assert values.decode(text) == {"item": ["/x", {"name": "p", "weeks": 1}]}
    assert values.decode(reviver(v.Shy).encode(v.shy(), bytes_max=MIB)) == {
        "shown": 1,
        "hidden": "h",
    }


@pytest.mark.parametrize(
    "text",
    [
        b'{"$object":5}', b'{"$object":[1,{}]}', b'{"$object":["a"]}', b'{"$object":["a",[]]}',
        b'{"$value":1}', b'{"$value":1,"$object":"a","b":2}', b'{"$int":"0x1","$object":"a"}',
        b'{"$object":["a",{"x":{"$no":1}}]}', b'{"$value":{"$no":1},"$object":null}',
    ],
)  # fmt: skip
def test_marks_that_nobody_writes_are_refused(text: bytes) -> None:
    with pytest.raises(UnserialisableValueError):
        values.check(text)


def test_a_field_that_the_code_has_no_more_is_left_out_and_a_new_one_gets_its_default() -> None:
    made = reviver(v.Slotted)
    assert made.decode(b'{"id":1,"gone":2}') == v.Slotted(1, {})
    assert reviver(v.Open).decode(b"{}") == v.Open()
    assert reviver(v.Attrs).decode(b'{"a":1}') == v.Attrs(1)
    assert reviver(v.Struct).decode(b'{"a":1,"gone":2}') == v.Struct(1)
    assert reviver(v.Plain).decode(b"[1]") == [1]
    assert reviver(v.Colour).decode(b'"gone"') == "gone"


# --- at random -----------------------------------------------------------------------------------

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.decimals(),
    st.dates(), st.datetimes(timezones=st.just(datetime.UTC)), st.timedeltas(), st.uuids(),
)  # fmt: skip
odd = st.sampled_from([value for _, value in SAME.values() if "[" not in type(value).__qualname__])
hashable = st.one_of(
    st.none(), st.integers(), st.text(), st.binary(), st.uuids(), st.dates(),
    st.sampled_from([v.Colour.RED, v.Level.LOW, v.Strict(id=1), v.Point(1, v.Colour.RED)]),
)  # fmt: skip


def _inside(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    makers: list[Callable[[Any], Any]] = [
        v.Box, v.Anything, v.Cat, lambda x: v.Bag([x]), v.Attrs, v.Struct,
        lambda x: v.Generically(item=x), lambda x: v.Open(extra_one=x),
        lambda x: v.Wide.model_construct(whatever=x),
        lambda x: collections.deque([x], 3), lambda x: v.Lookup(x=x), lambda x: v.Point(x, x),
    ]  # fmt: skip
    return st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.text(), hashable), inner, max_size=3),
        st.tuples(inner, inner),
        st.sets(hashable, max_size=3),
        st.builds(lambda make, x: make(x), st.sampled_from(makers), inner),
    )


anything = st.recursive(st.one_of(scalars, odd), _inside, max_leaves=12)
kinds: Any = st.sampled_from(
    [v.Box, v.Animal, v.Colour, v.Cat | v.Dog, list[v.Cat], dict[str, v.Colour], v.Level | None,
     tuple[v.Plain, v.Colour], v.Info, v.Ids, v.Bag, v.Odd | None, pathlib.Path, set[v.Strict],
     v.Card | v.Bank | list[v.Card], collections.deque[int], v.Recursive, v.Point]
)  # fmt: skip


@given(kinds, anything)
def test_any_value_by_any_annotation_comes_back_as_it_was_or_is_refused(
    annotation: Any, value: Any
) -> None:
    try:
        again = there_and_back(annotation, value)
    except UnserialisableValueError:
        return
    assert inside(again) == inside(value)


def test_each_part_of_the_work_on_objects_is_a_turn_of_its_own() -> None:
    turns: list[int] = []
    made = reviver(v.Cat | dict[str, int])
    made.encode(v.Cat("tom"), bytes_max=MIB, rest=lambda: turns.append(1))
    assert len(turns) == 2
    made.encode([1, None, "x"], bytes_max=MIB, rest=lambda: turns.append(1))
    made.encode(v.Cat("tom"), bytes_max=MIB, is_read=False, rest=lambda: turns.append(1))
    made.encode({"name": 1}, bytes_max=MIB, is_read=False, rest=lambda: turns.append(1))
    assert len(turns) == 2
