"""Service log: the log of an actor that is no tenant, with its maintenance."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import time

from dynamic_workflows.eventlog.backoff import Backoff
from dynamic_workflows.eventlog.clock import US, Clock, TimerHandle
from dynamic_workflows.eventlog.errors import Fenced, Unavailable, WorkflowsError, needs_operator
from dynamic_workflows.eventlog.ids import Ids
from dynamic_workflows.eventlog.log.event_log import EventLog, LogConfig
from dynamic_workflows.eventlog.store import permissions
from dynamic_workflows.eventlog.store.base import Store

from ..rpc.actor_settings import Setup

OPEN_WITHIN_S = 10.0
"""How long an actor tries to open its log before it says why it cannot; then it tries again."""
UPKEEP_US = 60 * US
"""How often it is looked whether something is to be sealed, merged or removed."""
_BACKOFF = Backoff(0.1, 1.0)
_logger = logging.getLogger("dynamic_workflows.log")


class ServiceLog:
    """An owned log with its maintenance, as tenants' logs have it. Made by `open`."""

    def __init__(self, log: EventLog, clock: Clock) -> None:
        self.log = log
        self._clock = clock
        self._timer: TimerHandle | None = None
        self._upkeep: asyncio.Task[None] | None = None
        self._is_closed = False
        self._upkeep_later()

    @classmethod
    async def open(
        cls,
        setup: Setup,
        store: Store,
        stream: str,
        *,
        clock: Clock,
        ids: Ids,
        within_s: float = OPEN_WITHIN_S,
    ) -> ServiceLog:
        """Return the log, owned; waits while another owner is just closing it.

        Raises Unavailable with the reason where that takes longer than `within_s`.
        """
        config = LogConfig(owner=who(setup))
        until_s = time.monotonic() + within_s
        for rest_s in map(_BACKOFF.rest_s, itertools.count(1)):
            try:
                if setup.config.log_group is not None:
                    await asyncio.to_thread(
                        permissions.share, setup.log_root, setup.config.log_group
                    )
                log = await EventLog.open(
                    store, stream, tenant_id="", clock=clock, ids=ids, config=config
                )
                return cls(log, clock)
            except (Fenced, Unavailable) as error:
                if time.monotonic() + rest_s >= until_s or needs_operator(error):
                    raise Unavailable(
                        f"the log at {setup.log_root} cannot be opened on {socket.gethostname()}: "
                        f"{error.message}. Every machine of the cluster must be able to write "
                        "there, as the user that runs Ray; it is tried again by itself",
                        **error.details,
                    ) from error
                await asyncio.sleep(rest_s)
        raise AssertionError("there is always one more try")

    def _upkeep_later(self) -> None:
        self._timer = self._clock.call_at(self._clock.now_us() + UPKEEP_US, self._upkeep_now)

    def _upkeep_now(self) -> None:
        self._timer = None
        self._upkeep = asyncio.ensure_future(self._maintain())

    async def _maintain(self) -> None:
        try:
            await self.log.maintain()
        except WorkflowsError as error:
            _logger.warning("%s: maintenance failed: %s", self.log.stream, error)
        if not self._is_closed and self.log.failed is None:
            self._upkeep_later()

    async def caught_up(self) -> None:
        """Wait for the running maintenance."""
        if self._upkeep is not None:
            await asyncio.wait({self._upkeep})

    async def close(self) -> None:
        """Seal and close the log."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        await self.caught_up()
        await self.log.close(seal=self.log.failed is None)


def who(setup: Setup) -> str:
    """Describe this process, for an operator who looks for it."""
    return f"namespace {setup.namespace!r}, process {os.getpid()} on {socket.gethostname()}"
