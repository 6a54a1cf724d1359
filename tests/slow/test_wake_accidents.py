"""Any two accidents between timer, loader and slot."""

from __future__ import annotations

import pytest
from wake_accidents import wrong_of


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize(("naps", "pool_size"), [(1, 0), (1, 1), (2, 0)])
def test_any_two_accidents_lose_no_wake_up(naps: int, pool_size: int) -> None:
    """20 000, 30 000 and 50 000 schedules: one, two and four minutes of one core."""
    assert wrong_of(2, naps=naps, pool_size=pool_size) == []


@pytest.mark.slow
def test_one_accident_loses_no_wake_up_where_slots_wait_in_a_pool() -> None:
    assert wrong_of(1, pool_size=1) == []
