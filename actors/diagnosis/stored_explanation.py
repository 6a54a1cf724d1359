"""Stored explanation: why an instance is in its status, from the files of its log. Changes
nothing.

The answer is that of a tenant in memory, folded by the same code. It says what no file holds: what
an isolate does right now, and whether the code of an instance that waits to start can be loaded.
"""

from __future__ import annotations

from dynamic_workflows.eventlog.clock import Clock, to_datetime
from dynamic_workflows.eventlog.log.stream_reader import StreamReader
from dynamic_workflows.eventlog.manifest import tenant_stream
from dynamic_workflows.eventlog.store.base import Store
from dynamic_workflows.loaders.protocol.contract import ENDED, PAUSED, QUEUED, RUNNING, WAITING
from dynamic_workflows.loaders.sdk.records import Why

from ..claims import Claim
from ..core.tenant_core import TenantCore
from ..instances.fold import fold
from ..instances.identifiers import check_id, check_workflow_name
from ..instances.index_entry import IndexEntry
from ..instances.row_payloads import decode
from ..settings.platform_config import PlatformConfig
from ..tenant.instance_keys import not_found
from .lateness import LATE_US, lateness


async def explain_stored(
    store: Store,
    tenant_id: str,
    instance_id: str,
    workflow: str,
    *,
    clock: Clock,
    at_work: Claim | None,
) -> Why:
    """Return the code and the sentence; `at_work` is the platform on this log. Raises
    `instance.not_found`."""
    key = (check_workflow_name(workflow), check_id(instance_id))
    rows = await StreamReader(store, tenant_stream(tenant_id)).history(*key)
    core = TenantCore(tenant_id, PlatformConfig().core(tenant_id))
    for row in rows:
        core.apply(row)
    if not core.exists(key):
        raise not_found(tenant_id, instance_id)
    # A value in a blob is null in its row; names, messages and times lie in the rows themselves.
    entry = IndexEntry(key)
    for row in rows:
        fold(entry, row, decode(row))
    if not core.is_loaded(key):
        core.load(key, rows)
    now_us = clock.now_us()
    code, text = core.why(key, now_us)
    remarks = _remarks(entry, now_us, at_work)
    if at_work is not None and _is_late(entry, now_us):
        remarks.append(await lateness(store, tenant_id))
    return Why(code=code, text="; ".join([text, *remarks]))


def _remarks(entry: IndexEntry, now_us: int, at_work: Claim | None) -> list[str]:
    """Return what applies to an instance that is to continue by itself."""
    if entry.status in (*ENDED, PAUSED):
        return []
    found = []
    if at_work is None:
        found.append("no platform is at work on this log, so nothing moves until one connects")
    elif entry.status == QUEUED:
        found.append("whether its code can be loaded is known to the platform alone: why --live")
    due_us = _due_us(entry)
    if due_us is not None and _is_late(entry, now_us):
        due = to_datetime(due_us).isoformat(" ", "seconds")
        late_s = (now_us - due_us) // 1_000_000
        found.append(f"that is overdue: it was due at {due}, {late_s} s ago")
    if at_work is None and entry.status == RUNNING and _has_attempts(entry):
        found.append("attempts that were under way are lost, and are made again")
    return found


def _is_late(entry: IndexEntry, now_us: int) -> bool:
    due_us = _due_us(entry)
    return due_us is not None and now_us - due_us > LATE_US


def _due_us(entry: IndexEntry) -> int | None:
    instance = entry.instance
    if instance is None or entry.status not in (RUNNING, WAITING):
        return None
    return min((s.until_us for s in instance.open.values() if s.until_us is not None), default=None)


def _has_attempts(entry: IndexEntry) -> bool:
    instance = entry.instance
    return instance is not None and any(step.in_flight for step in instance.open.values())
