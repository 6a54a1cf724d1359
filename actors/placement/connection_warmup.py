"""Connection warm-up: a driver's connections to the blank worker processes of the pool, made
ahead.

The first message to an actor costs some milliseconds: its address is looked up, and a connection
made. A tenant that is wanted for the first time would wait for both.

Gain: too small to be seen on a machine that others use (`bench/w7.py`, pool warm, in turn: p50 of
38, 35 and 21 ms with it, 35, 29 and 24 ms without). To be measured on a quiet one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from dynamic_workflows.eventlog.errors import Unavailable, WorkflowsError

from ..background_tasks import stop_all
from ..rpc.actor_ref import ActorRef, ActorUnreachable
from ..rpc.reconnecting import ReconnectingRef
from ..rpc.services import LoaderApi, WorkerApi, remote

IS_ON = True
"""The switch: nothing else depends on it."""

_WAIT_S = 60.0
_GRACE_S = 30.0
_REST_S = 1.0


class ConnectionWarmup:
    """Connections to the blank processes in the loader's pool. They affect speed only."""

    def __init__(self, loader: ReconnectingRef) -> None:
        self._loader = loader
        self._known: dict[str, ActorRef] = {}
        self._watching: asyncio.Task[None] | None = None

    @property
    def names(self) -> list[str]:
        """The names of the processes that are connected."""
        return sorted(self._known)

    def watch(self) -> None:
        """Connect to the pool's processes from now on."""
        if IS_ON:
            self._watching = asyncio.ensure_future(self._watch())

    async def close(self) -> None:
        """Drop the connections."""
        if self._watching is not None:
            await stop_all([self._watching])
        self._known.clear()

    async def _watch(self) -> None:
        with contextlib.suppress(WorkflowsError):
            while True:
                try:
                    members = remote(
                        self._loader, LoaderApi.pool_members, timeout_s=_WAIT_S + _GRACE_S
                    )
                    workers = await members(self.names, _WAIT_S)
                except Unavailable:
                    await asyncio.sleep(_REST_S)
                    continue
                if workers is None:
                    return
                await self._connect_to_all(workers)

    async def _connect_to_all(self, workers: Sequence[ActorRef]) -> None:
        left = {worker.name for worker in workers}
        self._known = {name: worker for name, worker in self._known.items() if name in left}
        unknown = [worker for worker in workers if worker.name not in self._known]
        await asyncio.gather(*(self._connect(worker) for worker in unknown))

    async def _connect(self, worker: ActorRef) -> None:
        # One that does not answer is not asked again before it is needed.
        with contextlib.suppress(ActorUnreachable, WorkflowsError):
            await remote(worker, WorkerApi.who, timeout_s=_GRACE_S)()
        self._known[worker.name] = worker
