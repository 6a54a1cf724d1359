"""A process that owns a log: appends until it is fenced or killed, and reports what is safe.

python log_owner.py ROOT STREAM TENANT NAME        one line per acknowledged append on stdout
"""

from __future__ import annotations

import asyncio
import os
import sys

from dynamic_workflows.eventlog.clock import SystemClock
from dynamic_workflows.eventlog.errors import Fenced
from dynamic_workflows.eventlog.events import Row
from dynamic_workflows.eventlog.ids import SystemIds
from dynamic_workflows.eventlog.log.event_log import EventLog
from dynamic_workflows.eventlog.store.open_store import open_store


async def main(root: str, stream: str, tenant_id: str, name: str) -> None:
    store = open_store(root)
    log = await EventLog.open(
        store, stream, tenant_id=tenant_id, clock=SystemClock(), ids=SystemIds()
    )

    async def append_for_ever(lane: int) -> None:
        number = 0
        while True:
            text = f"{name}-{lane}-{number}"
            row = Row(type="event_received", workflow="W", instance_id=text, payload=text.encode())
            await log.append([row], durable=number % 3 != 0)
            # One write a line: what the parent has read was acknowledged, whenever this one dies.
            os.write(1, f"{text} {row.seq}\n".encode())
            number += 1
            if lane == 0 and number % 400 == 0:
                await log.seal()
            elif number % 50 == 0:
                await asyncio.sleep(0)

    try:
        await asyncio.gather(*(append_for_ever(lane) for lane in range(4)))
    except Fenced:
        os.write(1, b"fenced -\n")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
