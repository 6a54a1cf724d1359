"""Faults: exceptions as they travel and are stored, and as exceptions again.

An error reaches `run` as its original class where that is a builtin, one of ours, or defined in the
tenant's own modules; else as StepError. The same text is revived live and on replay, so both see
the same class, message and args.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import Any

from ..eventlog import codec, errors
from ..eventlog.errors import WorkflowsError
from . import entrypoints
from .entrypoints import NonRetryableError, StepError, WorkflowFatalError
from .wire import Error

MESSAGE_CHARACTERS_MAX = 64 * 1024
_ARGS_BYTES_MAX = 64 * 1024
_INNER_MAX, _INNER_CHARACTERS_MAX = 3, 1_000
"""Of the errors in a group: so many are named in its message, with so much of theirs."""
_OURS = "dynamic_workflows"

FindClass = Callable[[str, str], Any]
"""(module, qualified name) -> what a tenant's module holds under that name, or None."""

_OUR_CLASSES: dict[str, type[Exception]] = {
    name: kind
    for module in (entrypoints, errors)
    for name, kind in vars(module).items()
    if isinstance(kind, type) and issubclass(kind, Exception) and not name.startswith("_")
}


_FINAL = (
    NonRetryableError,
    WorkflowFatalError,
    errors.UnserialisableValueError,
    errors.ValueTooLargeError,
)


def is_final(error: BaseException) -> bool:
    """Whether trying again is no use: it says so, the API was misused, or no value came of it."""
    try:
        if isinstance(error, BaseExceptionGroup):
            # What a TaskGroup raises stands for what its tasks raised.
            return any(is_final(inner) for inner in error.exceptions)
        return isinstance(error, _FINAL)
    except Exception:
        return False  # Nobody can tell: its class does not let itself be asked, or it has no end.


def to_wire(error: BaseException, *, module_of: Callable[[type], str] | None = None) -> Error:
    """The error as data; never raises, whatever the tenant's class does.

    `module_of` tells the name by which a class's module is known inside its bundle. The message of
    a group names what is in it.
    """
    try:
        return _described(error, module_of)
    except BaseException:
        # A metaclass may raise whatever it likes; a caller that knows nothing would wait for ever.
        return Error("Exception", "(an error of a class that cannot be read)", "")


def _described(error: BaseException, module_of: Callable[[type], str] | None) -> Error:
    kind = type(error)
    if kind is StepError:
        name, message = _clip(str(error.name)), _clip(str(error.message))  # type: ignore[attr-defined]
        return Error(name, message, "", fatal=False)
    module = str(kind.__module__)
    if kind.__qualname__ in _OUR_CLASSES and _OUR_CLASSES[kind.__qualname__] is kind:
        module = _OURS
    elif module_of is not None:
        module = module_of(kind)
    message = _message(error)
    if kind is ExceptionGroup:
        inner = [to_wire(one, module_of=module_of) for one in error.exceptions]  # type: ignore[attr-defined]
        args = _group_args(error.message, inner)  # type: ignore[attr-defined]
        message = _clip(f"{message}: {_contents(inner)}")
    else:
        args = _args_of(error)
    name = kind.__qualname__
    if "<locals>" in name:
        # Nobody can find it again; and another class of its name would be another class.
        name, module = kind.__name__, ""
    return Error(_clip(name), message, module, args, is_final(error))


def _contents(inner: list[Error]) -> str:
    named = [f"{one.name}: {one.message[:_INNER_CHARACTERS_MAX]}" for one in inner[:_INNER_MAX]]
    if len(inner) > _INNER_MAX:
        named.append(f"and {len(inner) - _INNER_MAX} more")
    return "; ".join(named)


def _group_args(message: str, inner: list[Error]) -> bytes | None:
    try:
        rows = [[one.name, one.message, one.module, one.args, one.fatal] for one in inner]
        return codec.encode([message, rows], bytes_max=_ARGS_BYTES_MAX)
    except WorkflowsError:
        return None


def _message(error: BaseException) -> str:
    try:
        return _clip(str(error))
    except BaseException:
        return f"(its message cannot be had: {type(error).__name__}.__str__ raises)"


def _clip(text: str) -> str:
    # What has no place in UTF-8 must not break the wire; what is too long loses its end.
    text = text if len(text) <= MESSAGE_CHARACTERS_MAX else text[:MESSAGE_CHARACTERS_MAX]
    encoded = text.encode("utf-8", "replace")
    if len(encoded) > MESSAGE_CHARACTERS_MAX:
        return encoded[:MESSAGE_CHARACTERS_MAX].decode("utf-8", "ignore")
    return encoded.decode("utf-8")


def _args_of(error: BaseException) -> bytes | None:
    try:
        if isinstance(error, WorkflowsError):
            return codec.encode([error.message, error.code, error.details])
        args = list(_given(error))
        return codec.encode(args, bytes_max=_ARGS_BYTES_MAX) if args else None
    except Exception:
        return None


def _given(error: BaseException) -> tuple[Any, ...]:
    """What the error was made of; an OSError does not keep its file names among its args."""
    if not isinstance(error, OSError) or error.filename is None or len(error.args) != 2:
        return error.args
    if error.filename2 is None:
        return (*error.args, error.filename)
    return (*error.args, error.filename, None, error.filename2)


def from_wire(error: Error, find: FindClass | None = None) -> Exception:
    """The error as an exception to raise: a new one each time."""
    kind = _class_of(error, find)
    if kind is None:
        return StepError(error.message, error.name)
    args = _args(error)
    if kind is ExceptionGroup:
        return _group(args, find) or StepError(error.message, error.name)
    if issubclass(kind, WorkflowsError):
        return _workflows_error(kind, error, args)
    return _revived(kind, args, error) or StepError(error.message, error.name)


def _class_of(error: Error, find: FindClass | None) -> type[Exception] | None:
    found: Any = None
    if error.module == "builtins":
        found = getattr(builtins, error.name, None)
    elif error.module == _OURS:
        found = _OUR_CLASSES.get(error.name)
    elif error.module and find is not None:
        found = find(error.module, error.name)
    is_fit = isinstance(found, type) and issubclass(found, Exception)
    return found if is_fit and not issubclass(found, _UNFIT) else None


# Raised into a coroutine the first two would not arrive as themselves, or would end the event loop;
# a StepError is made from name and message alone, so that it has both.
_UNFIT = (StopIteration, StopAsyncIteration, StepError)


def _args(error: Error) -> tuple[Any, ...]:
    if error.args is None:
        return (error.message,) if error.message else ()
    try:
        args = codec.decode(error.args)
        return tuple(args) if type(args) is list else (error.message,)
    except WorkflowsError:
        return (error.message,)


def _workflows_error(
    kind: type[WorkflowsError], error: Error, args: tuple[Any, ...]
) -> WorkflowsError:
    match args:
        case (str(message), str(code), dict(details)):
            facts = {str(name): value for name, value in details.items()}
            for taken in ("self", "message", "code"):
                facts.pop(taken, None)
            return kind(message, code=code, **facts)
    return kind(error.message)


def _group(args: tuple[Any, ...], find: FindClass | None) -> Exception | None:
    try:
        message, rows = args
        return ExceptionGroup(message, [from_wire(Error(*row), find) for row in rows])
    except (TypeError, ValueError, RecursionError):
        return None


def _revived(kind: type[Exception], args: tuple[Any, ...], error: Error) -> Exception | None:
    """An instance like the one that was raised, as far as args and message show."""
    try:
        made = kind(*args)
        if type(made) is kind and _given(made) == args and _message(made) == error.message:
            return made
    except Exception:
        pass
    # The constructor takes something else than the args that it left; pass it by.
    try:
        made = kind.__new__(kind, *args)
        if type(made) is kind:
            made.args = args
            return made
    except Exception:
        pass
    return None
