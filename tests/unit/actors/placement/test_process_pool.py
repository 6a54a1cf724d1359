"""The pool of processes that wait for tenants, with a launcher that starts none."""

from __future__ import annotations

import asyncio
from typing import Any

from dynamic_workflows.actors.placement.process_pool import Pool
from dynamic_workflows.eventlog.ids import SystemIds


class Process:
    """A process in name only."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def call(self, op: str, *args: Any, timeout_s: float | None = None) -> Any:
        """It answers at once."""
        return self.name


class Launcher:
    """Starts at once; ending one takes a turn of the loop."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    async def start(self, name: str, *, is_spare: bool) -> Process:
        """A process."""
        return Process(name)

    async def find(self, name: str) -> Process | None:
        """None that anybody asks for."""
        return None

    async def names(self) -> list[str]:
        """None that anybody asks for."""
        return []

    async def kill(self, name: str) -> None:
        """Note its end."""
        await asyncio.sleep(0)
        self.ended.append(name)


async def test_a_process_that_is_taken_while_its_pool_closes_is_its_takers() -> None:
    launcher = Launcher()
    pool = Pool(launcher, ids=SystemIds(), size=3, started=lambda name: None)
    pool.refill()
    for _ in range(10):  # The launcher needs no longer.
        await asyncio.sleep(0)
    assert len(pool.workers) == 3
    names = [process.name for process in pool.workers]
    await pool.stop()
    _, (taken, _) = await asyncio.gather(pool.close(), pool.take())
    assert sorted([*launcher.ended, taken.name]) == sorted(names)
    assert taken.name not in launcher.ended
