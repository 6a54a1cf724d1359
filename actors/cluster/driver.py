"""Driver: a platform on Ray as the program that connected to it holds it.

A log has one platform. Who connects to a log whose platform lives joins it: in this process, in the
embedded Ray of another process of this machine, or on one cluster. Where that cannot be, it is
refused with PlatformBusy. An embedded platform ends with the process that started it; who had
joined it goes on by itself: the first of them starts the platform anew, the others join that one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dynamic_workflows.eventlog.backoff import Backoff
from dynamic_workflows.eventlog.clock import SystemClock
from dynamic_workflows.eventlog.errors import (
    InvalidError,
    PlatformBusy,
    PlatformClosed,
    Unavailable,
    WorkflowsError,
)
from dynamic_workflows.eventlog.ids import SystemIds
from dynamic_workflows.eventlog.store import permissions
from dynamic_workflows.eventlog.store.base import probe
from dynamic_workflows.eventlog.store.locations import root_of
from dynamic_workflows.eventlog.store.open_store import open_store

from ..background_tasks import stop_all
from ..claims import Claims, NumberedClaim, busy, new_claim
from ..diagnosis.explained_calls import ExplainedCalls
from ..placement.connection_warmup import ConnectionWarmup
from ..placement.wiring import Clients
from ..rpc.actor_ref import ActorRef, ActorUnreachable
from ..rpc.actor_settings import Setup
from ..rpc.fork_guard import OwningProcess
from ..rpc.reconnecting import LoaderCodeSource, ReconnectingRef
from ..rpc.services import ActorApi, LoaderApi, remote
from ..rpc.time_limits import within
from ..settings.platform_config import PlatformConfig
from . import callback_pickling, embedded_memory, load_precedence, ray_connection
from . import ray_actors as door
from .daemon_threads import in_daemon_thread
from .ray_session import RaySession

_log = logging.getLogger("dynamic_workflows.cluster")

_CLOSE_S = 600.0
"""How long the supervisors may take to end."""
_SILENT_S = 10.0
"""How long they may be silent while they end."""
_START_S = 120.0
"""How long the supervisors may take to start: a log to open, or a node to wait for."""
_REPLACED_S = 60.0
_GRACE_S = 30.0
_LOOK_S = 0.2
_END_S = 5.0
_ENTER_TRIES_MAX = 6
_ENTER_BACKOFF = Backoff(0.25, 5.0)


@dataclass(frozen=True)
class Order:
    """What a driver wants of its platform."""

    root: str
    load: Callable[[str], Any] | None
    app: Any
    address: str | None
    namespace: str
    config: PlatformConfig
    take_over: bool = False
    load_version: str | None = None

    @property
    def platform(self) -> tuple[str, str]:
        """What tells its actors from those of others."""
        return self.setup(self.config).prefix, self.namespace

    @property
    def has_callbacks(self) -> bool:
        """A command brings none: it takes the platform as it is."""
        return self.load is not None or self.app is not None

    def setup(
        self,
        config: PlatformConfig,
        callbacks: bytes = b"",
        claim: NumberedClaim | None = None,
        connected_at_us: int = 0,
    ) -> Setup:
        """What the actors are told."""
        return Setup(
            log_root=self.root,
            config=config,
            namespace=self.namespace,
            callbacks=callbacks,
            is_app=self.app is not None,
            has_callbacks=self.has_callbacks,
            load_version=self.load_version,
            driver=f"process {os.getpid()} on {socket.gethostname()}",
            claim=claim,
            connected_at_us=connected_at_us,
        )


class RayPlatform:
    """A platform on Ray, as its driver holds it."""

    def __init__(self, order: Order) -> None:
        self._origin = OwningProcess()
        self._order = order
        self._store = open_store(order.root)
        self._claims = Claims(self._store)
        self._session: RaySession | None = None
        self._setup = order.setup(order.config)
        self._connected_at_us = SystemClock().now_us()
        self._has_connected = False
        """From then on it rejoins, and its connect time stays."""
        self._stage = f"the store of the log at {order.root}"
        """What is waited for while the platform is entered."""
        self._is_closed = False
        self._broken: WorkflowsError | None = None
        self._entering: asyncio.Task[None] | None = None
        self._find: Callable[[], Any] = door.finder(self._setup, "loader")
        self._timer: Callable[[], Any] = door.finder(self._setup, "timer-0")
        timeout_s = order.config.client_timeout_seconds
        self._loader = ReconnectingRef("the loader actor", self._find_loader, timeout_s=timeout_s)
        self._clients = Clients(self._resolve, timeout_s, SystemIds())
        self._connection_warmup: ConnectionWarmup | None = None
        self._watching: asyncio.Task[None] | None = None
        self.codes = LoaderCodeSource(
            self._loader,
            self._store,
            is_app=order.app is not None,
            calls=self.calls,
            keys=order.config.keys(),
            pickle=self._pickle,
        )

    @classmethod
    async def start(
        cls,
        log_root: str | Path,
        *,
        load: Callable[[str], Any] | None = None,
        app: object = None,
        address: str | None = None,
        namespace: str = "dynamic-workflows",
        config: PlatformConfig | None = None,
        take_over: bool = False,
        load_version: str | None = None,
        timeout_s: float | None = None,
    ) -> RayPlatform:
        """Start or join Ray, and the platform's actors on it.

        `address` None: an embedded Ray, that of another process whose platform is at work on the
        log, or the one that this process is connected to already. `take_over`: take the log from
        whoever has it. Raises Unavailable where Ray cannot be reached or started, or the log cannot
        be written, InvalidError for a place that cannot hold a log, and PlatformBusy where another
        platform is at work on the log that cannot be joined.
        """
        config, root = config or PlatformConfig(), root_of(log_root)
        if root.startswith("memory://"):
            raise InvalidError(
                f"{root!r} is another place in each process of Ray: use a path or a bucket, or"
                " dynamic_workflows.testing, which keeps its log in memory"
            )
        # What cannot travel is refused before anything starts.
        _packed(load, app, is_elsewhere=address is not None)
        if address is None and config.log_group is not None:
            await asyncio.to_thread(permissions.share, root, config.log_group)
        order = Order(root, load, app, address, namespace, config, take_over, load_version)
        cluster = cls(order)
        limit = asyncio.timeout(timeout_s)
        try:
            async with limit:
                await cluster._enter(take_over=take_over)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise Unavailable(
                f"connect has had its {timeout_s:g} s: {cluster._stage} did not answer: look "
                "there, then connect again, or give it more time by connect(timeout=...)"
            ) from error
        return cluster

    # --- entering

    async def _enter(self, *, take_over: bool = False) -> None:
        order = self._order
        store = self._stage = f"the store of the log at {order.root}"
        limit_s = order.config.client_timeout_seconds
        if order.address is None:
            # The actors would wait for the disk to come back; whoever starts them wants to know.
            await within(limit_s, store, probe(self._store, SystemIds()))
        looking = in_daemon_thread(permissions.exposure, order.root)
        exposure = await within(limit_s, store, looking)
        if exposure is not None:
            _log.warning("%s", exposure)
        session, claim = await self._begin(take_over=take_over)
        try:
            config = order.config
            if session.is_embedded or session.is_guest:
                config = await door.in_thread(_fitting, config)
            callbacks = _packed(order.load, order.app, is_elsewhere=session.is_elsewhere)
            setup = self._setup = order.setup(config, callbacks, claim, self._connected_at_us)
            self._session = session
            self._find = door.finder(setup, "loader")
            self._timer = door.finder(setup, "timer-0")
            session.use(order.platform)
            session.listen(self._lost)
            try:
                is_followed = await self._start_actors(setup)
                await session.warn_of_listeners()
            except BaseException:
                session.unlisten(self._lost)
                if session.release(order.platform):
                    await self._unclaim(session)
                raise
        except BaseException:
            self._session = None
            # What does not answer may not let go of it either.
            await asyncio.wait({asyncio.ensure_future(session.end())}, timeout=_END_S)
            raise
        self._has_connected = True
        self._connection_warmup = ConnectionWarmup(self._loader)
        self._connection_warmup.watch()
        if is_followed and order.has_callbacks:
            self._watching = asyncio.ensure_future(self._watch_load(self._setup))

    async def _begin(self, *, take_over: bool) -> tuple[RaySession, NumberedClaim | None]:
        """A session with Ray, and the claim of the platform that is, or is to be, in it."""
        order = self._order
        shared = RaySession.of(order.platform)
        if shared is not None and (shared.is_embedded or order.address is not None):
            session = await RaySession.begin(order.address)
            return session, session.claims.get(order.platform)
        if order.address is not None:
            return await self._begin_on_cluster(take_over=take_over)
        while True:
            found = None
            if not take_over:
                looking = self._claims.at_work()
                found = await within(order.config.client_timeout_seconds, self._stage, looking)
            if found is not None:
                self._stage = f"the platform of {found.claim}"
                joined = await self._join(found)
                if joined is not None:
                    return joined, found
                await asyncio.sleep(_LOOK_S)  # it is just starting, or just ending
                continue
            try:
                return await self._begin_embedded(take_over=take_over)
            except PlatformBusy as error:
                if getattr(error, "claim", None) is None:
                    raise
                # Somebody was quicker: join that one.

    async def _begin_embedded(self, *, take_over: bool) -> tuple[RaySession, NumberedClaim]:
        order = self._order
        RaySession.living()  # refuses in a forked child, before anything is claimed
        claim = await self._claims.take(
            new_claim(
                order.namespace, is_embedded=True, address=None, now_us=SystemClock().now_us()
            ),
            over=take_over,
        )
        self._stage = "the embedded Ray"
        try:
            session = await RaySession.begin(
                None,
                dashboard=order.config.dashboard,
                memory=embedded_memory.offered(
                    door.tenant_memory(order.config),
                    supervisors=2 * door.SUPERVISOR_MEMORY,
                    object_store=ray_connection.OBJECT_STORE,
                ),
            )
            try:
                # Others wait for the address; it is there before the platform is.
                claim = await self._claims.update(
                    claim,
                    address=ray_connection.address(),
                    ray_pid=ray_connection.control_pid(),
                    folder=session.folder,
                    token_file=ray_connection.token_file(),
                )
            except BaseException:
                await session.end()
                raise
        except BaseException:
            if self._origin.is_here:
                await self._claims.remove(claim)
            raise
        session.claims[order.platform] = claim
        return session, claim

    async def _join(self, found: NumberedClaim) -> RaySession | None:
        """The session in the Ray of the platform that is at work; None: look again soon."""
        claim, root = found.claim, self._order.root
        if claim.namespace != self._order.namespace:
            raise busy(root, found, f", in the namespace {claim.namespace!r}")
        RaySession.living()  # refuses in a forked child
        if ray_connection.is_connected():
            if (
                claim.address is not None
                and await door.in_thread(ray_connection.address) == claim.address
            ):
                return await RaySession.begin(None, host=found)
            if claim.is_embedded:
                raise busy(root, found, ", and this process is connected to another Ray")
        if not claim.is_embedded:
            raise busy(root, found)
        if not claim.is_here:
            raise busy(root, found, ", and an embedded platform is joined from its machine alone")
        if claim.address is None:
            return None
        try:
            return await RaySession.begin(None, host=found)
        except Unavailable as error:
            now = await self._claims.at_work()
            if now is None or now.claim.token != claim.token:
                return None  # it ended just now
            raise busy(root, found, f", but it cannot be joined ({error.message})") from error

    async def _begin_on_cluster(
        self, *, take_over: bool
    ) -> tuple[RaySession, NumberedClaim | None]:
        order = self._order
        self._stage = f"the Ray at {order.address}"
        session = await RaySession.begin(order.address)
        try:
            address = await door.in_thread(ray_connection.address)
            try:
                claim = await self._claim_at(address, session, take_over=take_over)
                return session, claim
            except Unavailable as error:
                # The actors have to write there, and say so; this machine need not.
                _log.info("the log's claims cannot be seen from here: %s", error)
                return session, None
        except BaseException:
            await session.end()
            raise

    async def _claim_at(
        self, address: str, session: RaySession, *, take_over: bool
    ) -> NumberedClaim:
        order = self._order
        while True:
            found = await self._claims.at_work()
            if found is not None:
                there = (found.claim.address, found.claim.namespace)
                if there == (address, order.namespace):
                    return found
                if not take_over:
                    raise busy(order.root, found)
            claim = new_claim(
                order.namespace,
                is_embedded=session.is_embedded,
                address=address,
                now_us=SystemClock().now_us(),
            )
            try:
                taken = await self._claims.take(claim, over=take_over)
            except PlatformBusy:
                continue  # somebody was quicker: look who
            if session.is_embedded:  # it ends with its drivers, though they name its address
                session.claims[order.platform] = taken
            return taken

    async def _start_actors(self, setup: Setup) -> bool:
        """The supervisors, and this driver's `load` in place; whether it is that which rules."""
        self._stage = "the control service of Ray, or the loader actor,"
        # Registering an actor asks Ray's control service and waits: not in the loop.
        loader = await door.in_thread(door.start_supervisors, setup)
        ruling = remote(self._loader, LoaderApi.rule, timeout_s=_START_S)
        rule = await ruling(setup.rule)
        if setup.has_callbacks and not self._has_connected:
            # Clocks of machines differ: whoever connects just now is later than whoever has.
            mine = load_precedence.later_than(rule, setup.rule)
            self._connected_at_us = mine.connected_at_us
            setup = self._setup = replace(setup, connected_at_us=mine.connected_at_us)
            rule = await ruling(mine)
        root, mine, first = self._order.root, setup.rule, rule
        while setup.has_callbacks and rule.fingerprint != mine.fingerprint:
            if not load_precedence.may_replace(mine, rule):
                load_precedence.tell_not_used(root, rule, mine)
                return False
            # Another driver's loader has other callbacks. Slots outlive it and are found again.
            await door.in_thread(door.kill_actor, loader)
            while await door.in_thread(door.is_named, loader, setup.namespace):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            # Yet another driver may start its own at this moment: look whose it is.
            loader = await door.in_thread(door.start_supervisors, setup)
            rule = await ruling(mine)
        if setup.has_callbacks and first.has_callbacks and first.fingerprint != mine.fingerprint:
            load_precedence.tell_replacing(root, first, mine)
        return True

    async def _watch_load(self, setup: Setup) -> None:
        """Tell this program when another driver's `load` rules instead of its own."""
        while True:
            try:
                replaced = remote(
                    self._loader, LoaderApi.replaced, timeout_s=_REPLACED_S + _GRACE_S
                )
                rule = await replaced(setup.rule, _REPLACED_S)
            except Unavailable:
                await asyncio.sleep(1.0)
                continue
            except WorkflowsError:
                return
            if rule is not None:
                load_precedence.tell_replaced(self._order.root, rule, setup.rule)
                return

    # --- the end of a Ray that was another's

    def _lost(self) -> None:
        if not self._is_closed and self._entering is None:
            self._entering = asyncio.ensure_future(self._enter_again())

    async def _enter_again(self) -> None:
        """Go on without the process whose Ray it was; what is under way waits meanwhile."""
        try:
            await self._leave_session()
            for tries in range(1, _ENTER_TRIES_MAX + 1):
                try:
                    await self._enter()
                    _log.warning(
                        "the Ray of the platform on %s had ended; it goes on", self._order.root
                    )
                    return
                except PlatformBusy as error:
                    self._break(error)
                    return
                except WorkflowsError as error:
                    if tries == _ENTER_TRIES_MAX or self._is_closed:
                        self._break(error)
                        return
                await asyncio.sleep(_ENTER_BACKOFF.rest_s(tries))
        except Exception as error:
            self._break(Unavailable(f"the platform's Ray has ended, and no other starts: {error}"))
        finally:
            self._entering = None

    def _break(self, error: WorkflowsError) -> None:
        _log.error("the platform on %s cannot go on: %s", self._order.root, error)
        self._broken = Unavailable(
            f"the Ray of this platform has ended, and it cannot go on: {error.message}"
        )
        self._clients.break_off(self._broken)

    async def _leave_session(self) -> None:
        if self._watching is not None:
            await stop_all([self._watching])
        if self._connection_warmup is not None:
            await self._connection_warmup.close()
        session, self._session = self._session, None
        if session is not None:
            session.unlisten(self._lost)
            if session.release(self._order.platform):
                await self._end_actors()
                await self._unclaim(session)
            elif session.is_lost and session.is_embedded:
                await self._unclaim(session)
            await session.end()

    async def _unclaim(self, session: RaySession) -> None:
        claim = session.claims.pop(self._order.platform, None)
        if claim is not None and self._origin.is_here:
            await self._claims.remove(claim)

    # --- what is asked of it

    def calls(self, tenant_id: str) -> ExplainedCalls:
        """The calls of a tenant; PlatformBusy in a forked child."""
        self._origin.check()
        calls = self._clients.of(tenant_id)
        return ExplainedCalls(calls, tenant_id, find_timer=self._find_timer, clock=SystemClock())

    async def _find_timer(self) -> ActorRef:
        self._origin.check()
        if self._session is None:
            raise ActorUnreachable("the platform is not connected")
        peer: ActorRef = await self._timer()
        return peer

    @property
    def loader(self) -> ActorRef:
        """The loader, to be called through its restarts."""
        return self._loader

    async def _find_loader(self) -> ActorRef:
        if self._broken is not None:
            raise self._broken
        while self._entering is not None and self._session is None:
            # A platform that is being started anew is not silent.
            await asyncio.wait({self._entering})
        if self._broken is not None:
            raise self._broken
        if self._session is None:
            raise ActorUnreachable("the platform is not connected")
        peer: ActorRef = await self._find()
        return peer

    async def _resolve(self, tenant_id: str, gone: str | None) -> ActorRef:
        try:
            return await remote(self._loader, LoaderApi.resolve)(tenant_id, gone)
        except PlatformClosed as error:
            # It is another driver that ends it: what comes next is for `_lost` to say.
            raise ActorUnreachable(error.message) from error

    def _pickle(self, source: object) -> bytes:
        is_elsewhere = self._session is not None and self._session.is_elsewhere
        return callback_pickling.dumps(
            source, is_elsewhere=is_elsewhere, name="the code's callback"
        )

    async def close(self) -> None:
        """Leave the platform; an embedded one goes to sleep and ends with its last driver.

        In a forked child it ends nothing: all of it is the parent's.
        """
        if self._is_closed:
            return
        self._is_closed = True
        if not self._origin.is_here:
            return
        self._clients.close()
        if self._entering is not None:
            # A Ray that is being started cannot be taken back half-way: it is left afterwards.
            await asyncio.wait({self._entering}, timeout=_START_S)
        if self._entering is not None:
            await stop_all([self._entering])
        await self._leave_session()

    async def _end_actors(self) -> None:
        for role in ("loader", "timer-0"):
            find = door.finder(self._setup, role)
            actor = ReconnectingRef(f"the {role} actor", find, timeout_s=_SILENT_S)
            try:
                peer = await door.in_thread(
                    door.find_actor, self._setup.name(role), self._setup.namespace
                )
                if peer is None:
                    continue
                try:
                    # As long as it lives: each of hundreds of tenants seals its log first.
                    await within(_CLOSE_S, actor.name, remote(actor, ActorApi.close)())
                finally:
                    await door.in_thread(door.kill_actor, peer)
            except (ActorUnreachable, WorkflowsError) as error:
                _log.warning("%s did not close cleanly: %s", actor.name, error)


def _fitting(config: PlatformConfig) -> PlatformConfig:
    """With as many resident tenants as an embedded Ray has room for: it does not grow."""
    limit = door.tenants_max(config)
    if limit is None:
        return config
    # Slots of the pool need room too, and one that ends has not left yet when the next begins.
    limit = min(config.tenants_resident_max, max(1, limit - config.pool_size - limit // 10))
    return config.model_copy(update={"tenants_resident_max": limit})


def _packed(load: object, app: object, *, is_elsewhere: bool) -> bytes:
    """What the loader calls, as it travels; raises InvalidError."""
    name = "load" if app is None else "app"
    return callback_pickling.dumps(
        (load, app), is_elsewhere=is_elsewhere, name=name, subject=load if app is None else app
    )
