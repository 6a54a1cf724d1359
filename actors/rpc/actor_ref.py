"""Peers: an actor as it is reached from another process, and how calls and outcomes travel.

Ray carries bytes and nothing else: a call is pickled here, and so is its outcome, a value or an
error, so that our errors arrive as themselves. Only the platform's own processes take part; nothing
that a tenant's code sent is ever unpickled.
"""

from __future__ import annotations

import pickle
from typing import Any, Protocol

from dynamic_workflows.eventlog.errors import WorkflowsError


class ActorUnreachable(Exception):
    """The peer died, or did not answer in time: whether it did what was asked is unknown."""


class ActorRef(Protocol):
    """An actor somewhere."""

    name: str

    async def call(self, op: str, *args: object, timeout_s: float | None = None) -> Any:
        """Call a method of the actor's plain class; raises what it raised, or ActorUnreachable."""
        ...


def pack_call(args: tuple[Any, ...]) -> bytes:
    """The arguments of a call as bytes."""
    return pickle.dumps(args, protocol=5)


async def serve(target: object, op: str, body: bytes) -> bytes:
    """Call `target.op(*args)` and pack the outcome, whatever it is."""
    try:
        value = await getattr(target, op)(*pickle.loads(body))
        return pickle.dumps((True, value), protocol=5)
    except Exception as error:
        return pickle.dumps((False, portable(error)), protocol=5)


def unpack_outcome(body: bytes) -> Any:
    """The value that the far end returned; raises what it raised."""
    succeeded, value = pickle.loads(body)
    if succeeded:
        return value
    raise value


def portable(error: BaseException) -> BaseException:
    """The error as the other process will be able to read it."""
    if isinstance(error, WorkflowsError | TimeoutError | ActorUnreachable):
        return error
    try:
        if type(pickle.loads(pickle.dumps(error))) is type(error):
            return error
    except Exception:
        # Whatever its own pickling does: it is not portable.
        pass
    return WorkflowsError(f"{type(error).__name__}: {error}")
