"""Cluster: the one door to Ray. Plain classes become actors here, and nothing else happens.

Every actor is named, detached and restarted by Ray when its process dies; it finds its state again
in its log. An embedded Ray belongs to the driver's process: it starts with the first platform, ends
with the last, and what a killed driver leaves of it is cleared away.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import ray
import ray.exceptions

from ..eventlog.errors import PlatformClosed, Unavailable, WorkflowsError
from ..eventlog.ids import SystemIds
from ..eventlog.store import open_store
from . import pickles, reaper
from .client import TenantClient
from .config import PlatformConfig
from .house import Clients, LoaderHouse, Setup, TimerHouse, root_of
from .peers import Lost, Peer, pack_call, serve, unpack_outcome
from .remote import Persistent, RemoteCodes

_log = logging.getLogger("dynamic_workflows.cluster")

MIB = 1024 * 1024
TENANT_MEMORY = 150 * MIB
"""What a tenant actor declares, so that Ray places it where there is room (bytes)."""
SUPERVISOR_MEMORY = 150 * MIB
CALLS_AT_ONCE_MAX = 10_000
OBJECT_STORE = 256 * MIB
# Sockets lie in the folder, and their names may have no more than 107 characters.
_FOLDER_CHARACTERS_MAX = 40


class RayPeer:
    """An actor as a peer."""

    def __init__(self, name: str, handle: Any) -> None:
        self.name = name
        self.handle = handle

    def __reduce__(self) -> Any:
        return RayPeer, (self.name, self.handle)

    async def call(self, op: str, *args: Any, timeout_s: float | None = None) -> Any:
        """Call a method of the actor's plain class; raises what it raised, or Lost."""
        try:
            outcome = self.handle.rpc.remote(op, pack_call(args))
            return unpack_outcome(await asyncio.wait_for(_arrival(outcome), timeout_s))
        except TimeoutError as error:
            if timeout_s is None:
                raise
            raise Lost(f"{self.name} did not answer {op} in {timeout_s:g} s") from error
        except ray.exceptions.RayError as error:
            raise Lost(f"{self.name}: {type(error).__name__}") from error


async def _arrival(outcome: Any) -> bytes:
    body: bytes = await outcome
    return body


# --- the actors


class _Actor:
    """A plain class in a process of its own: calls wait until it is open."""

    def __init__(self) -> None:
        _die_with_parent()
        self._opened = asyncio.ensure_future(self._open())

    async def _open(self) -> Any:
        """What answers the calls."""
        raise NotImplementedError

    async def rpc(self, op: str, body: bytes) -> bytes:
        """Carry out a packed call."""
        try:
            target = await asyncio.shield(self._opened)
        except Exception as error:
            return await serve(_Broken(error), "fail", pack_call(()))
        outcome = await serve(target, op, body)
        self._check()
        return outcome

    def _check(self) -> None:
        """End the process if it cannot go on; Ray starts it again."""


class _Broken:
    def __init__(self, error: Exception) -> None:
        self._error = error

    async def fail(self) -> None:
        raise self._error


class TimerActor(_Actor):
    """The timer, as an actor."""

    def __init__(self, setup: Setup) -> None:
        self._house = TimerHouse(setup, _finder(setup, "loader"))
        super().__init__()

    async def _open(self) -> Any:
        await self._house.open()
        return _Closing(self._house, self._house.target)

    def _check(self) -> None:
        # A log that failed for want of its disk is opened anew; one that was taken over is not.
        if isinstance(self._house.failed, Unavailable):
            os._exit(1)


class LoaderActor(_Actor):
    """The loader, as an actor."""

    def __init__(self, setup: Setup) -> None:
        self._house = LoaderHouse(setup, RayLauncher(setup), _finder(setup, "timer-0"))
        super().__init__()

    async def _open(self) -> Any:
        await self._house.open()
        return self._house


class _Closing:
    """The timer's ops, and `close` for the whole house."""

    def __init__(self, house: TimerHouse, target: Any) -> None:
        self._house = house
        self._target = target

    def __getattr__(self, op: str) -> Any:
        return getattr(self._target, op)

    async def close(self) -> None:
        await self._house.close()


class TenantActor(_Actor):
    """A slot, as an actor."""

    def __init__(self, setup: Setup, name: str, is_spare: bool) -> None:
        self._setup = setup
        self._name = name
        # Restarted after a crash, a tenant waits for it, however it began.
        context = ray.get_runtime_context()
        self._is_spare = is_spare and not context.was_current_actor_reconstructed
        super().__init__()

    async def _open(self) -> Any:
        from .resident import SlotHouse

        setup = self._setup
        loader, timer = _finder(setup, "loader"), _finder(setup, "timer-0")
        house = SlotHouse(setup, self._name, loader, timer, self._adopted, lambda: os._exit(0))
        await house.open()
        if self._is_spare:
            await house.rehearse()
        return house.target

    def _adopted(self, tenant_id: str) -> None:
        # Ray writes the class's name into the process title after each call.
        shown = "".join(c if c.isprintable() else "?" for c in tenant_id)
        self.__class__ = type(f"TenantActor: {shown}", (TenantActor,), {})


_OPTIONS = {
    "lifetime": "detached",
    "max_restarts": -1,
    "max_task_retries": 0,
    "num_cpus": 0,
    "max_concurrency": CALLS_AT_ONCE_MAX,
}


def _start_actor(kind: type[Any], name: str, setup: Setup, *args: Any, **options: Any) -> RayPeer:
    remote = ray.remote(kind).options(
        name=name, namespace=setup.namespace, get_if_exists=True, **(_OPTIONS | options)
    )
    return RayPeer(name, remote.remote(setup, *args))


def _find_actor(name: str, namespace: str) -> RayPeer | None:
    try:
        return RayPeer(name, ray.get_actor(name, namespace=namespace))
    except ValueError:
        return None


def _finder(setup: Setup, role: str) -> Callable[[], Awaitable[Peer]]:
    held: list[Peer] = []

    async def find() -> Peer:
        # A handle outlives the restarts of its actor; only a new actor needs a new handle.
        if not held:
            peer = _find_actor(setup.name(role), setup.namespace)
            if peer is None:
                raise Lost(f"there is no {role}")
            held.append(_Forgetting(peer, held))
        return held[0]

    return find


class _Forgetting:
    """A peer that is looked up anew after it was lost."""

    def __init__(self, peer: Peer, held: list[Peer]) -> None:
        self.name = peer.name
        self._peer = peer
        self._held = held

    async def call(self, op: str, *args: Any, timeout_s: float | None = None) -> Any:
        try:
            return await self._peer.call(op, *args, timeout_s=timeout_s)
        except Lost:
            if self._held and self._held[0] is self:
                self._held.clear()
            raise


class RayLauncher:
    """Slots as actors."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup

    async def start(self, name: str, *, is_spare: bool) -> Peer:
        """A new slot; Ray spreads them over the nodes."""
        resources = dict(self._setup.config.resources)
        # Registering an actor asks Ray's control service and waits: not in the loop.
        return await asyncio.to_thread(
            _start_actor,
            TenantActor,
            self._setup.name(name),
            self._setup,
            self._setup.name(name),
            is_spare,
            memory=TENANT_MEMORY,
            scheduling_strategy="SPREAD",
            **({"resources": resources} if resources else {}),
        )

    async def names(self) -> list[str]:
        """The slots of this platform."""
        named: list[dict[str, str]] = ray.util.list_named_actors(all_namespaces=True)
        return [
            actor["name"]
            for actor in named
            if actor["namespace"] == self._setup.namespace
            and actor["name"].startswith(self._setup.name("slot-"))
        ]

    async def find(self, name: str) -> Peer | None:
        """A slot by name."""
        return _find_actor(name, self._setup.namespace)

    async def kill(self, name: str) -> None:
        """End a slot for good."""
        await asyncio.to_thread(self._kill, name)

    def _kill(self, name: str) -> None:
        peer = _find_actor(name, self._setup.namespace)
        if peer is not None:
            ray.kill(peer.handle, no_restart=True)


def _die_with_parent() -> None:
    """End this process as soon as its raylet is gone: Ray alone may take seconds to notice."""
    parent = os.getppid()
    try:
        watched = os.pidfd_open(parent)
    except OSError:
        return  # an old kernel, or no parent any more: Ray notices by itself
    if os.getppid() != parent:
        os._exit(1)
    asyncio.get_running_loop().add_reader(watched, os._exit, 1)


# --- the driver's side


class Cluster:
    """A platform on Ray, as its driver holds it."""

    def __init__(self, setup: Setup, session: _Session) -> None:
        self._setup = setup
        self._session = session
        self._is_closed = False
        self._loader = Persistent(
            "the loader actor",
            _finder(setup, "loader"),
            timeout_s=setup.config.client_timeout_seconds,
        )
        self._clients = Clients(self._resolve, setup.config.client_timeout_seconds, SystemIds())
        self.codes = RemoteCodes(
            self._loader,
            open_store(setup.log_root),
            is_app=setup.is_app,
            calls=self.calls,
            pickle=lambda source: pickles.dumps(source, is_elsewhere=session.is_elsewhere),
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
        Raises Unavailable where Ray cannot be reached or started.
        """
        config = config or PlatformConfig()
        session = await _Session.begin(address, config)
        setup = Setup(
            log_root=root_of(log_root),
            config=config,
            namespace=namespace,
            callbacks=pickles.dumps((load, app), is_elsewhere=session.is_elsewhere),
            is_app=app is not None,
        )
        session.use(setup.prefix)
        cluster = cls(setup, session)
        try:
            await cluster._start_actors(is_visitor=load is None and app is None)
        except BaseException:
            await session.end(setup.prefix)
            raise
        return cluster

    async def _start_actors(self, *, is_visitor: bool) -> None:
        setup = self._setup
        options = {"memory": SUPERVISOR_MEMORY}
        _start_actor(TimerActor, setup.name("timer-0"), setup, **options)
        loader = _start_actor(LoaderActor, setup.name("loader"), setup, **options)
        fingerprint = await self._loader.call("fingerprint")
        # A visitor brings no callbacks: it takes the loader as it is.
        if fingerprint != setup.fingerprint and not is_visitor:
            # An earlier driver's loader has other callbacks. Slots outlive it and are found again.
            ray.kill(loader.handle, no_restart=True)
            while _find_actor(setup.name("loader"), setup.namespace) is not None:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            _start_actor(LoaderActor, setup.name("loader"), setup, **options)
            await self._loader.call("fingerprint")

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
        if self._session.release(self._setup.prefix):
            await self._end_actors()
        await self._session.end(self._setup.prefix)

    async def _end_actors(self) -> None:
        for role in ("loader", "timer-0"):
            peer = _find_actor(self._setup.name(role), self._setup.namespace)
            if peer is not None:
                try:
                    await peer.call("close", timeout_s=60.0)
                except (Lost, WorkflowsError) as error:
                    _log.warning("the %s did not close cleanly: %s", role, error)
                ray.kill(peer.handle, no_restart=True)


class _Session:
    """This process's connection to Ray; shared by its platforms."""

    _current: _Session | None = None
    _lock: asyncio.Lock | None = None

    def __init__(self, *, is_owned: bool, is_elsewhere: bool, is_embedded: bool) -> None:
        self.is_owned = is_owned
        """Whether Ray was initialised by us, and is shut down by us."""
        self.is_elsewhere = is_elsewhere
        """Whether actors may run on other machines."""
        self.is_embedded = is_embedded
        """Whether the platforms end with their drivers."""
        self._users = 0
        self._platforms: dict[str, int] = {}
        self._ray: _EmbeddedRay | None = None

    @classmethod
    async def begin(cls, address: str | None, config: PlatformConfig) -> _Session:
        """The connection that this process has, or a new one."""
        current = cls._current
        if current is None or not ray.is_initialized():
            current = cls._current = await cls._connect(address, config)
        current._users += 1
        return current

    @classmethod
    async def _connect(cls, address: str | None, config: PlatformConfig) -> _Session:
        if ray.is_initialized():
            return cls(is_owned=False, is_elsewhere=True, is_embedded=address is None)
        embedded = _EmbeddedRay(address, dashboard=config.dashboard)
        session = cls(is_owned=True, is_elsewhere=address is not None, is_embedded=address is None)
        session._ray = embedded
        await embedded.start()
        return session

    def use(self, prefix: str) -> None:
        """One more driver of a platform."""
        self._platforms[prefix] = self._platforms.get(prefix, 0) + 1

    def release(self, prefix: str) -> bool:
        """One driver less; whether the platform has to end now."""
        self._platforms[prefix] -= 1
        return self.is_embedded and not self._platforms[prefix]

    async def end(self, prefix: str) -> None:
        """One user less; the last one disconnects."""
        self._users -= 1
        if not self._users and self._ray is not None:
            _Session._current = None
            await self._ray.stop()


class _EmbeddedRay:
    """Ray in a thread of ours. Its processes die with the thread that started them, so it stays."""

    def __init__(self, address: str | None, *, dashboard: bool) -> None:
        self._address = address
        self._dashboard = dashboard
        self._folder: str | None = None
        self._watch: subprocess.Popen[bytes] | None = None
        self._stop = threading.Event()
        self._started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._thread = threading.Thread(target=self._run, name="ray", daemon=True)

    async def start(self) -> None:
        """Start, or connect to the address; raises Unavailable."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        await self._started

    async def stop(self) -> None:
        """Shut down, and leave nothing behind."""
        self._loop = asyncio.get_running_loop()
        self._stopped = self._loop.create_future()
        self._stop.set()
        await self._stopped

    def _run(self) -> None:
        try:
            self._init()
        except Exception as error:
            problem = Unavailable(f"Ray cannot be started or reached: {error}")
            self._clear()
            self._loop.call_soon_threadsafe(self._started.set_exception, problem)
            return
        self._loop.call_soon_threadsafe(self._started.set_result, None)
        self._stop.wait()
        ray.shutdown()
        self._clear()
        self._loop.call_soon_threadsafe(self._stopped.set_result, None)

    def _init(self) -> None:
        options: dict[str, Any] = {
            "log_to_driver": False,
            "logging_level": logging.ERROR,
            "namespace": "dynamic-workflows",
        }
        if self._address is not None:
            ray.init(address=self._address, **options)
            return
        folder = self._folder = tempfile.mkdtemp(prefix="dw-", dir=_short_temp())
        self._watch = subprocess.Popen(
            [sys.executable, "-I", "-S", str(reaper.__file__), folder, str(os.getpid())],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        ray.init(
            address="local",
            include_dashboard=self._dashboard,
            object_store_memory=OBJECT_STORE,
            _temp_dir=folder,
            **options,
        )
        _quieten()

    def _clear(self) -> None:
        """Let the reaper end what is left; it removes the folder."""
        if self._watch is not None:
            assert self._watch.stdin is not None
            self._watch.stdin.close()
            self._watch.wait(30)
        elif self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _short_temp() -> str:
    temporary = tempfile.gettempdir()
    return temporary if len(temporary) <= _FOLDER_CHARACTERS_MAX else "/tmp"


def _quieten() -> None:
    """Send Ray's messages about workers that died to the log, not to the driver's terminal."""
    from ray._private import worker

    def to_log(data: dict[str, Any], ignore_prefix: bool = False) -> None:
        for line in data.get("lines", ()):
            _log.info("ray: %s", line)

    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = to_log
