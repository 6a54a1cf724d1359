"""Maintenance: what an owner does with its log besides appending: seal, compact, erase, clean
up.

Each change is made in two steps: the files are written, then a manifest is published that names
them. A crash between the two leaves orphaned files, which a later sweep removes.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from msgspec import structs

from .. import manifest as manifests
from ..clock import US
from ..errors import Corrupt
from ..events import Row
from ..manifest import Manifest, decode_manifest, manifest_prefix, version_of
from ..segments import compaction
from ..store.base import NotFound
from ..wal.format import wal_key, wal_prefix
from ..wal.recovery import newest_manifest

if TYPE_CHECKING:
    from .event_log import EventLog

BLOCKS_AT_ONCE = 64


async def seal(log: EventLog) -> None:
    """Move everything appended so far into segments, and drop the WAL files that held it."""
    if not len(log.tail):
        return
    seq_max, wal_first = await log.roll()
    before = log.manifest
    if seq_max <= before.sealed_seq:
        return
    blocks = log.tail.blocks(after=before.sealed_seq, upto=seq_max)
    rows: list[Row] = []
    for start in range(0, len(blocks), BLOCKS_AT_ONCE):
        some = blocks[start : start + BLOCKS_AT_ONCE]
        rows += await asyncio.to_thread(log.decode, some)
    change = await compaction.seal(
        log.store,
        before,
        rows,
        seq_max=seq_max,
        ids=log.ids,
        now_us=log.clock.now_us(),
        config=log.config.compaction,
    )
    now_us = log.clock.now_us()
    used = sorted({block.number for block in blocks}) if not log.is_local else []
    keys = [wal_key(log.stream, number) for number in used]

    def update(manifest: Manifest) -> Manifest:
        changed = compaction.apply(manifest, change, now_us=now_us)
        return structs.replace(
            changed,
            wal_first=wal_first,
            garbage=(*changed.garbage, *keys),
            garbage_us=(*changed.garbage_us, *([now_us] * len(keys))),
        )

    await log.publish(update)
    await log.drop_tail(seq_max)
    blobs = [row.blob for row in rows if row.blob]
    log.blobs.mark_sealed(blobs)
    # Sealing leaves out rows of deleted instances: no row may name their blobs now.
    log.has_dead_blobs = log.has_dead_blobs or bool(blobs)
    await _remove_wal(log)


async def _remove_wal(log: EventLog) -> None:
    """Remove WAL files below the first that is needed. On object stores they become garbage
    instead.

    In ascending order: a superseded owner finds out by its own file's missing name (see
    `LocalWal`), so that one must go before the name that fenced it.
    """
    if not log.is_local:
        return
    first = log.manifest.wal_first
    for entry in await log.store.list(wal_prefix(log.stream)):
        number = version_of(entry.key)
        if number is not None and number < first:
            await log.store.delete(entry.key)


async def maintain(log: EventLog) -> None:
    """Seal if the tail is large or old, then compact and erase what is due, then remove garbage."""
    if _is_seal_due(log):
        await seal(log)
    await _compact(log)
    await _tidy(log)
    if not log.is_swept:
        await _sweep(log)
        log.is_swept = True


async def seal_for_close(log: EventLog) -> None:
    """Seal, erase deleted rows and remove garbage, before the log is closed for a long time."""
    await seal(log)
    await _compact(log, erase_now=True)
    await _tidy(log, all_now=True)


async def _compact(log: EventLog, *, erase_now: bool = False) -> None:
    config = log.config.compaction
    while True:
        now_us = log.clock.now_us()
        plan = compaction.plan(log.manifest, now_us=now_us, config=config, erase_now=erase_now)
        if plan is None or (erase_now and not plan.erase):
            return
        change = await compaction.compact(log.store, log.manifest, plan, ids=log.ids, now_us=now_us)
        await log.publish(partial(compaction.apply, change=change, now_us=log.clock.now_us()))
        if plan.erase and any(info.blobs for info in change.removed):
            log.has_dead_blobs = True


def _is_seal_due(log: EventLog) -> bool:
    if log.tail.bytes > log.config.wal_bytes_max:
        return True
    oldest_us = log.oldest_us
    return oldest_us is not None and log.clock.now_us() - oldest_us >= log.config.seal_age_s * US


async def _tidy(log: EventLog, *, all_now: bool = False) -> None:
    """Remove garbage whose grace is over, and blobs that no row names any more."""
    keys = compaction.expired(
        log.manifest, now_us=log.clock.now_us(), config=log.config.compaction, all_now=all_now
    )
    if keys:
        changed = await compaction.remove_garbage(log.store, log.manifest, keys)
        await log.publish(
            lambda manifest: structs.replace(
                manifest, garbage=changed.garbage, garbage_us=changed.garbage_us
            )
        )
        await _remove_manifests(log, set(keys))
    if log.has_dead_blobs:
        await _collect_blobs(log)
        log.has_dead_blobs = False


async def _remove_manifests(log: EventLog, gone: set[str]) -> None:
    """Remove manifests that name removed files, since they also name instances in them."""
    for entry in await log.store.list(manifest_prefix(log.stream)):
        version = version_of(entry.key)
        if version is None or version >= log.manifest.version:
            continue
        try:
            old = decode_manifest(await log.store.get(entry.key), entry.key)
        except (Corrupt, NotFound):
            continue
        if not gone.isdisjoint(info.key for info in old.segments):
            await log.store.delete(entry.key)


async def _collect_blobs(log: EventLog) -> None:
    """Remove blobs that neither a sealed row nor a row of the tail names."""
    live = await compaction.live_blobs(log.store, log.manifest)
    for start in range(0, len(blocks := log.tail.blocks()), BLOCKS_AT_ONCE):
        rows = await asyncio.to_thread(log.decode, blocks[start : start + BLOCKS_AT_ONCE])
        live.update(row.blob for row in rows if row.blob)
    await log.blobs.collect(live, is_owner=partial(_is_owner, log))


async def _is_owner(log: EventLog) -> bool:
    newest = await newest_manifest(log.store, log.stream)
    return newest is not None and newest.manifest.token == log.token


async def _sweep(log: EventLog) -> None:
    """Remove files that no manifest names, which crashes of earlier owners left, and old
    manifests."""
    await compaction.sweep(log.store, log.manifest, is_owner=partial(_is_owner, log))
    await _collect_blobs(log)
    await _remove_wal(log)
    first = log.manifest.version - manifests.KEPT
    for entry in await log.store.list(manifest_prefix(log.stream)):
        version = version_of(entry.key)
        if version is not None and version <= first:
            await log.store.delete(entry.key)
