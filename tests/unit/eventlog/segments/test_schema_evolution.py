"""Schema evolution: logs of every version are read; a reader need not know who wrote them."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from golden_log import GOLDEN, answers
from histories import Writer, opened
from msgspec import structs

from dynamic_workflows.eventlog.clock import VirtualClock
from dynamic_workflows.eventlog.manifest import SCHEMA_VERSION, SegmentInfo
from dynamic_workflows.eventlog.query.reader import Reader
from dynamic_workflows.eventlog.segments import segment
from dynamic_workflows.eventlog.store.base import Store
from dynamic_workflows.eventlog.store.memory import MemoryStore
from dynamic_workflows.eventlog.store.open_store import open_store

VERSIONS = sorted(path.name for path in GOLDEN.glob("v*"))


def test_this_version_has_a_golden_log() -> None:
    assert f"v{SCHEMA_VERSION}" in VERSIONS


@pytest.mark.parametrize("version", VERSIONS)
def test_views_of_a_golden_log_show_what_they_showed_when_it_was_written(version: str) -> None:
    expected = json.loads((GOLDEN / version / "answers.json").read_text())
    assert answers(GOLDEN / version / "log") == expected
    assert len(expected["events"]) > 20


@pytest.mark.parametrize("version", VERSIONS)
async def test_golden_log_opens_and_goes_on(version: str, tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / version / "log", tmp_path / "log")
    store, clock = open_store(tmp_path / "log"), VirtualClock()
    before = json.loads((GOLDEN / version / "answers.json").read_text())["events"]
    acme = [row for row in before if row["tenant_id"] == "acme"]
    async with opened(store, clock=clock) as log:
        history = await log.history("W", "late")
        assert [row.seq for row in history] == [
            row["seq"] for row in acme if row["instance_id"] == "late"
        ]
        (row,) = [row for row in await log.history("W", "done") if row.blob is not None]
        assert row.blob is not None
        assert len(await log.get_blob(row.blob)) == 70_014
        await log.append(Writer(clock, "newer").life())
        await log.seal()
    reader = Reader(store)
    answer = reader.query("select count(*) as n from events where tenant_id = 'acme'")
    assert answer.to_pylist() == [{"n": len(acme) + 7}]
    reader.close()


def with_a_future_column(table: pa.Table) -> pa.Table:
    field = pa.field("colour", pa.string(), metadata={"PARQUET:field_id": "99"})
    return table.append_column(field, pa.array(["red"] * len(table)))


def without_late_columns(table: pa.Table) -> pa.Table:
    return table.drop_columns(["blob", "metadata", "code_hash"])


def reordered(table: pa.Table) -> pa.Table:
    return table.select(list(reversed(table.schema.names)))


def narrower(table: pa.Table) -> pa.Table:
    place = table.schema.get_field_index("seq")
    field = table.schema.field(place).with_type(pa.int32())
    return table.set_column(place, field, table.column(place).cast(pa.int32()))


@pytest.mark.parametrize("kind", ["local", "memory"])
@pytest.mark.parametrize(
    "change", [with_a_future_column, without_late_columns, reordered, narrower]
)
async def test_segment_of_another_version_is_read_beside_ours(
    tmp_path: Path, kind: str, change: Any
) -> None:
    store: Store = open_store(tmp_path) if kind == "local" else MemoryStore("memory://evolution")
    clock = VirtualClock()
    async with opened(store, clock=clock) as log:
        await log.append(Writer(clock, "theirs").life(output=1))
        await log.seal()
        (info,) = log.manifest.segments
        theirs = await rewritten(store, info, change)
        await log.publish(lambda manifest: structs.replace(manifest, segments=(theirs,)))
        await log.append(Writer(clock, "ours").life(output=2))
        await log.seal()
        assert len(log.manifest.segments) == 2
        rows = [row async for batch in log.rows() for row in batch]
        assert [row.seq for row in rows] == list(range(1, 15))
        assert len(await log.history("W", "theirs")) == 7
        reader = Reader(store)
        found = reader.query("select instance_id, output from instances order by 2").to_pylist()
        assert found == [
            {"instance_id": "theirs", "output": "1"},
            {"instance_id": "ours", "output": "2"},
        ]
        assert reader.query("from events").num_rows == 14
        reader.close()


async def rewritten(store: Store, info: SegmentInfo, change: Any) -> SegmentInfo:
    table = change(segment.parse(await store.get(info.key)))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    data = sink.getvalue().to_pybytes()
    key = info.key.replace(".parquet", "0.parquet")
    await store.create(key, data)
    return structs.replace(info, key=key, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
