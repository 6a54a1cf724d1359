"""Appending to a log: rows a second with 1, 10, 100 and 1,000 appenders, and how long one waits.

An append is one row with a payload of 40 bytes, durable: written and synced before the appender
goes on. The disk's own speed is measured beside it, in the same minutes: fdatasync of 4 KiB
appended to a file (what a program without a log would do), and of one block's bytes into reserved
space (what the log itself does). Also: opening a log with a million rows in its tail, and appends
while it seals.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import measure

from dynamic_workflows.eventlog.clock import SystemClock
from dynamic_workflows.eventlog.events import Row
from dynamic_workflows.eventlog.ids import SystemIds
from dynamic_workflows.eventlog.log.event_log import EventLog, LogConfig
from dynamic_workflows.eventlog.store.local import LocalStore
from dynamic_workflows.eventlog.wal.recovery import read_tail

APPENDERS = (1, 10, 100, 1000)
SECONDS = 2.0
BLOCK_BYTES = 200
OPEN_ROWS = 1_000_000
STREAM = "tenants/tenant=bench"
PAYLOAD = b'{"output":{"ok":true,"n":1234567},"x":0}'

Figures = dict[tuple[str, str], float]


def row(number: int) -> Row:
    return Row(
        type="step_completed",
        workflow="TenantWorkflow",
        instance_id=f"instance-{number % 1000}",
        step="step",
        count=number,
        attempt=1,
        payload=PAYLOAD,
        ts=1_767_225_600_000_000 + number,
    )


@contextlib.asynccontextmanager
async def opened(folder: Path, config: LogConfig) -> AsyncIterator[EventLog]:
    store = LocalStore(folder)
    log = await EventLog.open(
        store, STREAM, tenant_id="bench", clock=SystemClock(), ids=SystemIds(), config=config
    )
    try:
        yield log
    finally:
        await log.close()
        await store.close()


def reserved_fdatasync_ms(folder: Path, *, times: int = 1000) -> float:
    """p50 of writing one block's bytes into reserved space and syncing them, in milliseconds."""
    spent = []
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        handle, block = file.fileno(), os.urandom(BLOCK_BYTES)
        os.posix_fallocate(handle, 0, 1024 * 1024)
        os.fsync(handle)
        for number in range(times):
            start = time.perf_counter()
            os.pwrite(handle, block, number * BLOCK_BYTES)
            os.fdatasync(handle)
            spent.append((time.perf_counter() - start) * 1e3)
    return measure.percentile(spent, 50)


async def appending(log: EventLog, appenders: int, seconds: float) -> tuple[float, list[float]]:
    """Rows a second, and the milliseconds that each append took."""
    spent: list[float] = []
    end = time.perf_counter() + seconds

    async def append() -> None:
        number = 0
        while (start := time.perf_counter()) < end:
            await log.append([row(number)])
            spent.append((time.perf_counter() - start) * 1e3)
            number += 1

    began = time.perf_counter()
    await asyncio.gather(*(append() for _ in range(appenders)))
    return len(spent) / (time.perf_counter() - began), spent


async def opening(folder: Path) -> Figures:
    """Seconds to open a log with a million unsealed rows, and to read them without owning it."""
    config = LogConfig(auto_seal=False)
    async with opened(folder, config) as log:
        for start in range(0, OPEN_ROWS, 4000):
            log.append([row(start + n) for n in range(4000)], durable=False)
            await asyncio.sleep(0)
        await log.append([])
        size = sum(path.stat().st_size for path in (folder / STREAM / "wal").iterdir())
        began = time.perf_counter()
        async with opened(folder, config) as again:
            open_seconds = time.perf_counter() - began
            assert again.last_seq == 2 * OPEN_ROWS
        began = time.perf_counter()
        tail = await asyncio.to_thread(read_tail, log.store, STREAM)
        assert tail is not None
        assert len(tail.rows) == OPEN_ROWS
        read_seconds = time.perf_counter() - began
    return {
        ("open, per million rows in the tail", "s"): open_seconds,
        ("read without owning, per million rows", "s"): read_seconds,
        ("WAL bytes per row (a row is two events)", "bytes"): size / OPEN_ROWS,
    }


async def sealing(folder: Path) -> Figures:
    """Appends of one appender alone while the log seals and merges, over and over."""
    async with opened(folder, LogConfig(auto_seal=False)) as log:
        await asyncio.gather(*(log.append([row(n)]) for n in range(100_000)))
        is_done = False

        async def upkeep() -> int:
            count = 0
            while not is_done:
                await log.seal()
                await log.maintain()
                count += 1
                await asyncio.gather(*(log.append([row(n)]) for n in range(20_000)))
            return count

        task = asyncio.create_task(upkeep())
        _, spent = await appending(log, 1, 3 * SECONDS)
        is_done = True
        await task
    return {
        ("append while sealing and merging, p50", "ms"): measure.percentile(spent, 50),
        ("append while sealing and merging, p99", "ms"): measure.percentile(spent, 99),
    }


async def once(folder: Path) -> Figures:
    figures: Figures = {}
    with tempfile.TemporaryDirectory(dir=folder) as name:
        root = Path(name)
        disk_ms, _ = measure.fdatasync_ms(root)
        reserved_ms = reserved_fdatasync_ms(root)
        figures["fdatasync of 4 KiB appended, p50", "ms"] = disk_ms
        figures[f"fdatasync of {BLOCK_BYTES} bytes reserved, p50", "ms"] = reserved_ms
        async with opened(root / "log", LogConfig()) as log:
            for appenders in APPENDERS:
                rate, spent = await appending(log, appenders, SECONDS)
                label = f"{appenders:,} appenders" if appenders > 1 else "1 appender"
                figures[label, "rows/s"] = rate
                figures[f"{label}, p50", "ms"] = measure.percentile(spent, 50)
                figures[f"{label}, p99", "ms"] = measure.percentile(spent, 99)
                if appenders == 1:
                    alone_ms = measure.percentile(spent, 50)
                    figures["alone / fdatasync of 4 KiB", "times"] = alone_ms / disk_ms
        figures |= await opening(root / "open")
        figures |= await sealing(root / "seal")
    return figures


@contextlib.asynccontextmanager
async def measured(folder: Path) -> AsyncIterator[measure.Run]:
    async def run() -> Figures:
        return await once(folder)

    yield run


if __name__ == "__main__":
    question = "Append: group commit on a local disk"
    measure.main(question, measure.arguments(question).parse_args(), measured)
