"""Explained calls: the calls of a tenant, whose `why` also says how late its wake-up is.

A tenant in memory knows why its instances wait, not that it should have been awake long ago: the
call itself has it opened. So the timer is asked first, and its reply is added to the answer, or to
the error where the tenant cannot be opened.
"""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable
from typing import cast

from dynamic_workflows.eventlog.clock import Clock
from dynamic_workflows.eventlog.errors import (
    InstanceError,
    InvalidError,
    PlatformClosed,
    WorkflowsError,
)
from dynamic_workflows.loaders.protocol.calls import (
    AnswerT,
    Calls,
    ExplainInstance,
    TenantCall,
    WhyData,
)

from ..rpc.actor_ref import ActorRef
from .lateness import asked_lateness


class ExplainedCalls:
    """The calls of one tenant, as `loaders.calls.Calls` has them."""

    def __init__(
        self,
        calls: Calls,
        tenant_id: str,
        *,
        find_timer: Callable[[], Awaitable[ActorRef]],
        clock: Clock,
    ) -> None:
        self._calls = calls
        self._tenant_id = tenant_id
        self._find_timer = find_timer
        self._clock = clock

    async def call(self, call: TenantCall[AnswerT]) -> AnswerT:
        """Carry out one operation; raises what the tenant's call raises."""
        if not isinstance(call, ExplainInstance):
            return await self._calls.call(call)
        return cast(AnswerT, await self._explain(call))

    async def _explain(self, call: ExplainInstance) -> WhyData:
        late = await asked_lateness(self._find_timer, self._tenant_id, self._clock.now_us())
        try:
            found = await self._calls.call(call)
        except (InstanceError, InvalidError, PlatformClosed):
            raise  # the tenant is awake, or its platform is over
        except WorkflowsError as error:
            if not late:
                raise
            told = copy.copy(error)
            told.message = f"{error.message}; {late}"
            told.args = (told.message,)
            raise told from error
        return WhyData(found.code, f"{found.text}; before this call: {late}") if late else found
