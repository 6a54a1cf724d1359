"""Tenant engine: what answers the SQL of one tenant, in a process that the tenant cannot leave.

Processes and their walls are built above the event log. Whoever imports the package puts what makes
them here; a Reader for a tenant uses it, and nothing else does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from ..errors import SandboxUnavailable

if TYPE_CHECKING:
    import pyarrow as pa

    from ..store.base import Store
    from .limits import QueryLimits


class TenantEngine(Protocol):
    """Answers statements; may be called from any thread."""

    def query(self, sql: str, params: Any, *, skip_damaged: bool) -> pa.Table:
        """As Reader.query."""
        ...

    def interrupt(self) -> None:
        """Stop the statement that is under way, if there is one."""
        ...

    def close(self) -> None:
        """End what answers."""
        ...


class MakeTenantEngine(Protocol):
    """Makes an engine for a tenant of a log; `isolation` as in the platform's config."""

    def __call__(
        self, store: Store, tenant_id: str, *, limits: QueryLimits, threads: int, isolation: str
    ) -> TenantEngine:
        """The engine; it starts nothing before the first statement."""
        ...


_makers: list[MakeTenantEngine] = []


def provide(make: MakeTenantEngine) -> None:
    """Say what makes engines."""
    _makers[:] = [make]


def make_engine(
    store: Store, tenant_id: str, *, limits: QueryLimits, threads: int, isolation: str
) -> TenantEngine:
    """An engine; SandboxUnavailable where nobody has said what makes them."""
    if not _makers:
        raise SandboxUnavailable("nothing here runs a tenant's SQL: import dynamic_workflows")
    return _makers[0](store, tenant_id, limits=limits, threads=threads, isolation=isolation)
