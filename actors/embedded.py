"""Embedded: a Ray that belongs to the driver's process, and ends with it, however it ends.

The processes of a Ray die with the thread that started them, so it gets a thread that stays. A
driver that is killed leaves some of them behind all the same: a reaper, a small program beside the
driver, ends those and removes the cluster's folder.
"""

from __future__ import annotations

import asyncio
import os
import select
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable

from ..eventlog.errors import Unavailable
from . import reaper

# Sockets lie in the folder, and their names may have no more than 107 characters.
_FOLDER_CHARACTERS_MAX = 40
_REAPER_S = 30.0
_HINT = (
    ". Where the cluster asks for a token (Ray does so by itself where ~/.ray/auth_token exists),"
    " set RAY_AUTH_MODE=token before this program imports Ray"
)


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
        self._connect = connect
        self._disconnect = disconnect
        self._has_folder = has_folder
        self._reaper: subprocess.Popen[bytes] | None = None
        self._stop = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._told: asyncio.Future[None]
        self._thread = threading.Thread(target=self._run, name="ray", daemon=True)

    async def start(self) -> None:
        """Connect; raises Unavailable."""
        self._listen()
        self._thread.start()
        await self._told

    async def stop(self) -> None:
        """Disconnect, and leave nothing behind."""
        self._listen()
        self._stop.set()
        await self._told

    def _listen(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._told = self._loop.create_future()

    def _tell(self, error: Exception | None = None) -> None:
        def tell(told: asyncio.Future[None] = self._told) -> None:
            if not told.done():
                told.set_exception(error) if error is not None else told.set_result(None)

        self._loop.call_soon_threadsafe(tell)

    def _run(self) -> None:
        try:
            self._connect(self._make_folder() if self._has_folder else None)
        except Exception as error:
            self._disconnect()
            self._reap()
            hint = "" if self._has_folder else _HINT
            self._tell(Unavailable(f"Ray cannot be started or reached: {error}{hint}"))
            return
        self._tell()
        self._stop.wait()
        self._disconnect()
        self._reap()
        self._tell()

    def _make_folder(self) -> str:
        folder = tempfile.mkdtemp(prefix="dw-", dir=_short_temp())
        self._reaper = subprocess.Popen(
            [sys.executable, "-I", "-S", str(reaper.__file__), folder, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._reaper.wait()  # it goes on as nobody's child
        return folder

    def _reap(self) -> None:
        if self._reaper is not None:
            assert self._reaper.stdin is not None
            assert self._reaper.stdout is not None
            self._reaper.stdin.close()
            select.select([self._reaper.stdout], [], [], _REAPER_S)
            self._reaper.stdout.close()


def _short_temp() -> str:
    temporary = tempfile.gettempdir()
    return temporary if len(temporary) <= _FOLDER_CHARACTERS_MAX else "/tmp"
