"""Codec: values as JSON text and back, with the same types.

Plain values look plain, so that SQL reads into them: None, bool, int (64 bits), float, str, list,
and dicts whose keys are text. Everything else is an object with one key that begins with `$` and
names the type: `{"$decimal": "1.50"}`, `{"$tuple": [1, 2]}`. A user's dict that has a key beginning
with `$`, or a key that is no text, is written as `{"$dict": [[key, value], …]}`; so in what
`encode` writes, a `$` at the start of a key is always ours: nobody's data can pass for a tag.

Exact types only. A subclass would come back as its base, so it is refused, with the place and the
type; dataclasses and pydantic models become dicts. Sets are written in the order of their elements'
texts: equal values give equal texts.
"""

from __future__ import annotations

import binascii
import dataclasses
import re
from base64 import b64decode, b64encode
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal, InvalidOperation
from enum import Enum
from typing import Any, TypeAlias, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec

from .errors import UnserialisableValueError, ValueTooLargeError

VALUE_BYTES_MAX = 64 * 1024 * 1024
"""The most bytes that a value's text may have, unless the caller says otherwise."""

DEPTH_MAX = 400
"""How deep a value may nest; a tag counts twice."""

# A value with sharing may be written out far larger than it is in memory; these end the walk early.
_NODES_MAX = 32_000_000
_TAGGED_NODES_MAX = 4_000_000

_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1

_Moment = TypeVar("_Moment", datetime, time)
_Path: TypeAlias = "tuple[_Path, Any] | None"

_to_json = msgspec.json.Encoder().encode
_from_json = msgspec.json.Decoder().decode
_skim = msgspec.json.Decoder(msgspec.Raw).decode


def encode(value: Any, *, bytes_max: int = VALUE_BYTES_MAX) -> bytes:
    """The value as JSON text in UTF-8; equal values give equal bytes up to the order of dicts.

    Raises UnserialisableValueError with the place and the type, or ValueTooLargeError.
    """
    try:
        kind = type(value)
        if kind is dict or kind is list:
            text = _to_json(value if _weigh(value, 1) >= 0 else _tagged(value))
        elif kind is str or kind is bool or value is None:
            text = _to_json(value)
        else:
            text = _to_json(_tagged(value))
    except RecursionError:
        raise _too_deep(None) from None
    except UnicodeEncodeError:
        _tagged(value)
        raise AssertionError("the slow walk finds the surrogate") from None
    if len(text) > bytes_max:
        raise _too_large(len(text), bytes_max)
    return text


def decode(text: bytes) -> Any:
    """The value that `encode` wrote; UnserialisableValueError for a text that it never writes."""
    try:
        value = _from_json(text)
        if b'"$' in text or b"\\u0024" in text:
            value = _revive(value)
    except RecursionError:
        raise _too_deep(None) from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise _invalid(str(error)) from None
    return value


def check(text: bytes, bytes_max: int = VALUE_BYTES_MAX) -> None:
    """Prove that a text from elsewhere is a value; raises as `decode` and `encode` do.

    Cheap, and for large plain texts without building the value: what an isolate sends may be made
    to cost its reader a multiple of its size in memory.
    """
    if len(text) > bytes_max:
        raise _too_large(len(text), bytes_max)
    if b'"$' in text or b"\\u0024" in text:
        if text.count(b",") + text.count(b"[") + text.count(b"{") > 2 * _TAGGED_NODES_MAX:
            raise _too_large(len(text), bytes_max)
        decode(text)
    elif len(text) <= _SKIM_FROM or _ODD_NUMBER.search(text):
        decode(text)
    else:
        try:
            _skim(text)
            # Skimming proves the grammar but does not look at the bytes of strings.
            text.decode("utf-8")
        except RecursionError:
            raise _too_deep(None) from None
        except (msgspec.MsgspecError, ValueError) as error:
            raise _invalid(str(error)) from None


_SKIM_FROM = 256 * 1024
# A number that has no float, or more digits than an int may have, is refused only when it is built.
_ODD_NUMBER = re.compile(rb"[0-9][eE]\+?[0-9]{3}|[0-9]{300}")


def _too_large(size: int, bytes_max: int) -> ValueTooLargeError:
    return ValueTooLargeError(
        f"the value takes {size} bytes, more than the limit of {bytes_max}: store it elsewhere and"
        " pass a reference",
        size=size,
        limit=bytes_max,
    )


def _too_deep(path: _Path) -> UnserialisableValueError:
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


def _invalid(reason: str) -> UnserialisableValueError:
    return UnserialisableValueError(f"not the text of a value: {reason}")


# --- writing -------------------------------------------------------------------------------------


def _weigh(value: dict[Any, Any] | list[Any], depth: int) -> int:
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
            more = _weigh(item, depth + 1)
            if more < 0:
                return -1
            nodes += more
        else:
            return -1
    if nodes > _NODES_MAX:
        raise _too_large(nodes, _NODES_MAX)
    return nodes


def _tagged(value: Any) -> Any:
    return _Writer().write(value, 1, None, "")


class _Writer:
    """The slow walk: a copy of the value in which everything that JSON lacks is tagged."""

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
            raise _too_deep(path)
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
        if self._nodes > _TAGGED_NODES_MAX:
            raise _too_large(self._nodes, _TAGGED_NODES_MAX)


def _text(value: str, place: str) -> str:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UnserialisableValueError(
            f"the text{_at(place)} holds a lone surrogate at position {error.start}, which is no"
            " character: decode it properly, or store bytes"
        ) from None
    return value


def _short(value: Any) -> str:
    """A key as it may stand in a message: never the code of a tenant's class."""
    return repr(value)[:40] if type(value) in (str, int, float, bool) else type(value).__name__


def _at(place: str) -> str:
    return f" at value{place[:200]}" if place else ""


def _fields(value: Any) -> dict[str, Any] | None:
    """The fields of a dataclass or a pydantic model, one level for the former."""
    kind = type(value)
    if dataclasses.is_dataclass(kind):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(kind)}
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


# --- reading -------------------------------------------------------------------------------------


def _revive(value: Any) -> Any:
    """The value with its tags replaced; works in place where it can."""
    if type(value) is dict:
        for key in value:
            if key[:1] == "$":
                if len(value) != 1:
                    raise _invalid("a tag has company")
                reader = _READERS.get(key)
                if reader is None:
                    raise _invalid(f"unknown tag {key[:40]!r}")
                inner = value[key]
                try:
                    if key in _CONTAINERS:
                        return reader(_list(_revive(_list(inner))))
                    return reader(inner)
                except (TypeError, ValueError, OverflowError, InvalidOperation, AttributeError):
                    raise _invalid(f"{key} holds something else") from None
            item = value[key]
            if type(item) is dict or type(item) is list:
                value[key] = _revive(item)
    elif type(value) is list:
        for index, item in enumerate(value):
            if type(item) is dict or type(item) is list:
                value[index] = _revive(item)
    return value


def _list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise TypeError
    return value


def _str(value: Any) -> str:
    if type(value) is not str:
        raise TypeError
    return value


def _read_bytes(value: Any) -> bytes:
    try:
        return b64decode(_str(value), validate=True)
    except binascii.Error:
        raise ValueError from None


def _read_int(value: Any) -> int:
    if not _HEX.fullmatch(_str(value)):
        raise ValueError
    return int(value, 16)


_HEX = re.compile(r"-?0x[0-9a-f]+")


def _read_float(value: Any) -> float:
    if value not in ("nan", "inf", "-inf"):
        raise ValueError
    return float(value)


def _read_datetime(value: Any) -> datetime:
    iso, zone, fold = _parts(value)
    return _place(datetime.fromisoformat(iso), zone, fold)


def _read_time(value: Any) -> time:
    iso, zone, fold = _parts(value)
    return _place(time.fromisoformat(iso), zone, fold)


def _parts(value: Any) -> tuple[str, tuple[str, str] | None, int]:
    if type(value) is str:
        return value, None, 0
    iso, kind, name, fold = _list(value)
    if fold not in (0, 1) or kind not in ("offset", "name", "zone"):
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
    return moment.replace(tzinfo=_zone(name, offset), fold=fold)


def _zone(key: str, offset: timedelta | None) -> tzinfo:
    try:
        return ZoneInfo(key)
    except Exception:
        # A host without that zone still knows the instant; a time of day has no offset to go by.
        if offset is None:
            raise ValueError from None
        return timezone(offset, key)


def _read_timedelta(value: Any) -> timedelta:
    days, seconds, microseconds = _list(value)
    if not type(days) is type(seconds) is type(microseconds) is int:
        raise TypeError
    return timedelta(days, seconds, microseconds)


def _read_dict(pairs: list[Any]) -> dict[Any, Any]:
    found = {}
    for pair in pairs:
        key, item = _list(pair)
        found[key] = item
    return found


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
    "$set": set,
    "$frozenset": frozenset,
    "$dict": _read_dict,
}
_CONTAINERS = frozenset({"$tuple", "$set", "$frozenset", "$dict"})
