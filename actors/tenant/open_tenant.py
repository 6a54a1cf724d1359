"""Opening: how a tenant comes into memory: its log, its core, and the shell around both."""

from __future__ import annotations

from collections.abc import Callable

from dynamic_workflows.eventlog.clock import Clock
from dynamic_workflows.eventlog.ids import Ids
from dynamic_workflows.eventlog.log.event_log import EventLog, LogConfig, tenant_stream
from dynamic_workflows.eventlog.segments.policy import CompactionConfig
from dynamic_workflows.eventlog.store.base import Store
from dynamic_workflows.loaders.isolates.interface import Isolates

from ..code.code_resolver import CodeSource
from ..core.tenant_core import TenantCore
from ..settings.platform_config import PlatformConfig
from .tenant import TenantSupervisor


async def open_tenant(
    tenant_id: str,
    *,
    store: Store,
    isolates: Isolates,
    codes: CodeSource,
    clock: Clock,
    ids: Ids,
    config: PlatformConfig,
    has_maintenance: bool = True,
    is_wanted: bool = False,
    claims: Callable[[int], None] = lambda epoch: None,
    above: int = 0,
    prepare: Callable[[TenantCore], None] = lambda core: None,
) -> TenantSupervisor:
    """Become the owner of the tenant's log and go on with its instances.

    `has_maintenance`: seal and compact the log in the background. `is_wanted`: somebody is about to
    create something, so get the newest code ready meanwhile. `claims` is told the epoch that the
    owner is about to have, which is higher than `above`. `prepare` sees the core before anything
    runs, for tests. Raises Corrupt, Fenced or Unavailable when the log cannot be opened.
    """
    mine = config.of(tenant_id)
    log = EventLog(
        store,
        tenant_stream(tenant_id),
        tenant_id,
        clock,
        ids,
        _log_config(mine, auto_seal=has_maintenance),
    )
    core = TenantCore(tenant_id, config.core(tenant_id))
    prepare(core)
    tenant = TenantSupervisor(
        tenant_id,
        log=log,
        core=core,
        isolates=isolates,
        codes=codes,
        clock=clock,
        ids=ids,
        config=mine,
        has_maintenance=has_maintenance,
    )
    try:
        await tenant.open(is_wanted=is_wanted, claims=claims, above=above)
    except BaseException:
        await tenant.close(seal=False)
        raise
    return tenant


def _log_config(config: PlatformConfig, *, auto_seal: bool) -> LogConfig:
    """What is deleted has to leave the log in time, whatever else the log would wait for."""
    within_s = config.erase_within_seconds
    return LogConfig(
        wal_bytes_max=config.wal_bytes_max,
        seal_age_s=min(config.seal_age_seconds, within_s / 4),
        compaction=CompactionConfig(
            erase_delay_s=min(300.0, within_s / 4), grace_s=min(60.0, within_s / 8)
        ),
        auto_seal=auto_seal,
    )
