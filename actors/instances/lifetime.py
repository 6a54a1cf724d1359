"""Lifetime: one uninterrupted execution of an instance in an isolate; nothing of it is in the
log."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from .step_state import ERROR, VALUE

if TYPE_CHECKING:
    from .index_entry import IndexEntry
    from .step_state import StepState

_TOLD = (VALUE, ERROR)


class Lifetime:
    """What the core knows of a lifetime while it lasts."""

    __slots__ = (
        "answered",
        "awaits",
        "awaits_timer",
        "ended",
        "held",
        "idle",
        "late",
        "mode",
        "number",
        "running",
        "sent",
        "settled",
        "summary",
        "to_undo",
        "tokens",
    )

    def __init__(self, number: int, summary: IndexEntry, mode: str) -> None:
        self.number = number
        self.summary = summary
        self.mode = mode
        """"run", or "rollback": only handlers are registered."""
        self.tokens: dict[int, StepState] = {}
        self.answered: list[StepState | None] = []
        """Whose ends it was sent, in order (None: an answer that is no end in the log)."""
        self.awaits: str | None = None
        """The line of code that awaits something that is no step."""
        self.awaits_timer = False
        """It goes on when a timer of asyncio comes due."""
        self.running = 0
        """Callbacks in flight."""
        self.sent = 0
        """Messages sent to it: an Idle that has seen fewer is out of date."""
        self.idle = False
        """At rest: it takes no slot."""
        self.settled = (0, 0)
        """Messages sent to it, and tokens it has used, when it was last found to be at rest."""
        self.ended = False
        """`run` has returned or raised; what is left is rollback."""
        self.to_undo: list[StepState] | None = None
        """Steps whose rollback is not recorded, in order of start; None until it begins."""
        self.held: dict[int, msgspec.Struct] = {}
        """Requests that came while a pause is pending, by token."""
        self.late: list[StepState] = []
        """Steps whose timer fired while a pause is pending."""

    def overtaken(self, heard: int) -> int:
        """The number of the first end that its code is told after one that came when it had
        `heard` so many answers; 0: there is none."""
        if heard < 0 or heard == len(self.answered):
            return 0
        late = [step.ended for step in self.answered[heard:] if step and step.outcome in _TOLD]
        return min(late, default=0)
