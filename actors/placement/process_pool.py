"""Process pool: blank worker processes, started ahead of the tenants that will need them or used
before.

A process whose tenant has gone to sleep comes back to the pool, beyond its size too: another tenant
is likely to follow. What is beyond the size and nobody takes ends after `SPARE_KEPT_S`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from dynamic_workflows.eventlog.errors import WorkflowsError
from dynamic_workflows.eventlog.ids import Ids

from ..background_tasks import BackgroundTasks
from ..rpc.actor_ref import ActorRef, ActorUnreachable
from ..rpc.services import WorkerApi, remote

WATCHERS_MAX = 16
"""Drivers that are told of the worker processes in the pool."""
SPARE_KEPT_S = 60.0
"""How long a process beyond the pool's size waits for a tenant."""
REFILL_AFTER_S = 0.05
"""Starting a process is work: the tenant that has just got a worker process goes first."""


class Launcher(Protocol):
    """Starts and finds worker processes."""

    async def start(self, name: str, *, is_spare: bool) -> ActorRef:
        """Start a worker process; its first call waits until it is ready.

        A spare one has time to get ready for any tenant; else a tenant is waiting for it.
        """
        ...

    async def names(self) -> list[str]:
        """Return the names of all worker processes, with those that are being restarted."""
        ...

    async def find(self, name: str) -> ActorRef | None:
        """Return a worker process by name, or None."""
        ...

    async def kill(self, name: str) -> None:
        """End a worker process for good; harmless when it has ended."""
        ...


class Pool:
    """The blank worker processes of a loader, refilled as they are assigned."""

    def __init__(
        self, launcher: Launcher, *, ids: Ids, size: int, started: Callable[[str], None]
    ) -> None:
        """`started` is called with the name of each process that joins the pool."""
        self._launcher = launcher
        self._ids = ids
        self._size = size
        self._started = started
        self.workers: deque[ActorRef] = deque()
        """The worker processes that wait, those that came first first."""
        self.taken = 0
        """How many tenants found a worker process waiting."""
        self._generations: dict[str, int] = {}
        """Of those in the pool that have served tenants."""
        self._spare_since_s = 0.0
        """When the pool last had no more than its size, or got a process back."""
        self._blank: set[str] = set()
        """Worker processes on their way to the pool."""
        self._starting = BackgroundTasks()
        self._watchers: set[asyncio.Future[None]] = set()
        """Those who wait to hear of new worker processes in the pool."""
        self._is_stopped = False

    def knows(self, name: str) -> bool:
        """Return whether a process is in the pool, or starting for it."""
        return name in self._blank or name in {worker.name for worker in self.workers}

    async def members(self, known: Sequence[str], wait_s: float) -> list[ActorRef] | None:
        """Return the blank processes, as soon as one is not `known`, or after `wait_s`.

        None: there are no such worker processes, or so many want to know that it costs more than it
        saves.
        """
        if not self._size or self._is_stopped or len(self._watchers) >= WATCHERS_MAX:
            return None
        if all(worker.name in known for worker in self.workers):
            changed = asyncio.get_running_loop().create_future()
            self._watchers.add(changed)
            try:
                await asyncio.wait_for(changed, wait_s)
            except TimeoutError:
                pass
            finally:
                self._watchers.discard(changed)
        return list(self.workers)

    def give_back(self, worker: ActorRef, generation: int) -> None:
        """Take in a blank process, which has become blank so often; not after `stop`."""
        self.workers.append(worker)
        self._generations[worker.name] = generation
        self._spare_since_s = asyncio.get_running_loop().time()
        self._notify_watchers()

    def surplus(self) -> list[ActorRef]:
        """Remove and return the processes beyond the pool's size, if they have waited long."""
        now_s = asyncio.get_running_loop().time()
        beyond = len(self.workers) + len(self._starting) - self._size
        if beyond <= 0 or now_s - self._spare_since_s < SPARE_KEPT_S:
            return []
        spare = [self.workers.popleft() for _ in range(min(beyond, len(self.workers)))]
        for worker in spare:
            self._generations.pop(worker.name, None)
        return spare

    async def take(self) -> tuple[ActorRef, int]:
        """Return a process for a tenant, and its generation: a blank one, else a new one that is
        only starting."""
        generation = 0
        if self.workers:
            worker = self.workers.popleft()
            generation = self._generations.pop(worker.name, 0)
            self.taken += 1
        else:
            worker = await self._launcher.start(self._new_name(), is_spare=False)
        if self._size:
            asyncio.get_running_loop().call_later(REFILL_AFTER_S, self.refill)
        return worker, generation

    def refill(self) -> None:
        """Start the processes that the pool lacks; none after `stop`."""
        while not self._is_stopped and len(self.workers) + len(self._starting) < self._size:
            self._starting.begin(self._start_one())

    async def stop(self) -> None:
        """Start no more processes; blank ones may still be taken."""
        self._is_stopped = True
        await self._starting.stop()

    async def close(self) -> None:
        """End the blank processes; to be called after `stop`. The taker ends one that it took."""
        while self.workers:
            await self._launcher.kill(self.workers.popleft().name)
        self._notify_watchers()

    async def _start_one(self) -> None:
        worker = await self._launcher.start(self._new_name(), is_spare=True)
        self._blank.add(worker.name)
        try:
            await remote(worker, WorkerApi.who)()
            self._started(worker.name)
            self.workers.append(worker)
            self._notify_watchers()
        except (ActorUnreachable, WorkflowsError):
            await self._launcher.kill(worker.name)
        finally:
            self._blank.discard(worker.name)

    def _notify_watchers(self) -> None:
        for changed in self._watchers:
            if not changed.done():
                changed.set_result(None)

    def _new_name(self) -> str:
        return f"worker-{self._ids.token()[:12]}"
