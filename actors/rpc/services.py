"""Services: what each actor answers, and calls of it that mypy checks.

`remote(ref, LoaderApi.resolve)(tenant_id, None)` calls that method of the actor behind `ref`, with
the arguments and the answer that the Protocol declares; the actor's class implements the Protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, NamedTuple, ParamSpec, Protocol, TypeAlias, TypeVar

from dynamic_workflows.loaders.bundles.worker import WorkerRef

from ..code.code_resolver import PrefetchedCode, Resolved
from ..code.dispatcher_runs import PendingDispatch
from .actor_ref import ActorRef
from .actor_settings import Rule

P = ParamSpec("P")
T = TypeVar("T")

CallOutcome: TypeAlias = tuple[int, bool, Any]
"""A call's number, whether it succeeded, and its answer or error."""


class WakeAnswer(NamedTuple):
    """The loader's answer for tenants that it was asked to open; those not in it are open."""

    refused: dict[str, str]
    """Those that cannot be opened, and why."""
    not_yet: dict[str, str]
    """Those that are not open so far, and why."""


class WakeState(NamedTuple):
    """What the timer knows of one tenant."""

    due_us: int | None
    """When it has to be awake; OPEN, or None if it sleeps for good."""
    tries: int
    """How often the loader was asked for it in vain."""
    next_us: int | None
    """When the loader is asked again."""
    reason: str
    """What it said last."""
    rest_s: float
    """The rest after that, in seconds; 0 while it has said nothing."""


class ActorApi(Protocol):
    """What every actor answers."""

    async def stats(self) -> object:
        """Return what the actor holds and has done; shows that it lives."""
        ...

    async def close(self) -> None:
        """End the actor's work in order."""
        ...


class LoaderApi(ActorApi, Protocol):
    """The loader actor, as drivers, tenants and the timer call it."""

    async def resolve(self, tenant_id: str, gone: str | None = None) -> ActorRef:
        """Return the worker process of a tenant, which is opened if need be."""
        ...

    async def wake(self, tenant_ids: Sequence[str]) -> WakeAnswer:
        """Open these tenants."""
        ...

    async def residents(self) -> list[str]:
        """Return the tenants that have a placement."""
        ...

    async def pool_members(self, known: Sequence[str], wait_s: float) -> list[ActorRef] | None:
        """Return the blank processes, as soon as one is not `known`, or after `wait_s`."""
        ...

    async def worker_restarted(self, name: str) -> None:
        """Open the tenant again in a process that ended and was restarted."""
        ...

    async def released(
        self, name: str, tenant_id: str | None, generation: int | None = None
    ) -> None:
        """Take a process back that has closed its tenant, under its generation; None: it ends."""
        ...

    async def rule(self, mine: Rule) -> Rule:
        """Return whose `load` is in effect; a later driver with the same `load` counts as its."""
        ...

    async def replaced(self, mine: Rule, wait_s: float) -> Rule | None:
        """Return whose `load` replaced that of `mine`; None if it is still in effect."""
        ...

    async def code_current(
        self, tenant_id: str, binding: str | None, metadata: bytes | None
    ) -> Resolved:
        """Return the code for new instances of a tenant."""
        ...

    async def code_dispatch(
        self, tenant_id: str, binding: str | None, metadata: bytes, asked: list[PendingDispatch]
    ) -> list[Resolved]:
        """Return the code for each of these new instances."""
        ...

    async def code_dispatched(self, ticket: str, is_stored: bool) -> None:
        """Report whether the dispatched instances were created."""
        ...

    async def code_worker(self, name: str | None, pickled: bytes) -> WorkerRef:
        """Load a worker; `pickled` is its code, or the callback that returns it."""
        ...

    async def code_forget(self, tenant_id: str) -> None:
        """Run the tenant's callback again for its next code."""
        ...


class TimerApi(ActorApi, Protocol):
    """The timer actor, as tenants and drivers call it."""

    async def opened(self, tenants: Sequence[tuple[str, int]]) -> dict[str, int]:
        """Register tenants as open, each under an epoch; return the higher epochs known."""
        ...

    async def slept(self, tenants: Sequence[tuple[str, int, int | None]]) -> None:
        """Record that tenants have closed, each under an epoch, and when they are due (µs)."""
        ...

    async def wake_state(self, tenant_id: str) -> WakeState:
        """Return when a tenant is due, and the state of its wake-up."""
        ...


class WorkerApi(ActorApi, Protocol):
    """A worker process, as the loader and clients call it."""

    async def assign(self, tenant_id: str, is_wanted: bool = False, generation: int = 0) -> bool:
        """Open a tenant; return whether it was not open before."""
        ...

    async def take_code(self, tenant_id: str, code: PrefetchedCode, generation: int = 0) -> None:
        """Receive from the loader the code of the tenant."""
        ...

    async def who(self) -> tuple[str | None, str, int]:
        """Return the tenant that is served here, the value of the `WorkerState`, and the
        generation: how often the process has become blank again."""
        ...

    async def make_room(self, tenant_id: str) -> bool:
        """Go to sleep if this tenant is idle; return whether it does."""
        ...

    async def exchange(
        self,
        tenant_id: str,
        session_id: str,
        calls: list[tuple[int, bytes]],
        forgotten: list[int],
        wait_s: float,
    ) -> list[CallOutcome]:
        """Start calls, and return the outcomes that are ready, of earlier calls too."""
        ...


def remote(
    ref: ActorRef,
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
    *,
    timeout_s: float | None = None,
) -> Callable[P, Coroutine[Any, Any, T]]:
    """Return a method of the actor behind `ref`, to be called with its arguments by position.

    A call raises what the method raised, or ActorUnreachable, at the latest after `timeout_s`.
    """

    def call(*args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        assert not kwargs, "calls of actors have arguments by position"
        return ref.call(method.__name__, *args, timeout_s=timeout_s)

    return call
