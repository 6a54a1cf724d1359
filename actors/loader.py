"""Loader: where each tenant lives. It gives slots to tenants, and answers who asks for one.

A tenant gets a slot when it is first wanted, from a pool of slots that were started ahead. Clients
keep what they are told and come back only when it fails. Nothing here decides who owns a tenant's
log: two slots for one tenant, by whatever accident, would fence one another there, so the loader
may always act on what it knows. After a restart it knows its slots by asking them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Protocol

import msgspec

from ..eventlog.clock import Clock
from ..eventlog.errors import PlatformClosed, Unavailable, WorkflowsError
from ..eventlog.events import Row
from ..eventlog.ids import Ids
from ..eventlog.marks import mark
from .peers import Lost, Peer
from .slot import Moved
from .timer_index import Journal

WAKES_AT_ONCE_MAX = 16
"""Tenants that are opened at once for the timer; clients come on top."""
STARTS_AT_ONCE_MAX = 16
"""Tenants that are being opened at once: a thousand processes that start together start nothing."""
TURN_S = 15.0
"""How long a tenant that is being opened holds up those behind it."""
GIVE_UP_S = 15.0
"""How long a slot may be unreachable before its tenant moves to another one."""
LOOK_S = 2.0
"""How often slots are asked whether they live; a restarted one tells by itself."""
LOOKS_MAX = 50
"""Slots that are asked in one look."""
START_S = 120.0
"""How long clients wait for a slot's process to start before its silence counts."""
CLOSES_AT_ONCE_MAX = 16
"""Tenants that are put to sleep at once when all are; each has `GIVE_UP_S` for it."""
LAST_WORDS_S = 1.0
"""How long a slot stays whose tenant could not be opened."""
ACQUAINTANCES_MAX = 16
"""Drivers that are told of the slots in the pool."""
REFILL_AFTER_S = 0.05
"""Starting a process is work: the tenant that has just got a slot goes first."""


class Launcher(Protocol):
    """Starts and finds the processes of slots."""

    async def start(self, name: str, *, is_spare: bool) -> Peer:
        """A new slot; its first call waits until it is ready.

        A spare one has time to get ready for any tenant; else a tenant is waiting for it.
        """
        ...

    async def names(self) -> list[str]:
        """The slots that exist, dead ones that will be restarted included."""
        ...

    async def find(self, name: str) -> Peer | None:
        """A slot by name."""
        ...

    async def kill(self, name: str) -> None:
        """End a slot for good, whatever it does; harmless when it is gone."""
        ...


class LoaderStats(msgspec.Struct):
    """What the loader holds and has done since it started."""

    residents: int = 0
    pool: int = 0
    adopted: int = 0
    from_pool: int = 0
    reopened: int = 0
    released: int = 0
    evicted: int = 0


class _Place:
    """Where one tenant lives, or is about to."""

    def __init__(self, tenant_id: str, *, is_wanted: bool) -> None:
        self.tenant_id = tenant_id
        self.is_wanted = is_wanted
        self.peer: Peer | None = None
        self.opening: asyncio.Future[Peer] | None = None
        """Where it lives; done when clients may go there, though it may still be opening."""
        self.code: asyncio.Future[Any] | None = None
        """What its slot is likely to need next."""
        self.adopted: asyncio.Future[None] | None = None
        """Done when the tenant is open."""
        self.released = asyncio.Event()


class Loader:
    """The places of all tenants. Its methods are what peers call."""

    def __init__(
        self,
        *,
        launcher: Launcher,
        timer: Callable[[], Awaitable[Peer]],
        log: Journal,
        clock: Clock,
        ids: Ids,
        pool_size: int,
        residents_max: int,
        code: Callable[[str], Awaitable[Any]] | None = None,
    ) -> None:
        """`code` fetches a tenant's code for its slot, which is likely to need it next."""
        self._launcher = launcher
        self._timer = timer
        self._log = log
        self._clock = clock
        self._ids = ids
        self._pool_size = pool_size
        self._code = code
        self._places: dict[str, _Place] = {}
        self._pool: deque[Peer] = deque()
        self._acquaintances: set[asyncio.Future[None]] = set()
        """Those who wait to hear of new slots in the pool."""
        self._blank: set[str] = set()
        """Slots on their way to the pool."""
        self._starting: set[asyncio.Task[None]] = set()
        self._errands: set[asyncio.Task[None]] = set()
        self._listings: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(residents_max)
        self._starts = asyncio.Semaphore(STARTS_AT_ONCE_MAX)
        self._wanting_room = 0
        self._evicting: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._wakes = asyncio.Semaphore(WAKES_AT_ONCE_MAX)
        self._is_closed = False
        self._stats = LoaderStats()

    async def open(self) -> None:
        """Find the slots of an earlier life again, and start what the pool lacks."""
        names = await self._launcher.names()
        await asyncio.gather(*(self._find_again(name) for name in names))
        self._refill()
        self._looking = asyncio.ensure_future(self._look_for_ever())

    # --- what clients and the timer call

    async def resolve(self, tenant_id: str, gone: str | None = None) -> Peer:
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
            self._fetch_code(place)
        elif gone is not None and place.peer is not None and place.peer.name == gone:
            if place.opening is None or place.opening.done():
                place.opening = self._begin(place, self._reopen(place, place.peer))
        assert place.opening is not None
        return await asyncio.shield(place.opening)

    def _new_place(self, tenant_id: str, *, is_wanted: bool) -> _Place:
        place = self._places[tenant_id] = _Place(tenant_id, is_wanted=is_wanted)
        place.opening = self._begin(place, self._open(place))
        return place

    async def wake(self, tenant_ids: Sequence[str]) -> list[str]:
        """Open these tenants; answers those that could not be opened now."""
        outcomes = await asyncio.gather(*(self._wake(name) for name in tenant_ids))
        return [name for name, is_awake in zip(tenant_ids, outcomes, strict=True) if not is_awake]

    async def spares(self, known: Sequence[str], wait_s: float) -> list[Peer] | None:
        """The slots that wait for tenants, as soon as one is not `known`, or after `wait_s`.

        Who makes their acquaintance in time saves the tenant that comes the way to its slot. None:
        there are no such slots, or so many want to know that it would cost more than it saves.
        """
        if not self._pool_size or self._is_closed or len(self._acquaintances) >= ACQUAINTANCES_MAX:
            return None
        if all(peer.name in known for peer in self._pool):
            news = asyncio.get_running_loop().create_future()
            self._acquaintances.add(news)
            try:
                await asyncio.wait_for(news, wait_s)
            except TimeoutError:
                pass
            finally:
                self._acquaintances.discard(news)
        return list(self._pool)

    async def residents(self) -> list[str]:
        """The tenants that live somewhere, or are about to."""
        return list(self._places)

    async def stats(self) -> LoaderStats:
        """What the loader holds and has done."""
        return msgspec.structs.replace(
            self._stats, residents=len(self._places), pool=len(self._pool)
        )

    # --- what slots call

    async def slot_restarted(self, name: str) -> None:
        """A slot's process died and was started anew: its tenant is opened there again."""
        for place in self._places.values():
            if place.peer is not None and place.peer.name == name:
                self._check(place, place.peer)
                return
        # Any other is on its way to the pool, or a leftover that nobody will ever use.
        if name not in self._blank and name not in {peer.name for peer in self._pool}:
            await self._launcher.kill(name)

    async def released(self, name: str, tenant_id: str | None) -> None:
        """The slot has let go of its tenant and ends."""
        await self._launcher.kill(name)
        place = self._places.get(tenant_id) if tenant_id is not None else None
        if place is not None and place.peer is not None and place.peer.name == name:
            self._stats.released += 1
            self._forget(place)

    async def close(self) -> None:
        """Put every tenant to sleep and end every slot."""
        self._is_closed = True
        under_way = (*self._starting, *self._errands)
        for task in (self._looking, self._evicting, *under_way):
            if task is not None:
                task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        turns = asyncio.Semaphore(CLOSES_AT_ONCE_MAX)
        await asyncio.gather(*(self._close(place, turns) for place in list(self._places.values())))
        for peer in self._pool:
            await self._launcher.kill(peer.name)
        self._pool.clear()
        self._tell_acquaintances()

    # --- opening

    def _begin(self, place: _Place, work: Awaitable[Peer]) -> asyncio.Future[Peer]:
        task = asyncio.ensure_future(work)
        task.add_done_callback(lambda done: self._opened(place, done))
        return task

    def _opened(self, place: _Place, task: asyncio.Future[Peer]) -> None:
        # Whoever asks next begins anew; who waited has the error.
        if task.cancelled() or task.exception() is not None:
            self._forget(place)

    def _forget(self, place: _Place) -> None:
        if self._places.get(place.tenant_id) is place:
            del self._places[place.tenant_id]
        if not place.released.is_set():
            place.released.set()
            if place.peer is not None:
                self._room.release()

    async def _open(self, place: _Place) -> Peer:
        await self._make_room()
        try:
            # The slot makes clients wait until the tenant is open, so they need not wait here.
            return await self._take_slot_in_turn(place)
        except BaseException:
            self._room.release()
            raise

    async def _take_slot_in_turn(self, place: _Place) -> Peer:
        async with contextlib.AsyncExitStack() as turn:
            await turn.enter_async_context(self._starts)
            is_ready = bool(self._pool)
            peer = await self._take_slot()
            mark("loader: has a slot")
            place.peer = peer
            place.adopted = asyncio.ensure_future(self._adopt(place, peer))
            place.adopted.add_done_callback(_seen)
            self._record("slot_adopted", peer.name, place.tenant_id)
            # The turn lasts until the tenant is open; who asked goes on.
            self._spawn(self._end_turn(place.adopted, turn.pop_all()))
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

    async def _adopt(self, place: _Place, peer: Peer) -> None:
        try:
            await self._adopt_at(place, peer)
        except Exception:
            # Nothing of the tenant ran there, but a slot that failed once is not worth keeping.
            # It has some time to tell its clients why.
            self._forget(place)
            asyncio.get_running_loop().call_later(LAST_WORDS_S, self._kill_soon, peer.name)
            raise
        self._stats.adopted += 1

    def _kill_soon(self, name: str) -> None:
        self._spawn(self._launcher.kill(name))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    def _list_soon(self, tenant_id: str, peer: Peer) -> None:
        # No errand: a tenant that is being opened has to be, before it can be closed.
        task = asyncio.ensure_future(self._list_as_open(tenant_id, peer))
        self._listings.add(task)
        task.add_done_callback(self._listings.discard)

    def _fetch_code(self, place: _Place) -> None:
        if self._code is not None:
            place.code = asyncio.ensure_future(self._code(place.tenant_id))
            place.code.add_done_callback(_seen)

    async def _hand_over_code(self, place: _Place, peer: Peer) -> None:
        """A slot that is not told of the code asks for it, and hears what is wrong with it."""
        assert place.code is not None
        with contextlib.suppress(Lost, WorkflowsError):
            await peer.call("take_code", place.tenant_id, await asyncio.shield(place.code))

    async def _list_as_open(self, tenant_id: str, peer: Peer) -> None:
        """A slot that is not told of it sees to it itself."""
        with contextlib.suppress(Lost, WorkflowsError):
            await (await self._timer()).call("opened", [tenant_id], timeout_s=10.0)
            await peer.call("take_listing", tenant_id)

    async def _adopt_at(self, place: _Place, peer: Peer) -> None:
        waited_s = 0.0
        while True:
            adopted = asyncio.ensure_future(peer.call("adopt", place.tenant_id, place.is_wanted))
            # What else the slot needs comes behind: it waits for neither before it begins.
            self._list_soon(place.tenant_id, peer)
            if place.code is not None:
                self._spawn(self._hand_over_code(place, peer))
            try:
                await adopted
                return
            except Lost as error:
                # A slot that died is restarted in its place, under the same name.
                if waited_s >= GIVE_UP_S:
                    raise Unavailable(f"{peer.name} cannot be reached: {error}") from error
                await asyncio.sleep(0.25)
                waited_s += 0.25

    async def _reopen(self, place: _Place, peer: Peer) -> Peer:
        """The tenant did not answer at its slot: open it again there, or at another."""
        try:
            await self._adopt_at(place, peer)
            self._stats.reopened += 1
            return peer
        except Moved:
            # It is going to sleep, and tells when it has; the wait is bounded as everything else.
            try:
                await asyncio.wait_for(place.released.wait(), GIVE_UP_S)
            except TimeoutError:
                pass
        except Unavailable:
            pass
        except WorkflowsError:
            asyncio.get_running_loop().call_later(LAST_WORDS_S, self._kill_soon, peer.name)
            raise
        await self._launcher.kill(peer.name)
        self._forget(place)
        return await self.resolve(place.tenant_id)

    def _check(self, place: _Place, peer: Peer) -> None:
        if place.opening is None or place.opening.done():
            place.opening = self._begin(place, self._reopen(place, peer))
            # Nobody may be waiting for this one; the error is the next caller's to see.
            place.opening.add_done_callback(_seen)

    async def _wake(self, tenant_id: str) -> bool:
        async with self._wakes:
            if self._is_closed:
                return False
            place = self._places.get(tenant_id) or self._new_place(tenant_id, is_wanted=False)
            assert place.opening is not None
            try:
                await asyncio.shield(place.opening)
                if place.adopted is not None:
                    await asyncio.shield(place.adopted)
            except (Lost, WorkflowsError):
                return False
            return True

    # --- slots

    async def _take_slot(self) -> Peer:
        if self._pool:
            peer = self._pool.popleft()
            self._stats.from_pool += 1
        else:
            peer = await self._launcher.start(self._new_name(), is_spare=False)
        if self._pool_size:
            asyncio.get_running_loop().call_later(REFILL_AFTER_S, self._refill)
        return peer

    def _tell_acquaintances(self) -> None:
        for news in self._acquaintances:
            if not news.done():
                news.set_result(None)

    def _new_name(self) -> str:
        return f"slot-{self._ids.token()[:12]}"

    def _refill(self) -> None:
        while not self._is_closed and len(self._pool) + len(self._starting) < self._pool_size:
            task = asyncio.ensure_future(self._start_one())
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)

    async def _start_one(self) -> None:
        peer = await self._launcher.start(self._new_name(), is_spare=True)
        self._blank.add(peer.name)
        try:
            await peer.call("who")
            self._record("slot_started", peer.name, None)
            self._pool.append(peer)
            self._tell_acquaintances()
        except (Lost, WorkflowsError):
            await self._launcher.kill(peer.name)
        finally:
            self._blank.discard(peer.name)

    async def _find_again(self, name: str) -> None:
        peer = await self._launcher.find(name)
        if peer is None:
            return
        try:
            tenant_id, state = await peer.call("who", timeout_s=GIVE_UP_S)
        except Lost:
            await self._launcher.kill(name)
            return
        if state == "blank":
            # If it had a tenant before it died: that one is opened again as it is listed as open.
            self._pool.append(peer)
        elif tenant_id is not None and tenant_id not in self._places:
            place = self._places[tenant_id] = _Place(tenant_id, is_wanted=False)
            place.peer = peer
            await self._room.acquire()
            place.opening = asyncio.get_running_loop().create_future()
            place.opening.set_result(peer)

    async def _look_for_ever(self) -> None:
        looked: deque[_Place] = deque()
        while True:
            await asyncio.sleep(LOOK_S)
            self._refill()
            if not looked:
                looked.extend(self._places.values())
            batch = [looked.popleft() for _ in range(min(LOOKS_MAX, len(looked)))]
            await asyncio.gather(*(self._look_at(place) for place in batch))

    async def _look_at(self, place: _Place) -> None:
        peer = place.peer
        if peer is None or place.opening is None or not place.opening.done():
            return
        try:
            tenant_id, _ = await peer.call("who", timeout_s=GIVE_UP_S)
        except Lost:
            tenant_id = None
        if tenant_id != place.tenant_id and self._places.get(place.tenant_id) is place:
            self._check(place, peer)

    async def _close(self, place: _Place, turns: asyncio.Semaphore) -> None:
        for step in (place.opening, place.adopted):
            if step is not None:
                await asyncio.wait({step})
        async with turns:
            if place.peer is not None and not place.released.is_set():
                try:
                    await place.peer.call("close", timeout_s=GIVE_UP_S)
                except (Lost, WorkflowsError):
                    pass  # it stays listed as open, and is opened again by whoever connects next
                await self._launcher.kill(place.peer.name)
                self._forget(place)

    # --- room

    async def _make_room(self) -> None:
        self._wanting_room += 1
        try:
            if self._room.locked() and self._evicting is None:
                self._evicting = asyncio.ensure_future(self._evict())
            await self._room.acquire()
        finally:
            self._wanting_room -= 1

    async def _evict(self) -> None:
        """Ask tenants, those that came first first, to go to sleep, while somebody wants room."""
        asked: deque[_Place] = deque()
        leaving: dict[_Place, float] = {}
        try:
            while self._wanting_room:
                await asyncio.sleep(0.005 if asked else 0.02)
                now_s = asyncio.get_running_loop().time()
                leaving = {
                    place: until_s
                    for place, until_s in leaving.items()
                    if until_s > now_s and not place.released.is_set()
                }
                if len(leaving) >= self._wanting_room:
                    continue
                if not asked:
                    asked.extend(place for place in self._places.values() if place not in leaving)
                if asked and await self._asks_to_leave(place := asked.popleft()):
                    leaving[place] = now_s + GIVE_UP_S
                    self._stats.evicted += 1
        finally:
            self._evicting = None

    async def _asks_to_leave(self, place: _Place) -> bool:
        if place.peer is None or place.opening is None or not place.opening.done():
            return False
        try:
            return bool(await place.peer.call("make_room", timeout_s=5.0))
        except (Lost, WorkflowsError):
            return False

    def _record(self, kind: str, slot: str, tenant_id: str | None) -> None:
        """Keep the decision in the loader's log; nobody waits for it, and nothing depends on it."""
        payload = None if tenant_id is None else msgspec.json.encode({"tenant": tenant_id})
        row = Row(
            type=kind, workflow="", instance_id=slot, ts=self._clock.now_us(), payload=payload
        )
        future = self._log.append([row], durable=False)
        future.add_done_callback(_seen)


def _seen(future: asyncio.Future[Any]) -> None:
    """Nobody may be waiting for this one; its error is told otherwise."""
    if not future.cancelled():
        future.exception()
