"""Worker state: the life of a worker process as a table, which docs/architecture.md shows."""

from __future__ import annotations

from enum import StrEnum


class WorkerState(StrEnum):
    """The state of a worker process; `WorkerProcess.who` returns it."""

    BLANK = "blank"
    """Ready for any tenant."""
    OPENING = "opening"
    """It has a tenant, and takes its log over."""
    OPEN = "open"
    """It serves its tenant, which is listed as open."""
    BROKEN = "broken"
    """Its tenant could not be opened, or was stopped by a full disk; it says why until it is ended,
    or, where the disk is to blame, until the loader has it try again."""
    CLOSING = "closing"
    """It lets go of the log, tells the timer, and drops everything of the tenant."""
    ENDED = "ended"
    """It has told, and its process ends."""


MOVES: dict[tuple[WorkerState, str], WorkerState] = {
    (WorkerState.BLANK, "assign"): WorkerState.OPENING,
    (WorkerState.OPENING, "listed"): WorkerState.OPEN,
    (WorkerState.OPENING, "failed"): WorkerState.BROKEN,
    (WorkerState.OPEN, "close"): WorkerState.CLOSING,
    (WorkerState.BLANK, "close"): WorkerState.CLOSING,
    (WorkerState.OPENING, "close"): WorkerState.CLOSING,
    (WorkerState.BROKEN, "close"): WorkerState.CLOSING,
    # A full disk stops a tenant that was open, and keeps one from being opened, for a while.
    (WorkerState.OPEN, "lost"): WorkerState.BROKEN,
    (WorkerState.BROKEN, "assign"): WorkerState.OPENING,
    (WorkerState.CLOSING, "told"): WorkerState.ENDED,
    # Only a tenant that was open and sleeps now leaves a process that can be used again.
    (WorkerState.CLOSING, "cleared"): WorkerState.BLANK,
    # Opening may end while the worker process closes already: nothing follows from that.
    (WorkerState.CLOSING, "listed"): WorkerState.CLOSING,
    (WorkerState.CLOSING, "failed"): WorkerState.CLOSING,
    (WorkerState.ENDED, "listed"): WorkerState.ENDED,
    (WorkerState.ENDED, "failed"): WorkerState.ENDED,
}
"""Every move that there is; its process may die in any state."""


def after(state: WorkerState, event: str) -> WorkerState:
    """Return the state that follows; raises KeyError for a transition that does not exist."""
    return MOVES[state, event]
