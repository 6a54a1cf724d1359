"""Contract: words and limits that tenants see, and that both ends of a call check by them."""

from __future__ import annotations

import re
from typing import Final, Literal, TypeAlias

QUEUED, RUNNING, WAITING = "queued", "running", "waiting"
PAUSING, PAUSED = "waitingForPause", "paused"
COMPLETE, ERRORED, TERMINATED = "complete", "errored", "terminated"
ENDED = frozenset({COMPLETE, ERRORED, TERMINATED})
STATUSES = ENDED | {QUEUED, RUNNING, WAITING, PAUSING, PAUSED}
"""The statuses of an instance."""

StepType: TypeAlias = Literal["do", "sleep", "wait_for_event"]
DO: Final = "do"
SLEEP: Final = "sleep"
WAIT: Final = "wait_for_event"
TIMER = "timer"
"""A timer of asyncio that `run` set: it has no name, and is known from the moment it came due."""
STEP_TYPES: dict[str, StepType] = {DO: DO, SLEEP: SLEEP, WAIT: WAIT, "waitForEvent": WAIT}
"""The types of steps, as callers may spell them."""

OPEN, VALUE, ERROR, CANCELLED = 0, 1, 2, 3
"""How a step has ended, as a history tells it: not yet, with a value, with an error, cancelled."""

EVENT_TYPE = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_-]*")
BATCH_MAX = 10_000
"""Items of a batch, or of a page."""
RETRIES_MAX = 10_000
YEAR_MS = 365 * 86_400 * 1_000
"""The longest sleep and wait."""
