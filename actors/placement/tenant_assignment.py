"""Tenant assignment: tells a worker process its tenant, and sends it the tenant's code.

Gain of sending the code: too small to be seen on a machine that others use (`bench/w7.py`, pool
warm, in turn: p50 of 38, 35 and 21 ms with it, 23, 31 and 36 ms without). To be measured on a quiet
one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from dynamic_workflows.eventlog.errors import Unavailable, WorkflowsError

from ..background_tasks import BackgroundTasks, seen
from ..code.code_resolver import PrefetchedCode
from ..rpc.actor_ref import ActorRef, ActorUnreachable
from ..rpc.services import WorkerApi, remote

HANDS_CODE_OVER = True
"""The switch: without it a worker process asks the loader for its code."""

GIVE_UP_S = 15.0
"""How long a worker process may be unreachable before its tenant moves to another one."""
_AGAIN_S = 0.25


class TenantAssignment:
    """Assigns tenants to worker processes."""

    def __init__(
        self,
        code: Callable[[str], Awaitable[Any]] | None = None,
    ) -> None:
        """`code` fetches a tenant's code, which its process is likely to need next."""
        self._code = code
        self._code_sends = BackgroundTasks()

    def fetch_code(self, tenant_id: str) -> asyncio.Future[Any] | None:
        """Fetch the tenant's code in the background; None: worker processes fetch it themselves."""
        if self._code is None or not HANDS_CODE_OVER:
            return None
        code = asyncio.ensure_future(self._code(tenant_id))
        code.add_done_callback(seen)
        return code

    async def assign(
        self,
        worker: ActorRef,
        tenant_id: str,
        *,
        is_wanted: bool,
        generation: int,
        code: asyncio.Future[PrefetchedCode] | None,
    ) -> bool:
        """Have the process, of this generation, open the tenant; raises why it cannot, Unavailable
        for a lost process.

        Answers whether it was not open there already.
        """
        waited_s = 0.0
        while True:
            assigned = asyncio.ensure_future(
                remote(worker, WorkerApi.assign)(tenant_id, is_wanted, generation)
            )
            # The code follows: the worker process does not wait for it before it begins.
            if code is not None:
                self._code_sends.begin(self._send_code(code, tenant_id, worker, generation))
            try:
                return await assigned
            except ActorUnreachable as error:
                # A worker process that died is restarted in its place, under the same name.
                if waited_s >= GIVE_UP_S:
                    raise Unavailable(f"{worker.name} cannot be reached: {error}") from error
                await asyncio.sleep(_AGAIN_S)
                waited_s += _AGAIN_S

    async def stop(self) -> None:
        """Stop sending code."""
        await self._code_sends.stop()

    async def _send_code(
        self,
        code: asyncio.Future[PrefetchedCode],
        tenant_id: str,
        worker: ActorRef,
        generation: int,
    ) -> None:
        """Send the code; a process that does not receive it asks the loader, and gets its
        errors."""
        with contextlib.suppress(ActorUnreachable, WorkflowsError):
            handed = await asyncio.shield(code)
            await remote(worker, WorkerApi.take_code)(tenant_id, handed, generation)
