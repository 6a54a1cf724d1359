"""LoadBackoff: when code that could not be loaded, or that ended its isolate, is tried again."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from dynamic_workflows.eventlog.backoff import Backoff
from dynamic_workflows.eventlog.bounded_dict import BoundedDict
from dynamic_workflows.eventlog.clock import US, Clock

BACKOFF = Backoff(0.05, 30.0)
DEATHS_FREE = 3
"""Isolates that code may end in a row before it has to wait."""
_FORGIVEN_US = 60 * US
PROGRESS_REST_US_MAX = US
"""The longest rest of code of which other instances got somewhere."""
_KEPT_MAX = 10_000


@dataclass
class _Deaths:
    count: int = 0
    last_us: int = 0


class LoadBackoff:
    """Failures by code, of one tenant."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._failures: BoundedDict[Hashable, int] = BoundedDict(_KEPT_MAX)
        self._deaths: BoundedDict[Hashable, _Deaths] = BoundedDict(_KEPT_MAX)

    def failed(self, key: Hashable) -> int:
        """Loading failed once more: when to try again."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        return self._clock.now_us() + BACKOFF.rest_us(failures)

    def made_progress(self, key: Hashable) -> None:
        """The code gets somewhere: failures to load it do not count any more."""
        self._failures.pop(key, None)

    def died(self, key: Hashable, *, had_progress: bool) -> tuple[int, int]:
        """The code ended its isolate: how often in a row, and until when it has to wait (0: not).

        A minute without a death forgives. Where others of the code got somewhere meanwhile the
        wait is short: they are not to suffer for one.
        """
        now_us = self._clock.now_us()
        deaths = self._deaths[key] = self._deaths.get(key) or _Deaths()
        if now_us - deaths.last_us > _FORGIVEN_US:
            deaths.count = 0
        deaths.count += 1
        excess = deaths.count - DEATHS_FREE
        wait_us = 0 if excess <= 0 else BACKOFF.rest_us(excess + 1)
        if had_progress:
            wait_us = min(wait_us, PROGRESS_REST_US_MAX)
        deaths.last_us = now_us + wait_us
        return deaths.count, now_us + wait_us if wait_us else 0
