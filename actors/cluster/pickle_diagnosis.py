"""Unsendable: what in a function keeps it from travelling to another process, by name.

Pickle names a type and not where it found it. Here the parts of a value are tried one by one, so
that the message names the variable or the attribute.
"""

from __future__ import annotations

import functools
import inspect
import io
import sys
import types
from collections.abc import Iterator, Mapping

import cloudpickle

_DEPTH_MAX = 12
_PARTS_MAX = 2_000


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """As cloudpickle's, but for open files: it would send their content in silence."""

    def reducer_override(self, obj: object) -> object:
        """Refuse what means something in one process alone."""
        if isinstance(obj, io.IOBase) and not isinstance(obj, io.BytesIO | io.StringIO):
            raise TypeError(f"cannot pickle {type(obj).__name__!r} object")
        return super().reducer_override(obj)


def dumps(value: object) -> bytes:
    """Pickle by value where need be; raises whatever a part of it raises."""
    with io.BytesIO() as buffer:
        Pickler(buffer).dump(value)
        return buffer.getvalue()


def explain(value: object, name: str, error: BaseException) -> str:
    """Where the part lies that cannot be pickled, and what it is, in a sentence."""
    path, culprit = _deepest(value, name, {id(value)}, _DEPTH_MAX)
    kind = type(culprit)
    full = kind.__qualname__ if kind.__module__ == "builtins" else _full_name(kind)
    where = f"it holds {path}, " if path != name else "it is "
    reason = " ".join(str(error).split()) or type(error).__name__
    return (
        f"{name} cannot be sent to the loader's process: {where}{_article(full)} {full}, which"
        f" cannot be pickled ({reason[:200]}): make it inside of {name}, or in a module that"
        f" {name} imports"
    )


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _article(word: str) -> str:
    return "an" if word[:1].lower() in "aeiou" else "a"


def _deepest(value: object, path: str, seen: set[int], depth: int) -> tuple[str, object]:
    """The innermost part that cannot be pickled by itself."""
    if depth:
        for label, part in _parts(value, path):
            if id(part) in seen or len(seen) > _PARTS_MAX:
                continue
            seen.add(id(part))
            if not _travels(part):
                return _deepest(part, label, seen, depth - 1)
    return path, value


def _travels(value: object) -> bool:
    try:
        dumps(value)
    except Exception:  # whatever a user's __reduce__ raises
        return False
    return True


def _parts(value: object, path: str) -> Iterator[tuple[str, object]]:
    """What pickling would go on to, with the name that a reader of the source would look for."""
    if isinstance(value, types.MethodType):
        yield f"the object of the method {value.__func__.__name__}", value.__self__
        yield path, value.__func__
    elif isinstance(value, functools.partial):
        yield path, value.func
        yield from ((f"the partial's args[{n}]", arg) for n, arg in enumerate(value.args))
        yield from ((f"the partial's {name}", arg) for name, arg in value.keywords.items())
    elif isinstance(value, types.FunctionType):
        yield from _parts_of_function(value)
    elif isinstance(value, Mapping):
        yield from ((f"{path}[{key!r:.40}]", part) for key, part in value.items())
        yield from ((f"a key of {path}", key) for key in value)
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"{path}[{n}]", part) for n, part in enumerate(value))
    elif isinstance(value, type):
        # Its instances are made elsewhere; what it holds itself travels with it.
        yield from (
            (f"{value.__qualname__}.{name}", _function_of(part))
            for name, part in vars(value).items()
            if not name.startswith("__") or isinstance(part, types.FunctionType)
        )
    elif not _is_of_python(type(value)):
        state = getattr(value, "__dict__", None)
        if isinstance(state, dict):
            yield from ((f"{path}.{name}", part) for name, part in state.items())
        for name in _slots(type(value)):
            if hasattr(value, name):
                yield f"{path}.{name}", getattr(value, name)
        yield f"the class of {path}", type(value)


def _is_of_python(kind: type) -> bool:
    """Whether people know such objects by their name, and not by what is in them."""
    return kind.__module__.partition(".")[0] in sys.stdlib_module_names


def _parts_of_function(function: types.FunctionType) -> Iterator[tuple[str, object]]:
    try:
        used = inspect.getclosurevars(function)
    except (ValueError, TypeError):
        return  # a cell that is still empty
    for name, part in {**used.globals, **used.nonlocals}.items():
        yield f"the variable {name}", part
    for name, part in inspect.signature(function).parameters.items():
        if part.default is not part.empty:
            yield f"the default of the argument {name}", part.default
    yield from ((f"the attribute {name}", part) for name, part in vars(function).items())


def _function_of(part: object) -> object:
    return part.__func__ if isinstance(part, staticmethod | classmethod) else part


def _slots(kind: type) -> list[str]:
    names: list[str] = []
    for base in kind.__mro__:
        slots = base.__dict__.get("__slots__", ())
        names += [slots] if isinstance(slots, str) else list(slots)
    return [name for name in names if name not in ("__dict__", "__weakref__")]
