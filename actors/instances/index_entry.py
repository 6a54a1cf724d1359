"""Summary: what a tenant remembers of an instance that is not loaded; small, one for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .kept_events import NOTHING_KEPT, Kept
from .state_machine import ENDED, NONE, RUNNING, WAITING

if TYPE_CHECKING:
    from .deadlines import Deadline
    from .decisions import Key
    from .instance import Instance
    from .lifetime import Lifetime

NOT_QUEUED, WOKEN, NEW = 0, 1, 2


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
        self.extra: dict[str, Any] | None = None
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
        """Complete, errored or terminated."""
        return self.status in ENDED

    @property
    def may_wake(self) -> bool:
        """Under way, so that a timer or an event may set it going."""
        return self.status == RUNNING or self.status == WAITING

    def get(self, name: str) -> Any:
        """A rare fact, or None."""
        return None if self.extra is None else self.extra.get(name)

    def set(self, name: str, value: Any) -> None:
        """Note a rare fact; None forgets it."""
        if value is not None:
            if self.extra is None:
                self.extra = {}
            self.extra[name] = value
        elif self.extra is not None:
            self.extra.pop(name, None)
