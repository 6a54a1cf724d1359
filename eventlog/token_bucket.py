"""Token bucket: a budget that refills at a steady rate. It reads no clock: calls carry the time."""

from __future__ import annotations

import math


class TokenBucket:
    """A budget of tokens: full at first, `rate` more a second, never more than `burst`.

    From one time to another at most `burst + debt_max + rate * seconds` tokens are taken.
    """

    __slots__ = ("_at_us", "_burst", "_debt_max", "_rate", "_tokens")

    def __init__(self, rate: float, *, burst: float, debt_max: float = 0.0) -> None:
        """`debt_max`: where it is above zero, the bucket may be overdrawn by as much as that: a
        take needs one token then, of however many tokens it is."""
        self._rate = rate
        self._burst = float(burst)
        self._debt_max = debt_max
        self._tokens = float(burst)
        self._at_us = 0

    def take(self, count: float, now_us: int) -> bool:
        """Take `count` tokens, or none; return whether they were taken.

        `now_us`: microseconds of one clock, the same for all calls. A clock that was set back
        refills nothing, and takes nothing away.
        """
        # Once a line of a log and more: no calls of min and max.
        tokens = self._tokens
        if now_us > self._at_us:
            tokens += (now_us - self._at_us) * self._rate / 1e6
            if tokens > self._burst:
                tokens = self._burst
        self._at_us = now_us
        is_enough = tokens >= (1.0 if self._debt_max and count > 1 else count)
        if is_enough:
            tokens -= count
            if tokens < -self._debt_max:
                tokens = -self._debt_max
        self._tokens = tokens
        return is_enough

    def wait_s(self) -> float:
        """Return how many seconds after the last `take` there is one token; inf: never."""
        lacking = max(1.0 - self._tokens, 0.0)
        return lacking / self._rate if self._rate > 0 else math.inf if lacking else 0.0
