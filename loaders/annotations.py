"""Annotations: values of classes come back as themselves where a step's return type names them.

The value is written as plain data and read by validating that data, live and on replay alike. Data
that does not fit the annotation stays what the codec makes of it: an annotation revives, it does
not judge. pydantic is imported when the first annotation needs it.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from ..eventlog import codec
from ..eventlog.errors import UnserialisableValueError

_PLAIN = frozenset(
    {None, type(None), bool, int, float, str, bytes, datetime, date, time, timedelta, Decimal, UUID}
    | {tuple, list, set, frozenset, dict, object, Any}
)
_PLAIN_NAMES = frozenset(
    "None bool int float str bytes datetime date time timedelta Decimal UUID tuple list set"
    " frozenset dict object Any".split()
)
_BASES = (str, int, float, bytes, list, tuple, set, frozenset, dict)
_WAITED = (
    collections.abc.Awaitable,
    collections.abc.Coroutine,
)


class Reviver:
    """Writes and reads the values of one annotation."""

    def __init__(self, annotation: Any) -> None:
        import pydantic

        annotation = _with_makers(annotation)
        config = pydantic.ConfigDict(arbitrary_types_allowed=True)
        try:
            self._adapter = pydantic.TypeAdapter[Any](annotation, config=config)
        except pydantic.errors.PydanticUserError:
            # A type that brings a configuration of its own refuses another.
            self._adapter = pydantic.TypeAdapter[Any](annotation)

    def encode(self, value: Any, *, bytes_max: int) -> bytes:
        """The value's text; raises as the codec does."""
        try:
            plain = self._adapter.dump_python(
                value, by_alias=False, round_trip=True, warnings="none", serialize_as_any=False
            )
        except RecursionError:
            plain = value
        except Exception as error:
            raise UnserialisableValueError(
                f"the step's value of type {type(value).__name__} cannot be stored as its"
                f" annotation says: {error}"
            ) from None
        return codec.encode(flatten(plain), bytes_max=bytes_max)

    def decode(self, text: bytes) -> Any:
        """The value of a text, as an instance of the annotation where it fits."""
        plain = codec.decode(text)
        try:
            return self._adapter.validate_python(plain, by_alias=False, by_name=True)
        except Exception:
            return plain


def flatten(value: Any, depth: int = 0) -> Any:
    """The value with enums, named tuples, bytearrays and subclasses as what they are made of."""
    kind = type(value)
    if isinstance(value, Enum):
        return flatten(value.value, depth + 1)
    if depth > codec.DEPTH_MAX or kind in _PLAIN and kind not in _BASES:
        return value
    if isinstance(value, dict):
        return {flatten(k, depth + 1): flatten(v, depth + 1) for k, v in value.items()}
    for base in (list, tuple, set, frozenset):
        if isinstance(value, base):
            return base(flatten(item, depth + 1) for item in value)
    if isinstance(value, bytearray):
        return bytes(value)
    # The base class itself makes it, so that nothing of the subclass runs.
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return value if kind is bool else int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, bytes):
        return bytes.__getitem__(value, slice(None))
    return value


def reviver_of(function: Callable[..., Any]) -> Reviver | None:
    """What revives the function's values, or None where its annotation names nothing special."""
    function = _bare(function)
    annotation = getattr(function, "__annotations__", _NOTHING).get("return")
    if annotation is None or annotation in _PLAIN_NAMES or annotation in _PLAIN:
        return None
    if isinstance(annotation, str):
        annotation = _resolved(function, annotation)
    if typing.get_origin(annotation) in _WAITED:
        annotation = typing.get_args(annotation)[-1]
    try:
        return _reviver(annotation)
    except TypeError:
        return _make(annotation)


_NOTHING: dict[str, Any] = {}


def _bare(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    if not hasattr(function, "__annotations__") and not inspect.isroutine(function):
        return getattr(type(function), "__call__", function)  # noqa: B004
    return function


def _resolved(function: Any, text: str) -> Any:
    """What a text annotation names, looked up where the function was written; None if nothing."""
    inner = inspect.unwrap(function)
    inner = getattr(inner, "__func__", inner)
    names: dict[str, Any] = {}
    code = getattr(inner, "__code__", None)
    for name, cell in zip(
        code.co_freevars if code else (), getattr(inner, "__closure__", None) or (), strict=False
    ):
        try:
            names[name] = cell.cell_contents
        except ValueError:
            continue
    try:
        return eval(text, getattr(inner, "__globals__", {}), names)
    except Exception:
        return None


@functools.lru_cache(maxsize=1024)
def _reviver(annotation: Any) -> Reviver | None:
    return _make(annotation)


def _make(annotation: Any) -> Reviver | None:
    return Reviver(annotation) if _is_special(annotation, 0) else None


def _is_special(annotation: Any, depth: int) -> bool:
    """Whether the annotation names a class that the codec does not bring back by itself."""
    if depth > 20 or _is_plain(annotation):
        return False
    if isinstance(annotation, str):
        return False
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return any(isinstance(argument, Enum) for argument in arguments)
    if arguments:
        return any(_is_special(argument, depth + 1) for argument in arguments)
    if isinstance(annotation, type):
        if typing.is_typeddict(annotation):
            hints = _hints(annotation)
            return any(_is_special(hint, depth + 1) for hint in hints.values())
        return (
            dataclasses.is_dataclass(annotation)
            or hasattr(annotation, "__pydantic_validator__")
            or issubclass(annotation, (Enum, bytearray))
            or any(issubclass(annotation, base) for base in _BASES)
        )
    return isinstance(annotation, typing.NewType) and _is_special(
        annotation.__supertype__, depth + 1
    )


def _with_makers(annotation: Any) -> Any:
    """The annotation, with subclasses that pydantic does not know made from their base's values."""
    import pydantic

    arguments = typing.get_args(annotation)
    origin = typing.get_origin(annotation)
    if arguments and origin not in (typing.Literal, typing.Annotated):
        made = tuple(_with_makers(argument) for argument in arguments)
        if origin in (typing.Union, types.UnionType):
            return typing.Union[made]  # noqa: UP007
        return origin[made] if isinstance(origin, type) else annotation  # type: ignore[index]
    if not isinstance(annotation, type) or not _needs_maker(annotation):
        return annotation

    def make(value: Any) -> Any:
        return value if isinstance(value, annotation) else annotation(value)

    return typing.Annotated[annotation, pydantic.BeforeValidator(make)]


def _needs_maker(kind: type[Any]) -> bool:
    if kind is bytearray:
        return True
    is_known = (
        kind in _PLAIN
        or issubclass(kind, Enum)
        or dataclasses.is_dataclass(kind)
        or hasattr(kind, "_fields")
        or hasattr(kind, "__pydantic_validator__")
        or hasattr(kind, "__get_pydantic_core_schema__")
        or typing.is_typeddict(kind)
    )
    return not is_known and issubclass(kind, _BASES)


def _is_plain(annotation: Any) -> bool:
    try:
        return annotation in _PLAIN
    except TypeError:
        return False


def _hints(annotation: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(annotation)
    except Exception:
        return {}
