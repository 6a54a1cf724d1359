"""How the tests are laid over several processes (`pytest -n`, which the Makefile asks for).

What a room of tests may cost: a test that starts a Ray, forks or starts an isolate where these do
not belong is told so at once. Programs that a test runs beside itself are its own affair, and so is
the SQL of tenants, which runs in a process of its own by design.

And the one profile of all property tests: none fails because the machine is busy. Tests say
`settings(...)` only of what they change; a list of health checks takes the place of this one, so it
names `too_slow` as well (`test_hypothesis_profile.py`).
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import HealthCheck, settings

from dynamic_workflows.loaders.isolates.zygote_client import Spawner

settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")


HAS_RAY = sys.platform in ("linux", "darwin")
"""Not where tests run as on another system: tests/support/other_host.py."""
HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def nothing_dearer_than_its_room(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Make what does not belong into the room of the test raise."""
    room = request.path.relative_to(HERE).parts[0]

    def refused(*args: Any, **kwargs: Any) -> NoReturn:
        raise AssertionError(f"a test in tests/{room} may not do this: see tests/README.md")

    if HAS_RAY and room in ("unit", "isolates"):
        monkeypatch.setattr(importlib.import_module("ray"), "init", refused)
    if room == "unit":
        monkeypatch.setattr(os, "fork", refused)
        monkeypatch.setattr(Spawner, "__init__", refused)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep all tests that start a Ray in one process: two at once would fight for the cores."""
    for item in items:
        if item.get_closest_marker("ray") is not None:
            item.add_marker(pytest.mark.xdist_group("ray"))
