"""Resident: a slot with what its tenant will need, made ready before there is a tenant."""

from __future__ import annotations

import asyncio
import gc
import tempfile
from collections.abc import Callable

from ..eventlog.clock import SystemClock
from ..eventlog.errors import Fenced, InstanceError, Unavailable
from ..eventlog.ids import SystemIds
from ..eventlog.store import Store, open_store, probe
from ..loaders.isolate import Isolation, Limits
from ..loaders.process import ProcessIsolates
from .config import PlatformConfig
from .house import Clients, Find, Setup, tell
from .peers import Lost, Peer
from .remote import Persistent, RemoteCodes
from .slot import Slot
from .tenant import Tenant, open_tenant

_FENCED_TRIES_MAX = 20


class SlotHouse:
    """A slot, its zygote, its store, and its way to the loader."""

    def __init__(
        self,
        setup: Setup,
        name: str,
        loader: Find,
        timer: Find,
        on_adopted: Callable[[str], None],
        on_end: Callable[[], None],
    ) -> None:
        self._setup = setup
        self._name = name
        self._find_loader = loader
        self._find_timer = timer
        self._on_adopted = on_adopted
        self._on_end = on_end
        self._clock, self._ids = SystemClock(), SystemIds()
        self._loader = Persistent(
            "the loader actor", loader, timeout_s=setup.config.client_timeout_seconds
        )
        self._clients = Clients(self._resolve, setup.config.client_timeout_seconds, self._ids)
        self.target: Slot | None = None

    async def open(self) -> None:
        """Get everything ready that does not depend on the tenant, and tell the loader."""
        self._store: Store = open_store(self._setup.log_root)
        self._codes = RemoteCodes(
            self._loader, self._store, is_app=self._setup.is_app, calls=self._clients.of
        )
        self._isolates = isolates_of(self._setup.config)
        await probe(self._store, self._ids)
        await self._rehearse()
        self.target = Slot(
            self._name,
            open_tenant=self._open_tenant,
            loader=self._find_loader,
            timer=self._find_timer,
            clock=self._clock,
            idle_s=self._setup.config.tenant_idle_seconds,
            on_adopted=self._on_adopted,
            on_end=self._on_end,
        )
        self._telling = asyncio.ensure_future(tell(self._loader, "slot_started", self._name))

    async def _rehearse(self) -> None:
        """Open a tenant that does not exist, so that nothing is done for the first time later."""
        with tempfile.TemporaryDirectory(prefix="dw-") as folder:
            store = open_store(folder)
            nobody = await self._open_on("nobody", store)
            await nobody.call("list", {"workflow": "TenantWorkflow", "status": None, "limit": 1})
            try:
                await nobody.call("get", {"workflow": "TenantWorkflow", "id": "nothing"})
            except InstanceError:
                pass
            await nobody.close(seal=False)
            await store.close()
        # What is here by now stays: the collector need not look at it again and again.
        gc.collect()
        gc.freeze()

    async def _open_on(self, tenant_id: str, store: Store) -> Tenant:
        return await open_tenant(
            tenant_id,
            store=store,
            isolates=self._isolates,
            codes=self._codes,
            clock=self._clock,
            ids=self._ids,
            config=self._setup.config,
        )

    async def _open_tenant(self, tenant_id: str) -> Tenant:
        for tries_left in range(_FENCED_TRIES_MAX, 0, -1):
            try:
                return await self._open_on(tenant_id, self._store)
            except Fenced as error:
                # Another process opened it at the same moment, most likely one that is dying.
                if tries_left == 1:
                    raise Unavailable(
                        f"tenant {tenant_id!r} is being opened elsewhere: {error}"
                    ) from error
                await asyncio.sleep(0.1)
        raise AssertionError("the last try returns or raises")

    async def _resolve(self, tenant_id: str, gone: str | None) -> Peer:
        try:
            peer: Peer = await self._loader.call("resolve", tenant_id, gone)
        except Unavailable as error:
            raise Lost(str(error)) from error
        return peer


def isolates_of(config: PlatformConfig) -> ProcessIsolates:
    """Isolates as the platform's settings want them; those kept warm fit most tenants."""
    isolation = Isolation(
        level=config.isolation,
        jail=config.jail,
        packages=config.packages,
        threads=config.threads,
        warm=config.warm_isolates,
    )
    limits = Limits(
        memory_mb=config.memory_mb,
        turn_cpu_ms=round(config.turn_cpu_seconds * 1000),
        turn_wall_ms=round(config.turn_wall_seconds * 1000),
    )
    return ProcessIsolates(isolation, limits=limits)
