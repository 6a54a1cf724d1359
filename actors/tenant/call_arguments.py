"""Call arguments: what the values of a call mean, checked, since its sender may be hostile.

The form of a call was checked when it was decoded (`loaders/protocol/calls.py`).
"""

from __future__ import annotations

import hashlib
import uuid

from dynamic_workflows.eventlog.codec import values
from dynamic_workflows.eventlog.errors import InvalidError
from dynamic_workflows.eventlog.ids import Ids
from dynamic_workflows.loaders.protocol.calls import CreateBatch, NewInstance, Retention

from ..instances import identifiers
from ..instances.decisions import CreateItem

_SECONDS_MAX = 100 * 365 * 86_400.0
_RETENTION_US_MAX = 2**62 - 1


def seconds(value: float | None, name: str) -> float | None:
    """A length of time in seconds, none below 0, or None. Raises InvalidError for NaN."""
    if value is None:
        return None
    if value != value:
        raise InvalidError(f"{name} is a number of seconds, not {value!r}")
    return max(0.0, min(float(value), _SECONDS_MAX))


def value(data: bytes, bytes_max: int) -> bytes:
    """Codec text, proven to be a value."""
    values.check(data, bytes_max)
    return data


def create_items(
    call: CreateBatch, *, pin: str, ids: Ids, bytes_max: int, metadata: bytes | None
) -> list[CreateItem]:
    """The instances that a create asks for, without their code; ids are drawn where none are
    given, by the token where there is one: the same create again means the same instances."""
    workflow = call.workflow or "TenantWorkflow"
    return [
        CreateItem(
            workflow=workflow,
            instance_id=(
                _drawn_id(ids, call.token, place)
                if item.id is None
                else identifiers.check_new_id(item.id)
            ),
            params=value(item.params, bytes_max),
            code_hash="",
            pin=item.pin or pin,
            retention=_retention(item.retention),
            metadata=metadata,
            token=call.token,
        )
        for place, item in enumerate(_items(call))
    ]


def _drawn_id(ids: Ids, token: str | None, place: int) -> str:
    if token is None:
        return ids.uuid()
    drawn = hashlib.blake2b(f"{token}/{place}".encode(), digest_size=16).digest()
    return str(uuid.UUID(bytes=drawn, version=4))


def _items(call: CreateBatch) -> list[NewInstance]:
    identifiers.check_batch(call.items)
    return call.items


def _retention(retention: Retention | None) -> dict[str, int] | None:
    if retention is None:
        return None
    if not all(0 <= us <= _RETENTION_US_MAX for us in retention.values()):
        raise InvalidError("retention holds success_us and error_us, in microseconds")
    return {str(name): us for name, us in retention.items()}
