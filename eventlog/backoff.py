"""Backoff: how long to rest after failures in a row, before the next try."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from .clock import US, Clock


@dataclass(frozen=True, slots=True)
class Backoff:
    """Rests that grow from `first_s` by `factor` with each failure in a row, up to `most_s`."""

    first_s: float
    most_s: float
    factor: float = 2.0
    jitter: float = 0.0
    """The part of a rest that chance may take off, 0 to 1: what failed for many at once is not
    tried again by all of them at once."""

    def rest_s(self, failures: int, random: Random | None = None) -> float:
        """Return the rest after so many failures in a row, in seconds; 0.0 after none.

        `random` is needed where there is jitter.
        """
        if failures <= 0:
            return 0.0
        try:
            rest_s = min(self.first_s * self.factor ** (failures - 1), self.most_s)
        except OverflowError:
            rest_s = self.most_s
        if self.jitter:
            assert random is not None, "jitter needs a source of chance"
            rest_s *= 1.0 - self.jitter * random.random()
        return rest_s

    def rest_us(self, failures: int, random: Random | None = None) -> int:
        """Return the rest after so many failures in a row, in microseconds; 0 after none."""
        return round(self.rest_s(failures, random) * US)


class FailureStreak:
    """The failures in a row of one thing, and when it may be tried again."""

    def __init__(self, backoff: Backoff, clock: Clock, random: Random | None = None) -> None:
        self._backoff = backoff
        self._clock = clock
        self._random = random
        self._retry_us = 0
        self.count = 0

    def failed(self) -> None:
        """Count one more failure; the rest begins now."""
        self.count += 1
        self._retry_us = self._clock.now_us() + self._backoff.rest_us(self.count, self._random)

    def ended(self) -> None:
        """The thing has succeeded: the next failure is a first one again."""
        self.count = 0
        self._retry_us = 0

    @property
    def retry_us(self) -> int:
        """When to try again, in microseconds since 1970; what is past, or 0, means at once.

        A clock that was set back does not lengthen a rest beyond the longest one.
        """
        latest_us = self._clock.now_us() + round(self._backoff.most_s * US)
        self._retry_us = min(self._retry_us, latest_us)
        return self._retry_us
