"""Ctrl-C in the demo: one line, and an end, whenever it comes; imported before all that takes long.

The first one lets the platform close, for some seconds at most; before there is a platform, and at
the second one, the program ends at once. What Ray has started ends with it, and the log is always
whole: that is what it is for.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Coroutine
    from types import FrameType
    from typing import Any

LINE = "stopped; what had begun goes on with the next `make demo`"
CLOSE_S = 10.0
"""How long the platform may take to close."""
CODE = 128 + signal.SIGINT
"""What shells expect of a program that was interrupted."""


class Interrupt:
    """Hears Ctrl-C from the moment on at which it is made."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[int] | None = None
        self._was_heard = False
        signal.signal(signal.SIGINT, self._hear)

    def run(self, work: Coroutine[Any, Any, int]) -> int:
        """Run the program in an event loop; its exit code."""
        import asyncio

        async def main() -> int:
            self._loop, self._task = asyncio.get_running_loop(), asyncio.ensure_future(work)
            return await self._task

        try:
            code = asyncio.run(main())
        except BaseException:
            # What was interrupted may end in any way; of that nothing is worth telling.
            if self._was_heard:
                self._end()
            raise
        if self._was_heard:
            self._end()
        return code

    def _hear(self, number: int, frame: FrameType | None) -> None:
        is_first, self._was_heard = not self._was_heard, True
        if is_first:
            os.write(2, f"\r{LINE}\n".encode())
        if not is_first or self._loop is None or self._task is None:
            os._exit(CODE)
        import logging
        import threading

        # Actors hear it as well as we do, if they share our terminal: they do not close cleanly.
        logging.disable()
        late = threading.Timer(CLOSE_S, self._end)
        late.daemon = True
        late.start()
        self._loop.call_soon_threadsafe(self._task.cancel)

    def _end(self) -> None:
        sys.stdout.flush()
        os._exit(CODE)
