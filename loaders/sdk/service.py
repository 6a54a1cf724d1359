"""Service: what a platform grants to tenants, and the dispatcher that shares one workflow binding.

Everything here runs on the platform's side, as trusted code; tenants see names and results alone.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping
from typing import Any

from dynamic_workflows.eventlog.codec import values
from dynamic_workflows.eventlog.errors import MissingDispatcherMetadataError

from .entrypoints import WorkflowEntrypoint
from .records import Record


class Service:
    """Base class for what a platform puts in a tenant's `env`.

    The public async methods can be called by the tenant; they run on the platform's side, with
    values by the codec. `props` is set by the platform and invisible to the tenant.
    """

    props: Any = None

    public_errors: tuple[type[BaseException], ...] = ()
    """Classes of exceptions whose message tenants may be told, beside those that say so themselves
    (`public_message = True`). Of all others tenants learn the class and a reference."""

    def __init__(self, *, props: Any = None) -> None:
        self.props = props


class DynamicWorkflowBinding:
    """A workflow binding for a tenant's `env` that tags each create with `metadata`."""

    def __init__(self, metadata: Any, binding_name: str = "WORKFLOWS") -> None:
        values.encode(metadata)  # complain here, where the wrong value is at hand
        if not isinstance(binding_name, str) or not binding_name:
            raise TypeError(f"binding_name is the name of a binding, not {binding_name!r}")
        self.metadata = metadata
        self.binding_name = binding_name

    def __repr__(self) -> str:
        return f"DynamicWorkflowBinding({self.metadata!r}, {self.binding_name!r})"


def wrap_workflow_binding(metadata: Any, binding_name: str = "WORKFLOWS") -> DynamicWorkflowBinding:
    """A binding to put into a tenant's `env`; `metadata["tenant_id"]` routes what it creates.

    The metadata lies beside the params of each instance, where tenant code can neither read nor
    write it. It says where an instance belongs; it is no place for secrets.
    """
    return DynamicWorkflowBinding(metadata, binding_name)


class DispatchStep:
    """The `step` of a dispatcher's run: it has no steps and is handed on to the tenant's code."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.found: asyncio.Future[Any] = loop.create_future()
        self._released: asyncio.Future[None] = loop.create_future()

    async def hand_over(self, stub: Any) -> None:
        """Take the tenant's entrypoint; the dispatcher's own run goes on when it is released."""
        if not self.found.done():
            self.found.set_result(stub)
        await asyncio.shield(self._released)

    def release(self) -> None:
        """Let the dispatcher's run go on after the hand-over."""
        if not self._released.done():
            self._released.set_result(None)


class DispatchEvent(Record):
    """What a dispatcher's run is told: the instance, and what its binding was wrapped with.

    `instance_id` and `payload` are None where only the newest code is asked for.
    """

    instance_id: str | None
    payload: Any
    metadata: Any

    def inner(self) -> Record:
        """The event for the tenant, without the metadata."""
        return Record(**{name: self[name] for name in self if name != "metadata"})


async def dispatch_workflow(context: Any, event: Any, step: Any, load_runner: Any) -> Any:
    """Load the runner that the event's metadata names, and run the instance there.

    `context` holds `env` and `ctx`, by key or attribute. Raises MissingDispatcherMetadataError when
    the event carries no metadata.
    """
    metadata = _field(event, "metadata")
    if metadata is None:
        raise MissingDispatcherMetadataError(
            "the instance carries no dispatcher metadata: create it through a binding that "
            "wrap_workflow_binding() made"
        )
    given = {"metadata": metadata, "env": _field(context, "env"), "ctx": _field(context, "ctx")}
    runner = load_runner(**_accepted(load_runner, given))
    if inspect.isawaitable(runner):
        runner = await runner
    inner = event.inner() if isinstance(event, DispatchEvent) else event
    outcome = runner.run(inner, step)
    return await outcome if inspect.isawaitable(outcome) else outcome


def _field(holder: Any, name: str) -> Any:
    if isinstance(holder, Mapping):
        return holder.get(name)
    return getattr(holder, name, None)


def _accepted(function: Any, given: dict[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return given
    return {name: value for name, value in given.items() if name in parameters}


def create_dynamic_workflow_entrypoint(load_runner: Any) -> type[WorkflowEntrypoint]:
    """The one workflow class of a dispatcher; `load_runner(*, metadata, env)` finds the tenant's.

    `load_runner` may be sync or async and answers what `get_entrypoint` of a worker answers.
    """

    class DynamicWorkflow(WorkflowEntrypoint):
        """Hands every instance on to the code of the tenant that its metadata names."""

        async def run(self, event: Any, step: Any) -> Any:
            context = {"env": self.env, "ctx": self.ctx}
            return await dispatch_workflow(context, event, step, load_runner)

        run.only_dispatches = True  # type: ignore[attr-defined]

    return DynamicWorkflow


def only_dispatches(kind: type[Any]) -> bool:
    """Whether a dispatcher's class does nothing but to look up code by metadata."""
    return bool(getattr(getattr(kind, "run", None), "only_dispatches", False))


class App:
    """A dispatcher: the entrypoint that answers requests, and its workflow bindings by name."""

    def __init__(
        self,
        dispatcher: type[Any] | None = None,
        *,
        workflows: Mapping[str, type[Any]] | None = None,
        env: Mapping[str, Any] | None = None,
    ) -> None:
        """`env` adds values to what the dispatcher's `self.env` holds beside LOADER."""
        for name, kind in (workflows or {}).items():
            if not isinstance(kind, type) or not callable(getattr(kind, "run", None)):
                raise TypeError(f"workflows[{name!r}] is no class with a run(event, step)")
        self.dispatcher = dispatcher
        self.workflows = dict(workflows or {})
        self.env = dict(env or {})
