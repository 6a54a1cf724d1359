"""Operations: the calls of a tenant, as its driver and its own code make them."""

from __future__ import annotations

from typing import Any, assert_never, cast

from dynamic_workflows.loaders.protocol.calls import (
    WAITING_CALLS,
    AnswerT,
    AnyCall,
    AwaitResult,
    ChangeSchedule,
    CreateBatch,
    DeleteBatch,
    DeleteInstance,
    DeployCode,
    ExplainInstance,
    GetEvents,
    GetHistory,
    GetInstance,
    GetStatus,
    InvokeMethod,
    ListInstances,
    PauseInstance,
    ReloadCode,
    RestartInstance,
    ResumeInstance,
    SendEvent,
    TenantCall,
    TerminateInstance,
)

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
        self._reads = reads
        self._commands = commands
        self._code = code
        self.waiting = waiting
        """Counts the calls that wait for something to happen."""
        self._quick = 0
        """Other calls that have no answer yet."""

    @property
    def is_idle(self) -> bool:
        """Whether no call is under way, except those that wait for something to happen."""
        return not self._quick

    async def call(self, call: TenantCall[AnswerT]) -> AnswerT:
        """Carry out one operation of `loaders/protocol/calls.py`.

        Raises WorkflowsError and TimeoutError.
        """
        self._state.check_open()
        is_quick = not isinstance(call, WAITING_CALLS)
        self._quick += is_quick
        try:
            with self.waiting.one(type(call)):
                answer: AnswerT = await self._answer(cast(AnyCall, call))
                return answer
        finally:
            self._quick -= is_quick

    async def _answer(self, call: AnyCall) -> Any:
        reads, commands, code = self._reads, self._commands, self._code
        match call:
            case CreateBatch():
                return await commands.create_batch(call)
            case SendEvent():
                return await commands.send_event(call)
            case AwaitResult():
                return await reads.result(call)
            case GetEvents():
                return await reads.events(call)
            case GetStatus():
                return await reads.status(call)
            case GetInstance():
                return await reads.get(call)
            case ListInstances():
                return await reads.page(call)
            case GetHistory():
                return await reads.history(call)
            case ExplainInstance():
                return await reads.why(call)
            case PauseInstance():
                return await commands.pause(call)
            case ResumeInstance():
                return await commands.resume(call)
            case TerminateInstance():
                return await commands.terminate(call)
            case RestartInstance():
                return await commands.restart(call)
            case DeleteInstance():
                return await commands.delete(call)
            case DeleteBatch():
                return await commands.delete_batch(call)
            case InvokeMethod():
                return await code.invoke(call)
            case DeployCode():
                return await code.deploy(call)
            case ReloadCode():
                return await code.reload()
            case ChangeSchedule():
                return await code.schedule(call)
            case _:
                assert_never(call)
