"""Compaction: the tail becomes segments, segments become fewer, and what was deleted goes.

Everything here computes a `SegmentSwap` of the segment list and writes the files that it names;
nothing here publishes. The log's owner does one change after the other, while rows are appended:

    change = await seal(store, manifest, rows, ...)       # or: await compact(store, manifest, plan)
    publish(apply(manifest, change, now_us=...))          # Fenced here leaves only orphans behind
    await remove_garbage(...); await sweep(...)           # when their time has come

A deleted instance is a tombstone (`workflow_deleted`): rows of that instance with lower numbers are
invisible from then on. The next erasure rewrites the segments that hold such rows and removes them
and the tombstones in one change. Files that a change replaces are garbage: they stay for readers of
older manifests for `grace_s`, then they are removed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from msgspec import structs

from ..clock import US
from ..events import Row
from ..ids import Ids
from ..manifest import Manifest, SegmentInfo
from ..store.base import Store
from . import segment
from .policy import CompactionConfig

T = TypeVar("T")

# Below this many rows a thread costs more than the work.
_INLINE_ROWS = 2_000

DELETES_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class SegmentSwap:
    """A change of the segment list: segments to remove, and those that replace them, already
    stored."""

    removed: tuple[SegmentInfo, ...] = ()
    added: tuple[SegmentInfo, ...] = ()
    sealed_seq: int = 0
    """What `sealed_seq` rises to, for a change that seals."""
    erased_up_to: int = 0
    """Tombstones up to this number have done their work."""


@dataclass(frozen=True, slots=True)
class CompactionPlan:
    """What to do next: merge these segments into one, or erase what their tombstones name."""

    merge: tuple[SegmentInfo, ...] = ()
    erase: tuple[SegmentInfo, ...] = ()


def apply(manifest: Manifest, change: SegmentSwap, *, now_us: int) -> Manifest:
    """Return the manifest after the change, to be published as the next version; checks that no row
    is lost."""
    gone = set(change.removed)
    assert gone.issubset(manifest.segments), "a change removes what the manifest has"
    kept = [info for info in manifest.segments if info not in gone]
    segments = _without_empty(sorted([*kept, *change.added], key=lambda info: info.seq_min))
    sealed_seq = max(manifest.sealed_seq, change.sealed_seq)
    _check_cover(segments, sealed_seq)
    named = {info.key for info in segments}
    old = [info.key for info in change.removed if info.key and info.key not in named]
    return structs.replace(
        manifest,
        segments=tuple(segments),
        sealed_seq=sealed_seq,
        rows=sum(info.rows for info in segments),
        bytes=sum(info.bytes for info in segments),
        erased=sum(info.erased for info in segments),
        erase_after_us=_erase_after(manifest, change, segments),
        garbage=(*manifest.garbage, *old),
        garbage_us=(*manifest.garbage_us, *([now_us] * len(old))),
    )


def _check_cover(segments: Sequence[SegmentInfo], sealed_seq: int) -> None:
    expected = 1
    for info in segments:
        assert info.seq_min == expected, f"segments leave a gap or overlap at {expected}"
        assert info.rows + info.erased == info.seq_max - info.seq_min + 1, (
            "a row is unaccounted for"
        )
        expected = info.seq_max + 1
    assert expected == sealed_seq + 1, "segments end where the tail begins"


def _without_empty(segments: Iterable[SegmentInfo]) -> list[SegmentInfo]:
    """Merge a range whose rows are all erased, and which has no file, into its neighbour."""
    result: list[SegmentInfo] = []
    for info in segments:
        if result and not (info.rows and result[-1].rows):
            result[-1] = _joined(result[-1], info)
        else:
            result.append(info)
    return result


def _joined(left: SegmentInfo, right: SegmentInfo) -> SegmentInfo:
    full = left if left.rows else right
    return structs.replace(
        full, seq_min=left.seq_min, seq_max=right.seq_max, erased=left.erased + right.erased
    )


def _erase_after(
    manifest: Manifest, change: SegmentSwap, segments: Sequence[SegmentInfo]
) -> int | None:
    waiting = [info.created_us for info in segments if info.tombstones]
    if not waiting:
        return None
    if manifest.erase_after_us is None or change.erased_up_to:
        return min(waiting)
    # A merge gives a tombstone a younger file, which must not put off its erasure.
    return min(manifest.erase_after_us, *waiting)


# -- seal ---------------------------------------------------------------------------------------


async def seal(
    store: Store,
    manifest: Manifest,
    rows: Sequence[Row],
    *,
    seq_max: int,
    ids: Ids,
    now_us: int,
    config: CompactionConfig | None = None,
) -> SegmentSwap:
    """Turn the tail's rows, up to `seq_max`, into durable segments.

    `rows` (folded or not, in order of seq) are all of those above `manifest.sealed_seq`. Rows that
    a tombstone among them deletes are left out; the tombstone stays while older segments may hold
    rows of its instance.
    """
    rows_max = (config or CompactionConfig()).rows_max
    kept = _without_deleted(manifest, rows)
    added: list[SegmentInfo] = []
    seq_min = manifest.sealed_seq + 1
    for start in range(0, max(len(kept), 1), rows_max):
        part = kept[start : start + rows_max]
        following = kept[start + rows_max :][:1]
        part_max = following[0].seq - 1 if following else seq_max

        def work(
            part: Sequence[Row] = part, seq_min: int = seq_min, part_max: int = part_max
        ) -> segment.EncodedSegment:
            table = segment.to_table(manifest.tenant_id, part)
            return segment.seal(table, seq_min=seq_min, seq_max=part_max, now_us=now_us)

        sealed = await _offload(work, len(part))
        added.append(await segment.store_segment(store, manifest.stream, sealed, ids=ids))
        seq_min = part_max + 1
    return SegmentSwap(added=tuple(added), sealed_seq=seq_max)


def _without_deleted(manifest: Manifest, rows: Sequence[Row]) -> Sequence[Row]:
    dead: dict[tuple[str, str], int] = {}
    for row in rows:
        if row.type == segment.TOMBSTONE:
            dead[row.workflow, row.instance_id] = row.seq
    if not dead:
        return rows
    spent = {
        key
        for key in dead
        if not any(
            info.rows and info.instance_min <= key[1] <= info.instance_max
            for info in manifest.segments
        )
    }
    kept = []
    for row in rows:
        key = (row.workflow, row.instance_id)
        seq = dead.get(key, -1)
        if row.seq > seq or (row.seq == seq and key not in spent):
            kept.append(row)
    return kept


async def _offload(work: Callable[[], T], rows: int) -> T:
    return work() if rows < _INLINE_ROWS else await asyncio.to_thread(work)


# -- merge and erase ----------------------------------------------------------------------------


def plan(
    manifest: Manifest, *, now_us: int, config: CompactionConfig, erase_now: bool = False
) -> CompactionPlan | None:
    """Return what is due: an erasure first, else the merge of the lowest level; None if nothing is
    due."""
    due_us = manifest.erase_after_us
    if due_us is not None and (erase_now or now_us - due_us >= config.erase_delay_s * US):
        return CompactionPlan(erase=tuple(info for info in manifest.segments if info.tombstones))
    runs = [list(run) for _, run in groupby(manifest.segments, key=lambda info: info.level)]
    for run in sorted(runs, key=lambda run: run[0].level):
        for start in range(0, len(run) - config.fan_in + 1):
            some = run[start : start + config.fan_in]
            while len(some) > 1 and not _fits(some, config):
                some.pop()
            if len(some) > 1:
                return CompactionPlan(merge=tuple(some))
    return None


def _fits(segments: Sequence[SegmentInfo], config: CompactionConfig) -> bool:
    rows = sum(info.rows for info in segments)
    raw = sum(info.raw_bytes for info in segments)
    return rows <= config.rows_max and raw <= config.raw_bytes_max


async def compact(
    store: Store, manifest: Manifest, plan: CompactionPlan, *, ids: Ids, now_us: int
) -> SegmentSwap:
    """Carry out a plan; holds one merged segment in memory at a time. Raises Corrupt."""
    if plan.erase:
        return await _erase(store, manifest, plan.erase, ids=ids, now_us=now_us)
    parts = [await segment.read(store, info) for info in plan.merge if info.rows]

    def work() -> segment.EncodedSegment:
        tables = [segment.parse(data) for data in parts]
        return segment.seal(
            pa.concat_tables(tables) if tables else segment.SCHEMA.empty_table(),
            seq_min=plan.merge[0].seq_min,
            seq_max=plan.merge[-1].seq_max,
            level=plan.merge[0].level + 1,
            now_us=now_us,
        )

    sealed = await _offload(work, sum(info.rows for info in plan.merge))
    added = await segment.store_segment(store, manifest.stream, sealed, ids=ids)
    return SegmentSwap(removed=plan.merge, added=(added,))


@dataclass(frozen=True)
class _Dead:
    """Deleted instances by key, each with the number up to which its rows are deleted."""

    keys: pa.Array
    seqs: pa.Array

    def mask(self, table: pa.Table) -> pa.ChunkedArray:
        """Return which rows are deleted."""
        place = pc.index_in(_keys(table), value_set=self.keys)
        dead_seq = self.seqs.take(place.combine_chunks())
        return pc.fill_null(pc.less_equal(table.column("seq"), dead_seq), False)


def _keys(table: pa.Table) -> pa.ChunkedArray:
    # Workflow names hold no control character, so the pair cannot be read in two ways.
    return pc.binary_join_element_wise(
        table.column("workflow"), table.column("instance_id"), "\x1f"
    )


async def _erase(
    store: Store,
    manifest: Manifest,
    tombs: Sequence[SegmentInfo],
    *,
    ids: Ids,
    now_us: int,
) -> SegmentSwap:
    dead, newest = await _find_dead(store, tombs)
    removed: list[SegmentInfo] = []
    added: list[SegmentInfo] = []
    for info in manifest.segments:
        if not info.rows or info.seq_min > newest:
            continue
        data = await segment.read(store, info)

        def work(data: bytes = data, info: SegmentInfo = info) -> segment.EncodedSegment | None:
            keys = pq.read_table(
                pa.BufferReader(data),
                columns=["workflow", "instance_id", "seq"],
                use_threads=False,
            )
            mask = dead.mask(keys)
            if not pc.any(mask).as_py():
                return None
            table = segment.parse(data).filter(pc.invert(mask))
            return segment.seal(
                table,
                seq_min=info.seq_min,
                seq_max=info.seq_max,
                level=info.level,
                now_us=now_us,
            )

        sealed = await _offload(work, info.rows)
        if sealed is not None:
            removed.append(info)
            added.append(await segment.store_segment(store, manifest.stream, sealed, ids=ids))
    return SegmentSwap(removed=tuple(removed), added=tuple(added), erased_up_to=newest)


async def _find_dead(store: Store, tombs: Iterable[SegmentInfo]) -> tuple[_Dead, int]:
    """Return the tombstones of these segments, the newest of each instance."""
    parts = []
    for info in tombs:
        data = await segment.read(store, info)
        table = segment.tombstones(data)
        parts.append(pa.table({"key": _keys(table), "seq": table.column("seq")}))
    newest = pa.concat_tables(parts).group_by("key").aggregate([("seq", "max")])
    keys = newest.column("key").combine_chunks()
    seqs = newest.column("seq_max").combine_chunks()
    return _Dead(keys, seqs), pc.max(seqs).as_py()


# -- files that nothing names -------------------------------------------------------------------


def expired(
    manifest: Manifest, *, now_us: int, config: CompactionConfig, all_now: bool = False
) -> tuple[str, ...]:
    """Return the garbage whose grace is over; all of it with `all_now`."""
    return tuple(
        key
        for key, since_us in zip(manifest.garbage, manifest.garbage_us, strict=True)
        if all_now or now_us - since_us >= config.grace_s * US
    )


async def remove_garbage(store: Store, manifest: Manifest, keys: Collection[str]) -> Manifest:
    """Remove these files, then give the manifest that no longer lists them.

    Their names are random and in no segment list, so even a superseded owner may do this.
    """
    names = list(keys)
    for start in range(0, len(names), DELETES_AT_ONCE):
        some = names[start : start + DELETES_AT_ONCE]
        await asyncio.gather(*(store.delete(key) for key in some))
    rest = [
        (key, since_us)
        for key, since_us in zip(manifest.garbage, manifest.garbage_us, strict=True)
        if key not in keys
    ]
    return structs.replace(
        manifest,
        garbage=tuple(key for key, _ in rest),
        garbage_us=tuple(since_us for _, since_us in rest),
    )


async def sweep(
    store: Store, manifest: Manifest, *, is_owner: Callable[[], Awaitable[bool]]
) -> list[str]:
    """Remove segment files that the owner's newest manifest does not name; return their keys.

    Such files are left by a crash, or by an owner that was superseded, between writing and naming.
    Not while a change of this owner is on its way. `is_owner` reads the log's newest manifest: if
    that is still ours after the listing, no file in the listing can be a newer owner's.
    """
    named = {info.key for info in manifest.segments} | set(manifest.garbage)
    found = [entry.key for entry in await store.list(f"{manifest.stream}/events/")]
    orphans = [key for key in found if key not in named]
    if not orphans or not await is_owner():
        return []
    for key in orphans:
        await store.delete(key)
    return orphans


async def live_blobs(store: Store, manifest: Manifest) -> set[str]:
    """Return the blobs that sealed rows name, read from the segments that have any."""
    refs: set[str] = set()
    for info in manifest.segments:
        if info.blobs:
            data = await segment.read(store, info)
            table = pq.read_table(pa.BufferReader(data), columns=["blob"], use_threads=False)
            refs.update(pc.unique(table.column("blob").drop_null()).to_pylist())
    return refs
