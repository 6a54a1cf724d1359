"""Hints: what an annotation says about the places in a value.

A hint names the one class that is expected at a place, so that its objects need no mark there, and
says what is inside. It need not be right: an object of another class is marked, and what would be
misread is written as what it is. Text annotations are looked up where they were written.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import sys
import types
import typing
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from .object_parts import Form, form_of

_DEPTH_MAX = 20
PLAIN = frozenset(
    {None, type(None), bool, int, float, str, bytes, datetime, date, time, timedelta, Decimal, UUID}
    | {tuple, list, set, frozenset, dict, object, Any}
)
"""Types that the codec brings back by itself."""
_WRAPPERS = ("Annotated", "Required", "NotRequired", "ReadOnly", "Final", "ClassVar", "InitVar")
_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
UNKNOWN = object()
"""What a text annotation is that names nothing here."""


class Names:
    """Where the text annotations of a function or a class are looked up."""

    def __init__(self, module: Mapping[str, object], inner: Mapping[str, object]) -> None:
        self.module = module
        self.inner = inner

    def resolve(self, annotation: Any) -> Any:
        """What it stands for, without texts, aliases and wrappers around it."""
        for _ in range(_DEPTH_MAX):
            if isinstance(annotation, typing.ForwardRef):
                annotation = annotation.__forward_arg__
            if isinstance(annotation, str):
                try:
                    annotation = eval(annotation, dict(self.module), dict(self.inner))
                except Exception:
                    return UNKNOWN
                continue
            origin = typing.get_origin(annotation)
            if (
                origin is not None
                and getattr(origin, "__name__", str(origin)) in _WRAPPERS
                or (str(origin).rpartition(".")[2] in _WRAPPERS)
            ):
                annotation = typing.get_args(annotation)[0]
            elif isinstance(annotation, typing.NewType):
                annotation = annotation.__supertype__
            elif type(annotation).__name__ == "TypeAliasType":
                annotation = annotation.__value__
            else:
                return annotation
        return UNKNOWN


def is_plain(annotation: object, names: Names, depth: int = 0) -> bool:
    """Whether it names nothing but types that the codec brings back by itself."""
    annotation = names.resolve(annotation)
    try:
        if annotation in PLAIN or isinstance(annotation, typing.TypeVar):
            return True
    except TypeError:
        pass
    if depth > _DEPTH_MAX or annotation is UNKNOWN:
        return False
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return not any(isinstance(argument, Enum) for argument in arguments)
    if origin is None:
        # Abstract types such as Sequence say nothing about classes.
        module = getattr(annotation, "__module__", "")
        return module in ("typing", "collections.abc") and not typing.is_typeddict(annotation)
    if origin in (typing.Union, types.UnionType) or _is_abstract(origin) or origin in PLAIN:
        return all(
            argument is Ellipsis
            or isinstance(argument, list)
            or is_plain(argument, names, depth + 1)
            for argument in arguments
        )
    return False


def _is_abstract(kind: object) -> bool:
    return getattr(kind, "__module__", None) == "collections.abc"


class Hint:
    """What is expected at a place, and inside of it."""

    def __init__(self, annotation: object, names: Names) -> None:
        self._names = names
        self._annotation = annotation
        self.classes: list[type[object]] = []
        """Every class that is named for this place."""
        self.kind: type[object] | None = None
        """The only one, if there is one."""
        self.form: Form | None = None
        self._inside: dict[object, Hint | None] = {}
        self._own_fields: dict[str, object] | None = None
        self._arguments: tuple[object, ...] = ()
        self._origin: object = None
        self._set(annotation)

    def _set(self, annotation: object) -> None:
        origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
        if origin is typing.Literal:
            found = {type(one) for one in arguments if isinstance(one, Enum)}
            self.classes = list(found)
            annotation = found.pop() if len(found) == 1 else None
        elif origin in (typing.Union, types.UnionType):
            arms = [
                arm
                for arm in map(self._names.resolve, arguments)
                if arm is not UNKNOWN and not is_plain(arm, self._names)
            ]
            inner = [Hint(arm, self._names) for arm in arms]
            self.classes = [kind for hint in inner for kind in hint.classes]
            if len(arms) != 1:
                return
            annotation = arms[0]
            origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
        self._origin, self._arguments = origin, arguments
        kind = origin if isinstance(origin, type) and origin not in PLAIN else annotation
        if isinstance(kind, type) and kind not in PLAIN and not typing.is_typeddict(kind):
            form = form_of(kind) if not _is_abstract(kind) else None
            if form is not None:
                self.classes.append(kind)
                self.kind, self.form = kind, form
        elif typing.is_typeddict(kind):
            self._origin = kind

    def field(self, name: str) -> Hint | None:
        """What is expected in a field of the class."""
        return self._inner(name, lambda: self._fields().get(name))

    def place(self, index: int) -> Hint | None:
        """What is expected in a list, a set or a tuple."""
        arguments = self._arguments
        if self.kind is not None and not arguments:
            hints = list(self._fields().values()) if _is_named(self.kind) else []
            return self._inner(index, lambda: hints[index] if index < len(hints) else None)
        if self._origin in _MAPPINGS or not arguments:
            return None
        if self._origin is tuple and arguments[-1] is not Ellipsis:
            return self._inner(index, lambda: arguments[index] if index < len(arguments) else None)
        return self._inner(-1, lambda: arguments[0])

    def key(self) -> Hint | None:
        """What is expected as a key of a dict."""
        if len(self._arguments) == 2 and self._origin is not tuple:
            return self._inner(-2, lambda: self._arguments[0])
        return None

    def value(self, key: Any) -> Hint | None:
        """What is expected under a key of a dict."""
        if typing.is_typeddict(self._origin):
            return self._inner((key,), lambda: self._fields().get(key))
        if len(self._arguments) == 2 and self._origin is not tuple:
            return self._inner(-3, lambda: self._arguments[1])
        return None

    def content(self) -> Hint | None:
        """What is expected in the one value that stands for an object of the class."""
        if self.kind is not None and getattr(self.kind, "__pydantic_root_model__", False):
            return self.field("root")
        return _Content(self)

    def _fields(self) -> dict[str, object]:
        if self._own_fields is None:
            self._own_fields = _fields(self.kind or self._origin, self._names)
        return self._own_fields

    def _inner(self, place: Any, find: Any) -> Hint | None:
        if place not in self._inside:
            found = find()
            self._inside[place] = None if found is None else hint_of(*_with(found, self._names))
        return self._inside[place]


class _Content(Hint):
    """The inside of a hint, without its class."""

    def __init__(self, of: Hint) -> None:
        self.classes, self.kind, self.form = [], None, None
        self.place, self.key, self.value = of.place, of.key, of.value  # type: ignore[method-assign]


def hint_of(annotation: object, names: Names) -> Hint | None:
    """What an annotation says, or None where it names no class."""
    annotation = names.resolve(annotation)
    if annotation is UNKNOWN or is_plain(annotation, names):
        return None
    return Hint(annotation, names)


def hint_of_class(kind: type[object]) -> Hint:
    """What is inside the objects of a class, where a mark and no annotation names it."""
    if kind not in _of_classes:
        if len(_of_classes) >= _CLASSES_MAX:
            _of_classes.clear()
        _of_classes[kind] = Hint(kind, Names(_module(kind), {}))
    return _of_classes[kind]


_CLASSES_MAX = 4096
_of_classes: dict[type[Any], Hint] = {}


class _Placed:
    """An annotation of a class, with the names of that class's module."""

    def __init__(self, annotation: object, names: Names) -> None:
        self.annotation = annotation
        self.names = names


def _with(found: object, names: Names) -> tuple[object, Names]:
    return (found.annotation, found.names) if isinstance(found, _Placed) else (found, names)


def _fields(kind: Any, names: Names) -> dict[str, Any]:
    """The annotations of a class's fields, in their order."""
    found: dict[str, Any] = {}
    model_fields = getattr(kind, "model_fields", None)
    if isinstance(model_fields, dict) and not dataclasses.is_dataclass(kind):
        own = Names(_module(kind), {**names.inner, kind.__name__: kind})
        return {name: _Placed(field.annotation, own) for name, field in model_fields.items()}
    for one in reversed(getattr(kind, "__mro__", (kind,))):
        module = _module(one)
        inner = {**names.inner, one.__name__: one, kind.__name__: kind}
        for name, annotation in vars(one).get("__annotations__", {}).items():
            found[name] = _Placed(annotation, Names(module, inner))
    return found


def field_annotations(kind: object, names: Names) -> dict[str, tuple[object, Names]]:
    """The annotations of a class's fields, each with where it is looked up."""
    return {name: _with(found, names) for name, found in _fields(kind, names).items()}


def _module(kind: type[object]) -> dict[str, object]:
    module = sys.modules.get(kind.__module__)
    return {} if module is None else vars(module)


def _is_named(kind: type[object]) -> bool:
    return issubclass(kind, tuple) and hasattr(kind, "_fields")
