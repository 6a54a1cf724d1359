"""Durations: lengths of time as people write them, in whole milliseconds.

A number is milliseconds, text is `"<n> <unit>"` from seconds to years in any case, and a timedelta
is itself. A month has 30 days, a year 365.
"""

from __future__ import annotations

import math
import re
from datetime import timedelta
from typing import Any, TypeAlias

from ..protocol.contract import YEAR_MS

Duration: TypeAlias = int | float | str | timedelta

_DAY_MS = 86_400_000

_UNITS_MS = {
    "second": 1_000,
    "minute": 60_000,
    "hour": 3_600_000,
    "day": _DAY_MS,
    "week": 7 * _DAY_MS,
    "month": 30 * _DAY_MS,
    "year": YEAR_MS,
}
_TEXT = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*([a-z]+?)s?\s*", re.IGNORECASE)


def parse_ms(duration: Any) -> int:
    """The duration in milliseconds, never negative; ValueError when it is none."""
    kind = type(duration)
    if kind is int and duration >= 0:
        return int(duration)
    if kind is float and math.isfinite(duration) and duration >= 0:
        return round(float(duration))
    if isinstance(duration, timedelta) and duration >= timedelta():
        return round(duration / timedelta(milliseconds=1))
    if isinstance(duration, str):
        match = _TEXT.fullmatch(duration) if len(duration) <= 64 else None
        unit_ms = _UNITS_MS.get(match[2].lower()) if match else None
        if match and unit_ms:
            return round(float(match[1]) * unit_ms)
    raise ValueError(
        f"{_shown(duration)} is no duration: give milliseconds as a number that is not negative,"
        ' text such as "10 seconds" or "1.5 days", or a timedelta'
    )


def _shown(duration: Any) -> str:
    known = isinstance(duration, (int, float, str, timedelta))
    return repr(duration)[:80] if known else f"a {type(duration).__name__}"
