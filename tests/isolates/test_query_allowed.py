# ruff: noqa: E501 - a query is a line
"""What a tenant's query may say: DuckDB's functions are listed or refused; what is listed works."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
from histories import Writer, opened
from paths import DOCS

from dynamic_workflows.eventlog.clock import VirtualClock
from dynamic_workflows.eventlog.errors import QueryError
from dynamic_workflows.eventlog.query import allowed_functions
from dynamic_workflows.eventlog.query.duckdb_views import LogViews
from dynamic_workflows.eventlog.query.limits import QueryLimits
from dynamic_workflows.eventlog.query.reader import Reader
from dynamic_workflows.eventlog.query.sql_guard import TOLD_BY_NAME, SelectGuard
from dynamic_workflows.eventlog.store.open_store import open_store

ANALYTICS = DOCS / "analytics.md"
MAY_VARY = {
    "current_date", "current_localtime", "current_localtimestamp", "gen_random_uuid",
    "get_current_time", "get_current_timestamp", "now", "random", "today", "transaction_timestamp",
    "uuid", "uuidv4", "uuidv7", "error",
}  # fmt: skip
"""Listed functions that answer something else each time: the time, and chance."""


@pytest.fixture(scope="module")
def duck() -> Iterator[duckdb.DuckDBPyConnection]:
    connection = duckdb.connect()
    connection.execute("LOAD icu")
    yield connection
    connection.close()


def functions(duck: duckdb.DuckDBPyConnection, *kinds: str) -> dict[str, str | None]:
    rows = duck.execute(
        "select lower(function_name), any_value(macro_definition) from duckdb_functions() "
        "where list_contains(?, function_type) group by 1",
        [list(kinds)],
    ).fetchall()
    return dict(rows)


def is_refused(duck: duckdb.DuckDBPyConnection, sql: str) -> bool:
    try:
        SelectGuard().check(duck, sql)
    except QueryError as error:
        return "is not available" in error.message
    return False


def test_every_function_is_listed_or_refused_by_its_name(duck: duckdb.DuckDBPyConnection) -> None:
    for name in functions(duck, "scalar", "aggregate", "macro", "window", "pragma"):
        if re.fullmatch(r"[a-z]\w*", name):
            assert is_refused(duck, f'select "{name}"()') != (
                name in allowed_functions.EXPRESSIONS
            ), name
    for name in functions(duck, "table", "table_macro", "pragma"):
        assert is_refused(duck, f'from "{name}"()') != (
            name in allowed_functions.TABLE_FUNCTIONS
        ), name


def test_every_listed_function_is_one_of_duckdbs(duck: duckdb.DuckDBPyConnection) -> None:
    known = functions(duck, "scalar", "aggregate", "macro", "window", "table", "table_macro")
    assert allowed_functions.EXPRESSIONS - {"unnest"} <= set(known)
    assert set(known) >= allowed_functions.TABLE_FUNCTIONS


def test_listed_functions_answer_by_their_arguments_alone(
    duck: duckdb.DuckDBPyConnection,
) -> None:
    rows = duck.execute(
        "select lower(function_name) from duckdb_functions() where stability = 'VOLATILE' "
        "and function_type in ('scalar', 'aggregate')"
    ).fetchall()
    varying = {name for (name,) in rows} & allowed_functions.EXPRESSIONS
    assert varying <= MAY_VARY


def test_listed_macros_call_listed_functions(duck: duckdb.DuckDBPyConnection) -> None:
    for name, definition in functions(duck, "macro").items():
        if name in allowed_functions.MACROS and definition:
            called = {one.lower() for one in re.findall(r'"?(\w+)"?\(', definition)}
            assert called - {"cast", "coalesce", "then", "when", "else", "in"} <= (
                allowed_functions.EXPRESSIONS
            ), name


def test_a_name_that_nobody_has_listed_is_refused(duck: duckdb.DuckDBPyConnection) -> None:
    assert is_refused(duck, "select a_function_of_tomorrow(1)")
    assert is_refused(duck, "from a_function_of_tomorrow(1)")
    assert is_refused(duck, "select 1::a_type_of_tomorrow")


QUERIES = """
select status, count(*) from instances group by all order by 2 desc nulls last limit 3 offset 1
with recursive t(n) as (select 1 union all select n + 1 from t where n < 5) select sum(n) from t
with a as (from events), b(x) as materialized (select seq from a) select count(*) from a, b
select row_number() over w, lag(seq, 1, 0) over w from events window w as (partition by run order by seq)
select sum(seq) over (order by seq rows between 1 preceding and current row exclude ties) from events
select * from events e asof join steps f on e.run = f.run and e.ts >= f.started_at
select * from events e left join steps f using (run) semi join waits w on true
select * exclude (payload) replace (seq + 1 as seq) from events
select min(columns('s.q')), max(columns(lambda c: c = 'run')) from events
select distinct on (type) type, seq from events order by type, seq desc
select count(distinct type) filter (where seq > 1), string_agg(type, ',' order by seq) from events
select type, run, count(*), grouping(run) from events group by rollup (type, run) having count(*) > 0
select type, step from events group by grouping sets ((type, step), ()) order by all
select case when seq > 1 then 'a' else 'b' end, seq between 1 and 2, type in ('x'), type like 'w%' from events
select try_cast(step as date), seq::decimal(18, 2), [1, 2]::int[], {'a': 1}::struct(a int) from events
select ts at time zone 'UTC', extract(year from ts), date_trunc('day', ts), ts + interval 1 day from events
select [x * 2 for x in range(3) if x > 1], list_transform([1], lambda x: x + 1), map {'a': 1}['a']
select payload ->> '$.output', payload.output, json_type(payload), json_keys(payload) from events
select key, value from events, json_each(payload)
select seq, unnest(json_keys(payload)) from events
from (pivot events on type in ('workflow_queued', 'workflow_completed') using count(*) group by run)
from (unpivot (select run, seq from events) on run, seq into name n value v)
(select type from events) union all by name (select kind as type from steps) except (select 'x')
select quantile_cont(seq, 0.99), median(seq), mode(type), arg_max(type, seq), approx_quantile(seq, 0.5) from events
select (select count(*) from steps s where s.run = i.run), exists (from waits) from instances i
from events tablesample 10 percent (bernoulli)
from events using sample reservoir(2 rows) repeatable (1)
select regexp_extract(type, '(\\w+)_', 1), split_part(type, '_', 1), type.upper(), type[1:2] from events
select levenshtein(type, 'x'), md5(type), hash(type), format('{} {}', type, seq), printf('%s', type) from events
select time_bucket(interval 1 hour, ts), strftime(ts, '%Y'), age(ts), epoch_ms(ts), dayname(ts) from events
select count(*) from range(10) a(x) positional join range(10) b(y)
values (1, 'a'), (2, 'b')
select type as user, count(*) from events group by user order by user
select 1 as x -- with a comment
/* a comment */ select 1;
describe events
summarize instances
from events limit 10%
select first(type order by seq), list(seq), histogram(type), count_if(seq > 1), bool_or(seq > 1) from events
select json_group_array(type), json_object('a', 1), to_json(run), json_merge_patch('{}', '{}') from events group by run
select coalesce(step, 'none'), nullif(type, 'x'), greatest(seq, 1), if(seq > 1, 1, 0), ifnull(step, '') from events
select 123456789012345678901234567890, 1e5, true, null, date '2026-01-01', interval '1 hour', 'it''s'
select sum((output ->> '$.total')::decimal(18, 2)) from instances where status = 'complete'
select instance_id from instances limit 1
select workflow from instances union select workflow from steps limit 2
with recursive t(a, b) using key (a) as (select 1, 1 union select t.a, t.b + 1 from t join recurring.t r using (a) where t.b < 5) from t
select user from (select 1 as user)
""".strip().splitlines()


async def test_usual_analytics_and_the_cookbook_are_answered(tmp_path: Path) -> None:
    store = open_store(tmp_path / "log")
    clock = VirtualClock()
    async with opened(store, "acme", clock=clock) as log:
        await log.append(Writer(clock, "one").life(output={"total": 1}))
        await log.seal()
        await log.append(Writer(clock, "two").life(output={"total": 2}))
    cookbook = (
        ANALYTICS.read_text().split("## Some questions")[1].split("```sql")[1].split("```")[0]
    )
    questions = [one for one in cookbook.split(";") if "select" in one]
    assert len(questions) == 4
    reader = Reader(store, tenant="acme")
    for sql in [*QUERIES, *questions]:
        try:
            reader.query(sql)
        except QueryError as error:
            raise AssertionError(f"{sql}: {error}") from error
    reader.close()


WRAPPINGS = """
select * from ({}) limit 2
select distinct * from ({}) limit 2
select distinct on (1) * from ({}) order by 1 limit 1 offset 1
select count(*) from (select * from ({}) limit 2)
({}) union ({}) limit 2
({}) except ({}) limit 2
select a.* from ({}) a, ({}) b where a = b
select a.* from ({}) a left join ({}) b on a < b or a = b limit 3
select * from (select *, row_number() over (partition by q order by q) as rn from ({}) q) where rn = 1
""".strip().splitlines()
"""What makes DuckDB choose other operators for the same question."""


def test_no_choice_of_duckdbs_optimizer_makes_a_usual_question_a_refused_one(
    tmp_path: Path,
) -> None:
    views = LogViews(open_store(tmp_path / "log"), tenant="acme", limits=QueryLimits(), threads=1)
    guard = SelectGuard()
    for sql, wrapping in itertools.product(QUERIES, WRAPPINGS):
        wrapped = wrapping.replace("{}", sql.split(" --")[0].rstrip(";"))
        with contextlib.suppress(duckdb.Error):  # some make no sense when they are wrapped
            guard.check_plan(views.connection, wrapped, None)
    views.close()


@pytest.mark.parametrize("name", sorted(TOLD_BY_NAME))
def test_a_column_elsewhere_does_not_bring_back_what_duckdb_tells_of_itself(
    name: str, tmp_path: Path
) -> None:
    views = LogViews(open_store(tmp_path / "log"), tenant="acme", limits=QueryLimits(), threads=1)
    answer = views.query(f"select (select {name}) as told, 1 as {name}")
    assert answer.to_pylist() == [{"told": None, name: 1}]
    views.close()
