"""Damage under a query: it is named, and nothing is left out unless that was asked for."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from histories import Writer, opened
from typer.testing import CliRunner, Result

from dynamic_workflows import cli
from dynamic_workflows.eventlog.clock import VirtualClock
from dynamic_workflows.eventlog.errors import Corrupt, QueryError
from dynamic_workflows.eventlog.query.reader import Reader
from dynamic_workflows.eventlog.store.base import Store
from dynamic_workflows.eventlog.store.memory import MemoryStore
from dynamic_workflows.eventlog.store.open_store import open_store

NAMES = ["acme", "it's", "zoo"]
COUNTS = "select tenant_id, count(ts) as n from events group by 1 order by 1"


@pytest.fixture(params=["local", "memory"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """Three tenants, each with sealed rows, a sealed tombstone and hot rows."""
    local = request.param == "local"
    store = open_store(tmp_path / "log") if local else MemoryStore("memory://there")
    clock = VirtualClock()
    for name in NAMES:
        async with opened(store, name, clock=clock) as log:
            gone = Writer(clock, "gone")
            await log.append([*Writer(clock, "cold").life(output="x" * 300), *gone.begin()])
            await log.append(gone.delete())
            await log.seal()
            await log.append(Writer(clock, "hot").life())
    yield store
    await store.close()


def head_of_ts(data: bytearray) -> int:
    """Where the first page of the column `ts` begins: most other bytes are noticed by no query."""
    group = pq.read_metadata(pa.BufferReader(bytes(data))).row_group(0)
    columns = [group.column(place) for place in range(group.num_columns)]
    (offset,) = [one.data_page_offset for one in columns if one.path_in_schema == "ts"]
    return int(offset)


async def flip(store: Store, tenant: str, kind: str) -> str:
    """Change a byte in the middle of the tenant's newest file of a kind; its key."""
    entries = await store.list("tenants/")
    folder = f"tenant={'it%27s' if tenant == NAMES[1] else tenant}/{kind}/"
    (*_, key) = [entry.key for entry in entries if folder in entry.key]
    data = bytearray(await store.get(key))
    data[head_of_ts(data) if kind == "events" else len(data) // 2] ^= 0xFF
    await store.put(key, bytes(data))
    return key


async def test_a_flipped_byte_in_a_segment_is_called_corruption_of_that_file(store: Store) -> None:
    key = await flip(store, "zoo", "events")
    for tenant in (None, "zoo"):
        reader = Reader(store, tenant=tenant)
        with pytest.raises(Corrupt, match="corrupted") as caught:
            reader.query("from events")
        assert caught.value.code == "log.corrupt"
        assert key in caught.value.message
        assert "dynamic-workflows verify" in caught.value.message
        reader.close()


async def test_an_error_of_the_query_itself_stays_one_where_the_log_is_whole(store: Store) -> None:
    reader = Reader(store)
    for sql in ("select error('boom') from events", "select cast('x' as int) from events"):
        with pytest.raises(QueryError) as caught:
            reader.query(sql)
        assert caught.value.code == "query.invalid"
        assert "verify" not in caught.value.message
    reader.close()


@pytest.mark.parametrize("kind", ["manifest", "events", "wal"])
@pytest.mark.parametrize("is_known", [False, True])
async def test_damage_of_one_tenant_is_refused_by_name_or_left_out_when_asked(
    store: Store, kind: str, is_known: bool
) -> None:
    reader = Reader(store)
    whole = reader.query(COUNTS).to_pylist()
    if not is_known:
        reader.close()
        reader = Reader(store)
    healthy = {entry.key: await store.get(entry.key) for entry in await store.list("tenants/")}
    key = await flip(store, "it's", kind)
    with pytest.raises(Corrupt, match="it's") as caught:
        reader.query(COUNTS)
    assert caught.value.tenants == ["it's"]
    assert "skip_damaged=True" in caught.value.message
    for _ in range(2):
        answer = reader.query(COUNTS, skip_damaged=True)
        assert answer.to_pylist() == [row for row in whole if row["tenant_id"] != "it's"]
        assert list(json.loads(answer.schema.metadata[b"left_out"])) == ["it's"]
    with pytest.raises(Corrupt):
        reader.query(COUNTS)
    await store.put(key, healthy[key])
    answer = reader.query(COUNTS, skip_damaged=True)
    assert answer.to_pylist() == whole
    assert b"left_out" not in (answer.schema.metadata or {})
    reader.close()


async def test_the_command_line_names_who_is_left_out_and_serves_the_others(tmp_path: Path) -> None:
    store, clock = open_store(tmp_path / "log"), VirtualClock()
    for name in NAMES:
        async with opened(store, name, clock=clock) as log:
            await log.append(Writer(clock).life())
    await flip(store, "acme", "wal")

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(cli.cli, [*arguments, "--log", str(tmp_path / "log")])

    refused = run("tenants")
    assert isinstance(refused.exception, Corrupt)
    assert "--skip-damaged" in refused.exception.message
    for command in (["tenants"], ["sql", "select tenant_id from instances"]):
        answered = run(*command, "--skip-damaged")
        assert answered.exit_code == 0
        assert "zoo" in answered.stdout
        assert "acme" not in answered.stdout
        assert "tenant 'acme' is left out" in answered.stderr
    for command in (["ls", "zoo"], ["status", "zoo", "one", "--workflow", "W"]):
        assert "one" in run(*command).stdout
    assert isinstance(run("ls", "acme").exception, Corrupt)
