"""Readers: every acknowledged row exactly once, whatever the owner does meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from histories import Writer, opened
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dynamic_workflows.eventlog import connect_duckdb
from dynamic_workflows.eventlog.clock import VirtualClock
from dynamic_workflows.eventlog.errors import Corrupt, InvalidError, QueryError
from dynamic_workflows.eventlog.events import span
from dynamic_workflows.eventlog.log.event_log import LogConfig
from dynamic_workflows.eventlog.query.reader import Reader
from dynamic_workflows.eventlog.segments.policy import CompactionConfig
from dynamic_workflows.eventlog.store.base import Store
from dynamic_workflows.eventlog.store.memory import MemoryStore
from dynamic_workflows.eventlog.store.open_store import open_store

MERGE_EARLY = LogConfig(
    auto_seal=False, compaction=CompactionConfig(fan_in=2, grace_s=0, erase_delay_s=0)
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "log")


@pytest.fixture
def reader(store: Store) -> Iterator[Reader]:
    reader = Reader(store)
    yield reader
    reader.close()


async def test_answer_is_an_arrow_table_and_parameters_go_in_both_ways(
    store: Store, reader: Reader
) -> None:
    async with opened(store) as log:
        await log.append(Writer(VirtualClock()).life())
        answer = reader.query("select status from instances where instance_id = ?", ["one"])
        assert isinstance(answer, pa.Table)
        assert answer.to_pylist() == [{"status": "complete"}]
        named = reader.query("select $a + $b as c", {"a": 1, "b": 2})
        assert named.to_pylist() == [{"c": 3}]


@pytest.mark.parametrize(
    "sql", ["selec 1", "from nowhere", "select 1/", "", "select error('boom')", "select ?"]
)
def test_bad_sql_is_a_query_error_with_the_words_of_duckdb(reader: Reader, sql: str) -> None:
    with pytest.raises(QueryError) as caught:
        reader.query(sql)
    assert caught.value.code == "query.invalid"
    assert caught.value.message


def test_log_without_a_tenant_answers_with_no_rows(reader: Reader) -> None:
    assert reader.query("from events").num_rows == 0
    assert reader.query("from instances").num_rows == 0


def test_connection_to_a_place_without_a_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="does not exist"):
        connect_duckdb(tmp_path / "misspelt")


def test_closed_reader_says_so(store: Store) -> None:
    reader = Reader(store)
    reader.close()
    with pytest.raises(InvalidError, match="closed"):
        reader.query("select 1")


async def test_each_tenant_is_seen_under_its_own_name(store: Store, reader: Reader) -> None:
    names = ["acme", "a/../b", "snow ☃", "A" * 256, "it's"]
    clock = VirtualClock()
    for name in names:
        async with opened(store, name, clock=clock) as log:
            await log.append(Writer(clock).life())
            await log.seal()
            await log.append(Writer(clock, "two").begin())
    answer = reader.query("select tenant_id, count(*) as n from events group by 1")
    assert {row["tenant_id"]: row["n"] for row in answer.to_pylist()} == dict.fromkeys(names, 9)


async def test_root_may_have_any_name(tmp_path: Path) -> None:
    store = open_store(tmp_path / "it's a [log]*, 100%?")
    async with opened(store) as log:
        await log.append(Writer(VirtualClock()).life())
        await log.seal()
    for tenant in (None, "acme"):
        reader = Reader(store.root, tenant=tenant)
        assert reader.query("from events").num_rows == 7
        reader.close()


async def test_connection_follows_the_log_and_is_a_duckdb_connection(store: Store) -> None:
    async with opened(store) as log:
        await log.append(Writer(VirtualClock()).begin())
        with connect_duckdb(store.root) as connection:
            assert isinstance(connection, duckdb.DuckDBPyConnection)
            assert connection.sql("select count(*) from events").fetchall() == [(2,)]
            await log.append(Writer(VirtualClock(), "two").begin())
            assert connection.execute("select count(*) from events").fetchall() == [(4,)]
            await log.seal()
            await log.append(Writer(VirtualClock(), "three").begin())
            assert connection.sql("select count(*) from events").fetchall() == [(6,)]
            assert connection.cursor().sql("select count(*) from events").fetchall() == [(6,)]


async def test_transaction_of_the_user_sees_one_state(store: Store) -> None:
    async with opened(store) as log:
        await log.append(Writer(VirtualClock()).begin())
        with connect_duckdb(store.root) as connection:
            connection.begin()
            assert connection.sql("select count(*) from events").fetchall() == [(2,)]
            await log.append(Writer(VirtualClock(), "two").begin())
            assert connection.sql("select count(*) from events").fetchall() == [(2,)]
            connection.commit()
            assert connection.sql("select count(*) from events").fetchall() == [(4,)]


@settings(
    max_examples=20,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(
        st.sampled_from(["life", "begin", "delete", "seal", "maintain", "reopen", "read"]),
        min_size=1,
        max_size=25,
    )
)
def test_rows_are_seen_exactly_once_whatever_is_sealed_merged_or_erased(
    commands: list[str],
) -> None:
    async def run() -> None:
        store = MemoryStore("memory://here")
        reader = Reader(store)
        clock = VirtualClock()
        expected: dict[str, set[int]] = {}
        while commands:
            async with opened(store, clock=clock, config=MERGE_EARLY) as log:
                while commands:
                    command = commands.pop()
                    if command in ("life", "begin"):
                        one = Writer(clock, f"id-{len(expected)}")
                        rows = getattr(one, command)()
                        await log.append(rows)
                        expected[one.instance_id] = {
                            row.seq + half for row in rows for half in range(span(row))
                        }
                    elif command == "delete" and expected:
                        gone, _ = expected.popitem()
                        await log.append(Writer(clock, gone).delete())
                    elif command == "seal":
                        await log.seal()
                    elif command == "maintain":
                        await log.maintain()
                    elif command == "reopen":
                        break
                    found = reader.query("select instance_id, seq from events").to_pylist()
                    seen: dict[str, list[int]] = {}
                    for row in found:
                        seen.setdefault(row["instance_id"], []).append(row["seq"])
                    assert {key: sorted(seqs) for key, seqs in seen.items()} == {
                        key: sorted(seqs) for key, seqs in expected.items()
                    }
                    assert reader.query("from instances").num_rows == len(expected)
        reader.close()

    asyncio.run(run())


async def test_reading_beside_a_busy_owner_shows_no_gap_and_nothing_twice(store: Store) -> None:
    """A reader in another thread, while the owner appends, seals, merges and removes old files."""
    is_done = threading.Event()
    problems: list[str] = []
    reads = 0

    def read() -> None:
        nonlocal reads
        reader = Reader(store.root)
        sql = (
            "select count(*) as n, count(distinct seq) as d, coalesce(max(seq), 0) as m from events"
        )
        before = 0
        while not is_done.is_set():
            (row,) = reader.query(sql).to_pylist()
            reads += 1
            if not row["n"] == row["d"] == row["m"] or row["m"] < before:
                problems.append(str(row))
            before = row["m"]
        reader.close()

    clock = VirtualClock()
    async with opened(store, clock=clock, config=MERGE_EARLY) as log:
        await log.append(Writer(clock).begin())
        thread = asyncio.create_task(asyncio.to_thread(read))
        number = 0
        while reads < 40 and not thread.done():
            number += 1
            await log.append(Writer(clock, f"id-{number}").life())
            if number % 7 == 0:
                await log.seal()
            if number % 21 == 0:
                await log.maintain()
            await asyncio.sleep(0)
        is_done.set()
        await thread
    assert problems == []
    assert number > 21, "the owner sealed and merged meanwhile"


class MovingStore(MemoryStore):
    """A store whose owner merges just before a reader reads the first byte of a segment."""

    after: dict[str, bytes] | None = None

    def get_range_blocking(self, key: str, start: int, length: int) -> bytes:
        if "/events/" in key and self.after is not None:
            self.objects, self.after = self.after, None
        return super().get_range_blocking(key, start, length)


async def test_segments_that_go_while_they_are_read_are_looked_for_again() -> None:
    store, clock = MovingStore(), VirtualClock()
    reader = Reader(store)
    async with opened(store, clock=clock, config=MERGE_EARLY) as log:
        for number in range(2):
            await log.append(Writer(clock, f"id-{number}").life(output=number))
            await log.seal()
        before = dict(store.objects)
        await log.maintain()
        assert {key for key in before if "/events/" in key} - store.objects.keys()
        store.objects, store.after = before, dict(store.objects)
        sql = "select instance_id, output from instances order by 1"
        found = [tuple(row.values()) for row in reader.query(sql).to_pylist()]
        assert store.after is None
        assert found == [("id-0", "0"), ("id-1", "1")]
    reader.close()


@pytest.mark.parametrize("kind", ["local", "memory"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
async def test_segment_that_is_lost_is_named_as_damage(
    kind: str, damage: str, tmp_path: Path
) -> None:
    store: Store = open_store(tmp_path / "log") if kind == "local" else MemoryStore()
    reader, clock = Reader(store), VirtualClock()
    async with opened(store, clock=clock) as log:
        await log.append(Writer(clock).life())
        await log.seal()
    (key,) = [entry.key for entry in await store.list("tenants/") if "/events/" in entry.key]
    if damage == "missing":
        await store.delete(key)
    else:
        await store.put(key, (await store.get(key))[:100])
    with pytest.raises((Corrupt, QueryError), match="verify") as caught:
        reader.query("select max(payload) from events")
    assert caught.value.code == "log.corrupt"
    assert key.rpartition("/")[2] in caught.value.message
    reader.close()
