"""State machine: the states of an instance and every transition between them, as one table.

`TABLE` has an entry for each transition that the documentation promises; the fold asks `after` what
a row does to the status, and `after` reads the table only. A test walks it entry by entry.
"""

from __future__ import annotations

from typing import NamedTuple

from dynamic_workflows.loaders.protocol.contract import (
    COMPLETE,
    ENDED,
    ERRORED,
    PAUSED,
    PAUSING,
    QUEUED,
    RUNNING,
    STATUSES,
    TERMINATED,
    WAITING,
)

NONE = "none"
"""No such instance."""

OPEN = frozenset({QUEUED, RUNNING, WAITING, PAUSING, PAUSED})
AWAKE = frozenset({QUEUED, RUNNING, WAITING})


class Transition(NamedTuple):
    """One line: from any of `sources`, on `trigger`, if `guard` holds, write `rows`, be
    `target`."""

    name: str
    sources: frozenset[str]
    trigger: str
    guard: str
    target: str
    """The status after the last row; equal to the source where `rows` is empty."""
    rows: tuple[str, ...] = ()
    error: str | None = None
    """The code of the error that the caller gets instead."""


def _transition(
    name: str,
    sources: frozenset[str] | set[str],
    trigger: str,
    target: str,
    *rows: str,
    guard: str = "",
    error: str | None = None,
) -> Transition:
    return Transition(name, frozenset(sources), trigger, guard, target, rows, error)


SAME = "same"
"""A target: the status stays what it was."""

TABLE: tuple[Transition, ...] = (
    _transition("T1", {NONE}, "create", QUEUED, "workflow_queued", guard="id free"),
    _transition(
        "T2", {QUEUED}, "start", RUNNING, "workflow_started", guard="slot free, code loaded"
    ),
    _transition("T3", {RUNNING}, "idle", WAITING, "workflow_waiting", guard="not very short"),
    _transition("T4", {WAITING}, "wake", RUNNING, "workflow_running", guard="slot free"),
    # Without a slot a woken instance is shown as queued; the log goes from waiting to running.
    _transition(
        "T5", {WAITING}, "wake", WAITING, guard="no slot: shown as queued, ahead of new ones"
    ),
    _transition(
        "T6",
        {RUNNING},
        "pause",
        PAUSING,
        "workflow_waiting_for_pause",
        guard="a callback runs, or run is between steps",
    ),
    _transition("T6b", {QUEUED}, "pause", PAUSED, "workflow_paused"),
    _transition("T6c", {RUNNING, WAITING}, "pause", PAUSED, "workflow_paused", guard="at rest"),
    _transition("T7", {PAUSING}, "settled", PAUSED, "workflow_paused", guard="no callback runs"),
    _transition("T8", {PAUSING}, "resume", RUNNING, "workflow_resumed"),
    _transition("T9", {PAUSING}, "recover", PAUSED, "workflow_paused"),
    _transition("T10", {PAUSED}, "resume", QUEUED, "workflow_resumed"),
    _transition("T10b", {QUEUED}, "start", RUNNING, "workflow_running", guard="has run before"),
    _transition("T11", {PAUSED}, "send_event", PAUSED, "event_received"),
    _transition("T12", {RUNNING, WAITING, PAUSING}, "end", COMPLETE, "workflow_completed"),
    _transition("T13", {RUNNING, WAITING, PAUSING}, "fail", ERRORED, "workflow_errored"),
    _transition("T15", OPEN, "terminate", TERMINATED, "workflow_terminated"),
    _transition("T15b", {QUEUED, WAITING, PAUSED}, "roll_back", RUNNING, "rollback_started"),
    _transition("T16", ENDED, "terminate", SAME, error="instance.cannot_terminate"),
    _transition("T17", STATUSES, "restart", QUEUED, "workflow_restarted", "workflow_queued"),
    _transition("T18", STATUSES, "restart_from", QUEUED, "workflow_restarted", "workflow_queued"),
    _transition("T19", STATUSES, "restart_from_unknown", SAME, error="instance.cannot_restart"),
    _transition("T20", STATUSES, "delete", NONE, "workflow_deleted"),
    _transition("T21", ENDED | {PAUSED}, "recover", SAME),
    _transition("T22", ENDED, "pause_or_resume", SAME),
    _transition("T23", ENDED, "retention", NONE, "workflow_deleted"),
    _transition(
        "P1", OPEN, "park", PAUSED, "workflow_parked", guard="by the platform, with a reason"
    ),
)


def _derive() -> dict[str, dict[str, str]]:
    """row type -> status before -> status after; rows that leave the status alone are left out."""
    moves: dict[str, dict[str, str]] = {}
    for transition in TABLE:
        status_rows = [row for row in transition.rows if row != "event_received"]
        for source in transition.sources:
            now = source
            for row in status_rows:
                then = QUEUED if row == "workflow_restarted" else transition.target
                known = moves.setdefault(row, {}).setdefault(now, then)
                assert known == then, (
                    f"{transition.name}: {row} from {now} leads to {known} and {then}"
                )
                now = then
    # A rollback runs under the status running, also where it begins from there.
    moves["rollback_started"].update({RUNNING: RUNNING, PAUSING: RUNNING})
    return moves


MOVES = _derive()


def after(status: str, row_type: str) -> str:
    """Return the status after a row; raises AssertionError where the table has no such
    transition."""
    targets = MOVES.get(row_type)
    if targets is None:
        return status
    target = targets.get(status)
    assert target is not None, f"{row_type} cannot follow status {status}"
    return target
