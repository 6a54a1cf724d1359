"""Metrics: the samples for operators, of what the parts count anyway.

Names that end in `_total` only grow while a process lives; the others go up and down. This module
knows no collector: `actors/cluster` hands the samples to Ray, which serves them to Prometheus with
`ray_` before each name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from dynamic_workflows.eventlog.sanitize import printable

if TYPE_CHECKING:
    from dynamic_workflows.loaders.isolates.isolate_pool import ProcessIsolates

    from ..tenant.tenant import TenantSupervisor
    from ..timers.wake_service import Overdue, TimerStats
    from .loader import LoaderStats

PUBLISH_S = 10.0
"""Seconds between two looks."""
_PREFIX = "dynamic_workflows_"


class MetricSample(NamedTuple):
    """One metric's value now."""

    name: str
    value: float
    tags: dict[str, str]


DESCRIPTIONS = {
    "isolates": "Isolates that are alive, blank ones included, by the walls they stand behind.",
    "isolates_started_total": "Isolates given to tenant code; warm: taken from the blank ones.",
    "isolates_ended_total": "Isolates that ended, by kind: cpu, wall, memory, silent, stubborn, "
    "unanswered, output, messages, protocol, signal, exit, platform, closed.",
    "zygotes_total": "Zygotes started.",
    "instances": "Instances, by status.",
    "lifetimes": "Instances that are in an isolate.",
    "commits_total": "Batches of rows that are safe and have taken effect.",
    "rows_total": "Rows of the tenant's log, by number.",
    "log_lines_total": "Lines that tenant code printed or logged and that were passed on.",
    "log_lines_dropped_total": "Lines that were too many, and only counted.",
    "tenants": "Tenants, by where they are: open, asleep (timer), resident, pool (loader).",
    "timer_woken_total": "Tenants woken because something was due.",
    "timer_failed_total": "Wake-ups that did not succeed at once.",
    "timer_late_ms_max": "The longest time in ms from a due time to the message that wakes.",
    "timer_overdue": "Tenants that sleep though they are due, counted from the index.",
    "timer_overdue_oldest_seconds": "Seconds since the earliest due time of those; 0: there are "
    "none.",
    "tenants_adopted_total": "Tenants that were assigned a worker process.",
    "tenants_reopened_total": "Tenants opened again after their process was lost.",
    "tenants_evicted_total": "Tenants asked to make room for others.",
}
TAGS = ("tenant", "kind", "status", "walls", "warm", "state")


def full_name(name: str) -> str:
    """Return the name as it is published."""
    return _PREFIX + name


def of_isolates(isolates: ProcessIsolates, tenant_id: str) -> Iterator[MetricSample]:
    """Yield the samples of a supervisor's isolates."""
    tenant = {"tenant": tenant_id}
    counts = isolates.counts
    warm = counts["started_warm"]
    yield MetricSample("isolates", isolates.alive, tenant | {"walls": isolates.level or "none yet"})
    yield MetricSample("isolates_started_total", warm, tenant | {"warm": "yes"})
    yield MetricSample("isolates_started_total", counts["started"] - warm, tenant | {"warm": "no"})
    yield MetricSample("zygotes_total", counts["zygotes"], tenant)
    for name, count in list(counts.items()):
        if name.startswith("ended_"):
            kind = {"kind": name.removeprefix("ended_")}
            yield MetricSample("isolates_ended_total", count, tenant | kind)


def of_tenant(tenant: TenantSupervisor) -> Iterator[MetricSample]:
    """Yield the samples of one tenant."""
    tags = {"tenant": tenant.tenant_id}
    for status, count in tenant.core.counts().items():
        yield MetricSample("instances", count, tags | {"status": status})
    yield MetricSample("lifetimes", tenant.core.live_count(), tags)
    yield MetricSample("commits_total", tenant.commits, tags)
    yield MetricSample("rows_total", tenant.core.last_seq, tags)
    yield MetricSample("log_lines_total", tenant.tails.lines, tags)
    yield MetricSample("log_lines_dropped_total", tenant.tails.lines_dropped, tags)


def of_timer(stats: TimerStats, overdue: Overdue) -> Iterator[MetricSample]:
    """Yield the samples of the timer."""
    yield from _states(open=stats.open, asleep=stats.asleep)
    yield MetricSample("timer_woken_total", stats.woken, {})
    yield MetricSample("timer_failed_total", stats.failed, {})
    yield MetricSample("timer_late_ms_max", stats.late_ms_max, {})
    yield MetricSample("timer_overdue", overdue.count, {})
    yield MetricSample("timer_overdue_oldest_seconds", overdue.oldest_s, {})


def of_loader(stats: LoaderStats) -> Iterator[MetricSample]:
    """Yield the samples of the loader."""
    yield from _states(resident=stats.residents, pool=stats.pool)
    for name in ("adopted", "reopened", "evicted"):
        yield MetricSample(f"tenants_{name}_total", msgspec.structs.asdict(stats)[name], {})


def _states(**counts: int) -> Iterator[MetricSample]:
    for state, count in counts.items():
        yield MetricSample("tenants", count, {"state": state})


def shown(tenant_id: object) -> str:
    """Return a tenant's id as a tag; "" where a process has none yet."""
    return "" if tenant_id is None else printable(str(tenant_id))
