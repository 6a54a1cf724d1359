"""Tenant process: a worker process with all that a tenant will need, made ready before there is
one.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from dynamic_workflows.eventlog.clock import SystemClock
from dynamic_workflows.eventlog.errors import Fenced, Unavailable, WorkflowsError, needs_operator
from dynamic_workflows.eventlog.heap_trim import release_memory
from dynamic_workflows.eventlog.ids import SystemIds
from dynamic_workflows.eventlog.log.event_log import load_upkeep
from dynamic_workflows.eventlog.store.base import Store, probe
from dynamic_workflows.eventlog.store.open_store import open_store
from dynamic_workflows.loaders.bundles.bundle import WorkerCode
from dynamic_workflows.loaders.isolates.isolate_pool import ProcessIsolates
from dynamic_workflows.loaders.protocol.calls import (
    AwaitResult,
    CreateBatch,
    NewInstance,
    pack_call,
    unpack_call,
)

from ..code.code_resolver import CodeResolver, CodeSource
from ..rpc.actor_ref import ActorRef, ActorUnreachable
from ..rpc.actor_settings import Setup
from ..rpc.reconnecting import LoaderCodeSource, ReconnectingRef
from ..rpc.services import ActorApi, LoaderApi, remote
from ..tenant.open_tenant import open_tenant
from ..tenant.tenant import TenantSupervisor
from . import metrics
from .tenant_assignment import HANDS_CODE_OVER
from .wiring import Clients, Find
from .worker_process import WorkerProcess

_log = logging.getLogger("dynamic_workflows.worker")

_FENCED_TRIES_MAX = 20
_ISOLATES_END_S = 5.0
"""How long the killed isolates of a tenant may take to be gone before its process ends too."""
_REHEARSAL_S = 10.0
_STAGE = "dw-rehearsal-"
_SCRIPT = WorkerCode(
    main_module="rehearsal.py",
    modules={
        "rehearsal.py": """
from dynamic_workflows import WorkflowEntrypoint

class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        return await step.do("rehearse", lambda: True)
"""
    },
)


class TenantProcess:
    """A worker process with its isolates, its store, and its connection to the loader."""

    def __init__(
        self,
        setup: Setup,
        name: str,
        isolates: ProcessIsolates,
        loader: Find,
        timer: Find,
        on_assigned: Callable[[str | None], None],
        on_end: Callable[[], None],
        began_s: float | None = None,
    ) -> None:
        """`on_assigned` is told the tenant, and None when the process is blank again. `began_s`:
        when this process began, on the monotonic clock; None: just now."""
        self._began_s = time.monotonic() if began_s is None else began_s
        self._setup = setup
        self._name = name
        self._isolates = isolates
        self._find_loader = loader
        self._find_timer = timer
        self._on_assigned = on_assigned
        self._on_end = on_end
        self._clock, self._ids = SystemClock(), SystemIds()
        self._loader = ReconnectingRef(
            "the loader actor", loader, timeout_s=setup.config.client_timeout_seconds
        )
        self._clients: Clients
        self._codes: LoaderCodeSource
        self._tenant: TenantSupervisor | None = None

    async def open(self) -> WorkerProcess:
        """Prepare everything that does not depend on the tenant; return what answers calls."""
        self._store: Store = open_store(self._setup.log_root)
        self._prepare_code()
        try:
            await probe(self._store, self._ids)
        except Unavailable as error:
            # A worker process can wait for its tenant on a full disk too; opening the log fails.
            if not needs_operator(error):
                raise
        worker = WorkerProcess(
            self._name,
            open_tenant=self._open_tenant,
            loader=self._find_loader,
            timer=self._find_timer,
            clock=self._clock,
            idle_s=self._setup.config.tenant_idle_seconds,
            start_s=time.monotonic() - self._began_s,
            on_assigned=self._on_assigned,
            on_code=lambda code: self._codes.take(code),
            on_released=self._become_blank,
            on_end=self._on_end,
            tenants_max=self._setup.config.tenants_per_process,
        )
        _freeze_heap()
        return worker

    def _prepare_code(self) -> None:
        """Make what holds code and connections for one tenant."""
        config = self._setup.config
        self._clients = Clients(self._resolve, config.client_timeout_seconds, self._ids)
        self._codes = LoaderCodeSource(
            self._loader,
            self._store,
            is_app=self._setup.is_app,
            calls=self._clients.of,
            keys=config.keys(),
        )

    async def _become_blank(self) -> bool:
        """Drop all that belonged to the closed tenant; return whether nothing is left of it."""
        self._tenant = None
        self._clients.close()
        self._prepare_code()
        if not await self._isolates.given_back(_ISOLATES_END_S):
            return False
        self._isolates.counts.clear()
        self._on_assigned(None)
        await asyncio.sleep(0)  # what was cancelled lets go of what it holds
        gc.collect()
        release_memory()
        return True

    async def samples(self) -> list[metrics.MetricSample]:
        """Return the metrics of this process."""
        tenant = self._tenant
        if tenant is None:
            return list(metrics.of_isolates(self._isolates, ""))
        tenant_id = metrics.shown(tenant.tenant_id)
        found = metrics.of_isolates(self._isolates, tenant_id)
        return [*found, *metrics.of_tenant(tenant)]

    def report_restart(self) -> None:
        """Tell the loader that this process was restarted and is blank, though no client calls
        it."""
        self._reporting = asyncio.ensure_future(self._report())

    async def _report(self) -> None:
        # It may be lost: the loader finds the fact out by itself later.
        with contextlib.suppress(ActorUnreachable, Unavailable):
            await remote(self._loader, LoaderApi.worker_restarted)(self._name)

    async def rehearse(self) -> None:
        """Open a tenant that does not exist, so that later nothing runs for the first time.

        Only speed is at stake: what goes wrong here will go wrong, and be told, with a tenant.
        """
        await self._connect()
        _remove_old_stages()
        with tempfile.TemporaryDirectory(prefix=f"{_STAGE}{os.getpid()}-") as folder:
            store = open_store(folder)
            codes = CodeResolver(store, clock=self._clock, ttl_s=60, load=lambda tenant_id: _SCRIPT)
            try:
                await asyncio.wait_for(self._perform(store, codes), _REHEARSAL_S)
            except (TimeoutError, WorkflowsError) as error:
                _log.info("the rehearsal of %s failed: %s", self._name, error)
            await store.close()
        # A log imports it when it first seals; a worker process that waits has the time now.
        await load_upkeep()
        _freeze_heap()

    async def _connect(self) -> None:
        """Look up the loader and the timer, and connect to each."""
        for find in (self._find_loader, self._find_timer):
            with contextlib.suppress(ActorUnreachable, WorkflowsError):
                await remote(await find(), ActorApi.stats, timeout_s=_REHEARSAL_S)()

    async def _perform(self, store: Store, codes: CodeResolver) -> None:
        nobody = await self._open_on("nobody", store, codes)
        try:
            name = "rehearsal"
            new = NewInstance(id=name, params=b"{}")
            create = CreateBatch(
                workflow="TenantWorkflow", items=[new], strict=True, token="rehearsal"
            )
            # As a driver's call, so that decoding is rehearsed too.
            await nobody.call(unpack_call(pack_call(create)))
            await nobody.call(
                AwaitResult(workflow="TenantWorkflow", id=name, timeout_s=_REHEARSAL_S)
            )
        finally:
            await nobody.close(seal=False)

    async def _open_on(
        self,
        tenant_id: str,
        store: Store,
        codes: CodeSource,
        *,
        is_wanted: bool = False,
        claims: Callable[[int], None] = lambda epoch: None,
        above: int = 0,
    ) -> TenantSupervisor:
        return await open_tenant(
            tenant_id,
            store=store,
            isolates=self._isolates,
            codes=codes,
            clock=self._clock,
            ids=self._ids,
            config=self._setup.config,
            is_wanted=is_wanted,
            claims=claims,
            above=above,
        )

    async def _open_tenant(
        self, tenant_id: str, is_wanted: bool, claims: Callable[[int], None], above: int
    ) -> TenantSupervisor:
        if is_wanted and not self._codes.is_app and HANDS_CODE_OVER:
            self._codes.expect()
        self._tenant = await self._open_unfenced(
            tenant_id, is_wanted=is_wanted, claims=claims, above=above
        )
        return self._tenant

    async def _open_unfenced(
        self, tenant_id: str, *, is_wanted: bool, claims: Callable[[int], None], above: int
    ) -> TenantSupervisor:
        for tries_left in range(_FENCED_TRIES_MAX, 0, -1):
            try:
                return await self._open_on(
                    tenant_id,
                    self._store,
                    self._codes,
                    is_wanted=is_wanted,
                    claims=claims,
                    above=above,
                )
            except Fenced as error:
                # Another process opened it at the same moment, most likely one that is dying.
                if tries_left == 1:
                    raise Unavailable(
                        f"tenant {tenant_id!r} is being opened elsewhere: {error}"
                    ) from error
                await asyncio.sleep(0.1)
        raise AssertionError("the last try returns or raises")

    async def _resolve(self, tenant_id: str, gone: str | None) -> ActorRef:
        try:
            return await remote(self._loader, LoaderApi.resolve)(tenant_id, gone)
        except Unavailable as error:
            raise ActorUnreachable(str(error)) from error


def _remove_old_stages() -> None:
    """Remove files that processes left that were killed in their rehearsal."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_STAGE}*"):
        pid = folder.name.removeprefix(_STAGE).partition("-")[0]
        if pid.isdigit() and _has_ended(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _has_ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False  # another process's, which is alive
    return False


def _freeze_heap() -> None:
    """Exclude all present objects from garbage collection, since they stay."""
    gc.collect()
    gc.freeze()
    # A tenant makes many small objects that die young or live long, and few cycles.
    gc.set_threshold(20_000, 20, 50)
