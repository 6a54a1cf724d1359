"""Platform config: every limit and size of a platform, in groups."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, model_validator

from dynamic_workflows.loaders.sdk import durations

from ..instances.decisions import CoreConfig
from .code_settings import CodeSettings
from .event_settings import EventSettings
from .instance_settings import InstanceSettings
from .isolate_settings import IsolateSettings
from .log_settings import LogSettings
from .process_settings import ProcessSettings
from .query_settings import QuerySettings
from .tenant_limits import TenantLimits

GROUPS: dict[str, type[BaseModel]] = {
    "instances": InstanceSettings,
    "events": EventSettings,
    "code": CodeSettings,
    "actors": ProcessSettings,
    "isolates": IsolateSettings,
    "log": LogSettings,
    "queries": QuerySettings,
}
"""The groups by the names of their tables."""


class PlatformConfig(
    InstanceSettings,
    EventSettings,
    CodeSettings,
    ProcessSettings,
    IsolateSettings,
    LogSettings,
    QuerySettings,
):
    """The settings of a platform. Counts are per tenant unless the text says otherwise.

    Every setting has a name of its own, so all of them are given and read at the top level; what
    is read from a mapping or a file may also put each in the table of its group.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tenants: dict[str, TenantLimits] = {}
    """Overrides by tenant id."""

    @model_validator(mode="before")
    @classmethod
    def _open_tables(cls, given: object) -> object:
        return ungrouped(given) if isinstance(given, Mapping) else given

    def of(self, tenant_id: str) -> PlatformConfig:
        """The settings as they hold for one tenant."""
        limits = self.tenants.get(tenant_id)
        if limits is None:
            return self
        changes = {name: value for name, value in limits if value is not None}
        return self.model_copy(update=changes)  # counts what is changed as set

    def core(self, tenant_id: str) -> CoreConfig:
        """What the core of one tenant has to know."""
        mine = self.of(tenant_id)
        return CoreConfig(
            running_max=mine.running_max,
            queued_max=mine.queued_max,
            creates_per_second_max=mine.creates_per_second_max,
            creates_burst_max=mine.creates_burst(),
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


def ungrouped(given: Mapping[object, object]) -> dict[object, object]:
    """The settings with those of the groups' tables at the top level.

    Raises ValueError for a setting that is in another group, or given twice.
    """
    flat = {name: value for name, value in given.items() if name not in GROUPS}
    for table, group in GROUPS.items():
        inner = given.get(table, {})
        if not isinstance(inner, Mapping):
            raise ValueError(f"{table}: a group of settings is a table, not {inner!r}")
        for name, value in inner.items():
            if name not in group.model_fields:
                raise ValueError(f"{table}.{name}: {_where(name)}")
            if name in flat:
                raise ValueError(f"{table}.{name}: it is given twice")
            flat[name] = value
    return flat


def _where(name: object) -> str:
    for table, group in GROUPS.items():
        if name in group.model_fields:
            return f"this setting belongs to the table `{table}`"
    return "there is no setting of this name"
