"""Parameters of queries: what DuckDB cannot hold is refused, and never another value."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import duckdb
import pytest

from dynamic_workflows.eventlog.errors import QueryError
from dynamic_workflows.eventlog.query.parameters import check_parameters

FITTING: list[Any] = [
    0, -1, 2**63, 2**64 - 1, 2**64, 2**127 - 1, -(2**127), True, Decimal("9" * 38),
    Decimal("-9." + "9" * 37), Decimal("1E-37"), Decimal("1E+37"), Decimal("0E+37"), Decimal("-0"),
    "x", b"x", None, 1.5, [2**100],
]  # fmt: skip
ODD: list[Any] = [
    2**127, -(2**127) - 1, 2**128 - 1, 2**128, 2**200, -(2**200), Decimal("9" * 39),
    Decimal("1." + "1" * 38), Decimal("1E+38"), Decimal("1E-39"), [2**127],
    {"a": [Decimal("9" * 39)]},
    {"a": {"b": (1, -(2**128))}},
]  # fmt: skip


@pytest.mark.parametrize("value", FITTING)
def test_what_fits_comes_back_as_it_was(value: Any) -> None:
    check_parameters([value])
    check_parameters({"a": value})
    rows = duckdb.connect().execute("select $a", {"a": value}).fetchall()
    assert rows == [(value,)]


@pytest.mark.parametrize("value", ODD)
def test_what_does_not_fit_is_refused_by_name(value: Any) -> None:
    with pytest.raises(QueryError, match=r"parameter \$a of this query is"):
        check_parameters({"b": 1, "a": value})
    with pytest.raises(QueryError, match="parameter number 2 of this query is"):
        check_parameters([1, value])


@pytest.mark.parametrize(
    "value", [math.inf, -math.inf, Decimal("Infinity"), math.nan, Decimal("NaN")]
)
def test_what_is_no_number_stays_what_it_is(value: Any) -> None:
    check_parameters([value])
    rows = duckdb.connect().execute("select ?", [value]).fetchall()
    assert str(float(rows[0][0])) == str(float(value))


def test_a_parameter_that_contains_itself_ends_the_look_at_it() -> None:
    value: list[Any] = [1]
    value.append(value)
    check_parameters([value])
