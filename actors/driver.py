"""Driver: a platform on Ray as the program that connected to it holds it.

All platforms of a process share one connection. An embedded Ray starts with the first of them and
ends with the last; on a cluster the actors live on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..eventlog import log_access
from ..eventlog.errors import InvalidError, PlatformClosed, WorkflowsError
from ..eventlog.ids import SystemIds
from ..eventlog.places import root_of
from ..eventlog.store import open_store, probe
from . import cluster as door
from . import pickles, ray_connection
from .client import TenantClient
from .config import PlatformConfig
from .embedded import RayThread
from .house import Clients
from .peers import Lost, Peer
from .remote import Persistent, RemoteCodes
from .setup import Setup
from .spares import Spares

_log = logging.getLogger("dynamic_workflows.cluster")

_CLOSE_S = 600.0
"""How long the supervisors may take to end; each of hundreds of tenants seals its log first."""
_START_S = 120.0
"""How long the supervisors may take to start: a log to open, or a node to wait for."""


class Cluster:
    """A platform on Ray, as its driver holds it."""

    def __init__(self, setup: Setup, session: _Session) -> None:
        self._setup = setup
        self._session = session
        self._is_closed = False
        self._loader = Persistent(
            "the loader actor",
            door.finder(setup, "loader"),
            timeout_s=setup.config.client_timeout_seconds,
        )
        self._clients = Clients(self._resolve, setup.config.client_timeout_seconds, SystemIds())
        self._spares = Spares(self._loader)
        self.codes = RemoteCodes(
            self._loader,
            open_store(setup.log_root),
            is_app=setup.is_app,
            calls=self.calls,
            pickle=lambda source: pickles.dumps(
                source, is_elsewhere=session.is_elsewhere, name="the code's callback"
            ),
        )

    @classmethod
    async def start(
        cls,
        log_root: str | Path,
        *,
        load: Callable[[str], Any] | None = None,
        app: Any = None,
        address: str | None = None,
        namespace: str = "dynamic-workflows",
        config: PlatformConfig | None = None,
    ) -> Cluster:
        """Start or join Ray, and the platform's actors on it.

        `address` None: an embedded Ray, or the one that this process is connected to already.
        Raises Unavailable where Ray cannot be reached or started, or the log cannot be written,
        and InvalidError for a place that cannot hold a log.
        """
        config, root = config or PlatformConfig(), root_of(log_root)
        if root.startswith("memory://"):
            raise InvalidError(
                f"{root!r} is another place in each process of Ray: use a path or a bucket, or"
                " dynamic_workflows.testing, which keeps its log in memory"
            )
        # What cannot travel is refused before anything starts.
        _packed(load, app, is_elsewhere=address is not None)
        if address is None:
            if config.log_group is not None:
                await asyncio.to_thread(log_access.share, root, config.log_group)
            # The actors would wait for the disk to come back; whoever starts them wants to know.
            await probe(open_store(root), SystemIds())
        exposure = await asyncio.to_thread(log_access.exposure, root)
        if exposure is not None:
            _log.warning("%s", exposure)
        session = await _Session.begin(address, config)
        try:
            if session.is_embedded:
                config = _fitting(config)
            setup = Setup(
                log_root=root,
                config=config,
                namespace=namespace,
                callbacks=_packed(load, app, is_elsewhere=session.is_elsewhere),
                is_app=app is not None,
            )
            session.use(setup.prefix)
            cluster = cls(setup, session)
            try:
                await cluster._start_actors(is_visitor=load is None and app is None)
                await session.warn_of_listeners()
            except BaseException:
                session.release(setup.prefix)
                raise
        except BaseException:
            await session.end()
            raise
        return cluster

    async def _start_actors(self, *, is_visitor: bool) -> None:
        setup = self._setup
        loader = door.start_supervisors(setup)
        fingerprint = await self._loader.call("fingerprint", timeout_s=_START_S)
        # A visitor brings no callbacks: it takes the loader as it is.
        if fingerprint != setup.fingerprint and not is_visitor:
            # An earlier driver's loader has other callbacks. Slots outlive it and are found again.
            door.kill_actor(loader)
            while door.find_actor(loader.name, setup.namespace) is not None:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            door.start_supervisors(setup)
            await self._loader.call("fingerprint", timeout_s=_START_S)
        self._spares.watch()

    def calls(self, tenant_id: str) -> TenantClient:
        """The calls of a tenant."""
        return self._clients.of(tenant_id)

    async def loader_call(self, op: str, *args: Any) -> Any:
        """Call the loader, through its restarts."""
        if self._is_closed:
            raise PlatformClosed("the platform was closed: connect again")
        return await self._loader.call(op, *args)

    async def _resolve(self, tenant_id: str, gone: str | None) -> Peer:
        peer: Peer = await self._loader.call("resolve", tenant_id, gone)
        return peer

    async def close(self) -> None:
        """Leave the platform; an embedded one goes to sleep and ends with its last driver."""
        if self._is_closed:
            return
        self._is_closed = True
        self._clients.close()
        await self._spares.close()
        if self._session.release(self._setup.prefix):
            await self._end_actors()
        await self._session.end()

    async def _end_actors(self) -> None:
        for role in ("loader", "timer-0"):
            peer = door.find_actor(self._setup.name(role), self._setup.namespace)
            if peer is not None:
                try:
                    await peer.call("close", timeout_s=_CLOSE_S)
                except (Lost, WorkflowsError) as error:
                    _log.warning("the %s did not close cleanly: %s", role, error)
                door.kill_actor(peer)


def _packed(load: Any, app: Any, *, is_elsewhere: bool) -> bytes:
    """What the loader calls, as it travels; raises InvalidError."""
    name = "load" if app is None else "app"
    return pickles.dumps(
        (load, app), is_elsewhere=is_elsewhere, name=name, subject=load if app is None else app
    )


def _fitting(config: PlatformConfig) -> PlatformConfig:
    """With as many resident tenants as an embedded Ray has room for: it does not grow."""
    limit = door.tenants_max()
    if limit is None:
        return config
    # Slots of the pool need room too, and one that ends has not left yet when the next begins.
    limit = min(config.tenants_resident_max, max(1, limit - config.pool_size - limit // 10))
    return config.model_copy(update={"tenants_resident_max": limit})


def _connect(address: str | None, folder: str | None, config: PlatformConfig) -> None:
    if address is not None:
        ray_connection.join(address)
    else:
        assert folder is not None
        ray_connection.start(folder, has_dashboard=config.dashboard)


class _Session:
    """This process's connection to Ray; shared by its platforms."""

    _current: _Session | None = None
    _connecting: asyncio.Future[_Session] | None = None

    def __init__(self, *, is_elsewhere: bool, is_embedded: bool) -> None:
        self.is_elsewhere = is_elsewhere
        """Whether actors may run on other machines."""
        self.is_embedded = is_embedded
        """Whether the platforms end with their drivers."""
        self._users = 0
        self._platforms: dict[str, int] = {}
        self._ray: RayThread | None = None

    @classmethod
    async def begin(cls, address: str | None, config: PlatformConfig) -> _Session:
        """The connection that this process has, or a new one; raises Unavailable."""
        # Two platforms that are entered together share what the first of them starts.
        while cls._connecting is not None:
            await asyncio.wait({cls._connecting})
        if cls._current is None or not ray_connection.is_connected():
            connecting = asyncio.ensure_future(cls._connect(address, config))
            cls._connecting = connecting
            try:
                cls._current = await connecting
            finally:
                cls._connecting = None
        cls._current._users += 1
        return cls._current

    @classmethod
    async def _connect(cls, address: str | None, config: PlatformConfig) -> _Session:
        if ray_connection.is_connected():
            return cls(is_elsewhere=True, is_embedded=address is None)
        session = cls(is_elsewhere=address is not None, is_embedded=address is None)
        session._ray = RayThread(
            lambda folder: _connect(address, folder, config),
            ray_connection.disconnect,
            has_folder=address is None,
        )
        await session._ray.start()
        return session

    async def warn_of_listeners(self) -> None:
        """Log what of an embedded Ray can be reached over the network."""
        if self._ray is not None:
            await asyncio.to_thread(self._ray.warn_of_listeners)

    def use(self, prefix: str) -> None:
        """One more driver of a platform."""
        self._platforms[prefix] = self._platforms.get(prefix, 0) + 1

    def release(self, prefix: str) -> bool:
        """One driver less; whether the platform has to end now."""
        self._platforms[prefix] -= 1
        return self.is_embedded and not self._platforms[prefix]

    async def end(self) -> None:
        """One user less; the last one disconnects, if it was us who connected."""
        self._users -= 1
        if not self._users and self._ray is not None:
            _Session._current = None
            await self._ray.stop()
