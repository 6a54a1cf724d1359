"""Tagging: the half of the codec that writes; values as plain data that JSON can hold.

See `codec.py` for the form. Two walks: `weigh` finds out, fast, that a value needs no tags;
`tagged` copies a value, tags what JSON lacks, and says where something is that cannot be stored.
"""

from __future__ import annotations

import dataclasses
from base64 import b64encode
from collections.abc import Callable, Collection
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any, TypeAlias
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec

from .errors import UnserialisableValueError, ValueTooLargeError
from .untagging import alike

DEPTH_MAX = 400
"""How deep a value may nest; a tag counts twice."""

# A value with sharing may be written out far larger than it is in memory; these end the walk early.
NODES_MAX = 32_000_000
TAGGED_NODES_MAX = 4_000_000

_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1

_Path: TypeAlias = "tuple[_Path, Any] | None"

_to_json = msgspec.json.Encoder().encode


def weigh(value: dict[Any, Any] | list[Any], depth: int) -> int:
    """How many nodes a plain value has, or -1 when it needs the slow walk (which judges)."""
    if depth > DEPTH_MAX:
        return -1
    items: Any
    if type(value) is dict:
        for key in value:
            if type(key) is not str or key[:1] == "$":
                return -1
        items = value.values()
    else:
        items = value
    nodes = len(value)
    for item in items:
        kind = type(item)
        if kind is str or item is None or kind is bool:
            continue
        if kind is int:
            if not _INT_MIN <= item <= _INT_MAX:
                return -1
        elif kind is float:
            # Infinities and NaN differ from themselves less themselves; JSON has no word for them.
            if item - item != 0.0:
                return -1
        elif kind is dict or kind is list:
            more = weigh(item, depth + 1)
            if more < 0:
                return -1
            nodes += more
        else:
            return -1
    if nodes > NODES_MAX:
        raise too_large(nodes, NODES_MAX)
    return nodes


def tagged(value: Any) -> Any:
    """A copy of the value in which everything that JSON lacks is tagged."""
    return _Writer().write(value, 1, None, "")


class _Writer:
    """The slow walk, which counts as it goes and knows where it is."""

    def __init__(self) -> None:
        self._nodes = 0

    def write(self, value: Any, depth: int, path: _Path, place: str) -> Any:
        kind = type(value)
        if kind is str:
            return _text(value, place)
        if kind is bool or value is None:
            return value
        if kind is int:
            return value if _INT_MIN <= value <= _INT_MAX else {"$int": hex(value)}
        if kind is float:
            return value if value - value == 0.0 else {"$float": str(value)}
        scalar = _SCALARS.get(kind)
        if scalar is not None:
            return scalar(value, place)
        # From here on containers: all work is done in this one frame per level.
        path = (path, value)
        if depth > DEPTH_MAX:
            raise too_deep(path)
        if kind is list or kind is tuple or kind is set or kind is frozenset:
            self._count(len(value))
            inner = depth + 1 if kind is list else depth + 2
            items = []
            for index, item in enumerate(value):
                items.append(self.write(item, inner, path, f"{place}[{index}]"))
            if kind is list:
                return items
            if kind is tuple:
                return {"$tuple": items}
            _check_apart(value, place)
            items.sort(key=_to_json)
            return {"$set": items} if kind is set else {"$frozenset": items}
        if kind is dict:
            self._count(len(value))
            if all(type(key) is str and key[:1] != "$" for key in value):
                plain = {}
                for key, item in value.items():
                    name = _text(key, f"{place}.{key!a}")
                    plain[name] = self.write(item, depth + 1, path, f"{place}.{key}")
                return plain
            _check_apart(value, place)
            pairs = []
            for key, item in value.items():
                name = self.write(key, depth + 3, path, f"{place} key {_short(key)}")
                pairs.append([name, self.write(item, depth + 3, path, f"{place}[{_short(key)}]")])
            return {"$dict": pairs}
        fields = _fields(value)
        if fields is not None:
            return self.write(fields, depth + 1, path, place)
        raise _refused(value, place)

    def _count(self, nodes: int) -> None:
        self._nodes += nodes
        if self._nodes > TAGGED_NODES_MAX:
            raise too_large(self._nodes, TAGGED_NODES_MAX)


def _text(value: str, place: str) -> str:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UnserialisableValueError(
            f"the text{_at(place)} holds a lone surrogate at position {error.start}, which is no"
            " character: decode it properly, or store bytes"
        ) from None
    return value


def _check_apart(value: Collection[Any], place: str) -> None:
    many = alike(value)
    if many:
        raise UnserialisableValueError(
            f"the {type(value).__name__}{_at(place)} has {many} elements of one hash, which make it"
            " too slow to read: store a list"
        )


def _short(value: Any) -> str:
    """A key as it may stand in a message: never the code of a tenant's class."""
    return repr(value)[:40] if type(value) in (str, int, float, bool) else type(value).__name__


def _at(place: str) -> str:
    return f" at value{place[:200]}" if place else ""


class Record(dict[str, Any]):
    """What we hand to tenants with keys and more: stored as the plain dict that it is."""


def _fields(value: Any) -> dict[str, Any] | None:
    """The fields of a record, a dataclass or a pydantic model; of the former two one level."""
    kind = type(value)
    if dataclasses.is_dataclass(kind):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(kind)}
    if issubclass(kind, Record):
        return dict(value)
    if hasattr(kind, "__pydantic_serializer__") and hasattr(kind, "model_dump"):
        dumped = value.model_dump(warnings=False)
        return dumped if type(dumped) is dict else None
    return None


def _refused(value: Any, place: str) -> UnserialisableValueError:
    kind = type(value)
    name = kind.__qualname__
    message = f"a value of type {name}{_at(place)} cannot be stored"
    if kind is bytearray:
        message += ": convert it to bytes, or annotate the step's function with its return type"
    elif isinstance(value, Enum):
        message += (
            ": annotate the step's function with the enum as its return type to get it back, or"
            " return its value"
        )
    elif isinstance(value, tuple(_EXACT)):
        base = next(base for base in kind.__mro__ if base in _EXACT).__name__
        message += (
            f", being a subclass of {base}: annotate the step's function with the type as its"
            f" return type to get it back, or convert it to {base}"
        )
    elif isinstance(value, (datetime, date, time)):
        message += ": only the standard library's own types are taken"
    else:
        message += (
            ": return None, bool, int, float, str, bytes, datetime, date, time, timedelta, Decimal,"
            " UUID, or lists, tuples, sets and dicts of them"
        )
    return UnserialisableValueError(message, place=f"value{place}", type=name)


def _write_datetime(value: datetime | time, place: str) -> Any:
    tag = "$datetime" if type(value) is datetime else "$time"
    zone = value.tzinfo
    if zone is None or (type(zone) is timezone and _is_unnamed(zone)):
        if not value.fold:
            return {tag: value.isoformat()}
        return {tag: [value.isoformat(), "offset", "", 1]}
    if type(zone) is timezone:
        return {tag: [value.isoformat(), "name", _text(str(zone), place), value.fold]}
    if type(zone) is ZoneInfo and zone.key is not None:
        return {tag: [value.isoformat(), "zone", _text(zone.key, place), value.fold]}
    raise UnserialisableValueError(
        f"the time zone of type {type(zone).__qualname__}{_at(place)} cannot be stored: use"
        " datetime.timezone, or zoneinfo.ZoneInfo with a key",
        place=f"value{place}",
        type=type(zone).__qualname__,
    )


def _is_unnamed(zone: timezone) -> bool:
    return zone is UTC or str(zone) == str(timezone(zone.utcoffset(None)))


_SCALARS: dict[type, Callable[[Any, str], Any]] = {
    bytes: lambda value, place: {"$bytes": b64encode(value).decode("ascii")},
    datetime: _write_datetime,
    date: lambda value, place: {"$date": value.isoformat()},
    time: _write_datetime,
    timedelta: lambda value, place: {"$timedelta": [value.days, value.seconds, value.microseconds]},
    Decimal: lambda value, place: {"$decimal": str(value)},
    UUID: lambda value, place: {"$uuid": str(value)},
}

_EXACT = frozenset(_SCALARS) | {str, int, float, list, tuple, set, frozenset, dict}


# --- errors --------------------------------------------------------------------------------------


def too_large(size: int, bytes_max: int) -> ValueTooLargeError:
    """The error for a value above a limit."""
    return ValueTooLargeError(
        f"the value takes {size} bytes, more than the limit of {bytes_max}: store it elsewhere and"
        " pass a reference",
        size=size,
        limit=bytes_max,
    )


def too_deep(path: _Path) -> UnserialisableValueError:
    """The error for a value that nests too deeply, or contains itself."""
    if _is_cycle(path):
        return UnserialisableValueError(
            "the value contains itself: a cycle cannot be stored; break it or store an id"
        )
    return UnserialisableValueError(
        f"the value nests deeper than {DEPTH_MAX} levels: flatten it before it is stored"
    )


def _is_cycle(path: _Path) -> bool:
    seen = []
    while path is not None:
        seen.append(id(path[1]))
        path = path[0]
    return len(set(seen)) < len(seen)
