"""Peers: an actor as it is reached from another process, and how calls and outcomes travel.

Ray carries bytes and nothing else: a call is pickled here, and so is its outcome, a value or an
error, so that our errors arrive as themselves. Only the platform's own processes take part; nothing
that a tenant's code sent is ever unpickled.
"""

from __future__ import annotations

import asyncio
import pickle
from typing import Any, Protocol

from ..eventlog.errors import WorkflowsError


class Lost(Exception):
    """The peer died, or did not answer in time: whether it did what was asked is unknown."""


class Peer(Protocol):
    """An actor somewhere."""

    name: str

    async def call(self, op: str, *args: Any, timeout_s: float | None = None) -> Any:
        """Call a method of the actor's plain class; raises what it raised, or Lost."""
        ...


class Served(Protocol):
    """The far end of a peer: something that answers packed calls."""

    async def rpc(self, op: str, body: bytes) -> bytes:
        """Carry out a packed call; never raises, the outcome says what happened."""
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
    if isinstance(error, WorkflowsError | TimeoutError | Lost):
        return error
    try:
        if type(pickle.loads(pickle.dumps(error))) is type(error):
            return error
    except Exception:
        # Whatever its own pickling does: it is not portable.
        pass
    return WorkflowsError(f"{type(error).__name__}: {error}")


class LocalPeer:
    """A peer in the same process; calls are packed all the same, so that nothing is shared."""

    def __init__(self, name: str, target: object) -> None:
        self.name = name
        self._target = target
        self._calls: set[asyncio.Task[bytes]] = set()
        self._is_dead = False

    async def call(self, op: str, *args: Any, timeout_s: float | None = None) -> Any:
        """Call the object's method, as if it were elsewhere."""
        if self._is_dead:
            raise Lost(f"{self.name} is dead")
        task = asyncio.ensure_future(serve(self._target, op, pack_call(args)))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        # A call whose caller gives up goes on at the far end, as it would elsewhere.
        await asyncio.wait({task}, timeout=timeout_s)
        if not task.done():
            raise Lost(f"{self.name} did not answer {op} in {timeout_s} s")
        if task.cancelled():
            raise Lost(f"{self.name} died during {op}")
        return unpack_outcome(task.result())

    def die(self) -> None:
        """From now on every call, those in flight included, is lost."""
        self._is_dead = True
        for task in self._calls:
            task.cancel()
