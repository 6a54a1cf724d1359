"""Decisions: what the core of a tenant returns for an input; plain data, no behaviour.

They are msgspec structs, which cost a third of a dataclass to make, since each input makes some.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec

from dynamic_workflows.eventlog.events import Row

Key: TypeAlias = tuple[str, str]
"""(workflow, instance id)"""


class Send(msgspec.Struct, frozen=True, gc=False):
    """Send a wire message to the isolate that holds this lifetime."""

    life: int
    message: msgspec.Struct


class DropLife(msgspec.Struct, frozen=True, gc=False):
    """End the lifetime in its isolate (Drop) and forget where it was."""

    life: int


class Finished(msgspec.Struct, frozen=True, gc=False):
    """The run of an instance has ended, or the instance was deleted: wakes the callers of its
    result."""

    key: Key


class Changed(msgspec.Struct, frozen=True, gc=False):
    """The status of an instance changed (introspection, `wait_for_status`)."""

    key: Key


class ForgetBlobs(msgspec.Struct, frozen=True, gc=False):
    """The instance was deleted: nothing of it may be served any more."""

    key: Key


class ReadEvents(msgspec.Struct, frozen=True, gc=False):
    """Read these kept events of an instance from the log, and tell `TenantCore.events_read`."""

    key: Key
    seqs: tuple[int, ...]
    sizes: tuple[int, ...]
    """Bytes of the payload of each."""


Effect: TypeAlias = Send | DropLife | Finished | Changed | ForgetBlobs | ReadEvents


class Decision(msgspec.Struct):
    """Rows to append, then effects to carry out, then the answer to give."""

    rows: list[Row] = []
    effects: list[Effect] = []
    durable: bool = False
    """The effects wait for the disk, not only for the write."""
    answer: Any = None
    secrets: list[tuple[Row, bytes]] = []
    """Rows whose payload hides a sensitive value, with the payload as it really is: the shell
    stores that in a blob with a random name and names it in the row's `blob` before it appends."""


@dataclass(frozen=True, slots=True)
class CoreConfig:
    """The settings of the core: taken from PlatformConfig, with the tenant's overrides applied."""

    running_max: int = 50_000
    queued_max: int = 2_000_000
    creates_per_second_max: float = 300.0
    creates_burst_max: float | None = None
    """Creates that may come at once; None: a second's worth."""
    steps_max: int = 10_000
    waits_max: int = 100_000
    value_bytes_max: int = 64 * 1024 * 1024
    instances_max: int = 150_000
    schedules_max: int = 1_000
    state_bytes_max: int = 120 * 1024 * 1024
    events_kept_max: int = 10_000
    events_kept_bytes_max: int = 64 * 1024 * 1024
    events_kept_tenant_max: int = 200_000
    events_kept_tenant_bytes_max: int = 1024 * 1024 * 1024
    retention_success_us: int = 30 * 86_400 * 1_000_000
    retention_error_us: int = 30 * 86_400 * 1_000_000
    instance_idle_us: int = 5_000_000
    pin: str = "hash"
    lost_in_a_row_max: int = 10


@dataclass(frozen=True, slots=True)
class CreateItem:
    """One instance to create; everything checked by the caller of the core but the state."""

    workflow: str
    instance_id: str
    params: bytes
    code_hash: str
    pin: str = "hash"
    retention: dict[str, int] | None = None
    """{"success_us": …, "error_us": …}, either key may be absent."""
    metadata: bytes | None = None
    trigger: str = "create"
    schedule: bytes | None = None
    token: str | None = None
    """The create's token: a retry with the same token and id is the same create."""
    workflow_name: str | None = None
    """What `run` sees as `event.workflow_name`, where it is not `workflow`."""
