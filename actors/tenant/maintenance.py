"""TenantMaintenance: the regular work on a tenant's log and memory, while any may be left to do.

The log is sealed, merged and rid of what was deleted; feeds that nobody follows go; and the core
proves that nothing has stopped silently.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from dynamic_workflows.eventlog.clock import US, Clock, TimerHandle
from dynamic_workflows.eventlog.errors import WorkflowsError
from dynamic_workflows.eventlog.heap_trim import release_memory
from dynamic_workflows.eventlog.log.event_log import EventLog

from ..core.tenant_core import TenantCore

_SWEEP_US = 60 * US
_AUDIT_MAX = 50_000
"""Instances up to which the auditor looks at all of them; it would hold up others beyond that."""
_logger = logging.getLogger("dynamic_workflows.tenant")


class TenantMaintenance:
    """That of one tenant. It begins with the first call of `go_on`."""

    def __init__(
        self,
        tenant_id: str,
        *,
        log: EventLog,
        core: TenantCore,
        clock: Clock,
        erase_within_s: float,
        is_off: bool,
        sweep: Callable[[int], None],
        mended: Callable[[], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        """`sweep` forgets what nobody needs at that time; `mended` looks what can run again.

        `failed` is told when the log cannot go on.
        """
        self._tenant_id = tenant_id
        self._log = log
        self._core = core
        self._clock = clock
        self._erase_within_s = erase_within_s
        self._is_off = is_off
        self._sweep = sweep
        self._mended = mended
        self._failed = failed
        self._timer: TimerHandle | None = None
        self._until_us = 0
        self._work: asyncio.Task[None] | None = None
        self.erase_us: int | None = None
        """When the tenant has to be awake for something to be erased, or None."""

    @property
    def is_resting(self) -> bool:
        """Whether nothing is being done to the log."""
        return self._work is None or self._work.done()

    def go_on(self) -> None:
        """There are new rows: look after them for a while."""
        self._until_us = self._clock.now_us() + self._span_us()
        self._sweep_later()

    def erase_later(self) -> None:
        """Something was deleted: be there when it has to leave the log."""
        if self.erase_us is None and not self._is_off:
            self.erase_us = self._clock.now_us() + self._span_us()

    def stop(self) -> None:
        """Begin nothing more; what is under way goes on."""
        self._is_off = True
        if self._timer is not None:
            self._timer.cancel()

    async def finish(self) -> None:
        """Wait for what is under way: a seal is better finished than cut off."""
        if self._work is not None:
            await self._work

    def _span_us(self) -> int:
        """How long after the last row there may be something left to seal, merge or erase."""
        return round(min(self._erase_within_s * 0.75, 900.0) * US)

    def _sweep_later(self) -> None:
        if self._timer is None and not self._is_off:
            sweep_us = min(_SWEEP_US, round(self._erase_within_s / 16 * US))
            self._timer = self._clock.call_at(self._clock.now_us() + sweep_us, self._sweep_now)

    def _sweep_now(self) -> None:
        self._timer = None
        now_us = self._clock.now_us()
        self._sweep(now_us)
        if self.is_resting:
            self._work = asyncio.ensure_future(self._maintain())
        self._audit(now_us)
        if now_us < self._until_us:
            self._sweep_later()
        elif self.erase_us is not None and self.erase_us <= now_us:
            self.erase_us = None

    def _audit(self, now_us: int) -> None:
        """Prove that nothing has stopped silently, and mend it if our own mistake made it so."""
        if sum(self._core.counts().values()) <= _AUDIT_MAX:
            for problem in self._core.audit():
                _logger.error("tenant %r: %s", self._tenant_id, problem)
                self._core.repair(now_us)
                self._mended()

    async def _maintain(self) -> None:
        try:
            version = self._log.manifest.version
            await self._log.maintain()
            if self._log.manifest.version != version:
                await asyncio.to_thread(release_memory)
        except WorkflowsError as error:
            _logger.warning("tenant %r: maintenance failed: %s", self._tenant_id, error)
            if self._log.failed is not None:
                self._failed(error)
