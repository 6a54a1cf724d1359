"""Instance settings: how many instances there may be, what one may hold, how long it is kept."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from dynamic_workflows.eventlog.units import MIB

from .retention import Retention


class InstanceSettings(BaseModel):
    """What the instances of a tenant may take. In a file: the table `instances`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps_max: int = Field(default=10_000, ge=1)
    """Calls of `step.do` in one lifetime of an instance."""
    waits_max: int = Field(default=100_000, ge=1)
    """Sleeps and waits for events in one lifetime of an instance."""
    running_max: int = Field(default=50_000, ge=1)
    """Instances that run at once; more are `queued`, and waiting ones do not count."""
    queued_max: int = Field(default=2_000_000, ge=0)
    """Instances that may be queued; above it `create` raises `limit.exceeded`."""
    creates_per_second_max: float = Field(default=300.0, gt=0)
    """Creates and restarts in a second, on average; more raise `limit.exceeded`."""
    creates_burst_max: float | None = Field(default=None, ge=1)
    """Creates and restarts that may come at once before the average counts.

    None: 100,000 with the default average, a second's worth where the average is set.
    """
    value_bytes_max: int = Field(default=64 * MIB, ge=1, le=64 * MIB)
    """Bytes of one encoded value: params, payload, result, output."""
    instances_max: int = Field(default=150_000, ge=1)
    """Instances of any status, ended ones that are kept by `retention` among them; above it
    `create` raises `limit.exceeded`. Each takes a kilobyte of the tenant actor's memory."""
    schedules_max: int = Field(default=1_000, ge=0)
    """Cron expressions of all workflows; a call that would set more raises `limit.exceeded`."""
    subscriptions_max: int = Field(default=1_000, ge=1)
    """Calls of `subscribe` that may wait for an event at once; one more raises `limit.exceeded`."""
    results_waiting_max: int = Field(default=20_000, ge=1)
    """Calls of `result` that may wait at once; one more raises `limit.exceeded`."""
    state_bytes_max: int = Field(default=120 * MIB, ge=64 * 1024)
    """Bytes that one run of an instance may hold: its params, results, events and errors, and 1,000
    for each step. What is more fails its step with `limit.exceeded`. A replay is one message, so
    more than `bytes_in_flight_max` is of no use."""
    retention: Retention = Retention()
    """How long ended instances are kept."""
    instance_idle_seconds: float = Field(default=5.0, gt=0)
    """Seconds an instance may wait in memory before it is dropped and later replayed."""
    pin: Literal["hash", "latest"] = "hash"
    """Whether an instance keeps the code that it was created with, or follows the newest."""
    erase_within_seconds: float = Field(default=3_600, gt=0)
    """Seconds until nothing of a deleted instance is left in any file."""

    def creates_burst(self) -> float:
        """Creates and restarts that may come at once."""
        if self.creates_burst_max is not None:
            return self.creates_burst_max
        is_set = "creates_per_second_max" in self.model_fields_set
        return max(1.0, self.creates_per_second_max) if is_set else 100_000.0
