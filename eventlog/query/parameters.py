"""Query parameters: values that DuckDB would take for others are refused before it sees them.

It binds an integer beyond 128 bits with its sign as the one it wraps around to, and a Decimal of
more digits than its type has as the nearest double.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from ..errors import QueryError

_INT_MIN, _INT_MAX = -(1 << 127), (1 << 127) - 1
_DIGITS_MAX = 38


def check_parameters(params: Any) -> None:
    """Raise QueryError for a parameter that would reach the statement as another value."""
    if not params:
        return
    if isinstance(params, dict):
        for name, value in params.items():
            _check(value, f"${name}")
    else:
        for number, value in enumerate(params, 1):
            _check(value, f"number {number}")


def _check(value: object, name: str) -> None:
    waiting = [value]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if isinstance(one, int):
            if not _INT_MIN <= one <= _INT_MAX:
                raise _refused(name, "an integer beyond 128 bits")
        elif isinstance(one, Decimal):
            if one.is_finite() and _digits(one) > _DIGITS_MAX:
                raise _refused(name, f"a Decimal of more than {_DIGITS_MAX} digits")
        elif isinstance(one, (list, tuple, dict, set, frozenset)) and id(one) not in seen:
            seen.add(id(one))
            waiting += _items(one)


def _items(value: Any) -> Iterable[Any]:
    return [*value, *value.values()] if isinstance(value, dict) else value


def _digits(value: Decimal) -> int:
    """How many digits a column needs that holds it exactly, those after the point included."""
    _, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int)
    return len(digits) + exponent if exponent >= 0 else max(len(digits), 1 - exponent)


def _refused(name: str, what: str) -> QueryError:
    return QueryError(
        f"the parameter {name} of this query is {what}, which SQL has no number for: give it as"
        " text, and compare it as text"
    )
