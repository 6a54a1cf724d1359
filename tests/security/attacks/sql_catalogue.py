# ruff: noqa: E501 - the statements are theirs
"""The attacks on SQL: statements that a hostile tenant might send, by what they are after.

A statement that answers has got through, unless its group says that it may answer. The names in
braces are filled in: {other} is a segment of another tenant, {own} one of the attacker's own, {root}
the log's root, {dir} a directory that anybody may write to.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SqlAttack:
    """One try."""

    group: str
    name: str
    sql: str
    closed_by: str


def _group(group: str, closed_by: str, text: str) -> list[SqlAttack]:
    attacks = []
    for line in text.strip().splitlines():
        name, _, sql = line.partition(" | ")
        attacks.append(SqlAttack(group, name.strip(), sql.strip(), closed_by))
    return attacks


WRITING = _group(
    "write",
    "allow-list of statements; read-only transaction; no writes in the process",
    """
overwrite a segment by COPY in a CTE | with x as (copy (select 1) to '{own}' (format csv, use_tmp_file false)) from x
write a file by COPY in a CTE | with x as (copy (select 1) to '{dir}/x.csv') from x
COPY in a CTE within a subquery | select (with x as (copy (select 1) to '{dir}/x.csv') select count(*) from x)
COPY in a CTE within a CTE | with y as (with x as (copy (select 1) to '{dir}/x.csv') from x) from y
fill the disk by COPY | with x as (copy (select repeat('x', 1000) from range(100000000)) to '{dir}/x.csv') from x
COPY to standard output's file | with x as (copy (select 1) to '/dev/stdout') from x
forge a row by INSERT in a CTE | with x as (insert into hot.tail select * from hot.tail returning tenant_id) from x
forge a row of another tenant | with x as (insert into hot.tail (tenant_id, seq) values ('acme', 1) returning seq) from x
delete rows by a CTE | with x as (delete from hot.tail returning seq) from x
change rows by a CTE | with x as (update hot.tail set tenant_id = 'acme' returning seq) from x
merge rows by a CTE | with x as (merge into hot.tail using events e on true when matched then delete returning seq) from x
hide an instance | with x as (insert into hot.dead values ('evil', 'W', 'evil-cold', 1000000) returning seq) from x
a recursive CTE that inserts | with recursive x as (insert into hot.tail select * from hot.tail returning seq) from x
insert through a view | with x as (insert into events select * from events returning seq) from x
make a table by a CTE | with x as (create table t as select 1) from x
drop a view by a CTE | with x as (drop view events) from x
a second statement | from events; drop view events
a statement that is no SELECT | drop view events
another definition of a view | create or replace view events as select 1
a macro over a listed name | create macro lower(x) as 1
a transaction | begin
a setting | set threads = 64
a copy of the database | copy from database memory to x
attach a file | attach '{dir}/x.db'
export everything | export database '{dir}/x'
write to DuckDB's log | select write_log('x')
a sequence | select nextval('x')
a checkpoint | from checkpoint()
switch logging on | from enable_logging()
pivot, which makes a type | pivot events on type using count(*)
""".replace("a second statement behind a comment | from events --\n", ""),
)

READING = _group(
    "read",
    "allow-list of tables and table functions; Landlock",
    """
another tenant's segment | from read_parquet('{other}')
another tenant's segment by its name | from '{other}'
every segment | from read_parquet('{root}/**/*.parquet')
another tenant's segment through one's own | from read_parquet('{own}/../../../../tenant=acme/events/*/*.parquet')
another tenant's segment by another reader | from read_blob('{other}')
a file of the host | from read_text('/etc/passwd')
a file of the host by its name | from '/etc/passwd'
a name defined elsewhere opens a file | select b.* from (with "/etc/passwd" as (select 1) select 1) a, "/etc/passwd" b
a name defined elsewhere opens a segment | select b.* from (with "{other}" as (select 1) select 1) a, "{other}" b
a name defined later | with a as (from b), b as (select 1) from a
a name that calls itself | with sealed_rows as (from sealed_rows) from sealed_rows
the environment | from read_text('/proc/self/environ')
the unsealed rows in a type | select enum_range(null::hot.tail)
the unsealed rows by the other views' time | select * from events at (version => 1)
the unsealed rows beside a view | select * from events, lateral (from hot.tail)
the shape of a file | from sniff_csv('/etc/passwd')
a listing | from glob('{root}/**')
the unsealed rows | from hot.tail
the unsealed rows by their catalog | from memory.hot.tail
the deleted rows | from hot.dead
the sealed rows as they are | from temp.sealed_rows
the unsealed rows through DESCRIBE | describe hot.tail
the unsealed rows through SUMMARIZE | summarize hot.tail
the unsealed rows through PIVOT | from (pivot hot.tail on type in ('x') using count(*))
the unsealed rows through a text | from query('from hot.tail')
the unsealed rows through a name | from query_table('hot.tail')
the unsealed rows through a serialised query | from json_execute_serialized_sql(json_serialize_sql('from hot.tail'))
the unsealed rows by scanning | from seq_scan('hot.tail')
the unsealed rows in an EXISTS | select 1 where exists (from hot.tail)
the unsealed rows in an IN | select 1 where 1 in (select seq from hot.tail)
the unsealed rows in an ORDER BY | select 1 order by (select count(*) from hot.tail)
the unsealed rows in a LIMIT | select 1 limit (select count(*) from hot.tail)
the unsealed rows in a window | select sum(1) over (order by (select count(*) from hot.tail))
the unsealed rows in a FILTER | select count(*) filter ((select count(*) from hot.tail) > 0)
the unsealed rows in a lambda | select list_transform([1], lambda x: (select count(*) from hot.tail))
the unsealed rows in a function of tables | from range((select count(*) from hot.tail))
a variable of Python | from python_variable
an object of Arrow by its address | from arrow_scan(1, 1, 1)
a function of Python | from python_map_function((select 1))
the network | from read_csv('http://127.0.0.1:1/x')
a bucket | from read_parquet('s3://bucket/x')
""",
)

TELLING = _group(
    "learn",
    "allow-list of functions and tables",
    """
the views' text | from duckdb_views()
the views' text by its view | from duckdb_views
the views' text by a macro | select pg_get_viewdef(oid) from events
the tables | from information_schema.tables
the tables of SQLite | from sqlite_master
the tables of Postgres | from pg_catalog.pg_tables
all tables | show tables
all tables with their columns | show all tables
all databases | show databases
the settings | from duckdb_settings()
one setting | select current_setting('allowed_paths')
one setting by its schema | select main.current_setting('allowed_paths')
one setting by its catalog | select system.main.current_setting('allowed_paths')
one setting as a method | select 'allowed_paths'.current_setting()
the secrets | from duckdb_secrets()
the memory | from duckdb_memory()
the temporary files | from duckdb_temporary_files()
the functions | from duckdb_functions()
the macros that show outputs | select hot.plain('x')
the database's name | select current_database()
the database's name without brackets | select current_catalog
the schema's name without brackets | select Current_Schema
the user's name without brackets | select user
the statement | select current_query()
the schemas | select current_schemas(true)
a variable | select getvariable('x')
the environment | select getenv('HOME')
the version | select version()
the platform | from pragma_platform()
the storage | from pragma_storage_info('hot.tail')
the plan | explain from events
the plan with its times | explain analyze from events
statistics of a column | select stats(seq) from events
the block size | select get_block_size('memory')
a serialised plan | select json_serialize_plan('from hot.tail')
a path's parts | select parse_path('{own}')
waiting | select sleep_ms(100)
waiting as Postgres does | select pg_sleep(1)
another seed | select setseed(0.5)
a type of DuckDB's own | select 1::parquet_variant
""",
)

EXHAUSTING = _group(
    "exhaust",
    "a process of its own with limits on memory, CPU, time, answer and text",
    """
a padded text | select lpad('x', 2000000000, 'y')
a formatted text | select format('{{:>2000000000}}', 1)
a printed text | select printf('%2000000000d', 1)
a repeated text | select repeat('x', 2000000000)
a repeated text in many rows | select sum(length(repeat(range::varchar, 10000000))) from range(1000)
an edit distance | select levenshtein(repeat('ab', 15000), repeat('ba', 15000))
another edit distance | select damerau_levenshtein(repeat('ab', 15000), repeat('ba', 15000))
a similarity of long texts | select jaccard(repeat('ab', 100000000), repeat('ba', 100000000))
a split by a pattern | select length(string_split_regex(repeat('a', 30000000), '')) from range(50)
a pattern of great depth | select regexp_replace(repeat('a', 50000000), '(a|aa|aaa)*?b', 'x', 'g') from range(20)
a LIKE of many stars | select count(*) from range(2000) where repeat('a', 100000) like repeat('%a', 500) || 'b'
CTEs that double | with {doubling} select count(*) from c21
a long answer | select repeat('x', 100000) from range(10000)
a wide answer | select {columns} from range(1000000)
an answer of lists | select range(1000000) from range(1000)
a list of a billion | select len(range(1000000000))
a list of lists | select list_transform(range(100000), lambda x: range(100000))
a series without end | select count(*) from range(1000000000000) a, range(1000000000000) b
a join without end | select count(*) from range(100000000) a join range(100000000) b on a.range < b.range
a recursion without end | with recursive t(n) as (select 1 union all select n + 1 from t) select count(*) from t
a recursion that grows | with recursive t(n) as (select 'x' union all select n || n from t) select count(*) from t
a long aggregate | select length(string_agg(repeat('x', 1000000), '')) from range(100000)
an aggregate of lists | select len(list(range(1000))) from range(10000000)
a histogram of everything | select cardinality(histogram(range)) from range(1000000000)
a window of everything | select sum(range) over (order by range rows between 100000000 preceding and 100000000 following) from range(1000000000)
a median window | select median(range) over (order by range rows between 100000 preceding and current row) from range(100000000)
a pivot of many columns | from (pivot (select range a, range % 1000 b from range(1000000)) on b in ({thousand}) using list(a))
JSON of great depth | select json_extract(repeat('[', 5000000) || repeat(']', 5000000), '$[0]')
JSON of great width | select json_array_length('[' || repeat('1,', 100000000) || '1]')
a large power | select factorial(33)::hugeint * range from range(1000000000000)
a big number | select repeat('9', 1000000)::bignum * repeat('9', 1000000)::bignum from range(1000)
a map of everything | select map(range(10000000), range(10000000)) from range(100)
hashes without end | select count(sha256(range::varchar)) from range(1000000000000)
a sort of everything | select * from range(10000000000) order by hash(range)
an error in many words | select error(repeat('x', 100000000))
a constant that is folded | select 1 where repeat('x', 1000000000) = repeat('y', 1000000000)
a base of many digits | select length(to_base(range, 2, 1000000)) from range(1000000)
a long text | select '{megabytes}'
a long comment | select 1 /* {megabytes} */
brackets without end | select {brackets}
a long list of values | select {numbers}
""",
)

ATTACKS = [*WRITING, *READING, *TELLING, *EXHAUSTING]
