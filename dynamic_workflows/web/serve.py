"""Serve: a platform and its HTTP interface in one process, until it is told to end."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import signal
import socket
import stat
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from ..actors.settings.platform_config import PlatformConfig
from ..eventlog.errors import InvalidError
from ..loaders.bundles.sources import from_folder
from ..platform import connect
from .app import create_app
from .keys import Keys

SHUTDOWN_S = 10
"""How long open requests and streams have to end."""


def keys_of(path: Path) -> Keys:
    """The keys of a file: JSON, from each key to its role or to {"role", "tenants", "name"}.

    Raises InvalidError for a file that others on this machine may read, or that is no JSON.
    """
    try:
        text = path.read_text(encoding="utf-8")
        mode = path.stat().st_mode
    except OSError as error:
        raise InvalidError(f"the keys cannot be read: {error}") from None
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        raise InvalidError(f"others on this machine may read {path}: `chmod 600 {path}`")
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InvalidError(f"{path} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise InvalidError(f'{path} holds an object: {{"KEY": "operator", …}}')
    return Keys(found)


def loader_of(load: str | None, tenants: Path | None) -> Callable[[str], Any] | None:
    """The `load` callback that the command line names; None: tenants run what was deployed.

    `load` is "module:function"; `tenants` is a folder with a folder of code for each tenant.
    """
    if load is not None and tenants is not None:
        raise InvalidError("give --load or --tenants, not both")
    if tenants is not None:
        if not tenants.is_dir():
            raise InvalidError(f"{tenants} is no folder")
        return from_folder(tenants.resolve() / "{tenant}")
    if load is None:
        return None
    module, _, name = load.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidError(
            f"--load is MODULE:FUNCTION, and {load!r} is not there: {error}"
        ) from None
    if not callable(found):
        raise InvalidError(f"--load: {load!r} is no function")
    checked: Callable[[str], Any] = found
    return checked


async def serve(
    log: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    keys: Keys | None = None,
    load: Callable[[str], Any] | None = None,
    address: str | None = None,
    namespace: str = "dynamic-workflows",
    config: PlatformConfig | None = None,
    said: Callable[[str], None] = print,
) -> None:
    """Open the platform, answer requests at host and port, and close both when a signal says so.

    Raises InvalidError for an address of the network without keys, and what `connect` raises.
    """
    listener = _listen(host, port, has_keys=keys is not None)
    with listener:
        async with connect(
            log, load=load, address=address, namespace=namespace, config=config
        ) as platform:
            bound = listener.getsockname()
            said(f"listening on http://{_shown(bound[0])}:{bound[1]}")
            server = _Server(
                uvicorn.Config(
                    create_app(platform, keys=keys),
                    log_level="warning",
                    lifespan="off",
                    server_header=False,
                    proxy_headers=False,
                    timeout_graceful_shutdown=SHUTDOWN_S,
                )
            )
            with _ended_by_signals(server):
                await server.serve(sockets=[listener])


class _Server(uvicorn.Server):
    """A server that leaves signals to `serve`, since a signal raised again skips the closing."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


@contextmanager
def _ended_by_signals(server: uvicorn.Server) -> Generator[None, None, None]:
    """SIGINT and SIGTERM end the server after its requests; the second one does not wait."""
    loop = asyncio.get_running_loop()

    def end() -> None:
        server.force_exit = server.should_exit
        server.should_exit = True

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _listen(host: str, port: int, *, has_keys: bool) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(found[4][:2], family=found[0])
    except OSError as error:
        raise InvalidError(f"cannot listen at {host}:{port}: {error}") from None
    if not has_keys and not listener.getsockname()[0].startswith(("127.", "::1")):
        listener.close()
        raise InvalidError(f"{host} can be reached from other machines: give --keys FILE")
    return listener


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
