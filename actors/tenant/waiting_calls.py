"""WaitingCalls: how many calls of one tenant may wait for something to happen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dynamic_workflows.eventlog.errors import LimitExceededError
from dynamic_workflows.loaders.protocol.calls import TenantCall

RETRY_AFTER_S = 1.0


class WaitingCalls:
    """Counts the calls that wait, by their class."""

    def __init__(self, most: dict[type[TenantCall[Any]], tuple[int, str]]) -> None:
        """`most`: how many calls of a class may wait, and the setting that says so."""
        self._most = most
        self._now = dict.fromkeys(most, 0)

    def number(self, kind: type[TenantCall[Any]]) -> int:
        """How many calls of this class wait now."""
        return self._now[kind]

    @contextmanager
    def one(self, kind: type[TenantCall[Any]]) -> Iterator[None]:
        """One call of this class waits in this block. Raises LimitExceededError."""
        if kind not in self._most:
            yield
            return
        most, limit = self._most[kind]
        if self._now[kind] >= most:
            op = kind.__struct_config__.tag
            raise LimitExceededError(
                f"{most:,} calls of {op!r} of this tenant wait already ({limit}): "
                "end some, or try again later",
                retry_after=RETRY_AFTER_S,
                limit=limit,
            )
        self._now[kind] += 1
        try:
            yield
        finally:
            self._now[kind] -= 1
