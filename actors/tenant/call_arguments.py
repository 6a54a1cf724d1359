"""Operations: what the calls of a tenant ask for, checked; whoever sent them may be hostile."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from typing import Any

from dynamic_workflows.eventlog.codec import values
from dynamic_workflows.eventlog.errors import InvalidError, WorkflowsError
from dynamic_workflows.eventlog.ids import Ids
from dynamic_workflows.loaders.protocol.contract import DO, SLEEP, WAIT

from ..instances import identifiers
from ..instances.decisions import CreateItem, Key

_SECONDS_MAX = 100 * 365 * 86_400.0
_ITEM_KEYS = frozenset({"id", "params", "retention", "pin"})
_RETENTION_KEYS = frozenset({"success_us", "error_us"})


def text(args: Mapping[str, Any], name: str) -> str:
    """A text argument."""
    value = args.get(name)
    if not isinstance(value, str):
        raise InvalidError(f"{name} is text, not {type(value).__name__}")
    return value


def optional_text(args: Mapping[str, Any], name: str) -> str | None:
    """A text argument, or None."""
    return None if args.get(name) is None else text(args, name)


def flag(args: Mapping[str, Any], name: str) -> bool:
    """A yes or no, no unless given."""
    value = args.get(name, False)
    if not isinstance(value, bool):
        raise InvalidError(f"{name} is True or False, not {type(value).__name__}")
    return value


def number(args: Mapping[str, Any], name: str, default: int) -> int:
    """A whole number."""
    value = args.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidError(f"{name} is a whole number, not {type(value).__name__}")
    return value


def seconds(args: Mapping[str, Any], name: str) -> float | None:
    """A length of time in seconds, none below 0, or None."""
    value = args.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise InvalidError(f"{name} is a number of seconds, not {value!r}")
    return max(0.0, min(float(value), _SECONDS_MAX))


def value(args: Mapping[str, Any], name: str, bytes_max: int) -> bytes:
    """Codec text, proven to be a value."""
    data = args.get(name)
    if not isinstance(data, bytes):
        raise InvalidError(f"{name} is the text of a value, not {type(data).__name__}")
    values.check(data, bytes_max)
    return data


def workflow(args: Mapping[str, Any]) -> str:
    """The workflow class that is meant."""
    return identifiers.check_workflow_name(args.get("workflow"))


def key(args: Mapping[str, Any]) -> Key:
    """The instance that is meant."""
    return workflow(args), identifiers.check_id(args.get("id"))


def create_items(
    args: Mapping[str, Any],
    *,
    workflow: str,
    code_hash: str,
    pin: str,
    ids: Ids,
    bytes_max: int,
    metadata: bytes | None,
) -> list[CreateItem]:
    """The instances that a create asks for; ids are drawn where none are given, by
    the token where there is one: the same create again means the same instances."""
    token = optional_text(args, "token")
    return [
        CreateItem(
            workflow=workflow,
            instance_id=(
                _drawn_id(ids, token, place)
                if item.get("id") is None
                else identifiers.check_new_id(item.get("id"))
            ),
            params=value(item, "params", bytes_max),
            code_hash=code_hash,
            pin=_pin(item.get("pin"), pin),
            retention=_retention(item.get("retention")),
            metadata=metadata,
            token=token,
        )
        for place, item in enumerate(_items(args))
    ]


def _drawn_id(ids: Ids, token: str | None, place: int) -> str:
    if token is None:
        return ids.uuid()
    drawn = hashlib.blake2b(f"{token}/{place}".encode(), digest_size=16).digest()
    return str(uuid.UUID(bytes=drawn, version=4))


def _items(args: Mapping[str, Any]) -> list[dict[str, Any]]:
    items = list(identifiers.check_batch(args.get("items")))
    for item in items:
        if not isinstance(item, dict) or item.keys() - _ITEM_KEYS:
            raise InvalidError(
                "an item is a dict with id, params, retention and pin", code="batch.invalid"
            )
    return items


def _pin(pin: Any, default: str) -> str:
    if pin is None:
        return default
    if pin not in ("hash", "latest"):
        raise InvalidError(f'pin is "hash" or "latest", not {pin!r}')
    return str(pin)


def _retention(retention: Any) -> dict[str, int] | None:
    if retention is None:
        return None
    is_sound = (
        isinstance(retention, dict)
        and not retention.keys() - _RETENTION_KEYS
        and all(isinstance(us, int) and 0 <= us < 2**62 for us in retention.values())
    )
    if not is_sound:
        raise InvalidError("retention holds success_us and error_us, in microseconds")
    return dict(retention)


def restart_target(args: Mapping[str, Any]) -> dict[str, Any] | None:
    """The step that a restart begins at, or None."""
    target = args.get("from")
    if target is None:
        return None
    if not isinstance(target, dict) or target.get("type") not in (DO, SLEEP, WAIT):
        raise InvalidError(
            "a restart begins at {name, count, type}", code="instance.cannot_restart"
        )
    return {
        "name": text(target, "name"),
        "count": number(target, "count", 1),
        "type": target["type"],
    }


def delete_ids(args: Mapping[str, Any]) -> list[str]:
    """The instances of a batch to delete: all well named, or none is deleted."""
    return [identifiers.check_id(one) for one in identifiers.check_batch(args.get("ids"))]


def statuses(args: Mapping[str, Any]) -> frozenset[str] | None:
    """The statuses that a list is about, or None for all."""
    wanted = args.get("status")
    if wanted is not None and not isinstance(wanted, str | list | tuple):
        raise InvalidError("status is a list of texts", code="status.invalid")
    return identifiers.check_statuses(wanted)


def metadata(args: Mapping[str, Any]) -> bytes | None:
    """The dispatcher's metadata, which only trusted callers can send."""
    data = args.get("metadata")
    if data is not None and not isinstance(data, bytes):
        raise WorkflowsError("metadata travels as codec text")
    return data
