"""Calls: the operations of a tenant, each a struct, and the plain data that answers them.

`Calls.call(call)` is the one door; a call's class says what answers it (`TenantCall[Answer]`). A
driver's calls travel through Ray as `pack_call` packs them (or directly, in the platform of tests),
a tenant's own as a `CallRequest`: its method is the operation, its args what `pack_call` packs, and
its `Reply.value` what `pack_answer` packs. Whatever arrives is decoded by `unpack_call` or
`unpack_tenant_call`, which refuse what does not have the form of its class; the supervisor checks
what the values mean.

A call that changes instances is a `ChangeCall`, and may carry a token: a call whose token is known
was carried out before, is answered as done, and changes nothing. Tenants' own calls, which are
never sent again, have none.

`workflow` is None on a binding that a dispatcher wrapped: the supervisor asks the dispatcher
(create) or looks the id up (everything else).
"""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, Protocol, TypeAlias, TypeVar, get_args

import msgspec

from dynamic_workflows.eventlog.errors import InvalidError
from dynamic_workflows.eventlog.events import Row

from .contract import StepType
from .messages import Error

AnswerT = TypeVar("AnswerT")
Retention: TypeAlias = dict[
    Literal["success_us", "error_us"], Annotated[int, msgspec.Meta(ge=0, lt=2**62)]
]
"""Microseconds that an instance is kept after it has ended."""

# --- answers --------------------------------------------------------------------------------------


class StatusData(msgspec.Struct, kw_only=True):
    """`status()` as data; output is codec text."""

    status: str
    output: bytes | None = None
    error: Error | None = None
    rollback_outcome: str | None = None
    rollback_error: Error | None = None
    reason_code: str | None = None
    reason_message: str | None = None
    isolation: str | None = None
    """The walls around the isolate that the instance is in now."""


class EventPage(msgspec.Struct, kw_only=True):
    """The answer to `events`: what came after the cursor, the next cursor, and whether it ends."""

    rows: list[Row]
    cursor: int
    ended: bool = False


class WhyData(msgspec.Struct):
    """The answer to `ExplainInstance`."""

    code: str
    text: str


class InstanceItem(msgspec.Struct):
    """An instance in the answer to `ListInstances`."""

    id: str
    workflow: str
    status: str
    created_us: int
    ended_us: int | None = None


class InstancePage(msgspec.Struct):
    """The answer to `ListInstances`: newest first; no cursor on the last page."""

    items: list[InstanceItem]
    cursor: str | None = None


class DeleteFailure(msgspec.Struct):
    """Why an instance of a batch was not deleted."""

    id: str
    code: str
    message: str


class DeleteOutcome(msgspec.Struct):
    """The answer to `DeleteBatch`."""

    deleted: list[str] = []
    errors: list[DeleteFailure] = []


# --- calls ----------------------------------------------------------------------------------------


class TenantCall(msgspec.Struct, Generic[AnswerT], kw_only=True, tag_field="op"):
    """One operation of a tenant."""


class ChangeCall(TenantCall[AnswerT], Generic[AnswerT], kw_only=True):
    """A call that changes instances, once for each token."""

    token: str | None = None


class InstanceRead(TenantCall[AnswerT], Generic[AnswerT], kw_only=True):
    """A call that looks at one instance."""

    workflow: str | None = None
    id: str


class InstanceChange(ChangeCall[AnswerT], Generic[AnswerT], kw_only=True):
    """A call that changes one instance."""

    workflow: str | None = None
    id: str


class NewInstance(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """An instance to be created; `params` is codec text."""

    params: bytes
    id: str | None = None
    retention: Retention | None = None
    pin: Literal["hash", "latest"] | None = None


class CreateBatch(ChangeCall[list[str]], tag="create_batch", kw_only=True):
    """Create instances, all or none; answered by the ids of the new ones, in order."""

    workflow: str | None = None
    items: list[NewInstance]
    strict: bool = False
    """Whether an id that exists is an error."""
    binding: str | None = None
    """The dispatcher's binding that it came through; only the supervisor sets it."""
    metadata: bytes | None = None
    """The dispatcher's metadata, as codec text; only the supervisor sets it."""


class GetInstance(InstanceRead[None], tag="get", kw_only=True):
    """Raise `instance.not_found` unless the instance exists."""


class GetStatus(InstanceRead[StatusData], tag="status", kw_only=True):
    """Return the status now."""


class AwaitResult(InstanceRead[StatusData], tag="result", kw_only=True):
    """Return the status once the run has ended; TimeoutError after `timeout_s` (None: never)."""

    timeout_s: float | None = None


class PauseInstance(InstanceChange[None], tag="pause", kw_only=True):
    """Pause an instance."""


class ResumeInstance(InstanceChange[None], tag="resume", kw_only=True):
    """Resume an instance that was paused or parked."""


class TerminateInstance(InstanceChange[None], tag="terminate", kw_only=True):
    """End an instance for good; with `rollback`, undo its steps first."""

    rollback: bool = False


class RestartTarget(msgspec.Struct, kw_only=True):
    """The step that a restart begins at."""

    name: str
    type: StepType
    count: int = 1


class RestartInstance(InstanceChange[None], tag="restart", kw_only=True):
    """Run an instance again, from the top or from a step."""

    from_: RestartTarget | None = msgspec.field(default=None, name="from")


class SendEvent(InstanceChange[None], tag="send_event", kw_only=True):
    """Deliver an event; `payload` is codec text."""

    type: str
    payload: bytes


class DeleteInstance(InstanceChange[None], tag="delete", kw_only=True):
    """Remove an instance and everything of it."""


class DeleteBatch(ChangeCall[DeleteOutcome], tag="delete_batch", kw_only=True):
    """Remove instances; answered for each of them."""

    workflow: str | None = None
    ids: list[str]


class ListInstances(TenantCall[InstancePage], tag="list", kw_only=True):
    """Return a page of instances."""

    workflow: str | None = None
    status: list[str] | str | None = None
    limit: int = 100
    cursor: str | None = None


class GetHistory(InstanceRead[list[Row]], tag="history", kw_only=True):
    """Return the rows, unfolded, of the present run or of all runs."""

    all_runs: bool = False


class GetEvents(InstanceRead[EventPage], tag="events", kw_only=True):
    """Return the rows after a cursor, once there are any, or none after `wait_s`."""

    cursor: int = 0
    wait_s: float | None = None


class ExplainInstance(InstanceRead[WhyData], tag="why", kw_only=True):
    """Return why an instance is where it is."""


class InvokeMethod(TenantCall[bytes], tag="invoke", kw_only=True):
    """Call a method of an entrypoint; arguments, props and the answer are codec text."""

    entrypoint: str | None = None
    method: str
    args: bytes
    kwargs: bytes
    props: bytes | None = None
    limits: dict[str, int] | None = None
    code_hash: str | None = None
    worker: str | None = None


class DeployCode(TenantCall[str], tag="deploy", kw_only=True):
    """Put code in place, a bundle in its stored form; answered by its hash."""

    bundle: bytes


class ReloadCode(TenantCall[None], tag="reload", kw_only=True):
    """Forget what is held of the tenant's code, and what was deployed."""


class ChangeSchedule(TenantCall[None], tag="schedule", kw_only=True):
    """Add a cron expression of a workflow, or remove it."""

    workflow: str
    cron: str
    remove: bool = False


InstanceCall: TypeAlias = (
    CreateBatch
    | GetInstance
    | GetStatus
    | AwaitResult
    | PauseInstance
    | ResumeInstance
    | TerminateInstance
    | RestartInstance
    | SendEvent
    | DeleteInstance
    | DeleteBatch
    | ListInstances
    | GetHistory
    | GetEvents
    | ExplainInstance
)
"""What tenant code may call on a binding of its `env`, too."""
CodeCall: TypeAlias = InvokeMethod | DeployCode | ReloadCode | ChangeSchedule
"""What the driver alone may call."""
AnyCall: TypeAlias = InstanceCall | CodeCall

WAITING_CALLS = (AwaitResult, GetEvents)
"""Calls that wait for something to happen to an instance."""
LONG_CALLS = (AwaitResult, GetEvents, InvokeMethod)
"""Calls that may take as long as they like."""


class Calls(Protocol):
    """What carries out a tenant's operations."""

    async def call(self, call: TenantCall[AnswerT]) -> AnswerT:
        """Carry out one operation; raises WorkflowsError."""
        ...


# --- as they cross processes, and the wall --------------------------------------------------------


def op_of(call: TenantCall[Any]) -> str:
    """The name of a call's operation."""
    return _OPS[type(call)]


def _tag(kind: type[TenantCall[object]]) -> str:
    return str(kind.__struct_config__.tag)


_OPS: dict[type[TenantCall[Any]], str] = {kind: _tag(kind) for kind in get_args(AnyCall)}
TENANT_CALLS: dict[str, type[TenantCall[Any]]] = {
    _tag(kind): kind for kind in get_args(InstanceCall)
}
"""The calls of tenant code, by operation."""
_ANSWERS: dict[type[TenantCall[Any]], Any] = {
    CreateBatch: list[str],
    GetStatus: StatusData,
    AwaitResult: StatusData,
    DeleteBatch: DeleteOutcome,
    ListInstances: InstancePage,
    GetHistory: list[Row],
    GetEvents: EventPage,
    ExplainInstance: WhyData,
}
_PACK = msgspec.msgpack.Encoder()
_UNPACK_CALL: msgspec.msgpack.Decoder[AnyCall] = msgspec.msgpack.Decoder(AnyCall)
_UNPACK_TENANT_CALL: dict[str, msgspec.msgpack.Decoder[InstanceCall]] = {
    op: msgspec.msgpack.Decoder(kind) for op, kind in TENANT_CALLS.items()
}
_UNPACK_ANSWER = {
    kind: msgspec.msgpack.Decoder(_ANSWERS.get(kind, None)) for kind in TENANT_CALLS.values()
}


def pack_call(call: TenantCall[Any]) -> bytes:
    """The call as bytes."""
    return _PACK.encode(call)


def unpack_call(data: bytes) -> TenantCall[Any]:
    """The call that a driver sent. Raises InvalidError if it is none."""
    return _decoded(_UNPACK_CALL, data)


def unpack_tenant_call(op: str, data: bytes) -> TenantCall[Any]:
    """The call that tenant code sent, without what is the platform's alone to say: tokens, and what
    a dispatcher adds. Raises InvalidError if it is none."""
    decoder = _UNPACK_TENANT_CALL.get(op)
    if decoder is None:
        raise InvalidError(f"a workflow binding has no operation {op!r}")
    call = _decoded(decoder, data)
    if isinstance(call, ChangeCall):
        call.token = None
    if isinstance(call, CreateBatch):
        call.binding = call.metadata = None
    return call


CallT = TypeVar("CallT")


def _decoded(decoder: msgspec.msgpack.Decoder[CallT], data: bytes) -> CallT:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidError(f"the arguments of the call do not decode: {error}") from None


def pack_answer(answer: object) -> bytes:
    """The answer to a call, for `Reply.value`."""
    return _PACK.encode(answer)


def unpack_answer(call: TenantCall[AnswerT], data: bytes) -> AnswerT:
    """The answer to this call, as the supervisor packed it."""
    answer: AnswerT = _UNPACK_ANSWER[type(call)].decode(data)
    return answer
