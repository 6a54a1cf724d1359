"""Objects: values of classes, taken apart into what they hold, and made again from it.

Making runs nothing of a class where that can be had: no `__init__`, no validator, no `__setattr__`;
so what validators would refuse, aliases would miss and `init=False` would leave out comes back as
it was. An object is its fields (dataclass, model, attrs, struct), or one value (an enum, a path, a
subclass of a builtin); what it holds besides, such as private attributes, lies apart.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
import functools
import sys
from collections.abc import Callable
from datetime import timezone
from enum import Enum
from types import MemberDescriptorType
from typing import Any, TypeAlias

from dynamic_workflows.eventlog.codec.encode import is_model

Parts: TypeAlias = "tuple[Any, dict[str, Any]]"
"""Its fields by name, or its value; and what it holds besides, mostly nothing."""


class Form:
    """How objects of some classes are taken apart and made."""

    has_fields = False
    is_open = False
    """Whether there may be fields of any name."""

    def take(self, value: object) -> Parts:
        """The parts of an object; raises ValueError for one that cannot be taken apart."""
        raise NotImplementedError

    def make(self, kind: object, content: object, more: dict[str, Any]) -> Any:
        """The object that has these parts."""
        raise NotImplementedError


class _EnumForm(Form):
    def take(self, value: Any) -> Parts:
        # A combination of flags has a number; a member has what its class was given for it.
        return value._value_, {}

    def make(self, kind: Any, content: Any, more: dict[str, Any]) -> Any:
        for member in kind.__members__.values():
            if type(member._value_) is type(content) and member._value_ == content:
                return member
        return kind(content)


class _FieldsForm(Form):
    """Dataclasses, classes of attrs, and others whose state is their attributes."""

    has_fields = True

    def take(self, value: object) -> Parts:
        state = state_of(value)
        fields = {name: state.pop(name) for name in field_names(type(value)) if name in state}
        return fields, {"state": state} if state else {}

    def make(self, kind: Any, content: Any, more: dict[str, Any]) -> Any:
        made = object.__new__(kind)
        known = set(field_names(kind))
        # A field that the code has no more is left out, and one that is new gets its default.
        given = {name: value for name, value in content.items() if name in known}
        for name in known - given.keys():
            given.update(_default(kind, name))
        set_state(made, {**given, **more.get("state", {})})
        return made


class _ModelForm(Form):
    """Models of pydantic."""

    has_fields = True
    is_open = True

    def take(self, value: Any) -> Parts:
        kind, state = type(value), dict(value.__dict__)
        fields = {name: state.pop(name) for name in kind.model_fields if name in state}
        more: dict[str, Any] = {}
        extra = value.__pydantic_extra__ or {}
        if fields.keys() & extra.keys():
            raise ValueError("a field that was declared is among its extra fields as well")
        unset = [name for name in fields if name not in value.__pydantic_fields_set__]
        if unset:
            more["unset"] = unset
        if value.__pydantic_private__:
            more["private"] = dict(value.__pydantic_private__)
        state = _without_cached(kind, state)
        if state:
            more["state"] = state
        return {**fields, **extra}, more

    def make(self, kind: Any, content: Any, more: dict[str, Any]) -> Any:
        made = object.__new__(kind)
        declared = kind.model_fields
        fields = {name: content[name] for name in declared if name in content}
        are_set = set(fields) - set(more.get("unset", ()))
        for name, field in declared.items():
            if name not in fields and not field.is_required():
                fields[name] = field.get_default(call_default_factory=True, validated_data=fields)
        extra = None
        if kind.model_config.get("extra") == "allow":
            extra = {name: value for name, value in content.items() if name not in declared}
            are_set |= extra.keys()
        private = more.get("private", {}) if kind.__private_attributes__ else None
        object.__setattr__(made, "__dict__", {**fields, **more.get("state", {})})
        object.__setattr__(made, "__pydantic_fields_set__", are_set)
        for name, held in (("__pydantic_extra__", extra), ("__pydantic_private__", private)):
            # Root models have neither: there the name is an attribute of the class.
            if held is not None or type(getattr(kind, name, None)) is MemberDescriptorType:
                object.__setattr__(made, name, held)
        return made


class _RootForm(_ModelForm):
    """Models of pydantic that are one value."""

    has_fields = False

    def take(self, value: object) -> Parts:
        fields, more = super().take(value)
        return fields["root"], more

    def make(self, kind: object, content: object, more: dict[str, Any]) -> Any:
        return super().make(kind, {"root": content}, more)


class _StructForm(Form):
    """Structs of msgspec, which can be made by their constructor alone."""

    has_fields = True

    def take(self, value: Any) -> Parts:
        fields = {name: getattr(value, name) for name in type(value).__struct_fields__}
        state = dict(getattr(value, "__dict__", ()))
        return fields, {"state": state} if state else {}

    def make(self, kind: Any, content: Any, more: dict[str, Any]) -> Any:
        from msgspec.structs import force_setattr

        known: tuple[str, ...] = kind.__struct_fields__
        given = {name: value for name, value in content.items() if name in known}
        # What it runs then may change what it is given.
        made = kind(**(copy.deepcopy(given) if hasattr(kind, "__post_init__") else given))
        for name, value in content.items():
            if name in known:
                force_setattr(made, name, value)
        if more.get("state"):
            made.__dict__.clear()
            made.__dict__.update(more["state"])
        return made


class _ValueForm(Form):
    """A class whose objects are one value, by a function that gives it and one that takes it."""

    def __init__(self, take: Callable[[Any], Any], make: Callable[..., Any]) -> None:
        self._take = take
        self._make = make

    def take(self, value: object) -> Parts:
        return self._take(value), {}

    def make(self, kind: object, content: object, more: dict[str, Any]) -> Any:
        return self._make(kind, content)


class _SubclassForm(_ValueForm):
    """A subclass of a builtin: what the builtin holds, and attributes."""

    def take(self, value: object) -> Parts:
        state = state_of(value)
        return self._take(value), {"state": state} if state else {}

    def make(self, kind: object, content: object, more: dict[str, Any]) -> Any:
        made = self._make(kind, content)
        set_state(made, more.get("state", {}))
        return made


# --- what is in an object ------------------------------------------------------------------------


def field_names(kind: object) -> list[str]:
    """The declared fields of a dataclass, or of a class of attrs."""
    return _names(kind)


def _find_names(kind: Any) -> list[str]:
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind)]
    return [field.name for field in kind.__attrs_attrs__]


_names: Callable[[Any], list[str]] = functools.lru_cache(4096)(_find_names)


def state_of(value: object) -> dict[str, Any]:
    """The attributes that lie in the object itself, in `__dict__` or in slots."""
    kind = type(value)
    found: dict[str, Any] = {}
    for name, slot in _slots(kind).items():
        try:
            found[name] = slot.__get__(value, kind)
        except AttributeError:
            continue  # It was never set.
    try:
        found.update(object.__getattribute__(value, "__dict__"))
    except AttributeError:
        pass
    return _without_cached(kind, found)


def set_state(made: object, state: dict[str, Any]) -> None:
    """Give an object attributes, in `__dict__` or in slots, past whatever its class does then."""
    slots = _slots(type(made))
    for name, value in state.items():
        if name in slots:
            slots[name].__set__(made, value)
        else:
            object.__getattribute__(made, "__dict__")[name] = value


def _find_slots(kind: Any) -> dict[str, MemberDescriptorType]:
    return {
        name: slot
        for one in reversed(kind.__mro__)
        for name, slot in vars(one).items()
        if type(slot) is MemberDescriptorType and one.__flags__ & _HEAP_TYPE
    }


_slots: Callable[[Any], dict[str, MemberDescriptorType]] = functools.lru_cache(4096)(_find_slots)
_HEAP_TYPE = 1 << 9


def _without_cached(kind: type[Any], state: dict[str, Any]) -> dict[str, Any]:
    """Without what can be had again by its definition: cached properties, and cached hashes."""
    for name in _cached(kind):
        state.pop(name, None)
    return state


def _find_cached(kind: Any) -> list[str]:
    found = {}
    for one in reversed(kind.__mro__):
        found.update(vars(one))
    cached = [name for name, held in found.items() if isinstance(held, functools.cached_property)]
    return [*cached, "_attrs_cached_hash"]


_cached: Callable[[Any], list[str]] = functools.lru_cache(4096)(_find_cached)


def _default(kind: Any, name: str) -> dict[str, Any]:
    if dataclasses.is_dataclass(kind):
        field = kind.__dataclass_fields__[name]
        if field.default_factory is not dataclasses.MISSING:
            return {name: field.default_factory()}
        if field.default is not dataclasses.MISSING and name in _slots(kind):
            return {name: field.default}
        return {}
    default = next(one.default for one in kind.__attrs_attrs__ if one.name == name)
    if hasattr(default, "factory"):
        return {} if default.takes_self else {name: default.factory()}
    return {} if default is sys.modules["attr"].NOTHING else {name: default}


# --- which form a class has ----------------------------------------------------------------------


def _by_text(kind: type[Any], content: object) -> Any:
    return kind(content)


def _mutable(base: object, fill: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def make(kind: type[Any], content: object) -> Any:
        made = base.__new__(kind)
        fill(made, content)
        return made

    return make


def _immutable(base: Any) -> Callable[[Any, Any], Any]:
    return lambda kind, content: base.__new__(kind, content)


def _fill_ordered(made: Any, content: dict[Any, Any]) -> None:
    for key, value in content.items():
        collections.OrderedDict.__setitem__(made, key, value)


_FACTORIES: dict[Any, str | None] = {
    None: None, list: "list", dict: "dict", set: "set", int: "int", float: "float", str: "str",
    bool: "bool", tuple: "tuple", bytes: "bytes", frozenset: "frozenset",
}  # fmt: skip


def _take_defaultdict(value: Any) -> Any:
    if value.default_factory not in _FACTORIES:
        raise ValueError("its default_factory is none of the builtin types")
    return _FACTORIES[value.default_factory], dict(dict.items(value))


def _make_defaultdict(kind: type[Any], content: Any) -> Any:
    name, items = content
    made = collections.defaultdict.__new__(kind)
    factory = next(one for one, known in _FACTORIES.items() if known == name)
    collections.defaultdict.__init__(made, factory, items)
    return made


def _make_deque(kind: type[Any], content: Any) -> Any:
    items, length = content
    made = collections.deque.__new__(kind)
    collections.deque.__init__(made, items, length)
    return made


# Nothing of a subclass runs: the base class itself reads the object, and makes it.
_SUBCLASSES: list[tuple[type[Any], Form]] = [
    (str, _SubclassForm(str.__str__, _immutable(str))),
    (int, _SubclassForm(int.__int__, _immutable(int))),
    (float, _SubclassForm(float.__float__, _immutable(float))),
    (bytes, _SubclassForm(lambda value: bytes.__getitem__(value, slice(None)), _immutable(bytes))),
    (bytearray, _SubclassForm(lambda value: bytes(memoryview(value)),
                              _mutable(bytearray, bytearray.extend))),
    (list, _SubclassForm(lambda value: list(list.__iter__(value)), _mutable(list, list.extend))),
    (tuple, _SubclassForm(lambda value: tuple(tuple.__iter__(value)), _immutable(tuple))),
    (set, _SubclassForm(lambda value: set(set.__iter__(value)), _mutable(set, set.update))),
    (frozenset, _SubclassForm(lambda value: frozenset(frozenset.__iter__(value)),
                              _immutable(frozenset))),
    (collections.OrderedDict,
     _SubclassForm(lambda value: dict(collections.OrderedDict.items(value)),
                   _mutable(collections.OrderedDict, _fill_ordered))),
    (collections.defaultdict, _SubclassForm(_take_defaultdict, _make_defaultdict)),
    (dict, _SubclassForm(lambda value: dict(dict.items(value)), _mutable(dict, dict.update))),
    (collections.deque,
     _SubclassForm(lambda value: (list(collections.deque.__iter__(value)), value.maxlen),
                   _make_deque)),
]  # fmt: skip

_TEXT = _ValueForm(str, _by_text)
_KNOWN: dict[str, dict[str, Form]] = {
    "pathlib": dict.fromkeys(
        "PosixPath WindowsPath PurePosixPath PureWindowsPath".split(), _TEXT
    ),
    "ipaddress": dict.fromkeys(
        "IPv4Address IPv6Address IPv4Network IPv6Network IPv4Interface IPv6Interface".split(),
        _TEXT,
    ),
    "fractions": {"Fraction": _TEXT},
    "pydantic_core": {"Url": _TEXT, "MultiHostUrl": _TEXT},
    "builtins": {
        "complex": _ValueForm(
            lambda value: (value.real, value.imag), lambda kind, parts: kind(*parts)
        ),
        "range": _ValueForm(
            lambda value: (value.start, value.stop, value.step), lambda kind, parts: kind(*parts)
        ),
        "slice": _ValueForm(
            lambda value: (value.start, value.stop, value.step), lambda kind, parts: kind(*parts)
        ),
    },
    "zoneinfo": {"ZoneInfo": _ValueForm(lambda value: _key(value), _by_text)},
    "datetime": {
        "timezone": _ValueForm(
            lambda value: value.__getinitargs__(), lambda kind, parts: timezone(*parts)
        )
    },
    "re": {
        "Pattern": _ValueForm(
            lambda value: (value.pattern, value.flags),
            lambda kind, parts: sys.modules["re"].compile(*parts),
        )
    },
    "array": {
        "array": _ValueForm(
            lambda value: (value.typecode, value.tolist()), lambda kind, parts: kind(*parts)
        )
    },
    "msgspec": {"UnsetType": _ValueForm(lambda _: True, lambda *_: sys.modules["msgspec"].UNSET)},
}  # fmt: skip
"""Classes of libraries whose objects are one value, by the module that offers them."""


def _key(zone: Any) -> str:
    if zone.key is None:
        raise ValueError("it has no key")
    key: str = zone.key
    return key


def _secret(kind: type[Any], content: object) -> Any:
    made = object.__new__(kind)
    made._secret_value = content
    return made


_ENUM, _FIELDS, _MODEL, _ROOT, _STRUCT = (
    _EnumForm(), _FieldsForm(), _ModelForm(), _RootForm(), _StructForm(),
)  # fmt: skip
_SECRET = _ValueForm(lambda value: value.get_secret_value(), _secret)


def form_of(kind: object) -> Form | None:
    """How objects of a class are taken apart; None: not at all."""
    return _form(kind)


def _find_form(kind: Any) -> Form | None:
    if issubclass(kind, Enum):
        return _ENUM
    if is_model(kind):
        return _ROOT if getattr(kind, "__pydantic_root_model__", False) else _MODEL
    for module, known in _KNOWN.items():
        form = known.get(kind.__name__)
        if form is not None and getattr(sys.modules.get(module), kind.__name__, None) is kind:
            return form
    for base in kind.__mro__:
        if base.__module__ == "pydantic.networks" and "Url" in base.__name__:
            return _TEXT
        if base.__module__ == "pydantic.types" and base.__name__ == "_SecretBase":
            return _SECRET
    if hasattr(kind, "__struct_fields__"):
        return _STRUCT
    has_fields = hasattr(kind, "__dataclass_fields__") or hasattr(kind, "__attrs_attrs__")
    if has_fields and _is_pure(kind):
        return _FIELDS
    if not has_fields and not issubclass(kind, BaseException):
        for base, form in _SUBCLASSES:
            if issubclass(kind, base) and _base(kind) is base:
                return form
    return None


_form: Callable[[Any], Form | None] = functools.lru_cache(4096)(_find_form)


def _base(kind: Any) -> type[Any]:
    """The first of its classes that is written in C, and so knows where its objects are kept."""
    found: type[Any] = next(one for one in kind.__mro__ if _is_builtin(one))
    return found


def _is_builtin(kind: type[Any]) -> bool:
    return (
        not kind.__flags__ & _HEAP_TYPE
        or kind.__module__ in ("collections", "builtins")
        and (kind in (collections.deque, collections.defaultdict, collections.OrderedDict))
    )


def _is_pure(kind: type[Any]) -> bool:
    """Whether all that its objects hold are attributes."""
    return _base(kind) is object
