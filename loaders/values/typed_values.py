"""Annotations: values of classes come back as themselves where a function's return type names one.

What a function returns is written, read back and written again before it is recorded: either both
texts are one, and so `run` gets the same class with the same fields, live and replayed; or the
value is refused in a sentence. Where no class is named, what the codec knows is written by the
codec alone, and objects carry the names of their classes.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

import msgspec

from dynamic_workflows.eventlog.codec import values
from dynamic_workflows.eventlog.codec.encode import too_deep
from dynamic_workflows.eventlog.errors import UnserialisableValueError, WorkflowsError
from dynamic_workflows.eventlog.growing_buffers import into_buffer

from .object_codec import ClassNames, ExactReader, ExactWriter
from .type_hints import PLAIN, Hint, Names, hint_of

_PLAIN_NAMES = frozenset(
    "None bool int float str bytes datetime date time timedelta Decimal UUID tuple list set"
    " frozenset dict object Any".split()
)
_WAITED = (collections.abc.Awaitable, collections.abc.Coroutine)
_NOTHING: dict[str, Any] = {}
_CACHED_MAX = 1024

_to_json = into_buffer(msgspec.json.Encoder())
_from_json = msgspec.json.Decoder().decode


class TypedCodec:
    """Writes and reads the values of one annotation."""

    def __init__(self, hint: Hint | None, names: ClassNames) -> None:
        """`hint`: None where the annotation names no class, or there is none."""
        self._hint = hint
        self._names = names

    def encode(
        self,
        value: object,
        *,
        bytes_max: int,
        is_read: bool = True,
        rest: Callable[[], None] | None = None,
    ) -> bytes:
        """The value's text; raises as the codec does, and for what would come back changed.

        `is_read`: it will be read as itself, and not as plain data alone. `rest` is called between
        the parts of the work, each as long as the value is large.
        """
        if self._hint is None:
            try:
                # What has no objects in it costs no more than the codec. Who reads it without
                # classes gets fields in any case.
                return values.encode(value, bytes_max=bytes_max, takes_objects=not is_read)
            except UnserialisableValueError:
                if not is_read:
                    raise
        rest = rest or _go_on
        try:
            plain, objects = self._written(value)
            text = _text_of(plain, value)
            values.check_size(text, bytes_max)
            if objects and is_read:
                rest()
                self._check(value, plain, text, rest)
        except RecursionError:
            raise too_deep(None) from None
        return text

    def decode(self, text: bytes) -> Any:
        """The value of a text; as plain data where the classes are not there as they were."""
        return values.decode(text, self._read) if self._hint is None else self._read(text)

    def _read(self, text: bytes) -> Any:
        try:
            has_tags = b'"$' in text
            short, lifted = values.lift(text) if has_tags else (text, [])
            reader = ExactReader(self._names, has_tags=has_tags, lifted=lifted)
            return reader.read(_from_json(short), self._hint)
        except Exception:
            return values.decode(text)

    def _written(self, value: object) -> tuple[Any, int]:
        """Plain data for JSON, and how many objects are in it."""
        writer = ExactWriter(self._names)
        try:
            return writer.write(value, self._hint), writer.objects
        except UnserialisableValueError:
            # Once more, slowly, to say where.
            ExactWriter(self._names, tells_places=True).write(value, self._hint)
            raise

    def _check(self, value: object, plain: object, text: bytes, rest: Callable[[], None]) -> None:
        """Read what was written and write it again: it has to be the same.

        Without JSON in between, which changes nothing: large plain parts stay what they are, and
        need no second look.
        """
        try:
            again = ExactReader(self._names, has_tags=True).read(plain, self._hint)
            rest()
            written, _ = self._written(again)
            if any(tag in text for tag in _HASHED):
                values.decode(text)  # What others see of it has to be a value, too.
        except Exception as error:
            reason = error.message if isinstance(error, WorkflowsError) else str(error)
            kind = type(error).__name__
            raise _changed(value, f"it cannot be made again ({kind}: {reason:.300})") from None
        place = _difference(plain, written, "value")
        if place is not None:
            raise _changed(value, f"it would come back changed at {place[:200]}")


def _go_on() -> None:
    """Nobody waits."""


_HASHED = (b'"$set"', b'"$frozenset"', b'"$dict"')


def _text_of(plain: object, value: object) -> bytes:
    try:
        return _to_json(plain)
    except UnicodeEncodeError:
        # Text inside of what looked plain: the codec's slow walk says where.
        values.encode(value)
        raise


def _changed(value: object, reason: str) -> UnserialisableValueError:
    name = type(value).__qualname__
    return UnserialisableValueError(
        f"the value of type {name} cannot be stored: {reason}. Put its classes at the top of a"
        " module, or annotate the function with the class that it returns; classes that hold what"
        " only they can rebuild cannot be stored: return a dict of plain data",
        type=name,
    )


def _difference(before: Any, after: Any, place: str) -> str | None:
    """Where two pieces of plain data differ, by a single bit or type; None: nowhere."""
    if before is after:
        return None
    kind = type(before)
    if kind is not type(after):
        return place
    if kind is dict:
        if list(before) != list(after):
            return place
        for key, item in before.items():
            inner = place if key[:1] == "$" else f"{place}.{key}"
            found = _difference(item, after[key], inner)
            if found is not None:
                return found
        return None
    if kind is list:
        if len(before) != len(after):
            return place
        for index, (one, other) in enumerate(zip(before, after, strict=True)):
            found = _difference(one, other, f"{place}[{index}]")
            if found is not None:
                return found
        return None
    if kind is float:
        return None if repr(before) == repr(after) else place
    return None if before == after else place


class Revivers:
    """The revivers of a bundle's functions."""

    def __init__(self, names: ClassNames | None = None) -> None:
        self._names = names or ClassNames()
        self._untyped = TypedCodec(None, self._names)
        self._cached: dict[Any, TypedCodec] = {}

    def of(self, function: Callable[..., Any]) -> TypedCodec:
        """What writes and reads the function's values."""
        bare = bare_function(function)
        annotation = getattr(bare, "__annotations__", _NOTHING).get("return")
        if annotation is None or (
            annotation in _PLAIN_NAMES if isinstance(annotation, str) else _is_in(annotation)
        ):
            return self._untyped
        return self._of(bare, annotation)

    def _of(self, function: Any, annotation: Any) -> TypedCodec:
        inner = inspect.unwrap(function)
        inner = getattr(inner, "__func__", inner)
        module = getattr(inner, "__globals__", {})
        key = None
        if not isinstance(annotation, str) and not closure_of(inner):
            key = (annotation, id(module))
            try:
                if key in self._cached:
                    return self._cached[key]
            except TypeError:
                key = None
        elif isinstance(annotation, type):
            key = (annotation, 0)
            if key in self._cached:
                return self._cached[key]
        made = self._made(annotation, Names(module, closure_of(inner)))
        if key is not None and len(self._cached) < _CACHED_MAX:
            self._cached[key] = made
        return made

    def _made(self, annotation: object, names: Names) -> TypedCodec:
        annotation = names.resolve(annotation)
        if typing.get_origin(annotation) in _WAITED:
            annotation = names.resolve(typing.get_args(annotation)[-1])
        hint = hint_of(annotation, names)
        return self._untyped if hint is None else TypedCodec(hint, self._names)


def _is_in(annotation: object) -> bool:
    try:
        return annotation in PLAIN
    except TypeError:
        return False


def bare_function(function: object) -> Any:
    """The function that has the annotations, out of partials and objects that are called."""
    while isinstance(function, functools.partial):
        function = function.func
    if not hasattr(function, "__annotations__") and not inspect.isroutine(function):
        return getattr(type(function), "__call__", function)  # noqa: B004
    return function


def closure_of(function: object) -> dict[str, Any]:
    """The names that a function knows from the functions around it."""
    names: dict[str, Any] = {}
    code = getattr(function, "__code__", None)
    cells = getattr(function, "__closure__", None) or ()
    for name, cell in zip(code.co_freevars if code else (), cells, strict=False):
        try:
            names[name] = cell.cell_contents
        except ValueError:
            continue
    return names
