"""A log numbers rows, keeps them in order, and gives them back: live, sealed, after reopening."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from faults import DELAY, FaultStore
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamic_workflows.eventlog.clock import US, VirtualClock
from dynamic_workflows.eventlog.errors import Corrupt, InvalidError, PlatformClosed
from dynamic_workflows.eventlog.events import Row, span, unfold
from dynamic_workflows.eventlog.ids import SeededIds
from dynamic_workflows.eventlog.log.event_log import EventLog, LogConfig
from dynamic_workflows.eventlog.manifest import decode_name, encode_name, tenant_stream
from dynamic_workflows.eventlog.segments.policy import CompactionConfig
from dynamic_workflows.eventlog.store.base import Store, check_key
from dynamic_workflows.eventlog.store.local import LocalStore
from dynamic_workflows.eventlog.store.memory import MemoryStore
from dynamic_workflows.eventlog.wal.recovery import read_tail

STREAM = tenant_stream("t")


def row(name: str = "i", *, kind: str = "event_received", attempt: int = 0, n: int = 0) -> Row:
    return Row(
        type=kind,
        workflow="W",
        instance_id=name,
        step="s" if attempt else None,
        attempt=attempt,
        payload=b'{"n":%d}' % n,
    )


async def opened(
    store: Store,
    seed: int = 1,
    *,
    clock: VirtualClock | None = None,
    config: LogConfig | None = None,
) -> EventLog:
    return await EventLog.open(
        store,
        STREAM,
        tenant_id="t",
        clock=clock or VirtualClock(),
        ids=SeededIds(seed),
        config=config or LogConfig(has_probe=False),
    )


@pytest.fixture(params=["local", "memory", "late memory"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    kind = request.param
    store: Store = LocalStore(tmp_path) if kind == "local" else MemoryStore()
    yield FaultStore(store, lambda _op, _key: DELAY) if kind.startswith("late") else store
    await store.close()


async def all_rows(log: EventLog, after: int = 0) -> list[Row]:
    return [r for batch in [b async for b in log.rows(after=after)] for r in batch]


async def test_rows_are_numbered_when_they_are_appended_folded_ones_twice(store: Store) -> None:
    log = await opened(store)
    rows = [
        row(),
        row(kind="step_started", attempt=1),
        row(kind="step_completed", attempt=3),
        row(kind="attempt_errored", attempt=1),
        row(),
    ]
    future = log.append(rows)
    assert [r.seq for r in rows] == [1, 2, 4, 6, 7]
    assert {r.epoch for r in rows} == {log.epoch}
    assert log.last_seq == 7
    await future
    assert [r.type for r in await log.history("W", "i")] == [
        "event_received",
        "step_started",
        "attempt_started",
        "attempt_completed",
        "step_completed",
        "attempt_errored",
        "event_received",
    ]
    assert [r.seq for r in await log.history("W", "i")] == list(range(1, 8))
    await log.close()


async def test_futures_resolve_in_the_order_of_the_calls(store: Store) -> None:
    log = await opened(store)
    rng = random.Random(4)
    order: list[int] = []
    futures = []
    for number in range(300):
        rows = [row(n=number)] * 0 if rng.random() < 0.1 else [row(n=number)]
        future = log.append(rows, durable=rng.random() < 0.5)
        future.add_done_callback(lambda _, number=number: order.append(number))  # type: ignore[misc]
        futures.append(future)
        if rng.random() < 0.2:
            await asyncio.sleep(0)
    await asyncio.gather(*futures)
    assert order == list(range(300))
    await log.close()


async def test_history_has_what_was_appended_and_not_yet_acknowledged(store: Store) -> None:
    log = await opened(store)
    first = log.append([row("a"), row("b")])
    assert [r.seq for r in await log.history("W", "a")] == [1]
    second = log.append([row("a", n=1)], durable=False)
    assert [r.seq for r in await log.history("W", "a")] == [1, 3]
    assert await log.history("W", "none") == []
    assert await log.history("V", "a") == []
    await asyncio.gather(first, second)
    await log.seal()
    log.append([row("a", n=2)])
    assert [r.seq for r in await log.history("W", "a")] == [1, 3, 4]
    await log.close()


async def test_many_histories_at_once_are_one_reading_and_all_right(store: Store) -> None:
    log = await opened(store)
    for turn in range(4):
        await log.append([row(f"i-{number}", n=turn) for number in range(200)])
        if turn == 1:
            await log.seal()
    found = await asyncio.gather(*(log.history("W", f"i-{number}") for number in range(200)))
    for number, rows in enumerate(found):
        assert [r.seq for r in rows] == [number + 1 + 200 * turn for turn in range(4)]
    await log.close()


async def test_history_begins_after_the_last_deletion(store: Store) -> None:
    log = await opened(store)
    await log.append([row("a"), row("b"), row("a", kind="workflow_deleted")])
    assert await log.history("W", "a") == []
    await log.append([row("a", n=9)])
    assert [r.seq for r in await log.history("W", "a")] == [4]
    await log.seal()
    assert [r.seq for r in await log.history("W", "a")] == [4]
    assert [r.seq for r in await log.history("W", "b")] == [2]
    await log.close()


async def test_rows_come_in_order_from_segments_and_tail_and_from_any_place(store: Store) -> None:
    log = await opened(store)
    for part in range(3):
        await log.append([row(f"i-{n % 7}", kind="step_completed", attempt=1) for n in range(30)])
        if part < 2:
            await log.seal()
    rows = await all_rows(log)
    assert [r.seq for one in rows for r in unfold(one)] == list(range(1, 181))
    for after in (0, 1, 59, 60, 61, 119, 120, 121, 122, 179, 180):
        found = [r.seq for one in await all_rows(log, after) for r in unfold(one)]
        assert [seq for seq in found if seq > after] == list(range(after + 1, 181))
        assert len(found) <= 181 - after
    await log.close()


async def test_reading_goes_on_while_rows_are_sealed_and_merged(store: Store) -> None:
    config = LogConfig(
        has_probe=False, compaction=CompactionConfig(fan_in=2, grace_s=0), wal_bytes_max=1
    )
    log = await opened(store, config=config)
    await log.append([row(f"i-{n}") for n in range(50)])
    is_done = False

    async def write() -> None:
        while not is_done:
            await log.append([row("more")])
            await log.maintain()

    writing = asyncio.create_task(write())
    for _ in range(10):
        upto = log.last_seq
        seqs = [r.seq for r in await all_rows(log)]
        assert seqs[:upto] == list(range(1, upto + 1))
        assert seqs == list(range(1, len(seqs) + 1))
    is_done = True
    await writing
    assert log.manifest.segments
    await log.close()


async def test_a_reader_without_a_lock_sees_whole_appends_in_order(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    log = await opened(store)
    is_done = False

    async def write() -> None:
        while not is_done:
            await log.append([row("a"), row("b"), row("c")], durable=False)
            if random.random() < 0.02:
                await log.seal()

    writing = asyncio.create_task(write())
    seen = 0
    reader = LocalStore(tmp_path)
    for _ in range(60):
        tail = await asyncio.to_thread(read_tail, reader, STREAM)
        assert tail is not None
        assert tail.last_seq >= seen
        assert tail.last_seq % 3 == 0, "an append is there whole or not at all"
        seen = tail.last_seq
        first = tail.manifest.sealed_seq + 1
        assert [r.seq for r in tail.rows] == list(range(first, tail.last_seq + 1))
        cut = await asyncio.to_thread(read_tail, reader, STREAM, after=tail.last_seq - 1)
        assert cut is not None
        assert cut.rows == [] or cut.rows[0].seq >= tail.last_seq
    is_done = True
    await writing
    await log.close()
    await store.close()
    await reader.close()


async def test_a_tail_that_grows_large_is_sealed_in_the_background(store: Store) -> None:
    log = await opened(store, config=LogConfig(has_probe=False, wal_bytes_max=20_000))
    for _ in range(30):
        await log.append([row(f"i-{n}") for n in range(50)])
    while not log.manifest.sealed_seq:
        await log.append([row()])
        await asyncio.sleep(0)
    assert log.failed is None
    assert [r.seq for r in await all_rows(log)] == list(range(1, log.last_seq + 1))
    await log.close()


async def test_an_old_tail_is_sealed_by_maintenance(store: Store) -> None:
    clock = VirtualClock()
    log = await opened(store, clock=clock, config=LogConfig(has_probe=False, seal_age_s=60))
    await log.append([row()])
    await log.maintain()
    assert log.manifest.sealed_seq == 0
    clock.move_to(clock.now_us() + 61 * US)
    await log.maintain()
    assert log.manifest.sealed_seq == 1
    await log.close()


async def test_a_log_that_sleeps_leaves_no_tail_no_deleted_row_and_no_garbage(
    store: Store,
) -> None:
    log = await opened(store)
    kept = await log.put_blob(b"kept" * 30_000)
    gone = await log.put_blob(b"gone" * 30_000)
    keep, go = row("keep"), row("go")
    keep.blob, go.blob = kept, gone
    await log.append([keep, go, row("go")])
    await log.seal()
    await log.append([row("go", kind="workflow_deleted"), row("keep")])
    await log.close(seal=True)
    assert [e.key for e in await store.list(f"{STREAM}/blobs/")] == [f"{STREAM}/blobs/{kept}"]
    again = await opened(store, 2)
    assert again.manifest.sealed_seq == again.last_seq == 5
    assert again.manifest.garbage == ()
    assert {r.instance_id for r in await all_rows(again)} == {"keep"}
    assert len(await store.list(f"{STREAM}/events/")) == len(again.manifest.segments)
    assert await again.get_blob(kept) == b"kept" * 30_000
    with pytest.raises(Corrupt, match="missing"):
        await again.get_blob(gone)
    await again.close()


async def test_what_a_crash_left_unnamed_is_swept_by_the_next_owner(store: Store) -> None:
    log = await opened(store)
    await log.append([row()])
    await log.seal()
    for key in ("events/date=2026-01-01/orphan.parquet", "blobs/" + "ab" * 32):
        await store.create(f"{STREAM}/{key}", b"left behind")
    again = await opened(store, 2)
    await again.maintain()
    keys = [
        e.key for folder in ("events", "blobs") for e in await store.list(f"{STREAM}/{folder}/")
    ]
    assert keys == [info.key for info in again.manifest.segments]
    await again.close()
    await log.close()


async def test_old_manifests_go_and_the_newest_stays(store: Store) -> None:
    log = await opened(store)
    for _ in range(20):
        await log.append([row()])
        await log.seal()
    versions = [int(e.key[-20:]) for e in await store.list(f"{STREAM}/manifest/")]
    assert max(versions) == log.manifest.version
    assert len(versions) <= 8
    await log.close()


async def test_a_closed_log_takes_nothing_and_what_was_appended_is_safe(store: Store) -> None:
    log = await opened(store)
    pending = [log.append([row(n=n)], durable=n % 2 == 0) for n in range(10)]
    await log.close()
    await asyncio.gather(*pending)
    with pytest.raises(PlatformClosed):
        await log.append([row()])
    again = await opened(store, 2)
    assert again.last_seq == 10
    await again.close()
    await again.close()


async def test_a_log_of_another_tenant_is_refused(store: Store) -> None:
    log = await opened(store)
    await log.close()
    with pytest.raises(InvalidError, match="belongs to"):
        await EventLog.open(store, STREAM, tenant_id="u", clock=VirtualClock(), ids=SeededIds(1))


async def test_a_large_append_is_whole_and_so_is_a_large_row(store: Store) -> None:
    log = await opened(store)
    big = row("big")
    big.payload = b'"' + b"x" * 3_000_000 + b'"'
    await asyncio.gather(
        log.append([row(n=n) for n in range(20_000)]), log.append([big]), log.append([row()])
    )
    again = await opened(store, 2)
    assert again.last_seq == 20_002
    [found] = await again.history("W", "big")
    assert found.payload == big.payload
    await again.close()
    await log.close()


def test_unknown_streams_have_no_tail() -> None:
    assert read_tail(MemoryStore(), STREAM) is None


# -- any order of calls --------------------------------------------------------------------------

CALLS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 40), st.booleans()),
        st.tuples(st.just("folded"), st.integers(1, 5), st.booleans()),
        st.sampled_from(["seal", "maintain", "reopen", "crash", "history", "sleep"]).map(
            lambda name: (name, 0, False)
        ),
    ),
    max_size=14,
)


async def _follow(calls: list[tuple[str, int, bool]], make: Callable[[], Store]) -> None:
    """Do the calls on a log and on a list, and compare."""
    store = make()
    clock = VirtualClock()
    config = LogConfig(has_probe=False, wal_bytes_max=2_000, compaction=CompactionConfig(fan_in=2))
    seed = 0
    log = await opened(store, seed, clock=clock, config=config)
    model: list[tuple[int, str, str]] = []
    for name, count, durable in calls:
        if name in ("append", "folded"):
            kind = "step_completed" if name == "folded" else "event_received"
            attempt = 1 if name == "folded" else 0
            rows = [row(f"i-{n % 3}", kind=kind, attempt=attempt) for n in range(count)]
            await log.append(rows, durable=durable)
            model += [(r.seq, r.type, r.instance_id) for one in rows for r in unfold(one)]
        elif name == "seal":
            await log.seal()
        elif name == "maintain":
            clock.move_to(clock.now_us() + 400 * US)
            await log.maintain()
        elif name == "history":
            found = await log.history("W", "i-1")
            assert [(r.seq, r.type) for r in found] == [m[:2] for m in model if m[2] == "i-1"]
        else:
            if name != "crash":
                await log.close(seal=name == "sleep")
            seed += 1
            old, log = log, await opened(make(), seed, clock=clock, config=config)
            await old.close()
        rows = [r for one in await all_rows(log) for r in unfold(one)]
        assert [(r.seq, r.type, r.instance_id) for r in rows] == model
        assert log.last_seq == len(model)
    await log.close()


@settings(max_examples=40)
@given(CALLS)
def test_whatever_is_called_the_log_is_the_list_of_its_rows(
    calls: list[tuple[str, int, bool]],
) -> None:
    memory = MemoryStore()
    asyncio.run(_follow(calls, lambda: memory))
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_follow(calls, lambda: LocalStore(Path(folder))))


# -- names -----------------------------------------------------------------------------------------


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=256))
def test_every_tenant_has_a_path_of_its_own_that_every_store_takes(tenant_id: str) -> None:
    encoded = encode_name(tenant_id)
    check_key(tenant_stream(tenant_id))
    assert "/" not in encoded
    assert encoded.isascii()
    assert len(encoded) <= 200
    assert decode_name(encoded) in (tenant_id, None)
    if len(tenant_id) < 20:
        assert decode_name(encoded) == tenant_id


@given(
    st.text(st.sampled_from("a.%/ é~A"), min_size=1, max_size=8),
    st.text(st.sampled_from("a.%/ é~A"), min_size=1, max_size=8),
)
def test_two_tenants_never_share_a_path(one: str, other: str) -> None:
    assert (encode_name(one) == encode_name(other)) == (one == other)


def test_a_folded_row_takes_two_numbers_and_a_plain_one_takes_one() -> None:
    assert span(row(kind="step_completed", attempt=2)) == 2
    assert span(row(kind="attempt_errored", attempt=2)) == 1
