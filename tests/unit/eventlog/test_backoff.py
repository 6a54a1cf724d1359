"""The back-off: rests that grow, and no further; chance that a seed repeats."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamic_workflows.eventlog.backoff import Backoff, FailureStreak
from dynamic_workflows.eventlog.clock import US, VirtualClock

FIRST = st.floats(0.001, 10)
TIMES = st.floats(1, 1_000)
"""How many first rests the longest one is."""
FACTORS = st.floats(1, 10)
FAILURES = st.integers(1, 100_000)


@given(FIRST, TIMES, FACTORS, FAILURES)
def test_rests_never_shrink_and_stay_between_the_first_and_the_longest(
    first_s: float, times: float, factor: float, failures: int
) -> None:
    backoff = Backoff(first_s, first_s * times, factor)
    rest_s, next_s = backoff.rest_s(failures), backoff.rest_s(failures + 1)
    assert backoff.rest_s(1) == first_s <= rest_s <= next_s <= first_s * times
    assert next_s <= rest_s * factor * (1 + 1e-9)


@given(FIRST, TIMES, st.floats(1.5, 10))
def test_the_longest_rest_is_reached(first_s: float, times: float, factor: float) -> None:
    assert Backoff(first_s, first_s * times, factor).rest_s(100) == first_s * times


@given(FIRST, TIMES, st.floats(0.01, 1), FAILURES, st.integers())
def test_jitter_takes_off_no_more_than_its_part_and_a_seed_repeats_it(
    first_s: float, times: float, jitter: float, failures: int, seed: int
) -> None:
    plain = Backoff(first_s, first_s * times).rest_s(failures)
    backoff = Backoff(first_s, first_s * times, jitter=jitter)
    rest_s = backoff.rest_s(failures, Random(seed))
    assert plain * (1 - jitter) <= rest_s <= plain
    assert backoff.rest_s(failures, Random(seed)) == rest_s


def test_of_many_that_failed_at_once_no_two_come_back_at_once() -> None:
    backoff = Backoff(1.0, 1.0, jitter=0.5)
    assert len({backoff.rest_us(1, Random(seed)) for seed in range(100)}) == 100


def test_nothing_that_has_not_failed_rests() -> None:
    assert Backoff(1.0, 2.0).rest_s(0) == 0.0
    assert FailureStreak(Backoff(1.0, 2.0), VirtualClock()).retry_us == 0


def test_failures_in_a_row_rest_longer_until_a_success() -> None:
    clock = VirtualClock()
    streak = FailureStreak(Backoff(1.0, 3.0), clock)
    rests = []
    for _ in range(4):
        streak.failed()
        rests.append(streak.retry_us - clock.now_us())
        clock.move_to(streak.retry_us)
    assert rests == [US, 2 * US, 3 * US, 3 * US]
    streak.ended()
    assert streak.retry_us == 0
    streak.failed()
    assert streak.retry_us == clock.now_us() + US


@pytest.mark.parametrize("back_us", [1, 3_600 * US])
def test_a_clock_that_was_set_back_does_not_lengthen_a_rest(back_us: int) -> None:
    start_us = 1_767_225_600 * US
    clock = VirtualClock(start_us)
    streak = FailureStreak(Backoff(1.0, 4.0), clock)
    streak.failed()
    clock._now_us = start_us - back_us
    retry_us = streak.retry_us
    assert retry_us <= clock.now_us() + 4 * US
    clock.move_to(retry_us)
    assert streak.retry_us == retry_us
