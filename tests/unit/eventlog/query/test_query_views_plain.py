# ruff: noqa: E501 - a case is a line
"""Values that JSON lacks, as the views show them: in forms that a cast takes."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from histories import Writer, opened

from dynamic_workflows.eventlog.clock import VirtualClock
from dynamic_workflows.eventlog.codec.values import encode
from dynamic_workflows.eventlog.query.reader import Reader
from dynamic_workflows.eventlog.store.base import Store
from dynamic_workflows.eventlog.store.open_store import open_store

_MOMENT = dt.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=ZoneInfo("Europe/Berlin"))
_NAMED = dt.timezone(dt.timedelta(hours=1), 'a "name"]}')


@pytest.fixture
async def log(tmp_path: Path) -> Store:
    return open_store(tmp_path / "log")


async def shown(store: Store, output: Any, sql: str, *, sealed: bool = True) -> Any:
    clock = VirtualClock()
    async with opened(store, "acme", clock=clock) as log:
        await log.append(Writer(clock, "one").life(output=output))
        if sealed:
            await log.seal()
    reader = Reader(store)
    try:
        return reader.query(f"select {sql} as x from instances").to_pylist()[0]["x"]
    finally:
        reader.close()


@pytest.mark.parametrize(
    ("value", "sql", "expected"),
    [
        ({"total": Decimal("1.10")}, "sum((output ->> '$.total')::decimal(18, 2))", Decimal("1.10")),
        ({"total": Decimal("1.10")}, "(output -> '$.total')::decimal(18, 2)", Decimal("1.10")),
        (Decimal("1E+2"), "(output ->> '$')::double", 100.0),
        ({"x": _MOMENT}, "(output ->> '$.x')::timestamptz = timestamptz '2026-01-02 02:04:05.000006Z'", True),
        ({"x": _MOMENT.replace(tzinfo=_NAMED)}, "output ->> '$.x'", "2026-01-02T03:04:05.000006+01:00"),
        ({"x": dt.datetime(2026, 1, 2)}, "(output ->> '$.x')::timestamp", dt.datetime(2026, 1, 2)),
        ({"x": dt.date(2026, 1, 2)}, "(output ->> '$.x')::date", dt.date(2026, 1, 2)),
        ({"x": dt.time(1, 2, 3)}, "(output ->> '$.x')::time", dt.time(1, 2, 3)),
        ({"x": dt.timedelta(-1, 5, 3)}, "(output ->> '$.x')::interval", dt.timedelta(-1, 5, 3)),
        ({"x": UUID(int=7)}, "(output ->> '$.x')::uuid = '00000000-0000-0000-0000-000000000007'", True),
        ({"x": b"\x00ab"}, "from_base64(output ->> '$.x')", b"\x00ab"),
        ({"x": float("-inf")}, "(output ->> '$.x')::double", float("-inf")),
        ({"x": float("nan")}, "isnan((output ->> '$.x')::double)", True),
        ({"x": 2**70}, "(output -> '$.x')::hugeint", 2**70),
        ({"x": -(2**70)}, "output ->> '$.x'", str(-(2**70))),
        ({"x": 2**200}, "output ->> '$.x'", hex(2**200)),
        ({"x": (1, (2, 3))}, "output ->> '$.x[1][0]'", "2"),
        ((), "json_array_length(output)", 0),
        ({"x": {3}}, "output -> '$.x'", "[3]"),
        ({"x": frozenset({4})}, "output -> '$.x[0]'", "4"),
        ({1: "one", 2: "two"}, "output ->> '$.2'", "two"),
        ({1: {2: (3, {4: Decimal("5.5")})}}, "(output ->> '$.1.2[1].4')::double", 5.5),
        ({"$total": 9, "n": {"m": [1, 2]}}, "output ->> '$.\"$total\"'", "9"),
        ({"$total": 9, "n": {"m": [1, 2]}}, "output ->> '$.n.m[1]'", "2"),
        ({(1, 2): "pair", None: 0, True: 1}, "json_keys(output)", ["[1,2]", "null", "true"]),
        ({1: "int", "1": "text"}, "output", '[[1,"int"],["1","text"]]'),
        ({"x": '{"$decimal":"1"} [ ] { } "q" \\'}, "output ->> '$.x'", '{"$decimal":"1"} [ ] { } "q" \\'),
        ({"x": ['{"$tuple":[1]}', (1,)]}, "output ->> '$.x[0]'", '{"$tuple":[1]}'),
        ({"x": '"$'}, "output ->> '$.x'", '"$'),
    ],
)  # fmt: skip
async def test_a_value_has_the_form_that_its_cast_takes(
    log: Store, value: Any, sql: str, expected: Any
) -> None:
    assert await shown(log, value, sql) == expected


async def test_unsealed_rows_are_shown_alike(log: Store) -> None:
    assert await shown(log, {1: (2,)}, "output ->> '$.1[0]'", sealed=False) == "2"


async def test_an_error_that_the_query_catches_hides_no_value(log: Store) -> None:
    assert await shown(log, {1: (2,)}, "try((output ->> '$.1[0]')::int)") == 2


async def test_a_value_without_tags_is_shown_as_it_was_written(log: Store) -> None:
    value = {"a": [1, 2.5, None, "x"], "b": {"c": {}}, "d": []}
    assert await shown(log, value, "output::varchar") == encode(value).decode()


async def test_what_nests_too_deep_keeps_its_tags_and_spoils_nothing(log: Store) -> None:
    value: Any = 1
    for _ in range(40):
        value = (value,)
    assert "$tuple" in await shown(log, {"x": value, "y": Decimal(2)}, "output ->> '$.x'")


@pytest.fixture
def reader(log: Store) -> Iterator[Reader]:
    reader = Reader(log)
    yield reader
    reader.close()


async def test_how_long_somebody_waits_is_a_duration_in_python(reader: Reader) -> None:
    sql = "select timestamptz '2026-03-01' - timestamptz '2026-01-01 00:00:01' as waiting"
    assert reader.query(sql).to_pylist() == [{"waiting": dt.timedelta(days=58, seconds=86399)}]
    nothing = reader.query("select null::interval as x, interval 1 month as y").to_pylist()
    assert nothing == [{"x": None, "y": dt.timedelta(days=30)}]
