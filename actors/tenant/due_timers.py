"""DueTimers: the two timers of a tenant: when the core has something due, and when loading code is
tried again."""

from __future__ import annotations

import asyncio

from dynamic_workflows.eventlog.clock import Clock, TimerHandle

from ..core.tenant_core import TenantCore
from .commit_pipeline import CommitPipeline
from .supervisor_state import SupervisorState


class DueTimers:
    """Calls the core when something is due, and the pipeline when a failed load may be retried."""

    def __init__(
        self, state: SupervisorState, core: TenantCore, commits: CommitPipeline, clock: Clock
    ) -> None:
        self._state = state
        self._core = core
        self._commits = commits
        self._clock = clock
        self._timer: TimerHandle | None = None
        self._timer_us: int | None = None
        self._retry: TimerHandle | None = None
        self._retry_us: int | None = None

    def arm(self) -> None:
        """See to it that the core is called when something is due, or earlier.

        A timer that is armed too early stays: most are attempt timeouts, taken back before they
        matter, and one look too many now and then costs less than a new timer for each.
        """
        due_us = self._core.next_due_us()
        if due_us is None or (self._timer_us is not None and self._timer_us <= due_us):
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_us = due_us
        if due_us <= self._clock.now_us():
            # A clock that stands still would not call back for what is due already.
            asyncio.get_running_loop().call_soon(self._on_due)
        else:
            self._timer = self._clock.call_at(due_us, self._on_due)

    def _on_due(self) -> None:
        self._timer = self._timer_us = None
        if not self._state.is_over:
            try:
                self._commits.take(self._core.due(self._clock.now_us()))
            except Exception as mistake:
                self._state.fail_by_mistake(mistake)

    def retry_at(self, due_us: int) -> None:
        """Look again at `due_us` at what can run: loading failed."""
        if self._state.is_closed or (self._retry_us is not None and self._retry_us <= due_us):
            return
        if self._retry is not None:
            self._retry.cancel()
        self._retry_us = due_us
        self._retry = self._clock.call_at(due_us, self._on_retry)

    def _on_retry(self) -> None:
        self._retry = self._retry_us = None
        self._commits.kick()

    def close(self) -> None:
        """Cancel both timers."""
        for timer in (self._timer, self._retry):
            if timer is not None:
                timer.cancel()
