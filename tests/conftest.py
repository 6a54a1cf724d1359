"""How the tests are laid over several processes (`pytest -n`, which the Makefile asks for).

And the one profile of all property tests: none fails because the machine is busy. Tests say
`settings(...)` only of what they change; a list of health checks takes the place of this one, so it
names `too_slow` as well (`test_hypothesis_profile.py`).
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep all tests that start a Ray in one process: two at once would fight for the cores."""
    for item in items:
        if item.get_closest_marker("ray") is not None:
            item.add_marker(pytest.mark.xdist_group("ray"))
