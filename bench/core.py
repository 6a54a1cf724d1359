"""The core alone: microseconds of processor for each input, without log, isolates or network.

What a tenant can decide in a second is bounded by this; the budget is 15 µs for a create and 20 µs
for a step (its request and its outcome).
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import AsyncIterator
from pathlib import Path

import measure

from dynamic_workflows.actors.core.tenant_core import TenantCore
from dynamic_workflows.actors.instances.decisions import CoreConfig, CreateItem
from dynamic_workflows.eventlog.events import Row
from dynamic_workflows.loaders.protocol.messages import Done, End, Idle, Sleep, StepRequest

CONFIG = b'{"retries":{"limit":5,"delay_ms":10000,"backoff":"exponential"},"timeout_ms":600000}'
VALUE = b'{"ok":true,"n":1}'
INSTANCES = 1_000
STEPS = 20
NOW = 1_767_225_600_000_000

Figures = dict[tuple[str, str], float]


def fresh() -> TenantCore:
    return TenantCore("bench", CoreConfig(creates_per_second_max=1e9))


def created(core: TenantCore) -> list[Row]:
    items = [
        CreateItem("TenantWorkflow", f"instance-{n}", VALUE, "h" * 64, token="t" * 32)
        for n in range(INSTANCES)
    ]
    return core.create(items, strict=False, now_us=NOW).rows


def microseconds(start: float, count: int) -> float:
    return (time.perf_counter() - start) / count * 1e6


def figures() -> Figures:
    found: Figures = {}
    core = fresh()
    gc.collect()
    start = time.perf_counter()
    rows = created(core)
    found["create", "µs"] = microseconds(start, INSTANCES)

    start = time.perf_counter()
    lives = []
    for key in list(core.runnable()):
        d = core.start(key, now_us=NOW)
        rows += d.rows
        lives.append(d.answer)
    found["start", "µs"] = microseconds(start, INSTANCES)

    messages = [
        [
            (StepRequest(n, f"step {n}", 1, bytes(CONFIG), "index.py:12"), Done(n, 1, VALUE))
            for n in range(1, STEPS + 1)
        ]
        for _ in lives
    ]
    start = time.perf_counter()
    for life, steps in zip(lives, messages, strict=True):
        for ask, done in steps:
            rows += core.on_message(life, ask, now_us=NOW).rows
            rows += core.on_message(life, done, now_us=NOW).rows
    found["step (request and outcome)", "µs"] = microseconds(start, INSTANCES * STEPS)

    start = time.perf_counter()
    for life in lives:
        sleep = Sleep(STEPS + 1, "nap", 1, 3_600_000, None, "index.py:13")
        rows += core.on_message(life, sleep, now_us=NOW).rows
        rows += core.on_message(life, Idle(STEPS + 1), now_us=NOW).rows
    found["fall asleep", "µs"] = microseconds(start, INSTANCES)

    replayed = fresh()
    start = time.perf_counter()
    for row in rows:
        replayed.apply(row)
    found["replay a row", "µs"] = microseconds(start, len(rows))
    replayed.recover(NOW)
    assert replayed.counts() == core.counts()

    core = fresh()
    created(core)
    lives = [core.start(key, now_us=NOW).answer for key in list(core.runnable())]
    start = time.perf_counter()
    for life in lives:
        core.on_message(life, End(VALUE), now_us=NOW)
    found["end", "µs"] = microseconds(start, INSTANCES)
    return found


@contextlib.asynccontextmanager
async def measured(folder: Path) -> AsyncIterator[measure.Run]:
    async def run() -> Figures:
        return figures()

    yield run


if __name__ == "__main__":
    question = "What does an input cost the core?"
    measure.main(question, measure.arguments(question).parse_args(), measured)
