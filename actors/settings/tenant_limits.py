"""Tenant limits: the settings that may differ from tenant to tenant."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from dynamic_workflows.eventlog.units import MIB

from .retention import Retention


class TenantLimits(BaseModel):
    """What may differ from tenant to tenant; None: as the platform's own field says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps_max: int | None = Field(default=None, ge=1)
    running_max: int | None = Field(default=None, ge=1)
    queued_max: int | None = Field(default=None, ge=0)
    creates_per_second_max: float | None = Field(default=None, gt=0)
    creates_burst_max: float | None = Field(default=None, ge=1)
    instance_idle_seconds: float | None = Field(default=None, gt=0)
    turn_cpu_seconds: float | None = Field(default=None, gt=0)
    turn_wall_seconds: float | None = Field(default=None, gt=0)
    value_bytes_max: int | None = Field(default=None, ge=1, le=64 * MIB)
    instances_max: int | None = Field(default=None, ge=1)
    schedules_max: int | None = Field(default=None, ge=0)
    subscriptions_max: int | None = Field(default=None, ge=1)
    results_waiting_max: int | None = Field(default=None, ge=1)
    state_bytes_max: int | None = Field(default=None, ge=64 * 1024)
    events_kept_max: int | None = Field(default=None, ge=0)
    events_kept_bytes_max: int | None = Field(default=None, ge=0)
    events_kept_tenant_max: int | None = Field(default=None, ge=0)
    events_kept_tenant_bytes_max: int | None = Field(default=None, ge=0)
    retention: Retention | None = None
    pin: Literal["hash", "latest"] | None = None
    memory_mb: int | None = Field(default=None, ge=16)
    drop_grace_seconds: float | None = Field(default=None, gt=0)
    call_timeout_seconds: float | None = Field(default=None, gt=0)
    isolates_max: int | None = Field(default=None, ge=1, le=256)
    packages: tuple[str, ...] | None = None
