"""`verify` finds whatever was changed, says where, and takes a healthy log for one."""

# ruff: noqa: ASYNC240

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from dynamic_workflows.eventlog.clock import VirtualClock
from dynamic_workflows.eventlog.errors import Corrupt
from dynamic_workflows.eventlog.events import Row
from dynamic_workflows.eventlog.ids import SeededIds
from dynamic_workflows.eventlog.log.event_log import EventLog
from dynamic_workflows.eventlog.log.verify import verify
from dynamic_workflows.eventlog.manifest import tenant_stream
from dynamic_workflows.eventlog.store.local import LocalStore
from dynamic_workflows.eventlog.store.memory import MemoryStore

TENANT = "acme/ü"
STREAM = tenant_stream(TENANT)


def row(number: int, blob: str | None = None) -> Row:
    return Row(
        type="step_completed",
        workflow="W",
        instance_id=f"i-{number % 5}",
        step="s",
        count=number,
        attempt=1,
        payload=b'{"output":%d}' % number,
        blob=blob,
        ts=1_767_225_600_000_000 + number,
    )


@pytest.fixture
async def root(tmp_path: Path) -> Path:
    """Two streams: one with segments, blobs, a tail and two owners; one just opened."""
    store = LocalStore(tmp_path / "log")
    for seed, tenant in enumerate(["other", TENANT]):
        log = await EventLog.open(
            store,
            tenant_stream(tenant),
            tenant_id=tenant,
            clock=VirtualClock(),
            ids=SeededIds(seed),
        )
        if tenant == TENANT:
            for start in (0, 20):
                await log.append([row(number) for number in range(start, start + 20)])
                await log.seal()
            ref = await log.put_blob(b"large" * 20_000)
            await log.append([row(40, blob=ref)])
            await log.close()
            log = await EventLog.open(
                store, STREAM, tenant_id=TENANT, clock=VirtualClock(), ids=SeededIds(7)
            )
            await log.append([row(41)])
        await log.close()
    await store.close()
    return tmp_path / "log"


async def test_a_healthy_log_is_proven_and_counted(root: Path) -> None:
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    report = verify(root)
    assert report.ok, str(report)
    assert (report.streams, report.rows, report.segments, report.blobs) == (2, 84, 2, 1)
    assert report.remarks == []
    assert "OK" in report.lines[-1]
    assert str(report).count("\n") == len(report.lines) - 1
    assert before == {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


async def test_any_byte_that_changes_is_found_and_its_file_named(root: Path) -> None:
    store = LocalStore(root)
    needed = [
        entry.key
        for entry in store.list_blocking("")
        if any(kind in entry.key for kind in ("/events/", "/blobs/", "/manifest/", "/wal/"))
    ]
    await store.close()
    for key in needed:
        path = root / key
        content = path.read_bytes()
        end = len(content.rstrip(b"\0"))
        for place in (0, end // 3, end // 2, end - 1):
            damaged = bytearray(content)
            damaged[place] ^= 16
            path.write_bytes(damaged)
            report = verify(root)
            assert not report.ok, f"{key} at {place}"
            assert any(path.name in problem.path for problem in report.problems), str(report)
            assert "PROBLEM" in str(report)
        path.write_bytes(content)
    assert verify(root).ok


async def test_any_file_that_is_missing_is_found(root: Path) -> None:
    for path in sorted(root.rglob("*")):
        kind = path.relative_to(root).parts[2] if len(path.relative_to(root).parts) > 2 else ""
        if not path.is_file() or kind not in ("events", "blobs", "wal"):
            continue
        content = path.read_bytes()
        path.unlink()
        report = verify(root)
        assert not report.ok, str(path)
        assert any(path.name in str(problem) for problem in report.problems)
        path.write_bytes(content)
    newest = sorted((root / STREAM / "manifest").iterdir())[-1]
    newest.unlink()
    assert not verify(root).ok


async def test_what_a_crash_leaves_is_a_remark(root: Path) -> None:
    shutil.copyfile(
        next((root / STREAM / "events").rglob("*.parquet")),
        root / STREAM / "events" / "orphan.parquet",
    )
    (root / STREAM / "blobs" / hashlib.sha256(b"x").hexdigest()).write_bytes(b"x")
    newest = sorted((root / STREAM / "wal").iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:-7])
    report = verify(root)
    assert report.ok, str(report)
    assert len(report.remarks) == 3
    assert "torn tail" in str(report)


async def test_code_is_checked_by_who_knows_it(root: Path) -> None:
    (root / "code").mkdir()
    (root / "code" / "abc").write_bytes(b"code")
    seen = []

    def check(data: bytes, content_hash: str) -> None:
        seen.append((data, content_hash))
        raise Corrupt("not that code")

    report = verify(root, check_bundle=check)
    assert seen == [(b"code", "abc")]
    assert [problem.path for problem in report.problems] == ["code/abc"]
    assert report.bundles == 1


async def test_a_log_that_is_being_written_is_whole(tmp_path: Path) -> None:
    import asyncio

    store = LocalStore(tmp_path)
    log = await EventLog.open(
        store, STREAM, tenant_id=TENANT, clock=VirtualClock(), ids=SeededIds(1)
    )
    is_done = False

    async def write() -> None:
        number = 0
        while not is_done:
            await log.append([row(number)])
            number += 1
            if number % 100 == 0:
                await log.seal()

    writing = asyncio.create_task(write())
    for _ in range(15):
        report = await asyncio.to_thread(verify, tmp_path)
        assert report.ok, str(report)
    is_done = True
    await writing
    await log.close()
    await store.close()


async def test_an_empty_root_is_no_log(tmp_path: Path) -> None:
    report = verify(tmp_path)
    assert report.ok
    assert "holds no log" in str(report)
    assert verify(MemoryStore()).streams == 0


async def test_code_that_rows_name_and_nobody_has_is_found(tmp_path: Path) -> None:
    log = await EventLog.open(
        store := LocalStore(tmp_path),
        STREAM,
        tenant_id=TENANT,
        clock=VirtualClock(),
        ids=SeededIds(1),
    )
    for code_hash in ("c01d", "407"):
        queued = row(1)
        queued.code_hash = code_hash
        await log.append([queued])
        await store.create(f"code/{code_hash}", b"code")
        if code_hash == "c01d":
            await log.seal()
    await log.close()
    await store.close()

    def check(data: bytes, content_hash: str) -> None:
        assert data == b"code"

    assert verify(tmp_path, check_bundle=check).ok
    for name in ("c01d", "407"):
        (tmp_path / "code" / name).unlink()
        report = verify(tmp_path, check_bundle=check)
        assert f"code/{name}" in [problem.path for problem in report.problems]


async def test_a_manifest_of_another_stream_is_damage(root: Path) -> None:
    other = root / tenant_stream("other") / "manifest" / f"{1:020d}"
    mine = root / STREAM / "manifest" / f"{1:020d}"
    other.write_bytes(mine.read_bytes())
    report = verify(root)
    assert [tenant_stream("other") in problem.path for problem in report.problems] == [True]
    store = LocalStore(root)
    with pytest.raises(Corrupt, match="written as version 1 of"):
        await EventLog.open(
            store,
            tenant_stream("other"),
            tenant_id="other",
            clock=VirtualClock(),
            ids=SeededIds(3),
        )
    await store.close()
