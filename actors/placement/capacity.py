"""Room: how many tenants may live at once, each in its place, and who goes when more want to."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from dynamic_workflows.eventlog.errors import WorkflowsError

from ..rpc.actor_ref import ActorRef, ActorUnreachable
from .tenant_assignment import GIVE_UP_S


class Placement:
    """Where one tenant lives, or is about to."""

    def __init__(self, tenant_id: str, *, is_wanted: bool) -> None:
        self.tenant_id = tenant_id
        self.is_wanted = is_wanted
        self.peer: ActorRef | None = None
        self.opening: asyncio.Future[ActorRef] | None = None
        """Where it lives; done when clients may go there, though it may still be opening."""
        self.code: asyncio.Future[Any] | None = None
        """What its slot is likely to need next."""
        self.adopted: asyncio.Future[None] | None = None
        """Done when the tenant is open."""
        self.released = asyncio.Event()
        self._closing_since_s: float | None = None

    def closes_too_long(self, state: str, now_s: float, limit_s: float) -> bool:
        """Whether the slot, which says that its state is this, has been closing for so long."""
        if state != "closing":
            self._closing_since_s = None
        elif self._closing_since_s is None:
            self._closing_since_s = now_s
        return self._closing_since_s is not None and now_s - self._closing_since_s >= limit_s

    @property
    def has_failed(self) -> bool:
        """Whether the last try to open it came to nothing."""
        opening = self.opening
        if opening is None or not opening.done() or opening.cancelled():
            return False
        return opening.exception() is not None

    @property
    def home(self) -> ActorRef | None:
        """The slot, once clients may go there."""
        return self.peer if self.opening is not None and self.opening.done() else None


class Capacity:
    """Room for so many places. While somebody waits, those who have one are asked to leave."""

    def __init__(self, places_max: int, places: Callable[[], Iterable[Placement]]) -> None:
        """`places` are those in use, in the order in which they were taken."""
        self._places = places
        self._free = asyncio.Semaphore(places_max)
        self._waiting = 0
        self._evicting: asyncio.Task[None] | None = None
        self.evicted = 0
        """How many were asked to leave, and agreed."""

    async def make(self) -> None:
        """Room for one more; waits until somebody leaves, and sees to it that somebody does."""
        self._waiting += 1
        try:
            if self._free.locked() and self._evicting is None:
                self._evicting = asyncio.ensure_future(self._evict())
            await self._free.acquire()
        finally:
            self._waiting -= 1

    async def take(self) -> None:
        """Room for one who lives there already; nobody is asked to leave for it."""
        await self._free.acquire()

    def release(self) -> None:
        """Somebody has left."""
        self._free.release()

    def close(self) -> None:
        """Ask nobody any more."""
        if self._evicting is not None:
            self._evicting.cancel()

    async def _evict(self) -> None:
        """Ask tenants, those that came first first, to go to sleep, while somebody wants room."""
        asked: deque[Placement] = deque()
        leaving: dict[Placement, float] = {}
        try:
            while self._waiting:
                await asyncio.sleep(0.005 if asked else 0.02)
                now_s = asyncio.get_running_loop().time()
                leaving = {
                    place: until_s
                    for place, until_s in leaving.items()
                    if until_s > now_s and not place.released.is_set()
                }
                if len(leaving) >= self._waiting:
                    continue
                if not asked:
                    asked.extend(place for place in self._places() if place not in leaving)
                if asked and await _leaves(place := asked.popleft()):
                    leaving[place] = now_s + GIVE_UP_S
                    self.evicted += 1
        finally:
            self._evicting = None


async def _leaves(place: Placement) -> bool:
    peer = place.home
    if peer is None:
        return False
    try:
        return bool(await peer.call("make_room", timeout_s=5.0))
    except (ActorUnreachable, WorkflowsError):
        return False
