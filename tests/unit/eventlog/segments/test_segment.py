"""Segments: rows in, the same unfolded rows out, and few pages read for one instance."""

from __future__ import annotations

import random
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from dynamic_workflows.eventlog.errors import Corrupt, InvalidError
from dynamic_workflows.eventlog.events import FOLDED, Row, span, unfold
from dynamic_workflows.eventlog.ids import SeededIds
from dynamic_workflows.eventlog.query import events_sql
from dynamic_workflows.eventlog.segments import segment
from dynamic_workflows.eventlog.store.open_store import open_store

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
BYTES = st.none() | TEXT.map(str.encode)
ROWS = st.lists(
    st.builds(
        Row,
        type=st.sampled_from([*FOLDED, "workflow_queued", "workflow_deleted", "attempt_started"]),
        workflow=TEXT,
        instance_id=TEXT,
        run=st.integers(1, 3),
        ts=st.integers(0, 2**53),
        step=st.none() | TEXT,
        count=st.integers(0, 2**31 - 1),
        attempt=st.integers(0, 3),
        payload=BYTES,
        code_hash=st.none() | TEXT,
        metadata=BYTES,
        blob=st.none() | TEXT,
        epoch=st.integers(0, 2**62),
    ),
    max_size=20,
)


def numbered(rows: list[Row]) -> list[Row]:
    seq = 1
    for row in rows:
        row.seq = seq
        seq += span(row)
    return rows


def sealed(rows: list[Row]) -> segment.EncodedSegment:
    table = segment.to_table("acme", numbered(rows))
    return segment.seal(table, seq_min=1, seq_max=len(table), now_us=0)


@given(ROWS)
def test_what_goes_into_a_segment_comes_out_unfolded_and_sorted(rows: list[Row]) -> None:
    data = sealed(rows).data
    expected = [half for row in rows for half in unfold(row)]
    if not rows:
        assert data == b""
        return
    found = segment.from_table(segment.parse(data))
    # Arrow compares text by its UTF-8 bytes.
    assert found == sorted(
        expected, key=lambda row: (row.instance_id.encode(), row.workflow.encode(), row.seq)
    )


def test_manifest_is_told_what_is_in_the_segment() -> None:
    rows = [
        Row(type="workflow_queued", workflow="W", instance_id="b", ts=5),
        Row(type="step_started", workflow="W", instance_id="a", ts=3, attempt=1, blob="ff"),
        Row(type="workflow_deleted", workflow="W", instance_id="c", ts=9),
    ]
    info = sealed(rows).info
    assert (info.rows, info.erased, info.seq_min, info.seq_max) == (4, 0, 1, 4)
    assert (info.ts_min, info.ts_max) == (3, 9)
    assert (info.instance_min, info.instance_max, info.instances) == ("a", "c", 3)
    assert (info.tombstones, info.blobs) == (1, 1)


def test_file_says_its_schema_version_and_how_it_is_sorted() -> None:
    file = pq.ParquetFile(pa.BufferReader(sealed(life("one")).data))
    assert file.schema_arrow.metadata[b"dynamic_workflows.schema_version"] == b"1"
    order = [column.column_index for column in file.metadata.row_group(0).sorting_columns]
    names = [file.schema_arrow.names[index] for index in order]
    assert names == ["instance_id", "workflow", "seq"]
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"


def test_views_and_segments_agree_on_field_ids() -> None:
    ids = {
        field.name: int(field.metadata[b"PARQUET:field_id"])
        for field in segment.SCHEMA
        if field.name in events_sql.STORED
    }
    assert ids == {name: number for name, (number, _) in events_sql.STORED.items()}


def life(instance_id: str) -> list[Row]:
    names = ("workflow_queued", "workflow_started", "step_started", "step_completed")
    return [
        Row(type=name, workflow="W", instance_id=instance_id, attempt=int("step" in name))
        for name in names
    ]


def test_text_that_is_not_utf8_is_refused_before_anything_is_written() -> None:
    with pytest.raises(InvalidError, match="UTF-8"):
        sealed([structs.replace(life("a")[0], payload=b"\xff")])


async def test_history_of_one_instance_reads_few_row_groups(tmp_path: Path) -> None:
    rng = random.Random(7)
    ids = [str(uuid.UUID(int=rng.getrandbits(128))) for _ in range(20_000)]
    rows = [row for instance_id in ids for row in life(instance_id)]
    rng.shuffle(rows)
    made = sealed(rows)
    store = open_store(tmp_path)
    info = await segment.store_segment(store, "tenants/tenant=a", made, ids=SeededIds(1))
    file = pq.ParquetFile(tmp_path / info.key)
    assert file.metadata.num_row_groups == 4
    wanted = ids[77]
    touched = [
        group
        for group in range(file.metadata.num_row_groups)
        if (stats := file.metadata.row_group(group).column(5).statistics).min <= wanted <= stats.max
    ]
    assert len(touched) == 1
    assert file.metadata.row_group(0).column(5).has_dictionary_page
    found = await segment.read_instance(store, [info], "W", wanted)
    assert found == [half for row in rows if row.instance_id == wanted for half in unfold(row)]
    assert await segment.read_instance(store, [info], "other", wanted) == []


async def test_rows_come_back_in_order_of_seq_from_any_number_on(tmp_path: Path) -> None:
    store, ids = open_store(tmp_path), SeededIds(1)
    rows = numbered([row for name in "dcba" for row in life(name)])
    infos = []
    for half in (rows[8:], rows[:8]):
        table = segment.to_table("acme", half)
        made = segment.seal(
            table, seq_min=half[0].seq, seq_max=half[0].seq + len(table) - 1, now_us=0
        )
        infos.append(await segment.store_segment(store, "s", made, ids=ids))
    for after in (0, 1, 11, 12, 13, 24):
        found = [
            r.seq async for batch in segment.read_rows(store, infos, after=after) for r in batch
        ]
        assert found == list(range(after + 1, 25))


async def test_damaged_segment_is_corrupt_with_its_path(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    info = await segment.store_segment(store, "s", sealed(life("a")), ids=SeededIds(1))
    path = tmp_path / info.key
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(Corrupt) as caught:
        await segment.read(store, info)
    assert caught.value.path == info.key
