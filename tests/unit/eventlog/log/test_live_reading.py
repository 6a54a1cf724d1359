"""A reader beside an owner: no damage where none is, no gap; and real damage is told."""

from __future__ import annotations

import asyncio
import itertools
import random
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shifting_store import Change, Recording, ShiftingStore
from simdisk import Medium, SimStore

from dynamic_workflows.eventlog.clock import VirtualClock
from dynamic_workflows.eventlog.events import Row
from dynamic_workflows.eventlog.ids import SeededIds
from dynamic_workflows.eventlog.log.event_log import EventLog, LogConfig
from dynamic_workflows.eventlog.manifest import tenant_stream
from dynamic_workflows.eventlog.query.log_files import LogFiles
from dynamic_workflows.eventlog.query.reader import Reader
from dynamic_workflows.eventlog.store.base import Store
from dynamic_workflows.eventlog.store.open_store import open_store
from dynamic_workflows.eventlog.wal.recovery import read_tail

STREAM = tenant_stream("t")
CONFIG = LogConfig(has_probe=False, auto_seal=False)


def row(number: int, size: int = 0) -> Row:
    return Row(
        type="event_received",
        workflow="W",
        instance_id=f"i-{number}",
        payload=b'{"event_type":"t","payload":"%s"}' % (b"x" * size),
    )


async def opened(store: Store, seed: int) -> EventLog:
    return await EventLog.open(
        store, STREAM, tenant_id="t", clock=VirtualClock(), ids=SeededIds(seed), config=CONFIG
    )


async def a_life(rng: random.Random) -> list[Change]:
    """What two owners, one after the other, do to the disk: many blocks, seals, rolls."""
    medium = Medium()
    changes: list[Change] = []
    disks: list[Recording] = []
    number = 0
    for seed in (1, 2):
        store = SimStore(medium)
        store.disk = disk = Recording(medium, changes)
        disks.append(disk)
        log = await opened(store, seed)
        for _ in range(rng.randint(3, 12)):
            count = rng.choice([1, 1, 2, 30])
            await log.append([row(number + n, rng.choice([0, 10, 700])) for n in range(count)])
            number += count
            if rng.random() < 0.1:
                await log.seal()
        await log.close()
    return changes


LIVES = [asyncio.run(a_life(random.Random(seed))) for seed in range(12)]


def following(store: ShiftingStore) -> LogFiles:
    """A reader to which the files always look changed."""
    files = LogFiles(cast(Store, store), tenant="t")
    marks = itertools.count()
    files._fingerprints = lambda: {STREAM: (next(marks),)}  # type: ignore[method-assign]
    return files


def take(files: LogFiles, shown: dict[int, Row]) -> None:
    """Look, and do with what changed what the views do."""
    updates, gone = files.poll()
    if gone:
        shown.clear()
    for update in updates:
        sealed = update.state.manifest.sealed_seq
        if update.is_whole:
            shown.clear()
        for seq in [seq for seq in shown if seq <= sealed]:
            del shown[seq]
        assert not shown.keys() & {one.seq for one in update.rows}, "a row is shown twice"
        shown.update({one.seq: one for one in update.rows})
        assert sorted(shown) == list(range(sealed + 1, sealed + 1 + len(shown))), "a gap"


@settings(max_examples=150)
@given(
    st.sampled_from(LIVES),
    st.integers(0, 1 << 32).map(random.Random),
    st.sampled_from([0, 1, 1 << 30]),
)
def test_a_reader_of_a_growing_log_sees_no_damage_no_gap_and_at_last_all(
    changes: list[Change], rng: random.Random, cheap_bytes: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dynamic_workflows.eventlog.query.log_files.CHEAP_BYTES", cheap_bytes)
        store = ShiftingStore(changes, rng)
        files, shown = following(store), dict[int, Row]()
        while store.now < len(changes):
            store.go_on(rng.choice([0, 1, 3, 30]))
            take(files, shown)
            assert not files.damaged
        take(files, shown)
    at_rest = read_tail(cast(Store, store), STREAM)
    assert at_rest is not None
    assert [(s, r.payload) for s, r in sorted(shown.items())] == [
        (r.seq, r.payload) for r in at_rest.rows
    ]


@settings(max_examples=100)
@given(st.sampled_from(LIVES), st.integers(0, 1 << 32).map(random.Random), st.data())
def test_damage_below_a_synced_block_is_told_by_a_live_reader_too(
    changes: list[Change], rng: random.Random, data: st.DataObject
) -> None:
    at = data.draw(st.sampled_from(acknowledged(changes)))
    wrong = bytearray(changes[at].data)
    wrong[data.draw(st.integers(0, len(wrong) - 1))] ^= 0x10
    damaged = [*changes]
    damaged[at] = replace(changes[at], data=bytes(wrong))
    store = ShiftingStore(damaged, rng)
    files = following(store)
    while store.now < len(damaged):
        store.go_on(rng.choice([0, 1, 3, 30]))
        files.poll()
    files.poll(again=True)
    sealed = 0 if files.damaged else files.states[STREAM].manifest.sealed_seq
    # Sealing wrote what the owner remembered; a WAL that is needed no more is not looked at.
    assert STREAM in files.damaged or sealed


def acknowledged(changes: list[Change]) -> list[int]:
    """Writes of rows that were synced before others followed, and that stay as they were written.

    The second owner writes the last rows of the first again, which would mend them.
    """
    rows = [n for n, change in enumerate(changes) if b"event_received" in change.data]
    rewritten = {
        n
        for n in rows
        for later in changes[n + 1 :]
        if later.inode == changes[n].inode
        and later.offset < changes[n].offset + len(changes[n].data)
        and changes[n].offset < later.offset + len(later.data)
    }
    return [n for n in rows[: len(rows) // 2] if n not in rewritten]


WRITER = """
import asyncio, sys, time
from dynamic_workflows.eventlog.clock import SystemClock
from dynamic_workflows.eventlog.events import Row
from dynamic_workflows.eventlog.ids import SystemIds
from dynamic_workflows.eventlog.log.event_log import EventLog
from dynamic_workflows.eventlog.store.open_store import open_store

async def main(root, stream, seconds):
    log = await EventLog.open(
        open_store(root), stream, tenant_id="t", clock=SystemClock(), ids=SystemIds()
    )
    print("open", flush=True)
    end, number = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        for _ in range(20):
            rows = [Row(type="event_received", workflow="W", instance_id=f"i-{number + n}",
                        payload=b'{"event_type":"t","payload":"%s"}' % (b"x" * (number % 900)))
                    for n in range(25)]
            number += 25
            waited = log.append(rows, durable=False)
            await asyncio.sleep(0)
        await log.append([])
    await log.close()
    print(number, flush=True)

asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
"""


def test_readers_beside_a_writer_at_full_speed_never_cry_damage(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path), STREAM, "3"]
    failures: list[BaseException] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "open\n"

        def poll() -> None:
            reader, last = Reader(open_store(tmp_path)), 0
            try:
                while writer.poll() is None:
                    table = reader.query("select count(*) c, coalesce(max(seq), 0) m from events")
                    [answer] = table.to_pylist()
                    assert answer["c"] == answer["m"] >= last
                    last = answer["m"]
            except BaseException as error:
                failures.append(error)
            finally:
                reader.close()

        threads = [threading.Thread(target=poll) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        total = int(writer.stdout.readline())
    assert not failures
    reader = Reader(open_store(tmp_path))
    assert reader.query("select count(*) c from events").to_pylist() == [{"c": total}]
    reader.close()
