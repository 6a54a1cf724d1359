"""Manifest: the numbered files that say what a log consists of; the newest one rules.

`<stream>/manifest/<20 digits>`: creating the next number is the commit of a change, so two writers
can never both succeed. A manifest is whole in itself (readers need no older one), immutable, and
names only bytes that exist. It is one line of JSON and one line with the SHA-256 of the first.

A row lies in exactly one place for a given manifest: numbers up to `sealed_seq` in `segments`, the
rest in the write-ahead log from `wal/<wal_first>` on.
"""

from __future__ import annotations

import hashlib
from urllib.parse import quote, unquote

import msgspec

from .errors import Corrupt

FORMAT = 1
KEPT = 8
"""How many manifests are kept, for readers and for repairs."""
SCHEMA_VERSION = 1


class SegmentInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One sealed Parquet file: what it covers, and how its bytes are verified.

    It covers the numbers `seq_min` to `seq_max` without gap: `rows` of them are in the file and
    `erased` were removed by deletion or retention, so rows + erased = seq_max - seq_min + 1.
    """

    key: str
    """Under the store's root."""
    rows: int
    erased: int = 0
    bytes: int
    sha256: str
    seq_min: int
    seq_max: int
    ts_min: int = 0
    ts_max: int = 0
    """Microseconds since 1970 of the oldest and the newest row."""
    instance_min: str = ""
    instance_max: str = ""
    instances: int = 0
    level: int = 0
    """0 as sealed; a merge is one above the highest that went in."""
    schema_version: int = SCHEMA_VERSION
    created_us: int = 0
    tombstones: int = 0
    """How many `workflow_deleted` rows are in it."""
    blobs: int = 0
    """How many of its rows name a blob."""
    raw_bytes: int = 0
    """Its size in memory, uncompressed: merges keep this bounded."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a log consists of at one version. `msgspec.structs.replace` makes the next one."""

    format: int = FORMAT
    schema_version: int = SCHEMA_VERSION
    stream: str
    tenant_id: str
    version: int = 0
    epoch: int = 0
    token: str = ""
    """The owner's."""
    write: str = ""
    """A token of this one publication, so that a lost reply can be told from a lost race."""
    previous: str = ""
    """SHA-256 of the manifest before, so that the versions form a chain."""
    published_us: int = 0
    owner: str = ""
    """Who published it, for people; may be empty."""
    sealed_seq: int = 0
    """The highest number that lies in segments (W). Rows above it lie in the WAL."""
    wal_first: int = 1
    """The first WAL number that is needed; names below it may be gone."""
    wal_last: int = 0
    """The highest WAL number known to exist when this was published: it must be there."""
    segments: tuple[SegmentInfo, ...] = ()
    """In order of `seq_min`; together they cover 1 to `sealed_seq` without gap or overlap."""
    rows: int = 0
    bytes: int = 0
    erased: int = 0
    """Totals over `segments`, to check them by."""
    erase_after_us: int | None = None
    """Oldest tombstone whose rows are still in some file (microseconds), if any."""
    garbage: tuple[str, ...] = ()
    """Files that no segment list names any more and that wait for deletion."""
    garbage_us: tuple[int, ...] = ()
    """Since when each of `garbage` waits (microseconds)."""


def tenant_stream(tenant_id: str) -> str:
    """Return the stream of a tenant: `tenants/tenant=<id>`, with the id made safe for any store."""
    return f"tenants/tenant={encode_name(tenant_id)}"


def encode_name(name: str) -> str:
    """Encode a text as one path part of ASCII letters, digits, '-', '_', '%' and inner dots,
    reversibly.

    Ids too long for a file name keep their beginning and get a hash; those cannot be decoded, so
    the manifest's `tenant_id` is the truth.
    """
    encoded = quote(name, safe="-_.").replace("~", "%7E")
    if encoded.startswith("."):
        encoded = f"%2E{encoded[1:]}"
    if encoded.endswith(".") and len(encoded) > 1:
        encoded = f"{encoded[:-1]}%2E"
    if len(encoded) <= 200:
        return encoded
    return f"{encoded[:120]}%%{hashlib.sha256(name.encode()).hexdigest()}"


def decode_name(encoded: str) -> str | None:
    """Return the name that was encoded, or None where only its manifest has it."""
    return None if "%%" in encoded else unquote(encoded)


def manifest_prefix(stream: str) -> str:
    """Return the common prefix of every manifest key of the stream."""
    return f"{stream}/manifest/"


def manifest_key(stream: str, version: int) -> str:
    """Return the key of one version."""
    return f"{stream}/manifest/{version:020d}"


def version_of(key: str) -> int | None:
    """Return the version that a key names, or None if the file is no manifest."""
    name = key.rpartition("/")[2]
    return int(name) if len(name) == 20 and name.isascii() and name.isdigit() else None


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the bytes of the manifest's file."""
    line = msgspec.json.encode(manifest)
    return b"%b\nsha256:%b\n" % (line, hashlib.sha256(line).hexdigest().encode())


_decoder = msgspec.json.Decoder(Manifest)


def decode_manifest(data: bytes, key: str) -> Manifest:
    """Return the manifest in a file; ignores fields that a later version added. Raises Corrupt."""
    line, newline, rest = data.partition(b"\n")
    if not newline or rest != b"sha256:%b\n" % hashlib.sha256(line).hexdigest().encode():
        raise _corrupt(key, "its SHA-256 does not match")
    try:
        manifest = _decoder.decode(line)
    except msgspec.MsgspecError as error:
        raise _corrupt(key, str(error)) from None
    if manifest.format > FORMAT:
        raise Corrupt(
            f"{key} has format {manifest.format}, this version reads up to {FORMAT}: "
            "upgrade dynamic-workflows, then open it again",
            path=key,
            offset=0,
        )
    if key != manifest_key(manifest.stream, manifest.version):
        what = f"it was written as version {manifest.version} of {manifest.stream}"
        raise _corrupt(key, what)
    return manifest


def hash_of(data: bytes) -> str:
    """Return the SHA-256 of a manifest file's bytes, as `previous` of the next version has it."""
    return hashlib.sha256(data).hexdigest()


def _corrupt(key: str, what: str) -> Corrupt:
    return Corrupt(
        f"{key} is damaged ({what}): restore this file from a copy; nothing was changed",
        path=key,
        offset=0,
    )
