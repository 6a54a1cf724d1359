"""Pool: the slots that were started ahead, and wait blank for tenants that are still to come."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from dynamic_workflows.eventlog.errors import WorkflowsError
from dynamic_workflows.eventlog.ids import Ids

from ..background_tasks import Errands
from ..rpc.actor_ref import ActorRef, ActorUnreachable

ACQUAINTANCES_MAX = 16
"""Drivers that are told of the slots in the pool."""
REFILL_AFTER_S = 0.05
"""Starting a process is work: the tenant that has just got a slot goes first."""


class Launcher(Protocol):
    """Starts and finds the processes of slots."""

    async def start(self, name: str, *, is_spare: bool) -> ActorRef:
        """A new slot; its first call waits until it is ready.

        A spare one has time to get ready for any tenant; else a tenant is waiting for it.
        """
        ...

    async def names(self) -> list[str]:
        """The slots that exist, dead ones that will be restarted included."""
        ...

    async def find(self, name: str) -> ActorRef | None:
        """A slot by name."""
        ...

    async def kill(self, name: str) -> None:
        """End a slot for good, whatever it does; harmless when it is gone."""
        ...


class Pool:
    """The blank slots of a loader, which fill up again as they are taken."""

    def __init__(
        self, launcher: Launcher, *, ids: Ids, size: int, started: Callable[[str], None]
    ) -> None:
        """`started` is told the name of each slot that joins the pool."""
        self._launcher = launcher
        self._ids = ids
        self._size = size
        self._started = started
        self.peers: deque[ActorRef] = deque()
        """The slots that wait, those that came first first."""
        self.taken = 0
        """How many tenants found a slot waiting."""
        self._blank: set[str] = set()
        """Slots on their way to the pool."""
        self._starting = Errands()
        self._acquaintances: set[asyncio.Future[None]] = set()
        """Those who wait to hear of new slots in the pool."""
        self._is_stopped = False

    def knows(self, name: str) -> bool:
        """Whether a slot waits here, or is on its way."""
        return name in self._blank or name in {peer.name for peer in self.peers}

    async def spares(self, known: Sequence[str], wait_s: float) -> list[ActorRef] | None:
        """The slots that wait, as soon as one is not `known`, or after `wait_s`.

        None: there are no such slots, or so many want to know that it costs more than it saves.
        """
        if not self._size or self._is_stopped or len(self._acquaintances) >= ACQUAINTANCES_MAX:
            return None
        if all(peer.name in known for peer in self.peers):
            news = asyncio.get_running_loop().create_future()
            self._acquaintances.add(news)
            try:
                await asyncio.wait_for(news, wait_s)
            except TimeoutError:
                pass
            finally:
                self._acquaintances.discard(news)
        return list(self.peers)

    async def take(self) -> ActorRef:
        """A slot for a tenant: one that waits, else a new one whose process is only starting."""
        if self.peers:
            peer = self.peers.popleft()
            self.taken += 1
        else:
            peer = await self._launcher.start(self._new_name(), is_spare=False)
        if self._size:
            asyncio.get_running_loop().call_later(REFILL_AFTER_S, self.refill)
        return peer

    def refill(self) -> None:
        """Start what the pool lacks; nothing after `stop`."""
        while not self._is_stopped and len(self.peers) + len(self._starting) < self._size:
            self._starting.begin(self._start_one())

    async def stop(self) -> None:
        """Start no more slots; those that wait may still be taken."""
        self._is_stopped = True
        await self._starting.stop()

    async def close(self) -> None:
        """End the slots that wait; after `stop`. One that is taken meanwhile is its taker's."""
        while self.peers:
            await self._launcher.kill(self.peers.popleft().name)
        self._tell_acquaintances()

    async def _start_one(self) -> None:
        peer = await self._launcher.start(self._new_name(), is_spare=True)
        self._blank.add(peer.name)
        try:
            await peer.call("who")
            self._started(peer.name)
            self.peers.append(peer)
            self._tell_acquaintances()
        except (ActorUnreachable, WorkflowsError):
            await self._launcher.kill(peer.name)
        finally:
            self._blank.discard(peer.name)

    def _tell_acquaintances(self) -> None:
        for news in self._acquaintances:
            if not news.done():
                news.set_result(None)

    def _new_name(self) -> str:
        return f"slot-{self._ids.token()[:12]}"
