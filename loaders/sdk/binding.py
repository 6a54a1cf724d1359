"""Binding: the handles of workflows and instances, the same in the driver and in a tenant's `env`.

Nothing is decided here. Values become codec text, calls go through `Calls`, answers become values.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import msgspec

from dynamic_workflows.eventlog.clock import to_datetime
from dynamic_workflows.eventlog.codec import values
from dynamic_workflows.eventlog.errors import (
    InvalidError,
    UnserialisableValueError,
    WorkflowFailedError,
    WorkflowTerminatedError,
)
from dynamic_workflows.eventlog.events import INSTANCE_TYPES, TERMINAL_TYPES, Row
from dynamic_workflows.eventlog.ids import Ids

from ..protocol.calls import (
    AwaitResult,
    Calls,
    CreateBatch,
    DeleteBatch,
    DeleteInstance,
    ExplainInstance,
    GetEvents,
    GetHistory,
    GetInstance,
    GetStatus,
    InstanceItem,
    ListInstances,
    NewInstance,
    PauseInstance,
    RestartInstance,
    RestartTarget,
    ResumeInstance,
    Retention,
    SendEvent,
    StatusData,
    TerminateInstance,
)
from ..protocol.contract import BATCH_MAX, STATUSES, STEP_TYPES
from ..protocol.messages import Error
from . import durations
from .records import (
    DeleteError,
    DeleteResult,
    ErrorInfo,
    Event,
    Page,
    Reason,
    RollbackInfo,
    Status,
    Summary,
    Why,
)

_ITEM_KEYS = frozenset({"id", "params", "retention", "pin"})
# A long poll is renewed before proxies and retries would call it lost.
_POLL_S = 20.0


class WorkflowInstance:
    """One instance: a handle without state; each call asks the platform."""

    def __init__(self, calls: Calls, workflow: str | None, instance_id: str) -> None:
        self._calls = calls
        self._workflow = workflow
        self._id = instance_id

    @property
    def id(self) -> str:
        """The instance's id, unique per tenant and workflow class."""
        return self._id

    def __repr__(self) -> str:
        return f"WorkflowInstance({self._workflow!r}, {self._id!r})"

    async def status(self) -> Status:
        """The status now. Raises `instance.not_found`."""
        return _status(await self._calls.call(GetStatus(workflow=self._workflow, id=self._id)))

    async def result(self, timeout: float | timedelta | None = None) -> Any:  # noqa: ASYNC109
        """The output, once the run has ended.

        `timeout` is in seconds of the platform's clock, or a timedelta. Raises WorkflowFailedError,
        WorkflowTerminatedError, or TimeoutError when the time is up.
        """
        data = await self._calls.call(
            AwaitResult(workflow=self._workflow, id=self._id, timeout_s=seconds_of(timeout))
        )
        if data.status == "complete":
            return None if data.output is None else values.decode(data.output)
        if data.status == "terminated":
            raise WorkflowTerminatedError(f"instance {self._id!r} was terminated")
        error = data.error or Error("Error", "the run failed")
        raise WorkflowFailedError(error.message, name=error.name, instance_id=self._id)

    async def pause(self) -> None:
        """Let running callbacks finish, start nothing more; no effect on an ended instance."""
        await self._calls.call(PauseInstance(workflow=self._workflow, id=self._id))

    async def resume(self) -> None:
        """Go on where it was paused or parked; timers keep what was left of them."""
        await self._calls.call(ResumeInstance(workflow=self._workflow, id=self._id))

    async def terminate(self, rollback: bool = False) -> None:
        """End it for good; with `rollback`, undo finished steps first.

        It returns once the termination is durable: with `rollback` handlers may still be running,
        and `result()` waits for the end.
        """
        if not isinstance(rollback, bool):
            raise TypeError(f"rollback is True or False, not {rollback!r}")
        await self._calls.call(
            TerminateInstance(workflow=self._workflow, id=self._id, rollback=rollback)
        )

    async def restart(self, from_: Mapping[str, Any] | str | None = None) -> None:
        """Run again with the same id and params, from the top or from a step.

        `from_` is {"name", "count" (1), "type" ("do")}; steps that started before it are kept.
        """
        await self._calls.call(
            RestartInstance(workflow=self._workflow, id=self._id, from_=_restart_target(from_))
        )

    async def send_event(self, type: str, payload: Any = None) -> None:
        """Deliver an event; it is kept until a wait for its type takes it."""
        if not isinstance(type, str):
            raise TypeError(f"the type of an event is text, not {type!r}")
        await self._calls.call(
            SendEvent(
                workflow=self._workflow,
                id=self._id,
                type=type,
                payload=_encoded(payload, "the payload"),
            )
        )

    async def delete(self) -> None:
        """Remove the instance and everything of it; nothing is rolled back."""
        await self._calls.call(DeleteInstance(workflow=self._workflow, id=self._id))

    async def history(self, all_runs: bool = False) -> list[Event]:
        """The events of the present run, or of every run, in order."""
        rows = await self._calls.call(
            GetHistory(workflow=self._workflow, id=self._id, all_runs=bool(all_runs))
        )
        return [_event(row) for row in rows]

    async def subscribe(
        self, cursor: int = 0, filter: Collection[str] | None = None
    ) -> AsyncIterator[Event]:
        """Events after `cursor` (a `seq`), then live ones, to the run's end.

        0: from the start, which is that of `history()`: the steps that a restart has kept come
        first. Any other cursor: all that followed that event, in whichever run it was.
        `filter` is a collection of event types; the stream ends at the terminal event even if the
        filter leaves it out. Going on with the last `seq` loses and repeats nothing.
        """
        wanted = _wanted(filter)
        if isinstance(cursor, bool) or not isinstance(cursor, int):
            raise TypeError(f"the cursor is the seq of an event, a number, not {cursor!r}")
        while True:
            page = await self._calls.call(
                GetEvents(workflow=self._workflow, id=self._id, cursor=cursor, wait_s=_POLL_S)
            )
            cursor = page.cursor
            for row in page.rows:
                if wanted is None or row.type in wanted:
                    yield _event(row)
            if page.ended:
                return

    async def why(self) -> Why:
        """Why the instance is where it is, as a code and a sentence."""
        found = await self._calls.call(ExplainInstance(workflow=self._workflow, id=self._id))
        return Why(code=found.code, text=found.text)


class WorkflowBinding:
    """The instances of one workflow class of one tenant."""

    def __init__(
        self, calls: Calls, workflow: str | None = "TenantWorkflow", *, ids: Ids | None = None
    ) -> None:
        self._calls = calls
        self._workflow = workflow
        self._ids = ids

    def __repr__(self) -> str:
        return f"WorkflowBinding({self._workflow!r})"

    async def create(
        self,
        *,
        id: str | None = None,
        params: Any = None,
        retention: Mapping[str, Any] | None = None,
        pin: str | None = None,
    ) -> WorkflowInstance:
        """Register an instance; it starts by itself.

        `id` defaults to a random UUID, `params` to an empty dict. `retention` is {"success":
        duration, "error": duration}. `pin="latest"` follows the tenant's newest code; otherwise
        the instance keeps the code it was created with. Raises `instance.already_exists`,
        `instance.invalid_id`, `value.…`, `code.…`, `limit.exceeded`; then nothing is stored.
        """
        item = {"id": id, "params": params, "retention": retention, "pin": pin}
        return (await self._create([_item(item)], strict=True))[0]

    async def create_batch(self, items: Iterable[Mapping[str, Any]]) -> list[WorkflowInstance]:
        """Register up to 10,000 instances at once, all or none.

        Items are dicts with `id`, `params`, `retention`, `pin`, all optional. Ids that exist are
        left out of the answer. Raises `batch.invalid` for an empty batch, one that is too large, or
        an unknown key.
        """
        return await self._create(_items(items), strict=False)

    async def _create(self, items: list[NewInstance], *, strict: bool) -> list[WorkflowInstance]:
        token = None if self._ids is None else self._ids.token()
        created = await self._calls.call(
            CreateBatch(workflow=self._workflow, items=items, strict=strict, token=token)
        )
        return [WorkflowInstance(self._calls, self._workflow, name) for name in created]

    async def get(self, id: str) -> WorkflowInstance:
        """The handle of an existing instance; raises `instance.not_found`."""
        await self._calls.call(GetInstance(workflow=self._workflow, id=_text(id)))
        return WorkflowInstance(self._calls, self._workflow, id)

    async def delete(self, id: str) -> None:
        """Remove one instance and everything of it; raises `instance.not_found`."""
        await self._calls.call(DeleteInstance(workflow=self._workflow, id=_text(id)))

    async def delete_batch(self, ids: Sequence[str]) -> DeleteResult:
        """Remove up to 10,000 instances; the answer says what became of each position."""
        if isinstance(ids, str | bytes) or not isinstance(ids, Sequence):
            raise InvalidError("delete_batch takes a list of ids", code="batch.invalid")
        _check_size(len(ids))
        answer = await self._calls.call(
            DeleteBatch(workflow=self._workflow, ids=[_text(one) for one in ids])
        )
        errors = [DeleteError(**msgspec.structs.asdict(error)) for error in answer.errors]
        return DeleteResult(deleted=list(answer.deleted), errors=errors)

    async def list(
        self,
        status: str | Collection[str] | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page:
        """A page of instances, newest first, of one status, of several, or of all."""
        statuses = _statuses(status)
        if isinstance(limit, bool) or not isinstance(limit, int):
            raise TypeError(f"the limit of a page is a number, not {limit!r}")
        if not 1 <= limit <= BATCH_MAX:
            raise InvalidError(f"a page holds 1 to {BATCH_MAX:,} instances, not {limit}")
        answer = await self._calls.call(
            ListInstances(workflow=self._workflow, status=statuses, limit=limit, cursor=cursor)
        )
        return Page([_summary(item) for item in answer.items], answer.cursor)


def _item(item: Mapping[str, Any]) -> NewInstance:
    if not isinstance(item, Mapping):
        raise TypeError(f"an item of a batch is a dict, not {type(item).__name__}")
    unknown = item.keys() - _ITEM_KEYS
    if unknown:
        names = ", ".join(sorted(map(str, unknown)))
        raise InvalidError(
            f"unknown key {names} in an item: use id, params, retention, pin", code="batch.invalid"
        )
    name, params, pin = item.get("id"), item.get("params"), item.get("pin")
    new = NewInstance(params=_encoded({} if params is None else params, "the params"))
    if name is not None:
        new.id = _text(name)
    if pin is not None:
        if pin not in ("hash", "latest"):
            raise InvalidError(f'pin is "hash" or "latest", not {pin!r}')
        new.pin = pin
    if item.get("retention") is not None:
        new.retention = _retention(item["retention"])
    return new


def _encoded(value: Any, what: str) -> bytes:
    try:
        return values.encode(value)
    except UnserialisableValueError as error:
        # No annotation says anything here: who gets the value may not even have its classes.
        reason = _ADVICE.split(error.message)[0]
        raise UnserialisableValueError(
            f"{what}: {reason}; a dataclass or model travels as a dict of its fields, which have to"
            " be plain data",
            **error.details,
        ) from None


_ADVICE = re.compile(r", or annotate|; dataclasses, models")


def _items(items: Iterable[Mapping[str, Any]]) -> list[NewInstance]:
    if isinstance(items, str | bytes | Mapping) or not isinstance(items, Iterable):
        raise InvalidError("create_batch takes a list of dicts", code="batch.invalid")
    every = list(items)
    _check_size(len(every))
    return [_item(item) for item in every]


def _check_size(size: int) -> None:
    if not 1 <= size <= BATCH_MAX:
        raise InvalidError(
            f"a batch holds 1 to {BATCH_MAX:,} items, this one {size:,}: split it",
            code="batch.invalid",
        )


def _text(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"an instance id is text, not {name!r}")
    return name


def _retention(retention: Any) -> Retention:
    if not isinstance(retention, Mapping) or retention.keys() - {"success", "error"}:
        raise InvalidError('retention is {"success": duration, "error": duration}')
    found: Retention = {}
    if "success" in retention:
        found["success_us"] = durations.parse_ms(retention["success"]) * 1000
    if "error" in retention:
        found["error_us"] = durations.parse_ms(retention["error"]) * 1000
    return found


def _restart_target(target: Mapping[str, Any] | str | None) -> RestartTarget | None:
    if target is None:
        return None
    if isinstance(target, str):
        target = {"name": target}
    if not isinstance(target, Mapping) or target.keys() - {"name", "count", "type"}:
        raise TypeError('from_ is {"name": …, "count": 1, "type": "do"}')
    name, count, kind = target.get("name"), target.get("count", 1), target.get("type", "do")
    if not isinstance(name, str) or isinstance(count, bool) or not isinstance(count, int):
        raise TypeError("from_ needs the name of a step, as text, and its count, a number")
    if kind not in STEP_TYPES:
        raise InvalidError(
            f"a step is of type do, sleep or wait_for_event, not {kind!r}",
            code="instance.cannot_restart",
        )
    return RestartTarget(name=name, count=count, type=STEP_TYPES[kind])


def _statuses(status: Any) -> list[str] | None:
    if status is None:
        return None
    wanted = [status] if isinstance(status, str) else list(status)
    for one in wanted:
        if one not in STATUSES:
            raise InvalidError(
                f"{one!r} is no status: use one of {', '.join(sorted(STATUSES))}",
                code="status.invalid",
            )
    return wanted


def _wanted(filter: Collection[str] | None) -> frozenset[str] | None:
    if filter is None:
        return None
    if isinstance(filter, str):
        filter = (filter,)
    if isinstance(filter, bytes | bytearray) or not isinstance(filter, Collection):
        raise TypeError(f"filter is a collection of event types, not {type(filter).__name__}")
    wanted: set[str] = set()
    for one in filter:
        if not isinstance(one, str):
            raise TypeError(f"an event type is text, not {type(one).__name__}")
        if one not in INSTANCE_TYPES:
            raise InvalidError(f"no event has the type {one[:100]!r}: see docs/events.md")
        wanted.add(one)
    return frozenset(wanted)


def seconds_of(timeout: float | timedelta | None) -> float | None:
    """A length of time as its caller gave it, in seconds; None: for ever."""
    if timeout is None:
        return None
    if isinstance(timeout, timedelta):
        return timeout.total_seconds()
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise TypeError(f"a timeout is in seconds or a timedelta, not {timeout!r}")
    return float(timeout)


def _error(error: Error | None) -> ErrorInfo | None:
    return None if error is None else ErrorInfo(name=error.name, message=error.message)


def _status(data: StatusData) -> Status:
    rollback = reason = None
    if data.rollback_outcome is not None:
        rollback = RollbackInfo(outcome=data.rollback_outcome, error=_error(data.rollback_error))
    if data.reason_code is not None:
        reason = Reason(code=data.reason_code, message=data.reason_message or "")
    return Status(
        status=data.status,
        output=None if data.output is None else values.decode(data.output),
        error=_error(data.error),
        rollback=rollback,
        reason=reason,
        isolation=data.isolation,
    )


def _event(row: Row) -> Event:
    return Event(
        seq=row.seq,
        ts=to_datetime(row.ts),
        type=row.type,
        step=row.step,
        count=row.count,
        attempt=row.attempt,
        payload={} if row.payload is None else values.decode(row.payload),
        run=row.run,
        epoch=row.epoch,
    )


def _summary(item: InstanceItem) -> Summary:
    return Summary(
        id=item.id,
        workflow=item.workflow,
        status=item.status,
        created_at=to_datetime(item.created_us),
        ended_at=None if item.ended_us is None else to_datetime(item.ended_us),
    )


def is_terminal(row: Row) -> bool:
    """Whether nothing of this run can follow the row."""
    return row.type in TERMINAL_TYPES or row.type == "workflow_deleted"
