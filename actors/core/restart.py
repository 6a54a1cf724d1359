"""Restart: which steps a restart from a step keeps, and which rows belong to the present run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dynamic_workflows.eventlog.errors import InstanceError
from dynamic_workflows.eventlog.events import Row
from dynamic_workflows.loaders.protocol.contract import DO, SLEEP, STEP_TYPES, TIMER, WAIT

from ..instances.instance import Instance
from ..instances.row_payloads import FromBody, Restarted, decode
from ..instances.step_state import StepKey


def parse_from(from_: dict[str, Any]) -> FromBody:
    """The target of a restart; InstanceError `instance.cannot_restart` where it can be none."""
    name = from_.get("name")
    count = from_.get("count", 1)
    kind = STEP_TYPES.get(from_.get("type") or "do")
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
    return [
        one.key
        for one in instance.steps.values()
        if one.index < step.index and one.kind != TIMER  # of those the fold takes care
    ]


_KINDS = {"step": DO, "attempt": DO, "sleep": SLEEP, "wait": WAIT}


def present_run(rows: Sequence[Row]) -> list[Row]:
    """The rows of the newest run, after those of steps that every restart since then has kept.

    `rows`: an instance's history, unfolded. Kept steps have their first rows, with their first
    times; what was undone or tried again in a run that is over stays out.
    """
    run = max((row.run for row in rows), default=0)
    kept_by = {
        row.run: set(body.kept or ())
        for row in rows
        if row.type == "workflow_restarted" and isinstance(body := decode(row), Restarted)
    }
    since: dict[StepKey, int] = {}
    for key in kept_by.get(run - 1, ()):
        first = run - 1
        while key in kept_by.get(first - 1, ()):
            first -= 1
        since[key] = first
    return [row for row in rows if row.run == run or since.get(_step_of(row), run) <= row.run]


def _step_of(row: Row) -> StepKey:
    return _KINDS.get(row.type.partition("_")[0], ""), row.step or "", row.count
