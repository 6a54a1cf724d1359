"""Values that the codec takes, and what has to survive of them."""

from __future__ import annotations

import math
from datetime import UTC, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from hypothesis import strategies as st

ZONES = ["Europe/Berlin", "America/New_York", "UTC", "Australia/Lord_Howe"]


def zones() -> st.SearchStrategy[Any]:
    offsets = st.timedeltas(min_value=timedelta(hours=-23), max_value=timedelta(hours=23)).map(
        timezone
    )
    named = st.builds(
        timezone,
        st.timedeltas(min_value=timedelta(hours=-23), max_value=timedelta(hours=23)),
        st.text(max_size=5),
    )
    return st.one_of(st.none(), st.just(UTC), offsets, named, st.sampled_from(ZONES).map(ZoneInfo))


TEXTS = st.text(max_size=20)


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(10**40), max_value=10**40),
    st.floats(),
    TEXTS,
    TEXTS.map(lambda text: f"${text}"),
    st.binary(max_size=20),
    st.datetimes(timezones=zones(), allow_imaginary=True),
    st.datetimes().map(lambda moment: moment.replace(fold=1)),
    st.dates(),
    st.times(),
    st.times(timezones=zones()),
    st.timedeltas(),
    st.decimals(),
    st.decimals(allow_nan=False).map(lambda number: number.scaleb(3)),
    st.uuids(),
)


KEYS = st.recursive(
    st.one_of(TEXTS, TEXTS.map(lambda text: f"${text}"), st.integers(), st.booleans(), st.none()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(tuple), st.frozensets(inner, max_size=3)
    ),
    max_leaves=3,
)


VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(TEXTS, inner, max_size=4),
        st.dictionaries(KEYS, inner, max_size=4),
        st.sets(KEYS, max_size=4),
        st.frozensets(KEYS, max_size=4),
    ),
    max_leaves=15,
)


def facts(value: Any) -> Any:
    """Everything about a value that has to survive: types, order of keys, zones, signs, NaN."""
    match value:
        case float():
            return ("float", "nan" if math.isnan(value) else value.hex())
        case Decimal():
            return ("Decimal", value.as_tuple())
        case datetime() | time():
            zone = value.tzinfo
            shown = getattr(zone, "key", None) or (zone and str(zone))
            return (type(value), value.isoformat(), value.fold, type(zone), shown)
        case dict():
            return ("dict", [(facts(key), facts(item)) for key, item in value.items()])
        case list() | tuple():
            return (type(value), [facts(item) for item in value])
        case set() | frozenset():
            return (type(value), sorted(repr(facts(item)) for item in value))
        case _:
            return (type(value), value)
