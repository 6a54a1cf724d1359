"""The ground floor: one append-only event log per tenant, on disk or object store, read by SQL."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .query.reader import connect_duckdb

__all__ = ["connect_duckdb"]


def __getattr__(name: str) -> object:
    # Loaded when asked for: duckdb and pyarrow cost too much for programs that only append.
    if name == "connect_duckdb":
        from .query.reader import connect_duckdb

        return connect_duckdb
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
