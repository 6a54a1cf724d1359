"""InstanceReads: calls that read instances of a tenant, or wait for something to happen to one.

An answer never shows what is not yet safe: reads wait for what was decided before them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from dynamic_workflows.eventlog.clock import US, Clock
from dynamic_workflows.eventlog.errors import InvalidError
from dynamic_workflows.eventlog.events import Row
from dynamic_workflows.loaders.protocol.calls import (
    AwaitResult,
    EventPage,
    ExplainInstance,
    GetEvents,
    GetHistory,
    GetInstance,
    GetStatus,
    InstancePage,
    ListInstances,
    StatusData,
    WhyData,
)
from dynamic_workflows.loaders.protocol.contract import BATCH_MAX, ENDED

from ..core.tenant_core import TenantCore
from ..instances import identifiers
from ..instances.decisions import Key
from . import call_arguments
from .commit_pipeline import CommitPipeline
from .history_paging import HistoryReader, page_bytes
from .instance_keys import InstanceKeys, not_found
from .instance_loader import InstanceLoader
from .public_payloads import public
from .subscriptions import Subscriptions, Waiters, page
from .supervisor_state import SupervisorState
from .waiting_calls import WaitingCalls


class InstanceReads:
    """Answers the reading calls of one tenant."""

    def __init__(
        self,
        state: SupervisorState,
        core: TenantCore,
        commits: CommitPipeline,
        keys: InstanceKeys,
        loader: InstanceLoader,
        histories: HistoryReader,
        subscriptions: Subscriptions,
        waiting: WaitingCalls,
        clock: Clock,
    ) -> None:
        self._state = state
        self._core = core
        self._commits = commits
        self._keys = keys
        self._loader = loader
        self._histories = histories
        self._subscriptions = subscriptions
        self._waiting = waiting
        self._clock = clock

    async def get(self, call: GetInstance) -> None:
        """Raise `instance.not_found` unless the instance exists."""
        key = self._keys.find(call.workflow, call.id)
        await self._commits.caught_up()
        self._keys.check_exists(key)

    async def status(self, call: GetStatus) -> StatusData:
        """Return the status of an instance now."""
        key = self._keys.find(call.workflow, call.id)
        status = await self._status_of(key)
        status.isolation = self._walls_of(key)
        return status

    def _walls_of(self, key: Key) -> str | None:
        """What stands around the isolate that an instance is in."""
        host = self._state.hosts_by_life.get(self._core.life_of(key) or 0)
        return None if host is None or host.isolate is None else host.isolate.level

    async def _status_of(self, key: Key) -> StatusData:
        await self._commits.caught_up()
        while (status := self._core.status(key)) is None:
            await self._loader.load(key)  # It may be forgotten again before we are back.
        return status

    async def result(self, call: AwaitResult) -> StatusData:
        """Return the status of an instance once its run has ended. Raises TimeoutError."""
        key = self._keys.find(call.workflow, call.id)
        timeout_s = call_arguments.seconds(call.timeout_s, "timeout_s")
        deadline_us = None if timeout_s is None else self._clock.now_us() + round(timeout_s * US)
        while True:
            self._state.check_open()
            status = await self._status_of(key)
            if status.status in ENDED:
                return status
            await self._wait(self._subscriptions.results, key, deadline_us)

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
        feed = self._subscriptions.feeds.open(
            key, last_seq=self._core.last_seq, now_us=self._clock.now_us()
        )
        future = self._subscriptions.changes.add(key)
        self._subscriptions.feeds.waiters.add(key, future)
        try:
            yield future
        finally:
            self._subscriptions.changes.remove(key, future)
            self._subscriptions.feeds.waiters.remove(key, future)
            self._subscriptions.feeds.release(feed)

    def instance_ids(self, workflow: str) -> list[str]:
        """Every instance of a workflow, oldest first; for the testing kit."""
        names_found: list[str] = []
        cursor = None
        while True:
            answer = self._core.list(workflow, None, BATCH_MAX, cursor)
            names_found += [item["id"] for item in answer["items"]]
            cursor = answer["cursor"]
            if cursor is None:
                return names_found[::-1]

    async def page(self, call: ListInstances) -> InstancePage:
        """Return a page of instances, newest first."""
        await self._commits.caught_up()
        workflow = call.workflow
        if workflow is not None:
            identifiers.check_workflow_name(workflow)
        if not 1 <= call.limit <= BATCH_MAX:
            raise InvalidError(f"a page holds 1 to {BATCH_MAX} instances")
        statuses = identifiers.check_statuses(call.status)
        found = self._core.list(workflow, statuses, limit=call.limit, cursor=call.cursor)
        return msgspec.convert(found, InstancePage)

    async def history(self, call: GetHistory) -> list[Row]:
        """Return the public rows of the present run, or of all runs."""
        key = self._keys.find(call.workflow, call.id)
        rows = await self._rows(key, all_runs=call.all_runs)
        return [public(row) for row in rows]

    async def _rows(self, key: Key, *, all_runs: bool) -> list[Row]:
        await self._commits.caught_up()
        self._keys.check_exists(key)
        return await self._histories.history(key, all_runs=all_runs)

    async def rows_of(self, key: Key) -> list[Row]:
        """The rows of the present run as they are stored, for the testing kit."""
        return await self._rows(key, all_runs=False)

    async def events(self, call: GetEvents) -> EventPage:
        """Return the rows after a cursor, once there are any, or after `wait_s` none."""
        key = self._keys.find(call.workflow, call.id)
        asked = cursor = call.cursor
        wait_s = call_arguments.seconds(call.wait_s, "wait_s")
        now_us = self._clock.now_us()
        deadline_us = None if wait_s is None else now_us + round(wait_s * US)
        if not self._core.exists(key):
            # Whoever followed it may still hear that it was deleted; nobody else.
            held = self._subscriptions.feeds.of(key)
            if held is None or not held.after(cursor):
                raise not_found(self._state.tenant_id, key[1])
        feed = self._subscriptions.feeds.open(key, last_seq=self._core.last_seq, now_us=now_us)
        try:
            while True:
                self._state.check_open()
                since_seq = feed.since_seq
                rows = feed.after(cursor)
                if rows is None:
                    rows = await self._rows_after(key, cursor)
                taken, after, ended = page(rows, cursor)
                if not taken and self._core.exists(key) and self._core.has_ended(key):
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
                    await self._wait(self._subscriptions.feeds.waiters, key, deadline_us)
                except TimeoutError:
                    return EventPage(rows=[], cursor=after)
        finally:
            self._subscriptions.feeds.release(feed)

    async def _rows_after(self, key: Key, cursor: int) -> list[Row]:
        await self._commits.caught_up()
        self._keys.check_exists(key)
        return await self._histories.after(
            key, cursor, upto=self._state.committed_seq, bytes_max=self._page_bytes
        )

    @property
    def _page_bytes(self) -> int:
        return page_bytes(self._waiting.number(GetEvents))

    async def why(self, call: ExplainInstance) -> WhyData:
        """Return why an instance is where it is, as a code and a sentence."""
        key = self._keys.find(call.workflow, call.id)
        await self._status_of(key)
        code, text = self._core.why(key, self._clock.now_us())
        walls = self._walls_of(key)
        if walls is not None:
            text = f"{text} (in an isolate, walls: {walls})"
        return WhyData(code, text)


def _expire(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_exception(TimeoutError("the time is up"))
