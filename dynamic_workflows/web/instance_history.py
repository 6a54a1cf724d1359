"""Instance history: the events of a run, folded into steps with their attempts, waits and times."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..loaders.sdk.records import Event
from .bodies import json_of

OUTPUT_BYTES_MAX = 65_536
"""A larger output is left out of an instance's page; the step's own page has it."""
_ENDS = {
    "completed": "complete",
    "errored": "errored",
    "cancelled": "cancelled",
    "timed_out": "timed_out",
}


def described(events: Iterable[Event]) -> dict[str, object]:
    """Params, times, run and steps of the present run, as an instance's page shows them."""
    facts: dict[str, object] = {
        "params": None, "run": None, "created_at": None, "started_at": None, "ended_at": None,
    }  # fmt: skip
    steps: dict[tuple[str, str, int], dict[str, object]] = {}
    for event in events:
        facts["run"] = event.run
        if event.step is None:
            _of_instance(facts, event)
        else:
            _of_step(steps, event, whole=False)
    facts["steps"] = list(steps.values())
    return facts


def find_step(events: Iterable[Event], name: str, count: int) -> dict[str, object] | None:
    """One step of the present run with its whole output, or None."""
    steps: dict[tuple[str, str, int], dict[str, object]] = {}
    for event in events:
        if event.step == name and event.count == count:
            _of_step(steps, event, whole=True)
    forward = [step for step in steps.values() if step["kind"] != "rollback"]
    return next(iter(forward or steps.values()), None)


def _of_instance(facts: dict[str, object], event: Event) -> None:
    match event.type:
        case "workflow_queued":
            facts["created_at"] = facts["created_at"] or event.ts
            payload = event.payload or {}
            if facts["params"] is None:
                facts["params"] = json_of(payload.get("params"))
        case "workflow_started":
            facts["started_at"] = facts["started_at"] or event.ts
        case "workflow_completed" | "workflow_errored" | "workflow_terminated":
            facts["ended_at"] = event.ts


def _of_step(
    steps: dict[tuple[str, str, int], dict[str, object]], event: Event, *, whole: bool
) -> None:
    what, _, change = event.type.removeprefix("rollback_").partition("_")
    kind = "rollback" if event.type.startswith("rollback_") else _kind(what)
    assert event.step is not None
    if kind is None:
        kind = next((k for k, s, c in steps if (s, c) == (event.step, event.count)), "do")
    step = steps.setdefault(
        (kind, event.step, event.count),
        {
            "name": event.step, "count": event.count, "kind": kind, "status": "running",
            "started_at": event.ts, "ended_at": None, "attempts": [], "output": None, "error": None,
        },
    )  # fmt: skip
    payload = event.payload if isinstance(event.payload, dict) else {}
    if what == "attempt":
        _of_attempt(step, event, change, payload)
        return
    for name in ("until", "duration_ms", "event_type", "timeout_ms", "config"):
        if name in payload and change == "started":
            step[name] = payload[name] if name != "config" else json_of(payload[name])
    if change in _ENDS:
        step["status"], step["ended_at"] = _ENDS[change], event.ts
        step["error"] = _error(payload.get("error"))
        if payload.get("sensitive"):
            step["sensitive"] = True
        answer = payload.get("output", payload.get("payload"))
        text = json_of(answer)
        if whole or len(bytes(text)) <= OUTPUT_BYTES_MAX:
            step["output"] = text
        else:
            step["output_bytes"] = len(bytes(text))


def _of_attempt(step: dict[str, Any], event: Event, change: str, payload: dict[str, Any]) -> None:
    attempts = step["attempts"]
    if change == "started":
        attempts.append({
            "attempt": event.attempt, "status": "running", "started_at": event.ts,
            "ended_at": None, "error": None, "retry_at": None,
        })  # fmt: skip
    elif attempts:
        attempts[-1].update(
            status=_ENDS.get(change, change), ended_at=event.ts,
            error=_error(payload.get("error")), retry_at=payload.get("retry_at"),
        )  # fmt: skip


def _kind(what: str) -> str | None:
    return {"step": "do", "sleep": "sleep", "wait": "wait_for_event"}.get(what)


def _error(error: object) -> dict[str, object] | None:
    if not isinstance(error, dict):
        return None
    return {"name": error.get("name"), "message": error.get("message")}
