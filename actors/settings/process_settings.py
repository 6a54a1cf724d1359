"""Process settings: how many tenants and processes there are, and what each may take."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ProcessSettings(BaseModel):
    """How tenants live in processes, of the whole platform. In a file: the table `actors`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tenants_resident_max: int = Field(default=1_000, ge=1)
    """Tenants that are in memory at once; idle ones make room. An embedded Ray may hold fewer."""
    pool_size: int = Field(default=1, ge=0)
    """Tenant actors that are started ahead, belonging to nobody yet."""
    tenants_per_process: int = Field(default=1_000, ge=1)
    """Tenants that the process of a tenant actor serves, one after the other, before it ends; 1:
    a process never serves a second one."""
    tenant_idle_seconds: float = Field(default=60.0, gt=0)
    """Seconds without work after which a tenant goes to sleep."""
    client_timeout_seconds: float = Field(default=30.0, gt=0)
    """Seconds that a call goes on through restarts of actors before `platform.unavailable`."""
    dashboard: bool = False
    """Whether an embedded Ray starts its dashboard, its agents and its metrics, on 127.0.0.1."""
    tenant_memory_mb: int = Field(default=1024, ge=100)
    """MiB that each tenant actor declares to Ray: what it takes with one tenant at all the default
    limits at once, isolates left out. Lower limits allow for less. An embedded Ray has room for as
    many tenants as usually fit, whatever this says."""
    resources: dict[str, float] = {}
    """Extra Ray resources that each tenant actor asks for, by name."""
