"""Index entry: what a tenant remembers of an instance that is not loaded; small, one for each.

The lifetime that an instance is in stands here as well, since each of the two refers to the other.
A lifetime is one uninterrupted execution of an instance in an isolate; nothing of it is in the log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dynamic_workflows.loaders.protocol.contract import ENDED, ERROR, RUNNING, VALUE, WAITING

from .kept_events import NOTHING_KEPT, Kept
from .state_machine import NONE

if TYPE_CHECKING:
    from dynamic_workflows.loaders.protocol.messages import Sleep, StepRequest, Wait

    from .deadlines import Deadline
    from .decisions import Key
    from .instance import Instance
    from .step_state import StepState

NOT_QUEUED, WOKEN, NEW = 0, 1, 2
_TOLD = (VALUE, ERROR)


class IndexEntry:
    """The index entry of an instance. Fields up to `extra` are a fold of the log, the rest is
    live."""

    __slots__ = (
        "code_hash",
        "created_seq",
        "created_us",
        "deaths",
        "ended_us",
        "extra",
        "instance",
        "kept",
        "key",
        "lifetime",
        "paused_us",
        "queue",
        "rolling_back",
        "run",
        "started_us",
        "status",
        "timer",
        "token",
        "was_heavy",
    )

    def __init__(self, key: Key) -> None:
        self.key = key
        self.run = 1
        self.status: str = NONE
        self.created_seq = 0
        self.created_us = 0
        """Of the first run: `event.timestamp` never changes."""
        self.started_us = 0
        self.ended_us = 0
        self.paused_us = 0
        self.code_hash: str | None = None
        self.rolling_back = False
        self.kept: Kept = NOTHING_KEPT
        """Events that no wait has taken."""
        self.token: str | None = None
        """Of the create that made it."""
        self.extra: dict[str, object] | None = None
        """Rare facts: pin, retention, workflow_name, reason (code, message), wake_us; tokens (at
        replay, of an instance that is not loaded)."""
        self.instance: Instance | None = None
        """Everything else, while it is loaded."""
        self.lifetime: Lifetime | None = None
        self.queue = NOT_QUEUED
        self.timer: Deadline | None = None
        """The one timer of an instance without lifetime (wake, back-off, retention), or the
        suspension of an idle lifetime."""
        self.deaths = 0
        self.was_heavy = False
        """It took much memory when it was last loaded."""

    @property
    def weight(self) -> int:
        """Bytes that it takes in memory beside this entry."""
        return 0 if self.instance is None else self.instance.weight

    @property
    def is_ended(self) -> bool:
        """Whether it is complete, errored or terminated."""
        return self.status in ENDED

    @property
    def may_wake(self) -> bool:
        """Under way, so that a timer or an event may set it going."""
        return self.status == RUNNING or self.status == WAITING

    def get(self, name: str) -> Any:
        """A rare fact, or None."""
        return None if self.extra is None else self.extra.get(name)

    def set(self, name: str, value: object) -> None:
        """Note a rare fact; None forgets it."""
        if value is not None:
            if self.extra is None:
                self.extra = {}
            self.extra[name] = value
        elif self.extra is not None:
            self.extra.pop(name, None)


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
        "reported",
        "entry",
        "to_undo",
        "tokens",
    )

    def __init__(self, number: int, entry: IndexEntry, mode: str) -> None:
        self.number = number
        self.entry = entry
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
        self.reported = (0, 0)
        """Messages sent to it, and tokens it has used, when it was last found to be at rest."""
        self.ended = False
        """`run` has returned or raised; what is left is rollback."""
        self.to_undo: list[StepState] | None = None
        """Steps whose rollback is not recorded, in order of start; None until it begins."""
        self.held: dict[int, StepRequest | Sleep | Wait] = {}
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
