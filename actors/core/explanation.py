"""Explanation: why an instance is where it is and what to do about it, in a code and a sentence.

Everything said here is a fold of the log, so that a tenant in memory and the files of its log give
the same text. Texts of tenants' errors are cut, and shown as a terminal may show them.
"""

from __future__ import annotations

from dynamic_workflows.eventlog.clock import to_datetime
from dynamic_workflows.eventlog.sanitize import plain
from dynamic_workflows.loaders.protocol.contract import (
    COMPLETE,
    DO,
    ERROR,
    ERRORED,
    PAUSED,
    PAUSING,
    QUEUED,
)
from dynamic_workflows.loaders.protocol.messages import Error

from ..instances.index_entry import IndexEntry
from ..instances.instance import Instance
from ..instances.step_state import StepState

MESSAGE_CHARACTERS_MAX = 1_000
"""Of an error's message or of a reason."""
AWAITS = "run.awaits"
"""`why` says so of a run that awaits something that is no step."""
LOADS_AGAIN = (
    "it is tried again by itself, less and less often; once the cause is out of the way, "
    "reload() has it tried at once"
)
"""The remedy for an instance whose code cannot be loaded."""
_STEPS_MAX = 5


def explain(entry: IndexEntry, shown: str, now_us: int) -> tuple[str, str]:
    """(code, sentence) of a loaded instance, or of one that rests; `shown` is its status as shown.

    The code of an instance that the platform has parked is that of the reason, else the status.
    """
    if entry.is_ended:
        return shown, _ended(entry, shown)
    reason = entry.get("reason")
    if reason is not None:
        return reason[0], _parked(entry, *reason)
    if shown == QUEUED:
        return QUEUED, "it is queued and starts when a slot is free and its code is loaded"
    if shown == PAUSED:
        since = f" at {_time(entry.paused_us)}" if entry.paused_us else ""
        return PAUSED, f"it was paused{since} by a call of pause(): resume() lets it go on"
    if entry.rolling_back:
        return "rollback", "it rolls back the steps that were started"
    if shown == PAUSING:
        return PAUSING, "it pauses when the callbacks in flight have ended"
    if entry.instance is None:
        return shown, "it rests; its steps are in its history"
    life = entry.lifetime
    if not entry.instance.open and life is not None and life.awaits is not None:
        if life.awaits_timer:
            return AWAITS, (
                f"run awaits a timer of asyncio (a sleep or a time-out) at {life.awaits}, and holds"
                " its place meanwhile: step.sleep would not"
            )
        return AWAITS, (
            f"run awaits something that is no step, at {life.awaits}; the platform knows of nothing"
            " that will wake it"
        )
    return shown, _steps(entry.instance, now_us)


def _time(us: int) -> str:
    return to_datetime(us).isoformat(" ", "seconds")


def _error(error: Error) -> str:
    message = plain(error.message, MESSAGE_CHARACTERS_MAX)
    return plain(error.name) + (f": {message}" if message else "")


# --- ended ---------------------------------------------------------------------------------------


def _ended(entry: IndexEntry, shown: str) -> str:
    when = f"at {_time(entry.ended_us)}"
    instance = entry.instance
    rollback = "" if instance is None else _rollback(instance)
    if shown == COMPLETE:
        return f"the run has ended: complete {when}; result() answers its output"
    if shown == ERRORED:
        error = None if instance is None else instance.outcome_error
        what = "" if error is None or instance is None else f" {_failure(instance, error)}"
        return (
            f"the run has ended: errored {when}{what}{rollback}; restart() runs it from the start, "
            "restart(from_=...) from a step on"
        )
    return (
        f"the run has ended: terminated {when} by a call of terminate() (whose, the log does not "
        f"say){rollback}; restart() runs it again"
    )


def _failure(instance: Instance, error: Error) -> str:
    step = _source(instance, error)
    where = "" if step is None else f", in {_step(step)}"
    return f"with {_error(error)}{where}"


def _source(instance: Instance, error: Error) -> StepState | None:
    """The last step that failed with the error with which its run ended."""
    told = (error.name, error.message)
    failed = [
        step
        for step in instance.steps.values()
        if step.outcome == ERROR
        and step.error is not None
        and (step.error.name, step.error.message) == told
    ]
    return max(failed, key=lambda step: step.ended, default=None)


def _step(step: StepState) -> str:
    count = "" if step.count == 1 else f" ({step.count})"
    kind = "step" if step.kind == DO else step.kind
    attempts = f", attempt {step.attempt}" if step.attempt else ""
    at = f", at {plain(step.at, 300)}" if step.at else ""
    return f"{kind} {step.name!r}{count}{attempts}{at}"


def _rollback(instance: Instance) -> str:
    if instance.rollback_outcome is None:
        return ""
    if instance.rollback_outcome == "complete":
        return "; its steps were rolled back"
    error = instance.rollback_error
    return "; its rollback failed" + ("" if error is None else f" with {_error(error)}")


# --- parked --------------------------------------------------------------------------------------

_MEND_LATEST = "it follows the newest code: deploy code that is mended, then resume()"
_MEND_PINNED = (
    "it is pinned to the code {code}, which resume() and restart() run again; to run mended code, "
    "deploy that, then delete this instance and create it anew (with pin='latest' it would follow)"
)


def _parked(entry: IndexEntry, code: str, message: str) -> str:
    since = f" at {_time(entry.paused_us)}" if entry.paused_us else ""
    text = plain(message, MESSAGE_CHARACTERS_MAX).rstrip(" .")
    return f"parked{since}: {text}. What to do: {remedy(entry, code)}"


def remedy(entry: IndexEntry, code: str) -> str:
    """What people can do about an instance that the platform has parked for the reason `code`."""
    mend = (
        _MEND_LATEST
        if entry.get("pin") == "latest"
        else _MEND_PINNED.format(code=(entry.code_hash or "")[:12])
    )
    match code:
        case "run.stuck":
            first = "restart() runs it from the start, which stops at the same place again unless "
            return f"{first}the code is mended: {mend}"
        case "replay.mismatch":
            first = "resume() helps where the code was put back, restart() forgets its steps"
            return f"{first}; {mend}"
        case "isolate.died":
            first = "resume() tries again, if it was the machine's fault or its limits were raised"
            return f"{first}; {mend}"
    return f"once the cause is out of the way, resume() lets it go on; {mend}"


# --- under way -----------------------------------------------------------------------------------


def _steps(instance: Instance, now_us: int) -> str:
    parts = [step.waits_for(now_us) for step in list(instance.open.values())[:_STEPS_MAX]]
    if not parts:
        return "its code runs between steps"
    more = len(instance.open) - len(parts)
    return "; ".join(parts) + (f"; and {more} more" if more > 0 else "")
