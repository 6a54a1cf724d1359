"""Segments: sealed, sorted runs of event rows in Parquet, written once and never changed.

A segment holds unfolded rows only, sorted by (instance_id, workflow, seq). It gets a random name,
is durable before a manifest names it, and any Parquet reader can read it. The schema only grows:
columns are found by name or field id, so a reader need not know the writer's version.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from msgspec import convert, structs

from ..clock import to_datetime
from ..errors import Corrupt, InvalidError
from ..events import FOLDED, Row, row_bytes
from ..ids import Ids
from ..manifest import SCHEMA_VERSION, SegmentInfo
from ..store.base import Store, create_once

# An instance's history is a handful of row groups, whatever the size of the log: small row groups
# cost 1 % of space and make that reading four times cheaper than the usual 122,880 rows.
ROW_GROUP_ROWS = 32_768
ROW_GROUP_BYTES = 16 * 1024 * 1024
"""Bytes of a row group before compression: it is read whole, for the sake of one row too."""

BATCH_BYTES = 8 * 1024 * 1024
"""Bytes of rows that are made of a segment at a time, roughly."""

TOMBSTONE = "workflow_deleted"

# Rows become columns in slices of this size, with a pause after each: the event loop that appends
# shares the interpreter lock with this thread, and waits for one slice at most.
SLICE_ROWS = 512
_PAUSE_S = 0.000_05


def _field(number: int, name: str, kind: pa.DataType, nullable: bool = True) -> pa.Field:
    return pa.field(name, kind, nullable, metadata={"PARQUET:field_id": str(number)})


SCHEMA = pa.schema(
    [
        _field(1, "tenant_id", pa.string(), False),
        _field(2, "seq", pa.int64(), False),
        _field(3, "epoch", pa.int64(), False),
        _field(4, "ts", pa.timestamp("us", "UTC"), False),
        _field(5, "workflow", pa.string(), False),
        _field(6, "instance_id", pa.string(), False),
        _field(7, "run", pa.int32(), False),
        _field(8, "type", pa.string(), False),
        _field(9, "step", pa.string()),
        _field(10, "count", pa.int32(), False),
        _field(11, "attempt", pa.int32(), False),
        _field(12, "code_hash", pa.string()),
        _field(13, "payload", pa.large_string()),
        _field(14, "metadata", pa.large_string()),
        _field(15, "blob", pa.string()),
    ],
    metadata={"dynamic_workflows.schema_version": str(SCHEMA_VERSION)},
)
"""The columns of every segment, in order. A column is added at the end with the next field id."""

_KEY = [("instance_id", "ascending"), ("workflow", "ascending"), ("seq", "ascending")]
_DICTIONARY = ["tenant_id", "workflow", "instance_id", "type", "step", "code_hash"]
_ENCODINGS = {"seq": "DELTA_BINARY_PACKED", "ts": "DELTA_BINARY_PACKED"}
_FOLDED = pa.array(list(FOLDED))
_STARTS = pa.array([kind for kind in FOLDED if kind.endswith("_started")])
_ERRORS = pa.array([kind for kind in FOLDED if kind.endswith("_errored")])


# -- rows and columns ---------------------------------------------------------------------------


def to_table(tenant_id: str, rows: Sequence[Row]) -> pa.Table:
    """Return unfolded rows as columns of SCHEMA, in the given order; yields the GIL often, for a
    worker thread."""
    slices = []
    for start in range(0, len(rows), SLICE_ROWS):
        slices.append(_unfold(_slice(tenant_id, rows[start : start + SLICE_ROWS])))
        if len(rows) > SLICE_ROWS:
            time.sleep(_PAUSE_S)
    return pa.Table.from_batches(slices, SCHEMA)


def _slice(tenant_id: str, rows: Sequence[Row]) -> pa.RecordBatch:
    columns = [
        pa.array([tenant_id] * len(rows), pa.string()),
        pa.array([row.seq for row in rows], pa.int64()),
        pa.array([row.epoch for row in rows], pa.int64()),
        pa.array([row.ts for row in rows], pa.int64()).cast(SCHEMA.field("ts").type),
        pa.array([row.workflow for row in rows], pa.string()),
        pa.array([row.instance_id for row in rows], pa.string()),
        pa.array([row.run for row in rows], pa.int32()),
        pa.array([row.type for row in rows], pa.string()),
        pa.array([row.step for row in rows], pa.string()),
        pa.array([row.count for row in rows], pa.int32()),
        pa.array([row.attempt for row in rows], pa.int32()),
        pa.array([row.code_hash for row in rows], pa.string()),
        _text([row.payload for row in rows]),
        _text([row.metadata for row in rows]),
        pa.array([row.blob for row in rows], pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def _text(values: list[bytes | None]) -> pa.Array:
    try:
        return pa.array(values, pa.large_binary()).cast(pa.large_string())
    except pa.ArrowInvalid as error:
        raise InvalidError(f"a row's payload or metadata is not UTF-8: {error}") from None


def _unfold(batch: pa.RecordBatch) -> pa.RecordBatch:
    """What `events.unfold` does to each row, for all of them at once."""
    kinds, attempts = batch.column("type"), batch.column("attempt")
    is_folded = pc.and_(pc.greater(attempts, 0), pc.is_in(kinds, value_set=_FOLDED))
    if not is_folded.true_count:
        return batch
    index: list[int] = []
    second: list[bool] = []
    for position, is_two in enumerate(is_folded.to_pylist()):
        index.append(position)
        second.append(False)
        if is_two:
            index.append(position)
            second.append(True)
    places = pa.array(index, pa.int64())
    return _patch(batch.take(places), is_folded.take(places), pa.array(second))


def _patch(batch: pa.RecordBatch, folded: pa.Array, second: pa.Array) -> pa.RecordBatch:
    """Give each half of a folded row its own type, seq, attempt and payload."""
    kinds = batch.column("type")
    is_start = pc.is_in(kinds, value_set=_STARTS)
    attempt_half = pc.and_(folded, pc.equal(second, is_start))
    step_half = pc.and_not(folded, attempt_half)
    # An attempt keeps the payload only where it is the error; a step keeps all.
    empty = pc.and_not(attempt_half, pc.is_in(kinds, value_set=_ERRORS))
    names = pc.replace_substring(kinds, "step_", "attempt_", max_replacements=1)
    changes = {
        "type": pc.if_else(attempt_half, names, kinds),
        "seq": pc.add(batch.column("seq"), second.cast(pa.int64())),
        "attempt": pc.if_else(step_half, pa.scalar(0, pa.int32()), batch.column("attempt")),
        "payload": _blank(batch, "payload", empty),
        "metadata": _blank(batch, "metadata", attempt_half),
        "blob": _blank(batch, "blob", empty),
    }
    columns = [changes.get(field.name, batch.column(field.name)) for field in SCHEMA]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def _blank(batch: pa.RecordBatch, name: str, mask: pa.Array) -> pa.Array:
    column = batch.column(name)
    return pc.if_else(mask, pa.scalar(None, column.type), column)


def from_table(table: pa.Table) -> list[Row]:
    """Return the rows of a table of SCHEMA, in its order."""
    return [
        row
        for batch in table.to_batches(max_chunksize=SLICE_ROWS)
        for row in convert(list(zip(*_values(batch), strict=True)), list[Row])
    ]


def _values(batch: pa.RecordBatch) -> Iterator[list[object]]:
    """Return a list for each field of Row, in the order of its fields."""
    for name in Row.__struct_fields__:
        column = batch.column(name)
        if name == "ts":
            column = column.cast(pa.int64())
        elif name in ("payload", "metadata"):
            column = column.cast(pa.large_binary())
        yield column.to_pylist()


# -- files --------------------------------------------------------------------------------------


def sort(table: pa.Table) -> pa.Table:
    """Return the rows in the order of a segment."""
    return table.sort_by(_KEY)


def to_parquet(table: pa.Table) -> bytes:
    """Return a sorted table as the bytes of a segment."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=_group_rows(table),
        compression="zstd",
        use_dictionary=_DICTIONARY,
        column_encoding=_ENCODINGS,
        sorting_columns=pq.SortingColumn.from_ordering(SCHEMA, _KEY),
        write_page_checksum=True,
        # Ids are random, so every row group's range may hold the one that is asked for.
        bloom_filter_options={"instance_id": {"ndv": _distinct_guess(table), "fpp": 0.01}},
    )
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def _group_rows(table: pa.Table) -> int:
    size: int = table.nbytes
    groups = max(1, -(-size // ROW_GROUP_BYTES))
    return min(ROW_GROUP_ROWS, max(1, -(-len(table) // groups)))


def _distinct_guess(table: pa.Table) -> int:
    # A filter has one size for the whole file: assume that instances are spread evenly.
    groups = max(1, -(-len(table) // _group_rows(table)))
    instances: int = pc.count_distinct(table.column("instance_id")).as_py()
    return max(16, 2 * instances // groups)


@dataclass(frozen=True, slots=True)
class EncodedSegment:
    """A segment before it is stored: its manifest entry, and its bytes."""

    info: SegmentInfo
    data: bytes


def seal(
    table: pa.Table, *, seq_min: int, seq_max: int, level: int = 0, now_us: int
) -> EncodedSegment:
    """Return rows (in any order) as a segment that covers `seq_min` to `seq_max`.

    Numbers of the range that have no row were erased. Without rows there is no file.
    """
    table = sort(table)
    erased = seq_max - seq_min + 1 - len(table)
    assert erased >= 0, "a segment holds no row outside its range"
    info = SegmentInfo(
        key="",
        rows=len(table),
        erased=erased,
        bytes=0,
        sha256="",
        seq_min=seq_min,
        seq_max=seq_max,
        level=level,
        schema_version=SCHEMA_VERSION,
        created_us=now_us,
    )
    if not info.rows:
        return EncodedSegment(info, b"")
    ts = pc.min_max(table.column("ts").cast(pa.int64())).as_py()
    ids = table.column("instance_id")
    data = to_parquet(table)
    info = structs.replace(
        info,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        ts_min=ts["min"],
        ts_max=ts["max"],
        instance_min=ids[0].as_py(),
        instance_max=ids[-1].as_py(),
        instances=pc.count_distinct(ids).as_py(),
        tombstones=pc.sum(pc.equal(table.column("type"), TOMBSTONE)).as_py(),
        blobs=len(table) - table.column("blob").null_count,
        raw_bytes=table.nbytes,
    )
    return EncodedSegment(info, data)


async def store_segment(
    store: Store, stream: str, sealed: EncodedSegment, *, ids: Ids
) -> SegmentInfo:
    """Store a segment under a fresh name; durable on return, named by no manifest yet.

    The date in the name is that of the newest row: rows of several days may lie together.
    """
    if not sealed.info.rows:
        return sealed.info
    date = to_datetime(sealed.info.ts_max).date().isoformat()
    key = f"{stream}/events/date={date}/{ids.token()}.parquet"
    await create_once(store, key, sealed.data)
    return structs.replace(sealed.info, key=key)


async def read(store: Store, info: SegmentInfo) -> bytes:
    """Return a segment's bytes, verified by length and hash; raises Corrupt."""
    data = await store.get(info.key)
    if len(data) != info.bytes or hashlib.sha256(data).hexdigest() != info.sha256:
        raise Corrupt(
            f"{info.key} is not what its manifest names: restore it from a copy",
            path=info.key,
            offset=0,
        )
    return data


def parse(data: bytes) -> pa.Table:
    """Return a segment's bytes as a table of SCHEMA, whatever version wrote them."""
    return conform(pq.read_table(pa.BufferReader(data), use_threads=False))


def conform(table: pa.Table) -> pa.Table:
    """Return the columns of SCHEMA: those that the writer lacked are null, others are dropped."""
    columns = []
    for field in SCHEMA:
        if field.name in table.schema.names:
            column = table.column(field.name)
            columns.append(column if column.type == field.type else column.cast(field.type))
        else:
            columns.append(pa.chunked_array([pa.nulls(len(table), field.type)]))
    return pa.table(columns, schema=SCHEMA)


def tombstones(data: bytes) -> pa.Table:
    """Return tenant_id, workflow, instance_id and seq of a segment's `workflow_deleted` rows."""
    table = pq.read_table(
        pa.BufferReader(data),
        columns=["tenant_id", "workflow", "instance_id", "seq", "type"],
        filters=[("type", "=", TOMBSTONE)],
        use_threads=False,
    )
    return table.drop_columns("type")


# -- reading by instance and in order -----------------------------------------------------------


async def read_rows(
    store: Store, segments: Iterable[SegmentInfo], *, after: int = 0, batch_rows: int = 10_000
) -> AsyncIterator[list[Row]]:
    """Yield all sealed rows with `seq > after` by seq; holds one segment in memory at a time."""
    for info in sorted(segments, key=lambda info: info.seq_min):
        if not info.rows or info.seq_max <= after:
            continue
        table = parse(await read(store, info))
        if info.seq_min <= after:
            table = table.filter(pc.greater(table.column("seq"), after))
        # Taken portion by portion: a sorted copy of it all would double what it takes.
        order = pc.sort_indices(table, [("seq", "ascending")])
        at_once = min(batch_rows, max(1, BATCH_BYTES * len(table) // max(table.nbytes, 1)))
        for start in range(0, len(table), at_once):
            yield from_table(table.take(order.slice(start, at_once)))


async def read_instance(
    store: Store, segments: Iterable[SegmentInfo], workflow: str, instance_id: str
) -> list[Row]:
    """Return the sealed rows of one instance in order of seq, out of few row groups."""
    rows: list[Row] = []
    for info in segments:
        if info.rows and info.instance_min <= instance_id <= info.instance_max:
            source = await _source(store, info)
            rows += from_table(find_instance(source, workflow, instance_id))
    rows.sort(key=lambda row: row.seq)
    return rows


async def read_instances(
    store: Store,
    segments: Iterable[SegmentInfo],
    keys: Collection[tuple[str, str]],
    trim: Callable[[Row], Row] | None = None,
) -> dict[tuple[str, str], list[Row]]:
    """The sealed rows of many instances (workflow, instance_id), each in order of seq, as `trim`
    leaves them.

    Each segment is read once for all of them, in a thread.
    """
    found: dict[tuple[str, str], list[Row]] = {key: [] for key in keys}
    ids = sorted({instance_id for _, instance_id in keys})
    for info in segments:
        if not info.rows or not _overlaps(ids, info.instance_min, info.instance_max):
            continue
        source = await _source(store, info)
        for row in await asyncio.to_thread(_find_instances, source, ids, trim):
            rows = found.get((row.workflow, row.instance_id))
            if rows is not None:
                rows.append(row)
    for rows in found.values():
        rows.sort(key=lambda row: row.seq)
    return found


def _find_instances(source: object, ids: list[str], trim: Callable[[Row], Row] | None) -> list[Row]:
    """Return the rows of these instances (sorted ids) of any workflow, pruned by row group."""
    wanted = pa.array(ids, pa.string())
    rows: list[Row] = []
    with pq.ParquetFile(source) as file:
        place = file.schema_arrow.get_field_index("instance_id")
        for group in range(file.metadata.num_row_groups):
            statistics = file.metadata.row_group(group).column(place).statistics
            has_range = statistics is not None and statistics.has_min_max
            if has_range and not _overlaps(ids, statistics.min, statistics.max):
                continue
            table = conform(file.read_row_group(group, use_threads=False))
            mask = pc.is_in(table.column("instance_id"), value_set=wanted)
            some = from_table(table.filter(mask))
            rows += some if trim is None else map(trim, some)
    return rows


async def read_page(
    store: Store,
    segments: Iterable[SegmentInfo],
    key: tuple[str, str],
    after: int,
    bytes_max: int,
) -> tuple[list[Row], bool]:
    """The sealed rows of one instance above `after`, in order of seq, up to the one that fills
    `bytes_max`; and whether that left something out."""
    found: list[Row] = []
    left = bytes_max
    for info in sorted(segments, key=lambda info: info.seq_min):
        if not info.rows or info.seq_max <= after:
            continue
        if not info.instance_min <= key[1] <= info.instance_max:
            continue
        if left < 0:
            return found, True
        source = await _source(store, info)
        rows, is_cut = await asyncio.to_thread(_find_page, source, key, after, left)
        found += rows
        left -= sum(map(row_bytes, rows))
        if is_cut:
            return found, True
    return found, False


def _find_page(
    source: object, key: tuple[str, str], after: int, bytes_max: int
) -> tuple[list[Row], bool]:
    found: list[Row] = []
    with pq.ParquetFile(source) as file:
        place = file.schema_arrow.get_field_index("instance_id")
        for group in range(file.metadata.num_row_groups):
            if not _may_hold(file.metadata.row_group(group).column(place).statistics, key[1]):
                continue
            table = conform(file.read_row_group(group, use_threads=False))
            mask = pc.and_(
                pc.and_(
                    pc.equal(table.column("instance_id"), key[1]),
                    pc.equal(table.column("workflow"), key[0]),
                ),
                pc.greater(table.column("seq"), after),
            )
            for row in from_table(table.filter(mask)):
                if bytes_max < 0:
                    return found, True
                found.append(row)
                bytes_max -= row_bytes(row)
    return found, False


async def read_numbered(
    store: Store, segments: Iterable[SegmentInfo], wanted: dict[int, str]
) -> dict[int, Row]:
    """Return the sealed rows with these numbers (seq -> instance id), by seq."""
    found: dict[int, Row] = {}
    for info in segments:
        seqs = [seq for seq in wanted if info.rows and info.seq_min <= seq <= info.seq_max]
        ids = sorted({wanted[seq] for seq in seqs})
        if seqs and _overlaps(ids, info.instance_min, info.instance_max):
            source = await _source(store, info)
            for row in await asyncio.to_thread(_find_numbered, source, ids, seqs):
                found[row.seq] = row
    return found


def _find_numbered(source: object, ids: list[str], seqs: list[int]) -> list[Row]:
    is_wanted = pc.field("instance_id").isin(ids) & pc.field("seq").isin(seqs)
    return from_table(conform(pq.read_table(source, filters=is_wanted, use_threads=False)))


def _overlaps(ids: list[str], least: str, greatest: str) -> bool:
    place = bisect_left(ids, least)
    return place < len(ids) and ids[place] <= greatest


async def _source(store: Store, info: SegmentInfo) -> object:
    path = store.local_path(info.key)
    if path is not None:
        return pa.memory_map(str(path))
    return pa.BufferReader(await store.get(info.key))


def find_instance(source: object, workflow: str, instance_id: str) -> pa.Table:
    """Return one instance's rows from a segment (a path or Arrow file), pruned by row group."""
    with pq.ParquetFile(source) as file:
        place = file.schema_arrow.get_field_index("instance_id")
        groups = [
            group
            for group in range(file.metadata.num_row_groups)
            if _may_hold(file.metadata.row_group(group).column(place).statistics, instance_id)
        ]
        table = conform(file.read_row_groups(groups, use_threads=False))
    mask = pc.and_(
        pc.equal(table.column("instance_id"), instance_id),
        pc.equal(table.column("workflow"), workflow),
    )
    return table.filter(mask)


def _may_hold(statistics: Any, value: str) -> bool:
    if statistics is None or not statistics.has_min_max:
        return True
    return bool(statistics.min <= value <= statistics.max)
