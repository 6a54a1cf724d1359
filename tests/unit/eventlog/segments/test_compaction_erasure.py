"""Erasure: when a log sleeps after a delete, no file of it knows the instance any more."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from histories import Writer, opened

from dynamic_workflows.eventlog.clock import US, VirtualClock
from dynamic_workflows.eventlog.log.event_log import LogConfig
from dynamic_workflows.eventlog.store.open_store import open_store

SECRET = "jane.doe-1985"


def traces(root: Path) -> list[str]:
    """The files in which the secret stands, Parquet read row by row."""
    found = []
    for path in root.rglob("*"):
        if path.is_file():
            text = path.read_bytes()
            if path.suffix == ".parquet":
                text += str(pq.ParquetFile(path).read().to_pylist()).encode()
            if SECRET.encode() in text:
                found.append(str(path.relative_to(root)))
    return found


@pytest.mark.parametrize("is_sealed", [False, True])
async def test_log_that_sleeps_after_a_delete_holds_no_trace_of_the_instance(
    tmp_path: Path, is_sealed: bool
) -> None:
    clock = VirtualClock()
    async with opened(open_store(tmp_path), clock=clock) as log:
        one, two = Writer(clock, SECRET), Writer(clock, "two")
        rows = [*one.life(output=SECRET), *two.life()]
        rows[3].blob = await log.put_blob(SECRET.encode() * 10)
        await log.append(rows)
        if is_sealed:
            await log.seal()
            await log.append(two.begin())
        assert traces(tmp_path)
        await log.append(one.delete())
        await log.close(seal=True)
    assert traces(tmp_path) == []


async def test_log_that_stays_awake_erases_after_its_delay(tmp_path: Path) -> None:
    clock = VirtualClock()
    async with opened(open_store(tmp_path), clock=clock, config=LogConfig()) as log:
        one, two = Writer(clock, SECRET), Writer(clock, "two")
        rows = [*one.life(output=SECRET), *two.life()]
        rows[3].blob = await log.put_blob(SECRET.encode() * 10)
        await log.append(rows)
        await log.seal()
        await log.append([*one.delete(), *two.begin()])
        for _ in range(20):
            clock.move_to(clock.now_us() + 60 * US)
            await log.maintain()
        assert traces(tmp_path) == []
        assert [row.instance_id for row in await log.history("W", "two")] == ["two"] * 9
