"""A platform's actors in one process: real slots, loader, timer, logs; tenants that just count."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from dynamic_workflows.actors.placement.loader import Loader
from dynamic_workflows.actors.placement.worker_process import WorkerProcess
from dynamic_workflows.actors.rpc.actor_ref import (
    ActorRef,
    ActorUnreachable,
    pack_call,
    serve,
    unpack_outcome,
)
from dynamic_workflows.actors.timers.wake_service import WakeService
from dynamic_workflows.eventlog.clock import VirtualClock
from dynamic_workflows.eventlog.errors import (
    Corrupt,
    InstanceError,
    InvalidError,
    PlatformClosed,
    Unavailable,
    WorkflowsError,
)
from dynamic_workflows.eventlog.ids import SeededIds
from dynamic_workflows.eventlog.log.event_log import EventLog
from dynamic_workflows.eventlog.store.base import Store
from dynamic_workflows.eventlog.store.open_store import open_store
from dynamic_workflows.loaders.protocol.calls import (
    AwaitResult,
    DeleteInstance,
    GetHistory,
    GetStatus,
    ReloadCode,
    SendEvent,
    TenantCall,
)


async def until(condition: Callable[[], Any], *, what: str = "it") -> None:
    """Let the loop run until the condition holds."""
    for _ in range(5_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError(f"{what} did not come about")


def add_call(token: str, amount: int = 1) -> SendEvent:
    """Add a number, once for each token; answered by the sum."""
    return SendEvent(id="till", type="add", payload=b"%d" % amount, token=token)


SLOW: TenantCall[Any] = GetHistory(id="till")
"""Answered when the bell was rung."""
RING = ReloadCode()
"""Ring the bell."""
UNKNOWN = GetStatus(id="till")
"""Refused."""


class Till:
    """A tenant that adds numbers up. What it was told survives it, in the world's books.

    It makes its own of some calls: see `add`, `SLOW` and `RING`.
    """

    def __init__(self, world: World, tenant_id: str) -> None:
        self.world = world
        self.tenant_id = tenant_id
        self.failed: WorkflowsError | None = None
        self.is_closed = False
        self.bell = asyncio.Event()
        self.waiting = 0
        self.epoch = world.epochs[tenant_id]

    async def call(self, call: TenantCall[Any]) -> Any:
        if self.is_closed:
            raise PlatformClosed("closed")
        book = self.world.books.setdefault(self.tenant_id, {})
        if isinstance(call, SendEvent):
            book.setdefault(str(call.token), int(call.payload))
            return sum(book.values())
        if isinstance(call, AwaitResult):
            self.waiting += 1
            try:
                await self.bell.wait()
            finally:
                self.waiting -= 1
            if self.is_closed:
                raise PlatformClosed("closed")
            return call.id
        if isinstance(call, DeleteInstance):
            if book.pop(call.id, None) is None:
                raise InstanceError(f"there is no {call.id}")
            return None
        if isinstance(call, GetHistory):
            await self.bell.wait()
            return "at last"
        if isinstance(call, ReloadCode):
            self.bell.set()
            return None
        raise InvalidError(f"no {call}", code="batch.invalid")

    def is_idle(self) -> bool:
        return self.tenant_id not in self.world.busy

    def next_wake_us(self) -> int | None:
        return self.world.wakes.get(self.tenant_id)

    async def close(self) -> None:
        self.is_closed = True
        self.bell.set()


class LocalPeer:
    """A peer in the same process; calls are packed all the same, so that nothing is shared."""

    def __init__(self, name: str, target: Any, messages: list[tuple[str, int]]) -> None:
        self.name = name
        self.target = target
        self._messages = messages
        self._calls: set[asyncio.Task[bytes]] = set()
        self.is_dead = False

    async def call(self, op: str, *args: Any, timeout_s: float | None = None) -> Any:
        if op == "exchange":
            self._messages.append((self.name, len(args[2])))
        if self.is_dead:
            raise ActorUnreachable(f"{self.name} is dead")
        task = asyncio.ensure_future(serve(self.target, op, pack_call(args)))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        # A call whose caller gives up goes on at the far end, as it would elsewhere.
        await asyncio.wait({task}, timeout=timeout_s)
        if not task.done():
            raise ActorUnreachable(f"{self.name} did not answer {op} in {timeout_s} s")
        if task.cancelled():
            raise ActorUnreachable(f"{self.name} died during {op}")
        return unpack_outcome(task.result())

    def __reduce__(self) -> Any:
        return _same, (id(self),)

    def die(self) -> None:
        """From now on every call, those in flight included, is lost."""
        self.is_dead = True
        for task in self._calls:
            task.cancel()

    def revive(self, target: Any) -> None:
        self.target, self.is_dead = target, False


def _same(number: int) -> LocalPeer:
    return next(peer for peer in _peers if id(peer) == number)


_peers: list[LocalPeer] = []


class World:
    """Everything that a cluster would hold."""

    def __init__(
        self,
        *,
        pool_size: int = 1,
        residents_max: int = 100,
        idle_s: float = 60,
        tenants_max: int = 1,
    ) -> None:
        """`tenants_max`: the tenants that a slot serves, one after the other."""
        self.clock = VirtualClock()
        self.ids = SeededIds(1)
        self.store: Store = open_store("memory://")
        self.pool_size, self.residents_max, self.idle_s = pool_size, residents_max, idle_s
        self.tenants_max = tenants_max
        self.books: dict[str, dict[str, int]] = {}
        self.wakes: dict[str, int] = {}
        self.epochs: dict[str, int] = {}
        self.busy: set[str] = set()
        self.corrupt: set[str] = set()
        self.unavailable: set[str] = set()
        self.unopenable: dict[str, WorkflowsError] = {}
        self.opened: list[str] = []
        self.tills: dict[str, Till] = {}
        self.slots: dict[str, LocalPeer] = {}
        self.killed: list[str] = []
        self.messages: list[tuple[str, int]] = []
        self.loader: Loader
        self.timer: WakeService
        self.loader_peer: LocalPeer | None = None
        self.timer_peer: LocalPeer | None = None

    async def start(self) -> World:
        await self.start_timer()
        await self.start_loader()
        await until(lambda: len(self.loader._pool.workers) == self.pool_size, what="the pool")
        return self

    async def log(self, stream: str) -> EventLog:
        return await EventLog.open(self.store, stream, tenant_id="", clock=self.clock, ids=self.ids)

    async def start_timer(self) -> None:
        log = await self.log("timers/0")
        self.timer = WakeService(log=log, clock=self.clock, loader=self.find_loader)
        self.timer_peer = self._peer("timer", self.timer)
        await self.timer.open()

    async def start_loader(self) -> None:
        self.loader = Loader(
            launcher=Launched(self),
            log=await self.log("loader"),
            clock=self.clock,
            ids=self.ids,
            pool_size=self.pool_size,
            residents_max=self.residents_max,
        )
        self.loader_peer = self._peer("loader", self.loader)
        await self.loader.open()

    async def find_loader(self) -> ActorRef:
        if self.loader_peer is None:
            raise ActorUnreachable("no loader")
        return self.loader_peer

    async def find_timer(self) -> ActorRef:
        if self.timer_peer is None:
            raise ActorUnreachable("no timer")
        return self.timer_peer

    async def stop(self) -> None:
        await self.loader.close()
        await self.timer.close()

    def _peer(self, name: str, target: Any) -> LocalPeer:
        peer = LocalPeer(name, target, self.messages)
        _peers.append(peer)
        return peer

    async def home(self, tenant_id: str, gone: str | None = None) -> ActorRef:
        """Where a tenant lives, once it is open there."""
        peer = await self.loader.resolve(tenant_id, gone)
        adopted = self.loader._placements[tenant_id].assigned
        assert adopted is not None
        await asyncio.shield(adopted)
        return peer

    def slot_of(self, tenant_id: str) -> LocalPeer:
        place = self.loader._placements[tenant_id]
        assert place.worker is not None
        return self.slots[place.worker.name]

    def crash(self, peer: LocalPeer) -> None:
        """Kill the process of a slot."""
        peer.die()
        till = self.tills.get(peer.target._tenant_id or "")
        if till is not None:
            till.is_closed = True

    async def restart(self, peer: LocalPeer) -> None:
        """What Ray does with an actor whose process died."""
        peer.revive(self._slot(peer.name))
        await self.loader.worker_restarted(peer.name)

    # --- the launcher

    def _slot(self, name: str) -> WorkerProcess:
        return WorkerProcess(
            name,
            open_tenant=self.open_tenant,
            loader=self.find_loader,
            timer=self.find_timer,
            clock=self.clock,
            idle_s=self.idle_s,
            tenants_max=self.tenants_max,
        )

    async def start_slot(self, name: str, *, is_spare: bool = True) -> ActorRef:
        peer = self.slots[name] = self._peer(name, self._slot(name))
        return peer

    async def names(self) -> list[str]:
        return list(self.slots)

    async def find(self, name: str) -> ActorRef | None:
        return self.slots.get(name)

    async def kill(self, name: str) -> None:
        if self.slots.pop(name, None) is not None:
            self.killed.append(name)

    async def open_tenant(
        self, tenant_id: str, is_wanted: bool, claims: Callable[[int], None], above: int
    ) -> Till:
        if tenant_id in self.unavailable:
            raise Unavailable("the store does not answer")
        if tenant_id in self.unopenable:
            raise self.unopenable[tenant_id]
        if tenant_id in self.corrupt:
            raise Corrupt("damaged", path="x", offset=0)
        epoch = self.epochs[tenant_id] = max(self.epochs.get(tenant_id, 0), above) + 1
        claims(epoch)
        self.opened.append(tenant_id)
        till = self.tills[tenant_id] = Till(self, tenant_id)
        return till


class Launched:
    """The world as the loader's launcher."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.start = world.start_slot
        self.names = world.names
        self.find = world.find
        self.kill = world.kill
