"""A timer on a store that outlives it, and a loader that opens whom it is told, in virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

from local_world import until

from dynamic_workflows.actors.rpc.actor_ref import ActorRef, ActorUnreachable
from dynamic_workflows.actors.rpc.services import WakeAnswer
from dynamic_workflows.actors.timers.wake_service import (
    WakeService,
)
from dynamic_workflows.eventlog.clock import US, VirtualClock
from dynamic_workflows.eventlog.ids import SeededIds
from dynamic_workflows.eventlog.log.event_log import EventLog
from dynamic_workflows.eventlog.store.base import Store
from dynamic_workflows.eventlog.store.open_store import open_store


class Waker:
    """A loader that opens whom it is told, and tells the timer as the real one does."""

    name = "loader"

    def __init__(self) -> None:
        self.timer: WakeService | None = None
        self.woken: list[str] = []
        self.batches: list[int] = []
        self.alive: set[str] = set()
        self.failing: set[str] = set()
        self.is_lost = False
        self.epochs: dict[str, int] = {}
        self.in_flight = self.in_flight_max = 0

    async def call(self, op: str, *args: Any, timeout_s: float | None = None) -> Any:
        if self.is_lost:
            raise ActorUnreachable("no loader")
        if op == "residents":
            return sorted(self.alive)
        assert op == "wake"
        (names,) = args
        self.batches.append(len(names))
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight, self.in_flight_max)
        await asyncio.sleep(0)
        good = [name for name in names if name not in self.failing]
        self.woken += good
        self.alive.update(good)
        await self.opened(good)
        self.in_flight -= 1
        return WakeAnswer({n: "damaged" for n in names if n in self.failing}, {})

    async def opened(self, names: list[str]) -> None:
        """As the owners of the next epochs say it."""
        assert self.timer is not None
        for name in names:
            self.epochs[name] = self.epochs.get(name, 0) + 1
        await self.timer.opened([(name, self.epochs[name]) for name in names])

    async def slept(self, tenants: list[tuple[str, int | None]]) -> None:
        """As owners say it who have been open before."""
        assert self.timer is not None
        for name, _ in tenants:
            self.epochs[name] = self.epochs.get(name, 0) + 1
        await self.timer.slept([(name, self.epochs[name], due_us) for name, due_us in tenants])


class Bench:
    """A timer on a store that outlives it."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.ids = SeededIds(7)
        self.store: Store = open_store("memory://")
        self.waker = Waker()

    async def start(self) -> WakeService:
        self.log = await EventLog.open(
            self.store, "timers/0", tenant_id="", clock=self.clock, ids=self.ids
        )

        async def find() -> ActorRef:
            return self.waker

        self.timer = self.waker.timer = WakeService(log=self.log, clock=self.clock, loader=find)
        await self.timer.open()
        return self.timer

    async def restart(self) -> WakeService:
        """As after kill -9: nothing is closed."""
        await self.timer.close()
        return await self.start()

    async def advance(self, seconds: float) -> None:
        until_us = self.clock.now_us() + round(seconds * US)
        while self.clock.fire_next(until_us=until_us):
            await self.settle()
        self.clock.move_to(until_us)
        await self.settle()

    async def settle(self) -> None:
        for _ in range(30):
            await asyncio.sleep(0)
        await until(lambda: not self.timer._in_flight and not self.waker.in_flight)

    def at(self, seconds: float) -> int:
        return self.clock.now_us() + round(seconds * US)
