"""SupervisorState: what the parts of a tenant's supervisor share: whether it is open, closed or
failed, and on which hosts its lifetimes are."""

from __future__ import annotations

import logging
from collections.abc import Callable

from dynamic_workflows.eventlog.errors import PlatformClosed, Unavailable, WorkflowsError

from ..hosting.code_host import Host

_logger = logging.getLogger("dynamic_workflows.tenant")


class SupervisorState:
    """The state of one supervisor, which each part of it is handed."""

    def __init__(self, tenant_id: str, *, on_failure: Callable[[], None]) -> None:
        """`on_failure` is called once, when the supervisor stops by itself."""
        self.tenant_id = tenant_id
        self.failed: BaseException | None = None
        """Why it stopped by itself, or None."""
        self.is_open = False
        """Whether its log was replayed."""
        self.is_closed = False
        self.hosts_by_life: dict[int, Host] = {}
        """The host of each lifetime, by the lifetime's number."""
        self.committed_seq = 0
        """The number of the newest row that has taken effect."""
        self._on_failure = on_failure

    @property
    def is_over(self) -> bool:
        """Whether the supervisor was closed, or stopped by itself."""
        return self.is_closed or self.failed is not None

    def check_open(self) -> None:
        """Raise Unavailable if the supervisor has failed, PlatformClosed if it was closed."""
        if self.failed is not None:
            details = self.failed.details if isinstance(self.failed, WorkflowsError) else {}
            raise Unavailable(
                f"tenant {self.tenant_id!r} stopped: {self.failed}: call again", **details
            )
        if self.is_closed:
            raise PlatformClosed(f"tenant {self.tenant_id!r} is closed")

    def fail(self, error: BaseException) -> None:
        """Stop: the log cannot go on from here, and the owner opens the tenant again."""
        if self.failed is None and not self.is_closed:
            _logger.error("tenant %r stops: %s", self.tenant_id, error)
            self.failed = error
            self._on_failure()

    def fail_by_mistake(self, mistake: Exception) -> None:
        """Stop after an error in the platform's own code: the memory can no longer be trusted,
        and the log can, so the tenant starts again from it."""
        _logger.error("tenant %r: a mistake of ours", self.tenant_id, exc_info=mistake)
        self.fail(mistake)
