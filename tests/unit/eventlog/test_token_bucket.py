"""The token bucket: how much it gives, over any time and by any calls."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamic_workflows.eventlog.token_bucket import TokenBucket

RATES = st.floats(0.01, 10_000)
BURSTS = st.floats(1, 10_000)
TAKES = st.lists(st.tuples(st.integers(0, 10_000_000), st.integers(0, 500)), max_size=60)
"""(microseconds since the one before, tokens)"""


def taken(bucket: TokenBucket, takes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """What was given: (when, how much)."""
    now_us, given_ = 1_700_000_000_000_000, []
    for passed_us, count in takes:
        now_us += passed_us
        if bucket.take(count, now_us):
            given_.append((now_us, count))
    return given_


@given(RATES, BURSTS, TAKES)
def test_no_stretch_of_time_gives_more_than_burst_and_rate(
    rate: float, burst: float, takes: list[tuple[int, int]]
) -> None:
    given_ = taken(TokenBucket(rate, burst=burst), takes)
    for first, (from_us, _) in enumerate(given_):
        total = 0
        for until_us, count in given_[first:]:
            total += count
            assert total <= burst + rate * (until_us - from_us) / 1e6 + 1e-3


@given(RATES, BURSTS, TAKES)
def test_a_refusal_takes_nothing_away(
    rate: float, burst: float, takes: list[tuple[int, int]]
) -> None:
    plain, pressed = TokenBucket(rate, burst=burst), TokenBucket(rate, burst=burst)
    now_us = 0
    for passed_us, count in takes:
        now_us += passed_us
        assert not pressed.take(burst + 1, now_us)
        assert plain.take(count, now_us) == pressed.take(count, now_us)


@given(st.floats(1, 10_000), BURSTS, TAKES)
def test_a_bucket_that_may_be_overdrawn_gives_whole_whatever_it_gives(
    rate: float, burst: float, takes: list[tuple[int, int]]
) -> None:
    bucket = TokenBucket(rate, burst=burst, debt_max=rate)
    now_us = 0
    for passed_us, count in takes:
        now_us += passed_us
        if not bucket.take(count, now_us):
            # The debt is at most a second's worth, and one token is needed above it.
            assert 0 < bucket.wait_s() <= (1 + rate) / rate + 1e-9


@given(RATES, BURSTS, TAKES)
def test_after_the_wait_that_it_tells_there_is_a_token(
    rate: float, burst: float, takes: list[tuple[int, int]]
) -> None:
    bucket = TokenBucket(rate, burst=burst, debt_max=max(rate, 1.0))
    now_us = 0
    for passed_us, count in takes:
        now_us += passed_us
        bucket.take(count, now_us)
    assert bucket.take(1, now_us + math.ceil(bucket.wait_s() * 1e6) + 1)


def test_a_clock_that_was_set_back_neither_gives_nor_stops_the_refill() -> None:
    bucket = TokenBucket(10, burst=10)
    assert bucket.take(10, 50_000_000)
    assert not bucket.take(1, 1_000_000)
    assert not bucket.take(2, 1_100_000)
    assert bucket.take(1, 1_100_000)


@pytest.mark.parametrize("debt_max", [0.0, 5.0])
def test_without_a_rate_what_is_taken_does_not_come_back(debt_max: float) -> None:
    bucket = TokenBucket(0, burst=1, debt_max=debt_max)
    assert bucket.take(1, 0)
    assert not bucket.take(1, 3_600_000_000)
    assert bucket.wait_s() == math.inf
