"""Query settings: what one SQL query may take."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from dynamic_workflows.eventlog.query.limits import SQL_BYTES_MAX


class QuerySettings(BaseModel):
    """What queries in SQL may take. In a file: the table `queries`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    query_timeout_seconds: float = Field(default=60.0, gt=0)
    """Seconds that one SQL query may take; then it is stopped (`query.timed_out`)."""
    query_memory_mb: int = Field(default=1024, ge=16)
    """MiB that DuckDB may work in for each connection; a tenant's answer may hold as much again."""
    sql_bytes_max: int = Field(default=SQL_BYTES_MAX, ge=1)
    """Bytes that the text of a tenant's query may have."""
    query_processes_max: int = Field(default=8, ge=1)
    """Processes that a driver keeps warm for tenants' queries; the one used longest ago goes."""
