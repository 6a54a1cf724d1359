"""What a crash leaves is cut and reported; what a crash cannot leave is refused, and left alone."""

# ruff: noqa: ASYNC240

from __future__ import annotations

import contextlib
import hashlib
import random
import shutil
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamic_workflows.eventlog.clock import VirtualClock
from dynamic_workflows.eventlog.errors import Corrupt
from dynamic_workflows.eventlog.events import Row
from dynamic_workflows.eventlog.ids import SeededIds
from dynamic_workflows.eventlog.log.event_log import EventLog, LogConfig
from dynamic_workflows.eventlog.manifest import tenant_stream
from dynamic_workflows.eventlog.store.base import Store
from dynamic_workflows.eventlog.store.local import LocalStore
from dynamic_workflows.eventlog.store.memory import MemoryStore
from dynamic_workflows.eventlog.wal.format import FileParser
from dynamic_workflows.eventlog.wal.recovery import read_tail

STREAM = tenant_stream("t")
CONFIG = LogConfig(has_probe=False)


def row(number: int) -> Row:
    return Row(
        type="event_received",
        workflow="W",
        instance_id=f"i-{number}",
        payload=b'{"event_type":"t","payload":%d}' % number,
    )


async def opened(store: Store, seed: int = 1, config: LogConfig = CONFIG) -> EventLog:
    return await EventLog.open(
        store, STREAM, tenant_id="t", clock=VirtualClock(), ids=SeededIds(seed), config=config
    )


async def crashed_log(root: Path, *, blocks: int = 6) -> Path:
    """A log whose owner was killed after its last acknowledgement; the path of its WAL file."""
    store = LocalStore(root)
    log = await opened(store)
    for number in range(blocks):
        await log.append([row(number)])
    # A copy of the directory is what a kill leaves: nothing was closed.
    shutil.copytree(root, f"{root}-killed", copy_function=shutil.copyfile)
    await log.close()
    await store.close()
    return Path(f"{root}-killed") / STREAM / "wal" / f"{1:020d}"


def block_offsets(path: Path) -> list[int]:
    """Where each block begins, and at last where the content ends."""
    parser = FileParser("x")
    blocks = parser.feed(path.read_bytes())
    return [block.offset for block in blocks] + [blocks[-1].end]


def snapshot(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


async def refused(root: Path) -> Corrupt:
    """Opening is refused, so is reading, and neither changes a byte."""
    before = snapshot(root)
    store = LocalStore(root)
    with pytest.raises(Corrupt) as opening:
        await opened(store, 2)
    if "/events/" not in opening.value.path:
        with pytest.raises(Corrupt):
            read_tail(store, STREAM)
    await store.close()
    assert snapshot(root) == before
    assert opening.value.path
    assert isinstance(opening.value.offset, int)
    assert "restore" in opening.value.message
    return opening.value


@pytest.fixture
async def killed(tmp_path: Path) -> Path:
    return await crashed_log(tmp_path / "log")


async def test_a_log_goes_on_after_a_kill_with_every_row(killed: Path) -> None:
    store = LocalStore(killed.parents[3])
    log = await opened(store, 2)
    assert (log.last_seq, log.torn) == (6, None)
    await log.append([row(6)])
    seqs = [r.seq async for batch in log.rows() for r in batch]
    assert seqs == list(range(1, 8))
    await log.close()
    await store.close()


async def test_a_tail_cut_at_any_byte_of_its_last_blocks_is_cut_and_reported(
    killed: Path, tmp_path: Path
) -> None:
    content = killed.read_bytes()
    offsets = block_offsets(killed)
    for size in range(offsets[-3], offsets[-1]):
        root = tmp_path / f"cut-{size}"
        shutil.copytree(killed.parents[3], root)
        (root / STREAM / "wal" / killed.name).write_bytes(content[:size])
        store = LocalStore(root)
        before = read_tail(store, STREAM)
        log = await opened(store, 2)
        whole = max(offset for offset in offsets if offset <= size)
        assert log.last_seq == offsets.index(whole) - 2
        if size == whole:
            assert log.torn is None
        else:
            assert log.torn is not None
            assert (log.torn.offset, log.torn.bytes) == (whole, size - whole)
        assert before is not None
        assert (before.torn, before.last_seq) == (log.torn, log.last_seq)
        if size % 8:
            await log.close()
            await store.close()
            continue
        # The log goes on behind the cut, and opening it again says nothing of a tear.
        await log.append([row(99)])
        await log.close()
        again = await opened(store, 3)
        assert (again.last_seq, again.torn) == (log.last_seq, None)
        assert [r.seq async for b in again.rows() for r in b] == list(range(1, again.last_seq + 1))
        await again.close()
        await store.close()


async def test_any_flipped_bit_is_refused_with_its_place(killed: Path) -> None:
    content = killed.read_bytes()
    offsets = block_offsets(killed)
    rng = random.Random(1)
    places = set(rng.sample(range(offsets[-1]), 250)) | set(range(offsets[-2], offsets[-1]))
    for place in sorted(places):
        damaged = bytearray(content)
        damaged[place] ^= 1 << rng.randrange(8)
        killed.write_bytes(damaged)
        store = LocalStore(killed.parents[3])
        with pytest.raises(Corrupt) as error:
            await opened(store, 2)
        block = max(offset for offset in offsets[:-1] if offset <= place)
        assert error.value.offset == block
        assert killed.name in error.value.path
        await store.close()
    killed.write_bytes(damaged)
    await refused(killed.parents[3])


async def test_a_flipped_bit_behind_the_end_is_reported_and_costs_nothing(killed: Path) -> None:
    content = bytearray(killed.read_bytes())
    end = block_offsets(killed)[-1]
    assert len(content) > end + 100, "blocks are reserved ahead"
    content[end + 40] = 4
    killed.write_bytes(content)
    store = LocalStore(killed.parents[3])
    log = await opened(store, 2)
    # It looks like the tear of an unfinished write, and nothing acknowledged can lie there.
    assert log.torn is not None
    assert log.last_seq == 6
    await log.close()
    await store.close()


async def test_a_lost_sector_before_acknowledged_rows_is_refused(tmp_path: Path) -> None:
    killed = await crashed_log(tmp_path / "log", blocks=30)
    content = bytearray(killed.read_bytes())
    content[1024:1536] = bytes(512)
    killed.write_bytes(content)
    error = await refused(killed.parents[3])
    assert "synced" in error.message


async def test_lost_sectors_of_the_last_unfinished_block_are_a_torn_tail(tmp_path: Path) -> None:
    root = tmp_path / "log"
    store = LocalStore(root)
    log = await opened(store)
    await log.append([row(0)])
    await log.append([row(number) for number in range(1, 60)])
    path = root / STREAM / "wal" / f"{1:020d}"
    content = bytearray(path.read_bytes())
    start = block_offsets(path)[-2]
    border = (start // 512 + 2) * 512
    content[border : border + 512] = bytes(512)
    path.write_bytes(content)
    again = await opened(store, 2)
    assert again.last_seq == 1
    assert again.torn is not None
    assert again.torn.offset == start
    await again.close()
    await log.close()
    await store.close()


@pytest.mark.parametrize("place", ["end", "middle"])
async def test_a_block_that_is_there_twice_is_refused(killed: Path, place: str) -> None:
    content = killed.read_bytes()
    offsets = block_offsets(killed)
    block = content[offsets[3] : offsets[4]]
    at = offsets[-1] if place == "end" else offsets[4]
    killed.write_bytes(content[:at] + block + content[at:])
    error = await refused(killed.parents[3])
    assert (error.path, error.offset) == (f"{STREAM}/wal/{killed.name}", at)
    assert "repeated or missing" in error.message


async def test_a_block_that_is_missing_is_refused(killed: Path) -> None:
    content = killed.read_bytes()
    offsets = block_offsets(killed)
    killed.write_bytes(content[: offsets[3]] + content[offsets[4] :])
    assert (await refused(killed.parents[3])).offset == offsets[3]


async def several_files(root: Path) -> Path:
    """A log with segments, several owners, several manifests, and rows in two WAL files."""
    store = LocalStore(root)
    log = await opened(store, 1)
    await log.append([row(0), row(1)])
    await log.seal()
    await log.append([row(2)])
    newer = await opened(store, 2)
    await newer.append([row(3)])
    shutil.copytree(root, f"{root}-killed", copy_function=shutil.copyfile)
    await newer.close()
    await log.close()
    await store.close()
    return Path(f"{root}-killed")


async def test_any_file_of_a_log_that_is_removed_is_missed(tmp_path: Path) -> None:
    root = await several_files(tmp_path / "log")
    manifests = sorted((root / STREAM / "manifest").iterdir())
    wal = sorted((root / STREAM / "wal").iterdir())
    segments = list((root / STREAM / "events").rglob("*.parquet"))
    assert (len(wal), len(segments)) == (2, 1)
    for path in [manifests[-1], *wal, *segments]:
        copy = tmp_path / f"without-{path.parent.name}-{path.name}"
        shutil.copytree(root, copy)
        (copy / path.relative_to(root)).unlink()
        await refused(copy)
    content = segments[0].read_bytes()
    segments[0].write_bytes(content[:-1])
    await refused(root)


async def test_a_damaged_manifest_is_refused(tmp_path: Path) -> None:
    root = await several_files(tmp_path / "log")
    newest = sorted((root / STREAM / "manifest").iterdir())[-1]
    content = newest.read_bytes()
    for place in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[place] ^= 4
        newest.write_bytes(damaged)
        error = await refused(root)
        assert newest.name in error.path


async def test_damage_in_a_file_that_a_newer_one_goes_on_from_is_refused(tmp_path: Path) -> None:
    root = await several_files(tmp_path / "log")
    first = sorted((root / STREAM / "wal").iterdir())[0]
    content = bytearray(first.read_bytes())
    offsets = block_offsets(first)
    first.write_bytes(content[: offsets[-1] - 3])
    assert (await refused(root)).offset == offsets[-2]
    content[offsets[-2] + 50] ^= 1
    first.write_bytes(content)
    assert (await refused(root)).offset == offsets[-2]


async def test_the_wal_of_another_stream_is_refused(tmp_path: Path) -> None:
    root = await several_files(tmp_path / "log")
    stranger = LocalStore(tmp_path / "stranger")
    other = await EventLog.open(
        stranger, tenant_stream("u"), tenant_id="u", clock=VirtualClock(), ids=SeededIds(9)
    )
    await other.append([row(1)])
    theirs = tmp_path / "stranger" / tenant_stream("u") / "wal" / f"{1:020d}"
    ours = sorted((root / STREAM / "wal").iterdir())[0]
    shutil.copyfile(theirs, ours)
    await refused(root)
    await other.close()
    await stranger.close()


async def test_files_that_do_not_belong_there_are_passed_over(tmp_path: Path) -> None:
    root = await several_files(tmp_path / "log")
    for folder in ("wal", "manifest", "events"):
        (root / STREAM / folder / "notes.txt").write_text("mine")
        (root / STREAM / folder / ".tmp-1-2").write_bytes(b"\xd3WR1")
    (root / STREAM / "wal" / "99999999999999999999.bak").write_bytes(b"x")
    store = LocalStore(root)
    log = await opened(store, 3)
    assert log.last_seq == 4
    assert (root / STREAM / "wal" / "notes.txt").read_text() == "mine"
    await log.close()
    await store.close()


async def test_an_object_of_a_batch_that_is_missing_or_damaged_is_refused() -> None:
    store = MemoryStore()
    log = await opened(store)
    for number in range(5):
        await log.append([row(number)])
    keys = [key for key in store.objects if "/wal/" in key]
    whole = dict(store.objects)
    for key in sorted(keys)[1:-1]:
        del store.objects[key]
        with pytest.raises(Corrupt) as error:
            await opened(store, 2)
        assert error.value.path == key
        store.objects = dict(whole)
        store.objects[key] = whole[key][:-9]
        with pytest.raises(Corrupt):
            await opened(store, 2)
        store.objects = dict(whole)
    await log.close()


@settings(max_examples=60)
@given(st.binary(max_size=600), st.integers(0, 400), st.integers(1, 64))
def test_no_bytes_whatever_break_the_parser(noise: bytes, start: int, portion: int) -> None:
    parser = FileParser("k", start=start)
    for place in range(0, len(noise), portion):
        assert parser.feed(noise[place : place + portion]) == []
    found: list[object] = []
    with contextlib.suppress(Corrupt):
        found.append(parser.finish())
    for torn in found:
        assert torn is None or 0 < getattr(torn, "bytes", 0) <= len(noise)


async def test_a_million_rows_are_opened_in_seconds_and_bounded_memory(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    config = LogConfig(auto_seal=False, has_probe=False)
    log = await opened(store, 1, config)
    for start in range(0, 1_000_000, 4000):
        log.append([row(number) for number in range(start, start + 4000)], durable=False)
    await log.append([])
    tracemalloc.start()
    began = time.perf_counter()
    again = await opened(store, 2, config)
    seconds = time.perf_counter() - began
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert again.last_seq == 1_000_000
    assert seconds < 30, "generous: it takes less than one"
    assert peak < 64 * 1024 * 1024
    await again.close()
    await log.close()
    await store.close()
