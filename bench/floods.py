"""What a flood costs the supervisor: its CPU, the longest stand-still of its loop, and the end.

Raw output of an isolate (descriptor 1): 10 MB and 100 MB in one turn, and without end in writes
of 64 KiB and of one byte. Log records without end, from a guest that was tampered with. A
stand-still is the time between two turns of a loop that has a timer of 1 ms.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import measure

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from isolates import RESULT, isolates, start

from dynamic_workflows.loaders.isolates.interface import Limits

ONE_TURN = """
import os
data, left = (b"x" * 999 + b"\\n") * 64, {size}
while left > 0:
    left -= os.write(1, data)
"""
FOR_SECONDS = """
import asyncio, os, time
from dynamic_workflows.loaders.protocol.messages import Log, pack
record = pack(Log("info", "x"))
async def main():
    end = time.monotonic() + 5
    while time.monotonic() < end:
        for _ in range({times}):
            {what}
        await asyncio.sleep(0)
"""
FLOODS = {
    "10 MB in one turn": ONE_TURN.format(size=10_000_000),
    "100 MB in one turn": ONE_TURN.format(size=100_000_000),
    "64 KiB writes, up to 5 s": FOR_SECONDS.format(times=10, what="os.write(1, b'x' * 65536)"),
    "1-byte writes, up to 5 s": FOR_SECONDS.format(times=1000, what="os.write(1, b'.')"),
    "log records, up to 5 s": FOR_SECONDS.format(times=1, what="send([record] * 500)"),
}
_LIMITS = Limits(turn_cpu_ms=30_000, turn_wall_ms=60_000)

Figures = dict[tuple[str, str], float]


async def stand_still(gaps: list[float]) -> None:
    last = time.perf_counter()
    while True:
        await asyncio.sleep(0.001)
        now = time.perf_counter()
        gaps.append(now - last)
        last = now


async def flood(source: str) -> tuple[float, float, float]:
    """Seconds, seconds of our CPU, and the longest stand-still in seconds."""
    async with isolates() as made:
        talk = await start(made, _LIMITS)
        await talk.run("pass")
        gaps: list[float] = []
        watching = asyncio.create_task(stand_still(gaps))
        cpu_s, begin_s = time.process_time(), time.perf_counter()
        talk.tell(source)
        with contextlib.suppress(AssertionError):  # its limit ended it, as it should
            await talk.hear(RESULT)
        spent = time.perf_counter() - begin_s, time.process_time() - cpu_s
        watching.cancel()
        return *spent, max(gaps, default=0.0)


async def once() -> Figures:
    figures: Figures = {}
    for name, source in FLOODS.items():
        took_s, cpu_s, gap_s = await flood(source)
        figures[f"{name}: to its end", "s"] = took_s
        figures[f"{name}: supervisor's CPU", "s"] = cpu_s
        figures[f"{name}: longest stand-still", "ms"] = gap_s * 1000
    return figures


@contextlib.asynccontextmanager
async def measured(folder: Path) -> AsyncIterator[measure.Run]:
    yield once


if __name__ == "__main__":
    question = "Floods: what they cost the supervisor"
    measure.main(question, measure.arguments(question).parse_args(), measured)
