"""Payloads: what comes from outside, params and events, as an annotation wants it.

They arrive as plain data, for who sends them may not have the classes. The annotation of `run`'s
event, or the type that a wait is given, makes objects of them; what does not fit is an error that
names the field. Nothing is left out, rounded or guessed: a text may stand for what has a text form
(a time, a UUID, a path), a list for a tuple or a set, and an integer where a float is wanted.
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
from decimal import Decimal, InvalidOperation
from enum import Enum
from pathlib import Path, PurePath
from typing import Any
from uuid import UUID

from dynamic_workflows.eventlog.codec.encode import is_model

from .object_parts import form_of
from .type_hints import UNKNOWN, Names, field_annotations
from .typed_values import bare_function, closure_of

_FROM_TEXT: dict[Any, Callable[[str], Any]] = {
    datetime: datetime.fromisoformat,
    date: date.fromisoformat,
    time: time.fromisoformat,
    Decimal: Decimal,
    UUID: UUID,
}
_SCALARS = frozenset({bool, int, float, str, bytes, timedelta, *_FROM_TEXT})
_SERIES: dict[Any, tuple[type[Any], ...]] = {
    list: (list,),
    tuple: (tuple, list),
    set: (set, list),
    frozenset: (frozenset, set, list),
}


class PayloadMisfitError(ValueError):
    """A payload does not fit its annotation; the message says where."""


def event_annotation(run: Callable[..., Any], event_class: object) -> tuple[Any, Names] | None:
    """What the payload of `run`'s event is annotated with, as `event_class[...]`; None: nothing."""
    if inspect.ismethod(run) and isinstance(run.__func__, types.FunctionType):
        return _annotation_of_method(run.__func__, event_class)
    return _annotation_of(run, event_class, first=int(inspect.ismethod(run)))


@functools.lru_cache(maxsize=128)
def _annotation_of_method(
    function: types.FunctionType, event_class: object
) -> tuple[Any, Names] | None:
    # Asked for each lifetime, and the same for all of a class.
    return _annotation_of(function, event_class, first=1)


def _annotation_of(
    run: Callable[..., Any], event_class: object, *, first: int
) -> tuple[Any, Names] | None:
    """`first`: the number of the parameter that is the event."""
    function = inspect.unwrap(bare_function(run))
    function = getattr(function, "__func__", function)
    code = getattr(function, "__code__", None)
    annotations = getattr(function, "__annotations__", None)
    if not annotations or code is None:
        return None
    if code.co_argcount <= first:
        return None
    annotation = annotations.get(code.co_varnames[first])
    if annotation is None:
        return None
    names = Names(getattr(function, "__globals__", {}), closure_of(function))
    annotation = names.resolve(annotation)
    if typing.get_origin(annotation) is not event_class:
        return None
    return typing.get_args(annotation)[0], names


def read_payload(value: object, wanted: tuple[Any, Names], what: str) -> Any:
    """The value as an annotation wants it. Raises ValueError that says what did not fit where."""
    annotation, names = wanted
    try:
        return fit(value, annotation, names, "payload")
    except PayloadMisfitError as error:
        name = _named(names.resolve(annotation))
        raise ValueError(f"{what} cannot be read as {name}: {error}") from None


def fit(value: object, annotation: object, names: Names, place: str) -> Any:
    """The value as the annotation wants it. `place` is what errors call it, such as "payload".

    Raises PayloadMisfitError, and nothing else, where it does not fit.
    """
    annotation = names.resolve(annotation)
    if annotation is UNKNOWN or annotation in (Any, object) or _is_typevar(annotation):
        return value
    if annotation is None or annotation is type(None):
        if value is not None:
            raise _misfit(place, value, "None")
        return None
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return _union(value, arguments, names, place)
    if origin is typing.Literal:
        return _literal(value, arguments, place)
    kind = origin or annotation
    if typing.is_typeddict(kind):
        return _typed_dict(value, kind, names, place)
    if kind in _SCALARS:
        return _scalar(value, kind, place)
    if kind in _SERIES:
        return _series(value, kind, arguments, names, place)
    if kind is dict or kind in (collections.abc.Mapping, collections.abc.MutableMapping):
        return _dict(value, arguments, names, place)
    if not isinstance(kind, type) or kind.__module__ in ("typing", "collections.abc"):
        return _abstract(value, kind, arguments, names, place)
    if type(value) is kind:
        return value
    return _object(value, kind, names, place)


def _is_typevar(annotation: object) -> bool:
    return isinstance(annotation, typing.TypeVar)


def _misfit(place: str, value: object, wanted: str) -> PayloadMisfitError:
    return PayloadMisfitError(f"{place} is of type {type(value).__name__}, wanted {wanted}")


def _named(annotation: object) -> str:
    return getattr(annotation, "__name__", None) or str(annotation)


def _union(value: object, arms: tuple[Any, ...], names: Names, place: str) -> Any:
    """The arm that the value is of already, or the only one that it fits."""
    resolved = [names.resolve(arm) for arm in arms]
    if type(value) in resolved or (value is None and type(None) in resolved):
        return value
    fitting: list[tuple[Any, Any]] = []
    errors: list[PayloadMisfitError] = []
    for arm in resolved:
        try:
            fitting.append((arm, fit(value, arm, names, place)))
        except PayloadMisfitError as error:
            errors.append(error)
    if len(fitting) > 1:
        same = [one for arm, one in fitting if one is value]
        if same:
            return value
        many = " and ".join(_named(arm) for arm, _ in fitting)
        raise PayloadMisfitError(f"{place} fits {many} alike: it has to fit one of them alone")
    if fitting:
        return fitting[0][1]
    others = [arm for arm in resolved if arm is not type(None)]
    if len(others) == 1:
        raise next(error for arm, error in zip(resolved, errors, strict=True) if arm is others[0])
    raise PayloadMisfitError(
        f"{place} fits none of {', '.join(map(_named, resolved))}: "
        + "; ".join(str(error) for error in errors)[:500]
    )


def _literal(value: object, wanted: tuple[Any, ...], place: str) -> Any:
    for one in wanted:
        held = one._value_ if isinstance(one, Enum) else one
        if type(held) is type(value) and held == value:
            return one
    raise PayloadMisfitError(f"{place} is none of {', '.join(map(repr, wanted))}")


def _scalar(value: Any, kind: Any, place: str) -> Any:
    if type(value) is kind or (kind is float and type(value) is int):
        return value
    read = _FROM_TEXT.get(kind)
    if read is not None and type(value) is str:
        try:
            return read(value)
        except (ValueError, InvalidOperation):
            raise PayloadMisfitError(f"{place} is a text that is no {kind.__name__}") from None
    raise _misfit(place, value, kind.__name__)


def _series(value: Any, kind: Any, arguments: tuple[Any, ...], names: Names, place: str) -> Any:
    if type(value) not in _SERIES[kind]:
        raise _misfit(place, value, kind.__name__)
    if kind is tuple and arguments and arguments[-1] is not Ellipsis:
        if len(arguments) != len(value):
            raise PayloadMisfitError(f"{place} has {len(value)} items, wanted {len(arguments)}")
        return tuple(
            fit(item, wanted, names, f"{place}[{index}]")
            for index, (item, wanted) in enumerate(zip(value, arguments, strict=True))
        )
    wanted = arguments[0] if arguments else Any
    made = kind(_items(value, wanted, names, place))
    if kind in (set, frozenset) and len(made) != len(value):
        raise PayloadMisfitError(f"{place} holds an item twice, wanted a {kind.__name__}")
    return made


def _items(value: Any, wanted: Any, names: Names, place: str) -> list[Any]:
    return [fit(item, wanted, names, f"{place}[{index}]") for index, item in enumerate(value)]


def _dict(value: Any, arguments: tuple[Any, ...], names: Names, place: str) -> Any:
    if not isinstance(value, dict):
        raise _misfit(place, value, "dict")
    if len(arguments) != 2:
        return value
    made = {
        fit(key, arguments[0], names, f"a key of {place}"): fit(
            item, arguments[1], names, f"{place}[{key!r:.80}]"
        )
        for key, item in value.items()
    }
    if len(made) != len(value):
        raise PayloadMisfitError(f"{place} has two keys that become one")
    return made


def _abstract(value: Any, kind: Any, arguments: tuple[Any, ...], names: Names, place: str) -> Any:
    """Under an abstract type a list stays a list, with items as they are wanted."""
    if isinstance(kind, type) and not isinstance(value, kind):
        raise _misfit(place, value, kind.__name__)
    if len(arguments) == 1 and type(value) in _SERIES:
        return type(value)(_items(value, arguments[0], names, place))
    return value


def _typed_dict(value: Any, kind: Any, names: Names, place: str) -> Any:
    if not isinstance(value, dict):
        raise _misfit(place, value, kind.__name__)
    fields = field_annotations(kind, names)
    missing = [name for name in kind.__required_keys__ if name not in value]
    if missing:
        raise PayloadMisfitError(f"{place} lacks {sorted(missing)[0]!r}")
    return {
        key: fit(item, *fields[key], f"{place}.{key}") if key in fields else item
        for key, item in value.items()
    }


def _object(value: Any, kind: Any, names: Names, place: str) -> Any:
    if kind in (Path, PurePath) and type(value) is str:
        return kind(value)
    form = form_of(kind)
    if form is None:
        raise _misfit(place, value, kind.__name__)
    if is_model(kind):
        return _validated(value, kind, place)
    if issubclass(kind, tuple) and hasattr(kind, "_fields") and type(value) in (tuple, list):
        if len(value) > len(kind._fields):
            raise PayloadMisfitError(f"{place} has {len(value)} items, wanted {len(kind._fields)}")
        value = dict(zip(kind._fields, value, strict=False))
    elif not form.has_fields and not hasattr(kind, "_fields"):
        return _valued(value, kind, place)
    if type(value) is not dict:
        raise _misfit(place, value, kind.__name__)
    fields = field_annotations(kind, names)
    held = {}
    for key, item in value.items():
        if key not in fields:
            raise PayloadMisfitError(f"{kind.__name__} has no field for {place}.{key}")
        held[key] = fit(item, *fields[key], f"{place}.{key}")
    return _made(kind, held, place)


def _validated(value: Any, kind: Any, place: str) -> Any:
    """Models say themselves what fits, and what becomes of it."""
    try:
        return kind.model_validate(value)
    except Exception as error:
        details = getattr(error, "errors", None)
        if not callable(details):
            raise PayloadMisfitError(f"{place}: {error!s:.300}") from None
        first = details(include_url=False, include_context=False, include_input=False)[0]
        where = "".join(f"[{one}]" if type(one) is int else f".{one}" for one in first["loc"])
        raise PayloadMisfitError(f"{place}{where}: {first['msg']}") from None


def _valued(value: Any, kind: Any, place: str) -> Any:
    """A class whose objects are one value: an enum, a path, a subclass of a builtin."""
    form = form_of(kind)
    assert form is not None
    base = next((base for base in kind.__mro__ if base in _SCALARS or base in _SERIES), None)
    if not issubclass(kind, Enum) and type(value) is not (base or str):
        raise _misfit(place, value, kind.__name__)
    try:
        return form.make(kind, value, {})
    except Exception as error:
        raise PayloadMisfitError(f"{place} is no {kind.__name__}: {error!s:.200}") from None


def _made(kind: Any, held: dict[str, Any], place: str) -> Any:
    """By the constructor, since nobody has checked yet what its class wants checked."""
    later: dict[str, Any] = {}
    if dataclasses.is_dataclass(kind):
        for field in dataclasses.fields(kind):
            if field.name in held and not field.init:
                later[field.name] = held.pop(field.name)
    for field in getattr(kind, "__attrs_attrs__", ()):
        if field.name in held:
            item = held.pop(field.name)
            (held if field.init else later)[field.alias if field.init else field.name] = item
    try:
        made = kind(**held)
        for name, item in later.items():
            object.__setattr__(made, name, item)
    except Exception as error:
        raise PayloadMisfitError(f"{place} makes no {kind.__name__}: {error!s:.300}") from None
    return made
