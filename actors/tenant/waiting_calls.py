"""WaitingCalls: how many calls of one tenant may wait for something to happen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dynamic_workflows.eventlog.errors import LimitExceededError

RETRY_AFTER_S = 1.0


class WaitingCalls:
    """Counts the calls that wait, by operation."""

    def __init__(self, most: dict[str, tuple[int, str]]) -> None:
        """`most`: operation -> how many calls of it may wait, and the setting that says so."""
        self._most = most
        self._now = dict.fromkeys(most, 0)

    def number(self, op: str) -> int:
        """How many calls of this operation wait now."""
        return self._now[op]

    @contextmanager
    def one(self, op: str) -> Iterator[None]:
        """One call of this operation waits in this block. Raises LimitExceededError."""
        if op not in self._most:
            yield
            return
        most, limit = self._most[op]
        if self._now[op] >= most:
            raise LimitExceededError(
                f"{most:,} calls of {op!r} of this tenant wait already ({limit}): "
                "end some, or try again later",
                retry_after=RETRY_AFTER_S,
                limit=limit,
            )
        self._now[op] += 1
        try:
            yield
        finally:
            self._now[op] -= 1
