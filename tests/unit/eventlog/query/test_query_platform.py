"""The platform's own statements: they read, and leave nothing behind for later ones."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from histories import Writer, opened

from dynamic_workflows import PlatformClosed
from dynamic_workflows.eventlog.clock import VirtualClock
from dynamic_workflows.eventlog.errors import QueryError
from dynamic_workflows.eventlog.query.reader import Reader
from dynamic_workflows.eventlog.store.open_store import open_store
from dynamic_workflows.readers import KeptReaders

CHANGES = """
drop view instances
drop view if exists events
create or replace view events as select 1
create or replace temp view events as select 1
create or replace temp table events as select 1
create temp table instances as select 1
create table x as from events
create macro f() as 1
create schema x
use temp
set schema = 'hot'
set search_path = 'hot'
set threads = 1
set timezone = 'America/New_York'
set variable x = 1
reset all
pragma enable_profiling
attach ':memory:' as x
detach memory
begin
begin; drop view events
commit; drop view events
rollback
drop view events; select 1
insert into hot.tail from hot.tail
delete from hot.tail
update hot.tail set tenant_id = 'x'
truncate hot.tail
with x as (delete from hot.tail returning seq) from x
with x as (insert into hot.tail from hot.tail returning seq) from x
alter view events rename to x
copy hot.tail from '/dev/null'
prepare p as select 1
execute p
deallocate p
install httpfs
load icu
checkpoint
vacuum
import database '/tmp/x'
explain analyze delete from hot.tail
""".strip().splitlines()


@pytest.fixture
async def reader(tmp_path: Path) -> AsyncIterator[Reader]:
    clock = VirtualClock()
    store = open_store(tmp_path / "log")
    async with opened(store, "acme", clock=clock) as log:
        await log.append(Writer(clock, "cold").life())
        await log.seal()
        await log.append(Writer(clock, "hot").life())
    reader = Reader(store)
    yield reader
    reader.close()


async def test_no_statement_spoils_a_later_answer(reader: Reader) -> None:
    sql = (
        "select i.*, (select count(*) from events) as n, (select count(*) from steps) as s, "
        "timestamptz '2026-01-01'::varchar as zone from instances i order by 1, 2, 3"
    )
    first = reader.query(sql).to_pylist()
    assert len(first) == 2
    for change in CHANGES:
        with pytest.raises(QueryError):
            raise AssertionError(f"{change}: {reader.query(change).to_pylist()}")
        assert reader.query(sql).to_pylist() == first, change


async def test_what_a_pivot_makes_is_gone_after_it(reader: Reader) -> None:
    for _ in range(2):
        assert reader.query("pivot events on type using count(*) group by tenant_id").num_rows == 1
    assert reader.query("explain from events").num_rows > 0
    leftovers = "select count(*) as n from duckdb_types() where not internal"
    assert reader.query(leftovers).to_pylist() == [{"n": 0}]


class NumberedReader:
    """Stands for a reader; counts those that are open."""

    open_now = 0

    def __init__(self) -> None:
        NumberedReader.open_now += 1

    def close(self) -> None:
        NumberedReader.open_now -= 1

    def interrupt(self) -> None:
        pass


def test_readers_of_tenants_are_few_and_those_in_use_stay() -> None:
    NumberedReader.open_now = 0
    kept = KeptReaders(lambda tenant_id: NumberedReader(), tenants_max=2)  # type: ignore[arg-type, return-value]
    for number in range(10):
        with kept.using(f"tenant-{number}"), kept.using(None):
            pass
        assert NumberedReader.open_now <= 3
    with kept.using("tenant-9") as first:
        for number in range(5):
            with kept.using(f"other-{number}"):
                pass
        with kept.using("tenant-9") as again:
            assert again is first
    kept.close()
    assert NumberedReader.open_now == 0
    with pytest.raises(PlatformClosed), kept.using(None):
        pass


def test_readers_are_shared_by_threads() -> None:
    NumberedReader.open_now = 0
    kept = KeptReaders(lambda tenant_id: NumberedReader(), tenants_max=1)  # type: ignore[arg-type, return-value]
    meeting = threading.Barrier(4)

    def use(number: int) -> int:
        with kept.using(f"tenant-{number % 2}"):
            meeting.wait(30)
            count = NumberedReader.open_now
            meeting.wait(30)
            return count

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(use, range(4))) == [2, 2, 2, 2]
    assert NumberedReader.open_now == 1
    kept.close()
