"""Service errors: what tenants are told of exceptions on the platform's side, and what the log is.

A text that some library of the platform's wrote may hold addresses, queries and passwords. It
reaches tenants where the exception's class says so (`public_message = True`), or its service does
(`public_errors`); of any other they learn its class and a reference, under which the platform's log
has all of it.
"""

from __future__ import annotations

import logging
import secrets
import time
import traceback

import msgspec

from dynamic_workflows.eventlog.codec import values
from dynamic_workflows.eventlog.errors import WorkflowsError
from dynamic_workflows.eventlog.token_bucket import TokenBucket
from dynamic_workflows.loaders.guest import exception_codec
from dynamic_workflows.loaders.guest.sanitize import plain
from dynamic_workflows.loaders.protocol import messages

from ..code.callbacks import CallbackEndedError

LOGGED_PER_S = 20
"""Of one tenant: a tenant that calls what fails again and again fills no disk of the platform's."""
_OURS = "dynamic_workflows"
_TRACE_CHARACTERS_MAX = 64 * 1024
_ARGS_BYTES_MAX = 64 * 1024
_logger = logging.getLogger("dynamic_workflows.services")


class ServiceErrors:
    """The errors that one tenant's calls of the platform's side end with."""

    def __init__(self, tenant_id: str) -> None:
        self._tenant_id = tenant_id
        self._rate = TokenBucket(LOGGED_PER_S, burst=LOGGED_PER_S)

    def told(
        self, error: Exception, where: str, public: tuple[type[BaseException], ...] = ()
    ) -> messages.Error:
        """The error for the tenant. `where`: what it called; `public`: classes that may be told."""
        if says_so(error) or isinstance(error, public):
            told = _whole(_plainly(error))
        else:
            text = f"{where} raised {_name(error)}; {self._logged(error, where)}"
            told = _concealed(error, text)
        if told.fatal and told.module != _OURS:
            # Its own class is not to be had in the isolate, and what it means has to arrive.
            told = msgspec.structs.replace(told, name="NonRetryableError", module=_OURS)
        return told

    def _logged(self, error: Exception, where: str) -> str:
        """Where the rest of it is to be found."""
        if not self._rate.take(1, time.monotonic_ns() // 1000):
            return "too many failed at once for the platform's log"
        reference = secrets.token_hex(6)
        trace = "".join(traceback.format_exception(error)).rstrip()
        if len(trace) > _TRACE_CHARACTERS_MAX:
            trace = "…" + trace[-_TRACE_CHARACTERS_MAX:]
        trace = plain(trace, len(trace) + 1)
        _logger.error(
            "tenant %r: %s failed, reference %s\n    | %s",
            self._tenant_id,
            plain(where),
            reference,
            trace.replace("\n", "\n    | "),  # so that nobody can forge a line of its own
        )
        return f"the platform's log has its text under reference {reference}"


def says_so(error: BaseException) -> bool:
    """Whether the class of an exception says that its message may be told to tenants."""
    if isinstance(error, WorkflowsError) and error.code == "code.load_failed":
        return False  # it quotes what the platform's own callback raised
    return getattr(type(error), "public_message", False) is True


def _whole(error: Exception) -> messages.Error:
    told = exception_codec.to_wire(error)
    if isinstance(error, WorkflowsError):
        return told
    # Its message and args; what else it holds, and what caused it, nobody said is public.
    try:
        args = values.encode(list(error.args), bytes_max=_ARGS_BYTES_MAX) if error.args else None
    except WorkflowsError:
        args = None
    return msgspec.structs.replace(told, args=args)


def _plainly(error: Exception) -> Exception:
    """The error as the nearest class that others know: ours with public messages are private."""
    kind = type(error)
    while kind.__name__.startswith("_") and f"{_OURS}." in kind.__module__:
        kind = kind.__base__  # type: ignore[assignment]
    return error if kind is type(error) else kind(*error.args)


def _concealed(error: Exception, text: str) -> messages.Error:
    told = exception_codec.to_wire(error)
    if isinstance(error, WorkflowsError):
        facts = {k: v for k, v in error.details.items() if k == "retry_after"}
        args = values.encode([text, error.code, facts])
    else:
        args = values.encode([text])
    told = msgspec.structs.replace(told, message=text, args=args)
    if type(error).__name__ == "StepError" or text not in str(exception_codec.from_wire(told)):
        # Some builtin classes show no text of ours, and a StepError has another's name.
        told = msgspec.structs.replace(told, name=_name(error), module="", args=None)
    return told


def _name(error: BaseException) -> str:
    """The name of its class; of what tried to end the process, that."""
    cause = error.__cause__ if isinstance(error, CallbackEndedError) else None
    return plain(type(cause or error).__name__, 256)
