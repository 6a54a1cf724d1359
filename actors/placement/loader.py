"""Loader: where each tenant lives. It gives slots to tenants, and answers who asks for one.

A tenant gets a slot when it is first wanted, from the pool where one waits there. Clients keep what
they are told and come back only when it fails. Nothing here decides who owns a tenant's log: two
slots for one tenant, by whatever accident, would fence one another there, so the loader may always
act on what it knows. After a restart it knows its slots by asking them.
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

from ..background_tasks import Errands, seen
from ..rpc.actor_ref import ActorRef, ActorUnreachable
from ..rpc.serving import NotServedHere
from ..timers.timer_index import TimerRowLog
from ..timers.wake_service import WakeAnswer
from .capacity import Capacity, Placement
from .process_pool import Launcher, Pool
from .tenant_assignment import GIVE_UP_S, Adoption

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
LOOK_S = 2.0
"""How often slots are asked whether they live; a restarted one tells by itself."""
LOOKS_MAX = 50
"""Slots that are asked in one look."""
START_S = 120.0
"""How long clients wait for a slot's process to start before its silence counts."""
CLOSES_AT_ONCE_MAX = 16
"""Tenants that are put to sleep at once when all are; each has `GIVE_UP_S` for it."""
CLOSING_S = 60.0
"""How long a slot may take to put its tenant to sleep when nobody waits for it."""
LAST_WORDS_S = 1.0
"""How long a slot stays whose tenant could not be opened."""


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
    """The places of all tenants. Its methods are what peers call."""

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
        """`code` fetches a tenant's code for its slot, which is likely to need it next."""
        self._launcher = launcher
        self._log = log
        self._clock = clock
        self._places: dict[str, Placement] = {}
        self._pool = Pool(
            launcher,
            ids=ids,
            size=pool_size,
            started=lambda name: self._record("slot_started", name, None),
        )
        self._room = Capacity(residents_max, self._places.values)
        self._adoption = Adoption(code)
        self._errands = Errands()
        self._starts = asyncio.Semaphore(STARTS_AT_ONCE_MAX)
        self._looking: asyncio.Task[None] | None = None
        self._wakes = asyncio.Semaphore(WAKES_AT_ONCE_MAX)
        self._waking: dict[str, asyncio.Task[None]] = {}
        self._is_closed = False
        self._stats = LoaderStats()

    async def open(self) -> None:
        """Find the slots of an earlier life again, and start what the pool lacks."""
        names = await self._launcher.names()
        await asyncio.gather(*(self._find_again(name) for name in names))
        self._pool.refill()
        self._looking = asyncio.ensure_future(self._look_for_ever())

    # --- what clients and the timer call

    async def resolve(self, tenant_id: str, gone: str | None = None) -> ActorRef:
        """The slot where the tenant lives, opened if need be.

        `gone` names the slot that did not serve it when the caller last tried. The tenant may still
        be opening there: its slot answers when it is open, or says why it cannot be. Raises
        Unavailable where no slot can be had, PlatformClosed after `close`.
        """
        if self._is_closed:
            raise PlatformClosed("the platform is closing: connect again")
        mark("loader: is asked")
        place = self._places.get(tenant_id)
        if place is None:
            place = self._new_place(tenant_id, is_wanted=True)
            place.code = self._adoption.fetch_code(tenant_id)
        elif place.home is not None and (place.home.name == gone or place.has_failed):
            place.opening = self._begin(place, self._reopen(place, place.home))
        assert place.opening is not None
        return await asyncio.shield(place.opening)

    def _new_place(self, tenant_id: str, *, is_wanted: bool) -> Placement:
        place = self._places[tenant_id] = Placement(tenant_id, is_wanted=is_wanted)
        place.opening = self._begin(place, self._open(place))
        return place

    async def wake(self, tenant_ids: Sequence[str]) -> WakeAnswer:
        """Open these tenants; answers within some seconds who is not open then.

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

    async def spares(self, known: Sequence[str], wait_s: float) -> list[ActorRef] | None:
        """The slots that wait for tenants, as soon as one is not `known`, or after `wait_s`.

        Who makes their acquaintance in time saves the tenant that comes the way to its slot. None:
        there are no such slots, or so many want to know that it would cost more than it saves.
        """
        return await self._pool.spares(known, wait_s)

    async def residents(self) -> list[str]:
        """The tenants that live somewhere, or are about to."""
        return list(self._places)

    async def stats(self) -> LoaderStats:
        """What the loader holds and has done."""
        return msgspec.structs.replace(
            self._stats,
            residents=len(self._places),
            pool=len(self._pool.peers),
            from_pool=self._pool.taken,
            evicted=self._room.evicted,
        )

    # --- what slots call

    async def slot_restarted(self, name: str) -> None:
        """A slot's process died and was started anew: its tenant is opened there again."""
        for place in self._places.values():
            if place.peer is not None and place.peer.name == name:
                self._check(place, place.peer)
                return
        # Any other is on its way to the pool, or a leftover that nobody will ever use.
        if not self._pool.knows(name):
            await self._launcher.kill(name)

    async def released(self, name: str, tenant_id: str | None) -> None:
        """The slot has let go of its tenant and ends."""
        try:
            await self._launcher.kill(name)
        finally:
            place = self._places.get(tenant_id) if tenant_id is not None else None
            if place is not None and place.peer is not None and place.peer.name == name:
                self._stats.released += 1
                self._forget(place)

    async def close(self) -> None:
        """Put every tenant to sleep and end every slot."""
        self._is_closed = True
        if self._looking is not None:
            self._looking.cancel()
        self._room.close()
        for task in self._waking.values():
            task.cancel()
        for under_way in (self._pool, self._adoption, self._errands):
            await under_way.stop()
        turns = asyncio.Semaphore(CLOSES_AT_ONCE_MAX)
        await asyncio.gather(*(self._close(place, turns) for place in list(self._places.values())))
        await self._pool.close()

    # --- opening

    def _begin(self, place: Placement, work: Awaitable[ActorRef]) -> asyncio.Future[ActorRef]:
        task = asyncio.ensure_future(work)
        task.add_done_callback(lambda done: self._opened(place, done))
        return task

    def _opened(self, place: Placement, task: asyncio.Future[ActorRef]) -> None:
        # Whoever asks next begins anew; who waited has the error.
        if task.cancelled():
            self._forget(place)
        elif (error := task.exception()) is not None:
            if place.peer is None or not needs_operator(error):
                self._forget(place)

    def _forget(self, place: Placement) -> None:
        if self._places.get(place.tenant_id) is place:
            del self._places[place.tenant_id]
        if not place.released.is_set():
            place.released.set()
            if place.peer is not None:
                self._room.release()

    async def _open(self, place: Placement) -> ActorRef:
        await self._room.make()
        try:
            # The slot makes clients wait until the tenant is open, so they need not wait here.
            return await self._take_slot_in_turn(place)
        except BaseException:
            self._room.release()
            raise

    async def _take_slot_in_turn(self, place: Placement) -> ActorRef:
        async with contextlib.AsyncExitStack() as turn:
            await turn.enter_async_context(self._starts)
            is_ready = bool(self._pool.peers)
            peer = await self._pool.take()
            mark("loader: has a slot")
            place.peer = peer
            place.adopted = asyncio.ensure_future(self._adopt(place, peer))
            place.adopted.add_done_callback(seen)
            self._record("slot_adopted", peer.name, place.tenant_id)
            # The turn lasts until the tenant is open; who asked goes on.
            self._errands.begin(self._end_turn(place.adopted, turn.pop_all()))
        if not is_ready:
            # Its process is only starting, and many may be: clients would take that for silence.
            await asyncio.wait({place.adopted}, timeout=START_S)
        return peer

    async def _end_turn(
        self, adopted: asyncio.Future[None], turn: contextlib.AsyncExitStack
    ) -> None:
        async with turn:
            # A slot that Ray cannot place yet must not stop the others.
            await asyncio.wait({adopted}, timeout=TURN_S)

    async def _adopt(self, place: Placement, peer: ActorRef) -> None:
        try:
            await self._tell(place, peer)
        except Exception as error:
            if needs_operator(error):
                raise  # it stays, and tries again: another slot would fare no better
            # Nothing of the tenant ran there, but a slot that failed once is not worth keeping.
            # It has some time to tell its clients why.
            self._forget(place)
            asyncio.get_running_loop().call_later(LAST_WORDS_S, self._kill_soon, peer.name)
            raise
        self._stats.adopted += 1

    def _kill_soon(self, name: str) -> None:
        self._errands.begin(self._launcher.kill(name))

    async def _tell(self, place: Placement, peer: ActorRef) -> bool:
        return await self._adoption.adopt(
            peer, place.tenant_id, is_wanted=place.is_wanted, code=place.code
        )

    async def _reopen(self, place: Placement, peer: ActorRef) -> ActorRef:
        """The tenant did not answer at its slot: open it again there, or at another."""
        try:
            if await self._tell_unless_released(place, peer):
                place.adopted = None  # what went wrong at first is over
                return peer
        except NotServedHere:
            # It is going to sleep, and tells when it has; the wait is bounded as everything else.
            try:
                await asyncio.wait_for(place.released.wait(), GIVE_UP_S)
            except TimeoutError:
                pass
        except Unavailable as error:
            if needs_operator(error):
                raise  # `_look_at` has it tried again
        except WorkflowsError:
            asyncio.get_running_loop().call_later(LAST_WORDS_S, self._kill_soon, peer.name)
            raise
        await self._launcher.kill(peer.name)
        self._forget(place)
        return await self.resolve(place.tenant_id)

    async def _tell_unless_released(self, place: Placement, peer: ActorRef) -> bool:
        """Have the tenant opened there; False: the slot has let go of it, and ends."""
        telling = asyncio.ensure_future(self._tell(place, peer))
        released = asyncio.ensure_future(place.released.wait())
        try:
            await asyncio.wait({telling, released}, return_when=asyncio.FIRST_COMPLETED)
            if not telling.done():
                return False
            self._stats.reopened += telling.result()
            return True
        finally:
            for task in (telling, released):
                task.cancel()

    def _check(self, place: Placement, peer: ActorRef) -> None:
        if place.opening is None or place.opening.done():
            place.opening = self._begin(place, self._reopen(place, peer))
            # Nobody may be waiting for this one; the error is the next caller's to see.
            place.opening.add_done_callback(seen)

    # --- waking

    def _waking_of(self, tenant_id: str) -> asyncio.Task[None] | None:
        """The opening of a tenant for the timer, begun unless it is under way; None: too many."""
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
        place = self._places.get(tenant_id)
        if place is not None:
            if place.home is not None and (place.adopted is None or place.adopted.done()):
                self._check(place, place.home)
            await self._arrival(tenant_id)
            return
        async with self._wakes:
            if tenant_id not in self._places and not self._is_closed:
                self._new_place(tenant_id, is_wanted=False)
            arrival = asyncio.ensure_future(self._arrival(tenant_id))
            # One that hangs must not stop the others.
            await asyncio.wait({arrival}, timeout=TURN_S)
        await arrival

    async def _arrival(self, tenant_id: str) -> None:
        """Wait until the tenant is open, wherever that is; raises why it cannot be."""
        place: Placement | None = None
        while place is None or place is not self._places.get(tenant_id):
            place = self._places.get(tenant_id)
            if place is None:
                raise ActorUnreachable("it has fallen asleep meanwhile")
            assert place.opening is not None
            await asyncio.shield(place.opening)
            if place.adopted is not None:
                await asyncio.shield(place.adopted)

    def _what_it_waits_for(self, tenant_id: str) -> str:
        place = self._places.get(tenant_id)
        if place is None:
            return "it waits for its turn: others are being opened"
        if place.peer is None:
            return "it waits for a slot, and for room"
        return f"{place.peer.name} has not opened it so far"

    # --- slots

    async def _find_again(self, name: str) -> None:
        peer = await self._launcher.find(name)
        if peer is None:
            return
        try:
            tenant_id, state = await peer.call("who", timeout_s=GIVE_UP_S)
        except (ActorUnreachable, WorkflowsError):
            await self._launcher.kill(name)
            return
        if state == "blank":
            # If it had a tenant before it died: that one is opened again as it is listed as open.
            self._pool.peers.append(peer)
        elif tenant_id is not None and tenant_id not in self._places:
            place = self._places[tenant_id] = Placement(tenant_id, is_wanted=False)
            place.peer = peer
            await self._room.take()
            place.opening = asyncio.get_running_loop().create_future()
            place.opening.set_result(peer)

    async def _look_for_ever(self) -> None:
        looked: deque[Placement] = deque()
        while True:
            await asyncio.sleep(LOOK_S)
            self._pool.refill()
            if not looked:
                looked.extend(self._places.values())
            batch = [looked.popleft() for _ in range(min(LOOKS_MAX, len(looked)))]
            await asyncio.gather(*(self._look_at(place) for place in batch))

    async def _look_at(self, place: Placement) -> None:
        peer = place.home
        if peer is None:
            return
        try:
            tenant_id, state = await peer.call("who", timeout_s=GIVE_UP_S)
        except (ActorUnreachable, WorkflowsError):
            tenant_id, state = None, ""
        if self._places.get(place.tenant_id) is not place:
            return
        if tenant_id != place.tenant_id or state == "broken":
            self._check(place, peer)
        elif place.closes_too_long(state, asyncio.get_running_loop().time(), CLOSING_S):
            # It is still listed as open: the timer has it opened elsewhere.
            await self._launcher.kill(peer.name)
            self._forget(place)

    async def _close(self, place: Placement, turns: asyncio.Semaphore) -> None:
        for step in (place.opening, place.adopted):
            if step is not None:
                await asyncio.wait({step})
        async with turns:
            if place.peer is not None and not place.released.is_set():
                try:
                    await place.peer.call("close", timeout_s=GIVE_UP_S)
                except (ActorUnreachable, WorkflowsError):
                    pass  # it stays listed as open, and is opened again by whoever connects next
                await self._launcher.kill(place.peer.name)
                self._forget(place)

    def _record(self, kind: str, slot: str, tenant_id: str | None) -> None:
        """Keep the decision in the loader's log; nobody waits for it, and nothing depends on it."""
        payload = None if tenant_id is None else msgspec.json.encode({"tenant": tenant_id})
        row = Row(
            type=kind, workflow="", instance_id=slot, ts=self._clock.now_us(), payload=payload
        )
        future = self._log.append([row], durable=False)
        future.add_done_callback(seen)
