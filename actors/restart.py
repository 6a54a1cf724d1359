"""Restart: which steps a restart from a step keeps."""

from __future__ import annotations

from typing import Any

from ..eventlog.errors import InstanceError
from .instance import Instance
from .payloads import FromBody
from .steps import DO, SLEEP, WAIT, StepKey

_TYPES = {"do": DO, "sleep": SLEEP, "wait_for_event": WAIT, "waitForEvent": WAIT}


def parse_from(from_: dict[str, Any]) -> FromBody:
    """The target of a restart; InstanceError `instance.cannot_restart` where it can be none."""
    name = from_.get("name")
    count = from_.get("count", 1)
    kind = _TYPES.get(from_.get("type") or "do")
    is_sound = isinstance(name, str) and isinstance(count, int) and not isinstance(count, bool)
    if not is_sound or kind is None or set(from_) - {"name", "count", "type"}:
        raise InstanceError(
            'a restart from a step is given {"name": text, "count": number from 1, "type": "do", '
            f'"sleep" or "wait_for_event"}}, not {from_!r}',
            code="instance.cannot_restart",
        )
    assert isinstance(name, str)
    return FromBody(name, count, kind)


def kept(instance: Instance, target: FromBody) -> list[StepKey]:
    """The steps that started before the target; InstanceError where history does not hold it."""
    step = instance.steps.get((target.type, target.name, target.count))
    if step is None:
        raise InstanceError(
            f"history holds no step {target.name!r} ({target.type}, number {target.count}): "
            "nothing was changed; choose a step of history() or restart from the top",
            code="instance.cannot_restart",
        )
    return [one.key for one in instance.steps.values() if one.index < step.index]
