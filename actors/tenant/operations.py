"""TenantCalls: the operations of a tenant, as its driver and its own code call them.

An answer never shows what is not yet safe: reads wait for what was decided before them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from dynamic_workflows.eventlog.clock import US
from dynamic_workflows.eventlog.errors import InstanceError, InvalidError, WorkflowsError
from dynamic_workflows.eventlog.events import Row
from dynamic_workflows.eventlog.ids import Ids
from dynamic_workflows.eventlog.log.event_log import EventLog
from dynamic_workflows.eventlog.tracing import mark
from dynamic_workflows.loaders.protocol.calls import EventPage, StatusData

from ..code.code_resolver import Resolved
from ..code.dispatcher_runs import PendingDispatch
from ..config import PlatformConfig
from ..hosting.code_cache import envelope
from ..hosting.code_host import Host
from ..instances import identifiers
from ..instances.decisions import CreateItem, Decision, Key
from . import call_arguments
from .code_operations import TenantCode
from .history_paging import HistoryReader, page_bytes
from .public_payloads import public
from .subscriptions import Feeds, Waiters, page
from .waiting_calls import WaitingCalls

ENDED = frozenset({"complete", "errored", "terminated"})


class TenantCalls(TenantCode):
    """The calls half of `Tenant`."""

    config: PlatformConfig
    _log: EventLog
    _ids: Ids
    _lives: dict[int, Host]
    _results: Waiters
    _changes: Waiters
    _feeds: Feeds
    _histories: HistoryReader
    _waiting_calls: WaitingCalls
    _landed_seq: int
    _calls: int

    async def _load(self, key: Key) -> None:
        raise NotImplementedError

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        raise NotImplementedError

    async def call(self, op: str, args: dict[str, Any]) -> Any:
        """Carry out one operation of `loaders/protocol/calls.py`.

        Raises WorkflowsError and TimeoutError.
        """
        handler = _OPERATIONS.get(op)
        if handler is None:
            raise InvalidError(f"there is no operation {op!r}")
        self._check_open()
        is_short = op not in ("result", "events")
        self._calls += is_short
        try:
            with self._waiting_calls.one(op):
                return await handler(self, args)
        finally:
            self._calls -= is_short

    async def _create_batch(self, args: dict[str, Any]) -> list[str]:
        wanted = args.get("workflow")
        metadata = call_arguments.metadata(args)
        if wanted is not None:
            call_arguments.workflow(args)
        binding = call_arguments.optional_text(args, "binding")
        strict = call_arguments.flag(args, "strict")
        items = call_arguments.create_items(
            args,
            workflow=wanted or "TenantWorkflow",
            code_hash="",
            pin=self.config.pin,
            ids=self._ids,
            bytes_max=self.config.value_bytes_max,
            metadata=None if metadata is None else envelope(binding, metadata),
        )
        asked = [PendingDispatch(item.instance_id, item.params) for item in items]
        codes = await self._codes.dispatch(binding, metadata, asked)
        ticket = codes[0].ticket
        is_stored = False
        try:
            created = await self._create(await self._with_code(items, codes, wanted), strict=strict)
            is_stored = True
            return created
        finally:
            if ticket is not None:
                self._spawn(self._codes.dispatched(ticket, is_stored=is_stored))

    async def _with_code(
        self, items: list[CreateItem], codes: list[Resolved], wanted: str | None
    ) -> list[CreateItem]:
        """The items with the code that they get, which has their class; raises CodeError."""
        found = []
        for item, code in zip(items, codes, strict=True):
            name = code.workflow or wanted or "TenantWorkflow"
            if not self._codes.has_workflow(code.code_hash, name):
                await self._codes.check_workflow(code.code_hash, name)
            found.append(replace(item, workflow=name, code_hash=code.code_hash))
        return found

    async def _create(self, items: list[CreateItem], *, strict: bool) -> list[str]:
        mark("worker: can create")
        self._check_open()
        decision = self.core.create(items, strict=strict, now_us=self._clock.now_us())
        for item in items:
            self._workflows[item.workflow] = None
        created: list[str] = await self._commit(decision)
        return created

    async def _commit(self, decision: Decision) -> Any:
        await self._pump.take(decision).done()
        return decision.answer

    async def _key(self, args: dict[str, Any]) -> Key:
        """The instance that is meant; a wrapped binding knows its class only by the id."""
        if args.get("workflow") is not None:
            return call_arguments.key(args)
        instance_id = identifiers.check_id(args.get("id"))
        for name in self._workflows:
            if self.core.exists((name, instance_id)):
                return name, instance_id
        raise not_found(self.tenant_id, instance_id)

    async def _get(self, args: dict[str, Any]) -> None:
        key = await self._key(args)
        await self._pump.caught_up()
        if not self.core.exists(key):
            raise not_found(self.tenant_id, key[1])

    async def _status(self, args: dict[str, Any]) -> StatusData:
        key = await self._key(args)
        status = await self._status_of(key)
        status.isolation = self._walls_of(key)
        return status

    def _walls_of(self, key: Key) -> str | None:
        """What stands around the isolate that an instance is in."""
        host = self._lives.get(self.core.life_of(key) or 0)
        return None if host is None or host.isolate is None else host.isolate.level

    async def _status_of(self, key: Key) -> StatusData:
        await self._pump.caught_up()
        while (status := self.core.status(key)) is None:
            await self._load(key)  # It may be forgotten again before we are back.
        return status

    async def _result(self, args: dict[str, Any]) -> StatusData:
        key = await self._key(args)
        timeout_s = call_arguments.seconds(args, "timeout_s")
        deadline_us = None if timeout_s is None else self._clock.now_us() + round(timeout_s * US)
        while True:
            self._check_open()
            status = await self._status_of(key)
            if status.status in ENDED:
                return status
            await self._wait(self._results, key, deadline_us)

    async def _wait(self, waiters: Waiters, key: Key, deadline_us: int | None) -> None:
        """Until somebody wakes this instance's waiters; TimeoutError at the deadline."""
        if deadline_us is not None and deadline_us <= self._clock.now_us():
            raise TimeoutError("the time is up")
        future = waiters.add(key)
        timer = None
        if deadline_us is not None:
            timer = self._clock.call_at(deadline_us, lambda: _expire(future))
        try:
            await future
        finally:
            waiters.remove(key, future)
            if timer is not None:
                timer.cancel()

    @contextmanager
    def watch(self, key: Key) -> Iterator[asyncio.Future[None]]:
        """A future that is done when something happens to the instance from now on: its status
        changes, or something is recorded of it; for the testing kit. Look after it was made."""
        feed = self._feeds.open(key, last_seq=self.core.last_seq, now_us=self._clock.now_us())
        future = self._changes.add(key)
        self._feeds.waiters.add(key, future)
        try:
            yield future
        finally:
            self._changes.remove(key, future)
            self._feeds.waiters.remove(key, future)
            self._feeds.release(feed)

    async def mock_event(self, key: Key, event_type: str, payload: bytes) -> None:
        """Put an event in the place of a real one; for the testing kit."""
        now_us = self._clock.now_us()
        await self._commit(self.core.mock_event(key, event_type, payload, now_us=now_us))

    def instance_ids(self, workflow: str) -> list[str]:
        """Every instance of a workflow, oldest first; for the testing kit."""
        names_found: list[str] = []
        cursor = None
        while True:
            answer = self.core.list(workflow, None, identifiers.BATCH_MAX, cursor)
            names_found += [item["id"] for item in answer["items"]]
            cursor = answer["cursor"]
            if cursor is None:
                return names_found[::-1]

    async def _command(self, args: dict[str, Any], name: str, *extra: Any, **named: Any) -> None:
        """Decide a command on a loaded instance."""
        key = await self._key(args)
        while not self.core.is_loaded(key):
            await self._load(key)
        self._check_open()
        named |= {
            "token": call_arguments.optional_text(args, "token"),
            "now_us": self._clock.now_us(),
        }
        await self._commit(getattr(self.core, name)(key, *extra, **named))

    async def _pause(self, args: dict[str, Any]) -> None:
        await self._command(args, "pause")

    async def _resume(self, args: dict[str, Any]) -> None:
        await self._command(args, "resume")

    async def _terminate(self, args: dict[str, Any]) -> None:
        await self._command(args, "terminate", rollback=call_arguments.flag(args, "rollback"))

    async def _restart(self, args: dict[str, Any]) -> None:
        await self._command(args, "restart", from_=call_arguments.restart_target(args))

    async def _send_event(self, args: dict[str, Any]) -> None:
        event_type = identifiers.check_event_type(args.get("type"))
        payload = call_arguments.value(args, "payload", self.config.value_bytes_max)
        await self._command(args, "send_event", event_type, payload)

    async def _delete(self, args: dict[str, Any]) -> None:
        key = await self._key(args)
        self._check_open()
        token = call_arguments.optional_text(args, "token")
        await self._commit(self.core.delete(key, token=token, now_us=self._clock.now_us()))

    async def _delete_batch(self, args: dict[str, Any]) -> Any:
        ids = call_arguments.delete_ids(args)
        if args.get("workflow") is None:
            return await self._delete_scattered(args, ids)
        decision = self.core.delete_batch(
            call_arguments.workflow(args),
            ids,
            token=call_arguments.optional_text(args, "token"),
            now_us=self._clock.now_us(),
        )
        return await self._commit(decision)

    async def _delete_scattered(self, args: dict[str, Any], ids: list[str]) -> dict[str, Any]:
        deleted: list[str] = []
        errors: list[dict[str, str]] = []
        outcomes: dict[str, WorkflowsError | None] = {}
        for name in ids:
            if name not in outcomes:
                try:
                    await self._delete(args | {"id": name})
                    outcomes[name] = None
                except WorkflowsError as error:
                    outcomes[name] = error
            failure = outcomes[name]
            if failure is None:
                deleted.append(name)
            else:
                errors.append({"id": name, "code": failure.code, "message": failure.message})
        return {"deleted": deleted, "errors": errors}

    async def _list(self, args: dict[str, Any]) -> dict[str, Any]:
        await self._pump.caught_up()
        workflow = None if args.get("workflow") is None else call_arguments.workflow(args)
        limit = call_arguments.number(args, "limit", 100)
        cursor = call_arguments.optional_text(args, "cursor")
        if not 1 <= limit <= identifiers.BATCH_MAX:
            raise InvalidError(f"a page holds 1 to {identifiers.BATCH_MAX} instances")
        answer: dict[str, Any] = self.core.list(
            workflow, call_arguments.statuses(args), limit=limit, cursor=cursor
        )
        return answer

    async def _history(self, args: dict[str, Any]) -> list[Row]:
        key = await self._key(args)
        all_runs = call_arguments.flag(args, "all_runs")
        await self._get(args | {"workflow": key[0]})
        return [public(row) for row in await self._histories.history(key, all_runs=all_runs)]

    async def rows_of(self, key: Key) -> list[Row]:
        """The rows of the present run as they are stored, for the testing kit."""
        await self._get({"workflow": key[0], "id": key[1]})
        return await self._histories.history(key, all_runs=False)

    async def _events(self, args: dict[str, Any]) -> EventPage:
        key = await self._key(args)
        asked = cursor = call_arguments.number(args, "cursor", 0)
        wait_s = call_arguments.seconds(args, "wait_s")
        now_us = self._clock.now_us()
        deadline_us = None if wait_s is None else now_us + round(wait_s * US)
        if not self.core.exists(key):
            # Whoever followed it may still hear that it was deleted; nobody else.
            held = self._feeds.of(key)
            if held is None or not held.after(cursor):
                raise not_found(self.tenant_id, key[1])
        feed = self._feeds.open(key, last_seq=self.core.last_seq, now_us=now_us)
        try:
            while True:
                self._check_open()
                since_seq = feed.since_seq
                rows = feed.after(cursor)
                if rows is None:
                    rows = await self._rows_after(key, cursor)
                taken, after, ended = page(rows, cursor)
                if not taken and self.core.exists(key) and self.core.has_ended(key):
                    # Its last row may still be on its way; if not, nothing will follow.
                    taken, after, ended = page(await self._rows_after(key, cursor), cursor)
                    if not taken:
                        return EventPage(rows=[], cursor=after, ended=True)
                if taken:
                    taken, is_cut = await self._histories.whole_page(taken, asked, self._page_bytes)
                    after = taken[-1].seq
                    taken = [public(row) for row in taken]
                    return EventPage(rows=taken, cursor=after, ended=ended and not is_cut)
                # Everything up to here is known to hold nothing more for this cursor.
                cursor = max(cursor, since_seq)
                if feed.after(cursor) != []:
                    continue  # Something came while we read.
                try:
                    await self._wait(self._feeds.waiters, key, deadline_us)
                except TimeoutError:
                    return EventPage(rows=[], cursor=after)
        finally:
            self._feeds.release(feed)

    async def _rows_after(self, key: Key, cursor: int) -> list[Row]:
        await self._pump.caught_up()
        if not self.core.exists(key):
            raise not_found(self.tenant_id, key[1])
        return await self._histories.after(
            key, cursor, upto=self._landed_seq, bytes_max=self._page_bytes
        )

    @property
    def _page_bytes(self) -> int:
        return page_bytes(self._waiting_calls.number("events"))

    async def _why(self, args: dict[str, Any]) -> dict[str, str]:
        key = await self._key(args)
        await self._status_of(key)
        code, text = self.core.why(key, self._clock.now_us())
        walls = self._walls_of(key)
        if walls is not None:
            text = f"{text} (in an isolate, walls: {walls})"
        return {"code": code, "text": text}


def _expire(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_exception(TimeoutError("the time is up"))


def not_found(tenant_id: str, instance_id: str) -> InstanceError:
    """The error for an instance that is not there."""
    return InstanceError(
        f"tenant {tenant_id!r} has no instance {instance_id!r}: it was never created, or it was "
        "deleted",
        code="instance.not_found",
    )


_OPERATIONS: dict[str, Callable[[TenantCalls, dict[str, Any]], Any]] = {
    "create_batch": TenantCalls._create_batch,
    "get": TenantCalls._get,
    "status": TenantCalls._status,
    "result": TenantCalls._result,
    "pause": TenantCalls._pause,
    "resume": TenantCalls._resume,
    "terminate": TenantCalls._terminate,
    "restart": TenantCalls._restart,
    "send_event": TenantCalls._send_event,
    "delete": TenantCalls._delete,
    "delete_batch": TenantCalls._delete_batch,
    "list": TenantCalls._list,
    "history": TenantCalls._history,
    "events": TenantCalls._events,
    "why": TenantCalls._why,
    "invoke": TenantCalls._invoke,
    "deploy": TenantCalls._deploy,
    "reload": TenantCalls._reload,
    "schedule": TenantCalls._schedule,
}
