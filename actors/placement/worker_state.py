"""Slot state: the life of a slot, as a table. docs/architecture.md shows it to people."""

from __future__ import annotations

from enum import StrEnum


class SlotState(StrEnum):
    """What a slot is at the moment; `Slot.who` answers it."""

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
    """It lets go of the log, then tells the timer and the loader."""
    ENDED = "ended"
    """It has told, and its process ends."""


MOVES: dict[tuple[SlotState, str], SlotState] = {
    (SlotState.BLANK, "adopt"): SlotState.OPENING,
    (SlotState.OPENING, "listed"): SlotState.OPEN,
    (SlotState.OPENING, "failed"): SlotState.BROKEN,
    (SlotState.OPEN, "close"): SlotState.CLOSING,
    (SlotState.BLANK, "close"): SlotState.CLOSING,
    (SlotState.OPENING, "close"): SlotState.CLOSING,
    (SlotState.BROKEN, "close"): SlotState.CLOSING,
    # A full disk stops a tenant that was open, and keeps one from being opened, for a while.
    (SlotState.OPEN, "lost"): SlotState.BROKEN,
    (SlotState.BROKEN, "adopt"): SlotState.OPENING,
    (SlotState.CLOSING, "told"): SlotState.ENDED,
    # Opening may come to its end while the slot closes already: nothing follows from that.
    (SlotState.CLOSING, "listed"): SlotState.CLOSING,
    (SlotState.CLOSING, "failed"): SlotState.CLOSING,
    (SlotState.ENDED, "listed"): SlotState.ENDED,
    (SlotState.ENDED, "failed"): SlotState.ENDED,
}
"""Every move that there is; its process may die in any state."""


def after(state: SlotState, event: str) -> SlotState:
    """The state that follows; KeyError for a move that there is not."""
    return MOVES[state, event]
