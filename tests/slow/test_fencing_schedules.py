"""100,000 schedules of several owners of one log."""

from __future__ import annotations

import pytest
from fencing_schedules import FIRST_SEED, SCHEDULES, explore

SCHEDULES_SLOW = 100_000


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_schedule_of_many_owners_loses_or_doubles_what_was_acknowledged() -> None:
    explore(FIRST_SEED + SCHEDULES, SCHEDULES_SLOW)
