"""Log settings: when the hot log is sealed, and who may read it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from dynamic_workflows.eventlog.units import MIB


class LogSettings(BaseModel):
    """How the event log is kept. In a file: the table `log`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    wal_bytes_max: int = Field(default=64 * MIB, ge=4096)
    """Bytes of hot log after which it is sealed into Parquet."""
    seal_age_seconds: float = Field(default=300.0, gt=0)
    """Seconds after which even a small hot log is sealed."""
    log_group: str | None = None
    """A group of the host that may read a log on a disk, by name or number; None: nobody else."""
