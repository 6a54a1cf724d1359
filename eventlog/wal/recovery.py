"""Recovery: reads the newest manifest and the WAL, and so finds what a log consists of.

Owners use it when they open a log, and readers that own nothing while an owner writes. Nothing here
changes a byte.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import Corrupt
from ..events import Row
from ..manifest import Manifest, decode_manifest, hash_of, manifest_key, manifest_prefix, version_of
from ..store.base import Entries, NotFound, Store
from ..store.read_requests import Steps, list_entries, read_whole, run_reading, run_reading_blocking
from .format import Block, TornTail, decode_rows
from .scan import Displaced, Position, WalScan

READ_TRIES_MAX = 20

__all__ = [
    "LatestManifest",
    "LogSnapshot",
    "TailRows",
    "fresh",
    "newest_manifest",
    "newest_manifest_blocking",
    "newest_version",
    "read_tail",
    "snapshot_steps",
]


@dataclass(frozen=True, slots=True)
class LatestManifest:
    """The newest manifest of a stream, and the hash of its file."""

    manifest: Manifest
    sha256: str


def fresh(stream: str, tenant_id: str) -> LatestManifest:
    """Return the first manifest of a stream that has none."""
    return LatestManifest(Manifest(stream=stream, tenant_id=tenant_id), "")


def newest_version(entries: Entries) -> int:
    """Return the highest version in a listing; 0 when there is none. Other files are ignored."""
    return max((version_of(entry.key) or 0 for entry in entries), default=0)


def newest_steps(stream: str) -> Steps[LatestManifest | None]:
    """Return the newest manifest, or None for a stream that has none. Raises Corrupt."""
    while True:
        version = newest_version((yield from list_entries(manifest_prefix(stream))))
        if not version:
            return None
        key = manifest_key(stream, version)
        try:
            data = yield from read_whole(key)
        except NotFound:
            continue  # superseded and removed since we listed
        return LatestManifest(decode_manifest(data, key), hash_of(data))


async def newest_manifest(store: Store, stream: str) -> LatestManifest | None:
    """Return the newest manifest, or None for a stream that has none. Raises Corrupt."""
    return await run_reading(store, newest_steps(stream))


def newest_manifest_blocking(store: Store, stream: str) -> LatestManifest | None:
    """Return what `newest_manifest` does."""
    return run_reading_blocking(store, newest_steps(stream))


@dataclass(frozen=True)
class LogSnapshot:
    """A log at one moment: the newest manifest and the scan of the WAL under it."""

    newest: LatestManifest
    scan: WalScan


def snapshot_steps(
    stream: str,
    begin: Callable[[], Callable[[Block], None]],
    *,
    or_fresh: LatestManifest | None = None,
    after: int = 0,
    since: Position | None = None,
    has_segments: bool = False,
) -> Steps[LogSnapshot | None]:
    """Read the newest manifest and the WAL; start again if the owner moved on meanwhile.

    `begin` is called at each start, for what shall take the blocks of rows. A stream without a
    manifest is taken for `or_fresh`, or gives None. `since`: a walk whose rows up to there the
    caller has (they are at most `after`) went so far; what it read is read again only if it must.
    `has_segments`: look also whether every segment is there and has its size. Raises Corrupt.
    """
    newest = (yield from newest_steps(stream)) or or_fresh
    doubted: Corrupt | None = None
    for tries in range(READ_TRIES_MAX):
        if newest is None:
            return None
        if since is not None and not since.is_under(newest.manifest):
            since = None
        scan = WalScan(stream, newest.manifest, begin(), after=after, since=since)
        try:
            yield from scan.steps()
            if has_segments:
                yield from _check_segments(newest.manifest)
            return LogSnapshot(newest, scan)
        except Displaced:
            since = None
        except (Corrupt, NotFound) as error:
            damage = _damage(error)
            again = (yield from newest_steps(stream)) or or_fresh
            # Files that the owner has just sealed and removed look like damage. So may files that
            # it made while we listed or read them: believed is what a second look shows too.
            is_same = again is None or again.manifest.version == newest.manifest.version
            is_believed = is_same and (scan.is_certain or _is_same_place(damage, doubted))
            if is_believed or tries == READ_TRIES_MAX - 1:
                raise damage from None
            newest, doubted = again, damage if is_same else None
    raise AssertionError("the last try returns or raises")


def _check_segments(manifest: Manifest) -> Steps[None]:
    """Check that every segment exists with its size; its content is checked when it is read."""
    wanted = {info.key: info.bytes for info in manifest.segments if info.rows}
    if not wanted:
        return
    entries = yield from list_entries(f"{manifest.stream}/events/")
    found = {entry.key: entry.size for entry in entries}
    for key, size in wanted.items():
        if found.get(key) != size:
            what = f"has {found[key]} bytes instead of {size}" if key in found else "is missing"
            raise Corrupt(
                f"{key} {what}. Nothing was changed: restore the file from a copy",
                path=key,
                offset=min(size, found.get(key, 0)),
            )


def _damage(error: Corrupt | NotFound) -> Corrupt:
    """Return the error for a file that was listed and is missing, with no newer manifest."""
    if isinstance(error, Corrupt):
        return error
    return Corrupt(f"{error.message}, though the log needs it: restore it from a copy", offset=0)


def _is_same_place(damage: Corrupt, other: Corrupt | None) -> bool:
    return other is not None and damage.details == other.details


@dataclass(frozen=True)
class TailRows:
    """The result of reading a tail: the manifest, and the rows above its `sealed_seq`, possibly
    folded."""

    manifest: Manifest
    rows: list[Row]
    last_seq: int
    torn: TornTail | None
    position: Position | None = None
    """Where the next reading may go on."""


def read_tail(
    store: Store, stream: str, *, after: int = 0, since: Position | None = None
) -> TailRows | None:
    """Read the log's tail, without a lock and while an owner writes; None for an unknown stream.

    `rows` has what is above both `after` and the manifest's `sealed_seq`, in seq order. The last
    rows may not be acknowledged yet, and of an owner that was superseded some may vanish again. A
    torn last block is the end. A reader that meets files that the owner has just sealed and removed
    reads the newer manifest and starts again. `since`: the position of a reading that gave rows up
    to `after`; what lies before it is not read again. Raises Corrupt for damage.
    """
    rows: list[Row] = []

    def take(block: Block) -> None:
        rows.extend(decode_rows(block))

    def begin() -> Callable[[Block], None]:
        rows.clear()
        return take

    snapshot = run_reading_blocking(store, snapshot_steps(stream, begin, after=after, since=since))
    if snapshot is None:
        return None
    kept = rows if not after else [row for row in rows if row.seq > after]
    scan = snapshot.scan
    return TailRows(snapshot.newest.manifest, kept, scan.last.last_seq, scan.torn, scan.position)
