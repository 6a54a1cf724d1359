"""How the tests are laid over several processes (`pytest -n`, which the Makefile asks for)."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep all tests that start a Ray in one process: two at once would fight for the cores."""
    for item in items:
        if item.get_closest_marker("ray") is not None:
            item.add_marker(pytest.mark.xdist_group("ray"))
