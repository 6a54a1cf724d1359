"""Tenant engine: the interface that answers the SQL of one tenant in a sandboxed process.

Processes and their sandbox are built above the event log. `provide` registers what makes engines; a
Reader for a tenant uses it, and nothing else does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from ..errors import SandboxUnavailable

if TYPE_CHECKING:
    import pyarrow as pa

    from ..store.base import Store
    from .limits import QueryLimits


class TenantEngine(Protocol):
    """Answers one tenant's statements; may be called from any thread."""

    def query(self, sql: str, params: Any, *, skip_damaged: bool) -> pa.Table:
        """Return what Reader.query does."""
        ...

    def interrupt(self) -> None:
        """Stop the running statement, if there is one."""
        ...

    def close(self) -> None:
        """End the engine's process."""
        ...


class MakeTenantEngine(Protocol):
    """Makes an engine for a tenant of a log; `isolation` as in the platform's config."""

    def __call__(
        self, store: Store, tenant_id: str, *, limits: QueryLimits, threads: int, isolation: str
    ) -> TenantEngine:
        """Return the engine; it starts no process before the first statement."""
        ...


_makers: list[MakeTenantEngine] = []


def provide(make: MakeTenantEngine) -> None:
    """Register the factory of engines."""
    _makers[:] = [make]


def make_engine(
    store: Store, tenant_id: str, *, limits: QueryLimits, threads: int, isolation: str
) -> TenantEngine:
    """Return an engine; raises SandboxUnavailable where no factory is registered."""
    if not _makers:
        raise SandboxUnavailable("nothing here runs a tenant's SQL: import dynamic_workflows")
    return _makers[0](store, tenant_id, limits=limits, threads=threads, isolation=isolation)
