"""Encode: turns values into plain data that JSON can hold.

See `values.py` for the format. Two passes: `count_nodes` finds out, fast, that a value needs no
tags; `tagged` copies a value, tags what JSON lacks, and names the place of what cannot be stored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any, TypeAlias
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec

from ..errors import UnserialisableValueError, ValueTooLargeError
from .decode import alike

DEPTH_MAX = 400
"""How deep a value may nest; a tag counts twice."""

# A value with sharing may be written out far larger than it is in memory; these end the walk early.
NODES_MAX = 32_000_000
TAGGED_NODES_MAX = 4_000_000

_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1

_Path: TypeAlias = "tuple[_Path, Any] | None"

_to_json = msgspec.json.Encoder().encode


def count_nodes(value: dict[Any, Any] | list[Any], depth: int) -> int:
    """Return the number of nodes of a plain value, or -1 when it needs the slow pass of
    `tagged`."""
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
            more = count_nodes(item, depth + 1)
            if more < 0:
                return -1
            nodes += more
        else:
            return -1
    if nodes > NODES_MAX:
        raise too_large(nodes, NODES_MAX)
    return nodes


def tagged(value: Any, *, takes_objects: bool = True) -> Any:
    """A copy of the value in which everything that JSON lacks is tagged."""
    return PlainWriter(takes_objects=takes_objects).write(value, 1, None, "")


class PlainWriter:
    """The slow pass: it counts nodes and keeps the path, for error messages."""

    def __init__(self, *, takes_objects: bool = True) -> None:
        """`takes_objects`: whether dataclasses and models are written, as dicts of their fields."""
        self._nodes = 0
        self._takes_objects = takes_objects

    def write(self, value: Any, depth: int, path: _Path, place: str) -> Any:
        """The value at a depth and a place, with what JSON lacks tagged."""
        kind = type(value)
        if kind is str:
            return text(value, place)
        if kind is bool or value is None:
            return value
        if kind is int:
            return value if _INT_MIN <= value <= _INT_MAX else {"$int": hex(value)}
        if kind is float:
            return value if value - value == 0.0 else {"$float": str(value)}
        scalar = SCALARS.get(kind)
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
            return written_collection(value, items, place)
        if kind is dict:
            self._count(len(value))
            if all(type(key) is str and key[:1] != "$" for key in value):
                plain = {}
                for key, item in value.items():
                    name = text(key, f"{place}.{key!a}")
                    plain[name] = self.write(item, depth + 1, path, f"{place}.{key}")
                return plain
            check_apart(value, place)
            pairs = []
            for key, item in value.items():
                name = self.write(key, depth + 3, path, f"{place} key {short(key)}")
                pairs.append([name, self.write(item, depth + 3, path, f"{place}[{short(key)}]")])
            return {"$dict": pairs}
        fields = _NONE
        if self._takes_objects or issubclass(kind, EncodedRecord):
            fields = _fields(value)
        if fields is not _NONE:
            return self.write(fields, depth + 1, path, place)
        raise refused(value, place)

    def _count(self, nodes: int) -> None:
        self._nodes += nodes
        if self._nodes > TAGGED_NODES_MAX:
            raise too_large(self._nodes, TAGGED_NODES_MAX)


def text(value: str, place: str) -> str:
    """Return the text; raises UnserialisableValueError where it has no UTF-8."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UnserialisableValueError(
            f"the text{at(place)} holds a lone surrogate at position {error.start}, which is no"
            " character: decode it properly, or store bytes"
        ) from None
    return value


def written_collection(value: Collection[Any], items: list[Any], place: str) -> Any:
    """Return what stands for a list, tuple or set whose elements are written as `items`.

    Raises UnserialisableValueError for a set that would be too slow to read. Elements of a set are
    sorted by their text, so that equal sets have equal texts.
    """
    kind = type(value)
    if kind is list:
        return items
    if kind is tuple:
        return {"$tuple": items}
    check_apart(value, place)
    items.sort(key=_to_json)
    return {"$set": items} if kind is set else {"$frozenset": items}


def check_apart(value: Collection[Any], place: str) -> None:
    """Raise UnserialisableValueError for a collection that would be too slow to read."""
    many = alike(value)
    if many:
        raise UnserialisableValueError(
            f"the {type(value).__name__}{at(place)} has {many} elements of one hash, which make it"
            " too slow to read: store a list"
        )


def short(value: Any) -> str:
    """Return a key as an error message may show it; it never runs code of a tenant's class."""
    return repr(value)[:40] if type(value) in (str, int, float, bool) else type(value).__name__


def at(place: str) -> str:
    """Return the path within the value, for an error message."""
    return f" at value{place[:200]}" if place else ""


class EncodedRecord(dict[str, Any]):
    """A record that the platform gives to tenants; the codec stores it as the dict that it is."""


_NONE = object()


def _fields(value: Any) -> Any:
    """The fields of a record, a dataclass or a pydantic model, as a dict; or _NONE."""
    kind: Any = type(value)
    if hasattr(kind, "__dataclass_fields__") and not issubclass(kind, tuple(EXACT)):
        names = [field.name for field in dataclasses.fields(kind)]
        return {name: getattr(value, name) for name in names if hasattr(value, name)}
    if issubclass(kind, EncodedRecord):
        return dict(value)
    if is_model(kind):
        # Not by model_dump: serializers and `exclude` would change in silence what is stored.
        held = value.__dict__
        if getattr(kind, "__pydantic_root_model__", False):
            return held["root"]
        fields = {name: held[name] for name in kind.model_fields if name in held}
        return {**fields, **(value.__pydantic_extra__ or {})}
    return _NONE


def is_model(kind: type[Any]) -> bool:
    """Return whether the class is a pydantic model."""
    return hasattr(kind, "__pydantic_validator__") and hasattr(kind, "model_fields")


def refused(value: Any, place: str) -> UnserialisableValueError:
    """Return the error for a value that the codec does not take."""
    kind = type(value)
    name = kind.__qualname__
    message = f"a value of type {name}{at(place)} cannot be stored"
    if kind is bytearray:
        message += ": convert it to bytes, or annotate the function that returns it with its type"
    elif isinstance(value, Enum):
        message += (
            ": give its value, or annotate the function that returns it with the enum to get it"
            " back"
        )
    elif isinstance(value, tuple(EXACT)):
        base = next(base for base in kind.__mro__ if base in EXACT).__name__
        message += (
            f", being a subclass of {base}: convert it to {base}, or annotate the function that"
            " returns it with the type to get it back"
        )
    elif isinstance(value, (datetime, date, time)):
        message += ": only the standard library's own types are taken"
    else:
        message += (
            ": return None, bool, int, float, str, bytes, datetime, date, time, timedelta, Decimal,"
            " UUID, or lists, tuples, sets and dicts of them; steps also take dataclasses, models,"
            " enums, paths and the like"
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
        return {tag: [value.isoformat(), "name", text(str(zone), place), value.fold]}
    if type(zone).__name__ == "TzInfo" and type(zone).__module__.startswith("pydantic_core."):
        # What pydantic gives to the moments that it reads.
        return {tag: [value.isoformat(), "pydantic", "", value.fold]}
    if type(zone) is ZoneInfo and zone.key is not None:
        return {tag: [value.isoformat(), "zone", text(zone.key, place), value.fold]}
    raise UnserialisableValueError(
        f"the time zone of type {type(zone).__qualname__}{at(place)} cannot be stored: use"
        " datetime.timezone, or zoneinfo.ZoneInfo with a key",
        place=f"value{place}",
        type=type(zone).__qualname__,
    )


def _is_unnamed(zone: timezone) -> bool:
    return zone is UTC or str(zone) == str(timezone(zone.utcoffset(None)))


SCALARS: dict[type, Callable[[Any, str], Any]] = {
    bytes: lambda value, place: {"$bytes": value},  # The encoder writes base64, and faster.
    datetime: _write_datetime,
    date: lambda value, place: {"$date": value.isoformat()},
    time: _write_datetime,
    timedelta: lambda value, place: {"$timedelta": [value.days, value.seconds, value.microseconds]},
    Decimal: lambda value, place: {"$decimal": str(value)},
    UUID: lambda value, place: {"$uuid": str(value)},
}

EXACT = frozenset(SCALARS) | {str, int, float, list, tuple, set, frozenset, dict}


# --- errors --------------------------------------------------------------------------------------


def too_large(size: int, bytes_max: int) -> ValueTooLargeError:
    """Return the error for a value above a limit."""
    return ValueTooLargeError(
        f"the value takes {size} bytes, more than the limit of {bytes_max}: store it elsewhere and"
        " pass a reference",
        size=size,
        limit=bytes_max,
    )


def too_deep(path: _Path) -> UnserialisableValueError:
    """Return the error for a value that nests too deeply, or contains itself."""
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
