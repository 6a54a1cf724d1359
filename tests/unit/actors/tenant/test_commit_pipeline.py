"""The pump's promise to whoever awaits a decision, whatever else is on its way."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from dynamic_workflows.actors.instances.decisions import Decision
from dynamic_workflows.actors.tenant.commit_pipeline import CommitPipeline
from dynamic_workflows.eventlog.events import Row
from dynamic_workflows.eventlog.ids import SeededIds


class SlowDisk:
    """A log whose appends are durable when the test says so."""

    def __init__(self) -> None:
        self.pending: list[asyncio.Future[None]] = []

    def append(self, rows: Sequence[Row], *, durable: bool = True) -> asyncio.Future[None]:
        self.pending.append(asyncio.get_running_loop().create_future())
        return self.pending[-1]

    async def put_blob(self, data: bytes, *, name: str | None = None) -> str:
        raise AssertionError("no row here is large")

    async def get_blob(self, ref: str) -> bytes:
        raise AssertionError("nothing is read here")


async def test_a_decision_without_rows_is_done_when_those_before_it_are() -> None:
    disk = SlowDisk()
    pump = CommitPipeline(
        disk,
        SeededIds(1),
        before=lambda: None,
        committed=lambda batch: None,
        failed=lambda error: None,
    )
    row = Row(type="event_received", workflow="Job", instance_id="i", seq=1)
    first = pump.take(Decision(rows=[row], durable=True))
    await asyncio.sleep(0)
    nothing = asyncio.ensure_future(pump.take(Decision(durable=True)).done())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not nothing.done()
    disk.pending[0].set_result(None)
    await asyncio.wait_for(nothing, 5)
    assert first.is_done
    assert pump.is_idle
    await asyncio.wait_for(pump.take(Decision(durable=True)).done(), 5)
