"""Corruption: which segment a failed query failed on, and which logs are left out.

DuckDB says of a flipped byte whatever its decoder met ("Out of buffer"); the hash in the manifest
says which file it was.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from ..errors import Corrupt, QueryError, Unavailable, WorkflowsError
from ..manifest import SegmentInfo, decode_name
from ..store.base import NotFound, Store

if TYPE_CHECKING:
    import pyarrow as pa

PROOF_S = 10.0
"""How long segments are read through after a query that failed for no reason of its own."""
_CHUNK_BYTES = 8 * 1024 * 1024
LEFT_OUT = b"left_out"
"""The key of an answer's metadata under which the tenants are listed that it leaves out."""

# What an answer in batches raises is an OSError whatever happened; the text still says what.
_SAID_BY_DUCKDB = re.compile(r"(?!IO )[A-Z][\w ]* Error: ")
_logger = logging.getLogger("dynamic_workflows.query")


def explain(store: Store, error: Exception, segments: Iterable[SegmentInfo]) -> WorkflowsError:
    """Return Corrupt with the segment that is damaged, or QueryError with the error's own words.

    Reads the segments through, for a bounded time.
    """
    text = str(error)
    until_s = time.monotonic() + PROOF_S
    # The one that the message names, if it names one, is the likeliest.
    for info in sorted(segments, key=lambda info: info.key.rpartition("/")[2] not in text):
        if time.monotonic() > until_s:
            return QueryError(
                f"{text} (if the query is right, the log may be damaged: "
                "`dynamic-workflows verify` shows it)"
            )
        try:
            if not _is_whole(store, info):
                return corrupted(info.key)
        except (NotFound, Unavailable):
            continue  # a merge has moved it, or it cannot be said now
    return QueryError(text)


def _is_whole(store: Store, info: SegmentInfo) -> bool:
    digest = hashlib.sha256()
    for start in range(0, info.bytes, _CHUNK_BYTES):
        length = min(_CHUNK_BYTES, info.bytes - start)
        digest.update(store.get_range_blocking(info.key, start, length))
    return digest.hexdigest() == info.sha256


def corrupted(key: str) -> Corrupt:
    """Return the error for a segment whose bytes have changed."""
    return Corrupt(
        f"{key} is corrupted: its bytes are not those that were written. Restore it from a copy. "
        "`dynamic-workflows verify` shows what is affected",
        path=key,
        offset=0,
    )


def lost(key: str) -> Corrupt:
    """Return the error for a segment that is missing or truncated."""
    return Corrupt(
        f"{key} is missing or cut, though the log needs it: restore it from a "
        "copy. `dynamic-workflows verify` shows what is affected",
        path=key,
        offset=0,
    )


def stream_of(key: str) -> str:
    """Return the tenant's stream to which a file belongs."""
    return "/".join(key.split("/")[:2])


def tenant_of(stream: str) -> str:
    """Return the tenant's id, as far as the stream's name has it."""
    name = stream.rpartition("tenant=")[2]
    return decode_name(name) or name


def refusal(damaged: Mapping[str, Corrupt]) -> Corrupt:
    """Return the error for a query over all tenants that would leave out these."""
    tenants = sorted(map(tenant_of, damaged))
    first = damaged[min(damaged)]
    others = f" and {len(tenants) - 1} more" if len(tenants) > 1 else ""
    return Corrupt(
        f"the log of tenant {tenants[0]!r}{others} is damaged: {first.message}. The other tenants "
        "can be asked without it: skip_damaged=True (--skip-damaged on the command line)",
        **{**first.details, "tenants": tenants},
    )


def is_reading(error: Exception) -> bool:
    """Return whether the error came from reading a file, so that a retry may find the file."""
    import duckdb

    is_raw = isinstance(error, OSError) and not _SAID_BY_DUCKDB.match(str(error))
    return is_raw or isinstance(error, duckdb.IOException)


def is_of_the_query(error: Exception) -> bool:
    """Return whether the statement caused the error, and not a file that it read."""
    import duckdb

    kinds = (
        duckdb.BinderException,
        duckdb.CatalogException,
        duckdb.ConversionException,
        duckdb.InterruptException,
        duckdb.NotImplementedException,
        duckdb.OutOfMemoryException,
        duckdb.OutOfRangeException,
        duckdb.ParserException,
        duckdb.PermissionException,
        duckdb.SyntaxException,
    )
    return isinstance(error, kinds)


def noted(table: pa.Table, damaged: Mapping[str, Corrupt]) -> pa.Table:
    """Return the answer with metadata that names the tenants that it leaves out."""
    if not damaged:
        return table
    tenants = {tenant_of(stream): error.message for stream, error in damaged.items()}
    _logger.warning("an answer leaves out damaged tenants: %s", tenants)
    metadata = {**(table.schema.metadata or {}), LEFT_OUT: json.dumps(tenants).encode()}
    return table.replace_schema_metadata(metadata)
