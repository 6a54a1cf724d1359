"""Lifetime: one uninterrupted execution of an instance in an isolate; nothing of it is in the
log."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from .steps import Step
    from .summary import Summary


class Lifetime:
    """What the core knows of a lifetime while it lasts."""

    __slots__ = (
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

    def __init__(self, number: int, summary: Summary, mode: str) -> None:
        self.number = number
        self.summary = summary
        self.mode = mode
        """"run", or "rollback": only handlers are registered."""
        self.tokens: dict[int, Step] = {}
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
        self.to_undo: list[Step] | None = None
        """Steps whose rollback is not recorded, in order of start; None until it begins."""
        self.held: dict[int, msgspec.Struct] = {}
        """Requests that came while a pause is pending, by token."""
        self.late: list[Step] = []
        """Steps whose timer fired while a pause is pending."""
