"""Calls: the operations of a tenant and the plain data they take and give.

`Calls.call(op, args)` is the one door. The driver's calls travel through Ray (or directly, in the
test platform), a tenant's through `wire.Call`; `binding.py` is the only user on either end.

op             args                                                          answer
create_batch   workflow, items [{id?, params, retention?, pin?}], strict,     list of ids created, in order
               token, metadata?
get            workflow, id                                                  None, or instance.not_found
status         workflow, id                                                  StatusData
result         workflow, id, timeout_s (None: for ever)                      StatusData (terminal), or
                                                                             TimeoutError
pause, resume  workflow, id                                                  None
terminate      workflow, id, rollback                                        None
restart        workflow, id, from {name, count, type} or None                None
send_event     workflow, id, type, payload                                   None
delete         workflow, id                                                  None
delete_batch   workflow, ids                                                 {"deleted": [...], "errors": [...]}
list           workflow, status (list or None), limit, cursor                {"items": [...], "cursor"}
history        workflow, id, all_runs                                        list of rows (unfolded)
events         workflow, id, cursor, wait_s                                  {"rows": [...], "cursor", "ended"}
why            workflow, id                                                  {"code", "text"}
invoke         entrypoint, method, args, kwargs, props, limits               codec text
deploy         code (WorkerCode)                                             code hash
reload         -                                                             None
schedule       ...                                                           ...
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from .wire import Error


class StatusData(msgspec.Struct, kw_only=True):
    """`status()` as data; output is codec text."""

    status: str
    output: bytes | None = None
    error: Error | None = None
    rollback_outcome: str | None = None
    rollback_error: Error | None = None
    reason_code: str | None = None
    reason_message: str | None = None


class Calls(Protocol):
    """Somebody who carries out a tenant's operations."""

    async def call(self, op: str, args: dict[str, Any]) -> Any:
        """Carry out one operation; raises WorkflowsError."""
        ...
