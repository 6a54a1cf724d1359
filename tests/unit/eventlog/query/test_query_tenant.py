"""A tenant's connection: its own rows, and no way out of them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from histories import Writer, opened

from dynamic_workflows.eventlog import connect_duckdb
from dynamic_workflows.eventlog.clock import VirtualClock
from dynamic_workflows.eventlog.errors import QueryError
from dynamic_workflows.eventlog.query.duckdb_views import LogViews
from dynamic_workflows.eventlog.query.limits import QueryLimits
from dynamic_workflows.eventlog.query.reader import Reader
from dynamic_workflows.eventlog.store.base import Store
from dynamic_workflows.eventlog.store.memory import MemoryStore
from dynamic_workflows.eventlog.store.open_store import open_store


@pytest.fixture(params=["local", "memory"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Two tenants, each with sealed and hot rows."""
    local = request.param == "local"
    store = open_store(tmp_path / "log") if local else MemoryStore("memory://there")
    clock = VirtualClock()
    for name in ("acme", "evil"):
        async with opened(store, name, clock=clock) as log:
            await log.append(Writer(clock, f"{name}-cold").life(output=f"secret of {name}"))
            await log.seal()
            await log.append(Writer(clock, f"{name}-hot").life(output=f"secret of {name}"))
    return store


async def test_tenant_sees_its_own_rows_in_every_view(store: Store) -> None:
    reader = Reader(store, tenant="evil")
    for view in ("events", "instances", "steps", "attempts"):
        found = reader.query(f"select distinct tenant_id, instance_id from {view} order by 2")
        assert found.to_pylist() == [
            {"tenant_id": "evil", "instance_id": "evil-cold"},
            {"tenant_id": "evil", "instance_id": "evil-hot"},
        ]
    assert reader.query("from waits").num_rows == 0
    reader.close()


async def test_tenant_sees_what_is_appended_and_sealed_later(store: Store) -> None:
    reader = Reader(store, tenant="evil")
    clock = VirtualClock()
    async with opened(store, "evil", clock=clock) as log:
        for number in range(3):
            await log.append(Writer(clock, f"later-{number}").begin())
            sql = "select count(*) as n from instances where instance_id like 'later-%'"
            assert reader.query(sql).to_pylist() == [{"n": number + 1}]
            await log.seal()
            assert reader.query(sql).to_pylist() == [{"n": number + 1}]
    reader.close()


async def test_tenant_that_has_no_log_yet_sees_nothing_and_is_locked_in(store: Store) -> None:
    reader = Reader(store, tenant="nobody")
    assert reader.query("from events").num_rows == 0
    with pytest.raises(QueryError):
        reader.query("select * from read_text('/etc/hostname')")
    reader.close()


async def test_common_queries_are_allowed(store: Store) -> None:
    reader = Reader(store, tenant="evil")
    for sql in (
        "from instances",
        "describe events",
        "summarize instances",
        "with mine as (from instances) select count(*) from mine",
        "with recursive t(n) as (select 1 union all select n + 1 from t where n < 5) from t",
        "select status, count(*) from instances group by all order by 2 limit 3",
        "select (select count(*) from steps s where s.run = i.run) from instances i",
        "select * from range(3), unnest([1, 2])",
        "select payload ->> '$.output' from events where payload is not null",
        "select row_number() over (order by seq) from events qualify 1 = 1",
        "select * from events e asof join events f on e.run = f.run and e.seq >= f.seq",
        "select key from events, json_each(payload)",
        "(from events) union all (from main.events)",
    ):
        reader.query(sql)
    assert reader.query("select ? as x", [1]).to_pylist() == [{"x": 1}]
    assert reader.query("select $x as x", {"x": 1}).to_pylist() == [{"x": 1}]
    reader.close()


# {other}: a segment of another tenant. {own}: one of its own. {dir}: a place it could write to.
ESCAPES = """
from read_parquet('{other}')
from read_parquet('{root}/**/*.parquet')
from parquet_metadata('{other}')
from '{other}'
from parquet_scan(['{other}'])
from read_parquet('{own}/../../../../tenant=acme/events/*/*.parquet')
from glob('{root}/**')
from read_text('{other}')
from read_blob('{root}/tenants/tenant=acme/manifest/00000000000000000001')
from read_csv('/etc/passwd')
from '/etc/passwd'
from read_json('/etc/passwd')
from read_ndjson('/proc/self/environ')
from sniff_csv('/etc/passwd')
from read_duckdb('{dir}/x.db')
copy events to '{dir}/x.csv'
copy (select 1) to '{own}' (use_tmp_file false)
copy (select 1) to '{own}'
copy events from '{other}'
export database '{dir}/x'
import database '{dir}/x'
attach '{dir}/x.db' as y
attach ':memory:' as y
detach memory
install httpfs
load httpfs
load '{dir}/x.duckdb_extension'
set enable_external_access = true
set global enable_external_access = true
set lock_configuration = false
reset lock_configuration
set memory_limit = '100GB'
set threads = 64
set allowed_paths = ['{other}']
set temp_directory = '{dir}'
set variable x = 1
pragma memory_limit = '100GB'
pragma threads = 64
pragma enable_profiling
pragma database_list
create table x as from events
create view x as from events
create or replace view events as select 1
create macro f() as 1
create secret s (type s3)
insert into hot.tail from hot.tail
delete from hot.tail
update hot.tail set tenant_id = 'acme'
truncate hot.tail
drop view events
alter view events rename to x
from hot.tail
from memory.hot.tail
from hot.dead
from sealed_rows
from temp.sealed_rows
from duckdb_views()
from duckdb_views
from duckdb_settings()
from duckdb_secrets()
from duckdb_logs
from duckdb_temporary_files()
from information_schema.tables
from pg_catalog.pg_views
from sqlite_master
from query('from hot.tail')
from query_table('hot.tail')
from json_execute_serialized_sql(json_serialize_sql('from hot.tail'))
select getenv('HOME')
select current_setting('allowed_paths')
select getvariable('x')
from enable_logging()
call enable_logging()
from arrow_scan(1, 1, 1)
from pandas_scan(1)
from python_map_function((select 1))
from python_variable
select * from events, python_variable
select (select count(*) from python_variable)
with mine as (from python_variable) from mine
from (from (from '{other}'))
select 1 where exists (from read_text('/etc/passwd'))
select * from events where payload in (from read_text('/etc/passwd'))
from events union all from hot.tail
from events; from events
prepare p as from events
execute p
explain analyze from events
checkpoint
vacuum
use temp
begin
pivot events on type using count(*)
""".strip().splitlines()


async def _filled(store: Store, directory: Path) -> Callable[[str], str]:
    """How to put the names of this store into a statement."""
    segments = [entry.key for entry in await store.list("tenants/") if "parquet" in entry.key]
    (own,) = [str(store.local_path(key) or key) for key in segments if "evil" in key]
    (other,) = [str(store.local_path(key) or key) for key in segments if "acme" in key]
    return lambda sql: sql.format(own=own, other=other, root=store.root, dir=directory)


async def test_no_statement_leads_out(store: Store, tmp_path: Path) -> None:
    python_variable = pa.table({"secret": ["of python"]})
    assert python_variable.num_rows == 1
    place = tmp_path / "place"
    place.mkdir()
    filled = await _filled(store, place)
    before = {entry.key: await store.get(entry.key) for entry in await store.list("tenants/")}
    reader = Reader(store, tenant="evil")
    connection = connect_duckdb(store, tenant="evil")
    for sql in map(filled, ESCAPES):
        with pytest.raises(QueryError):
            raise AssertionError(f"{sql} answered {reader.query(sql).to_pylist()}")
        with pytest.raises(QueryError):
            raise AssertionError(f"{sql} answered {connection.execute(sql).fetchall()}")
        # The connection still answers, with its own rows alone.
        tenants = reader.query("select distinct tenant_id from events").to_pylist()
        assert tenants == [{"tenant_id": "evil"}], sql
    assert list(place.iterdir()) == []
    assert {key: await store.get(key) for key in before} == before
    connection.close()
    reader.close()


OUTSIDE = [sql for sql in ESCAPES if "{other}" in sql or "{root}" in sql or "/etc" in sql]


async def test_duckdb_itself_refuses_what_lies_outside(store: Store, tmp_path: Path) -> None:
    """The inner wall holds without the guard: the same statements, past it."""
    filled = await _filled(store, tmp_path)
    views = LogViews(store, tenant="evil", limits=QueryLimits(memory_mb=256), threads=1)
    views.refresh()
    for sql in map(filled, OUTSIDE):
        with pytest.raises(duckdb.Error):
            raise AssertionError(f"{sql} answered {views.connection.sql(sql).fetchall()}")
    views.close()


async def test_queries_that_cannot_be_checked_are_refused(store: Store) -> None:
    reader = Reader(store, tenant="evil")
    for sql, match in (
        (f"select {'not ' * 900} true", "nests too deep"),
        ("select '\ud800'", "UTF-8"),
        ("", "one SELECT"),
    ):
        with pytest.raises(QueryError, match=match):
            reader.query(sql)
    reader.close()


async def test_a_name_defined_elsewhere_opens_none_of_duckdbs_own_views(store: Store) -> None:
    reader = Reader(store, tenant="evil")
    for view in ("sqlite_master", "duckdb_views", "duckdb_columns", "PG_TABLES"):
        sql = f"select b.* from (with {view} as (select 1) select 1) a, {view} b"
        with pytest.raises(QueryError, match="there is no table"):
            reader.query(sql)
    reader.close()


async def test_memory_of_a_tenants_query_is_capped(store: Store) -> None:
    reader = Reader(store, tenant="evil", memory_mb=64, threads=1)
    with pytest.raises(QueryError, match="out of memory, of which it has 64 MiB.*query_memory_mb"):
        reader.query("select list(repeat('x', 1000) || range) from range(1000000)")
    assert reader.query("select count(*) > 0 as ok from events").to_pylist() == [{"ok": True}]
    reader.close()


async def test_answer_of_a_tenants_query_is_capped(store: Store) -> None:
    reader = Reader(store, tenant="evil", memory_mb=64)
    with pytest.raises(QueryError, match="larger than 64 MiB") as caught:
        reader.query("select repeat('x', 1000) from range(1000000)")
    assert "query_memory_mb" in caught.value.message
    assert reader.query("select repeat('x', 1000) from range(10000)").num_rows == 10_000
    reader.close()


async def test_error_in_the_middle_of_an_answer_is_one_of_the_query(store: Store) -> None:
    reader = Reader(store, tenant="evil")
    with pytest.raises(QueryError, match="boom") as caught:
        reader.query("select case when range = 50000 then error('boom') end from range(100000)")
    assert caught.value.code == "query.invalid"
    reader.close()


@pytest.mark.parametrize("tenant", [None, "evil"])
@pytest.mark.parametrize("columns", ["count(*)", "a.range * b.range"])
async def test_query_without_end_is_stopped_and_the_next_one_is_answered(
    store: Store, tenant: str | None, columns: str
) -> None:
    # Little memory: what hands out its rows one by one must meet its end by time all the same.
    reader = Reader(store, tenant=tenant, timeout_s=0.2, memory_mb=4096)
    endless = "from range(10000000) a, range(10000000) b, range(1000) c"
    with pytest.raises(QueryError, match="query_timeout_seconds") as caught:
        reader.query(f"select {columns} {endless} where a.range + b.range < 0 or $x", {"x": False})
    assert caught.value.code == "query.timed_out"
    assert "0.2 s" in caught.value.message
    for _ in range(3):
        assert reader.query("select count(*) > 0 as ok from events").to_pylist() == [{"ok": True}]
    reader.close()


async def test_one_endless_query_does_not_hold_another_tenants_reader(store: Store) -> None:
    slow, quick = (Reader(store, tenant=name, timeout_s=30) for name in ("evil", "acme"))
    sql = "select count(*) from range(10000000) a, range(10000000) b"
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(slow.query, sql)
        assert quick.query("from instances").num_rows == 2
        assert not running.done()
        while not wait([running], timeout=0.01).done:
            slow.interrupt()  # one before the query began is forgotten
        with pytest.raises(QueryError, match="[Ii]nterrupt"):
            running.result()
    slow.close()
    quick.close()
