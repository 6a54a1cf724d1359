"""Adoption: how a slot gets its tenant, and along with it what it would ask for next."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from dynamic_workflows.eventlog.errors import Unavailable, WorkflowsError

from ..background_tasks import Errands, seen
from ..rpc.actor_ref import ActorRef, ActorUnreachable

GIVE_UP_S = 15.0
"""How long a slot may be unreachable before its tenant moves to another one."""
_AGAIN_S = 0.25


class Adoption:
    """Tells slots of their tenants."""

    def __init__(
        self,
        code: Callable[[str], Awaitable[Any]] | None = None,
    ) -> None:
        """`code` fetches a tenant's code, which its slot is likely to need next."""
        self._code = code
        self._hand_overs = Errands()

    def fetch_code(self, tenant_id: str) -> asyncio.Future[Any] | None:
        """The tenant's code, which is on its way from now on; None: slots fetch it themselves."""
        if self._code is None:
            return None
        code = asyncio.ensure_future(self._code(tenant_id))
        code.add_done_callback(seen)
        return code

    async def adopt(
        self, peer: ActorRef, tenant_id: str, *, is_wanted: bool, code: asyncio.Future[Any] | None
    ) -> bool:
        """Have the slot open the tenant; raises why it cannot, Unavailable for a lost slot.

        Answers whether it was not open there already.
        """
        waited_s = 0.0
        while True:
            adopted = asyncio.ensure_future(peer.call("adopt", tenant_id, is_wanted))
            # What else the slot needs comes behind: it does not wait for it before it begins.
            if code is not None:
                self._hand_overs.begin(self._hand_over(code, tenant_id, peer))
            try:
                return bool(await adopted)
            except ActorUnreachable as error:
                # A slot that died is restarted in its place, under the same name.
                if waited_s >= GIVE_UP_S:
                    raise Unavailable(f"{peer.name} cannot be reached: {error}") from error
                await asyncio.sleep(_AGAIN_S)
                waited_s += _AGAIN_S

    async def stop(self) -> None:
        """Hand over no more code."""
        await self._hand_overs.stop()

    async def _hand_over(self, code: asyncio.Future[Any], tenant_id: str, peer: ActorRef) -> None:
        """A slot that is not told of the code asks for it, and hears what is wrong with it."""
        with contextlib.suppress(ActorUnreachable, WorkflowsError):
            await peer.call("take_code", tenant_id, await asyncio.shield(code))
