"""Capacity: how many tenants may be open at once, and which are asked to sleep for new ones."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from dynamic_workflows.eventlog.errors import WorkflowsError

from ..rpc.actor_ref import ActorRef, ActorUnreachable
from ..rpc.services import WorkerApi, remote
from .tenant_assignment import GIVE_UP_S


class Placement:
    """The worker process of one tenant, or the attempt to get one."""

    def __init__(self, tenant_id: str, *, is_wanted: bool) -> None:
        self.tenant_id = tenant_id
        self.is_wanted = is_wanted
        self.worker: ActorRef | None = None
        self.generation = 0
        """The generation of the process that it was assigned under."""
        self.opening: asyncio.Future[ActorRef] | None = None
        """Where it lives; done when clients may go there, though it may still be opening."""
        self.code: asyncio.Future[Any] | None = None
        """What its worker process is likely to need next."""
        self.assigned: asyncio.Future[None] | None = None
        """Done when the tenant is open."""
        self.released = asyncio.Event()
        self.is_given_back = False
        """Whether its process is blank again, and may be another tenant's by now."""
        self._closing_since_s: float | None = None

    def is_on(self, name: str) -> bool:
        """Return whether the tenant was placed in the worker process of this name."""
        return self.worker is not None and self.worker.name == name

    def closes_too_long(self, state: str, now_s: float, limit_s: float) -> bool:
        """Return whether the process, in this state, has been closing for too long."""
        if state != "closing":
            self._closing_since_s = None
        elif self._closing_since_s is None:
            self._closing_since_s = now_s
        return self._closing_since_s is not None and now_s - self._closing_since_s >= limit_s

    @property
    def has_failed(self) -> bool:
        """Whether the last attempt to open the tenant failed."""
        opening = self.opening
        if opening is None or not opening.done() or opening.cancelled():
            return False
        return opening.exception() is not None

    @property
    def home(self) -> ActorRef | None:
        """The worker process, once clients may call it; else None."""
        return self.worker if self.opening is not None and self.opening.done() else None


class Capacity:
    """A limit of placements. While an opening waits for one, idle tenants are asked to sleep."""

    def __init__(self, placements_max: int, placements: Callable[[], Iterable[Placement]]) -> None:
        """`placements` are those in use, in the order in which they were taken."""
        self._placements = placements
        self._free = asyncio.Semaphore(placements_max)
        self._waiting = 0
        self._evicting: asyncio.Task[None] | None = None
        self.evicted = 0
        """How many were asked to leave, and agreed."""

    async def make(self) -> None:
        """Reserve a placement; waits until one is released, and has a tenant evicted if needed."""
        self._waiting += 1
        try:
            if self._free.locked() and self._evicting is None:
                self._evicting = asyncio.ensure_future(self._evict())
            await self._free.acquire()
        finally:
            self._waiting -= 1

    async def take(self) -> None:
        """Reserve a placement for a tenant that is open already, without evicting another."""
        await self._free.acquire()

    def release(self) -> None:
        """Release a placement."""
        self._free.release()

    def close(self) -> None:
        """Stop evicting."""
        if self._evicting is not None:
            self._evicting.cancel()

    async def _evict(self) -> None:
        """Ask tenants, in the order of their placement, to go to sleep while an opening waits."""
        asked: deque[Placement] = deque()
        leaving: dict[Placement, float] = {}
        try:
            while self._waiting:
                await asyncio.sleep(0.005 if asked else 0.02)
                now_s = asyncio.get_running_loop().time()
                leaving = {
                    placement: until_s
                    for placement, until_s in leaving.items()
                    if until_s > now_s and not placement.released.is_set()
                }
                if len(leaving) >= self._waiting:
                    continue
                if not asked:
                    asked.extend(
                        placement for placement in self._placements() if placement not in leaving
                    )
                if asked and await _leaves(placement := asked.popleft()):
                    leaving[placement] = now_s + GIVE_UP_S
                    self.evicted += 1
        finally:
            self._evicting = None


async def _leaves(placement: Placement) -> bool:
    worker = placement.home
    if worker is None:
        return False
    try:
        return await remote(worker, WorkerApi.make_room, timeout_s=5.0)(placement.tenant_id)
    except (ActorUnreachable, WorkflowsError):
        return False
