"""Errors, chosen by what the caller does next: fix it, read again, stop, wait, repair.

Every error has a stable `code` (part of the promise) and a message (not part of it) that says what
happened, to what, and what to do next. Errors travel between processes as (class, code, message).

    WorkflowsError
    ├── InvalidError                     the call is wrong: fix it
    │   └── MissingDispatcherMetadataError
    ├── InstanceError                    the instance is missing, exists, or forbids it: read again
    ├── WorkflowFailedError              `result()`: the run raised
    ├── WorkflowTerminatedError          `result()`: it was terminated
    ├── UnserialisableValueError         a value that cannot be stored: change it
    ├── ValueTooLargeError               a value above its limit: make it smaller
    ├── CodeError                        the tenant's code cannot be loaded: mend the code
    ├── QueryError                       SQL that is refused: mend the query
    ├── LimitExceededError               a limit of the deployment: wait `.retry_after` seconds
    ├── Unavailable                      something does not answer: wait and try again
    ├── PlatformClosed                   the platform was closed: connect again
    ├── PlatformBusy                     another platform has the log: share, end or take it over
    ├── Fenced                           a newer owner has the log: stop
    ├── Corrupt                          stored bytes are damaged: repair
    └── SandboxUnavailable               this host has no walls: docs/isolation.md

What tenant code raises and catches (`NonRetryableError`, `StepError`, …) is in `loaders/sdk`.
"""

from __future__ import annotations

import errno
from typing import Any

from .sanitize import plain


class WorkflowsError(Exception):
    """The root of every error that this library raises on purpose."""

    default_code = "internal"
    public_message = True
    """Whether tenants may be told the message of what was raised on the platform's side."""

    def __init__(self, message: str, *, code: str | None = None, **details: object) -> None:
        super().__init__(message)
        self.code: str = code or self.default_code
        self.message = message
        self.details: dict[str, Any] = details
        """Facts for programs: `retry_after` (seconds), `name`, `path`, `offset`, …"""

    def __reduce__(self) -> Any:
        return _revive, (type(self), self.message, self.code, self.details)

    def __getattr__(self, name: str) -> Any:
        details = self.__dict__.get("details")
        if details is not None and name in details:
            return details[name]
        raise AttributeError(name)


def _revive(
    kind: type[WorkflowsError], message: str, code: str, details: dict[str, Any]
) -> WorkflowsError:
    error = kind.__new__(kind)
    WorkflowsError.__init__(error, message, code=code, **details)
    return error


class InvalidError(WorkflowsError):
    """The call is wrong: fix it; nothing was stored."""

    default_code = "invalid"


class InstanceError(WorkflowsError):
    """The instance is missing, exists already, or is in a state that forbids this call."""

    default_code = "instance.not_found"


class WorkflowFailedError(WorkflowsError):
    """`result()` of an errored instance; `.name` and `.message` are those of the original error."""

    default_code = "instance.failed"

    def __str__(self) -> str:
        """The message as a traceback may show it: a tenant wrote it."""
        return plain(str(self.message))


class WorkflowTerminatedError(WorkflowsError):
    """`result()` of a terminated instance."""

    default_code = "instance.terminated"


class UnserialisableValueError(WorkflowsError):
    """A value that the codec does not take; the message names the place and the type."""

    default_code = "value.unserialisable"


class ValueTooLargeError(WorkflowsError):
    """A value above `value_bytes_max`."""

    default_code = "value.too_large"


class CodeError(WorkflowsError):
    """Tenant code that cannot be loaded, parsed, imported, or lacks the class."""

    default_code = "code.invalid"


class MissingDispatcherMetadataError(InvalidError):
    """A create on a dispatcher's binding that no `wrap_workflow_binding` has tagged."""

    default_code = "dispatcher.metadata_missing"


class QueryError(WorkflowsError):
    """SQL that DuckDB refuses; the message is DuckDB's."""

    default_code = "query.invalid"
    public_message = False


class LimitExceededError(WorkflowsError):
    """A limit of the deployment is reached; try again in `.retry_after` seconds."""

    default_code = "limit.exceeded"


class Fenced(WorkflowsError):
    """A newer owner holds the log: stop, and do not retry from here."""

    default_code = "log.fenced"
    public_message = False


class Unavailable(WorkflowsError):
    """Something that should answer does not: wait and try again."""

    default_code = "platform.unavailable"
    public_message = False


def needs_operator(error: object) -> bool:
    """Return whether the disk is full or read-only, so that a retry fails until an operator
    acts."""
    details = error.details if isinstance(error, WorkflowsError) else {}
    return details.get("errno") in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class PlatformClosed(WorkflowsError):
    """The platform was closed: connect again."""

    default_code = "platform.closed"
    public_message = False


class PlatformBusy(WorkflowsError):
    """Another platform is at work on the log: share it, end it, or take the log from it."""

    default_code = "platform.busy"
    public_message = False


class LoadReplacedWarning(UserWarning):
    """Drivers of one platform disagree about `load`, and this one's is not what rules."""


class Corrupt(WorkflowsError):
    """Stored bytes are not what was written; see `.path` and `.offset`. Repair, then reopen."""

    default_code = "log.corrupt"
    public_message = False


class SandboxUnavailable(WorkflowsError):
    """This host cannot build the sandbox that the configuration requires."""

    default_code = "isolation.unavailable"
    public_message = False
