"""Entrypoints: the classes that a tenant derives from, and the errors that it meets.

This module is what tenant code imports inside an isolate, so it stands on nothing but itself.
"""

from __future__ import annotations

from typing import Any


class _Entrypoint:
    """What both kinds share: `env`, what the platform granted, and `ctx`, which holds `props`."""

    env: Any = None
    ctx: Any = None

    def __init__(self, ctx: Any = None, env: Any = None) -> None:
        if ctx is not None:
            self.ctx = ctx
        if env is not None:
            self.env = env


class WorkflowEntrypoint(_Entrypoint):
    """Base class of a workflow: override `run`; what it returns is the instance's output."""

    def run(self, event: Any, step: Any) -> Any:
        """Do the work, from the first line in every lifetime; sync or async."""
        raise NotImplementedError(f"{type(self).__name__} has no run(self, event, step)")


class WorkerEntrypoint(_Entrypoint):
    """Base class of an entrypoint: its public methods can be called through a stub."""


def build(kind: type[Any], *, env: Any, ctx: Any) -> Any:
    """A new entrypoint with `env` and `ctx` in place before its own `__init__` runs."""
    made: Any = object.__new__(kind)
    made.env, made.ctx = env, ctx
    if kind.__init__ is not _Entrypoint.__init__:
        # Like the original, a class that wants to set something up is handed both.
        if _takes_two(kind.__init__):
            made.__init__(ctx, env)
        else:
            made.__init__()
        made.env, made.ctx = env, ctx
    return made


def _takes_two(init: Any) -> bool:
    code = getattr(init, "__code__", None)
    return code is not None and (code.co_argcount >= 3 or bool(code.co_flags & 0x04))


def public_methods(kind: type[Any]) -> list[str]:
    """The methods of an entrypoint that others may call: its own, none of the base class."""
    names = []
    for name in dir(kind):
        if not name.startswith("_") and not hasattr(_Entrypoint, name):
            if callable(getattr(kind, name, None)):
                names.append(name)
    return names


class NonRetryableError(Exception):
    """Raised in a step: the step fails at once, whatever retries are left."""

    public_message = True


class WorkflowTimeoutError(Exception):
    """An attempt or a wait for an event took longer than its timeout."""

    public_message = True


class WorkflowFatalError(Exception):
    """The API was misused: a bad name, config or callback, or a limit on steps was reached."""

    public_message = True


class WorkflowInternalError(Exception):
    """The platform failed in the middle of an attempt."""


class NonRetryableDelayError(WorkflowFatalError):
    """A delay function raised, took too long, or answered no duration."""


class EgressDeniedError(Exception):
    """The request may not leave: the code has no network, or the gateway refused."""

    public_message = True


class StepError(Exception):
    """An error whose own class cannot be had here: `.name` is that class, `.message` its text."""

    def __init__(self, message: str = "", name: str = "StepError") -> None:
        super().__init__(message)
        self.name = name
        self.message = message

    def __str__(self) -> str:
        return f"{self.name}: {self.message}" if self.name != "StepError" else self.message
