"""Samples of metrics, by name."""

from __future__ import annotations

from dynamic_workflows.actors.placement.metrics import MetricSample


def by_name(samples: list[MetricSample]) -> dict[str, float]:
    """Samples by name and by what their tags say beside the tenant."""
    found = {}
    for name, value, tags in samples:
        more = [value for tag, value in sorted(tags.items()) if tag != "tenant"]
        found["/".join([name, *more])] = value
    return found
