"""Values keep their types through text, and nothing that is no value gets in."""

from __future__ import annotations

import collections
import enum
import random
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pydantic
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from plain_values import TEXTS, VALUES, facts

from dynamic_workflows.eventlog.codec import decode, encode, values
from dynamic_workflows.eventlog.errors import UnserialisableValueError, ValueTooLargeError


@given(VALUES)
@example({"$int": 1})
@example(datetime(2000, 1, 1, tzinfo=timezone(timedelta(microseconds=1))))
@example(time(1, tzinfo=timezone(timedelta(microseconds=-1), "odd")))
@example({"$dict": [[1, 2]]})
@example({"a": 1, "$a": 2})
@example({1: {2: {3: ()}}})
@example([float("nan"), float("-inf"), -0.0, 5e-324, 1e308])
@example(2**64)
@example(-(2**63) - 1)
@example("\u2028\x00\x7f\ud7ff\U0010ffff")
@example(datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")))
@example(time(1, 2, tzinfo=timezone(timedelta(hours=1), "CET")))
@settings(max_examples=400)
@pytest.mark.behaviour(113, 365)
def test_every_value_comes_back_with_its_types(value: Any) -> None:
    text = values.encode(value)
    values.check(text)
    assert facts(values.decode(text)) == facts(value)
    assert values.encode(values.decode(text)) == text


@given(VALUES)
@settings(max_examples=100)
def test_the_text_is_json_that_anybody_reads(value: Any) -> None:
    msgspec.json.decode(values.encode(value))


@given(st.recursive(st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63), TEXTS),
                    lambda inner: st.one_of(st.lists(inner), st.dictionaries(TEXTS, inner)),
                    max_leaves=8))  # fmt: skip
@settings(max_examples=100)
def test_plain_values_look_plain(value: Any) -> None:
    if b'"$' not in (text := values.encode(value)):
        assert msgspec.json.decode(text) == value


@given(st.binary(max_size=60))
@settings(max_examples=200)
def test_bytes_from_anywhere_are_a_value_or_refused(data: bytes) -> None:
    try:
        values.check(data)
    except UnserialisableValueError:
        with pytest.raises(UnserialisableValueError):
            values.decode(data)
    else:
        values.decode(data)


FORGED = st.recursive(
    st.one_of(st.none(), st.integers(), st.text(max_size=5), st.sampled_from(["nan", "0x1", "1"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.sampled_from([*decode._READERS, "$nonsense", "a"]), inner, min_size=1, max_size=2
        ),
    ),
    max_leaves=8,
)


@given(FORGED)
@settings(max_examples=300)
def test_forged_tags_are_refused_or_are_values_like_any_other(forged: Any) -> None:
    text = msgspec.json.encode(forged)
    try:
        values.check(text)
    except UnserialisableValueError:
        return
    again = values.decode(values.encode(values.decode(text)))
    assert facts(again) == facts(values.decode(text))


@pytest.mark.parametrize(
    "text",
    [
        b"", b"\xff", b'"\xed\xa0\x80"', b'"\\ud800"', b"NaN", b"[1,]", b"1 2", b"1e400",
        b'{"$int":"zz"}', b'{"$int":1}', b'{"$int":"0x1","a":1}', b'{"a":1,"$int":"0x1"}',
        b'{"\\u0024nope":1}', b'{"$set":[[]]}', b'{"$tuple":{"a":1}}', b'{"$dict":[[1]]}',
        b'{"$decimal":"1e99999999999999999999"}', b'{"$datetime":"yesterday"}',
        b'{"$bytes":"****"}', b'{"$uuid":"x"}', b'{"$timedelta":[1]}', b'{"$float":"1.5"}',
        b'{"$time":["00:00:00","name","x",0]}', b'{"$datetime":["2026-01-01","zone","x",2]}',
    ],
)  # fmt: skip
def test_texts_that_the_codec_never_writes_are_refused(text: bytes) -> None:
    with pytest.raises(UnserialisableValueError):
        values.check(text)
    with pytest.raises(UnserialisableValueError):
        values.decode(text)


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'{"$tuple":[', b"[[[["])
def test_a_million_levels_are_refused_and_not_followed(opening: bytes) -> None:
    with pytest.raises(UnserialisableValueError):
        values.check(opening * 1_000_000)


@pytest.mark.parametrize("text", [b'"\xff"', b"1e999", b"9" * 5000])
def test_large_texts_are_proven_like_small_ones(text: bytes) -> None:
    large = b"[" + b'"' + b"x" * 300_000 + b'",' + text + b"]"
    with pytest.raises(UnserialisableValueError):
        values.check(large)
    values.check(b"[" + b'"' + b"x" * 300_000 + b'",1]')


def test_deep_values_are_taken_to_a_stated_depth_and_no_further() -> None:
    fits: Any = 1
    for _ in range(values.DEPTH_MAX):
        fits = [fits]
    assert values.decode(values.encode(fits)) == fits
    with pytest.raises(UnserialisableValueError, match="deeper than"):
        values.encode([fits])
    deepest = fits
    for _ in range(100_000):
        deepest = [deepest]
    with pytest.raises(UnserialisableValueError, match="deeper than"):
        values.encode(deepest)


def test_a_cycle_is_called_a_cycle() -> None:
    knot: dict[str, Any] = {"inner": []}
    knot["inner"].append(knot)
    with pytest.raises(UnserialisableValueError, match="cycle"):
        values.encode(knot)


def test_sharing_that_would_explode_is_refused_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "NODES_MAX", 10_000)
    monkeypatch.setattr(encode, "TAGGED_NODES_MAX", 10_000)
    shared: Any = [1]
    for _ in range(100):
        shared = [shared, shared]
    for value in (shared, (shared,)):
        with pytest.raises(ValueTooLargeError):
            values.encode(value)


class Colour(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    LOW = 1


class Point(NamedTuple):
    x: int


class Name(str):
    pass


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (Colour.RED, "annotate"),
        (Level.LOW, "annotate"),
        (Point(1), "subclass of tuple.*annotate"),
        (Name("x"), "subclass of str"),
        (collections.OrderedDict(a=1), "subclass of dict"),
        (bytearray(b"x"), "convert it to bytes"),
        (object(), "return None, bool"),
        (lambda: 1, "function"),
        (complex(1, 2), "complex"),
        (range(3), "range"),
        (datetime(2026, 1, 1, tzinfo=ZoneInfo("UTC")).tzinfo, "ZoneInfo"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_would_come_back_as_something_else_is_refused_with_its_place(
    value: Any, hint: str
) -> None:
    with pytest.raises(UnserialisableValueError, match=hint):
        values.encode(value)
    with pytest.raises(UnserialisableValueError, match=r"value\.orders\[1\]\.what"):
        values.encode({"orders": [1, {"what": value}]})


@pytest.mark.parametrize("value", ["\ud800", ["a\udfff"], {"\ud800": 1}, {"a": ("\ud800",)}])
def test_lone_surrogates_are_refused(value: Any) -> None:
    with pytest.raises(UnserialisableValueError, match="surrogate"):
        values.encode(value)


def test_a_value_above_the_limit_is_too_large_on_both_ways() -> None:
    with pytest.raises(ValueTooLargeError) as caught:
        values.encode("x" * 100, bytes_max=101)
    assert caught.value.code == "value.too_large"
    assert values.encode("x" * 99, bytes_max=101)
    with pytest.raises(ValueTooLargeError):
        values.check(b'"' + b"x" * 100 + b'"', 101)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 100, 66_000, 200_001])
def test_bytes_count_as_bytes_and_come_back_however_large(count: int) -> None:
    data = random.Random(count).randbytes(count)
    for value in (data, [data, {"a": data}, "text"], {"$x": (data, 2**70)}, {"a": '{"$bytes":"'}):
        text = values.encode(value)
        assert values.decode(text) == value
        size = values.size(text)
        values.check(text, size)
        assert values.encode(value, bytes_max=size) == text
        with pytest.raises(ValueTooLargeError, match=f" {size} bytes"):
            values.encode(value, bytes_max=size - 1)
        with pytest.raises(ValueTooLargeError):
            values.check(text, size - 1)
    assert values.size(values.encode(data)) == count + len('{"$bytes":""}')


@pytest.mark.parametrize(
    "text",
    [
        b'{"$bytes":0}', b'[{"$bytes":"%b"},{"$bytes":1}]', b'[{"$bytes":"%b"},{"$bytes":-1}]',
        b'{"$bytes":"%b!"}', b'{"$bytes":"%b","a":1}', b'["{"$bytes":"%b"}"]', b'{"$bytes":"%b',
    ],
)  # fmt: skip
def test_large_bytes_that_the_codec_never_writes_are_refused(text: bytes) -> None:
    text = text.replace(b"%b", b"A" * 80_000)
    for judge in (values.decode, values.check):
        with pytest.raises(UnserialisableValueError):
            judge(text)


def test_sets_are_written_in_one_order() -> None:
    names = [f"name-{i}" for i in range(50)]
    texts = set()
    for seed in range(5):
        random.Random(seed).shuffle(names)
        texts.add(values.encode(set(names)))
    assert len(texts) == 1


@dataclass
class Order:
    sku: str
    when: date


class Model(pydantic.BaseModel):
    order: Order
    ids: set[int]


def test_dataclasses_and_models_become_dicts() -> None:
    order = Order("tea", date(2026, 1, 2))
    plain = {"sku": "tea", "when": date(2026, 1, 2)}
    assert values.decode(values.encode(order)) == plain
    assert values.decode(values.encode([Model(order=order, ids={1})])) == [
        {"order": plain, "ids": {1}}
    ]


PRIME = (1 << 61) - 1
"""Multiples of it have the hash 0, however many."""


@pytest.mark.parametrize("kind", ["$set", "$frozenset", "$dict"])
def test_elements_of_one_hash_cannot_hold_up_who_reads_them(kind: str) -> None:
    def text(count: int) -> bytes:
        ints = [b'{"$int":"0x%x"}' % (n * PRIME) for n in range(count)]
        items = [b"[%s,0]" % one for one in ints] if kind == "$dict" else ints
        return b'{"%s":[%s]}' % (kind.encode(), b",".join(items))

    assert len(values.decode(text(100))) == 100
    # Were it built after all, this would take minutes.
    for judge in (values.decode, values.check):
        with pytest.raises(UnserialisableValueError):
            judge(text(200_000))


@pytest.mark.parametrize("build", [set, frozenset, dict.fromkeys])
def test_what_would_be_refused_when_read_is_refused_when_written(build: Any) -> None:
    few, many = ([n * PRIME for n in range(count)] for count in (128, 129))
    assert values.decode(values.encode(build(few))) == build(few)
    with pytest.raises(UnserialisableValueError, match="129 elements of one hash"):
        values.encode({"x": build(many)})


def test_sets_with_many_small_collisions_are_values() -> None:
    grid = {(x, y, z) for x in range(-9, 9) for y in range(-9, 9) for z in range(-9, 9)}
    assert len(set(map(hash, grid))) < len(grid) - 500
    assert values.decode(values.encode(grid)) == grid


def test_zones_that_somebody_made_up_are_looked_for_a_bounded_number_of_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def find(key: str) -> ZoneInfo:
        asked.append(key)
        return ZoneInfo(key)

    monkeypatch.setattr(decode, "ZoneInfo", find)
    monkeypatch.setattr(decode, "_lacking", set())
    monkeypatch.setattr(decode, "_zones", {})
    moment = '{"$datetime":["2026-07-01T12:00:00+02:00","zone","%s",0]}'
    names = [f"Mars/{n}" for n in range(5_000)] + ["Europe/Paris"]
    found = values.decode(f"[{','.join(moment % name for name in names)}]".encode())
    assert [str(one.tzinfo) for one in found] == names
    assert type(found[-1].tzinfo) is ZoneInfo
    assert len(asked) < 1_100


def test_a_zone_that_this_host_lacks_keeps_the_instant() -> None:
    text = b'{"$datetime":["2026-07-01T12:00:00+02:00","zone","Mars/Olympus",0]}'
    moment = values.decode(text)
    assert moment == datetime(2026, 7, 1, 10, tzinfo=UTC)
    assert str(moment.tzinfo) == "Mars/Olympus"


def test_uuids_and_decimals_keep_every_digit() -> None:
    value = {"id": UUID(int=7), "price": Decimal("1.500"), "nothing": Decimal("-0E+5")}
    again = values.decode(values.encode(value))
    assert str(again["price"]) == "1.500"
    assert str(again["nothing"]) == "-0E+5"
    assert again["id"] == UUID(int=7)


_ODD = re.compile(rb"[0-9][eE]\+?[0-9]{3}|[0-9]{300}")


@given(
    st.lists(
        st.sampled_from([b"1", b"e", b"E", b"+", b"-", b"x", b" ", b"99", b"e+308", b"7" * 150])
    ).map(b"".join)
)
def test_numbers_that_may_be_refused_are_found_like_by_the_expression_that_describes_them(
    text: bytes,
) -> None:
    assert values._may_have_odd_number(text) == bool(_ODD.search(text))
