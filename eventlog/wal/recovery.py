"""Recovery: what a log consists of, found by reading its newest manifest and its WAL.

Used by owners when they open a log, and by readers that own nothing while an owner writes. Nothing
here changes a byte.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import Corrupt
from ..events import Row
from ..manifest import Manifest, decode_manifest, hash_of, manifest_key, manifest_prefix, version_of
from ..store.base import Entries, NotFound, Store
from ..store.read_requests import Steps, grant, grant_blocking, list_entries, read_whole
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
    "survey_steps",
]


@dataclass(frozen=True, slots=True)
class LatestManifest:
    """The newest manifest of a stream, and the hash of its file."""

    manifest: Manifest
    sha256: str


def fresh(stream: str, tenant_id: str) -> LatestManifest:
    """What a stream without any manifest is."""
    return LatestManifest(Manifest(stream=stream, tenant_id=tenant_id), "")


def newest_version(entries: Entries) -> int:
    """The highest version in a listing; 0 when there is none. Other files are passed over."""
    return max((version_of(entry.key) or 0 for entry in entries), default=0)


def newest_steps(stream: str) -> Steps[LatestManifest | None]:
    """The newest manifest, or None for a stream that has none. Raises Corrupt."""
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
    """The newest manifest, or None for a stream that has none. Raises Corrupt."""
    return await grant(store, newest_steps(stream))


def newest_manifest_blocking(store: Store, stream: str) -> LatestManifest | None:
    """As `newest_manifest`."""
    return grant_blocking(store, newest_steps(stream))


@dataclass(frozen=True)
class LogSnapshot:
    """A log as it was found: the newest manifest and the walk over the WAL under it."""

    newest: LatestManifest
    walk: WalScan


def survey_steps(
    stream: str,
    begin: Callable[[], Callable[[Block], None]],
    *,
    or_fresh: LatestManifest | None = None,
    after: int = 0,
    since: Position | None = None,
    has_segments: bool = False,
) -> Steps[LogSnapshot | None]:
    """Read the newest manifest and the WAL; again from the start if the owner moved on meanwhile.

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
        walk = WalScan(stream, newest.manifest, begin(), after=after, since=since)
        try:
            yield from walk.steps()
            if has_segments:
                yield from _check_segments(newest.manifest)
            return LogSnapshot(newest, walk)
        except Displaced:
            since = None
        except (Corrupt, NotFound) as error:
            damage = _damage(error)
            again = (yield from newest_steps(stream)) or or_fresh
            # Files that the owner has just sealed and removed look like damage. So may files that
            # it made while we listed or read them: believed is what a second look shows too.
            is_same = again is None or again.manifest.version == newest.manifest.version
            is_believed = is_same and (walk.is_certain or _is_same_place(damage, doubted))
            if is_believed or tries == READ_TRIES_MAX - 1:
                raise damage from None
            newest, doubted = again, damage if is_same else None
    raise AssertionError("the last try returns or raises")


def _check_segments(manifest: Manifest) -> Steps[None]:
    """Every segment is there and has its size; its content is checked when it is read."""
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
    """A file that was listed and cannot be found, with no newer manifest, is damage."""
    if isinstance(error, Corrupt):
        return error
    return Corrupt(f"{error.message}, though the log needs it: restore it from a copy", offset=0)


def _is_same_place(damage: Corrupt, other: Corrupt | None) -> bool:
    return other is not None and damage.details == other.details


@dataclass(frozen=True)
class TailRows:
    """What a reader found: the manifest, and the rows above its `sealed_seq`, possibly folded."""

    manifest: Manifest
    rows: list[Row]
    last_seq: int
    torn: TornTail | None
    position: Position | None = None
    """Where the next reading may go on."""


def read_tail(
    store: Store, stream: str, *, after: int = 0, since: Position | None = None
) -> TailRows | None:
    """The log as it is now, without a lock and while an owner writes; None for an unknown stream.

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

    survey = grant_blocking(store, survey_steps(stream, begin, after=after, since=since))
    if survey is None:
        return None
    kept = rows if not after else [row for row in rows if row.seq > after]
    walk = survey.walk
    return TailRows(survey.newest.manifest, kept, walk.last.last_seq, walk.torn, walk.position)
