"""Cluster: actors on Ray. Plain classes become actors here, and nothing else happens.

Every actor is named, detached and restarted by Ray when its process dies; it finds its state again
in its log.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import ray
import ray.exceptions
from ray.util.metrics import Counter, Gauge

from dynamic_workflows.eventlog.errors import Unavailable, WorkflowsError, needs_operator
from dynamic_workflows.eventlog.tracing import mark
from dynamic_workflows.loaders.sandbox import linux

from ..placement import metrics
from ..placement.isolate_setup import begin
from ..rpc.actor_ref import ActorRef, ActorUnreachable, pack_call, serve, unpack_outcome
from ..rpc.actor_settings import Setup
from ..rpc.connection import CURRENT
from ..rpc.services import ActorApi, LoaderApi, TimerApi, WorkerApi
from .daemon_threads import in_daemon_thread

if TYPE_CHECKING:
    from ..placement.tenant_process import TenantProcess
    from ..settings.platform_config import PlatformConfig

T = TypeVar("T")

_log = logging.getLogger("dynamic_workflows.cluster")

MIB = 1024 * 1024
SUPERVISOR_MEMORY = 100 * MIB
"""What the loader and the timer declare, each, so that Ray places them where there is room."""
CALLS_AT_ONCE_MAX = 10_000
_OPEN_AGAIN_S = 0.5
_CONTROL_S = 30.0
_WATCH_S = 1.0


class RayPeer:
    """An actor as a peer."""

    def __init__(self, name: str, handle: Any, *, connection: int | None = None) -> None:
        """`connection`: the number of the one that the handle is of; None: the present one."""
        self.name = name
        self.handle = handle
        self._connection = CURRENT.number if connection is None else connection

    def __reduce__(self) -> Any:
        return RayPeer, (self.name, self.handle)

    async def call(self, op: str, *args: Any, timeout_s: float | None = None) -> Any:
        """Call a method of the actor's plain class; raises what it raised, or ActorUnreachable."""
        if self._connection != CURRENT.number:
            raise ActorUnreachable(f"{self.name}: the Ray that it was in has ended")
        packed = pack_call(args)
        try:
            outcome = self.handle.rpc.remote(op, packed)
        except Exception as error:
            # Nothing was sent: Ray knows no such actor, or has just been shut down.
            raise ActorUnreachable(f"{self.name}: {error}") from error
        try:
            return unpack_outcome(await CURRENT.outcome(_arrival(outcome), timeout_s))
        except TimeoutError as error:
            if timeout_s is None:
                raise
            raise ActorUnreachable(f"{self.name} did not answer {op} in {timeout_s:g} s") from error
        except ray.exceptions.RayError as error:
            raise ActorUnreachable(f"{self.name}: {type(error).__name__}") from error


async def _arrival(outcome: Any) -> bytes:
    body: bytes = await outcome
    return body


# --- the actors


class _Actor:
    """A plain class in a process of its own: calls wait until it is open."""

    _setup: Setup

    def __init__(self) -> None:
        _die_with_parent()
        _log_to_stderr()
        self._begin_to_open()
        self._publishing = asyncio.ensure_future(self._publish_for_ever())
        self._watching = asyncio.ensure_future(self._watch_for_ever())

    def _begin_to_open(self, after_s: float = 0.0) -> None:
        self._opened = asyncio.ensure_future(self._open_after(after_s))
        self._opened.add_done_callback(self._open_again)

    async def _open_after(self, rest_s: float) -> ActorApi:
        if rest_s:
            await asyncio.sleep(rest_s)
        return await self._open()

    def _open_again(self, opened: asyncio.Future[ActorApi]) -> None:
        """Who waited hears what is wrong; the disk may come back, so it is tried again."""
        if not opened.cancelled() and isinstance(opened.exception(), Unavailable):
            _log.error("%s", opened.exception())
            # Calls that come from now on wait for the next try.
            self._begin_to_open(_OPEN_AGAIN_S)

    async def _open(self) -> ActorApi:
        """What answers the calls; Unavailable where another try may help."""
        raise NotImplementedError

    async def _samples(self) -> list[metrics.MetricSample]:
        """What operators watch."""
        raise NotImplementedError

    async def _publish_for_ever(self) -> None:
        """Tell Ray what there is to watch, now and then; nothing depends on it."""
        meter = Meter()
        while True:
            await asyncio.sleep(metrics.PUBLISH_S)
            try:
                meter.record(await self._samples())
            except Exception as error:
                _log.warning("the metrics cannot be published: %r", error)

    async def rpc(self, op: str, body: bytes) -> bytes:
        """Carry out a packed call."""
        try:
            target = await asyncio.shield(self._opened)
        except Exception as error:
            return await serve(_Broken(error), "fail", pack_call(()))
        outcome = await serve(target, op, body)
        if not needs_operator(self._failed()):
            await self._check()
        return outcome

    async def _watch_for_ever(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_S)
            await self._check()

    async def _check(self) -> None:
        """End the process if a new one can go on where this one cannot; Ray starts it again.

        Who waits for an answer asks again there.
        """
        failed = self._failed()
        if failed is not None:
            from ..placement.wiring import may_go_on

            if await may_go_on(self._setup, failed):
                os._exit(1)

    def _failed(self) -> WorkflowsError | None:
        """Why the actor's log takes nothing any more."""
        return None


def _log_to_stderr() -> None:
    """Have what we and tenants log in the actor's own file, where Ray puts its stderr."""
    logger = logging.getLogger("dynamic_workflows")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False


class Meter:
    """Samples as metrics of Ray."""

    def __init__(self) -> None:
        self._metrics: dict[str, Any] = {}
        self._counted: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        self._gauges: dict[tuple[str, frozenset[tuple[str, str]]], dict[str, str]] = {}

    def record(self, samples: Iterable[metrics.MetricSample]) -> None:
        """Set the gauges, and let the counters grow by what is new.

        What is no longer there, such as a tenant that has left the process, is forgotten; its
        gauges are set to 0.
        """
        gauges: dict[tuple[str, frozenset[tuple[str, str]]], dict[str, str]] = {}
        counted, self._counted = self._counted, {}
        for name, value, tags in samples:
            tags = dict.fromkeys(metrics.TAGS, "") | tags
            metric = self._metric(name)
            key = (name, frozenset(tags.items()))
            if isinstance(metric, Gauge):
                gauges[key] = tags
                metric.set(value, tags)
                continue
            before = counted.get(key, 0)
            self._counted[key] = value
            # One that is smaller than before has begun again.
            more = value - before if value >= before else value
            if more > 0:
                metric.inc(more, tags)
        for key, tags in self._gauges.items():
            if key not in gauges:
                self._metric(key[0]).set(0, tags)
        self._gauges = gauges

    def _metric(self, name: str) -> Any:
        metric = self._metrics.get(name)
        if metric is None:
            kind = Counter if name.endswith("_total") else Gauge
            metric = self._metrics[name] = kind(
                metrics.full_name(name), metrics.DESCRIPTIONS[name], metrics.TAGS
            )
        return metric


class _Broken:
    def __init__(self, error: Exception) -> None:
        self._error = error

    async def fail(self) -> None:
        raise self._error


class TimerActor(_Actor):
    """The timer, as an actor."""

    def __init__(self, *parts: bytes) -> None:
        from ..placement.wiring import TimerService

        setup = self._setup = _whole(parts)
        self._service = TimerService(setup, finder(setup, "loader"))
        super().__init__()

    async def _open(self) -> TimerApi:
        await self._service.open()
        return self._service

    async def _samples(self) -> list[metrics.MetricSample]:
        return await self._service.samples()

    def _failed(self) -> WorkflowsError | None:
        return self._service.failed


class LoaderActor(_Actor):
    """The loader, as an actor."""

    def __init__(self, *parts: bytes) -> None:
        from ..placement.wiring import LoaderService

        setup = self._setup = _whole(parts)
        self._service = LoaderService(setup, RayLauncher(setup), finder(setup, "timer-0"))
        super().__init__()

    async def _open(self) -> LoaderApi:
        await self._service.open()
        return self._service

    async def _samples(self) -> list[metrics.MetricSample]:
        return await self._service.samples()

    def _failed(self) -> WorkflowsError | None:
        return self._service.failed


class TenantActor(_Actor):
    """A slot, as an actor."""

    def __init__(self, name: str, is_spare: bool, *parts: bytes) -> None:
        mark("worker: its process begins")
        self._began_s = time.monotonic()
        self._setup = _whole(parts)
        self._name = name
        self._is_restarted = bool(ray.get_runtime_context().was_current_actor_reconstructed)
        # After a crash a tenant waits for it, however it began.
        self._is_spare = is_spare and not self._is_restarted
        self._process: TenantProcess | None = None
        super().__init__()

    async def _open(self) -> WorkerApi:
        setup = self._setup
        # The zygote starts while this process imports what comes next, which takes as long.
        isolates = await begin(setup.config)
        from ..placement.tenant_process import TenantProcess

        loader, timer = finder(setup, "loader"), finder(setup, "timer-0")
        process = TenantProcess(
            setup,
            self._name,
            isolates,
            loader,
            timer,
            self._adopted,
            lambda: os._exit(0),
            began_s=self._began_s,
        )
        worker = await process.open()
        self._process = process
        if self._is_restarted:
            process.report_restart()
        if self._is_spare:
            await process.rehearse()
        return worker

    async def _samples(self) -> list[metrics.MetricSample]:
        return [] if self._process is None else await self._process.samples()

    def _adopted(self, tenant_id: str | None) -> None:
        if tenant_id is None:
            self.__class__ = TenantActor
            # No call may come for long: the title must not name a tenant that has left.
            ray._raylet.setproctitle("ray::TenantActor")  # type: ignore[attr-defined]
            return
        # Ray writes the class's name into the process title after each call.
        self.__class__ = type(f"TenantActor: {metrics.shown(tenant_id)}", (TenantActor,), {})


_OPTIONS = {
    "lifetime": "detached",
    "max_restarts": -1,
    "max_task_retries": 0,
    "num_cpus": 0,
    "max_concurrency": CALLS_AT_ONCE_MAX,
}


def start_supervisors(setup: Setup) -> RayPeer:
    """The timer and the loader, unless they are there; answers the loader."""
    timer = setup.name("timer-0")
    start_actor(TimerActor, timer, setup.without_callbacks(), memory=SUPERVISOR_MEMORY)
    return start_actor(LoaderActor, setup.name("loader"), setup, memory=SUPERVISOR_MEMORY)


def start_actor(kind: type[Any], name: str, setup: Setup, *args: Any, **options: Any) -> RayPeer:
    """The actor of that name, started if there is none."""
    remote = ray.remote(kind).options(
        name=name, namespace=setup.namespace, get_if_exists=True, **(_OPTIONS | options)
    )
    return RayPeer(name, remote.remote(*args, *_parts(setup)))


# What is larger than 100 kB would lie in the object store of whoever starts the actor, and be gone
# with it: an actor could not be started again after its driver has left.
_PART_BYTES = 64 * 1024


def _parts(setup: Setup) -> list[bytes]:
    whole = pickle.dumps(setup, protocol=5)
    return [whole[at : at + _PART_BYTES] for at in range(0, len(whole), _PART_BYTES)]


def _whole(parts: tuple[bytes, ...]) -> Setup:
    setup = pickle.loads(b"".join(parts))
    assert isinstance(setup, Setup)
    return setup


def find_actor(name: str, namespace: str) -> RayPeer | None:
    """An actor by name, if it exists; ActorUnreachable while there is no connection."""
    if not ray.is_initialized():
        raise ActorUnreachable("there is no connection to Ray")  # it would start one of its own
    number = CURRENT.number
    try:
        return RayPeer(name, ray.get_actor(name, namespace=namespace), connection=number)
    except ValueError:
        return None


def kill_actor(peer: RayPeer) -> None:
    """End an actor for good."""
    ray.kill(peer.handle, no_restart=True)


def is_named(peer: RayPeer, namespace: str) -> bool:
    """Whether its name still stands for this very actor, not for none or for a later one."""
    found = find_actor(peer.name, namespace)
    return found is not None and bool(found.handle == peer.handle)


async def in_thread(work: Callable[..., T], *args: Any) -> T:
    """Do what waits for Ray's control service; raises ActorUnreachable where it does not answer."""
    try:
        return await CURRENT.outcome(in_daemon_thread(work, *args), _CONTROL_S)
    except TimeoutError as error:
        raise ActorUnreachable(
            f"Ray's control service did not answer in {_CONTROL_S:g} s"
        ) from error
    except ray.exceptions.RayError as error:
        raise ActorUnreachable(f"Ray does not answer: {error}") from error


def finder(setup: Setup, role: str) -> Callable[[], Awaitable[ActorRef]]:
    """How to find the loader or the timer; raises ActorUnreachable where there is none."""
    held: list[ActorRef] = []

    async def find() -> ActorRef:
        # A handle outlives the restarts of its actor; only a new actor needs a new handle.
        if not held:
            # The look-up waits for Ray's control service: not in the loop.
            peer = await in_thread(find_actor, setup.name(role), setup.namespace)
            if peer is None:
                raise ActorUnreachable(f"there is no {role}")
            held.append(_Forgetting(peer, held))
        return held[0]

    return find


class _Forgetting:
    """A peer that is looked up anew after it was lost."""

    def __init__(self, peer: ActorRef, held: list[ActorRef]) -> None:
        self.name = peer.name
        self._peer = peer
        self._held = held

    async def call(self, op: str, *args: Any, timeout_s: float | None = None) -> Any:
        try:
            return await self._peer.call(op, *args, timeout_s=timeout_s)
        except ActorUnreachable:
            if self._held and self._held[0] is self:
                self._held.clear()
            raise


class RayLauncher:
    """Slots as actors."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup

    async def start(self, name: str, *, is_spare: bool) -> ActorRef:
        """A new slot; Ray spreads them over the nodes."""
        resources = dict(self._setup.config.resources)
        # Registering an actor asks Ray's control service and waits: not in the loop.
        return await asyncio.to_thread(
            start_actor,
            TenantActor,
            self._setup.name(name),
            self._setup.without_callbacks(),
            self._setup.name(name),
            is_spare,
            memory=tenant_memory(self._setup.config),
            scheduling_strategy="SPREAD",
            **({"resources": resources} if resources else {}),
        )

    async def names(self) -> list[str]:
        """The slots of this platform."""
        named: list[dict[str, str]] = await asyncio.to_thread(
            ray.util.list_named_actors, all_namespaces=True
        )
        return [
            actor["name"]
            for actor in named
            if actor["namespace"] == self._setup.namespace
            and actor["name"].startswith(self._setup.name("worker-"))
        ]

    async def find(self, name: str) -> ActorRef | None:
        """A slot by name."""
        return await asyncio.to_thread(find_actor, name, self._setup.namespace)

    async def kill(self, name: str) -> None:
        """End a slot for good."""
        await asyncio.to_thread(self._kill, name)

    def _kill(self, name: str) -> None:
        peer = find_actor(name, self._setup.namespace)
        if peer is not None:
            kill_actor(peer)


def _die_with_parent() -> None:
    """End this process as soon as its raylet is gone: Ray alone may take seconds to notice."""
    parent = os.getppid()
    try:
        watched = linux.open_pidfd(parent)
    except OSError:
        return  # no such thing here, or no parent any more: Ray notices by itself
    if os.getppid() != parent:
        os._exit(1)
    asyncio.get_running_loop().add_reader(watched, os._exit, 1)


def tenant_memory(config: PlatformConfig) -> int:
    """Bytes of memory that each tenant actor declares to Ray."""
    return config.tenant_memory_mb * MIB


def tenants_max(config: PlatformConfig) -> int | None:
    """How many tenant actors Ray places at once with what it has now; None where it is unknown."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    memory = resources.get("memory", 0.0)
    if not memory:
        return None
    return max(1, int((memory - 2 * SUPERVISOR_MEMORY) // tenant_memory(config)))
