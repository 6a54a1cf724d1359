"""Remote: what lies in the loader actor, as the other processes see it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Any

import cloudpickle

from dynamic_workflows.eventlog.backoff import Backoff
from dynamic_workflows.eventlog.errors import Unavailable
from dynamic_workflows.eventlog.store.base import Store
from dynamic_workflows.loaders.bundles.bundle import Bundle, Grants
from dynamic_workflows.loaders.bundles.code_keys import CodeKeys
from dynamic_workflows.loaders.bundles.worker import WorkerRef
from dynamic_workflows.loaders.protocol.calls import Calls

from ..code.code_resolver import Bundles, PrefetchedCode, Resolved
from ..code.dispatcher_runs import PendingDispatch
from .actor_ref import ActorRef, ActorUnreachable
from .fork_guard import OwningProcess
from .services import ActorApi, LoaderApi, remote

_HANDED_WITHIN_S = 0.5
_BACKOFF = Backoff(0.02, 0.5, jitter=0.5)
"""What the loader's end cut off comes back from each process of a cluster."""
_PING_S = 5.0
"""A peer that takes longer over a call is asked so often whether it lives, and has so long."""


class ReconnectingRef:
    """A peer that is looked up again whenever it is lost, until it has been silent too long.

    Only for operations that may be repeated.
    """

    def __init__(
        self, name: str, find: Callable[[], Awaitable[ActorRef]], *, timeout_s: float
    ) -> None:
        self.name = name
        self._origin = OwningProcess()
        self._find = find
        self._timeout_s = timeout_s
        self._peer: ActorRef | None = None
        self._random = Random()

    async def call(self, op: str, *args: object, timeout_s: float | None = None) -> object:
        """As Peer.call; raises Unavailable instead of ActorUnreachable. `timeout_s` bounds one try.

        Without it a call may take as long as the peer shows that it lives. Raises
        PlatformBusy in a forked child.
        """
        self._origin.check()
        silent_since = time.monotonic()
        tries = 0
        while True:
            try:
                if self._peer is None:
                    looked = time.monotonic()
                    self._peer = await self._find()
                    # Who finds it at last has not been silent while it was looked for.
                    silent_since += time.monotonic() - looked
                call = self._peer.call(op, *args, timeout_s=timeout_s)
                if timeout_s is not None:
                    return await call
                alive, answer = await self._while_alive(self._peer, asyncio.ensure_future(call))
                silent_since = max(silent_since, alive)
                if isinstance(answer, ActorUnreachable):
                    raise answer
                return await answer
            except ActorUnreachable as error:
                self._peer = None
                if time.monotonic() - silent_since >= self._timeout_s:
                    raise Unavailable(
                        f"{self.name} did not answer for {self._timeout_s:g} s ({error}): "
                        "look at the cluster, then call again"
                    ) from error
            tries += 1
            await asyncio.sleep(_BACKOFF.rest_s(tries, self._random))

    async def _while_alive(
        self, peer: ActorRef, call: asyncio.Future[Any]
    ) -> tuple[float, asyncio.Future[Any] | ActorUnreachable]:
        """The call, done, or what was lost; and when a ping was last answered (0: never)."""
        ping_s = min(_PING_S, self._timeout_s / 4)
        alive = 0.0
        try:
            while not (await asyncio.wait({call}, timeout=ping_s))[0]:
                try:
                    await remote(peer, ActorApi.stats, timeout_s=ping_s)()
                except ActorUnreachable as error:
                    if not call.done():
                        return alive, ActorUnreachable(f"{self.name} does not answer: {error}")
                except Exception:
                    pass  # whatever it says, it lives
                alive = time.monotonic()
            lost = None if call.cancelled() else call.exception()
            return (alive, lost) if isinstance(lost, ActorUnreachable) else (alive, call)
        finally:
            call.cancel()


class LoaderCodeSource:
    """The loader's code for drivers and tenants: callbacks run there, bundles are read here."""

    def __init__(
        self,
        loader: ReconnectingRef,
        store: Store,
        *,
        is_app: bool = False,
        calls: Callable[[str], Calls] | None = None,
        pickle: Callable[[object], bytes] = cloudpickle.dumps,
        keys: CodeKeys | None = None,
    ) -> None:
        """`pickle` is how callbacks travel from here to the loader actor."""
        self.is_app = is_app
        self._loader = loader
        self._bundles = Bundles(store, keys)
        self._calls = calls
        self._pickle = pickle
        self._ahead: asyncio.Future[PrefetchedCode] | None = None
        self._is_ahead_used = False

    def expect(self) -> None:
        """The loader is about to hand over what `current` will want to know."""
        if self._ahead is None:
            self._ahead = asyncio.get_running_loop().create_future()

    def take(self, code: PrefetchedCode) -> None:
        """The loader has handed it over; of use once, and not too late: it goes out of date."""
        if self._ahead is None:
            self._ahead = asyncio.get_running_loop().create_future()
        if not self._ahead.done():
            self._ahead.set_result(code)

    async def current(
        self, tenant_id: str, *, binding: str | None = None, metadata: bytes | None = None
    ) -> Resolved:
        """The code for new instances, stored."""
        ahead = self._ahead
        if ahead is not None and metadata is None and not self._is_ahead_used:
            self._is_ahead_used = True
            with contextlib.suppress(TimeoutError):
                handed, stored = await asyncio.wait_for(ahead, _HANDED_WITHIN_S)
                if stored is not None:
                    self._bundles.hold(handed.code_hash, stored)
                return handed
        return await remote(self._loader, LoaderApi.code_current)(tenant_id, binding, metadata)

    async def dispatch(
        self, tenant_id: str, binding: str | None, metadata: bytes, asked: Sequence[PendingDispatch]
    ) -> list[Resolved]:
        """The code for each of these new instances."""
        call = remote(self._loader, LoaderApi.code_dispatch)
        return await call(tenant_id, binding, metadata, list(asked))

    async def dispatched(self, ticket: str, is_stored: bool) -> None:
        """What became of the instances of the ticket."""
        await remote(self._loader, LoaderApi.code_dispatched)(ticket, is_stored)

    async def worker(self, name: str | None, source: object) -> WorkerRef:
        """Load a worker of the WorkerLoader; the callback travels to the loader actor."""
        return await remote(self._loader, LoaderApi.code_worker)(name, self._pickle(source))

    async def bundle(self, code_hash: str) -> Bundle:
        """The stored bundle."""
        return await self._bundles.get(code_hash)

    async def keep(self, bundle: Bundle) -> str:
        """Store a bundle under its hash."""
        return await self._bundles.put(bundle)

    async def forget(self, tenant_id: str) -> None:
        """Ask the callback again next time."""
        self._is_ahead_used = True
        await remote(self._loader, LoaderApi.code_forget)(tenant_id)

    def live(self, code_hash: str) -> Grants:
        """Nothing: services were made elsewhere, and are unpickled from their bundle."""
        return {}

    def peer(self, tenant_id: str) -> Calls:
        """The calls of another tenant."""
        if self._calls is None:
            raise Unavailable("no tenant can be called from here")
        return self._calls(tenant_id)

    calls = peer
