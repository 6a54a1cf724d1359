"""Histories: rows as the core writes them, on a log of their own, for tests of segments and SQL."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from dynamic_workflows.eventlog.clock import US, VirtualClock
from dynamic_workflows.eventlog.codec.values import encode
from dynamic_workflows.eventlog.events import Row
from dynamic_workflows.eventlog.ids import SeededIds
from dynamic_workflows.eventlog.log.event_log import EventLog, LogConfig
from dynamic_workflows.eventlog.manifest import tenant_stream
from dynamic_workflows.eventlog.store.base import Store

# Each opening draws other names than the one before, as in life.
_seeds = itertools.count(1)


class Writer:
    """Makes rows of one instance at the clock's time; a second passes after each."""

    def __init__(self, clock: VirtualClock, instance_id: str = "one", workflow: str = "W") -> None:
        self.clock = clock
        self.instance_id = instance_id
        self.workflow = workflow
        self.run = 1

    def row(
        self, type: str, step: str | None = None, attempt: int = 0, count: int = 1, **payload: Any
    ) -> Row:
        row = Row(
            type=type,
            workflow=self.workflow,
            instance_id=self.instance_id,
            run=self.run,
            ts=self.clock.now_us(),
            step=step,
            count=count if step else 0,
            attempt=attempt,
            payload=encode(payload) if payload else None,
            code_hash="c0de" if type in ("workflow_queued", "workflow_started") else None,
        )
        self.clock.move_to(self.clock.now_us() + US)
        return row

    def begin(self) -> list[Row]:
        return [
            self.row("workflow_queued", params=None, trigger="create"),
            self.row("workflow_started"),
        ]

    def do(self, step: str, output: Any = None) -> list[Row]:
        """A trivial step, folded."""
        return [
            self.row("step_started", step, attempt=1, config={}),
            self.row("step_completed", step, attempt=1, output=output),
        ]

    def end(self, output: Any = None) -> list[Row]:
        return [self.row("workflow_completed", output=output)]

    def life(self, output: Any = None) -> list[Row]:
        return [*self.begin(), *self.do("a", 1), *self.end(output)]

    def delete(self) -> list[Row]:
        return [self.row("workflow_deleted")]


@asynccontextmanager
async def opened(
    store: Store,
    tenant: str = "acme",
    *,
    clock: VirtualClock | None = None,
    config: LogConfig | None = None,
) -> AsyncIterator[EventLog]:
    log = await EventLog.open(
        store,
        tenant_stream(tenant),
        tenant_id=tenant,
        clock=clock or VirtualClock(),
        ids=SeededIds(next(_seeds)),
        config=config or LogConfig(auto_seal=False),
    )
    try:
        yield log
    finally:
        await log.close()
