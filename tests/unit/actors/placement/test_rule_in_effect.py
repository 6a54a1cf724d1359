"""Whose `load` a loader says is in effect, as drivers with the same one come and go."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import dynamic_workflows as dw
from dynamic_workflows.actors.cluster.load_precedence import may_replace
from dynamic_workflows.actors.placement.wiring import LoaderService
from dynamic_workflows.actors.rpc.actor_settings import Setup


def setup_of(root: Path, load: bytes, at_us: int) -> Setup:
    return Setup(str(root), dw.PlatformConfig(), "n", callbacks=load, connected_at_us=at_us)


def loader_of(setup: Setup) -> LoaderService:
    unused: Any = None
    return LoaderService(setup, unused, unused)


async def test_a_later_driver_with_the_same_load_keeps_out_one_that_came_between(
    tmp_path: Path,
) -> None:
    first, between, last = (
        setup_of(tmp_path, load, at) for load, at in ((b"a", 1), (b"b", 2), (b"a", 3))
    )
    loader = loader_of(first)
    assert may_replace(between.rule, await loader.rule(first.rule))
    assert await loader.rule(last.rule) == last.rule
    assert await loader.rule(first.rule) == last.rule
    assert not may_replace(between.rule, await loader.rule(between.rule))


async def test_a_driver_that_waits_tells_a_restarted_loader_when_it_connected(
    tmp_path: Path,
) -> None:
    first, last = setup_of(tmp_path, b"a", 1), setup_of(tmp_path, b"a", 3)
    loader = loader_of(first)
    assert await loader.replaced(last.rule, 0.0) is None
    assert await loader.rule(first.rule) == last.rule


async def test_a_driver_with_another_load_is_told_at_once_whose_it_is(tmp_path: Path) -> None:
    mine = setup_of(tmp_path, b"a", 1)
    loader = loader_of(replace(mine, callbacks=b"b", driver="process 7 on far", connected_at_us=2))
    found = await loader.replaced(mine.rule, 600.0)
    assert found is not None
    assert found.driver == "process 7 on far"
