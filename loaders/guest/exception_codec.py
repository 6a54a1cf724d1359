"""Faults: exceptions as they travel and are stored, and as exceptions again.

An error reaches `run` as its original class where code there can import that by name (a builtin,
one of ours, the tenant's own, or of a library that it is granted), with its args and those
attributes that the codec takes; else as StepError. No constructor of a class runs where its
attributes are known. The same text is revived live and on replay, so both see the same.
"""

from __future__ import annotations

import builtins
import sys
from typing import TYPE_CHECKING, Any

import msgspec

from dynamic_workflows.eventlog import errors
from dynamic_workflows.eventlog.codec import values
from dynamic_workflows.eventlog.errors import WorkflowsError

from ..protocol.messages import Error
from ..sdk import entrypoints
from ..sdk.entrypoints import NonRetryableError, StepError, WorkflowFatalError

if TYPE_CHECKING:
    from ..values.object_codec import ClassNames

MESSAGE_CHARACTERS_MAX = 64 * 1024
_ARGS_BYTES_MAX = 64 * 1024
_INNER_MAX, _INNER_CHARACTERS_MAX = 3, 1_000
"""Of the errors in a group: so many are named in its message, with so much of theirs."""
_OURS = "dynamic_workflows"

_CAUSES_MAX = 3
"""Of the chain of causes, so many are kept."""

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


def to_wire(error: BaseException, names: ClassNames | None = None) -> Error:
    """The error as data; never raises, whatever the tenant's class does.

    `names`: how code in the isolate finds classes; None: this is no isolate. The message of a group
    names what is in it.
    """
    return _to_wire(error, names, _CAUSES_MAX)


def _to_wire(error: BaseException, names: ClassNames | None, causes: int) -> Error:
    try:
        return _described(error, names, causes)
    except BaseException:
        # A metaclass may raise whatever it likes; a caller that knows nothing would wait for ever.
        return Error("Exception", "(an error of a class that cannot be read)", "")


def _described(error: BaseException, names: ClassNames | None, causes: int) -> Error:
    kind = type(error)
    if kind is StepError:
        name, message = _clip(str(error.name)), _clip(str(error.message))  # type: ignore[attr-defined]
        return Error(name, message, "", fatal=False)
    name, module = kind.__qualname__, _module_of(kind, names)
    message = _message(error)
    if isinstance(error, ExceptionGroup):
        inner = [_to_wire(one, names, causes) for one in error.exceptions]
        args = _group_args(error.message, inner)
        message = _clip(f"{message}: {_contents(inner)}")
    elif isinstance(error, WorkflowsError):
        args = _encoded([error.message, error.code, error.details], names)
    else:
        args = _args_of(error, names)
    if names is not None or module.partition(".")[0] in sys.stdlib_module_names:
        # Of other errors of the platform, what they hold is not for tenants.
        args = _with_fields(error, args, names, causes)
    if not module:
        # Nobody can find it again; and another class of its name would be another class.
        name = kind.__name__
    return Error(_clip(name), message, module, args, is_final(error))


def _module_of(kind: type[BaseException], names: ClassNames | None) -> str:
    """The module under which the class is found again, or an empty text."""
    name = kind.__qualname__
    if _OUR_CLASSES.get(name) is kind:
        return _OURS
    if names is None or kind.__module__ == "builtins":
        return "" if "<locals>" in name else str(kind.__module__)
    module = names.name_of(kind).partition(":")[0]
    return module if names.find(module, name) is kind else ""


def _contents(inner: list[Error]) -> str:
    named = [f"{one.name}: {one.message[:_INNER_CHARACTERS_MAX]}" for one in inner[:_INNER_MAX]]
    if len(inner) > _INNER_MAX:
        named.append(f"and {len(inner) - _INNER_MAX} more")
    return "; ".join(named)


def _group_args(message: str, inner: list[Error]) -> bytes | None:
    try:
        return values.encode([message, [_row(one) for one in inner]], bytes_max=_ARGS_BYTES_MAX)
    except WorkflowsError:
        return None


def _row(error: Error) -> list[Any]:
    return [error.name, error.message, error.module, error.args, error.fatal]


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


def _args_of(error: BaseException, names: ClassNames | None) -> bytes | None:
    args = list(_given(error))
    return _encoded(args, names) if args else None


def _encoded(value: object, names: ClassNames | None) -> bytes | None:
    """Codec text of a value, or None where it has none."""
    try:
        if names is None:
            return values.encode(value, bytes_max=_ARGS_BYTES_MAX)
        text: bytes = _exactly(names).encode(value, bytes_max=_ARGS_BYTES_MAX)
        return text
    except Exception:
        return None


def _exactly(names: ClassNames) -> Any:
    # Imported for what needs it: the platform's side has no classes of tenants.
    from ..values.typed_values import TypedCodec

    return TypedCodec(None, names)


def _with_fields(
    error: BaseException, args: bytes | None, names: ClassNames | None, causes: int
) -> bytes | None:
    """The text of args, with the attributes and the cause of the error where it has some."""
    room = _ARGS_BYTES_MAX - len(args or b"")
    fields: dict[str, msgspec.Raw] = {}
    for name, value in {} if isinstance(error, WorkflowsError) else _fields_of(error):
        text = None if name[:1] == "$" else _encoded(value, names)
        if text is not None and len(text) + len(name) < room:
            fields[name] = msgspec.Raw(text)
            room -= len(text) + len(name)
    held: dict[str, Any] = {"args": msgspec.Raw(args) if args else None, "fields": fields}
    cause = error.__cause__
    if cause is not None and causes:
        text = values.encode(_row(_to_wire(cause, names, causes - 1)))
        if len(text) < room:
            held["cause"] = msgspec.Raw(text)
    if not fields and "cause" not in held and not _has_constructor(type(error)):
        return args
    return msgspec.json.encode(held)


def _has_constructor(kind: type[Any]) -> bool:
    """Whether code of its own runs where an error of the class is made."""
    return any(
        "__init__" in vars(one) or "__new__" in vars(one)
        for one in kind.__mro__
        if one.__module__ not in ("builtins", "dynamic_workflows.loaders.sdk.entrypoints")
        and not issubclass(one, WorkflowsError)
    )


def _fields_of(error: BaseException) -> Any:
    """The attributes that are not made of the args."""
    from ..values.object_parts import state_of

    if hasattr(type(error), "from_exception_data"):
        kept = ("type", "loc", "input", "ctx")
        errors = [
            {name: one[name] for name in kept if name in one}
            for one in error.errors(include_url=False)  # type: ignore[attr-defined]
        ]
        for one in errors:
            if isinstance(one.get("ctx", {}).get("error"), Exception):
                one["ctx"] = {**one["ctx"], "error": str(one["ctx"]["error"])}
        return {"title": error.title, "errors": errors}.items()  # type: ignore[attr-defined]
    found = {
        name: getattr(error, name, None)
        for kind, members in _MEMBERS.items()
        if isinstance(error, kind)
        for name in members
    }
    found = {name: value for name, value in found.items() if value is not None}
    return {**found, **state_of(error)}.items()


_MEMBERS: dict[type[BaseException], tuple[str, ...]] = {
    ImportError: ("msg", "name", "path"),
    AttributeError: ("name",),
    NameError: ("name",),
    SyntaxError: ("msg", "filename", "lineno", "offset", "text", "end_lineno", "end_offset"),
}
"""Attributes that builtin errors keep elsewhere than in `__dict__`."""


def _given(error: BaseException) -> tuple[Any, ...]:
    """What the error was made of; an OSError does not keep its file names among its args."""
    if not isinstance(error, OSError) or error.filename is None or len(error.args) != 2:
        return error.args
    if error.filename2 is None:
        return (*error.args, error.filename)
    return (*error.args, error.filename, None, error.filename2)


def from_wire(error: Error, names: ClassNames | None = None) -> Exception:
    """The error as an exception to raise: a new one each time.

    `names`: where classes are found that are neither builtin nor ours.
    """
    kind = _class_of(error, names)
    if kind is None:
        return StepError(error.message, error.name)
    args, fields, cause = _parts(error, names)
    made: Exception | None
    if issubclass(kind, ExceptionGroup):
        made = _group(kind, args, names)
    elif issubclass(kind, WorkflowsError):
        made = _workflows_error(kind, error, args)
    elif hasattr(kind, "from_exception_data"):
        made, fields = _validation_error(kind, fields or {}, error.message), {}
    elif fields is None:
        made = _constructed(kind, args, error) or _made(kind, args)
    else:
        made = _made(kind, args)
    if made is None:
        return StepError(error.message, error.name)
    if names is not None:
        _set_fields(made, fields or {})
        reason = None if cause is None else _caused(cause, names)
        if reason is not None:
            BaseException.__setattr__(made, "__cause__", reason)
    return made


def _class_of(error: Error, names: ClassNames | None) -> type[Exception] | None:
    found: Any = None
    if error.module == "builtins":
        found = getattr(builtins, error.name, None)
    elif error.module == _OURS:
        found = _OUR_CLASSES.get(error.name)
    elif error.module and names is not None:
        found = names.find(error.module, error.name)
    is_fit = isinstance(found, type) and issubclass(found, Exception)
    return found if is_fit and not issubclass(found, _UNFIT) else None


# Raised into a coroutine the first two would not arrive as themselves, or would end the event loop;
# a StepError is made from name and message alone, so that it has both.
_UNFIT = (StopIteration, StopAsyncIteration, StepError)


def _parts(
    error: Error, names: ClassNames | None
) -> tuple[tuple[Any, ...], dict[str, Any] | None, Any]:
    """Its args, its attributes (None: nobody looked for them) and the row of its cause."""
    fallback = (error.message,) if error.message else ()
    if error.args is None:
        return fallback, None, None
    try:
        held = values.decode(error.args) if names is None else _exactly(names).decode(error.args)
    except WorkflowsError:
        return (error.message,), None, None
    fields, cause = None, None
    if type(held) is dict:
        fields, cause, held = held.get("fields"), held.get("cause"), held.get("args")
        if held is None:
            return fallback if not fields else (), _fields_or_none(fields), cause
    args = tuple(held) if type(held) is list else (error.message,)
    return args, _fields_or_none(fields), cause


def _fields_or_none(fields: object) -> dict[str, Any] | None:
    return fields if type(fields) is dict else None


def _caused(row: Any, names: ClassNames) -> Exception | None:
    try:
        return None if row is None else from_wire(Error(*row), names)
    except (TypeError, ValueError, RecursionError):
        return None


def _workflows_error(
    kind: type[WorkflowsError], error: Error, args: tuple[Any, ...]
) -> WorkflowsError:
    match args:
        case (str(message), str(code), dict(details)):
            facts = {str(name): value for name, value in details.items()}
            for taken in ("self", "message", "code"):
                facts.pop(taken, None)
            try:
                return kind(message, code=code, **facts)
            except Exception:
                made = kind.__new__(kind)
                WorkflowsError.__init__(made, message, code=code, **facts)
                return made
    made = kind.__new__(kind)
    WorkflowsError.__init__(made, error.message)
    return made


def _group(
    kind: type[Exception], args: tuple[Any, ...], names: ClassNames | None
) -> Exception | None:
    try:
        message, rows = args
        inner = [from_wire(Error(*row), names) for row in rows]
        made: Exception = ExceptionGroup.__new__(kind, message, inner)  # type: ignore[type-var]
        return made
    except (TypeError, ValueError, RecursionError):
        return None


def _constructed(kind: type[Exception], args: tuple[Any, ...], error: Error) -> Exception | None:
    """An instance like the one that was raised, as far as args and message show."""
    try:
        made = kind(*args)
        if type(made) is kind and _given(made) == args and _message(made) == error.message:
            return made
    except Exception:
        pass
    return None


def _validation_error(kind: Any, fields: dict[str, Any], message: str) -> Exception | None:
    """A ValidationError of pydantic's, which only its own function can make."""
    try:
        for one in fields["errors"]:
            raised = _RAISED.get(one["type"])
            if raised is not None:
                one["ctx"] = {**one["ctx"], "error": raised(one["ctx"]["error"])}
        for source in ("python", "json"):
            made: Exception = kind.from_exception_data(
                fields["title"], fields["errors"], input_type=source
            )
            if str(made) == message:
                made.args = ()
                return made
    except Exception:
        pass
    return None


_RAISED: dict[str, type[Exception]] = {"value_error": ValueError, "assertion_error": AssertionError}
"""What validators raised, by the type that pydantic gives to it."""


def _made(kind: type[Exception], args: tuple[Any, ...]) -> Exception | None:
    """An instance with these args that no code of its class has made."""
    base: Any = next(one for one in kind.__mro__ if one.__module__ == "builtins")
    try:
        made: Exception = base.__new__(kind, *args)
    except Exception:
        return None
    for given in (args, _instead(base, args)):
        try:
            base.__init__(made, *given)
            break
        except Exception:
            continue  # The args are not those that the builtin takes.
    if _given(made) != args:
        BaseException.__setattr__(made, "args", args)
    return made


def _instead(base: type[Exception], args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Args for a builtin whose own did not travel, being too large or no text: those errors of
    Unicode say nothing at all unless all of theirs are there."""
    reason = str(args[0]) if args else ""
    found: dict[type[Exception], tuple[Any, ...]] = {
        UnicodeEncodeError: ("unknown", "?", 0, 1, reason),
        UnicodeDecodeError: ("unknown", b"?", 0, 1, reason),
        UnicodeTranslateError: ("?", 0, 1, reason),
    }
    return found.get(base, args)


def _set_fields(made: Exception, fields: dict[str, Any]) -> None:
    from ..values.object_parts import set_state

    members = {name for kind, names in _MEMBERS.items() if isinstance(made, kind) for name in names}
    for name, value in fields.items():
        try:
            if name in members:
                BaseException.__setattr__(made, name, value)
            else:
                set_state(made, {name: value})
        except Exception:
            continue
