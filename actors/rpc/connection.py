"""Connection: what is under way over this process's connection to Ray, and its end."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from dynamic_workflows.eventlog.errors import WorkflowsError

from .actor_ref import ActorUnreachable

T = TypeVar("T")


class Connection:
    """This process's connection to Ray; calls over one that has ended are lost at once."""

    def __init__(self) -> None:
        self.number = 0
        self._calls: set[asyncio.Future[Any]] = set()

    def renew(self) -> None:
        """There is another one now, or none. May be called from any thread."""
        self.number += 1
        for call in self._calls.copy():
            call.get_loop().call_soon_threadsafe(call.cancel)

    async def outcome(self, work: Coroutine[Any, Any, T], timeout_s: float | None) -> T:
        """What comes back; ActorUnreachable when the connection ends first, TimeoutError."""
        number = self.number
        call = asyncio.ensure_future(work)
        self._calls.add(call)
        try:
            return await asyncio.wait_for(call, timeout_s)
        except asyncio.CancelledError:
            if number != self.number and call.cancelled():
                raise ActorUnreachable("the connection to Ray has ended") from None
            raise
        except (ActorUnreachable, WorkflowsError, TimeoutError):
            raise
        except Exception as error:
            # Ray says many things when it is shut down under a call; all of them mean this.
            if number != self.number:
                raise ActorUnreachable(f"the connection to Ray has ended: {error}") from error
            raise
        finally:
            self._calls.discard(call)


CURRENT = Connection()
