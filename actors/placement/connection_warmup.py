"""Spares: slots that wait for tenants, and whom a driver knows before it needs one.

The first message to an actor costs some milliseconds: its address has to be asked for, and a
connection to be made. A tenant that is wanted for the first time would wait for both.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from dynamic_workflows.eventlog.errors import Unavailable, WorkflowsError

from ..rpc.actor_ref import ActorRef, ActorUnreachable
from ..rpc.reconnecting import ReconnectingRef

_WAIT_S = 60.0
_GRACE_S = 30.0
_REST_S = 1.0


class Spares:
    """The slots in the loader's pool, each with a connection from here. Only speed is at stake."""

    def __init__(self, loader: ReconnectingRef) -> None:
        self._loader = loader
        self._known: dict[str, ActorRef] = {}
        self._watching: asyncio.Task[None] | None = None

    @property
    def names(self) -> list[str]:
        """The slots that are known, and reached."""
        return sorted(self._known)

    def watch(self) -> None:
        """Begin to make their acquaintance."""
        self._watching = asyncio.ensure_future(self._watch())

    async def close(self) -> None:
        """Forget them."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        self._known.clear()

    async def _watch(self) -> None:
        with contextlib.suppress(WorkflowsError):
            while True:
                try:
                    peers = await self._loader.call(
                        "spares", self.names, _WAIT_S, timeout_s=_WAIT_S + _GRACE_S
                    )
                except Unavailable:
                    await asyncio.sleep(_REST_S)
                    continue
                if peers is None:
                    return
                await self._meet(peers)

    async def _meet(self, peers: Sequence[ActorRef]) -> None:
        left = {peer.name for peer in peers}
        self._known = {name: peer for name, peer in self._known.items() if name in left}
        strangers = [peer for peer in peers if peer.name not in self._known]
        await asyncio.gather(*(self._greet(peer) for peer in strangers))

    async def _greet(self, peer: ActorRef) -> None:
        # One that does not answer is not asked again before it is needed.
        with contextlib.suppress(ActorUnreachable, WorkflowsError):
            await peer.call("who", timeout_s=_GRACE_S)
        self._known[peer.name] = peer
