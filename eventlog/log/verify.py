"""Verify: checks that everything under a log's root is what was written, and reports what is
not.

Reads every byte: CRCs of WAL blocks, the chain of checkpoints between WAL files, SHA-256 of
segments, blobs, code bundles and manifests, the chain of manifests, numbers without gap, totals.
Changes nothing, needs no owner, and may run while owners write. A *problem* is corruption; a
*remark* is something a crash may leave (orphaned files, a torn tail), which maintenance removes by
itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import Corrupt
from ..events import span
from ..manifest import Manifest, SegmentInfo, decode_manifest, hash_of, version_of
from ..store.base import Entry, NotFound, Store
from ..store.open_store import open_store
from ..store.read_requests import run_reading_blocking
from ..wal.format import Block, decode_rows, wal_key
from ..wal.recovery import LatestManifest, fresh, newest_manifest_blocking
from ..wal.scan import WalScan

HASH_DIGITS = 64
TRIES_MAX = 5


@dataclass(frozen=True)
class Problem:
    """One file or record that is not as it was written."""

    path: str
    what: str
    advice: str
    offset: int | None = None

    def __str__(self) -> str:
        if not self.advice:
            return self.what  # an error's message, which says all of it
        return f"{self.path}: {self.what}: {self.advice}"


@dataclass
class Report:
    """The result of a check. Its text has one line a stream, then the problems."""

    root: str
    streams: int = 0
    rows: int = 0
    """Sealed and unsealed, without erased ones."""
    erased: int = 0
    segments: int = 0
    wal_files: int = 0
    blobs: int = 0
    bundles: int = 0
    bytes: int = 0
    """Of all files looked at."""
    problems: list[Problem] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    stream_lines: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether no corruption was found."""
        return not self.problems

    @property
    def lines(self) -> list[str]:
        """The report as text, most important last."""
        total = (
            f"{self.streams} streams, {self.rows} rows ({self.erased} erased) in {self.segments} "
            f"segments and {self.wal_files} WAL files, {self.blobs} blobs, {self.bundles} bundles, "
            f"{self.bytes} bytes"
        )
        verdict = "OK" if self.ok else f"{len(self.problems)} PROBLEMS"
        return [
            *self.stream_lines,
            *(f"remark: {remark}" for remark in self.remarks),
            *(f"PROBLEM: {problem}" for problem in self.problems),
            f"{verdict}: {self.root}: {total}",
        ]

    def __str__(self) -> str:
        return "\n".join(self.lines)


def verify(
    root: str | Path | Store, *, check_bundle: Callable[[bytes, str], object] | None = None
) -> Report:
    """Check everything under the root of a log, and return the report.

    `check_bundle(bytes, content_hash)` raises Corrupt for stored code that is not what its name
    says. Raises Unavailable when the store cannot be read.
    """
    store = open_store(root) if isinstance(root, (str, Path)) else root
    report = Report(store.root)
    entries = store.list_blocking("")
    report.bytes = sum(entry.size for entry in entries)
    code: dict[str, str] = {}
    for stream in _streams(entries):
        report.streams += 1
        for code_hash in _verify_stream(store, stream, report):
            code.setdefault(code_hash, stream)
    if check_bundle is not None:
        _verify_code_is_there(store, code, report)
    for entry in entries:
        if entry.key.startswith("code/"):
            report.bundles += 1
            if check_bundle is not None:
                _verify_bundle(store, entry.key, check_bundle, report)
    if not report.streams:
        report.remarks.append(f"{store.root} holds no log")
    return report


def _streams(entries: Iterable[Entry]) -> list[str]:
    found = set()
    for entry in entries:
        folder, _, name = entry.key.rpartition("/")
        stream, _, kind = folder.rpartition("/")
        if kind in ("manifest", "wal") and version_of(name) is not None and stream:
            found.add(stream)
    return sorted(found)


def _verify_stream(store: Store, stream: str, report: Report) -> set[str]:
    """Check one stream; return the content hashes of the code that its rows name."""
    check = _StreamCheck(store, stream)
    check.run()
    for _ in range(TRIES_MAX - 1):
        if not check.problems:
            break
        # What looks like damage may have been an owner at work while we read: believed is what a
        # second check of the same version finds too.
        before, check = check, _StreamCheck(store, stream)
        check.run()
        believed = [problem for problem in check.problems if problem in before.problems]
        if check.manifest.version == before.manifest.version and believed:
            check.problems = believed
            break
    report.problems += check.problems
    report.remarks += check.remarks
    report.rows += check.rows
    report.erased += check.manifest.erased
    report.segments += len(check.manifest.segments)
    report.wal_files += check.wal_files
    report.blobs += check.blobs
    verdict = "ok" if not check.problems else f"{len(check.problems)} problems"
    report.stream_lines.append(
        f"{stream}: {verdict}: version {check.manifest.version}, epoch {check.manifest.epoch}, "
        f"seq 1 to {check.last_seq}, {check.rows} rows, {len(check.manifest.segments)} segments, "
        f"{check.wal_files} WAL files"
    )
    return check.code


class _StreamCheck:
    """One reading of one stream."""

    def __init__(self, store: Store, stream: str) -> None:
        self.store = store
        self.stream = stream
        self.manifest: Manifest = fresh(stream, "").manifest
        self.problems: list[Problem] = []
        self.remarks: list[str] = []
        self.rows = 0
        self.last_seq = 0
        self.wal_files = 0
        self.blobs = 0
        self.code: set[str] = set()
        """Content hashes of the code that rows name."""
        self._refs: set[str] = set()

    def run(self) -> None:
        try:
            newest = newest_manifest_blocking(self.store, self.stream)
        except Corrupt as error:
            self._damage(error)
            return
        self.manifest = (newest or fresh(self.stream, "")).manifest
        self.last_seq = self.manifest.sealed_seq
        self._check_manifests(newest)
        self._check_segments()
        self._check_wal()
        self._check_blobs()
        self._check_orphans()

    def _damage(self, error: Corrupt) -> None:
        path = str(error.details.get("path", self.stream))
        self.problems.append(Problem(path, error.message, "", error.details.get("offset")))

    def _problem(self, path: str, what: str, advice: str = "restore it from a copy") -> None:
        self.problems.append(Problem(path, what, advice))

    # -- manifests ---------------------------------------------------------------------------

    def _check_manifests(self, newest: LatestManifest | None) -> None:
        """Check that the kept manifests form a chain up to the newest."""
        if newest is None:
            return
        hashes: dict[int, str] = {}
        manifests: dict[int, Manifest] = {}
        for entry in self.store.list_blocking(f"{self.stream}/manifest/"):
            version = version_of(entry.key)
            if version is None or version > newest.manifest.version:
                continue
            try:
                data = self.store.get_blocking(entry.key)
                manifests[version] = decode_manifest(data, entry.key)
                hashes[version] = hash_of(data)
            except NotFound:
                continue
            except Corrupt as error:
                self._damage(error)
        for version, manifest in manifests.items():
            before = manifests.get(version - 1)
            if before is None:
                continue
            path = f"{self.stream}/manifest/{version:020d}"
            if manifest.previous != hashes[version - 1]:
                self._problem(path, "the manifest before it is not the one that it goes on from")
            if manifest.epoch < before.epoch or manifest.sealed_seq < before.sealed_seq:
                self._problem(path, "its epoch or its sealed_seq goes back")

    # -- segments ----------------------------------------------------------------------------

    def _check_segments(self) -> None:
        expected = 1
        key = f"{self.stream}/manifest/{self.manifest.version:020d}"
        for info in self.manifest.segments:
            if info.seq_min != expected:
                self._problem(key, f"segments leave a gap or overlap at {expected}")
            if info.rows + info.erased != info.seq_max - info.seq_min + 1:
                self._problem(key, f"{info.key}: rows and erased do not add up to its range")
            expected = info.seq_max + 1
            if info.rows:
                self._check_segment(info)
        if expected != self.manifest.sealed_seq + 1:
            self._problem(key, f"segments end at {expected - 1}, not {self.manifest.sealed_seq}")
        for name in ("rows", "bytes", "erased"):
            total = sum(getattr(info, name) for info in self.manifest.segments)
            if total != getattr(self.manifest, name):
                self._problem(
                    key, f"it counts {getattr(self.manifest, name)} {name}, segments have {total}"
                )

    def _check_segment(self, info: SegmentInfo) -> None:
        try:
            data = self.store.get_blocking(info.key)
        except NotFound:
            self._problem(info.key, "it is missing, though the manifest names it")
            return
        if len(data) != info.bytes:
            self._problem(info.key, f"it has {len(data)} bytes instead of {info.bytes}")
            return
        if hashlib.sha256(data).hexdigest() != info.sha256:
            self._problem(info.key, "its SHA-256 is not the one in the manifest")
            return
        columns = ["seq", "workflow", "instance_id", "type", "blob", "code_hash"]
        try:
            table = pq.read_table(pa.BufferReader(data), columns=columns, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            self._problem(info.key, f"it is no Parquet file: {error}")
            return
        self.rows += len(table)
        self._refs.update(pc.unique(table.column("blob").drop_null()).to_pylist())
        self.code.update(pc.unique(table.column("code_hash").drop_null()).to_pylist())
        for what in _faults_of_segment(table, info):
            self._problem(info.key, what, "report this: its writer was wrong")

    # -- WAL ---------------------------------------------------------------------------------

    def _check_wal(self) -> None:
        scan = WalScan(self.stream, self.manifest, self._check_block)
        try:
            run_reading_blocking(self.store, scan.steps())
            self.last_seq = scan.last.last_seq
        except Corrupt as error:
            self._damage(error)
        except NotFound as error:
            self._problem(self.stream, error.message)
        self.wal_files = len(scan.files)
        if scan.torn is not None:
            self.remarks.append(
                f"{scan.torn.key}: a torn tail of {scan.torn.bytes} bytes at byte "
                f"{scan.torn.offset}: never acknowledged, passed over by the next owner"
            )

    def _check_block(self, block: Block) -> None:
        expected = block.first_seq
        for row in decode_rows(block):
            if row.seq != expected:
                self._problem(block.key, f"row {row.seq} stands where {expected} belongs")
                return
            expected += span(row)
            if row.blob:
                self._refs.add(row.blob)
            if row.code_hash:
                self.code.add(row.code_hash)
        self.rows += expected - block.first_seq
        if expected != block.last_seq + 1:
            what = f"a block of rows ends at {expected - 1}, its head says {block.last_seq}"
            self._problem(block.key, what)

    # -- blobs and what nothing names --------------------------------------------------------

    def _check_blobs(self) -> None:
        prefix = f"{self.stream}/blobs/"
        found = {e.key.removeprefix(prefix) for e in self.store.list_blocking(prefix)}
        self.blobs = len(found)
        for ref in sorted(self._refs - found):
            self._problem(prefix + ref, "a row names it, and it is missing")
        for ref in sorted(found & self._refs):
            if len(ref) >= HASH_DIGITS:
                self._check_hash(prefix + ref, ref[:HASH_DIGITS])
        unnamed = found - self._refs
        if unnamed:
            self.remarks.append(
                f"{prefix}: {len(unnamed)} blobs that no row names (of appends that failed, or "
                "about to be named): upkeep removes them"
            )

    def _check_hash(self, key: str, sha256: str) -> None:
        try:
            data = self.store.get_blocking(key)
        except NotFound:
            self._problem(key, "it is missing")
            return
        if hashlib.sha256(data).hexdigest() != sha256:
            self._problem(key, "its content does not have the SHA-256 of its name")

    def _check_orphans(self) -> None:
        named = {info.key for info in self.manifest.segments} | set(self.manifest.garbage)
        orphans = [
            entry.key
            for entry in self.store.list_blocking(f"{self.stream}/events/")
            if entry.key not in named
        ]
        for key in orphans:
            self.remarks.append(f"{key}: no manifest names it (a crash before naming): swept later")
        first = wal_key(self.stream, self.manifest.wal_first)
        old = [
            entry
            for entry in self.store.list_blocking(f"{self.stream}/wal/")
            if entry.key < first and version_of(entry.key) is not None
        ]
        if old and self.store.local_path(old[0].key) is not None:
            self.remarks.append(f"{self.stream}: {len(old)} WAL files are sealed: removed later")


def _faults_of_segment(table: pa.Table, info: SegmentInfo) -> list[str]:
    """Yield the ways in which the rows of a segment contradict its description."""
    faults = []
    seqs = table.column("seq")
    if len(seqs) != info.rows:
        faults.append(f"it has {len(seqs)} rows instead of {info.rows}")
    ends = pc.min_max(seqs).as_py()
    if len(seqs) and (ends["min"] < info.seq_min or ends["max"] > info.seq_max):
        faults.append(f"it has rows outside {info.seq_min} to {info.seq_max}")
    if pc.count_distinct(seqs).as_py() != len(seqs):
        faults.append("a number is there twice")
    ids = table.column("instance_id")
    if len(ids) and (ids[0].as_py(), ids[-1].as_py()) != (info.instance_min, info.instance_max):
        faults.append("it is not sorted by instance")
    tombstones = pc.sum(pc.equal(table.column("type"), "workflow_deleted")).as_py() or 0
    if tombstones != info.tombstones:
        faults.append(f"it has {tombstones} tombstones instead of {info.tombstones}")
    return faults


def _verify_code_is_there(store: Store, code: dict[str, str], report: Report) -> None:
    """Check that the code that rows name is stored; listed last, since owners may write."""
    found = {entry.key.rpartition("/")[2] for entry in store.list_blocking("code/")}
    for code_hash in sorted(code.keys() - found):
        what = f"it is missing, and rows of {code[code_hash]} name it"
        report.problems.append(Problem(f"code/{code_hash}", what, "restore it from a copy"))


def _verify_bundle(
    store: Store, key: str, check: Callable[[bytes, str], object], report: Report
) -> None:
    try:
        check(store.get_blocking(key), key.rpartition("/")[2])
    except NotFound:
        return
    except Corrupt as error:
        report.problems.append(Problem(key, error.message, "deploy the code again"))
