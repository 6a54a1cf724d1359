"""Loader: assigns worker processes to tenants, and tells clients where a tenant is.

A tenant gets a process when it is first called, from the pool if one is ready there. Clients cache
the answer and ask again only when it fails. Nothing here decides who owns a tenant's log: two
processes of one tenant, by whatever accident, would fence one another there, so the loader may
always act on what it knows. After a restart it finds its processes by asking them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from dynamic_workflows.eventlog.clock import Clock
from dynamic_workflows.eventlog.errors import (
    PlatformClosed,
    Unavailable,
    WorkflowsError,
    needs_operator,
)
from dynamic_workflows.eventlog.events import Row
from dynamic_workflows.eventlog.ids import Ids
from dynamic_workflows.eventlog.tracing import mark

from ..background_tasks import BackgroundTasks, seen
from ..rpc.actor_ref import ActorRef, ActorUnreachable
from ..rpc.services import WakeAnswer, WorkerApi, remote
from ..rpc.serving import NotServedHere
from ..timers.timer_index import TimerRowLog
from .capacity import Capacity, Placement
from .process_pool import Launcher, Pool
from .tenant_assignment import GIVE_UP_S, TenantAssignment

WAKES_AT_ONCE_MAX = 16
"""Tenants that are opened at once for the timer; clients come on top."""
STARTS_AT_ONCE_MAX = 16
"""Tenants that are being opened at once: a thousand processes that start together start nothing."""
WAKE_S = 5.0
"""How long the timer waits at most to hear who is open by then."""
WAKING_MAX = 1_000
"""Tenants that are wanted by the timer at once; it asks again for the others."""
TURN_S = 15.0
"""How long a tenant that is being opened holds up those behind it."""
CHECK_S = 2.0
"""How often worker processes are asked whether they live; a restarted one tells by itself."""
CHECKS_MAX = 50
"""Worker processes that are asked in one look."""
START_S = 120.0
"""How long clients wait for a worker process's process to start before its silence counts."""
CLOSES_AT_ONCE_MAX = 16
"""Tenants that are put to sleep at once when all are; each has `GIVE_UP_S` for it."""
CLOSING_S = 60.0
"""How long a worker process may take to put its tenant to sleep when no opening waits for it."""
DRAIN_S = 1.0
"""How long a worker process stays whose tenant could not be opened."""


class LoaderStats(msgspec.Struct):
    """What the loader holds and has done since it started."""

    residents: int = 0
    pool: int = 0
    adopted: int = 0
    from_pool: int = 0
    reopened: int = 0
    released: int = 0
    evicted: int = 0


class Loader:
    """The placements of all tenants. Its methods are called by other actors."""

    def __init__(
        self,
        *,
        launcher: Launcher,
        log: TimerRowLog,
        clock: Clock,
        ids: Ids,
        pool_size: int,
        residents_max: int,
        code: Callable[[str], Awaitable[Any]] | None = None,
    ) -> None:
        """`code` fetches a tenant's code for its process, which is likely to need it next."""
        self._launcher = launcher
        self._log = log
        self._clock = clock
        self._placements: dict[str, Placement] = {}
        self._pool = Pool(
            launcher,
            ids=ids,
            size=pool_size,
            started=lambda name: self._record("slot_started", name, None),
        )
        self._capacity = Capacity(residents_max, self._placements.values)
        self._assignment = TenantAssignment(code)
        self._background = BackgroundTasks()
        self._starts = asyncio.Semaphore(STARTS_AT_ONCE_MAX)
        self._checking: asyncio.Task[None] | None = None
        self._wakes = asyncio.Semaphore(WAKES_AT_ONCE_MAX)
        self._waking: dict[str, asyncio.Task[None]] = {}
        self._is_closed = False
        self._stats = LoaderStats()

    async def open(self) -> None:
        """Find the processes of a former loader again, and fill the pool."""
        names = await self._launcher.names()
        await asyncio.gather(*(self._find_again(name) for name in names))
        self._pool.refill()
        self._checking = asyncio.ensure_future(self._check_forever())

    # --- what clients and the timer call

    async def resolve(self, tenant_id: str, gone: str | None = None) -> ActorRef:
        """Return the tenant's worker process; assigns one if there is none.

        `gone` names the worker process that did not serve it when the caller last tried. The tenant
        may still be opening there: its worker process answers when it is open, or says why it
        cannot be. Raises Unavailable where no worker process can be had, PlatformClosed after
        `close`.
        """
        if self._is_closed:
            raise PlatformClosed("the platform is closing: connect again")
        mark("loader: is asked")
        placement = self._placements.get(tenant_id)
        if placement is None:
            placement = self._new_placement(tenant_id, is_wanted=True)
            placement.code = self._assignment.fetch_code(tenant_id)
        elif placement.home is not None and (placement.home.name == gone or placement.has_failed):
            placement.opening = self._begin(placement, self._reopen(placement, placement.home))
        assert placement.opening is not None
        return await asyncio.shield(placement.opening)

    def _new_placement(self, tenant_id: str, *, is_wanted: bool) -> Placement:
        placement = self._placements[tenant_id] = Placement(tenant_id, is_wanted=is_wanted)
        placement.opening = self._begin(placement, self._open(placement))
        return placement

    async def wake(self, tenant_ids: Sequence[str]) -> WakeAnswer:
        """Open these tenants; returns within some seconds, with those that are not open by then.

        A tenant that has a place is asked for there: it may be falling asleep, or dead. What takes
        longer goes on, and may be asked for again.
        """
        tasks = {name: task for name in tenant_ids if (task := self._waking_of(name)) is not None}
        if tasks:
            await asyncio.wait(tasks.values(), timeout=WAKE_S)
        else:
            await asyncio.sleep(WAKE_S)  # its answer would only bring the question back
        answer = WakeAnswer({}, {})
        for name in tenant_ids:
            task = tasks.get(name)
            if task is None:
                answer.not_yet[name] = "many others are being opened"
            elif not task.done() or task.cancelled():
                answer.not_yet[name] = self._what_it_waits_for(name)
            elif isinstance(
                error := task.exception(), ActorUnreachable | PlatformClosed
            ) or needs_operator(error):
                answer.not_yet[name] = str(error)
            elif error is not None:
                answer.refused[name] = str(error) or type(error).__name__
        return answer

    async def pool_members(self, known: Sequence[str], wait_s: float) -> list[ActorRef] | None:
        """Return the blank processes, as soon as one is not `known`, or after `wait_s`.

        A driver that connects to them ahead saves a new tenant the time of a connection. None:
        there is no pool, or so many drivers watch it that the watching costs more than it saves.
        """
        return await self._pool.members(known, wait_s)

    async def residents(self) -> list[str]:
        """Return the tenants that have a placement."""
        return list(self._placements)

    async def stats(self) -> LoaderStats:
        """Return what the loader holds and has done."""
        return msgspec.structs.replace(
            self._stats,
            residents=len(self._placements),
            pool=len(self._pool.workers),
            from_pool=self._pool.taken,
            evicted=self._capacity.evicted,
        )

    # --- what worker processes call

    async def worker_restarted(self, name: str) -> None:
        """Open the tenant again in a process that ended and was restarted."""
        for placement in self._placements.values():
            if placement.worker is not None and placement.is_on(name):
                self._check(placement, placement.worker)
                return
        # Any other is on its way to the pool, or an unused leftover.
        if not self._pool.knows(name):
            await self._launcher.kill(name)

    async def released(
        self, name: str, tenant_id: str | None, generation: int | None = None
    ) -> None:
        """Take a process back that has closed its tenant, or forget it where it ends.

        `generation`: that of the blank process; None: it ends. What was said of an earlier
        generation, or was heard before, changes nothing.
        """
        placement = self._placements.get(tenant_id) if tenant_id is not None else None
        if placement is not None and not placement.is_on(name):
            placement = None
        if generation is not None and not self._is_closed:
            if placement is not None:
                if generation > placement.generation:
                    self._take_back(placement, generation)
                return
            if self._pool.knows(name) or any(one.is_on(name) for one in self._placements.values()):
                return
        try:
            await self._launcher.kill(name)
        finally:
            if placement is not None:
                self._stats.released += 1
                self._forget(placement)

    def _take_back(self, placement: Placement, generation: int) -> None:
        """Put the process of a tenant that sleeps into the pool."""
        if not placement.released.is_set() and not self._is_closed:
            assert placement.worker is not None
            self._stats.released += 1
            placement.is_given_back = True
            self._pool.give_back(placement.worker, generation)
            self._forget(placement)

    async def close(self) -> None:
        """Put every tenant to sleep and end every worker process."""
        self._is_closed = True
        if self._checking is not None:
            self._checking.cancel()
        self._capacity.close()
        for task in self._waking.values():
            task.cancel()
        for under_way in (self._pool, self._assignment, self._background):
            await under_way.stop()
        turns = asyncio.Semaphore(CLOSES_AT_ONCE_MAX)
        await asyncio.gather(
            *(self._close(placement, turns) for placement in list(self._placements.values()))
        )
        await self._pool.close()

    # --- opening

    def _begin(self, placement: Placement, work: Awaitable[ActorRef]) -> asyncio.Future[ActorRef]:
        task = asyncio.ensure_future(work)
        task.add_done_callback(lambda done: self._opened(placement, done))
        return task

    def _opened(self, placement: Placement, task: asyncio.Future[ActorRef]) -> None:
        # The next caller begins anew; those that waited got the error.
        if task.cancelled():
            self._forget(placement)
        elif (error := task.exception()) is not None:
            if placement.worker is None or not needs_operator(error):
                self._forget(placement)

    def _forget(self, placement: Placement) -> None:
        if self._placements.get(placement.tenant_id) is placement:
            del self._placements[placement.tenant_id]
        if not placement.released.is_set():
            placement.released.set()
            if placement.worker is not None:
                self._capacity.release()

    async def _open(self, placement: Placement) -> ActorRef:
        await self._capacity.make()
        try:
            # The worker process has clients wait until the tenant is open: they need not wait here.
            return await self._assign_in_turn(placement)
        except BaseException:
            self._capacity.release()
            raise

    async def _assign_in_turn(self, placement: Placement) -> ActorRef:
        async with contextlib.AsyncExitStack() as turn:
            await turn.enter_async_context(self._starts)
            is_ready = bool(self._pool.workers)
            worker, placement.generation = await self._pool.take()
            mark("loader: has a worker")
            placement.worker = worker
            placement.assigned = asyncio.ensure_future(self._assign(placement, worker))
            placement.assigned.add_done_callback(seen)
            self._record("slot_adopted", worker.name, placement.tenant_id)
            # The turn lasts until the tenant is open; who asked goes on.
            self._background.begin(self._end_turn(placement.assigned, turn.pop_all()))
        if not is_ready:
            # Its process is only starting, and many may be: clients would take that for silence.
            await asyncio.wait({placement.assigned}, timeout=START_S)
        return worker

    async def _end_turn(
        self, adopted: asyncio.Future[None], turn: contextlib.AsyncExitStack
    ) -> None:
        async with turn:
            # A worker process that Ray cannot place yet must not stop the others.
            await asyncio.wait({adopted}, timeout=TURN_S)

    async def _assign(self, placement: Placement, worker: ActorRef) -> None:
        try:
            await self._assign_to(placement, worker)
        except Exception as error:
            if needs_operator(error):
                raise  # it stays, and tries again: another worker process would fare no better
            # Nothing of the tenant ran there, but a process that failed once is not worth keeping.
            # It has some time to tell its clients why.
            self._forget(placement)
            if not placement.is_given_back:
                asyncio.get_running_loop().call_later(DRAIN_S, self._kill_soon, worker.name)
            raise
        self._stats.adopted += 1

    def _kill_soon(self, name: str) -> None:
        self._background.begin(self._launcher.kill(name))

    async def _assign_to(self, placement: Placement, worker: ActorRef) -> bool:
        return await self._assignment.assign(
            worker,
            placement.tenant_id,
            is_wanted=placement.is_wanted,
            generation=placement.generation,
            code=placement.code,
        )

    async def _reopen(self, placement: Placement, worker: ActorRef) -> ActorRef:
        """Open a tenant that did not answer again, in its process or in another."""
        try:
            if await self._assign_unless_released(placement, worker):
                placement.assigned = None  # what went wrong at first is over
                return worker
        except NotServedHere:
            # It is going to sleep, and tells when it has; the wait is bounded as everything else.
            try:
                await asyncio.wait_for(placement.released.wait(), GIVE_UP_S)
            except TimeoutError:
                pass
        except Unavailable as error:
            if needs_operator(error):
                raise  # `_check_on` has it tried again
        except WorkflowsError:
            if not placement.is_given_back:
                asyncio.get_running_loop().call_later(DRAIN_S, self._kill_soon, worker.name)
            raise
        if not placement.is_given_back:
            await self._launcher.kill(worker.name)
            self._forget(placement)
        return await self.resolve(placement.tenant_id)

    async def _assign_unless_released(self, placement: Placement, worker: ActorRef) -> bool:
        """Have the tenant opened there; return False when the process closed it and ends."""
        assigning = asyncio.ensure_future(self._assign_to(placement, worker))
        released = asyncio.ensure_future(placement.released.wait())
        try:
            await asyncio.wait({assigning, released}, return_when=asyncio.FIRST_COMPLETED)
            if not assigning.done():
                return False
            self._stats.reopened += assigning.result()
            return True
        finally:
            for task in (assigning, released):
                task.cancel()

    def _check(self, placement: Placement, worker: ActorRef) -> None:
        if placement.opening is None or placement.opening.done():
            placement.opening = self._begin(placement, self._reopen(placement, worker))
            # Perhaps no caller waits for this one; the next caller gets the error.
            placement.opening.add_done_callback(seen)

    # --- waking

    def _waking_of(self, tenant_id: str) -> asyncio.Task[None] | None:
        """Return the opening of a tenant for the timer, begun unless pending; None: too many."""
        task = self._waking.get(tenant_id)
        if task is None and len(self._waking) < WAKING_MAX:
            task = self._waking[tenant_id] = asyncio.ensure_future(self._wake(tenant_id))
            task.add_done_callback(lambda done: self._woken(tenant_id, done))
        return task

    def _woken(self, tenant_id: str, task: asyncio.Task[None]) -> None:
        seen(task)
        self._waking.pop(tenant_id, None)

    async def _wake(self, tenant_id: str) -> None:
        if self._is_closed:
            raise PlatformClosed("the platform is closing")
        placement = self._placements.get(tenant_id)
        if placement is not None:
            if placement.home is not None and (
                placement.assigned is None or placement.assigned.done()
            ):
                self._check(placement, placement.home)
            await self._arrival(tenant_id)
            return
        async with self._wakes:
            if tenant_id not in self._placements and not self._is_closed:
                self._new_placement(tenant_id, is_wanted=False)
            arrival = asyncio.ensure_future(self._arrival(tenant_id))
            # One that hangs must not stop the others.
            await asyncio.wait({arrival}, timeout=TURN_S)
        await arrival

    async def _arrival(self, tenant_id: str) -> None:
        """Wait until the tenant is open in some process; raises why it cannot be."""
        placement: Placement | None = None
        while placement is None or placement is not self._placements.get(tenant_id):
            placement = self._placements.get(tenant_id)
            if placement is None:
                raise ActorUnreachable("it has fallen asleep meanwhile")
            assert placement.opening is not None
            await asyncio.shield(placement.opening)
            if placement.assigned is not None:
                await asyncio.shield(placement.assigned)

    def _what_it_waits_for(self, tenant_id: str) -> str:
        placement = self._placements.get(tenant_id)
        if placement is None:
            return "it waits for its turn: others are being opened"
        if placement.worker is None:
            return "it waits for a worker process, and for capacity"
        return f"{placement.worker.name} has not opened it so far"

    # --- worker processes

    async def _find_again(self, name: str) -> None:
        worker = await self._launcher.find(name)
        if worker is None:
            return
        try:
            tenant_id, state, generation = await remote(
                worker, WorkerApi.who, timeout_s=GIVE_UP_S
            )()
        except (ActorUnreachable, WorkflowsError):
            await self._launcher.kill(name)
            return
        if state == "blank":
            # If it had a tenant before it died: that one is opened again as it is listed as open.
            self._pool.give_back(worker, generation)
        elif tenant_id is not None and tenant_id not in self._placements:
            placement = self._placements[tenant_id] = Placement(tenant_id, is_wanted=False)
            placement.worker, placement.generation = worker, generation
            await self._capacity.take()
            placement.opening = asyncio.get_running_loop().create_future()
            placement.opening.set_result(worker)

    async def _check_forever(self) -> None:
        pending: deque[Placement] = deque()
        while True:
            await asyncio.sleep(CHECK_S)
            self._pool.refill()
            for spare in self._pool.surplus():
                self._kill_soon(spare.name)
            if not pending:
                pending.extend(self._placements.values())
            batch = [pending.popleft() for _ in range(min(CHECKS_MAX, len(pending)))]
            await asyncio.gather(*(self._check_on(placement) for placement in batch))

    async def _check_on(self, placement: Placement) -> None:
        worker = placement.home
        if worker is None:
            return
        try:
            tenant_id, state, generation = await remote(
                worker, WorkerApi.who, timeout_s=GIVE_UP_S
            )()
        except (ActorUnreachable, WorkflowsError):
            tenant_id, state, generation = None, "", 0
        if self._placements.get(placement.tenant_id) is not placement:
            return
        if state == "blank" and generation > placement.generation:
            self._take_back(placement, generation)  # what it said of it was lost
        elif tenant_id != placement.tenant_id or state == "broken":
            self._check(placement, worker)
        elif placement.closes_too_long(state, asyncio.get_running_loop().time(), CLOSING_S):
            # It is still listed as open: the timer has it opened elsewhere.
            await self._launcher.kill(worker.name)
            self._forget(placement)

    async def _close(self, placement: Placement, turns: asyncio.Semaphore) -> None:
        for step in (placement.opening, placement.assigned):
            if step is not None:
                await asyncio.wait({step})
        async with turns:
            if placement.worker is not None and not placement.released.is_set():
                try:
                    await remote(placement.worker, WorkerApi.close, timeout_s=GIVE_UP_S)()
                except (ActorUnreachable, WorkflowsError):
                    pass  # it stays listed as open, and is opened again at the next connect
                await self._launcher.kill(placement.worker.name)
                self._forget(placement)

    def _record(self, kind: str, worker: str, tenant_id: str | None) -> None:
        """Append the decision to the loader's log, for operators; not awaited."""
        payload = None if tenant_id is None else msgspec.json.encode({"tenant": tenant_id})
        row = Row(
            type=kind, workflow="", instance_id=worker, ts=self._clock.now_us(), payload=payload
        )
        future = self._log.append([row], durable=False)
        future.add_done_callback(seen)
