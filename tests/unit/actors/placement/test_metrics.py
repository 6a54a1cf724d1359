"""What operators watch: samples of what the parts count, and how they become metrics of Ray."""

from __future__ import annotations

from collections import defaultdict

import pytest
from local_world import World
from metric_samples import by_name

from dynamic_workflows.actors.cluster import ray_actors
from dynamic_workflows.actors.placement import metrics
from dynamic_workflows.actors.placement.metrics import MetricSample
from dynamic_workflows.eventlog.clock import US


async def test_the_supervisors_have_samples_too() -> None:
    world = await World(pool_size=2).start()
    found = by_name([*metrics.of_loader(await world.loader.stats())])
    await world.timer.slept([("late", 1, world.clock.now_us() - 90 * US)])
    stats, overdue = await world.timer.stats(), await world.timer.overdue()
    found |= by_name([*metrics.of_timer(stats, overdue)])
    await world.stop()
    assert found["tenants/pool"] == 2
    assert found["tenants/resident"] == 0
    assert found["tenants/asleep"] == 1
    assert found["timer_late_ms_max"] == 0, "nobody was asked for it so far"
    assert found["timer_overdue"] == 1
    assert found["timer_overdue_oldest_seconds"] == 90
    assert found["tenants_adopted_total"] == 0


class Told:
    """A metric of Ray's that remembers."""

    def __init__(self, name: str, description: str, tags: tuple[str, ...]) -> None:
        assert len(description) > 10
        self.name = name
        self.tags = tags
        books[name].append(self)
        self.values: dict[str, float] = defaultdict(float)

    def _key(self, tags: dict[str, str]) -> str:
        assert set(tags) == set(self.tags)
        return tags["status"] or tags["kind"]

    def set(self, value: float, tags: dict[str, str]) -> None:
        self.values[self._key(tags)] = value

    def inc(self, value: float, tags: dict[str, str]) -> None:
        self.values[self._key(tags)] += value


class ToldGauge(Told):
    pass


books: dict[str, list[Told]] = defaultdict(list)


def test_gauges_are_set_and_counters_grow_by_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_actors, "Counter", Told)
    monkeypatch.setattr(ray_actors, "Gauge", ToldGauge)
    meter = ray_actors.Meter()
    for waiting, cpu in ((5, 1), (3, 4), (0, 4)):
        meter.record(
            [
                MetricSample("instances", waiting, {"status": "waiting", "tenant": "acme"}),
                MetricSample("isolates_ended_total", cpu, {"kind": "cpu"}),
                MetricSample("isolates_ended_total", 2, {"kind": "exit"}),
            ]
        )
    [instances] = books["dynamic_workflows_instances"]
    [ended] = books["dynamic_workflows_isolates_ended_total"]
    assert instances.values == {"waiting": 0}
    assert ended.values == {"cpu": 4, "exit": 2}


def test_rays_own_metrics_take_every_name_and_tag() -> None:
    meter = ray_actors.Meter()
    meter.record([MetricSample(name, 1, {}) for name in metrics.DESCRIPTIONS])


def test_a_tenants_id_as_a_tag_cannot_steer_a_terminal() -> None:
    assert metrics.shown("a\x1b[31m\nb") == r"a\x1b[31m\nb"
    assert metrics.shown(None) == ""
