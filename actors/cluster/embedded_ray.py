"""Embedded: a Ray that belongs to the driver's process, and ends with it, however it ends.

The processes of a Ray die with the thread that started them, so it gets a thread that stays. It
lives in a folder that nobody else can enter, behind a token that nobody else can read, on the
loopback address. A driver that is killed leaves processes behind all the same: a reaper, a small
program beside the driver, ends those and removes the folder.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable

from dynamic_workflows.eventlog.errors import Unavailable

from ..rpc import fork_guard
from . import open_ports, orphan_reaper
from .ray_token import RayToken
from .runtime_folder import RuntimeFolder

_log = logging.getLogger("dynamic_workflows.cluster")

_LOOK_S = 0.25
"""How often it is looked whether Ray still lives."""


class RayThread:
    """The thread that holds the connection to Ray."""

    def __init__(
        self,
        connect: Callable[[str | None], None],
        disconnect: Callable[[], None],
        *,
        has_folder: bool,
    ) -> None:
        """`has_folder`: start a Ray in a folder of its own, which `connect` is given."""
        self._origin = fork_guard.OwningProcess()
        self._connect = connect
        self._disconnect = disconnect
        self._has_folder = has_folder
        self._folder: RuntimeFolder | None = None
        self._token: RayToken | None = None
        self._watched: tuple[Callable[[], bool], Callable[[], None]] | None = None
        self._has_ended = False
        self._stop = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._told: asyncio.Future[None]
        self._thread = threading.Thread(target=self._run, name="ray", daemon=True)

    @property
    def folder(self) -> str | None:
        """Of the embedded Ray that was started here."""
        return None if self._folder is None else str(self._folder.path)

    async def start(self) -> None:
        """Connect; raises Unavailable. Who gives up waiting leaves nothing behind either."""
        self._listen()
        self._thread.start()
        try:
            await self._told
        except asyncio.CancelledError:
            self._stop.set()
            raise

    def watch(self, is_alive: Callable[[], bool], lost: Callable[[], None]) -> None:
        """Disconnect as soon as Ray is gone, and say so in the event loop.

        Ray itself would try for a minute to reach its control service, and then end the process.
        """
        self._watched = (is_alive, lost)

    async def stop(self) -> None:
        """Disconnect, and leave nothing behind."""
        if not self._origin.is_here:
            return  # a forked child has no such thread
        self._listen()
        self._stop.set()
        if self._has_ended:
            return
        await self._told

    def warn_of_listeners(self) -> None:
        """Log in one line which of the cluster's processes others can reach over the network."""
        if self._folder is None:
            return
        pids = [os.getpid(), *orphan_reaper.members(str(self._folder.path), spared=os.getpid())]
        open_ones = open_ports.beyond_loopback(pids)
        if open_ones:
            _log.warning(
                "%s: close these ports in the host's firewall, or run the platform in a network"
                " namespace of its own; Ray asks for the platform's token there",
                "; ".join(str(one) for one in open_ones),
            )

    def _listen(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._told = self._loop.create_future()

    def _tell(self, error: Exception | None = None) -> None:
        def tell(told: asyncio.Future[None] = self._told) -> None:
            if not told.done():
                told.set_exception(error) if error is not None else told.set_result(None)

        self._soon(tell)

    def _soon(self, callback: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            pass  # the program's event loop has ended without a word

    def _run(self) -> None:
        try:
            self._connect(self._prepare() if self._has_folder else None)
        except Exception as error:
            self._leave()
            if not isinstance(error, Unavailable):
                what = "started" if self._has_folder else "reached"
                error = Unavailable(f"Ray cannot be {what}: {error}")
            self._has_ended = True
            self._tell(error)
            return
        self._tell()
        was_lost = self._wait()
        self._leave()
        self._has_ended = True
        self._tell()
        if was_lost and self._watched is not None:
            self._soon(self._watched[1])

    def _wait(self) -> bool:
        """Until somebody stops it (False), or Ray is gone (True)."""
        while not self._stop.wait(_LOOK_S):
            if self._watched is not None and not self._watched[0]():
                return True
        return False

    def _prepare(self) -> str:
        self._folder = RuntimeFolder()
        self._token = RayToken(self._folder.token)
        self._token.enter()
        return self._folder.ray

    def _leave(self) -> None:
        # Ray has the token in memory until it has disconnected; then it looks at the environment.
        if self._token is not None:
            self._token.leave()
        self._disconnect()
        if self._folder is not None:
            self._folder.remove()
