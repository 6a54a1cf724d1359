"""Shape: what a callback takes, and whether it is a coroutine function."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any, NamedTuple

_COROUTINE = inspect.CO_COROUTINE | inspect.CO_ITERABLE_COROUTINE


class Shape(NamedTuple):
    """`required` and `optional` are the names of parameters, without `self` of a bound method."""

    is_coroutine: bool
    required: tuple[str, ...]
    optional: tuple[str, ...]

    @property
    def takes_ctx(self) -> bool:
        """Whether there is a parameter for the context."""
        return "ctx" in self.required or "ctx" in self.optional


_NO_ARGUMENTS = {False: Shape(False, (), ()), True: Shape(True, (), ())}

_ONLY_CTX = {False: Shape(False, ("ctx",), ()), True: Shape(True, ("ctx",), ())}


def shape_of(callback: Callable[..., object]) -> Shape:
    """The shape of any callable; one whose signature cannot be had counts as taking nothing."""
    if type(callback) is FunctionType:
        code = callback.__code__
        if not code.co_argcount and not code.co_kwonlyargcount:
            if "__wrapped__" not in callback.__dict__:
                return _NO_ARGUMENTS[bool(code.co_flags & _COROUTINE)]
        elif code.co_varnames[0] == "ctx" and code.co_argcount + code.co_kwonlyargcount == 1:
            if not callback.__defaults__ and "__wrapped__" not in callback.__dict__:
                return _ONLY_CTX[bool(code.co_flags & _COROUTINE)]
        return _shape_of_function(callback)
    return _shape_of_any(callback)


def _shape_of_function(callback: Any) -> Shape:
    if "__wrapped__" in callback.__dict__:
        return _shape_of_any(callback)
    code = callback.__code__
    names = code.co_varnames
    positional = names[: code.co_argcount]
    keyword = names[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    defaults = len(callback.__defaults__ or ())
    split = len(positional) - defaults
    given = callback.__kwdefaults__ or {}
    return Shape(
        bool(code.co_flags & _COROUTINE),
        positional[:split] + tuple(name for name in keyword if name not in given),
        positional[split:] + tuple(name for name in keyword if name in given),
    )


def _shape_of_any(callback: Any) -> Shape:
    bare = callback
    while isinstance(bare, (functools.partial, MethodType)):
        bare = bare.func if isinstance(bare, functools.partial) else bare.__func__
    is_coroutine = inspect.iscoroutinefunction(bare) or inspect.iscoroutinefunction(
        getattr(bare, "__call__", None)  # noqa: B004
    )
    try:
        parameters = inspect.signature(callback).parameters.values()
    except (TypeError, ValueError):
        return _NO_ARGUMENTS[is_coroutine]
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return Shape(
        is_coroutine,
        tuple(p.name for p in named if p.default is p.empty),
        tuple(p.name for p in named if p.default is not p.empty),
    )
