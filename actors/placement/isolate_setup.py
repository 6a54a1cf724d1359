"""Isolate setup: starts a worker process's zygote before the process imports all else."""

from __future__ import annotations

import asyncio

from dynamic_workflows.eventlog.tracing import mark
from dynamic_workflows.loaders.isolates.interface import Isolation
from dynamic_workflows.loaders.isolates.isolate_pool import ProcessIsolates

from ..background_tasks import seen
from ..settings.platform_config import PlatformConfig


async def begin(config: PlatformConfig) -> ProcessIsolates:
    """Return isolates whose zygote is starting in the background."""
    isolates = isolates_of(config)
    starting = asyncio.ensure_future(isolates.ready())
    # Starting an isolate raises the same error, to the caller that needs it.
    starting.add_done_callback(seen)
    starting.add_done_callback(lambda done: mark("worker: its zygote is ready"))
    await asyncio.sleep(0)  # the task's first step begins the process
    mark("worker: its zygote begins")
    return isolates


def isolates_of(config: PlatformConfig) -> ProcessIsolates:
    """Return isolates with the platform's settings; those kept warm fit most tenants."""
    isolation = Isolation(
        level=config.isolation,
        jail=config.jail,
        packages=config.packages,
        threads=config.threads,
        uids_first=config.isolate_uids_first,
        warm=config.warm_isolates,
    )
    return ProcessIsolates(isolation, limits=config.limits())
