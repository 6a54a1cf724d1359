"""Identifiers: checks names of tenants, workflows, instances, event types and schedules."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence
from typing import Any

from dynamic_workflows.eventlog.errors import InvalidError
from dynamic_workflows.loaders.protocol.contract import BATCH_MAX, EVENT_TYPE, STATUSES

_PLAIN = EVENT_TYPE
_ADDRESSABLE = re.compile(r"[a-zA-Z0-9 ,*/#_-]{1,271}")


def is_tenant_id(text: str) -> bool:
    """Return whether a text is a valid tenant id."""
    has_control = any(unicodedata.category(char) in ("Cc", "Cs") for char in text)
    return 1 <= len(text) <= 256 and not has_control


def check_tenant_id(tenant_id: object) -> str:
    """Check for 1 to 256 characters without control characters. Raises `tenant.invalid_id`."""
    if isinstance(tenant_id, str) and is_tenant_id(tenant_id):
        return tenant_id
    raise InvalidError(
        "a tenant id is text of 1 to 256 characters without control characters: "
        f"change {_short(tenant_id)}",
        code="tenant.invalid_id",
    )


def check_workflow_name(name: object) -> str:
    """1 to 64 letters, digits, `_` and `-`, not beginning with `-`. Raises
    `workflow.invalid_name`."""
    if isinstance(name, str) and len(name) <= 64 and _PLAIN.fullmatch(name):
        return name
    raise InvalidError(
        "a workflow's name is 1 to 64 letters, digits, underscores and dashes, and does not begin "
        f"with a dash: change {_short(name)}",
        code="workflow.invalid_name",
    )


def check_new_id(instance_id: object) -> str:
    """1 to 100 letters, digits, `_` and `-`, not beginning with `-`. Raises
    `instance.invalid_id`."""
    if isinstance(instance_id, str) and len(instance_id) <= 100 and _PLAIN.fullmatch(instance_id):
        return instance_id
    raise InvalidError(
        "an instance id is 1 to 100 letters, digits, underscores and dashes, and does not begin "
        f"with a dash: change {_short(instance_id)}",
        code="instance.invalid_id",
    )


def check_id(instance_id: object) -> str:
    """An id that may address an instance, those made by cron included: 1 to 271 characters out of
    letters, digits, space, and `,*/#_-`. Raises `instance.invalid_id`."""
    if isinstance(instance_id, str) and _ADDRESSABLE.fullmatch(instance_id):
        return instance_id
    raise InvalidError(
        "an instance id has 1 to 271 letters, digits, spaces and characters of ,*/#_- : "
        f"check {_short(instance_id)}",
        code="instance.invalid_id",
    )


def check_event_type(event_type: object) -> str:
    """Check for 1 to 100 letters, digits, `_` and `-`. Raises `workflow.invalid_event_type`."""
    if isinstance(event_type, str) and len(event_type) <= 100 and _PLAIN.fullmatch(event_type):
        return event_type
    raise InvalidError(
        "an event type is 1 to 100 letters, digits, underscores and dashes (no dots), and does not "
        f"begin with a dash: change {_short(event_type)}",
        code="workflow.invalid_event_type",
    )


def check_batch(items: object) -> Sequence[object]:
    """Check for a list of 1 to 10,000 items. Raises `batch.invalid`."""
    if not isinstance(items, list | tuple):
        raise InvalidError(
            f"a batch is a list, not {type(items).__name__}: pass a list", code="batch.invalid"
        )
    if not items:
        raise InvalidError("a batch needs at least one item", code="batch.invalid")
    if len(items) > BATCH_MAX:
        raise InvalidError(
            f"a batch has at most {BATCH_MAX} items, not {len(items)}: split it",
            code="batch.invalid",
        )
    return items


def check_statuses(statuses: Collection[str] | None) -> frozenset[str] | None:
    """Check statuses to filter by. Raises `status.invalid`."""
    if statuses is None:
        return None
    given: list[Any] = [statuses] if isinstance(statuses, str) else list(statuses)
    for one in given:
        if not isinstance(one, str) or one not in STATUSES:
            raise InvalidError(
                f"{_short(one)} is no status: use one of {', '.join(sorted(STATUSES))}",
                code="status.invalid",
            )
    return frozenset(given)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
