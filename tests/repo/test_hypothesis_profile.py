"""No property test depends on how quick the machine is."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

SETTINGS = "_hypothesis_internal_use_settings"


def unfit(settled: settings) -> bool:
    """Whether a test with these settings may fail on a busy machine alone."""
    is_told = HealthCheck.too_slow in settled.suppress_health_check
    return settled.deadline is not None or not is_told


def test_every_property_test_that_was_collected_waits_for_a_slow_machine(
    request: pytest.FixtureRequest,
) -> None:
    found = {
        item.nodeid: getattr(item.obj, SETTINGS, None) or settings()
        for item in request.session.items
        if isinstance(item, pytest.Function) and hasattr(item.obj, "hypothesis")
    }
    assert [name for name, settled in found.items() if unfit(settled)] == []


def test_settings_of_a_test_keep_what_the_profile_says_unless_they_name_it() -> None:
    assert not unfit(settings())
    assert not unfit(settings(max_examples=3))
    assert unfit(settings(deadline=200))
    assert unfit(settings(suppress_health_check=[HealthCheck.data_too_large]))
