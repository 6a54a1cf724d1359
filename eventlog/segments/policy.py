"""Compaction policy: the settings of when segments are merged, erased and removed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CompactionConfig:
    """When segments are merged, erased and removed."""

    fan_in: int = 8
    """So many neighbours of one level become one segment of the next, or as many as fit into it."""
    rows_max: int = 1_000_000
    """Rows of a merged segment."""
    raw_bytes_max: int = 256 * 1024 * 1024
    """Size of a merged segment in memory, uncompressed; merging takes about three times that."""
    erase_delay_s: float = 300.0
    """A tombstone waits so long for others, so that a segment is not rewritten for each."""
    grace_s: float = 60.0
    """Replaced files stay so long for readers of older manifests."""
