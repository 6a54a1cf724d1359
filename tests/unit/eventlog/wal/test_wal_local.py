"""One write a turn, one sync a batch, no acknowledgement before it, no trust after a failure."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import FaultDisk

from dynamic_workflows.eventlog.clock import VirtualClock
from dynamic_workflows.eventlog.errors import Fenced, Unavailable
from dynamic_workflows.eventlog.events import Row
from dynamic_workflows.eventlog.ids import SeededIds
from dynamic_workflows.eventlog.log.event_log import EventLog, LogConfig
from dynamic_workflows.eventlog.manifest import tenant_stream
from dynamic_workflows.eventlog.store.local import LocalStore
from dynamic_workflows.eventlog.wal import local
from dynamic_workflows.eventlog.wal.file import ALLOCATE_BYTES_MIN
from dynamic_workflows.eventlog.wal.recovery import read_tail

STREAM = tenant_stream("t")


def row(name: str = "i") -> Row:
    return Row(type="event_received", workflow="W", instance_id=name)


async def opened(root: Path, disk: FaultDisk, seed: int = 1) -> EventLog:
    return await EventLog.open(
        LocalStore(root, disk=disk),
        STREAM,
        tenant_id="t",
        clock=VirtualClock(),
        ids=SeededIds(seed),
        config=LogConfig(has_probe=False, auto_seal=False),
    )


async def closed(log: EventLog) -> None:
    await log.close()
    await log.store.close()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for it; the limit is there for a hang, not for a slow machine."""
    for _ in range(60_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never came")


async def test_what_is_appended_in_one_turn_is_one_write_and_one_sync(tmp_path: Path) -> None:
    disk = FaultDisk()
    log = await opened(tmp_path, disk)
    await log.append([row()])
    disk.calls.clear()
    await asyncio.gather(*(log.append([row(f"{n}")]) for n in range(500)))
    assert disk.calls == ["pwrite", "datasync"]
    await closed(log)


async def test_every_acknowledged_batch_was_synced_after_its_write(tmp_path: Path) -> None:
    disk = FaultDisk()
    log = await opened(tmp_path, disk)
    disk.calls.clear()
    for _ in range(20):
        await log.append([row()])
        assert disk.calls[-1] == "datasync"
    assert disk.count("datasync") == disk.count("pwrite") == 20
    await closed(log)


async def test_what_arrives_while_a_sync_runs_is_the_next_batch(tmp_path: Path) -> None:
    disk = FaultDisk()
    log = await opened(tmp_path, disk)

    async def append_some() -> None:
        for _ in range(20):
            await log.append([row()])

    disk.calls.clear()
    await asyncio.gather(*(append_some() for _ in range(50)))
    assert disk.count("datasync") < 200, "1,000 appends share their syncs"
    await closed(log)


async def test_rows_that_need_not_be_durable_wait_for_no_sync(tmp_path: Path) -> None:
    disk = FaultDisk()
    log = await opened(tmp_path, disk)
    disk.calls.clear()
    await log.append([row("a")], durable=False)
    assert disk.calls == ["pwrite"]
    # What another process would find after this one is killed:
    tail = read_tail(log.store, STREAM)
    assert tail is not None
    assert [r.instance_id for r in tail.rows] == ["a"]
    await log.append([row("b")])
    assert disk.calls == ["pwrite", "pwrite", "datasync"]
    await closed(log)


async def test_rows_that_need_not_be_durable_are_synced_soon_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "LAZY_SYNC_SECONDS", 0.001)
    disk = FaultDisk()
    log = await opened(tmp_path, disk)
    disk.calls.clear()
    await log.append([row()], durable=False)
    await until(lambda: disk.count("datasync") == 1)
    await closed(log)


async def test_a_new_file_is_synced_before_its_name_and_its_directory_after(
    tmp_path: Path,
) -> None:
    disk = FaultDisk()
    log = await opened(tmp_path, disk)
    links = [place for place, call in enumerate(disk.calls) if call == "link"]
    assert len(links) == 2, "one WAL file, one manifest"
    for place in links:
        assert disk.calls[place - 1] == "datasync"
        assert disk.calls[place + 1] == "sync_directory"
    await closed(log)


@pytest.mark.behaviour(116)
async def test_a_failed_sync_poisons_the_log_and_its_handle_is_never_synced_again(
    tmp_path: Path,
) -> None:
    disk = FaultDisk()
    log = await opened(tmp_path, disk)
    await log.append([row("a")])
    disk.fail("datasync", errno.EIO)
    pending = [log.append([row("b")]), log.append([row("c")], durable=False)]
    for future in pending:
        with pytest.raises(Unavailable, match="open the log again"):
            await future
    disk.mend()
    disk.calls.clear()
    with pytest.raises(Unavailable):
        await log.append([row("d")])
    assert isinstance(log.failed, Unavailable)
    with pytest.raises(Unavailable):
        await log.seal()
    with pytest.raises(Unavailable):
        await log.history("W", "a")
    await log.close()
    assert "datasync" not in disk.calls
    again = await opened(tmp_path, FaultDisk(), 2)
    assert again.last_seq >= 1
    await closed(again)
    await log.store.close()


@pytest.mark.parametrize("call", ["pwrite", "datasync"])
async def test_a_full_disk_says_so_and_costs_nothing_that_was_acknowledged(
    tmp_path: Path, call: str
) -> None:
    disk = FaultDisk()
    log = await opened(tmp_path, disk)
    await log.append([row("a")])
    disk.fail(call, errno.ENOSPC)
    with pytest.raises(Unavailable, match="free some space"):
        await log.append([row("b")])
    await log.close()
    with pytest.raises(Unavailable, match="free some space"):
        await opened(tmp_path, disk, 2)
    disk.mend()
    again = await opened(tmp_path, disk, 3)
    assert again.last_seq in (1, 2)
    await again.append([row("c")])
    names = [r.instance_id async for batch in again.rows() for r in batch]
    assert names in (["a", "c"], ["a", "b", "c"])
    await closed(again)
    await log.store.close()


async def test_without_reserved_blocks_the_log_goes_on(tmp_path: Path) -> None:
    disk = FaultDisk()
    disk.fail("allocate", errno.EOPNOTSUPP)
    disk.short_writes = True
    log = await opened(tmp_path, disk)
    await asyncio.gather(*(log.append([row(f"{n}")]) for n in range(100)))
    await closed(log)
    again = await opened(tmp_path, FaultDisk(), 2)
    assert again.last_seq == 100
    await closed(again)


async def test_file_systems_without_unnamed_files_will_do(tmp_path: Path) -> None:
    disk = FaultDisk()
    disk.fail("open_tmpfile", errno.EOPNOTSUPP)
    log = await opened(tmp_path, disk)
    await log.append([row("a")])
    await log.seal()
    await log.append([row("b")])
    again = await opened(tmp_path, disk, 2)
    with pytest.raises(Fenced):
        await log.append([row("c")])
    assert again.last_seq in (2, 3)
    await closed(again)
    await closed(log)
    assert not [name for _, _, names in os.walk(tmp_path) for name in names if "tmp" in name]


@pytest.mark.parametrize("call", ["link", "sync_directory", "datasync", "pwrite"])
@pytest.mark.parametrize("after", [False, True])
async def test_a_seal_that_fails_loses_nothing(tmp_path: Path, call: str, after: bool) -> None:
    disk = FaultDisk()
    log = await opened(tmp_path, disk)
    await log.append([row("a")])
    disk.fail(call, after=after)
    with pytest.raises(Unavailable):
        await log.seal()
    disk.mend()
    await log.close()
    again = await opened(tmp_path, FaultDisk(), 2)
    assert [r.instance_id async for batch in again.rows() for r in batch] == ["a"]
    await again.append([row("b")])
    await again.seal()
    await closed(again)
    await log.store.close()


async def test_appends_are_acknowledged_while_the_log_rolls(tmp_path: Path) -> None:
    disk = FaultDisk()
    log = await opened(tmp_path, disk)
    for turn in range(5):
        futures = [log.append([row(f"{turn}-{n}")], durable=n % 2 == 0) for n in range(20)]
        sealing = asyncio.create_task(log.seal())
        while not sealing.done():
            futures.append(log.append([row("during")], durable=False))
            futures.append(log.append([row("during")]))
            await asyncio.sleep(0)
        await sealing
        await asyncio.gather(*futures)
    seqs = [r.seq async for batch in log.rows() for r in batch]
    assert seqs == list(range(1, log.last_seq + 1))
    await closed(log)


async def test_a_closed_log_gives_reserved_blocks_back(tmp_path: Path) -> None:
    log = await opened(tmp_path, FaultDisk())
    await log.append([row()])
    [path] = (tmp_path / STREAM / "wal").iterdir()
    assert path.stat().st_size >= ALLOCATE_BYTES_MIN
    await closed(log)
    assert path.stat().st_size < 1000
