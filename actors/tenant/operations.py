"""Operations: the calls of a tenant, as its driver and its own code make them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from dynamic_workflows.eventlog.errors import InvalidError

from .code_operations import CodeOperations
from .instance_commands import InstanceCommands
from .instance_reads import InstanceReads
from .supervisor_state import SupervisorState
from .waiting_calls import WaitingCalls


class Operations:
    """Carries out each call by the part that is for it."""

    def __init__(
        self,
        state: SupervisorState,
        reads: InstanceReads,
        commands: InstanceCommands,
        code: CodeOperations,
        waiting: WaitingCalls,
    ) -> None:
        self._state = state
        self.waiting = waiting
        """Counts the calls that wait for something to happen."""
        self._quick = 0
        """Other calls that have no answer yet."""
        self._handlers: dict[str, Callable[[dict[str, Any]], Awaitable[Any]]] = {
            "create_batch": commands.create_batch,
            "get": reads.get,
            "status": reads.status,
            "result": reads.result,
            "pause": commands.pause,
            "resume": commands.resume,
            "terminate": commands.terminate,
            "restart": commands.restart,
            "send_event": commands.send_event,
            "delete": commands.delete,
            "delete_batch": commands.delete_batch,
            "list": reads.page,
            "history": reads.history,
            "events": reads.events,
            "why": reads.why,
            "invoke": code.invoke,
            "deploy": code.deploy,
            "reload": code.reload,
            "schedule": code.schedule,
        }

    @property
    def is_idle(self) -> bool:
        """Whether no call is under way, except those that wait for something to happen."""
        return not self._quick

    async def call(self, op: str, args: dict[str, Any]) -> Any:
        """Carry out one operation of `loaders/protocol/calls.py`.

        Raises WorkflowsError and TimeoutError.
        """
        handler = self._handlers.get(op)
        if handler is None:
            raise InvalidError(f"there is no operation {op!r}")
        self._state.check_open()
        is_quick = op not in ("result", "events")
        self._quick += is_quick
        try:
            with self.waiting.one(op):
                return await handler(args)
        finally:
            self._quick -= is_quick
