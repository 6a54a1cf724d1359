"""Code that fails or kills is tried again later and later, and what gets somewhere is forgiven."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dynamic_workflows.actors.hosting.load_backoff import DEATHS_FREE, LoadBackoff
from dynamic_workflows.eventlog.clock import US, VirtualClock

KEY = ("hash", None, ())


def test_code_that_cannot_be_loaded_waits_longer_each_time_and_never_too_long() -> None:
    clock = VirtualClock()
    patience = LoadBackoff(clock)
    waits = [patience.failed(KEY) - clock.now_us() for _ in range(30)]
    assert waits[:3] == [50_000, 100_000, 200_000]
    assert waits == sorted(waits)
    assert waits[-1] == 30 * US
    patience.made_progress(KEY)
    assert patience.failed(KEY) - clock.now_us() == 50_000
    assert patience.failed("another") - clock.now_us() == 50_000


def test_the_first_deaths_are_free_and_a_quiet_minute_forgives() -> None:
    clock = VirtualClock()
    patience = LoadBackoff(clock)
    for n in range(DEATHS_FREE):
        assert patience.died(KEY, had_progress=False) == (n + 1, 0)
    count, until_us = patience.died(KEY, had_progress=False)
    assert (count, until_us - clock.now_us()) == (DEATHS_FREE + 1, 100_000)
    clock.move_to(until_us + 60 * US)
    assert patience.died(KEY, had_progress=False)[0] == DEATHS_FREE + 2
    clock.move_to(clock.now_us() + 120 * US)
    assert patience.died(KEY, had_progress=False) == (1, 0)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 100)), max_size=60))
def test_no_wait_is_longer_than_half_a_minute_or_a_second_with_progress(
    deaths: list[tuple[bool, int]],
) -> None:
    clock = VirtualClock()
    patience = LoadBackoff(clock)
    for had_progress, pause_s in deaths:
        count, until_us = patience.died(KEY, had_progress=had_progress)
        wait_us = until_us - clock.now_us() if until_us else 0
        assert (wait_us > 0) == (count > DEATHS_FREE)
        assert wait_us <= (US if had_progress else 30 * US)
        clock.move_to(max(until_us, clock.now_us()) + pause_s * US)
