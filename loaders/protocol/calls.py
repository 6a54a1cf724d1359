"""Calls: the operations of a tenant and the plain data they take and give.

`Calls.call(op, args)` is the one door. The driver's calls travel through Ray (or directly, in the
test platform), a tenant's through `wire.Call`; `binding.py` is the only user on either end.

op             args                                               answer
create_batch   workflow, items [{id?, params, retention?, pin?}], list of ids created, in order
               strict, token, metadata?
get            workflow, id                                       None, or instance.not_found
status         workflow, id                                       StatusData
result         workflow, id, timeout_s (None: for ever)           StatusData (terminal), or
                                                                  TimeoutError
pause, resume  workflow, id                                       None
terminate      workflow, id, rollback                             None
restart        workflow, id, from {name, count, type} or None     None
send_event     workflow, id, type, payload                        None
delete         workflow, id                                       None
delete_batch   workflow, ids                                      {"deleted", "errors"}
list           workflow, status (list or None), limit, cursor     {"items", "cursor"}
history        workflow, id, all_runs                             list of rows (unfolded)
events         workflow, id, cursor, wait_s                       EventPage
why            workflow, id                                       {"code", "text"}
invoke         entrypoint, method, args, kwargs, props, limits,   codec text
               code_hash?, worker?
deploy         bundle (its stored form, bytes)                    code hash
reload         -                                                  None
schedule       workflow, cron (None: remove), params?             None

What changes instances (create_batch, pause, resume, terminate, restart, send_event, delete,
delete_batch) may carry a token, as text: a call whose token is known was carried out before, is
answered as done, and changes nothing. Tenants' own calls, which nobody sends again, have none.

`workflow` may be None on a binding that a dispatcher wrapped: the shell asks the dispatcher
(create) or looks the id up (everything else).
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from dynamic_workflows.eventlog.errors import InvalidError
from dynamic_workflows.eventlog.events import Row

from .messages import Error


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


class Calls(Protocol):
    """Somebody who carries out a tenant's operations."""

    async def call(self, op: str, args: dict[str, Any]) -> Any:
        """Carry out one operation; raises WorkflowsError."""
        ...


class EventPage(msgspec.Struct, kw_only=True):
    """The answer to `events`: what came after the cursor, the next cursor, and whether it ends."""

    rows: list[Row]
    cursor: int
    ended: bool = False


# --- a tenant's own calls, as they cross the wall ---------------------------------------------
#
# `wire.Call.method` is the operation, `wire.Call.args` the msgpack of its args, `kwargs` is empty;
# `Reply.value` is the msgpack of the answer. What the guest packs here the shell does not believe:
# it checks every argument by the operation's own rules.

TENANT_OPS = frozenset(
    """
    create_batch get status result pause resume terminate restart send_event delete delete_batch
    list history events why
    """.split()
)
"""What tenant code may call on a binding of its `env`."""

_ANSWERS: dict[str, Any] = {
    "status": StatusData,
    "result": StatusData,
    "history": list[Row],
    "events": EventPage,
}
_PACK = msgspec.msgpack.Encoder()
_UNPACK: dict[str, msgspec.msgpack.Decoder[Any]] = {
    op: msgspec.msgpack.Decoder(kind) for op, kind in _ANSWERS.items()
}
_UNPACK_ANY = msgspec.msgpack.Decoder()
_UNPACK_ARGS = msgspec.msgpack.Decoder(dict[str, Any])


def pack_args(args: dict[str, Any]) -> bytes:
    """The args of a call, for `wire.Call.args`."""
    return _PACK.encode(args)


def unpack_args(data: bytes) -> dict[str, Any]:
    """The args that a guest sent, plain data of any shape; InvalidError when they do not decode."""
    try:
        return _UNPACK_ARGS.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidError(f"the arguments of the call do not decode: {error}") from None


def pack_answer(answer: Any) -> bytes:
    """The answer to a call, for `wire.Reply.value`."""
    return _PACK.encode(answer)


def unpack_answer(op: str, data: bytes) -> Any:
    """The answer that the supervisor packed."""
    return _UNPACK.get(op, _UNPACK_ANY).decode(data)
