"""Wiring: builds the services of a platform, as they run in actors. Imports no Ray."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeAlias

import cloudpickle

from dynamic_workflows.eventlog.clock import Clock, SystemClock, to_datetime
from dynamic_workflows.eventlog.errors import (
    Fenced,
    PlatformClosed,
    Unavailable,
    WorkflowsError,
    needs_operator,
)
from dynamic_workflows.eventlog.ids import Ids, SystemIds
from dynamic_workflows.eventlog.log.event_log import EventLog
from dynamic_workflows.eventlog.store.base import Store, can_write
from dynamic_workflows.eventlog.store.open_store import open_store
from dynamic_workflows.eventlog.wal.recovery import newest_manifest
from dynamic_workflows.loaders.bundles.worker import WorkerRef

from ..claims import BEAT_S, Claims
from ..code.callbacks import Callbacks
from ..code.code_resolver import CodeResolver, PrefetchedCode, Resolved
from ..code.dispatcher_runs import PendingDispatch
from ..rpc.actor_ref import ActorRef
from ..rpc.actor_settings import Rule, Setup
from ..rpc.client import TenantClient
from ..rpc.services import WakeAnswer, WakeState
from ..timers.timer_index import TIMER_STREAM
from ..timers.wake_service import TimerStats, WakeService
from . import metrics
from .loader import Loader, LoaderStats
from .process_pool import Launcher
from .service_log import OPEN_WITHIN_S, ServiceLog, who

Find: TypeAlias = Callable[[], Awaitable[ActorRef]]

_logger = logging.getLogger("dynamic_workflows.wiring")

LOADER_STREAM = "loader"
# Ray carries what is larger by way of its object store, which takes longer than reading the log's.
_HANDED_BYTES_MAX = 64 * 1024


async def taken_over(log: EventLog, setup: Setup, error: Fenced) -> Fenced:
    """Return the error for a log that another platform has taken over, and which."""
    try:
        newest = await newest_manifest(log.store, log.stream)
    except WorkflowsError:
        newest = None
    by = ""
    if newest is not None and newest.manifest.token != log.token:
        since = f"{to_datetime(newest.manifest.published_us):%Y-%m-%d %H:%M:%S} UTC"
        by = f" ({newest.manifest.owner or 'unknown'}; since {since})"
    return Fenced(
        f"another platform has taken over the log at {setup.log_root}{by}: this one "
        f"({who(setup)}) serves its tenants no more. A log has one platform at a time: "
        "close one of the two; this one goes on when the other has ended. Drivers that shall share "
        "a platform connect with the same log and namespace, from one machine or to one cluster. "
        f"[{error.message}]",
        **error.details,
    )


async def may_go_on(setup: Setup, failed: WorkflowsError | None) -> bool:
    """Return whether an actor may reopen its failed log: the disk may work again, and the platform
    that took the log over may have ended."""
    if not isinstance(failed, Fenced) and not needs_operator(failed):
        return isinstance(failed, Unavailable)
    store = open_store(setup.log_root)
    try:
        if not isinstance(failed, Fenced):
            return await can_write(store)
        found = await Claims(store).at_work()
    except WorkflowsError:
        return False
    finally:
        await store.close()
    # Of several that have lost the log, the one that came last goes on.
    return found is None or (setup.claim is not None and found.number == setup.claim.number)


class TimerService:
    """The wake service with its log."""

    def __init__(
        self,
        setup: Setup,
        loader: Find,
        *,
        open_within_s: float = OPEN_WITHIN_S,
        clock: Clock | None = None,
    ) -> None:
        self._setup = setup
        self._loader = loader
        self._open_within_s = open_within_s
        self._clock = clock or SystemClock()
        self._log: ServiceLog | None = None
        self._timer: WakeService | None = None

    async def open(self) -> None:
        """Open the log and start; raises Unavailable, and may be called again then."""
        kept = self._log = await ServiceLog.open(
            self._setup,
            open_store(self._setup.log_root),
            TIMER_STREAM,
            clock=self._clock,
            ids=SystemIds(),
            within_s=self._open_within_s,
        )
        self._timer = WakeService(log=kept.log, clock=self._clock, loader=self._loader)
        try:
            await self._timer.open()
        except BaseException:
            await kept.close()
            raise

    @asynccontextmanager
    async def _service(self) -> AsyncIterator[WakeService]:
        """The open wake service; errors say which platform took its log over."""
        assert self._timer is not None
        assert self._log is not None
        try:
            yield self._timer
        except Fenced as error:
            raise await taken_over(self._log.log, self._setup, error) from error

    async def opened(self, tenants: Sequence[tuple[str, int]]) -> dict[str, int]:
        """Do as `WakeService.opened`."""
        async with self._service() as timer:
            return await timer.opened(tenants)

    async def slept(self, tenants: Sequence[tuple[str, int, int | None]]) -> None:
        """Do as `WakeService.slept`."""
        async with self._service() as timer:
            await timer.slept(tenants)

    async def wake_state(self, tenant_id: str) -> WakeState:
        """Do as `WakeService.wake_state`."""
        async with self._service() as timer:
            return await timer.wake_state(tenant_id)

    async def stats(self) -> TimerStats:
        """Do as `WakeService.stats`."""
        async with self._service() as timer:
            return await timer.stats()

    async def samples(self) -> list[metrics.MetricSample]:
        """Return the metrics of the timer."""
        if self._timer is None:
            return []
        timer = self._timer
        return list(metrics.of_timer(await timer.stats(), await timer.overdue()))

    @property
    def failed(self) -> WorkflowsError | None:
        """Why the log accepts no more rows, or None."""
        return None if self._log is None else self._log.log.failed

    async def close(self) -> None:
        """Stop, and close the log."""
        if self._timer is not None:
            await self._timer.close()
        if self._log is not None:
            await self._log.close()


class LoaderService:
    """The loader with its log, and the platform's callbacks."""

    def __init__(self, setup: Setup, launcher: Launcher, timer: Find) -> None:
        self._setup = setup
        self._rule = setup.rule
        self._launcher = launcher
        self._timer = timer
        self._log: ServiceLog | None = None
        self._clients = Clients(self._resolve, setup.config.client_timeout_seconds, SystemIds())
        self._codes: CodeResolver | None = None
        self._loader: Loader | None = None
        self._renewing: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Open the log, unpickle the callbacks, and find worker processes again."""
        setup, clock, ids = self._setup, SystemClock(), SystemIds()
        store = open_store(setup.log_root)
        load, app = cloudpickle.loads(setup.callbacks) if setup.callbacks else (None, None)
        self._codes = CodeResolver(
            store,
            clock=clock,
            ttl_s=setup.config.code_ttl_seconds,
            keys=setup.config.keys(),
            load=load,
            app=app,
            peer=self._clients.of,
            callbacks=Callbacks(timeout_s=setup.config.load_timeout_seconds, in_threads=True),
        )
        self._log = await ServiceLog.open(setup, store, LOADER_STREAM, clock=clock, ids=ids)
        self._loader = Loader(
            launcher=self._launcher,
            log=self._log.log,
            clock=clock,
            ids=ids,
            pool_size=setup.config.pool_size,
            residents_max=setup.config.tenants_resident_max,
            code=self._code_for_worker if load is not None else None,
        )
        await self._loader.open()
        self._renewing = asyncio.ensure_future(_renew_claim_forever(setup, store))

    @property
    def failed(self) -> WorkflowsError | None:
        """Why the log accepts no more rows, or None."""
        return None if self._log is None else self._log.log.failed

    async def resolve(self, tenant_id: str, gone: str | None = None) -> ActorRef:
        """Return what Loader.resolve does; a platform that has lost its log opens no tenants."""
        assert self._log is not None
        assert self._loader is not None
        failed = self.failed
        if isinstance(failed, Fenced):
            raise await taken_over(self._log.log, self._setup, failed)
        return await self._loader.resolve(tenant_id, gone)

    @property
    def _open_loader(self) -> Loader:
        assert self._loader is not None, "calls wait until it is open"
        return self._loader

    async def wake(self, tenant_ids: Sequence[str]) -> WakeAnswer:
        """Do as `Loader.wake`."""
        return await self._open_loader.wake(tenant_ids)

    async def residents(self) -> list[str]:
        """Do as `Loader.residents`."""
        return await self._open_loader.residents()

    async def pool_members(self, known: Sequence[str], wait_s: float) -> list[ActorRef] | None:
        """Do as `Loader.pool_members`."""
        return await self._open_loader.pool_members(known, wait_s)

    async def worker_restarted(self, name: str) -> None:
        """Do as `Loader.worker_restarted`."""
        await self._open_loader.worker_restarted(name)

    async def released(
        self, name: str, tenant_id: str | None, generation: int | None = None
    ) -> None:
        """Do as `Loader.released`."""
        await self._open_loader.released(name, tenant_id, generation)

    async def stats(self) -> LoaderStats:
        """Do as `Loader.stats`."""
        return await self._open_loader.stats()

    async def samples(self) -> list[metrics.MetricSample]:
        """Return the metrics of the loader."""
        return [] if self._loader is None else list(metrics.of_loader(await self._loader.stats()))

    async def rule(self, mine: Rule) -> Rule:
        """Return whose `load` is in effect.

        Of drivers that give the same `load`, the last to connect counts as the one in effect:
        else one that connected between them would roll it back after a recovery.
        """
        in_effect = self._rule
        if (
            mine.fingerprint == in_effect.fingerprint
            and mine.connected_at_us > in_effect.connected_at_us
        ):
            self._rule = mine
        return self._rule

    async def replaced(self, mine: Rule, wait_s: float) -> Rule | None:
        """Return whose `load` replaced that of `mine`; None if, after `wait_s`, it is still in
        effect."""
        in_effect = await self.rule(mine)
        if mine.fingerprint != in_effect.fingerprint:
            return in_effect
        await asyncio.sleep(wait_s)
        return None

    async def code_current(
        self, tenant_id: str, binding: str | None, metadata: bytes | None
    ) -> Resolved:
        """Return the code for new instances of a tenant."""
        assert self._codes is not None
        return await self._codes.current(tenant_id, binding=binding, metadata=metadata)

    async def code_dispatch(
        self, tenant_id: str, binding: str | None, metadata: bytes, asked: list[PendingDispatch]
    ) -> list[Resolved]:
        """Return the code for new instances of a tenant, each by a run of the dispatcher's
        class."""
        assert self._codes is not None
        return await self._codes.dispatch(tenant_id, binding, metadata, asked)

    async def code_dispatched(self, ticket: str, is_stored: bool) -> None:
        """Report whether the dispatched instances were created."""
        assert self._codes is not None
        await self._codes.dispatched(ticket, is_stored)

    async def code_worker(self, name: str | None, pickled: bytes) -> WorkerRef:
        """Load a worker; `pickled` is its code, or the callback that returns it."""
        assert self._codes is not None
        return await self._codes.worker(name, cloudpickle.loads(pickled))

    async def code_forget(self, tenant_id: str) -> None:
        """Run the tenant's callback again for its next code."""
        assert self._codes is not None
        await self._codes.forget(tenant_id)

    async def close(self) -> None:
        """Put every tenant to sleep, end the worker processes, and close the log."""
        if self._renewing is not None:
            self._renewing.cancel()
        if self._loader is not None:
            await self._loader.close()
        self._clients.close()
        if self._log is not None:
            await self._log.close()

    async def _resolve(self, tenant_id: str, gone: str | None) -> ActorRef:
        assert self._loader is not None
        return await self._loader.resolve(tenant_id, gone)

    async def _code_for_worker(self, tenant_id: str) -> PrefetchedCode:
        """Return a tenant's code, with the bundle where it is small enough for a call."""
        assert self._codes is not None
        resolved = await self._codes.current(tenant_id)
        stored = (await self._codes.bundle(resolved.code_hash)).stored()
        return resolved, stored if len(stored) <= _HANDED_BYTES_MAX else None


async def _renew_claim_forever(setup: Setup, store: Store) -> None:
    """Renew the claim in the log's root, so that other machines see that this platform lives."""
    while setup.claim is not None:
        await asyncio.sleep(BEAT_S)
        try:
            await Claims(store).beat(setup.claim)
        except WorkflowsError as error:
            _logger.warning("no sign of life could be written: %s", error)


class Clients:
    """The clients of tenants in one process, one a tenant."""

    def __init__(
        self, resolve: Callable[[str, str | None], Awaitable[ActorRef]], timeout_s: float, ids: Ids
    ) -> None:
        self._resolve = resolve
        self._timeout_s = timeout_s
        self._id = ids.token()
        self._clients: dict[str, TenantClient] = {}
        self._is_closed = False
        self._broken: WorkflowsError | None = None

    def of(self, tenant_id: str) -> TenantClient:
        """Return the calls of a tenant; raises PlatformClosed after `close`."""
        if self._is_closed:
            raise PlatformClosed("the platform was closed: connect again")
        if self._broken is not None:
            raise self._broken
        client = self._clients.get(tenant_id)
        if client is None:
            client = self._clients[tenant_id] = TenantClient(
                tenant_id, client_id=self._id, resolve=self._resolve, timeout_s=self._timeout_s
            )
        return client

    def break_off(self, error: WorkflowsError) -> None:
        """Fail all pending and later calls with this error."""
        self._broken = error
        for client in self._clients.values():
            client.close(error)

    def close(self) -> None:
        """Fail all pending and later calls."""
        self._is_closed = True
        for client in self._clients.values():
            client.close()
