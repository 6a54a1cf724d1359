"""CodeCache: what one tenant knows of its code: what rules now, and what each bundle exports."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import msgspec
from cachetools import LRUCache

from dynamic_workflows.eventlog.backoff import Backoff, FailureStreak
from dynamic_workflows.eventlog.clock import Clock
from dynamic_workflows.eventlog.errors import CodeError, WorkflowsError
from dynamic_workflows.eventlog.events import Row
from dynamic_workflows.loaders.bundles.bundle import Bundle

from ..code.code_resolver import CodeSource, Resolved
from ..code.dispatcher_runs import PendingDispatch
from .code_host import Host
from .code_hosts import Hosts

_log = logging.getLogger("dynamic_workflows.dispatch")

HELD_MAX = 10_000
_BACKOFF = Backoff(0.5, 30.0)


class CodeCache:
    """The tenant's side of loading."""

    def __init__(self, tenant_id: str, codes: CodeSource, hosts: Hosts, clock: Clock) -> None:
        self.deployed: str | None = None
        """The hash of the code that `deploy` put in place; it rules until `reload`."""
        self._tenant_id = tenant_id
        self._codes = codes
        self._hosts = hosts
        self._held = ResolvedCode(clock)
        self._workflows: dict[str, frozenset[str]] = {}
        self._failures = FailureStreak(_BACKOFF, clock)

    def apply(self, row: Row) -> None:
        """Take in a row about the tenant itself."""
        if row.type == "code_deployed":
            self.deployed = row.code_hash
        elif row.type == "code_pinned_back":
            self.deployed = None

    @property
    def retry_us(self) -> int:
        """When to ask again after a failure, in microseconds since 1970."""
        return self._failures.retry_us

    @property
    def is_app(self) -> bool:
        """Whether creates go through a dispatcher."""
        return self._codes.is_app

    def held(self, binding: str | None, metadata: bytes | None) -> Resolved | None:
        """The code for new instances, where that is known without asking."""
        if self.deployed is not None:
            return Resolved(self.deployed)
        return self._held.get(self._key(binding, metadata))

    async def current(self, binding: str | None, metadata: bytes | None) -> Resolved:
        """The code for new instances; raises CodeError."""
        held = self.held(binding, metadata)
        if held is not None:
            return held
        try:
            resolved = await self._codes.current(
                self._tenant_id, binding=binding, metadata=metadata
            )
        except WorkflowsError:
            self._failures.failed()
            raise
        self._failures.ended()
        self._held.hold(self._key(binding, metadata), resolved)
        return resolved

    async def dispatch(
        self, binding: str | None, metadata: bytes | None, asked: Sequence[PendingDispatch]
    ) -> list[Resolved]:
        """The code for each of these new instances; raises CodeError. Where it has a ticket, say
        by `dispatched` what became of them."""
        held = self.held(binding, metadata)
        if held is None and (metadata is None or not self._codes.is_app):
            held = await self.current(binding, metadata)
        if held is not None and not held.is_own:
            return [held] * len(asked)
        assert metadata is not None
        found = await self._codes.dispatch(self._tenant_id, binding, metadata, asked)
        if found[0].ticket is None:
            self._held.hold(self._key(binding, metadata), found[0])
        return found

    async def dispatched(self, ticket: str, *, is_stored: bool) -> None:
        """Let the dispatcher's class go on, or end."""
        try:
            await self._codes.dispatched(ticket, is_stored)
        except WorkflowsError as error:
            # The instances are what they are; only what stands after the hand-over is lost.
            _log.warning("the dispatcher's workflow was not told of its instances: %s", error)

    async def prepare(self) -> None:
        """Begin to load the code that new instances get; raises CodeError."""
        resolved = await self.current(None, None)
        self._hosts.get((resolved.code_hash, None, ()))

    def _key(self, binding: str | None, metadata: bytes | None) -> tuple[object, object]:
        return (binding, metadata) if self._codes.is_app else (None, None)

    async def keep(self, bundle: Bundle) -> str:
        """Store code that is to be deployed, after a look at it; raises CodeError."""
        code_hash = await self._codes.keep(bundle)
        host = await self._hosts.ready((code_hash, None, ()), fresh=True)
        if not host.exports:
            raise CodeError(
                "the main module defines neither a WorkflowEntrypoint nor a WorkerEntrypoint",
                code="code.class_missing",
            )
        return code_hash

    async def forget(self) -> None:
        """Ask the platform's callback again next time."""
        self._held.clear()
        await self._codes.forget(self._tenant_id)

    # --- exports

    def learn(self, host: Host) -> None:
        """Note what the code exports, or that it could not be loaded."""
        if host.is_ready:
            self._workflows[host.code_hash] = frozenset(
                name for name, export in host.exports.items() if export.kind == "workflow"
            )

    def rules(self, host: Host) -> bool:
        """Whether new instances get the code of this host."""
        held = self.held(None, None)
        is_own = not self._codes.is_app or self.deployed is not None
        return host.is_ready and is_own and held is not None and held.code_hash == host.code_hash

    def has_workflow(self, code_hash: str, name: str) -> bool:
        """Whether the code is known to have this workflow class."""
        return name in self._workflows.get(code_hash, ())

    async def check_workflow(self, code_hash: str, name: str) -> None:
        """Make sure that the code can be imported and has the class; raises CodeError."""
        if code_hash not in self._workflows:
            await self._hosts.ready((code_hash, None, ()), fresh=True)
        if not self.has_workflow(code_hash, name):
            known = ", ".join(sorted(self._workflows[code_hash])) or "none"
            raise CodeError(
                f"the code has no workflow class {name!r}: it has {known}",
                code="code.class_missing",
            )


class ResolvedCode:
    """The answers for new instances, each until its time; those used last where they are many."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # A cache that knew of times would cost each create a microsecond more.
        self._held: LRUCache[tuple[object, object], Resolved] = LRUCache(HELD_MAX)

    def get(self, key: tuple[Any, Any]) -> Resolved | None:
        """Return the answer that holds now, or None."""
        resolved = self._held.get(key)
        if resolved is None or resolved.until_us <= self._clock.now_us():
            return None
        return resolved

    def hold(self, key: tuple[object, object], resolved: Resolved) -> None:
        """Take in an answer."""
        self._held[key] = resolved

    def clear(self) -> None:
        """Drop all answers."""
        self._held.clear()


def envelope(binding: str | None, metadata: bytes) -> bytes:
    """A dispatcher's metadata as rows hold it, with the name of the binding it came through."""
    return msgspec.json.encode(
        {"binding": binding or "WORKFLOWS", "metadata": msgspec.Raw(metadata)}
    )


def unwrapped(data: bytes | None) -> tuple[str | None, bytes | None]:
    """The binding and the metadata of an envelope."""
    if data is None:
        return None, None
    parts = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    return msgspec.json.decode(parts["binding"], type=str), bytes(parts["metadata"])
