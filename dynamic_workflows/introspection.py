"""Introspection: look into instances under test, and put outcomes in the place of what they do.

A session covers one instance, or every instance of a workflow that is created while it lasts.
Leaving the block ends the session and its mocks, and leaves the instances as they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from .eventlog.codec import values
from .eventlog.errors import InstanceError, InvalidError
from .loaders.guest import exception_codec
from .loaders.protocol.contract import ENDED, STATUSES
from .loaders.sdk.binding import WorkflowBinding, WorkflowInstance

if TYPE_CHECKING:
    from .actors.core.mocks import InstanceMocks
    from .actors.in_process.local_platform import LocalCalls
    from .actors.tenant.tenant import TenantSupervisor
    from .eventlog.events import Row

Named: TypeAlias = str | Mapping[str, Any]
"""A step: its name, or {"name", "index"} where the index counts occurrences from 1."""


def introspect_instance(binding: WorkflowBinding, id: str) -> InstanceIntrospector:
    """A session over one instance, which need not exist yet; an async context manager."""
    return InstanceIntrospector(binding, id)


def introspect_workflow(binding: WorkflowBinding) -> WorkflowIntrospector:
    """A session over every instance created while it lasts; an async context manager."""
    return WorkflowIntrospector(binding)


class _Session:
    """What both kinds share: a place in the tenant's mocks."""

    def __init__(self, binding: WorkflowBinding) -> None:
        calls: Any = getattr(binding, "_calls", None)
        if not hasattr(calls, "platform") or binding._workflow is None:
            raise TypeError("introspection needs a binding of dynamic_workflows.testing.connect()")
        self._binding = binding
        self._calls: LocalCalls = calls
        self._workflow: str = binding._workflow
        self._is_open = False

    @property
    def _name(self) -> tuple[str, ...]:
        raise NotImplementedError

    async def _enter(self) -> None:
        sessions = self._calls.platform.sessions
        name = (self._calls.tenant_id, *self._name)
        if name in sessions:
            raise InvalidError(f"{' / '.join(self._name)} is under introspection already")
        sessions.add(name)
        self._is_open = True
        await self._tenant()

    def _leave(self) -> None:
        if self._is_open:
            self._is_open = False
            self._calls.platform.sessions.discard((self._calls.tenant_id, *self._name))

    async def _tenant(self) -> TenantSupervisor:
        if not self._is_open:
            raise InvalidError("the session is over: enter `async with` again")
        return await self._calls.platform.tenant(self._calls.tenant_id)

    async def _mocks(self) -> InstanceMocks:
        raise NotImplementedError

    async def disable_sleeps(self, steps: Iterable[Named] | None = None) -> None:
        """Let these sleeps (None: all) take no time."""
        (await self._mocks()).disable_sleeps(_named_list(steps))

    async def disable_retry_delays(self, steps: Iterable[Named] | None = None) -> None:
        """Let the next attempt of these steps (None: all) start at once after a failure."""
        (await self._mocks()).disable_retry_delays(_named_list(steps))

    async def mock_step_result(self, step: Named, value: Any) -> None:
        """Do not run the step: this is its result."""
        (await self._mocks()).mock_step_result(_named(step), values.encode(value))

    async def mock_step_error(
        self, step: Named, error: BaseException | str, times: int | None = None
    ) -> None:
        """Let the next `times` attempts (None: every one) fail with this error, or its text."""
        wire = exception_codec.to_wire(
            error if isinstance(error, BaseException) else Exception(error)
        )
        (await self._mocks()).mock_step_error(_named(step), wire, times)

    async def force_step_timeout(self, step: Named, times: int | None = None) -> None:
        """Let the next `times` attempts (None: every one) time out at once."""
        (await self._mocks()).force_step_timeout(_named(step), times)

    async def mock_event(self, type: str, payload: Any = None) -> None:
        """Give the next wait for this type this event."""
        (await self._mocks()).mock_event(type, values.encode(payload))

    async def force_event_timeout(self, step: Named) -> None:
        """Let this wait time out at once."""
        (await self._mocks()).force_event_timeout(_named(step))


class InstanceIntrospector(_Session):
    """A session over one instance."""

    def __init__(self, binding: WorkflowBinding, id: str) -> None:
        super().__init__(binding)
        self.id = id
        self._key = (self._workflow, id)

    @property
    def _name(self) -> tuple[str, ...]:
        return self._key

    @property
    def instance(self) -> WorkflowInstance:
        """The handle of the instance."""
        return WorkflowInstance(self._calls, self._workflow, self.id)

    async def __aenter__(self) -> InstanceIntrospector:
        await self._enter()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_open and not self._calls.platform.is_closed:
            (await self._tenant()).core.mocks.forget(self._key)
        self._leave()

    async def _mocks(self) -> InstanceMocks:
        return (await self._tenant()).core.mocks.of_instance(self._key)

    async def mock_event(self, type: str, payload: Any = None) -> None:
        """Give the wait for this type this event: the one that waits now, or the next one."""
        tenant = await self._tenant()
        await tenant.mock_event(self._key, type, values.encode(payload))

    async def wait_for_status(self, status: str) -> None:
        """Wait until the instance has this status; InstanceError once it can no longer have it."""
        if status not in STATUSES:
            raise InvalidError(f"{status!r} is no status", code="status.invalid")
        with self._calls.platform.waits():
            while True:
                async with self._watching() as changed:
                    now = await self._status_text()
                    if now == status or status == "queued":
                        return
                    if now in ENDED:
                        raise InstanceError(
                            f"instance {self.id!r} is {now} and will not be {status} any more",
                            code="instance.finished",
                        )
                    await changed

    @asynccontextmanager
    async def _watching(self) -> AsyncIterator[asyncio.Future[None]]:
        """What is done when something happens from now on, so that nothing is missed while we look.

        A tenant that dies wakes those who watch it.
        """
        tenant = await self._tenant()
        while tenant.is_over:
            await asyncio.sleep(0)
            tenant = await self._tenant()
        with tenant.watch(self._key) as changed:
            yield changed

    async def _status_text(self) -> str | None:
        try:
            return str((await self.instance.status()).status)
        except InstanceError:
            return None

    async def wait_for_step_result(self, step: Named) -> Any:
        """The result of a step, once it has one; raises what the step failed with.

        The result of a sensitive step is "[REDACTED]".
        """
        name, count = _named(step)
        with self._calls.platform.waits():
            while True:
                async with self._watching() as changed:
                    # The status first: what ended before we read the history is all in it.
                    now = await self._status_text()
                    outcome = await self._outcome(name, count)
                    if outcome is not None:
                        return _answer(outcome)
                    if now in ENDED:
                        raise InstanceError(
                            f"instance {self.id!r} ended without step {name!r} ({count})",
                            code="instance.finished",
                        )
                    await changed

    async def _outcome(self, name: str, count: int) -> Row | None:
        # What callers are shown of an error is not enough to raise it again.
        try:
            rows = await (await self._tenant()).rows_of(self._key)
        except InstanceError:
            return None
        for row in rows:
            is_outcome = row.type in ("step_completed", "step_errored")
            if is_outcome and (row.step, row.count) == (name, count):
                return row
        return None

    async def get_output(self) -> Any:
        """The output; InstanceError unless the instance is complete."""
        status = await self.instance.status()
        if status.status != "complete":
            raise InstanceError(
                f"instance {self.id!r} is {status.status}, not complete: it has no output",
                code="instance.not_complete",
            )
        return status.output

    async def get_error(self) -> Any:
        """The error (`name`, `message`); InstanceError unless the instance is errored."""
        status = await self.instance.status()
        if status.status != "errored":
            raise InstanceError(
                f"instance {self.id!r} is {status.status}, not errored: it has no error",
                code="instance.not_errored",
            )
        return status.error


class WorkflowIntrospector(_Session):
    """A session over the instances of a workflow that are created while it lasts."""

    def __init__(self, binding: WorkflowBinding) -> None:
        super().__init__(binding)
        self._older: set[str] = set()

    @property
    def _name(self) -> tuple[str, ...]:
        return (self._workflow,)

    async def __aenter__(self) -> WorkflowIntrospector:
        await self._enter()
        self._older = set((await self._tenant()).instance_ids(self._workflow))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_open and not self._calls.platform.is_closed:
            core = (await self._tenant()).core
            core.mocks.forget_workflow(self._workflow)
            for one in await self.get():
                core.mocks.forget(one._key)
        self._leave()

    async def _mocks(self) -> InstanceMocks:
        return (await self._tenant()).core.mocks.of_workflow(self._workflow)

    async def get(self) -> list[InstanceIntrospector]:
        """An introspector for each instance created since the session began, oldest first."""
        tenant = await self._tenant()
        found = []
        for name in tenant.instance_ids(self._workflow):
            if name in self._older:
                continue
            one = InstanceIntrospector(self._binding, name)
            one._is_open = True
            found.append(one)
        return found

    async def wait_for_status(self, status: str) -> None:
        """Wait until every instance created so far has this status, or InstanceError."""
        for one in await self.get():
            await one.wait_for_status(status)

    async def wait_for_step_result(self, step: Named) -> Any:
        """As of `introspect_instance`, where one instance was created; InvalidError otherwise."""
        return await (await self._only()).wait_for_step_result(step)

    async def get_output(self) -> Any:
        """As of `introspect_instance`, where one instance was created; InvalidError otherwise."""
        return await (await self._only()).get_output()

    async def get_error(self) -> Any:
        """As of `introspect_instance`, where one instance was created; InvalidError otherwise."""
        return await (await self._only()).get_error()

    async def _only(self) -> InstanceIntrospector:
        found = await self.get()
        if len(found) != 1:
            raise InvalidError(
                f"{len(found)} instances were created in this session: choose one of `await get()`"
            )
        return found[0]


def _named(step: Named) -> tuple[str, int]:
    if isinstance(step, str):
        return step, 1
    if isinstance(step, Mapping) and isinstance(step.get("name"), str):
        index = step.get("index", 1)
        if isinstance(index, int) and not isinstance(index, bool) and index >= 1:
            return step["name"], index
    raise TypeError('a step is its name, or {"name": …, "index": 1}')


def _named_list(steps: Iterable[Named] | None) -> list[tuple[str, int]] | None:
    if steps is None:
        return None
    if isinstance(steps, str | Mapping):
        steps = [steps]
    return [_named(step) for step in steps]


def _answer(outcome: Row) -> Any:
    """The result of a step; raises what it failed with."""
    from .actors.instances.row_payloads import Completed, Errored, decode, wire_error

    body = decode(outcome)
    if isinstance(body, Completed):
        return values.decode(bytes(body.output))
    assert isinstance(body, Errored), f"{outcome.type} is no outcome"
    raise exception_codec.from_wire(wire_error(body.error))
