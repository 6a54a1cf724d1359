"""One tenant process in this process, with its real loader, timer, logs and isolates: no Ray."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle
from isolates import DEFAULT
from local_world import LocalPeer, until

import dynamic_workflows as dw
from dynamic_workflows.actors.placement.isolate_setup import isolates_of
from dynamic_workflows.actors.placement.tenant_process import TenantProcess
from dynamic_workflows.actors.placement.wiring import Clients, LoaderService, TimerService
from dynamic_workflows.actors.rpc.actor_ref import ActorRef, ActorUnreachable
from dynamic_workflows.actors.rpc.actor_settings import Setup
from dynamic_workflows.eventlog.heap_trim import release_memory
from dynamic_workflows.eventlog.ids import SystemIds


class Held(NamedTuple):
    """What this process holds."""

    files: int
    threads: int
    children: int
    tasks: int
    objects: int
    bytes: int


class OneProcess:
    """A platform whose launcher starts tenant processes here; `started` counts them."""

    def __init__(self, root: Path, load: Callable[[str], Any], **config: Any) -> None:
        settings = dw.PlatformConfig(
            **({"tenants_resident_max": 1, "pool_size": 1, "isolation": DEFAULT.level} | config)
        )
        self.setup = Setup(str(root), settings, "test", callbacks=cloudpickle.dumps((load, None)))
        self.peers: dict[str, LocalPeer] = {}
        self.processes: dict[str, TenantProcess] = {}
        self.started: list[str] = []
        self.told: list[str | None] = []
        """What each process was told of its tenant: a name, or None for blank."""
        self._isolates: dict[str, Any] = {}
        self._timer = TimerService(self.setup, self._find_loader)
        self._loader = LoaderService(self.setup, self, self._find_timer)
        self._loader_peer = LocalPeer("loader", self._loader, [])
        self._timer_peer = LocalPeer("timer", self._timer, [])
        self._clients = Clients(self._loader.resolve, 30.0, SystemIds())

    async def _find_loader(self) -> ActorRef:
        if self._loader._loader is None:
            raise ActorUnreachable("it is not open so far")
        return self._loader_peer

    async def _find_timer(self) -> ActorRef:
        return self._timer_peer

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncIterator[OneProcess]:
        await self._timer.open()
        await self._loader.open()
        try:
            yield self
        finally:
            self._clients.close()
            await self._loader.close()
            await self._timer.close()
            for name in list(self.peers):
                await self.kill(name)

    def workflows(self, tenant_id: str) -> dw.WorkflowBinding:
        return dw.WorkflowBinding(self._clients.of(tenant_id))

    async def all_sleep(self) -> None:
        """Ask who is there to leave, and wait until everybody has."""
        loader = self._loader._loader
        assert loader is not None
        for placement in list(loader._placements.values()):
            assert placement.worker is not None
            await placement.worker.call("make_room", placement.tenant_id)
        await until(lambda: not loader._placements, what="sleep")

    def held(self) -> Held:
        gc.collect()
        release_memory()
        tasks = [task for task in asyncio.all_tasks() if not task.done()]
        return Held(
            len(os.listdir("/proc/self/fd")),
            threading.active_count(),
            _children(),
            len(tasks),
            len(gc.get_objects()),
            _own_bytes(),
        )

    # --- the launcher

    async def start(self, name: str, *, is_spare: bool) -> ActorRef:
        self.started.append(name)
        isolates = self._isolates[name] = isolates_of(self.setup.config)
        process = self.processes[name] = TenantProcess(
            self.setup,
            name,
            isolates,
            self._find_loader,
            self._find_timer,
            self.told.append,
            lambda: None,
        )
        peer = self.peers[name] = LocalPeer(name, await process.open(), [])
        return peer

    async def names(self) -> list[str]:
        return list(self.peers)

    async def find(self, name: str) -> ActorRef | None:
        return self.peers.get(name)

    async def kill(self, name: str) -> None:
        peer = self.peers.pop(name, None)
        if peer is not None:
            peer.die()
            await self._isolates.pop(name).close()


def _children() -> int:
    tasks = Path("/proc/self/task")
    return sum(len((task / "children").read_text().split()) for task in tasks.iterdir())


def _own_bytes() -> int:
    """Memory that no other process shares."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private"))
