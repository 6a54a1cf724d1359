"""Durations as people write them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamic_workflows.loaders.sdk.durations import parse_ms


@pytest.mark.parametrize(
    ("duration", "ms"),
    [
        (0, 0), (1500, 1500), (1.5, 2), ("1 second", 1_000), ("10 seconds", 10_000),
        ("2 MINUTES", 120_000), ("1.5 hours", 5_400_000), ("3 days", 259_200_000),
        ("1 week", 604_800_000), ("1 month", 2_592_000_000), ("1 year", 31_536_000_000),
        ("  7   Days ", 604_800_000), ("0 seconds", 0), (".5 seconds", 500), ("1day", 86_400_000),
        (timedelta(seconds=2, microseconds=600), 2_001), (timedelta(0), 0),
    ],
)  # fmt: skip
@pytest.mark.behaviour(105)
def test_durations_are_read(duration: Any, ms: int) -> None:
    assert parse_ms(duration) == ms


@pytest.mark.parametrize(
    "duration",
    [
        -1, -0.5, float("nan"), float("inf"), True, None, "", "3", "days", "3 fortnights", "-1 day",
        "1 day 2 hours", "1e3 seconds", "one day", timedelta(seconds=-1), [], b"1 day",
        "9" * 500 + " days", "１ day",
    ],
)  # fmt: skip
def test_what_is_no_duration_is_refused(duration: Any) -> None:
    with pytest.raises(ValueError, match="no duration"):
        parse_ms(duration)


@given(st.text(max_size=30))
def test_no_text_does_worse_than_being_refused(text: str) -> None:
    try:
        assert parse_ms(text) >= 0
    except ValueError:
        pass
