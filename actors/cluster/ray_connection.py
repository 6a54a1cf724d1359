"""Ray connection: how this process joins a Ray, or starts an embedded one that is its own alone.

An embedded Ray listens on the loopback address only, asks for a token that nobody but this user can
read, and runs no process that the platform does not need. Ray has no public setting for some of
this: what is set here is what Ray itself sets where there is no network (macOS) or where its
dashboard is not installed. A Ray that no longer has such a place is started as it comes, and
`listening` then says what is open.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import ray
import ray._private.parameter as parameter
import ray._private.ray_constants as ray_constants
import ray._private.utils as ray_utils
import ray._raylet as raylet

from ..rpc import fork_guard
from ..rpc.connection import CURRENT
from . import ray_probe, ray_token
from .signal_handlers import kept_handlers

_log = logging.getLogger("dynamic_workflows.cluster")

MIB = 1024 * 1024
OBJECT_STORE = 256 * MIB


def is_connected() -> bool:
    """Whether this process is connected to some Ray, by us or by somebody else."""
    return bool(ray.is_initialized())


def join(address: str) -> None:
    """Join the Ray at an address, or the one that "auto" finds. Blocks for some seconds.

    Raises Unavailable, within ten seconds where the address or the token is wrong.
    """
    place = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    CURRENT.renew()
    _start_nothing_unasked()
    fork_guard.on_fork(_let_go)
    with ExitStack() as stack:
        stack.enter_context(kept_handlers())
        if place and "://" not in place:
            host, _ = ray_probe.split(place)
            ray_probe.probe(place, _headers())
            if _is_loopback(host):
                # Else Ray would look for it at this machine's other address, where an embedded one
                # does not listen.
                stack.enter_context(_replaced(ray_constants, "ENABLE_RAY_CLUSTER", False))
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)


def _start_nothing_unasked() -> None:
    """From here on Ray's functions start no Ray by themselves in this process.

    A call that meets the end of a connection would else start another Ray, with a dashboard, and
    open to everybody who may reach this machine.
    """
    from ray._private import auto_init_hook

    if hasattr(auto_init_hook, "enable_auto_connect"):
        auto_init_hook.enable_auto_connect = False


def _headers() -> list[tuple[str, str]]:
    """What Ray's client shows to be let in."""
    _forget_token()
    loader = raylet.AuthenticationTokenLoader.instance()  # type: ignore[attr-defined]
    return list(loader.get_token_for_http_header().items()) if loader.has_token() else []


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def start(folder: str, *, has_dashboard: bool, memory: int | None = None) -> None:
    """Start a Ray that keeps its files in the folder, and offers so many bytes of `memory` (None:
    what it finds) to what declares it. Blocks for some seconds.

    The variables that name its token are set already; see `RayToken`.
    """
    CURRENT.renew()
    _start_nothing_unasked()
    fork_guard.on_fork(_let_go)
    _forget_token()
    with kept_handlers(), _embedded(has_dashboard=has_dashboard):
        ray.init(
            address="local",
            include_dashboard=has_dashboard,
            object_store_memory=OBJECT_STORE,
            _memory=memory,
            _temp_dir=folder,
            _system_config=_system_config(has_dashboard=has_dashboard),
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    _quieten()


def address() -> str:
    """Where others reach the Ray that this process is connected to."""
    found: str = ray.get_runtime_context().gcs_address
    return found


def control_pid() -> int | None:
    """The process of the control service, where this process has started Ray."""
    from ray._private import worker

    started = getattr(getattr(worker, "_global_node", None), "all_processes", {})
    services = started.get("gcs_server", ())
    return services[0].process.pid if services else None


def token_file() -> str | None:
    """Where the token lies that the Ray of this process asks for, if it asks for one."""
    if os.environ.get(ray_token.MODE) != "token" or ray_token.VALUE in os.environ:
        return None
    return os.environ.get(ray_token.PATH, os.path.expanduser("~/.ray/auth_token"))


def disconnect() -> None:
    """Leave Ray; one that was started here ends. Blocks for about a second."""
    CURRENT.renew()
    with kept_handlers():
        ray.shutdown()
    _forget_token()


def _let_go() -> None:
    """In a forked child: leave Ray to the parent.

    At the child's exit Ray would wait for threads that it does not have, and end its parent's
    processes.
    """
    from ray._private import state, worker

    atexit.unregister(worker.shutdown)
    held: Any = worker.global_worker
    node = getattr(worker, "_global_node", None)
    for holder in (held, node, state.state):
        for one in getattr(holder, "__dict__", {}).values():
            if type(one).__module__ == raylet.__name__:
                # Never freed: its destructor would reach for threads that are not there.
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(one))
    if node is not None:
        worker._global_node = None
    # Handles that are collected then send nothing.
    held.set_mode(None)
    system = ctypes.CDLL(None)
    if hasattr(system, "on_exit"):
        # Python has ended by then; what Ray's library does at exit would crash or hang.
        system.on_exit(system._exit, None)


def _forget_token() -> None:
    """Have Ray read from the environment again which token it is to show."""
    raylet.Config.initialize("")  # type: ignore[attr-defined]
    raylet.AuthenticationTokenLoader.instance().reset_cache()  # type: ignore[attr-defined]


def _system_config(*, has_dashboard: bool) -> dict[str, object]:
    config: dict[str, object] = {}
    if "RAY_worker_niceness" not in os.environ:
        # Ray's own is 15: on a busy machine what serves the program would hardly ever run.
        config["worker_niceness"] = 0
    if not has_dashboard:
        # They would lie open on a port that asks for no token.
        config["enable_metrics_collection"] = False
    return config


@contextmanager
def _embedded(*, has_dashboard: bool) -> Iterator[None]:
    """While a Ray is started: on the loopback address, and with few processes."""
    parameters = getattr(parameter, "RayParams", None)

    def few(**given: object) -> object:
        # The autoscaler's monitor has nothing to scale, and the log monitor nobody to tell; a port
        # that is fixed would be taken when a second platform starts.
        assert parameters is not None
        return parameters(
            **given, no_monitor=True, include_log_monitor=False, dashboard_agent_listen_port=0
        )

    with ExitStack() as stack:
        stack.enter_context(_replaced(ray_constants, "ENABLE_RAY_CLUSTER", False))
        # What it starts looks for it on the loopback address, too: an agent that runs jobs.
        stack.enter_context(_in_environment("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0"))
        stack.enter_context(_replaced(parameter, "RayParams", few))
        if not has_dashboard:
            # Its agents then open no port, as where the dashboard is not installed.
            off = ImportError("the dashboard is off")
            stack.enter_context(_replaced(ray_utils, "get_dashboard_dependency_error", lambda: off))
        yield


@contextmanager
def _in_environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def _replaced(place: object, name: str, value: object) -> Iterator[None]:
    if not hasattr(place, name):
        yield
        return
    before = getattr(place, name)
    setattr(place, name, value)
    try:
        yield
    finally:
        setattr(place, name, before)


def _quieten() -> None:
    """Send Ray's messages about workers that died to the log, not to the driver's terminal."""
    from ray._private import worker

    def to_log(data: dict[str, Any], ignore_prefix: bool = False) -> None:
        for line in data.get("lines", ()):
            _log.info("ray: %s", line)

    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = to_log
