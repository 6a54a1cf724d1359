"""Exact: writes values with objects of classes in them, and reads them as the same classes.

The form is that of `eventlog/codec/values.py`. An object of the class that its place is expected to
hold is written as its fields, or its value, and nothing more; any other carries a mark that names
its class. A plain value that would be misread at its place is marked as being just that.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeAlias

from dynamic_workflows.eventlog.codec.decode import OBJECT, VALUE, split_mark, untag
from dynamic_workflows.eventlog.codec.encode import (
    DEPTH_MAX,
    EXACT,
    SCALARS,
    TAGGED_NODES_MAX,
    EncodedRecord,
    at,
    check_apart,
    count_nodes,
    refused,
    short,
    tagged,
    text,
    too_deep,
    too_large,
    written_collection,
)
from dynamic_workflows.eventlog.errors import UnserialisableValueError

from .object_parts import Form, form_of
from .type_hints import Hint, hint_of_class

_Path: TypeAlias = "tuple[_Path, Any] | None"


class BundleClasses(Protocol):
    """Where the classes of a bundle are found: its modules."""

    def module_of(self, kind: type) -> str:
        """The plain name of the module that a class comes from."""

    def find_class(self, module: str, name: str) -> Any:
        """What a module of the bundle holds under a dotted name, or None."""

    def grants(self, module: str) -> bool:
        """Whether what that module defines, which is none of its own, is there for the bundle."""


class ClassNames:
    """The names that classes have in texts: the module, as the bundle knows it, and their own."""

    def __init__(self, modules: BundleClasses | None = None) -> None:
        self._modules = modules

    def name_of(self, kind: type[Any]) -> str:
        """The name of a class, whether or not it can be found by it."""
        module = self._modules.module_of(kind) if self._modules else str(kind.__module__)
        return f"{module}:{kind.__qualname__}"

    def find(self, module: str, name: str) -> Any:
        """What code of the bundle finds under a dotted name, its own modules first; or None."""
        modules = self._modules
        if modules is not None:
            found = modules.find_class(module, name)
            if found is not None or not modules.grants(module):
                return found
        elif module not in sys.modules:
            return None
        try:
            found = sys.modules.get(module) or importlib.import_module(module)
        except Exception:
            return None
        for part in name.split("."):
            found = getattr(found, part, None)
        return found

    def find_named(self, name: str) -> type[Any] | None:
        """The class of that name, or None."""
        module, _, own = name.partition(":")
        found = self.find(module, own)
        return found if isinstance(found, type) else None


class ExactWriter:
    """Values as plain data that JSON can hold; counts as it goes and knows where it is."""

    def __init__(self, names: ClassNames, *, tells_places: bool = False) -> None:
        """`tells_places`: whether errors say where in the value something is, which costs time."""
        self._names = names
        self._tells_places = tells_places
        self._nodes = 0
        self._mixed = 0
        self.objects = 0
        """How many objects of classes there were, and other things that need a second look."""

    def write(
        self, value: Any, hint: Hint | None, depth: int = 1, path: _Path = None, place: str = ""
    ) -> Any:
        """The value, with whatever JSON lacks tagged or marked."""
        kind = type(value)
        if hint is not None and kind is hint.kind:
            return self._object(value, hint, True, depth, path, place)
        if kind in EXACT or value is None or kind is bool:
            plain = self._plain(value, hint, depth, path, place)
            if hint is not None and _is_misread(plain, value, hint):
                self.objects += 1
                return {VALUE: plain, OBJECT: None}
            return plain
        if issubclass(kind, EncodedRecord):
            return self._plain(dict(value), hint, depth, path, place)
        return self._object(value, hint_of_class(kind), False, depth, path, place)

    def _plain(self, value: Any, hint: Hint | None, depth: int, path: _Path, place: str) -> Any:
        kind = type(value)
        if kind is str:
            return text(value, place)
        if kind is bool or value is None:
            return value
        if kind is int and -_SMALL < value < _SMALL:
            return value
        if kind is int or kind is float:
            return tagged(value)
        if kind in SCALARS:
            return SCALARS[kind](value, place)
        path = (path, value)
        if depth > DEPTH_MAX:
            raise too_deep(path)
        if hint is None and (kind is dict or kind is list) and self._mixed < _MIXED_MAX:
            # All of it is plain, mostly, and can be written as it is.
            if count_nodes(value, depth) >= 0:
                return value
            self._mixed += 1
        self._count(len(value))
        if kind is dict:
            return self._dict(value, hint, depth, path, place)
        inner = depth + 1 if kind is list else depth + 2
        items = []
        for index, item in enumerate(value):
            expected = None if hint is None else hint.place(index)
            where = f"{place}[{index}]" if self._tells_places else ""
            items.append(self.write(item, expected, inner, path, where))
        return written_collection(value, items, place)

    def _dict(
        self, value: dict[Any, Any], hint: Hint | None, depth: int, path: _Path, place: str
    ) -> Any:
        if all(type(key) is str and key[:1] != "$" for key in value):
            plain = {}
            for key, item in value.items():
                plain[text(key, f"{place}.{key!a}")] = self.write(
                    item,
                    None if hint is None else hint.value(key),
                    depth + 1,
                    path,
                    f"{place}.{key}",
                )
            return plain
        check_apart(value, place)
        pairs = []
        for key, item in value.items():
            inner = f"{place}[{short(key)}]"
            pairs.append(
                [
                    self.write(
                        key,
                        None if hint is None else hint.key(),
                        depth + 3,
                        path,
                        f"{place} key {short(key)}",
                    ),
                    self.write(
                        item, None if hint is None else hint.value(key), depth + 3, path, inner
                    ),
                ]
            )
        return {"$dict": pairs}

    def _object(
        self,
        value: object,
        hint: Hint | None,
        is_expected: bool,
        depth: int,
        path: _Path,
        place: str,
    ) -> Any:
        kind = type(value)
        form = form_of(kind)
        if form is None:
            raise refused(value, place)
        if depth > DEPTH_MAX:
            raise too_deep((path, value))
        self.objects += 1
        self._count(1)
        path = (path, value)
        content, more = _take(form, value, place)
        held = {
            name: self.write(item, None, depth + 2, path, f"{place}.{name}")
            for name, item in more.items()
        }
        name = None if is_expected else self._names.name_of(kind)
        mark: Any = [name, held] if held else name
        if form.has_fields and not (form.is_open and any(one[:1] == "$" for one in content)):
            # A loop, for a comprehension would be one more frame at each level.
            fields: dict[str, Any] = {}
            for one, item in content.items():
                inner = None if hint is None else hint.field(one)
                if inner is None and _is_simple(item):
                    fields[one] = item
                    continue
                where = f"{place}.{one}" if self._tells_places else ""
                fields[one] = self.write(item, inner, depth + 2, path, where)
            if mark is not None:
                fields[OBJECT] = mark
            return fields
        inside = None if hint is None or form.has_fields else hint.content()
        written = self.write(content, inside, depth + 2, path, place)
        if is_expected and not held:
            if written is not None and not (type(written) is dict and OBJECT in written):
                return written
            mark = [None, {}]
        return {VALUE: written, OBJECT: mark}

    def _count(self, nodes: int) -> None:
        self._nodes += nodes
        if self._nodes > TAGGED_NODES_MAX:
            raise too_large(self._nodes, TAGGED_NODES_MAX)


_SMALL = 1 << 63
_MIXED_MAX = 100
"""So many looks in vain whether something is plain; then each part is looked at once."""


def _is_simple(value: Any) -> bool:
    """Whether JSON holds it as it is: a short way for what most fields are."""
    kind = type(value)
    if kind is str:
        return bool(value.isascii())
    return value is None or kind is bool or (kind is int and -_SMALL < value < _SMALL)


def _is_misread(plain: Any, value: Any, hint: Hint) -> bool:
    """Whether what is written for a plain value would be read as an object of the hint's class."""
    if hint.form is None or value is None:
        return False
    if hint.form.has_fields:
        return type(value) is dict and "$dict" not in plain
    return True


def _take(form: Form, value: object, place: str) -> tuple[Any, dict[str, Any]]:
    try:
        return form.take(value)
    except Exception as error:
        name = type(value).__qualname__
        raise UnserialisableValueError(
            f"a value of type {name}{at(place)} cannot be stored: {error}",
            place=f"value{place}",
            type=name,
        ) from None


class ExactReader:
    """The values that an ExactWriter wrote; raises whatever comes where a text does not fit."""

    def __init__(self, names: ClassNames, *, has_tags: bool, lifted: Sequence[bytes] = ()) -> None:
        self._names = names
        self._lifted = lifted
        self._has_tags = has_tags
        self._seen: dict[str, type[Any]] = {}

    def read(self, plain: Any, hint: Hint | None) -> Any:
        """The value of plain data from JSON."""
        if hint is None and not self._has_tags:
            return plain
        if hint is not None and hint.classes:
            self._see(hint.classes)
        kind = type(plain)
        if kind is dict and OBJECT in plain:
            return self._marked(plain, hint)
        if hint is not None and hint.form is not None and plain is not None:
            if not hint.form.has_fields:
                return self._make(hint.kind, self.read(plain, hint.content()), {})
            if kind is dict and next(iter(plain), "")[:1] != "$":  # A tag is alone in its dict.
                return self._make(hint.kind, self._fields(plain, hint), {})
        if kind is list:
            return [
                self.read(item, None if hint is None else hint.place(index))
                for index, item in enumerate(plain)
            ]
        if kind is dict:
            return self._dict(plain, hint)
        return plain

    def _see(self, classes: Iterable[type[Any]]) -> None:
        for kind in classes:
            self._seen.setdefault(self._names.name_of(kind), kind)

    def _marked(self, plain: dict[str, Any], hint: Hint | None) -> Any:
        mark = plain[OBJECT]
        if mark is None:
            return self.read(plain[VALUE], None if hint is None else hint.content())
        name, more = split_mark(mark)
        if name is not None:
            kind = self._seen.get(name) or self._names.find_named(name)
            if kind is None:
                raise LookupError(f"there is no class {name} here")
            hint = hint_of_class(kind)
        else:
            kind = None if hint is None else hint.kind
            if kind is None:
                raise LookupError("no class is expected here")
        held = {name: self.read(item, None) for name, item in more.items()}
        if VALUE not in plain:
            fields = {name: item for name, item in plain.items() if name != OBJECT}
            return self._make(kind, self._fields(fields, hint), held)
        form = form_of(kind)
        inside = None if hint is None or form is None or form.has_fields else hint.content()
        return self._make(kind, self.read(plain[VALUE], inside), held)

    def _fields(self, plain: dict[str, Any], hint: Hint | None) -> dict[str, Any]:
        fields = {}
        for name, item in plain.items():
            inner = None if hint is None else hint.field(name)
            kind = type(item)
            is_plain = inner is None and kind is not dict and kind is not list
            fields[name] = item if is_plain else self.read(item, inner)
        return fields

    def _make(self, kind: Any, content: Any, more: dict[str, Any]) -> Any:
        form = form_of(kind)
        if form is None:
            raise LookupError(f"objects of class {kind.__qualname__} are not stored")
        return form.make(kind, content, more)

    def _dict(self, plain: dict[str, Any], hint: Hint | None) -> Any:
        key = next(iter(plain), "")
        if key[:1] != "$":
            return {
                name: self.read(item, None if hint is None else hint.value(name))
                for name, item in plain.items()
            }
        inner = plain[key]
        if key == "$dict":
            return {
                self.read(name, None if hint is None else hint.key()): self.read(
                    item, None if hint is None else hint.value(name)
                )
                for name, item in inner
            }
        make = _CONTAINERS.get(key)
        if make is None:
            return untag(key, inner, self._lifted)
        return make(
            self.read(item, None if hint is None else hint.place(index))
            for index, item in enumerate(inner)
        )


_CONTAINERS: dict[str, Any] = {"$tuple": tuple, "$set": set, "$frozenset": frozenset}
