"""Open registration: registers a tenant as open with the timer, while its log is still being
taken over.

A tenant serves no call before it is registered under the epoch of its owner: from then on no crash
can lose it. The epoch is known as soon as the log was read, so the registration adds no latency.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from dynamic_workflows.eventlog.errors import Unavailable, needs_operator
from dynamic_workflows.eventlog.tracing import mark

from ..background_tasks import seen
from ..rpc.actor_ref import ActorRef, ActorUnreachable
from ..rpc.services import TimerApi, remote

ANSWER_S = 5.0
"""How long the timer may take to answer before it is told again."""
AGAIN_S = 0.1


class OpenRegistration:
    """One opening of one tenant, as it is registered with the timer."""

    def __init__(self, tenant_id: str, timer: Callable[[], Awaitable[ActorRef]]) -> None:
        self._tenant_id = tenant_id
        self._timer = timer
        self._telling: dict[int, asyncio.Task[int | None]] = {}

    def claim(self, epoch: int) -> None:
        """Register this epoch, which the owner is about to have unless another one is faster."""
        if epoch not in self._telling:
            self.withdraw()
            task = self._telling[epoch] = asyncio.ensure_future(self._register(epoch))
            task.add_done_callback(seen)

    async def confirmed(self, epoch: int) -> int | None:
        """Wait until the tenant is registered; return a higher epoch that the timer knows, or
        None.

        Raises what the timer raised: Fenced if its own log was taken over, Unavailable where its
        disk is full.
        """
        self.claim(epoch)
        higher = await self._telling[epoch]
        mark("worker: is listed as open")
        return higher

    def withdraw(self) -> None:
        """Stop registering. A message already sent does no harm: the tenant is opened for
        nothing."""
        for task in self._telling.values():
            task.cancel()
        self._telling.clear()

    async def _register(self, epoch: int) -> int | None:
        while True:
            try:
                timer = await self._timer()
                opened = remote(timer, TimerApi.opened, timeout_s=ANSWER_S)
                higher = await opened([(self._tenant_id, epoch)])
                return higher.get(self._tenant_id)
            except (ActorUnreachable, Unavailable) as error:
                if needs_operator(error):
                    raise
                await asyncio.sleep(AGAIN_S)
