"""Config: every limit and size of a platform, with its default and its unit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from dynamic_workflows.eventlog.query.limits import SQL_BYTES_MAX
from dynamic_workflows.loaders.bundles.code_keys import CodeKeys, checked_keys
from dynamic_workflows.loaders.isolates.interface import Limits
from dynamic_workflows.loaders.sandbox import isolate_uids
from dynamic_workflows.loaders.sdk import durations

from .instances.decisions import CoreConfig

MIB = 1024 * 1024


class Retention(BaseModel):
    """How long ended instances are kept: durations, as a number of ms, text, or a timedelta."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    success: Any = "30 days"
    """After `complete`."""
    error: Any = "30 days"
    """After `errored` and `terminated`."""

    @field_validator("success", "error")
    @classmethod
    def _is_a_duration(cls, value: object) -> object:
        durations.parse_ms(value)
        return value


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


class PlatformConfig(BaseModel):
    """The settings of a platform. Counts are per tenant unless the text says otherwise."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # --- instances
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
    retention: Retention = Retention()
    """How long ended instances are kept."""
    instance_idle_seconds: float = Field(default=5.0, gt=0)
    """Seconds an instance may wait in memory before it is dropped and later replayed."""
    pin: Literal["hash", "latest"] = "hash"
    """Whether an instance keeps the code that it was created with, or follows the newest."""
    erase_within_seconds: float = Field(default=3_600, gt=0)
    """Seconds until nothing of a deleted instance is left in any file."""

    # --- code
    code_ttl_seconds: float = Field(default=60.0, ge=0)
    """Seconds that the loader holds what `load` answered, of the platform's clock."""
    load_timeout_seconds: float = Field(default=60.0, gt=0)
    """Seconds that `load` may take to answer; then it has failed (`code.load_failed`)."""
    packages: tuple[str, ...] = ()
    """Installed packages that tenant code may import beside the standard library."""

    # --- tenants (of the whole platform)
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

    # --- isolation
    isolation: Literal["sandbox", "unsafe-none"] = "sandbox"
    """"sandbox" refuses to start where the walls are missing; "unsafe-none" builds no walls."""
    jail: Literal["auto", "require", "off"] = "auto"
    """Whether isolates get namespaces and a file system of their own."""
    memory_mb: int = Field(default=512, ge=16)
    """MiB of memory that one isolate may use."""
    turn_cpu_seconds: float = Field(default=0.5, gt=0)
    """CPU seconds of one turn of an isolate's event loop."""
    turn_wall_seconds: float = Field(default=5.0, gt=0)
    """Wall seconds of one turn of an isolate's event loop."""
    silent_cpu_seconds: float = Field(default=5.0, gt=0)
    """CPU seconds that an isolate may use without a message to its supervisor."""
    drop_grace_seconds: float = Field(default=5.0, gt=0)
    """Seconds that code may go on after it was told to end: its instance was paused, terminated or
    put to rest, its attempt timed out, its call was cancelled. Then its isolate is ended."""
    tail_replays: bool = False
    """Whether tails get what `run` prints in a replay as well, and printed before; such records
    are marked `replayed`."""
    call_timeout_seconds: float = Field(default=60.0, gt=0)
    """Seconds that a call of an entrypoint may take, what it starts included, and the loading of
    code in an isolate; then the call fails with `limit.exceeded` and is cancelled."""
    calls_in_flight_max: int = Field(default=10_000, ge=1)
    """Calls of bindings in an isolate that have no answer yet; further ones wait."""
    bytes_in_flight_max: int = Field(default=128 * MIB, ge=MIB)
    """Bytes of such calls, of one message, and of what an isolate leaves unread."""
    files_max: int = Field(default=64, ge=16)
    """Open files of one isolate, its own few included."""
    tmp_mb: int = Field(default=0, ge=0)
    """MiB of a private /tmp in memory; more than 0 needs the jail."""
    modules_bytes_max: int = Field(default=64 * MIB, ge=1, le=64 * MIB)
    """Bytes of the modules of one bundle; more is refused with `code.invalid`."""
    output_mb: int = Field(default=256, ge=1)
    """MiB of raw output of one isolate that had to be dropped; 8 MiB a second are forgiven."""
    messages_per_second_max: int = Field(default=20_000, ge=1_000)
    """Messages of one isolate in a second that nobody asked for: logs, repeated idleness."""
    isolates_max: int = Field(default=1, ge=1, le=256)
    """Isolates that one version of a tenant's code may have while it keeps them all busy."""
    isolate_idle_seconds: float = Field(default=30.0, gt=0)
    """Seconds without an instance or a call after which an isolate is closed."""
    warm_isolates: int = Field(default=1, ge=0)
    """Blank isolates that a tenant actor keeps ready."""
    isolate_uids_first: int = Field(default=isolate_uids.FIRST, ge=0, le=isolate_uids.FIRST_MAX)
    """Where the platform is root, each isolate becomes a user of its own: this number plus that of
    its process. So 4,194,304 of them, which must be nobody else's; 0: all become 65534."""
    threads: bool = False
    """Whether sync callbacks run in worker threads of the isolate."""

    code_keys: tuple[SecretStr, ...] = ()
    """Keys that encrypt stored code with its `env` and props, newest first; none: in the open."""

    # --- the event log
    wal_bytes_max: int = Field(default=64 * MIB, ge=4096)
    """Bytes of hot log after which it is sealed into Parquet."""
    seal_age_seconds: float = Field(default=300.0, gt=0)
    """Seconds after which even a small hot log is sealed."""

    log_group: str | None = None
    """A group of the host that may read a log on a disk, by name or number; None: nobody else."""

    # --- queries
    query_timeout_seconds: float = Field(default=60.0, gt=0)
    """Seconds that one SQL query may take; then it is stopped (`query.timed_out`)."""
    query_memory_mb: int = Field(default=1024, ge=16)
    """MiB that DuckDB may work in for each connection; a tenant's answer may hold as much again."""
    sql_bytes_max: int = Field(default=SQL_BYTES_MAX, ge=1)
    """Bytes that the text of a tenant's query may have."""
    query_processes_max: int = Field(default=8, ge=1)
    """Processes that a driver keeps warm for tenants' queries; the one used longest ago goes."""

    tenants: dict[str, TenantLimits] = {}
    """Overrides by tenant id."""

    @field_validator("code_keys", mode="before")
    @classmethod
    def _are_keys(cls, value: object) -> object:
        return tuple(SecretStr(key) for key in checked_keys(value))

    def keys(self) -> CodeKeys:
        """The keys of stored code."""
        return CodeKeys([key.get_secret_value() for key in self.code_keys])

    def of(self, tenant_id: str) -> PlatformConfig:
        """The settings as they hold for one tenant."""
        limits = self.tenants.get(tenant_id)
        if limits is None:
            return self
        changes = {name: value for name, value in limits if value is not None}
        return self.model_copy(update=changes)  # counts what is changed as set

    def limits(self, lower: Mapping[str, int] | None = None) -> Limits:
        """What one isolate may use; of this and `lower` (memory_mb, cpu_ms), the lower holds."""
        lower = lower or {}
        cpu_ms = round(self.turn_cpu_seconds * 1000)
        return Limits(
            memory_mb=min(self.memory_mb, lower.get("memory_mb", self.memory_mb)),
            turn_cpu_ms=min(cpu_ms, lower.get("cpu_ms", cpu_ms)),
            turn_wall_ms=round(self.turn_wall_seconds * 1000),
            silent_cpu_ms=round(self.silent_cpu_seconds * 1000),
            calls_in_flight_max=self.calls_in_flight_max,
            bytes_in_flight_max=self.bytes_in_flight_max,
            files_max=self.files_max,
            tmp_mb=self.tmp_mb,
            modules_bytes_max=self.modules_bytes_max,
            output_mb=self.output_mb,
            messages_per_second_max=self.messages_per_second_max,
        )

    def _burst(self) -> float:
        if self.creates_burst_max is not None:
            return self.creates_burst_max
        is_set = "creates_per_second_max" in self.model_fields_set
        return max(1.0, self.creates_per_second_max) if is_set else 100_000.0

    def core(self, tenant_id: str) -> CoreConfig:
        """What the core of one tenant has to know."""
        mine = self.of(tenant_id)
        return CoreConfig(
            running_max=mine.running_max,
            queued_max=mine.queued_max,
            creates_per_second_max=mine.creates_per_second_max,
            creates_burst_max=mine._burst(),
            steps_max=mine.steps_max,
            waits_max=mine.waits_max,
            value_bytes_max=mine.value_bytes_max,
            instances_max=mine.instances_max,
            schedules_max=mine.schedules_max,
            state_bytes_max=mine.state_bytes_max,
            events_kept_max=mine.events_kept_max,
            events_kept_bytes_max=mine.events_kept_bytes_max,
            events_kept_tenant_max=mine.events_kept_tenant_max,
            events_kept_tenant_bytes_max=mine.events_kept_tenant_bytes_max,
            retention_success_us=durations.parse_ms(mine.retention.success) * 1000,
            retention_error_us=durations.parse_ms(mine.retention.error) * 1000,
            instance_idle_us=round(mine.instance_idle_seconds * 1_000_000),
            pin=mine.pin,
        )
