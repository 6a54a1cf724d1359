"""Event settings: how many events are kept until a wait takes them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from dynamic_workflows.eventlog.units import MIB


class EventSettings(BaseModel):
    """What events may take that no wait has taken yet. In a file: the table `events`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    events_kept_max: int = Field(default=10_000, ge=0)
    """Events that one instance keeps, sent to it and not yet taken by a wait; above it the sender
    gets `limit.exceeded`."""
    events_kept_bytes_max: int = Field(default=64 * MIB, ge=0)
    """Bytes of the payloads of such events of one instance; above it `limit.exceeded`."""
    events_kept_tenant_max: int = Field(default=200_000, ge=0)
    """Events that all instances of one tenant keep together; above it `limit.exceeded`."""
    events_kept_tenant_bytes_max: int = Field(default=1024 * MIB, ge=0)
    """Bytes of the payloads of such events of one tenant, which lie in its log; above it
    `limit.exceeded`."""
