"""Decode: turns what came from JSON into the values that it stands for.

See `values.py` for the format. The author of the text may be hostile: a tag that is not exactly
what `encode.py` writes is refused.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import Any, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo, available_timezones

from ..errors import UnserialisableValueError

_Moment = TypeVar("_Moment", datetime, time)

OBJECT, VALUE = "$object", "$value"
"""The keys that mark an object of a class, and what stands for it where that is no dict of fields.
"""


def invalid(reason: str) -> UnserialisableValueError:
    """Return the error for a text that the codec never writes."""
    return UnserialisableValueError(f"not the text of a value: {reason}")


def revive(value: object, lifted: Sequence[bytes] = ()) -> object:
    """Return the value with its tags replaced; works in place where it can.

    `lifted`: large bytes that were taken out of the text, in whose place their numbers stand.
    """
    if type(value) is dict:
        if OBJECT in value:
            return _unmarked(value, lifted)
        for key in value:
            if key[:1] == "$":
                if len(value) != 1:
                    raise invalid("a tag has company")
                reader = _READERS.get(key)
                if reader is None:
                    raise invalid(f"unknown tag {key[:40]!r}")
                inner = value[key]
                if key == "$bytes" and type(inner) is int and 0 <= inner < len(lifted):
                    return lifted[inner]
                try:
                    if key in _CONTAINERS:
                        return reader(_list(revive(_list(inner), lifted)))
                    return reader(inner)
                except (TypeError, ValueError, OverflowError, InvalidOperation, AttributeError):
                    raise invalid(f"{key} holds something else") from None
            item = value[key]
            if type(item) is dict or type(item) is list:
                value[key] = revive(item, lifted)
    elif type(value) is list:
        for index, item in enumerate(value):
            if type(item) is dict or type(item) is list:
                value[index] = revive(item, lifted)
    return value


def _unmarked(value: dict[str, object], lifted: Sequence[bytes]) -> object:
    """Return what stands for an object whose class is not known: its fields, or its value."""
    _, more = split_mark(value.pop(OBJECT))
    for key in more:
        more[key] = revive(more[key], lifted)
    if VALUE in value:
        if len(value) != 1:
            raise invalid("a value has company")
        return revive(value[VALUE], lifted)
    if any(key[:1] == "$" for key in value):
        raise invalid("a field begins with $")
    return revive(value, lifted)


def split_mark(mark: object) -> tuple[str | None, dict[str, object]]:
    """Return the class that an object's mark names (None: the expected one), and its other data."""
    name, more = mark if type(mark) is list and len(mark) == 2 else (mark, {})
    if not (name is None or type(name) is str) or type(more) is not dict:
        raise invalid(f"{OBJECT} holds something else")
    return name, more


def untag(key: str, inner: object, lifted: Sequence[bytes] = ()) -> object:
    """Return the scalar that one tag stands for, as `revive` has it."""
    return revive({key: inner}, lifted)


def _list(value: object) -> list[object]:
    if type(value) is not list:
        raise TypeError
    return value


def _str(value: object) -> str:
    if type(value) is not str:
        raise TypeError
    return value


def _read_bytes(value: object) -> bytes:
    if type(value) is bytes:
        return value  # It has not been JSON yet.
    try:
        return b64decode(_str(value), validate=True)
    except binascii.Error:
        raise ValueError from None


def _read_int(value: Any) -> int:
    if not _HEX.fullmatch(_str(value)):
        raise ValueError
    return int(value, 16)


_HEX = re.compile(r"-?0x[0-9a-f]+")


def _read_float(value: object) -> float:
    if value not in ("nan", "inf", "-inf"):
        raise ValueError
    return float(value)


def _read_datetime(value: object) -> datetime:
    iso, zone, fold = _parts(value)
    return _place(_with_sub_second_offset(datetime.fromisoformat(iso), iso), zone, fold)


def _read_time(value: object) -> time:
    iso, zone, fold = _parts(value)
    return _place(_with_sub_second_offset(time.fromisoformat(iso), iso), zone, fold)


_TINY_OFFSET = re.compile(r"([+-])00:00:00\.([0-9]{6})")


def _with_sub_second_offset(moment: _Moment, iso: str) -> _Moment:
    """`fromisoformat` takes an offset of less than a second for none."""
    tiny = _TINY_OFFSET.search(iso) if moment.tzinfo is UTC else None
    if tiny is None:
        return moment
    sign = -1 if tiny[1] == "-" else 1
    return moment.replace(tzinfo=timezone(timedelta(microseconds=sign * int(tiny[2]))))


def _parts(value: object) -> tuple[str, tuple[str, str] | None, int]:
    if type(value) is str:
        return value, None, 0
    iso, kind, name, fold = _list(value)
    if fold not in (0, 1) or kind not in ("offset", "name", "zone", "pydantic"):
        raise ValueError
    return _str(iso), None if kind == "offset" else (kind, _str(name)), fold


def _place(moment: _Moment, zone: tuple[str, str] | None, fold: int) -> _Moment:
    if zone is None:
        return moment.replace(fold=fold) if fold else moment
    kind, name = zone
    offset = moment.utcoffset()
    if kind == "name":
        if offset is None:
            raise ValueError
        return moment.replace(tzinfo=timezone(offset, name), fold=fold)
    if kind == "pydantic":
        if offset is None:
            raise ValueError
        return moment.replace(tzinfo=_pydantic_zone(offset), fold=fold)
    return moment.replace(tzinfo=_zone(name, offset), fold=fold)


def _zone(key: str, offset: timedelta | None) -> tzinfo:
    zone = _find_zone(key)
    if zone is not None:
        return zone
    # A host without that zone still knows the instant; a time of day has no offset to go by.
    if offset is None:
        raise ValueError
    return timezone(offset, key)


def _pydantic_zone(offset: timedelta) -> tzinfo:
    # Imported for those who store such moments alone.
    from pydantic_core import TzInfo

    zone: tzinfo = TzInfo(int(offset.total_seconds()))
    return zone


_zones: dict[str, ZoneInfo] = {}
_lacking: set[str] = set()
_LACKING_MAX = 1_000
_KEY_MAX = 100


def _find_zone(key: str) -> ZoneInfo | None:
    # Looking in vain opens files, and a text may hold a million invented names.
    if key in _zones:
        return _zones[key]
    if key in _lacking or len(key) > _KEY_MAX:
        return None
    if len(_lacking) >= _LACKING_MAX and key not in _all_zones():
        return None
    try:
        zone = _zones[key] = ZoneInfo(key)
        return zone
    except Exception:
        _lacking.add(key)
        return None


@cache
def _all_zones() -> set[str]:
    return available_timezones()


def _read_timedelta(value: object) -> timedelta:
    days, seconds, microseconds = _list(value)
    if not type(days) is type(seconds) is type(microseconds) is int:
        raise TypeError
    return timedelta(days, seconds, microseconds)


ALIKE_MAX = 128
"""The most elements of a set, or keys of a dict, that may have the same hash."""


def alike(elements: Collection[object]) -> int:
    """Return how many elements share one hash, where these are more than ALIKE_MAX; else 0.

    To build a set of n of them takes n² comparisons: hours, for a hostile text.
    """
    if len(elements) <= ALIKE_MAX or len(elements) - len(set(map(hash, elements))) < ALIKE_MAX:
        return 0
    most = Counter(map(hash, elements)).most_common(1)[0][1]
    return most if most > ALIKE_MAX else 0


def _apart(elements: list[object]) -> list[object]:
    if alike(elements):
        raise ValueError
    return elements


def _read_set(elements: list[object]) -> object:
    # Objects that are seen as their fields have no hash; a list is what is left of their set.
    return elements if _has_fields(elements) else set(_apart(elements))


def _read_frozenset(elements: list[object]) -> object:
    return elements if _has_fields(elements) else frozenset(_apart(elements))


def _read_dict(pairs: list[object]) -> object:
    found = [(key, item) for key, item in map(_list, pairs)]
    if _has_fields([key for key, _ in found]):
        return found
    _apart([key for key, _ in found])
    return dict(found)


def _has_fields(elements: list[object]) -> bool:
    try:
        hash(tuple(elements))
    except TypeError:
        return any(type(element) is dict or type(element) is tuple for element in elements)
    return False


_READERS: dict[str, Callable[[Any], Any]] = {
    "$int": _read_int,
    "$float": _read_float,
    "$bytes": _read_bytes,
    "$datetime": _read_datetime,
    "$date": lambda value: date.fromisoformat(_str(value)),
    "$time": _read_time,
    "$timedelta": _read_timedelta,
    "$decimal": lambda value: Decimal(_str(value)),
    "$uuid": lambda value: UUID(_str(value)),
    "$tuple": tuple,
    "$set": _read_set,
    "$frozenset": _read_frozenset,
    "$dict": _read_dict,
}
_CONTAINERS = frozenset({"$tuple", "$set", "$frozenset", "$dict"})
